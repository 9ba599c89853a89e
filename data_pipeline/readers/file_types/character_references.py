"""HTML character references left in plain text: `Tom &amp; Jerry`.

They remain where a page's text was taken without decoding it. Text about HTML and code have them on purpose, so a whole
document stays as it is where one of these holds:

    a tag, a comment or a fenced block is in it, or a reference stands in backticks or quotation marks
    decoding would make a tag or another reference (`&lt;br&gt;`, `&amp;nbsp;`)
    it speaks of HTML, XML, entities, ampersands or character references
    a fifth of its lines or more end as code does (`;`, `{`, `}`)

Otherwise each reference with its semicolon becomes its character: the named ones of HTML 4 and `&apos;`, and numbers of
characters that text may hold. Others stay (`&foo;`, `&copy=1`, `&#0;`).
"""

from __future__ import annotations

import html
import re
from html.entities import name2codepoint

_REFERENCE = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,7}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_ON_PURPOSE = re.compile(
    r"</?[A-Za-z][^<>\n]{0,200}>|<!|```|[`'\"]&#?\w+;[`'\"]"
    r"|\b(?:X?HTML|XML|entit(?:y|ies)|ampersands?|character references?)\b",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[A-Za-z/!]")
_NAMES = name2codepoint.keys() | {"apos"}
_CODE_LINES = 5  # one line in this many that ends as code does makes a text code


def decode_references(text: str) -> tuple[str, bool]:
    """The text with references decoded, and whether it has any.

    Time is linear in the text.
    """
    if "&" not in text or not _has_references(text):
        return text, False
    lines = [bare for line in _REFERENCE.sub("", text).splitlines() if (bare := line.strip())]
    code = sum(line.endswith((";", "{", "}")) for line in lines)
    if _ON_PURPOSE.search(text) or (code and code * _CODE_LINES >= len(lines)):
        return text, True
    decoded = _REFERENCE.sub(_decoded, text)
    return (text if _TAG.search(decoded) or _has_references(decoded) else decoded), True


def _has_references(text: str) -> bool:
    return any(_decoded(found) != found[0] for found in _REFERENCE.finditer(text))


def _decoded(found: re.Match[str]) -> str:
    """The character of a reference, else the reference itself."""
    written = found[0]
    if written[1] != "#":
        return html.unescape(written) if written[1:-1] in _NAMES else written
    character = html.unescape(written)
    held = character != "\ufffd" and (character.isprintable() or character in "\t\n\u00a0\u00ad")
    return character if held else written
