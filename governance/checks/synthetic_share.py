"""Table of the suite `synthetic`: texts that models wrote.

One row for each source that is marked as synthetic, and first the row "(all)". Columns: `source`, `teacher` ("" for
"(all)"), `documents` and `document_share` (of what the last stage kept), `tokens` and `token_share` (of the mixture,
copies counted; training and validation), `truncated_share` (answers cut at their bound, of those that were read; 0 for
texts that were not requested here).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.manifest import Manifest
from governance.stage_order import STAGES

ALL = "(all)"
_COLUMNS = ("documents", "tokens", "truncated", "read")


def teachers_of(ingest: Manifest) -> dict[str, str]:
    """Synthetic source -> the model that wrote it, by its settings."""
    sources = ingest.config.get("sources", [])
    written = {one["name"]: one["model"] for one in sources if one.get("type") == "synthetic"}
    return written | {one["name"]: one["synthetic_by"] for one in sources if one.get("synthetic_by")}


def synthetic_rows(artifacts: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """The table; of a corpus without synthetic text one row of zeros."""
    teachers = teachers_of(artifacts["ingest"])
    last = [artifacts[row.name] for row in STAGES if row.documents and row.name in artifacts][-1]
    tokens = artifacts["encode"].stats.get("tokens_by_source", {}) if "encode" in artifacts else {}
    kept, read = last.stats.get("by_source", {}), artifacts["ingest"].stats.get("by_source", {})
    whole = {"documents": last.stats.get("documents_kept", 0), "tokens": sum(tokens.values())}
    counts = {
        name: {
            "documents": kept.get(name, {}).get("documents_kept", 0),
            "tokens": tokens.get(name, 0),
            "truncated": read.get(name, {}).get("truncated", 0),
            "read": read.get(name, {}).get("documents_kept", 0),
        }
        for name in sorted(teachers)
    }
    total = {column: sum(row[column] for row in counts.values()) for column in _COLUMNS}
    return [_row(name, teachers.get(name, ""), row, whole) for name, row in {ALL: total, **counts}.items()]


def _row(name: str, teacher: str, counts: Mapping[str, int], whole: Mapping[str, int]) -> dict[str, Any]:
    return {
        "source": name,
        "teacher": teacher,
        "documents": counts["documents"],
        "document_share": counts["documents"] / whole["documents"] if whole["documents"] else 0.0,
        "tokens": counts["tokens"],
        "token_share": counts["tokens"] / whole["tokens"] if whole["tokens"] else 0.0,
        "truncated_share": counts["truncated"] / counts["read"] if counts["read"] else 0.0,
    }
