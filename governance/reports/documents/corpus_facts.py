"""Corpus facts shared by documents: findings, domains, dates, licences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.checks.bias.interval_rows import NOBODY
from governance.reports.documents.evidence import Evidence, Field
from governance.reports.facts.stage_counts import PERSONAL_DATA
from governance.reports.facts.synthetic_facts import teacher_words
from governance.reports.html.markup import compact, number, share, visible
from governance.reports.sections.bias_sections import significant_rows

Row = Mapping[str, Any]

SPDX_LISTED = frozenset({
    "0BSD", "AFL-3.0", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-2.0",
    "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0",
    "CC-BY-SA-2.0", "CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "CDLA-Permissive-1.0",
    "CDLA-Permissive-2.0", "CDLA-Sharing-1.0", "EPL-2.0", "EUPL-1.2", "GFDL-1.3-or-later", "GPL-2.0-only",
    "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "ISC", "LGPL-2.1-only", "LGPL-3.0-only", "MIT", "MIT-0",
    "MPL-2.0", "ODC-By-1.0", "ODbL-1.0", "OGL-UK-3.0", "PDDL-1.0", "PSF-2.0", "Unlicense", "WTFPL", "Zlib",
    "etalab-2.0",
})  # fmt: skip
"""Identifiers of the SPDX licence list that are common for text; only these get a link."""

_REST, _UNKNOWN = "(others)", ("unknown", "und")


def licence_text(name: str) -> str:
    """Link to an SPDX licence; a description of other names."""
    if name in SPDX_LISTED:
        return f"https://spdx.org/licenses/{name}"
    if name.startswith("LicenseRef-"):
        return visible(f"{name}: named by the configuration or a document, not in the SPDX licence list")
    return visible(name)


def findings(evidence: Evidence) -> dict[str, list[Row]]:
    """Significant differences by suite, in the report's order."""
    found: dict[str, list[Row]] = {}
    for suite, rows in significant_rows(evidence.found["bias"]).items():
        tested = [row for row in rows if row["p"] is not None and row["q"] is not None]
        names = ("metric", "axis", "group", "against", "language")
        first = {tuple(row[name] for name in names): row for row in reversed(tested)}
        if first:
            found[suite] = [row for row in tested if any(row is one for one in first.values())]
    return found


def findings_text(evidence: Evidence) -> str:
    """Numbers of tested and of significant differences."""
    tested = sum(row["p"] is not None for rows in evidence.found["bias"].values() for row in rows)
    if not tested:
        return "No difference between groups was tested."
    count = sum(map(len, findings(evidence).values()))
    tested_words = f"of {number(tested)} tested difference{'' if tested == 1 else 's'} between groups"
    verb = "is" if count <= 1 else "are"
    rule = "q below 0.05, 95 % interval without equality"
    return f"{number(count) if count else 'None'} {tested_words} {verb} significant ({rule})."


def finding_text(suite: str, row: Row) -> str:
    """One finding in a line, with its interval, p, q and n."""
    where = " ".join(str(row[name]) for name in ("language", "axis", "group") if row.get(name))
    other = "sentences that mention no group" if row.get("against") == NOBODY else row.get("against")
    against = f" against {other}" if other else ""
    value, low, high, p, q = (compact(row[name]) for name in ("value", "lower", "upper", "p", "q"))
    text = f"{suite}: {row['metric'].replace('_', ' ')} of {where}{against}: {value}"
    return visible(f"{text} (95 % interval {low} to {high}; p {p}, q {q}, n {number(row['n'])})")


def personal_findings(evidence: Evidence) -> list[str]:
    """Personal data found: types, counts and treatment; notes on the search."""
    found = [row for row in evidence.found["counts"] if row["title"].startswith("redact:")]
    lines = [
        f"{visible(str(line[0]))}: {line[2]} found, action {visible(str(line[1]))}"
        if row["title"] == PERSONAL_DATA
        else f"planted {visible(str(line[0]))}: {line[2]} of {line[1]} found"
        for row in found
        for line in row["rows"]
    ]
    return lines + [row["note"].rstrip(".") for row in found if row["note"]]


def shares_of(evidence: Evidence, axis: str, metric: str) -> list[Row]:
    """Shares of the largest known values of a dimension."""
    rows = evidence.found["bias"].get("shares", ())
    return [row for row in rows if (row["axis"], row["metric"]) == (axis, metric) and row["group"] not in _UNKNOWN]


def domains(evidence: Evidence, name: str) -> Field:
    """The largest domains by words, as the bias audit counted them."""
    parts = [f"{row['group']} {share(row['value'])}" for row in shares_of(evidence, "domain", "share_of_words")]
    if parts:
        counted = any(text.startswith(_REST) for text in parts)
        rest = "; the bias audit lists no further ones" if counted else "; these are all"
        return Field(name, f"by words: {', '.join(parts)}{rest}", "bias.shares")
    counted = any(row["axis"] == "domain" for row in evidence.found["bias"].get("shares", ()))
    return Field(name, "none: no document has a URL", "bias.shares") if counted else Field(name, None)


def synthetic(evidence: Evidence, name: str) -> Field:
    """Synthetic sources with teacher, share, terms, tokens and energy."""
    rows = [teacher_words(row) for row in evidence.found["synthetic"]["sources"]]
    return Field(
        name, ". ".join(rows) or "none: no source is marked as synthetic", "synthetic.sources" if rows else "sources"
    )


def read_on(evidence: Evidence, name: str, before: str = "") -> Field:
    """Day on which the sources were ingested."""
    finished = next((row["finished"] for row in evidence.found["lineage"] if row["stage"] == "ingest"), None)
    return Field(name, f"{before}{str(finished)[:10]}" if finished else None, "lineage" if finished else "")


def years(evidence: Evidence, name: str) -> Field:
    """Years in the documents' URLs."""
    found = sorted(shares_of(evidence, "year", "share"), key=lambda row: str(row["group"]))
    text = ", ".join(f"{row['group']} {share(row['value'])}" for row in found)
    return Field(name, text or None, "bias.shares" if text else "")


def parents(evidence: Evidence, name: str) -> Field:
    """Parent models and teachers, by the inputs of the training."""
    if evidence.model is None:
        return Field(name, None)
    names = [f"{visible(item.path)} (SHA-256 {item.digest[:16]}...)" for item in evidence.parents]
    return Field(name, ", ".join(names) or "none: trained from random weights", "lineage")


def labels(evidence: Evidence) -> str | None:
    """Labels of the documents that a classifier learns; None without."""
    found = evidence.artifacts["encode"].config.get("classification") if "encode" in evidence.artifacts else None
    return visible(f"column {found['label']}: {', '.join(found['labels'])}") if found else None
