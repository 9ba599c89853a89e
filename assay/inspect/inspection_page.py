"""Tables of an inspection, for a terminal and as an HTML page."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from governance.reports.html.markup import Child, Html, number, table, tag, visible
from governance.reports.sections.page import runs_page
from governance.reports.terminal import aligned

_WIDTH = 60
_LINE = 116
_ROWS = 12
_NUMBER = re.compile(r"[0-9][0-9.,]*( %| MB)?")
_JOINT = re.compile(r"(?<=[_=/:])(?=\w)")
"""Place where a long name may be broken."""


@dataclass(frozen=True)
class InspectTable:
    """One table of the result."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | int, ...], ...]
    note: str = ""
    whole: bool = False
    """True if a terminal shows each row as sentences, uncut."""


@dataclass(frozen=True)
class ClosingCause:
    """A gate that would close, with the cause and a fix."""

    gate: str
    cause: str
    fix: str

    @property
    def line(self) -> str:
        """The cause in one line."""
        return f"{self.gate}: {self.cause}. {self.fix}."


@dataclass(frozen=True)
class Inspection:
    """Tables and the proposed run's file."""

    path: Path
    sampled: str
    """Share that was read; "" if all of it was."""
    tables: tuple[InspectTable, ...]
    proposal: str
    """A run's file, or "" where no text was found."""
    closing: tuple[ClosingCause, ...] = ()
    """Gates that would close."""


def as_text(result: Inspection) -> str:
    """All tables, aligned."""
    parts = [f"{visible(str(result.path))}{': ' + result.sampled if result.sampled else ''}"]
    return "\n\n".join([*parts, *map(_text_table, result.tables)])


def _text_table(one: InspectTable) -> str:
    if not one.rows:
        return f"{one.title}: none"
    if one.whole:
        sentences = [". ".join([f"{row[0]}: {row[1]}", *map(str, row[2:])]) for row in one.rows]
        lines = [*(textwrap.fill(visible(line), _LINE, subsequent_indent="    ") for line in sentences), one.note]
        return "\n".join([one.title, *(f"  {line}" for line in lines)])
    shown = [[_cell(value) for value in row] for row in one.rows[:_ROWS]]
    lines = aligned([one.head, *shown], _numeric(one))
    lines += [f"... {len(one.rows) - _ROWS:,} more rows on the page"] * (len(one.rows) > _ROWS)
    return "\n".join([one.title, *(f"  {line.rstrip()}" for line in [*lines, *filter(None, [one.note])])])


def _numeric(one: InspectTable) -> list[int]:
    """Columns of numbers: of counts, shares and sizes."""
    return [at for at in range(len(one.head)) if all(_NUMBER.fullmatch(str(row[at])) for row in one.rows)]


def _head(value: str | int) -> Html | str:
    """First cell of a row; a name with underscores is not broken."""
    text = number(value) if isinstance(value, int) else value
    return tag("code", text) if re.fullmatch(r"[a-z0-9_.]{1,30}[_.][a-z0-9_.]+", text) else text


def _breakable(value: str | int) -> Child:
    """Cell of a page; a long name breaks between its words."""
    if isinstance(value, int):
        return number(value)
    return [part for piece in _JOINT.split(value) for part in (piece, tag("wbr"))][:-1]


def _cell(value: str | int) -> str:
    text = number(value) if isinstance(value, int) else visible(value.replace("\n", "\\n"))  # in file names
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def as_page(result: Inspection) -> str:
    """A page that needs no network."""
    parts: list[Html] = [tag("p", str(result.path), class_="lead")]
    if result.sampled:
        parts.append(tag("p", result.sampled, class_="note"))
    for one in result.tables:
        cells = [[_head(row[0]), *map(_breakable, row[1:])] for row in one.rows]
        parts += [tag("section", table(one.title, one.head, cells, _numeric(one)), tag("p", one.note, class_="note"))]
    if result.proposal:
        parts += [tag("h2", "Proposed run's file"), tag("pre", result.proposal)]
    return runs_page("Inspection", parts, "Of the files as they were; the page loads no external resources.")
