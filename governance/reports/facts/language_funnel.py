"""Documents by language: ingested, kept, encoded.

They are read from the `features` of `clean` and the counts of `encode`. `clean` determines a document's language, so
there is no earlier count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from governance.errors import read_errors
from governance.manifest import Manifest
from governance.verified_files import intact

_UNKNOWN = "und"  # ISO 639-2: undetermined


def language_counts(artifacts: Mapping[str, Manifest], root: Path) -> list[dict[str, Any]]:
    """One row per language, most documents kept first.

    It has `documents_in`, `documents_kept`, and the documents and tokens of `encode`.

    Raises:
        ManifestError: a table cannot be read, or differs from its manifest.
    """
    encoded = artifacts["encode"].stats.get("by_language", {}) if "encode" in artifacts else {}
    came: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for shard in artifacts["clean"].listed("features") if "clean" in artifacts else []:
        with intact(shard, root) as path:
            for language, stayed, count in _counts(path):
                came[language] += count
                kept[language] += count if stayed else 0
    names = sorted({*came, *encoded}, key=lambda name: (-kept[name], -came[name], name))
    return [
        {
            "language": name,
            "documents_in": came[name] if came else None,
            "documents_kept": kept[name] if came else None,
            "documents_encoded": encoded.get(name, {}).get("documents", 0) if encoded else None,
            "tokens": encoded.get(name, {}).get("tokens", 0) if encoded else None,
        }
        for name in names
    ]


def _counts(path: Path) -> list[tuple[str, bool, int]]:
    import pyarrow.parquet as pq

    with read_errors(path):
        if not {"language", "kept"} <= set(pq.read_schema(path).names):
            return []
        rows = pq.read_table(path, columns=["language", "kept"])
        counted = rows.group_by(["language", "kept"]).aggregate([([], "count_all")]).to_pylist()
    return [(row["language"] or _UNKNOWN, bool(row["kept"]), row["count_all"]) for row in counted]
