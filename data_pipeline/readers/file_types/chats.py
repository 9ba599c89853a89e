"""Chats as text: lists of messages in one of two forms.

    roles                       chatml
    user: What is a quine?      <|im_start|>user
                                What is a quine?<|im_end|>
    assistant: A program ...    <|im_start|>assistant
                                A program ...<|im_end|>

A message is `{"role", "content"}` (or `{"from", "value"}`); its content is a string, or a list of parts
`{"type": "text", "text"}`. A value that is a string is read as the JSON of such a list. The form is part of the
source's section, so the manifest of `ingest` states it.

`instructions` is chatml for training on answers (`tokens/answers.py`). It takes a chat only if each message of the role
`assistant` (or `gpt`) has text, there is one, none comes first, and no message spells a marker: a prompt could pose as
an answer otherwise. Its messages are normalised first, as `clean` does: characters that go later hide no marker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from data_pipeline.normalised_text import normalise

MessagesForm = Literal["roles", "chatml", "instructions"]
_ROLES = {"human": "user", "gpt": "assistant"}
"""Other names of roles, in the form `instructions`."""


def messages_text(value: Any, form: MessagesForm) -> str | None:
    """The text of a list of messages; None for other values."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not value:
        return None
    written, roles = [], []
    for message in value:
        if not isinstance(message, Mapping):
            return None
        role = message.get("role", message.get("from"))
        content = _content(message.get("content", message.get("value")))
        if not isinstance(role, str) or not role or content is None:
            return None
        if form == "instructions":
            role, content = normalise(role), normalise(content)
            role = _ROLES.get(role, role)
            if "<|im_" in role + content or "\n" in role or (role == "assistant" and not content.strip()):
                return None
        roles.append(role)
        written.append(
            f"{role}: {content.strip()}" if form == "roles" else f"<|im_start|>{role}\n{content}<|im_end|>\n"
        )
    if form == "instructions" and (roles[0] == "assistant" or "assistant" not in roles):
        return None
    return "\n\n".join(written) if form == "roles" else "".join(written)


def messages_fault(value: Any) -> str:
    """Reason why a value is not a text of the form `instructions`."""
    return "not_messages" if messages_text(value, "chatml") is None else "no_answer"


def _content(value: Any) -> str | None:
    """The text of a message; None for pictures, sounds and calls."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else None
    parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in value]
    return None if None in parts or not all(isinstance(part, str) for part in parts) else "".join(map(str, parts))
