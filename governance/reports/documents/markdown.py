"""Markdown builders that escape external text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from governance.reports.documents.evidence import Field
from governance.reports.html.markup import visible

_MARKS = re.compile(r"([\\`*_\[\]|#~$])")


def plain(text: str) -> str:
    """Text on one line without Markdown or HTML syntax."""
    line = " ".join(visible(text).split())
    return _MARKS.sub(r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; "None." without rows."""
    lines = [f"| {' | '.join(plain(cell) or ' ' for cell in row)} |" for row in rows]
    if not lines:
        return "None.\n"
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines]) + "\n"


def form(fields: Iterable[Field]) -> str:
    """Form of items, entries and their places in report.json."""
    head = ["| item | entry | evidence (report.json) |", "|---|---|---|"]
    lines = [
        f"| {plain(field.name)} | {plain(field.entry)} | {f'`{field.source}`' if field.source else ' '} |"
        for field in fields
    ]
    return "\n".join([*head, *lines]) + "\n"


def section(title: str, *parts: str, level: int = 2) -> str:
    """A heading with the text below it."""
    return "\n".join([f"{'#' * level} {title}\n", *parts])
