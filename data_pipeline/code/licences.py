"""Licence of a source file, from its header or licence file.

A header is the run of comments that begins a file. Its licence is, in this order:

- that of its `SPDX-License-Identifier` lines, joined by AND where there are several;
- that of the licence texts and notices in it (`licenseclassifier`, a port of Google's licensecheck, which compares
  words with the texts of the SPDX list), if no other words on licences are left in it: an exception, a second choice
  or a restriction makes the licence unknown.

A header that only refers to a licence file, or says nothing, leaves the decision to the nearest licence file. Such a
file's licence is known if its texts cover `MIN_COVERAGE` of its words and no condition is left outside of them.

Promise: whatever is not certain is "NOASSERTION". A header is read up to `HEADER_CHARACTERS`, a licence file up to
`LICENCE_FILE_BYTES`; a longer one is unknown. So both are bounded whatever the file is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any

UNKNOWN = "NOASSERTION"
HEADER_CHARACTERS = 16_000
LICENCE_FILE_BYTES = 1 << 18
MIN_COVERAGE = 0.75

_IDENTIFIER = re.compile(r"SPDX-License-Identifier:[ \t]*(?P<expression>[^\n]*)", re.I)
_EXPRESSION = re.compile(r"[A-Za-z0-9.+:() \t-]*")
_SAYS_LICENCE = re.compile(
    r"licen[cs]|permission|permitted|redistribut|terms and conditions|under the terms|exception\b|\bl?gpl|public domain"
    r"|proprietary|confidential|royalt|commercial|\bpatents?\b|all rights granted|may not\b|copyleft|\bgnu\b",
    re.I,
)
_REFERS = re.compile(r"\b(UN)?LICEN[CS]E(\.\w+)?\b|\bCOPYING(\.\w+)?\b|licen[cs]e (file|details)|file licen[cs]e\b")
_HARMLESS = re.compile(r"contributor (licen[cs]e )?agreement", re.I)
_TITLE = re.compile(r"^[^\w\n]*([\w.'\"+-]+[ \t]+){0,5}licen[cs]e([ \t]+[\w.'\"()+:,-]+){0,5}[^\w\n]*$", re.I | re.M)
_STATES = re.compile(
    r"\b(is|are|under|with|see|may|not|no|only|except\w*|optional|for|to|all|this|by|from|a|an|any)\b", re.I
)
_GPL_EXAMPLE = re.compile(
    r"How to Apply These Terms to Your New (Programs|Libraries).{0,4000}?"
    r"(instead\s+of\s+this\s+License\.(\s+But first, please read\s+\S+)?"
    r"|That's all there is to it!|gnu\.org/licenses/>\.\s*\Z)",
    re.S,
)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n\s*\n")
_MARKS = re.compile(
    r"^[ \t]*(/\*+|\*+/|\*+|//+!?|#+!?|--+|;+|%+|<!--|-->|dnl\b|\.\.|\"\"\"|'''|!+|\(\*|\*\)|REM\b)?[ \t]?", re.M
)
_LINE_COMMENT = re.compile(r"[ \t]*(#|//|--|;|%|!|dnl\b|\.\.|rem\b|'(?!''))", re.I)
_DIRECTIVE = re.compile(
    r"[ \t]*#[ \t]*(include|define|undef|if|ifdef|ifndef|elif|else|endif|pragma|import|error|line)\b"
)
_BLOCKS = {
    "/*": "*/", "<!--": "-->", '"""': '"""', "'''": "'''", 'r"""': '"""', "(*": "*)", "{-": "-}", "=begin": "=end",
    "--[[": "]]", "<#": "#>",
}  # fmt: skip
_BEFORE_COMMENT = re.compile(r"<\?(php|xml)|<!doctype|\"use strict\"|'use strict'|@charset|@echo off", re.I)
_WORD = re.compile(r"[^\W_]+")
_PLAIN = ("license", "licence", "copying", "unlicense")
_LICENCE_FILE = re.compile(r"(un)?licen[cs]e|copying|(mit|apache|bsd|gpl|lgpl)[-_.]licen[cs]e", re.I)
_CODE_ENDINGS = (".py", ".js", ".ts", ".c", ".h", ".cpp", ".go", ".rs", ".java", ".rb", ".json", ".css", ".php")


def is_licence_file(file: str) -> bool:
    """Return whether a file's name is that of a licence file."""
    name = PurePosixPath(file).name.lower()
    return _LICENCE_FILE.match(name) is not None and not name.endswith(_CODE_ENDINGS)


def deciding_licence_file(names: list[str]) -> list[str]:
    """The licence files of a folder that decide, by name.

    COPYING.LESSER next to COPYING, then the one with a plain name, otherwise all of them.
    """
    lesser = [name for name in names if name.lower().startswith(("copying.lesser", "copying.lib"))]
    plain = [name for name in names if name.lower().partition(".")[0] in _PLAIN and name not in lesser]
    return lesser or (plain if len(plain) == 1 else names)


def normalised(expression: str) -> str:
    """An SPDX expression with known identifiers as the list spells them.

    The result is `UNKNOWN` where it has no such form.
    """
    if not expression.strip() or not _EXPRESSION.fullmatch(expression):
        return UNKNOWN
    return _normalised(expression.strip())


@functools.lru_cache(maxsize=4096)
def _normalised(expression: str) -> str:
    import license_expression

    try:
        parsed = _licensing().parse(expression)
    except (license_expression.ExpressionError, license_expression.ParseError):
        return UNKNOWN
    unknown = [key for key in _licensing().unknown_license_keys(parsed) if not key.startswith("LicenseRef-")]
    return UNKNOWN if parsed is None or unknown else str(parsed)


@functools.cache
def _licensing() -> Any:
    import license_expression

    return license_expression.get_spdx_licensing()


def permits(expression: str, allowed: Collection[str], denied: Collection[str]) -> bool:
    """Return whether an expression can be met with allowed licences only.

    One side of an OR is enough. No `allowed` means all; an exception (WITH) only adds to what its licence permits.
    """

    def met(part: Any) -> bool:
        if getattr(part, "args", ()):
            return (any if part.operator.strip().upper() == "OR" else all)(map(met, part.args))
        names = {str(part), str(getattr(part, "license_symbol", part))}
        return not names & set(denied) and (not allowed or bool(names & set(allowed)))

    return met(_licensing().parse(expression))


def header_of(text: str) -> str:
    """The comments that begin a source file, blank lines included."""
    lines: list[str] = []
    end = ""
    size = 0
    for line in text[: 2 * HEADER_CHARACTERS].splitlines(keepends=True):
        stripped = line.strip()
        if end:
            if end in stripped:
                end = ""
        elif opener := next((mark for mark in _BLOCKS if stripped.lower().startswith(mark)), ""):
            closer = _BLOCKS[opener]
            end = "" if closer in stripped[len(opener) :] else closer
        elif _DIRECTIVE.match(line) or _BEFORE_COMMENT.match(stripped):
            continue
        elif stripped and not _LINE_COMMENT.match(line):
            break
        lines.append(line)
        size += len(line)
        if size > HEADER_CHARACTERS:
            break
    return "".join(lines)


def licence_of_header(text: str) -> str:
    """The licence that a source file's header states.

    The result is "" if it states none, `UNKNOWN` if it says something that is not understood.
    """
    if "SPDX-License-Identifier" in text[:HEADER_CHARACTERS]:
        found = [match["expression"] for match in _IDENTIFIER.finditer(text, 0, HEADER_CHARACTERS)]
        return _joined([normalised(re.sub(r"(\*+/|-->|[\"'`*#,;}\]]+)\s*$", "", one.strip()).strip()) for one in found])
    header = header_of(text)
    return _of_notice(_MARKS.sub("", header)) if _SAYS_LICENCE.search(header) else ""


@functools.lru_cache(maxsize=1024)
def _of_notice(header: str) -> str:
    found, rest, _ = _texts_in(header)
    if any(not _REFERS.search(sentence) for sentence in _conditions(rest)):
        return UNKNOWN
    return _joined(found)


def _conditions(text: str) -> list[str]:
    """Sentences of a text that say something on licences, without titles."""
    text = _TITLE.sub(lambda line: line[0] if _STATES.search(line[0]) else "", text)
    return [one for one in _SENTENCE.split(text) if _SAYS_LICENCE.search(one) and not _HARMLESS.search(one)]


def licence_of_file(data: bytes) -> str:
    """The licence that a licence file holds the text of, or `UNKNOWN`."""
    if len(data) > LICENCE_FILE_BYTES or b"\0" in data:
        return UNKNOWN
    text = _GPL_EXAMPLE.sub("", data.decode("utf-8", "replace"))
    stated = [licence_of_header(text)] if "SPDX-License-Identifier" in text[:HEADER_CHARACTERS] else []
    found, rest, coverage = _texts_in(_IDENTIFIER.sub("", text))
    if not (stated or (found and coverage >= MIN_COVERAGE)) or _conditions(rest):
        return UNKNOWN
    return _joined([*stated, *found])


def _texts_in(text: str) -> tuple[list[str], str, float]:
    """Licences whose texts a text holds, the rest, and their share.

    The share is that of the words.
    """
    import licenseclassifier

    found: list[str] = []
    rest: list[str] = []
    at = 0
    for match in licenseclassifier.identify_license(text, coverage_threshold=0.0):
        rest.append(text[at : match.start])
        at = match.end
        # The text of a GPL ends with an example of the notice that says "or any later version".
        if match.id.removesuffix("-or-later") not in found:
            found.append(match.id)
    rest.append(text[at:])
    outside = "\n\n".join(rest)
    words = len(_WORD.findall(text))
    return [normalised(one) for one in found], outside, 1 - len(_WORD.findall(outside)) / max(1, words)


def _joined(expressions: list[str]) -> str:
    """All of several expressions; "" of none, `UNKNOWN` if one is."""
    if UNKNOWN in expressions:
        return UNKNOWN
    parts = list(dict.fromkeys(expressions))
    if len(parts) < 2:
        return parts[0] if parts else ""
    return normalised(" AND ".join(f"({part})" for part in parts))
