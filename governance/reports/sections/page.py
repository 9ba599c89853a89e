"""The page: page one, a section per role, evidence.

It is one file without scripts or external resources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from governance.reports.facts.citations import LISTED
from governance.reports.html.markup import UNKNOWN, Child, Html, digest, fold, foreign, number, table, tag
from governance.reports.html.style import CSS
from governance.reports.sections.page_one import front
from governance.reports.sections.role_sections import data_reviewer, engineer, officer

_LINKS = (
    ("officer", "Officer", ("verdict", "checks", "sources", "paid", "energy", "lineage")),
    ("data", "Data reviewer", ("corpus", "bias", "memorisation")),
    ("engineer", "Engineer", ("training", "faults", "environment")),
)
_TITLES = {"bias": "groups", "paid": "did it pay"}


def page(facts: Mapping[str, Any]) -> str:
    """The whole of report.html."""
    body = [
        tag("a", "Skip to the report", href="#main", class_="skip"),
        front(facts),
        tag("nav", tag("ol", [_link(facts, *link) for link in _LINKS],
                       tag("li", tag("a", "Evidence", href="#evidence"))), aria_label="Sections"),
        tag("main", officer(facts), data_reviewer(facts), engineer(facts), evidence(facts), id="main", tabindex="-1"),
        tag(
            "footer",
            tag(
                "p",
                "report.json next to this file has every number with its evidence; ",
                tag("code", "assay report verify"),
                " recomputes them. The mark E links to the evidence of a table. Digests are SHA-256.",
            ),
        ),
    ]  # fmt: skip
    name = facts["run"]["name"]
    return _whole(f"{facts['summary']['verdict']}{f': {name}' if name else ''} – Assay report", body)


def _link(facts: Mapping[str, Any], name: str, title: str, parts: Sequence[str]) -> Html:
    shown = [part for part in parts if part != "paid" or facts["kpi"]]
    inner = [tag("a", _TITLES.get(part, part), href=f"#{part}") for part in shown]
    return tag("li", tag("a", tag("b", title), href=f"#{name}"), inner)


_READ = (
    "Read from report.json of each run, not verified here (assay report verify); the page loads no external resources."
)


def runs_page(title: str, body: Sequence[Child], foot: str = _READ, css: str = "") -> str:
    """Page in the report's style, by default about several runs.

    `css` is added to the report's.
    """
    inner = [
        tag("a", "Skip to the content", href="#main", class_="skip"),
        tag("header", tag("p", "Assay", class_="eyebrow"), tag("h1", title)),
        tag("main", body, id="main", tabindex="-1"),
        tag("footer", tag("p", foot)),
    ]
    return _whole(title, inner, css)


def _whole(title: str, body: Sequence[Child], css: str = "") -> str:
    metas = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("title", title),
        Html(f"<style>{CSS}{css}</style>"),
    ]
    return f"<!DOCTYPE html>\n{tag('html', tag('head', metas), tag('body', body), lang='en')}\n"


_KINDS = {
    "verdict": "signed verdict",
    "manifest": "manifest",
    "table": "audit table",
    "ancestor": "ancestor",
    "record": "training record",
    "checkpoint": "checkpoint",
    "ledger": "energy ledger",
    "cluster": "cluster job file",
}


def evidence(facts: Mapping[str, Any]) -> Html:
    """Folded table to which every evidence mark links."""
    entries = facts["evidence"]["entries"]
    rows = [
        [
            tag("span", str(entry["id"]), id=str(entry["id"])),
            _KINDS[entry["kind"]],
            foreign(str(entry["path"])),
            number(entry["bytes"]),
            digest(str(entry["sha256"] or "")) or UNKNOWN,
            digest(str(entry.get("digest") or "")),
        ]
        for entry in entries[:LISTED]
    ]
    note = (
        "Paths are relative to the root of the run. Growing files were read up to the stated bytes. "
        "report.json names the file and key of each number (evidence.of)."
    )
    rest = len(entries) - len(rows)
    more = tag("p", f"{rest:,} more cluster job files are listed in report.json.", class_="note")
    head = ["id", "kind", "path", "bytes read", "SHA-256", "artifact digest"]
    listed = table("Evidence", head, rows, numeric=(3,), shown=LISTED)
    inner = fold(f"{len(entries):,} files from which every number here was read, with digests",
                 tag("p", note, class_="note"), listed, more if rest > 0 else None)  # fmt: skip
    return tag("section", tag("h2", "Evidence"), inner, id="evidence", class_="reader", aria_label="Evidence")
