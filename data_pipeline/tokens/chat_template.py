"""Chat template of a tokenizer's folder, as `transformers` stores it.

It is the file chat_template.jinja, or the field `chat_template` of tokenizer_config.json: a text, or a list of named
ones, of which "default" is taken. Assay does not use it; an export carries it on, or `CHATML` in its place after
training on answers.
"""

from __future__ import annotations

import json
from pathlib import Path

from governance.errors import ConfigError
from governance.log import get_logger

TEMPLATE_FILE = "chat_template.jinja"
CHATML = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Template of the text that chats read as `messages_form = "instructions"` become."""
_SETTINGS = "tokenizer_config.json"


def find_template(tokenizer: Path) -> str:
    """The template next to a `tokenizer.json`; "" if there is none.

    Raises:
        ConfigError: its file cannot be read.
    """
    own, settings = tokenizer.with_name(TEMPLATE_FILE), tokenizer.with_name(_SETTINGS)
    try:
        if own.is_file():
            return own.read_text(encoding="utf-8")
        held = json.loads(settings.read_bytes()) if settings.is_file() else {}
        found = held.get("chat_template") if isinstance(held, dict) else None
        if isinstance(found, list):
            named = {str(one["name"]): str(one["template"]) for one in found}
            if left := sorted(set(named) - {"default"}):
                get_logger(__name__).warning("%s: the chat templates %s are not passed on", settings, ", ".join(left))
            found = named.get("default")
        return str(found or "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"tokenizer.path: the chat template next to {tokenizer} cannot be read ({error}). Fetch the folder again, "
            f"or remove {TEMPLATE_FILE} and {_SETTINGS}."
        ) from error
