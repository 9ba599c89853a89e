"""Chats as text: lists of messages in one of two forms.

    roles                       chatml
    user: What is a quine?      <|im_start|>user
                                What is a quine?<|im_end|>
    assistant: A program ...    <|im_start|>assistant
                                A program ...<|im_end|>

A message is `{"role", "content"}` (or `{"from", "value"}`); its content is a string, or a list of parts
`{"type": "text", "text"}`. A value that is a string is read as the JSON of such a list. The form is part of the
source's section, so the manifest of `ingest` states it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

MessagesForm = Literal["roles", "chatml"]


def messages_text(value: Any, form: MessagesForm) -> str | None:
    """The text of a list of messages; None for other values."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not value:
        return None
    written = []
    for message in value:
        if not isinstance(message, Mapping):
            return None
        role = message.get("role", message.get("from"))
        content = _content(message.get("content", message.get("value")))
        if not isinstance(role, str) or not role or content is None:
            return None
        written.append(
            f"<|im_start|>{role}\n{content}<|im_end|>\n" if form == "chatml" else f"{role}: {content.strip()}"
        )
    return "".join(written) if form == "chatml" else "\n\n".join(written)


def _content(value: Any) -> str | None:
    """The text of a message; None for pictures, sounds and calls."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else None
    parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in value]
    return None if None in parts or not all(isinstance(part, str) for part in parts) else "".join(map(str, parts))
