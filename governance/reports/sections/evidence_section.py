"""Evidence section: files with ids, paths and digests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.reports.facts.citations import LISTED
from governance.reports.html.markup import UNKNOWN, Html, digest, fold, foreign, number, table, tag

_KINDS = {
    "verdict": "signed verdict",
    "manifest": "manifest",
    "table": "table of an audit",
    "ancestor": "artifact behind these",
    "record": "record of a training",
    "checkpoint": "checkpoint",
    "ledger": "ledger of energy",
    "cluster": "of the cluster's jobs",
}


def evidence(found: Mapping[str, Any]) -> Html:
    """The table that every mark leads to, folded."""
    entries = found["evidence"]["entries"]
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
        "Paths are below the root of the run. A file that has grown since was read as far as its bytes say. "
        "report.json names the piece and the key of each of its numbers (evidence.of)."
    )
    rest = len(entries) - len(rows)
    more = tag("p", f"{rest:,} more pieces, of the cluster's jobs, are in report.json.", class_="note")
    head = ["id", "kind", "path", "bytes read", "their SHA-256", "digest of the artifact"]
    pieces = table("Evidence", head, rows, numeric=(3,), shown=LISTED)
    inner = fold(f"{len(entries):,} files that every number here was read from, with their digests",
                 tag("p", note, class_="note"), pieces, more if rest > 0 else None)  # fmt: skip
    return tag("section", tag("h2", "Evidence"), inner, id="evidence", class_="reader", aria_label="Evidence")
