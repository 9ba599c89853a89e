"""Lineage of synthetic texts: share, teacher, terms, prompts, tokens, energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.checks.synthetic_share import synthetic_rows
from governance.manifest import Manifest
from governance.reports.html.markup import number, share

_COUNTS = ("documents", "document_share", "tokens", "token_share")
_FACTS = ("terms", "template_sha256", "answered_by", "endpoints", "requests", "texts", "faults", "truncated",
          "tokens_in", "tokens_out", "without_token_counts", "energy", "artifact")  # fmt: skip


def synthetic_facts(artifacts: Mapping[str, Manifest]) -> dict[str, Any]:
    """Counts and shares of synthetic text, and a row per source.

    A source whose answers were requested here has the lineage of its artifact; of one that was read as it is, only
    the teacher's name and the licence are known.
    """
    total, *rows = synthetic_rows(artifacts) if "ingest" in artifacts else [{}]
    ingest = artifacts.get("ingest")
    licences = {one["name"]: one.get("licence") for one in ingest.config.get("sources", [])} if ingest else {}
    requested = ingest.stats.get("synthetic", {}) if ingest else {}
    sources = [
        {**row, "licence": licences[row["source"]]}
        | {name: requested.get(row["source"], {}).get(name) for name in _FACTS}
        for row in rows
    ]
    return {**{name: total.get(name, 0) for name in _COUNTS}, "sources": sources}


def energy_words(row: Mapping[str, Any]) -> str:
    """The teacher's energy in words."""
    energy = row["energy"] or {}
    if energy.get("joules") is None:
        return str(energy.get("method", "unknown"))
    return f"{number(energy['joules'])} J, {energy['method']} ({energy['source']})"


def teacher_words(row: Mapping[str, Any]) -> str:
    """A source's texts and their lineage in a line, for forms."""
    parts = [
        f"{row['source']} by {row['teacher']}: {number(row['documents'])} documents, {number(row['tokens'])} tokens "
        f"({share(row['token_share'])} of all), licence {row['licence']}"
    ]
    if row["terms"] is None:
        return f"{parts[0]}; requested elsewhere, energy unknown"
    parts += [
        f"terms: {row['terms']}",
        f"answered by {', '.join(row['answered_by'])}",
        f"template SHA-256 {row['template_sha256'][:16]}",
        f"{number(row['tokens_in'])} tokens of prompts, {number(row['tokens_out'])} of answers",
        f"energy of the teacher: {energy_words(row)}",
    ]
    return "; ".join(parts)
