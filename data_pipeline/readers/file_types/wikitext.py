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
    return "".join(_text_of_node(node, prefixes) for node in (code.nodes if code is not None else ()))


def _text_of_node(node: Any, prefixes: frozenset[str]) -> str:
    match type(node).__name__:
        case "Text":
            return str(node.value)
        case "HTMLEntity":
            return str(node.normalize())
        case "Heading":
            return _text_of(node.title, prefixes).strip()
        case "ExternalLink":
            return _text_of(node.title, prefixes) if node.brackets else str(node.url)
        case "Wikilink":
            prefix, colon, _ = str(node.title).strip().partition(":")
            if colon and prefix.strip().lower() in prefixes:
                return ""
            return _text_of(node.title if node.text is None else node.text, prefixes).removeprefix(":")
        case "Tag":
            name = str(node.tag).strip().lower()
            if name in _LEFT_OUT:
                return ""
            return "\n" if name == "br" else _text_of(node.contents, prefixes)
    return ""
