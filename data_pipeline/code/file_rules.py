"""Rules on source files: generated, minified, encoded and data files.

The bounds are those of The Stack and StarCoder (Kocetkov et al. 2022; Li et al. 2023, section 3; Lozhkov et al. 2024,
section 3.2): a file of more than 1 MiB, a line of more than 1,000 characters, lines of more than 100 on average, less
than a quarter of letters and digits, encoded data in more than half of the text or 1,024 characters in a row, data
files of more than 5,000 characters. A bound of 0 turns its rule off. As in StarCoder 2, the bounds on lines do not
hold for languages whose lines are paragraphs or data (`LONG_LINES`); for them a line may have 100 times as many.

A file is generated if its name says so, or the comments before its first line of code, or a comment of one line
further down in its first 4,000 characters: "generated ... do not edit".
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pydantic import Field

from data_pipeline.code.licences import header_of
from governance.config import Section


class FileRules(Section):
    """Bounds on source files, in `[data.code]`; 0 turns one off."""

    max_file_bytes: int = Field(default=1 << 20, ge=0)
    """UTF-8 bytes of a file that stays."""
    generated: bool = True
    """Remove generated files, and lock files of package managers."""
    max_line_characters: int = Field(default=1000, ge=0)
    """Characters of the longest line."""
    max_mean_line_characters: int = Field(default=100, ge=0)
    """Characters of a line on average."""
    min_alphanumeric_share: float = Field(default=0.25, ge=0, le=1)
    """Letters and digits among the characters."""
    max_encoded_share: float = Field(default=0.5, ge=0, le=1)
    """Characters in runs of base64 or hexadecimal data; also a single run of 1,024."""
    max_data_characters: int = Field(default=5000, ge=0)
    """Characters of a file of JSON, YAML, XML and the like."""


LONG_LINES = frozenset(
    {"HTML", "JSON", "Markdown", "Groff", "reStructuredText", "TeX", "XML", "SMT-LIB", "YAML", "SVG"}
)
DATA = frozenset({"JSON", "YAML", "XML", "JSON-LD", "Turtle", "SVG", "Gettext Catalog", "NestedText"})
_LONGER = 100
_RUN = 1024
_ENCODED_ALPHABET = 12  # characters of a run at least: a ruler of slashes is not data
_HEADER_LINES = 60
_FILE = r"\b(?:file|code|module|source|script|header|class|document)s?\b"
# "the generated key" is in the text of programs that generate keys; so is "should not be modified".
_MADE_FILE = rf"\bgenerated[\s*#/]+{_FILE}"
_MADE = (
    rf"(?:(?<!\bthe )(?<!\ba )(?<!\bany )(?<!\beach )\bgenerated\b|{_MADE_FILE}"
    r"|\bthis (?:file |code |module )?is a generated\b)"
)
_FILE_MADE = rf"(?:{_FILE}[^.]{{0,80}}\bgenerated\b|{_MADE_FILE})"
# A comment that opens a file speaks of all of it, also where it calls it a table; further down it speaks of a part.
_THIS_MADE = (
    r"\b(?:this|these) (?:table|list|data|output|page|parser|lexer|grammar|test|binding|stub|wrapper|schema|makefile)s?"
    r" (?:is|are|was|were|has been|have been) (?:\w+ )?generated\b"
)
_LEAVE_IT = r"\b(?:do not|don['’]?t|never) (?:manually |hand[- ])?(?:edit|modify)"
_LEFT = r"\b(?:should|must) (?:not|never) be (?:manually |hand[- ])?(?:edited|modified)"
_GENERATED = re.compile(
    r"\b(auto-?|automatically[\s*#/]+|machine[- ])generated\b|\bgenerated automatically\b|(?<![\w@])@generated\b"
    rf"|{_MADE}.{{0,200}}(?:{_LEAVE_IT}|\bdo not change)|{_FILE_MADE}.{{0,200}}{_LEFT}"
    rf"|(?:{_LEAVE_IT}|\bdo not change)\b.{{0,200}}{_MADE}|{_LEFT}\b.{{0,200}}{_FILE_MADE}"
    rf"|{_THIS_MADE}.{{0,200}}\b(?:should|must) (?:not|never) be (?:manually |hand[- ])?edited\b"
    r"|^[\W_]*+(this (file|code|module) (is|was|has been) |file |code |[^\W_][\w./+-]{0,99}\.\w{1,9}\. {1,2})?"
    r"generated (by|from|with|using|on)\b"
    rf"|^[\W_]*+this (?:is a generated {_FILE}|(?:file|code|module|header|script) (?:is|was|has been) generated[.;!])",
    re.I | re.M | re.S,
)
_MARK_CHARACTERS = 4000
_MARK = re.compile(
    r"^[ \t]*(?:#|//|/?\*|--|;|<!--)[^\n]{0,100}"
    rf"(?:{_MADE}[^\n]{{0,200}}{_LEAVE_IT}|{_FILE_MADE}[^\n]{{0,200}}{_LEFT})\b[^\n]{{0,80}}$",
    re.I | re.M,
)
_GENERATED_NAME = re.compile(
    r"(_pb2(_grpc)?\.pyi?|\.pb(\.gw)?\.(go|cc|h)|\.g\.dart|\.freezed\.dart|\.designer\.cs|\.generated\.\w+"
    r"|package-lock\.json|npm-shrinkwrap\.json|yarn\.lock|pnpm-lock\.ya?ml|poetry\.lock|pipfile\.lock|uv\.lock"
    r"|cargo\.lock|composer\.lock|gemfile\.lock|go\.sum|aclocal\.m4|configure|ltmain\.sh|libtool\.m4)$",
    re.I,
)
_MINIFIED_NAME = re.compile(r"[.-]min\.(m?js|c?js|css)$", re.I)
_SCRIPTS = frozenset({"JavaScript", "TypeScript", "CSS"})
_ENCODED = re.compile(
    r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{64,}={0,2}(?:[\"'+,\s\\]+[A-Za-z0-9+/]{32,}={0,2})*"
    r"|(?:(?:\\x|0x)[0-9A-Fa-f]{2}[,\s]*){8,}|(?:\\u[0-9A-Fa-f]{4}){8,}"
)


def reason_of(rules: FileRules, path: str, language: str, text: str) -> tuple[str, str]:
    """The first rule that a file breaks, and the evidence.

    Both are "" for a file that stays.
    """
    size = len(text.encode("utf-8"))
    name = PurePosixPath(path).name
    if rules.max_file_bytes and size > rules.max_file_bytes:
        return "file_too_large", f"bytes={size}"
    if rules.generated and (evidence := _generated(name, text)):
        return "generated", evidence
    if found := _long_lines(rules, name, language, text):
        return found
    if rules.min_alphanumeric_share and text:
        share = sum(map(str.isalnum, text)) / len(text)
        if share < rules.min_alphanumeric_share:
            return "few_alphanumerics", f"alphanumeric_share={share:.4f}"
    if rules.max_encoded_share and (found := _encoded(rules.max_encoded_share, text)):
        return found
    if rules.max_data_characters and language in DATA and len(text) > rules.max_data_characters:
        return "data_file", f"language={language} characters={len(text)}"
    return "", ""


def _generated(name: str, text: str) -> str:
    if _GENERATED_NAME.search(name):
        return f"name={name}"
    header = "\n".join(header_of(text).splitlines()[:_HEADER_LINES])
    found = _GENERATED.search(header) or _MARK.search(text, 0, _MARK_CHARACTERS)
    return f"header={' '.join(found[0].split())[:100]}" if found else ""


def _long_lines(rules: FileRules, name: str, language: str, text: str) -> tuple[str, str] | None:
    lines = text.splitlines() or [""]
    longest, mean = max(map(len, lines)), len(text) / len(lines)
    by_name = _MINIFIED_NAME.search(name) is not None
    if by_name and rules.generated:
        return "minified", f"name={name}"
    prose = language in LONG_LINES
    bounds = (
        ("longest_line", longest, rules.max_line_characters * (_LONGER if prose else 1)),
        ("mean_line", mean, 0 if prose else rules.max_mean_line_characters),
    )
    for feature, value, bound in bounds:
        if bound and value > bound:
            return "minified" if language in _SCRIPTS else "long_lines", f"{feature}={value:.0f}"
    return None


def _encoded(most: float, text: str) -> tuple[str, str] | None:
    runs = [len(run) for run in (match[0] for match in _ENCODED.finditer(text)) if len(set(run)) >= _ENCODED_ALPHABET]
    if runs and (max(runs) >= _RUN or sum(runs) > most * len(text)):
        return "encoded_data", f"encoded_share={sum(runs) / len(text):.4f} longest={max(runs)}"
    return None
