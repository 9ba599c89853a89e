"""Raw suite: ingested documents without texts, a table a shard.

A table has every column of the shard except `text`, and four computed ones:

    repeats         how many other documents of the whole corpus have this id; 0 by law
    digest_fits     1 where the text's SHA-256 is the column `sha256`, else 0; missing where it was not computed
    opt_out_date    kind of `opt_out_fetched`: "none" (not checked), "valid", "invalid" (no ISO 8601 date or time),
                    "future" (after the day on which ingest read it), "undated" (signals without a date), "unknown" (a
                    date, but the manifest does not state when ingest ran)
    bytes           UTF-8 bytes of the text; missing where the digest is

Digests are computed for one row group of each shard, chosen by the shard's own digest: every document of a small
corpus, about an eighth of a large one, unpredictable in advance. An empty text in a column is a missing value.

The day on which ingest ran is the only value taken from a manifest's `run` block: another day can only turn "future"
into "valid". Price: one pass over the columns other than the text, and an eighth of the texts.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from governance.checks.duplicate_ids import Repeats
from governance.checks.suites import SuiteTable, frame_of, read_columns, without_empty_text
from governance.errors import read_errors
from governance.files import sha256_bytes
from governance.manifest import Manifest

TEXTS = ("id", "source", "url", "language", "licence", "sha256", "file", "opt_out", "opt_out_fetched")
"""String columns of a document shard other than `text`; `position` is an integer."""


@dataclass(frozen=True)
class RawShard:
    """One ingested shard, with facts from the others."""

    path: Path
    subject: str
    sha256: str
    repeats: Repeats
    read_on: str
    """The day on which ingest ran, YYYY-MM-DD in UTC; empty if unknown."""


def read_ids(path: Path) -> pa.ChunkedArray:
    """The ids of a shard.

    Raises:
        ManifestError: it cannot be read, or an id is null.
    """
    with read_errors(path, "its ids cannot be read"):
        return pq.read_table(path, columns=["id"], partitioning=None)["id"].cast(pa.large_string())


def day_of(ingest: Manifest) -> str:
    """The day on which a manifest was finished, or ""."""
    return str(ingest.run.get("finished") or "")[:10]


def raw_table(shard: RawShard) -> SuiteTable:
    """Table of a raw shard, or a problem with its columns.

    Raises:
        ManifestError: it cannot be read.
    """
    table = read_columns(shard.path, without=("text",))
    if problem := _problem(shard.path, table):
        return SuiteTable(shard.subject, frame_of([]), problem)
    fits, sizes = _digests(shard, table["sha256"])
    repeats = np.zeros(table.num_rows, np.int64)
    repeats[shard.repeats.rows] = shard.repeats.others
    computed: Mapping[str, Any] = {
        "repeats": pa.array(repeats),
        "digest_fits": fits,
        "bytes": sizes,
        "opt_out_date": _dates(table["opt_out_fetched"], table["opt_out"], shard.read_on),
    }
    for name, column in computed.items():
        table = table.append_column(name, column)
    return SuiteTable(shard.subject, without_empty_text(table, {}).to_pandas())


def _problem(path: Path, table: pa.Table) -> str:
    schema = pq.read_schema(path)
    kinds = {field.name: field.type for field in schema}
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        return f"has the column {twice[0]!r} more than once"
    for name in (*TEXTS, "text"):
        if name not in kinds or not (pa.types.is_string(kinds[name]) or pa.types.is_large_string(kinds[name])):
            return f"has no column {name!r} of strings, so it is not a document shard"
    if "position" not in kinds or not pa.types.is_int64(kinds["position"]):
        return "has no column 'position' of 64-bit integers, so it is not a document shard"
    if nulls := sorted(name for name in table.column_names if table[name].null_count):
        return f"has nulls in {', '.join(nulls)}; a document shard has empty texts instead"
    return ""


def _digests(shard: RawShard, expected: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """Match of each text with its stated digest, and its length."""
    fits: list[int | None] = [None] * len(expected)
    sizes: list[int | None] = [None] * len(expected)
    with read_errors(shard.path, "its texts cannot be read", "Make it again."), pq.ParquetFile(shard.path) as file:
        if file.num_row_groups:
            chosen = int(shard.sha256[:8], 16) % file.num_row_groups
            first = sum(file.metadata.row_group(group).num_rows for group in range(chosen))
            texts = file.read_row_group(chosen, columns=["text"])["text"].cast(pa.large_binary())
            stated = expected.slice(first, len(texts)).to_pylist()
            for row, (text, digest) in enumerate(zip(texts, stated, strict=True), first):
                fits[row] = int(sha256_bytes(text.as_buffer()) == digest)
                sizes[row] = len(text.as_buffer())
    return pa.array(fits, pa.int64()), pa.array(sizes, pa.int64())


def _dates(fetched: pa.ChunkedArray, signals: pa.ChunkedArray, read_on: str) -> pa.ChunkedArray:
    """Kind of each date, computed once a distinct date."""
    known = pc.unique(fetched)
    kinds = pa.array([kind_of_date(value, read_on) for value in known.to_pylist()], pa.string())
    found = pc.take(kinds, pc.index_in(fetched, value_set=known))
    undated = pc.and_(pc.equal(fetched, ""), pc.not_equal(signals, ""))
    return pc.if_else(undated, "undated", found)


def kind_of_date(value: str, read_on: str) -> str:
    """Kind of a reading date, with a day's grace for time zones."""
    if not value:
        return "none"
    try:
        moment = datetime.datetime.fromisoformat(value)
        day = (moment.astimezone(datetime.UTC) if moment.tzinfo else moment).date()
    except (ValueError, OverflowError):
        return "invalid"
    if not read_on:
        return "unknown"
    return "future" if day > datetime.date.fromisoformat(read_on) + datetime.timedelta(days=1) else "valid"
