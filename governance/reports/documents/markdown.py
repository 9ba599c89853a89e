"""Markdown documents: templates filled with evidence, external text escaped.

A document is a Jinja template in this folder (`datasheet.md.jinja`). Its forms are tables of three columns, a row for
each call:

    {{ known("steps", "summary.steps") }}          a value of report.json by its path, written by a function
    {{ stated("labels", "none") }}                 a text, and the path of its origin
    {{ figure("water on site", "water_on_site") }} a figure of the footprint
    {{ ask("contact") }}                           rows for a person to complete
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from governance.reports.documents import corpus_facts
from governance.reports.documents.evidence import TO_COMPLETE, Evidence, Field, architecture, energy_text, joined
from governance.reports.html.markup import compact, number, share, visible

_MARKS = re.compile(r"([\\`*_\[\]|#~$])")
_ORIGIN = (
    "Filled from the evidence of the run: numbers are those of report.json. Entries without evidence are marked:"
    f" {TO_COMPLETE}."
)


def plain(text: str) -> str:
    """Text on one line without Markdown or HTML syntax."""
    line = " ".join(visible(text).split())
    return _MARKS.sub(r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; "None." without rows."""
    lines = [f"| {' | '.join(plain(cell) or ' ' for cell in row)} |" for row in rows]
    if not lines:
        return "None."
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])


def rows(*fields: Field) -> str:
    """Lines of a form: item, entry and its place in report.json."""
    return "\n".join(
        f"| {plain(field.name)} | {plain(field.entry)} | {f'`{field.source}`' if field.source else ' '} |"
        for field in fields
    )


def _waivers(used: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{one['gate']}, by {one['approver']} until {one['expires']}: {one['reason']}" for one in used]
    return "; ".join(lines) or "none"


def filled(name: str, evidence: Evidence, **more: Any) -> str:
    """Text of the document whose template is `name`.

    `more` is what this template uses besides the functions for every form.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # cells pass `plain`, which escapes Markdown too
        keep_trailing_newline=True,
        trim_blocks=True,
    )

    def known(name: str, path: str, write: Callable[[Any], str] = number) -> str:
        return rows(evidence.field(name, path, write))

    def stated(name: str, text: str | None, source: str = "") -> str:
        return rows(Field(name, text, source if text else ""))

    forms = {
        "head": "| item | entry | evidence (report.json) |\n|---|---|---|",
        "known": known,
        "stated": stated,
        "figure": lambda name, figure: rows(evidence.figure(name, figure)),
        "ask": lambda *names: rows(*(Field(name, None) for name in names)),
        "rows": rows,
        "table": table,
        "at": evidence.at,
    }
    values = {
        "text": str,
        "compact": compact,
        "share": share,
        "names": lambda names: joined(names) or "none",
        "waivers": _waivers,
        "architecture": architecture,
        "energy": energy_text(evidence.found),
        "languages": joined(evidence.languages),
        "licences": joined(evidence.licences),
        "corpus": corpus_facts,
        "evidence": evidence,
        "origin": _ORIGIN,
        "to_complete": TO_COMPLETE,
    }
    return environment.get_template(f"{name}.md.jinja").render(**forms, **values, **more)
