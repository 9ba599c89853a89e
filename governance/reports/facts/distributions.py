"""Histograms of document statistics, and documents by language.

They are read from the stages' tables: `features` (clean), `scores` (classify), `token_features` (encode). Counts are
documents in fixed bins, so shards add up in any order. A shard is read one row group at a time, and only while it
matches its manifest (`intact`).

Documents by language are read from the `features` of `clean`, which determines a document's language, from what each
later stage removed, and from the counts of `encode`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from governance.errors import read_errors
from governance.manifest import Manifest
from governance.reports.html.markup import compact
from governance.stage_order import STAGES
from governance.verified_files import intact

_DOUBLINGS = 32  # bins of sizes; the last one is open
_SHARE_BINS = 20
_SIZES = {"clean": ("bytes", "words"), "encode": ("tokens",)}
_SHARES = {
    "clean": (
        "language_confidence", "alphabetic_word_share", "duplicate_line_character_share", "duplicate_5_gram_share",
        "top_2_gram_share", "line_punctuation_share",
    ),
}  # fmt: skip
_ROLES = {"clean": "features", "classify": "scores", "encode": "token_features"}
_NOT_SCORES = {"id", "source", "language", "kept"}


def distributions(manifest: Manifest, root: Path) -> list[dict[str, Any]]:
    """The histograms of one artifact.

    Each has its name, the edges of the bins, and the documents kept and removed in each.

    Bins are `[edge, next edge)`; a share of 1 is in the last one. Empty bins at both ends are left out.

    Raises:
        ManifestError: a table cannot be read, or differs from its manifest.
    """
    shards = manifest.listed(_ROLES[manifest.stage]) if manifest.stage in _ROLES else []
    if not shards:
        return []
    import pyarrow.parquet as pq

    first = root / shards[0].path
    with read_errors(first):
        known = pq.read_schema(first).names
    columns = [(name, True) for name in _SIZES.get(manifest.stage, ()) if name in known]
    shares = [name for name in known if name not in _NOT_SCORES] if manifest.stage == "classify" else ()
    columns += [(name, False) for name in (*_SHARES.get(manifest.stage, ()), *shares) if name in known]
    counts = {name: ([0] * _bins(sizes), [0] * _bins(sizes)) for name, sizes in columns}
    for shard in shards:
        with intact(shard, root) as path:
            for kept, values in _groups(path, [name for name, _ in columns], "kept" in known):
                for name, sizes in columns:
                    _add(counts[name], values[name], kept, sizes)
    return [
        _described(manifest.stage, name, sizes, *counts[name]) for name, sizes in columns if any(map(any, counts[name]))
    ]


def write_edge(value: float) -> str:
    """Text of a bin's edge: 0.05, 512, 1,048,576."""
    return compact(value) if value >= 10 else f"{value:g}"


def _bins(sizes: bool) -> int:
    return _DOUBLINGS if sizes else _SHARE_BINS


def _groups(path: Path, names: list[str], with_kept: bool) -> Iterator[tuple[Any, dict[str, Any]]]:
    import numpy as np
    import pyarrow.parquet as pq

    selected = [*names, "kept"] if with_kept else names
    with read_errors(path), pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=selected)
            values = {name: table[name].to_numpy() for name in names}
            yield (table["kept"].to_numpy() if with_kept else np.ones(len(table), bool)), values


def _add(counts: tuple[list[int], list[int]], values: Any, kept: Any, sizes: bool) -> None:
    import numpy as np

    numbers = values.astype(np.float64)
    there = ~np.isnan(numbers)
    numbers, kept = numbers[there], kept[there].astype(bool)
    if sizes:
        places = np.clip(np.frexp(numbers)[1], 0, _DOUBLINGS - 1)  # [2^(k-1), 2^k) is bin k; 0 is bin 0
    else:
        places = np.clip((numbers * _SHARE_BINS).astype(np.int64), 0, _SHARE_BINS - 1)
    for side, chosen in zip(counts, (kept, ~kept), strict=True):
        for place, number in enumerate(np.bincount(places[chosen], minlength=_bins(sizes)).tolist()):
            side[place] += number


def _described(stage: str, name: str, sizes: bool, kept: list[int], removed: list[int]) -> dict[str, Any]:
    edges = [0, *(2**k for k in range(_DOUBLINGS))] if sizes else [k / _SHARE_BINS for k in range(_SHARE_BINS + 1)]
    filled = [place for place in range(len(kept)) if kept[place] or removed[place]]
    first, last = filled[0], filled[-1] + 1
    return {
        "stage": stage, "name": name, "edges": edges[first : last + 1], "kept": kept[first:last],
        "removed": removed[first:last],
    }  # fmt: skip


_UNKNOWN = "und"  # ISO 639-2: undetermined


def language_counts(artifacts: Mapping[str, Manifest], root: Path) -> list[dict[str, Any]]:
    """One row per language, most documents kept first.

    It has `documents_in` and `documents_kept` of `clean`, `documents_after` each stage from `clean` on, and the
    documents and tokens of `encode`.

    Raises:
        ManifestError: a table cannot be read, or differs from its manifest.
    """
    encoded = artifacts["encode"].stats.get("by_language", {}) if "encode" in artifacts else {}
    came: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for shard in artifacts["clean"].listed("features") if "clean" in artifacts else []:
        with intact(shard, root) as path:
            for language, stayed, count in _counts(path, "kept"):
                came[language] += count
                kept[language] += count if stayed else 0
    after = _after(artifacts, kept, root) if came else {}
    names = sorted({*came, *encoded}, key=lambda name: (-kept[name], -came[name], name))
    return [
        {
            "language": name,
            "documents_in": came[name] if came else None,
            "documents_kept": kept[name] if came else None,
            "documents_after": {stage: counts[name] for stage, counts in after.items()},
            "documents_encoded": encoded.get(name, {}).get("documents", 0) if encoded else None,
            "tokens": encoded.get(name, {}).get("tokens", 0) if encoded else None,
        }
        for name in names
    ]


def _after(artifacts: Mapping[str, Manifest], kept: Counter[str], root: Path) -> dict[str, Counter[str]]:
    """Documents by language after `clean` and each later stage.

    They are those before it without those that it removed. A stage is left out unless the documents that it removed
    account for its count (some remove parts of documents).
    """
    left, now = {"clean": kept}, kept
    later = [row.name for row in STAGES if row.documents and row.name not in ("ingest", "clean")]
    for name in (name for name in later if "documents_kept" in getattr(artifacts.get(name), "stats", {})):
        made = artifacts[name]
        now = Counter(now)
        for shard in made.listed("removed"):
            with intact(shard, root) as path:
                now.subtract({language: count for language, _, count in _counts(path)})
        if encoded := made.stats.get("by_language"):
            now = Counter({language: row["documents"] for language, row in encoded.items()})
        if now.total() == made.stats["documents_kept"] and min(now.values(), default=0) >= 0:
            left[name] = now
    return left


def _counts(path: Path, *flags: str) -> list[tuple[str, bool, int]]:
    """Rows by language and flags.

    There are none if the table lacks a column; without flags all is true.
    """
    import pyarrow.parquet as pq

    columns = ["language", *flags]
    with read_errors(path):
        if not {*columns} <= set(pq.read_schema(path).names):
            return []
        rows = pq.read_table(path, columns=columns, partitioning=None)
        counted = rows.group_by(columns).aggregate([([], "count_all")]).to_pylist()
    return [(row["language"] or _UNKNOWN, all(row[flag] for flag in flags), row["count_all"]) for row in counted]
