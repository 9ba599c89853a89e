"""Datasheet of the corpus after Gebru et al. (arXiv:1803.09010)."""

from __future__ import annotations

from governance.reports.documents.evidence import Evidence
from governance.reports.documents.markdown import filled, table
from governance.reports.html.markup import number, size


def datasheet(evidence: Evidence) -> str:
    """Known answers, and the questions a person must answer."""
    stages = evidence.found["funnel"]
    counts = ("documents_in", "documents_kept", "bytes_in", "bytes_kept")
    return filled(
        "datasheet",
        evidence,
        sources=sources(evidence),
        groups=[
            [row["language"], row["axis"], row["group"], number(row["documents"]), number(row["mentions"])]
            for row in evidence.at("representation.rows") or []
            if row["documents"]
        ],
        funnel=[[row["stage"], *(number(row[name]) for name in counts)] for row in stages],
        reasons=[
            [row["stage"], reason, number(count)]
            for row in stages
            for reason, count in row["removed"].items()
            if count
        ],
        personal=[
            {**row, "rows": [[number(cell) if isinstance(cell, int) else str(cell) for cell in line]
                             for line in row["rows"]]}
            for row in evidence.found["counts"]
            if row["title"].startswith("redact:")
        ],
    )  # fmt: skip


def sources(evidence: Evidence) -> str:
    """Configured sources with licence and remaining share."""
    rows = [
        [
            row["name"],
            str(row["kind"]),
            row["licence"],
            number(row["documents_in"]),
            number(row["documents_kept"]),
            size(row["bytes_kept"]),
            row["fate"],
        ]
        for row in evidence.found["sources"]
    ]
    return table(["source", "kind", "licence", "documents read", "documents kept", "bytes kept", "outcome"], rows)
