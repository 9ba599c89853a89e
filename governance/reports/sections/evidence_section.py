"""Evidence section: files with ids, paths and digests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.reports.facts.citations import LISTED
from governance.reports.html.markup import UNKNOWN, Html, digest, fold, foreign, number, table, tag

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


def evidence(found: Mapping[str, Any]) -> Html:
    """Folded table to which every evidence mark links."""
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
