"""Wikitext as plain text, by mwparserfromhell.

Kept are paragraphs, headings, lists, and the words of links. Templates, tables, comments, references, formulas,
galleries, and links to files and categories are left out. The parser runs in the process of `page_process`, within its
bounds on time and memory: it is quadratic in some texts that an attacker can write.
"""

from __future__ import annotations

import re
from typing import Any

_LEFT_OUT = frozenset(
    ("table", "ref", "references", "gallery", "math", "chem", "score", "timeline", "imagemap", "hiero", "graph",
     "templatestyles", "categorytree", "inputbox", "mapframe", "maplink", "style", "script", "includeonly")
)  # fmt: skip
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_SWITCH = re.compile(r"__[A-Z]+__")


def plain_text(page: str) -> str:
    """Text of a page.

    Its first line names the prefixes of links to files and categories, separated by `|`.
    """
    import mwparserfromhell

    line, _, text = page.partition("\n")
    found = _SWITCH.sub("", _text_of(mwparserfromhell.parse(text), frozenset(line.lower().split("|"))))
    lines = "\n".join(line.strip() for line in found.split("\n"))
    return _BLANK_LINES.sub("\n\n", lines).strip()


def _text_of(code: Any, prefixes: frozenset[str]) -> str:
    """Text of parsed wikitext; templates, arguments and comments have none."""
    parts = []
    for node in code.nodes if code is not None else ():
        kind = type(node).__name__
        if kind == "Text":
            parts.append(str(node.value))
        elif kind == "HTMLEntity":
            parts.append(str(node.normalize()))
        elif kind == "Heading":
            parts.append(_text_of(node.title, prefixes).strip())
        elif kind == "ExternalLink":
            parts.append(_text_of(node.title, prefixes) if node.brackets else str(node.url))
        elif kind == "Wikilink":
            prefix, colon, _ = str(node.title).strip().partition(":")
            if not (colon and prefix.strip().lower() in prefixes):
                shown = node.title if node.text is None else node.text
                parts.append(_text_of(shown, prefixes).removeprefix(":"))
        elif kind == "Tag" and (name := str(node.tag).strip().lower()) not in _LEFT_OUT:
            parts.append("\n" if name == "br" else _text_of(node.contents, prefixes))
    return "".join(parts)
