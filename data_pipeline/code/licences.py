"""Licence of a source file, from its header or licence file.

A header is the run of comments that begins a file. Its licence is, in this order:

- that of its `SPDX-License-Identifier` lines, joined by AND where there are several; unknown if the header also holds
  the text or notice of a licence that they do not name;
- that of the licence texts and notices in it (`licenseclassifier`, a port of Google's licensecheck, which compares
  words with the texts of the SPDX list; also "licensed under the MIT license"), if no other words on licences are left
  in it: an exception, a second choice or a restriction makes the licence unknown.

A header that only refers to a licence file, or says nothing, leaves the decision to the nearest licence file. Such a
file's licence is known if its texts cover `MIN_COVERAGE` of its words and no condition is left outside of them.

An identifier below the header decides nothing, but the licence of a file whose header does not name the same is then
unknown: it may be a comment in a form that is not known here. Comments further down, after code too, that hold the
text or notice of a licence which the header does not name make the licence unknown too: part of the file came from
elsewhere.

Promise: whatever is not certain is "NOASSERTION". A header is read up to `HEADER_CHARACTERS`, a licence file up to
`LICENCE_FILE_BYTES`; a longer one is unknown. Below a header, as many characters are read, and words of a notice after
them make the licence unknown. Expressions and titles are bounded too: no file takes quadratic time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from governance.gate.licence_choices import licensing, parsed

UNKNOWN = "NOASSERTION"
LICENCE_RULES = 6
"""Version of the rules here, in the key of documents of source code."""
HEADER_CHARACTERS = 16_000
LICENCE_FILE_BYTES = 1 << 18
MIN_COVERAGE = 0.75
_NOTICE_CHARACTERS = 2000  # before the bound below a header, which may cut the notice that they begin
_TITLE_CHARACTERS = 120

_IDENTIFIER = re.compile(r"SPDX-License-Identifier:[ \t]*(?P<expression>[^\n]*)", re.I)
_EXPRESSION = re.compile(r"[A-Za-z0-9.+:() \t-]*")
_AFTER_EXPRESSION = "*/\"'`#,;}] \t"
_END_OF_COMMENT = re.compile(r"[ \t]*(?:-->|\*\)|-\}|#>)[ \t]*\Z")
_SAYS_LICENCE = re.compile(
    r"licen[cs]|permission|permitted|redistribut|terms and conditions|under the terms|exception\b|\bl?gpl|public domain"
    r"|proprietary|confidential|royalt|commercial|\bpatents?\b|all rights granted|may not\b|copyleft|\bgnu\b",
    re.I,
)
_REFERS = re.compile(
    r"\b(UN)?LICEN[CS]E(\.\w+)?\b|\bCOPYING(\.\w+)?\b|licen[cs]e (file|details)|file licen[cs]e\b"
    r"|\b[Ll]icen[cs]e\.(txt|md|rst|html)\b"
)
_HARMLESS = re.compile(r"contributor (licen[cs]e )?agreement|under one or more agreements", re.I)
_NAMES_MIT = re.compile(
    r"((this|the) [\w. -]{1,60}? (is|are) )?((licen[cs]ed|released|distributed|available|provided)"
    r"|the [\w. -]{1,60}? licenses this file to you) under (the )?(terms of the )?MIT licen[cs]e[.;]?",
    re.I,
)
"""A sentence that states a licence in words unknown to `licenseclassifier`."""
_TITLE = re.compile(r"[^\w\n]*([\w.'\"+-]+[ \t]+){0,5}licen[cs]e([ \t]+[\w.'\"()+:,-]+){0,5}[^\w\n]*", re.I)
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
_NOTICE = (
    "spdx-license-identifier", "permission is hereby", "redistribution and use", "general public licen", "terms of the",
    "subject to the", "licensed under", "licenced under", "released under", "distributed under", "provided under",
)  # fmt: skip
_UNDER = re.compile(r"\b(licen[cs]ed|released|distributed|available|provided) under\b", re.I)
_LIABILITY = re.compile(r"\bliab(le|ility)\b", re.I)
_MARKS = re.compile(
    r"^[ \t]*(/\*+|\*+/|\*+|//+!?|#+!?|--+|;+|%+|<!--|-->|dnl\b|\.\.|\"\"\"|'''|\"(?=[ \t])|!+|\(\*|\*\)|REM\b)?[ \t]?",
    re.M,
)
_LINE_COMMENT = re.compile(r"[ \t]*(#|//|--|;|%|!|dnl\b|\.\.|rem\b|'(?!''))", re.I)
_VIM_COMMENT = re.compile(r"[ \t]*\"(?:[ \t\r]|$)")  # at the top only: below, strings of other languages begin so
_PASCAL_IDENTIFIER = re.compile(r"\{[^{}\"]*SPDX-License-Identifier:[^{}\"]*\}", re.I)  # JSON has quotation marks
_DIRECTIVE = re.compile(
    r"[ \t]*#[ \t]*(include|define|undef|if|ifdef|ifndef|elif|else|endif|pragma|import|error|line)\b"
)
_BLOCKS = {
    "/*": "*/", "<!--": "-->", '"""': '"""', "'''": "'''", 'r"""': '"""', "(*": "*)", "{-": "-}", "=begin": "=end",
    "--[[": "]]", "<#": "#>",
}  # fmt: skip
_BEHIND_CODE = re.compile(r"(?<=[\s;,(){}])(#|//|--|/\*|<!--|\(\*|\{-).*")
_BEFORE_COMMENT = re.compile(r"<\?(php|xml)|<!doctype|\"use strict\"|'use strict'|@charset|@echo off", re.I)
_WORD = re.compile(r"[^\W_]+")
_PLAIN = ("license", "licence", "copying", "unlicense")
_LICENCE_FILE = re.compile(r"(un)?licen[cs]e|copying|(mit|apache|bsd|gpl|lgpl)[-_.]licen[cs]e", re.I)
_CODE_ENDINGS = (".py", ".js", ".ts", ".c", ".h", ".cpp", ".go", ".rs", ".java", ".rb", ".json", ".css", ".php")


def is_licence_file(file: str) -> bool:
    """Return whether a file is a licence by its name."""
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
    tree = parsed(expression.strip())
    if tree is None:
        return UNKNOWN
    unknown = [key for key in licensing().unknown_license_keys(tree) if not key.startswith("LicenseRef-")]
    return UNKNOWN if unknown else str(tree)


def listed_licences(names: Collection[str]) -> tuple[str, ...]:
    """Entries of a list of licences, as the SPDX list spells them.

    Raises:
        ValueError: one is not a single licence.
    """
    return tuple(map(_listed, names))


def _listed(name: str) -> str:
    licence = UNKNOWN if name == UNKNOWN else normalised(name)
    tree = None if licence == UNKNOWN else parsed(licence)
    several = bool(getattr(tree, "args", ())) or bool(getattr(tree, "is_exception", False))
    # "GPL" is read as GPL-1.0-or-later, which is not what a list that names it means.
    versionless = re.search(r"\d", licence) and not re.search(r"\d", name)
    if name != UNKNOWN and (tree is None or several or versionless):
        raise ValueError(
            f"{name[:100]!r} is not the SPDX identifier of one licence. Write it as https://spdx.org/licenses has it, "
            f'for example "GPL-3.0-only", one per entry; "{UNKNOWN}" for unknown licences.'
        )
    return licence


def header_of(text: str) -> str:
    """The comments that begin a source file, blank lines included."""
    return _header_and_end(text)[0]


def _header_and_end(text: str) -> tuple[str, int]:
    """The header, and where the rest of the text begins."""
    lines: list[str] = []
    end = ""
    size = at = 0
    is_pascal = _PASCAL_IDENTIFIER.search(text, 0, HEADER_CHARACTERS) is not None
    for line in text[: 2 * HEADER_CHARACTERS].splitlines(keepends=True):
        stripped = line.strip()
        if end:
            if end in stripped:
                end = ""
        elif is_pascal and stripped.startswith("{"):
            end = "" if "}" in stripped else "}"
        elif opener := _opener(stripped):
            end = _closer(stripped, opener)
        elif _DIRECTIVE.match(line) or _BEFORE_COMMENT.match(stripped):
            at += len(line)
            continue
        elif stripped and not _LINE_COMMENT.match(line) and not _VIM_COMMENT.match(line):
            break
        lines.append(line)
        size += len(line)
        at += len(line)
        if size > HEADER_CHARACTERS:
            break
    return "".join(lines), at


def _opener(stripped: str) -> str:
    """Opening mark of a block comment, or ""."""
    return next((mark for mark in _BLOCKS if stripped.lower().startswith(mark)), "")


def _closer(stripped: str, opener: str) -> str:
    """Closing mark of a block comment of several lines, or ""."""
    closer = _BLOCKS[opener]
    return "" if closer in stripped[len(opener) :] else closer


def _comments(text: str) -> Iterator[str]:
    """Lines of comments, without the code before them."""
    end = ""
    for line in text.splitlines():
        stripped = line.strip()
        if end:
            if end in stripped:
                end = ""
        elif opener := _opener(stripped):
            end = _closer(stripped, opener)
        elif not _LINE_COMMENT.match(line) or _DIRECTIVE.match(line):
            behind = _BEHIND_CODE.search(stripped, 1)
            line = behind.group() if behind else ""
            if opener := _opener(line):
                end = _closer(line, opener)
        yield line


def licence_of_header(text: str) -> str:
    """The licence that a source file's header states.

    The result is "" if it states none, `UNKNOWN` if it says something that is not understood.
    """
    header, end = _header_and_end(text)
    if licence := _stated(header):
        notice = _MARKS.sub("", _IDENTIFIER.sub("", header))
        if licence != UNKNOWN and _SAYS_LICENCE.search(notice) and _contradicts(notice, licence):
            licence = UNKNOWN
    elif _SAYS_LICENCE.search(header):
        licence = _of_notice(_MARKS.sub("", header))
    if not licence and _IDENTIFIER.search(text, 0, HEADER_CHARACTERS):
        licence = UNKNOWN
    below = text[end:] if licence != UNKNOWN else ""
    if not _has_notice(below):
        return licence
    is_cut = len(below) > LICENCE_FILE_BYTES and _has_notice(below[LICENCE_FILE_BYTES - _NOTICE_CHARACTERS :])
    return UNKNOWN if is_cut or _adds_licence(below[:LICENCE_FILE_BYTES], licence) else licence


def _has_notice(text: str) -> bool:
    """Return whether a text may hold a notice.

    Literals are found three times as fast as a pattern.
    """
    text = text.lower()
    return any(words in text for words in _NOTICE)


def _adds_licence(below: str, found: str) -> bool:
    """Return whether text below a header names a licence it lacks."""
    comments = re.sub(r"\n{3,}", "\n\n", "\n".join(_comments(below)))
    stated = _stated(below)
    notice = _MARKS.sub("", _IDENTIFIER.sub("", comments))
    known = set(licensing().license_keys(found)) if found else set()
    keys = {UNKNOWN} if stated == UNKNOWN else set(licensing().license_keys(stated)) if stated else set()
    if not keys <= known or not _has_notice(notice):
        return not keys <= known
    in_words = (
        sentence
        for sentence in _conditions(_texts_in(notice)[1])
        if _UNDER.search(sentence) and not _REFERS.search(sentence)
    )
    return _contradicts(notice, found) or any(in_words)


def _stated(text: str) -> str:
    """The licence of a text's identifier lines; "" if it has none."""
    expressions = [match["expression"] for match in _IDENTIFIER.finditer(text)]
    return joined(
        [normalised(_END_OF_COMMENT.sub("", line.rstrip()).rstrip(_AFTER_EXPRESSION).strip()) for line in expressions]
    )


@functools.lru_cache(maxsize=1024)
def _contradicts(notice: str, stated: str) -> bool:
    """Return whether a notice has licences that a stated expression lacks."""
    keys = licensing().license_keys
    known = set(keys(stated)) if stated else set()
    return any(not set(keys(licence)) <= known for licence in _texts_in(notice)[0])


@functools.lru_cache(maxsize=1024)
def _of_notice(header: str) -> str:
    licences, rest, _ = _texts_in(header)
    for sentence in _conditions(rest):
        if _NAMES_MIT.fullmatch(" ".join(sentence.split())):
            licences.append("MIT")
        elif not _REFERS.search(sentence):
            return UNKNOWN
    return joined(licences)


def _conditions(text: str) -> list[str]:
    """Sentences of a text that say something on licences, without titles."""
    text = "\n".join("" if _is_title(line) else line for line in text.split("\n"))
    return [
        sentence
        for sentence in _SENTENCE.split(text)
        if _SAYS_LICENCE.search(sentence) and not _HARMLESS.search(sentence)
    ]


def _is_title(line: str) -> bool:
    return len(line) <= _TITLE_CHARACTERS and _TITLE.fullmatch(line) is not None and not _STATES.search(line)


def licence_of_file(data: bytes) -> str:
    """The licence that a licence file holds the text of, or `UNKNOWN`."""
    if len(data) > LICENCE_FILE_BYTES or b"\0" in data:
        return UNKNOWN
    text = _GPL_EXAMPLE.sub("", data.decode("utf-8", "replace"))
    stated = [identified] if (identified := _stated(text)) else []
    licences, rest, coverage = _texts_in(_IDENTIFIER.sub("", text))
    if not (stated or (licences and coverage >= MIN_COVERAGE)) or _conditions(rest):
        return UNKNOWN
    return joined([*stated, *licences])


def _texts_in(text: str) -> tuple[list[str], str, float]:
    """Licences whose texts a text holds, the rest, and their share.

    The share is that of the words.
    """
    import licenseclassifier

    licences: list[str] = []
    rest: list[str] = []
    at = 0
    for match in licenseclassifier.identify_license(text, coverage_threshold=0.0):
        if match.id.startswith("BSD-") and not _LIABILITY.search(text, match.start, match.end):
            continue  # the conditions of a BSD licence with other words on warranty
        rest.append(text[at : match.start])
        at = match.end
        # The text of a GPL ends with an example of the notice that says "or any later version".
        if match.id.removesuffix("-or-later") not in licences:
            licences.append(match.id)
    rest.append(text[at:])
    outside = "\n\n".join(rest)
    words = len(_WORD.findall(text))
    return [normalised(licence) for licence in licences], outside, 1 - len(_WORD.findall(outside)) / max(1, words)


def joined(expressions: Collection[str]) -> str:
    """Conjunction of expressions; "" of none, `UNKNOWN` if one is unknown."""
    if UNKNOWN in expressions:
        return UNKNOWN
    parts = list(dict.fromkeys(expressions))
    if len(parts) < 2:
        return parts[0] if parts else ""
    return normalised(" AND ".join(f"({part})" for part in parts))
