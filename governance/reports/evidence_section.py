"""The report's section on evidence: each piece with its id, which numbers link to, its place, digests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.reports.markup import UNKNOWN, Html, digest, foreign, join, number, table, tag
from governance.reports.origins import LISTED

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
    """The table that every number's link leads to."""
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
        "Paths are below the root of the run. A file that has grown since was read so far as its bytes say. "
        "report.json names for each of its numbers the piece and the key: evidence.of."
    )
    rest = len(entries) - len(rows)
    told = tag("p", f"{rest:,} more pieces, of the cluster's jobs, are in report.json.", class_="note")
    head = ["id", "what", "path", "bytes that were read", "SHA-256 of them", "digest of what was made"]
    return join([tag("p", note, class_="note"), table("Pieces of evidence", head, rows, numeric=(3,)),
                 told if rest > 0 else None])  # fmt: skip
