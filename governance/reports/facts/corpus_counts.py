"""Documents, bytes and tokens of a corpus, by stage and source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from governance.manifest import Manifest
from governance.reports.html.markup import visible

_ALL = "(all)"


def corpus_counts(manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """One row per stage and source, "(all)" first.

    Its columns are `stage`, `source`, `documents`, `bytes` (None where a stage does not count them) and `tokens` (None
    before `encode`). The tokens of a mixture count each copy of a document, `documents` and `bytes` count it once.
    """
    return [row for manifest in manifests for row in _rows(manifest)]


def _rows(manifest: Manifest) -> Iterator[dict[str, Any]]:
    stats, tokens = manifest.stats, {}
    if manifest.stage == "encode":
        by_source = stats.get("tokens_by_source", {})
        tokens = {**by_source, _ALL: sum(by_source.values())}
    elif "documents_kept" not in stats or manifest.stage == "pack":  # pack passes the counts of encode on
        return
    entries: dict[str, Mapping[str, Any]] = {_ALL: stats, **dict(sorted(stats.get("by_source", {}).items()))}
    for source, counts in entries.items():
        kept, size = counts.get("documents_kept"), counts.get("bytes_kept")
        yield {
            "stage": manifest.stage, "source": source, "documents": kept, "bytes": size, "tokens": tokens.get(source)
        }  # fmt: skip


def count_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as a table for a terminal."""
    lines = [f"{'stage':<13} {'source':<24} {'documents':>14} {'bytes':>18} {'tokens':>18}"]
    for row in rows:
        figures = ["" if row[name] is None else f"{row[name]:,}" for name in ("documents", "bytes", "tokens")]
        named = f"{row['stage']:<13} {visible(row['source']):<24}"
        lines.append(f"{named} {figures[0]:>14} {figures[1]:>18} {figures[2]:>18}".rstrip())
    return lines
