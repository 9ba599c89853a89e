"""Cutting of repeated spans out of a shard's documents.

`paragraphs` and `substrings` determine the spans; here they are cut out and listed with the bytes of the text that came
in. A document of which too little remains is removed as `duplicate_text`, with the text as it came in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    REMOVED_SCHEMA,
    edited,
    funnel,
    pass_on,
    split_table,
    with_column,
)
from governance.parallel import ShardMade

CUT_SCHEMA = pa.schema([("id", pa.string()), ("kind", pa.string()), ("start", pa.int64()), ("end", pa.int64())])


@dataclass(frozen=True)
class Cutting:
    """Kinds of spans, and what remains of a text."""

    kinds: Sequence[str]
    """Names of the numbers in the column `kind`."""
    schema: pa.Schema
    """Columns of `cuts`: CUT_SCHEMA, and more columns that the spans have."""
    left: Callable[[bytes, Sequence[tuple[int, int]]], bytes]
    """The text without its spans."""
    min_left_bytes: int


def first_rows(paths: Sequence[Path]) -> npt.NDArray[np.int64]:
    """Number of each file's first row, then of all rows."""
    counts = [pq.read_metadata(path).num_rows for path in paths]
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def nothing_cut(kinds: Sequence[str]) -> dict[str, Any]:
    """The counts of no document."""
    return {**funnel([], [], [], []), "cut": {**{f"{kind}s": 0 for kind in kinds}, "documents": 0}}


def cut_shard(path: Path, spans: pa.Table, cutting: Cutting, path_of: Callable[[str], Path]) -> ShardMade:
    """Write `documents`, `removed` and `cuts` of a shard by row group.

    `spans` has the columns `row` (the document in the shard), `kind`, and `start` and `end` in bytes, in the order of
    the rows.
    """
    first = 0

    def cut(group: pa.Table) -> tuple[Sequence[pa.Table], dict[str, Any]]:
        nonlocal first
        here = spans.filter(pc.and_(pc.greater_equal(spans["row"], first), pc.less(spans["row"], first + len(group))))
        made = _cut_group(cutting, group, here, first)
        first += len(group)
        return made

    schemas = {"documents": DOCUMENT_SCHEMA, "removed": REMOVED_SCHEMA, "cuts": cutting.schema}
    return pass_on(path, path_of, schemas, cut, nothing_cut(cutting.kinds))


def _cut_group(
    cutting: Cutting, group: pa.Table, spans: pa.Table, first: int
) -> tuple[tuple[pa.Table, pa.Table, pa.Table], dict[str, Any]]:
    rows, kinds = spans["row"].to_numpy() - first, spans["kind"].to_numpy()
    starts, ends = spans["start"].to_numpy(), spans["end"].to_numpy()
    texts = group["text"].combine_chunks()
    reasons, evidence = [""] * len(group), [""] * len(group)
    changed: dict[int, str] = {}
    order = np.argsort(rows, kind="stable")
    bounds = [*np.flatnonzero(np.diff(rows[order], prepend=-1)).tolist(), len(order)]
    for a, b in itertools.pairwise(bounds):
        mine, row = order[a:b], int(rows[order[a]])
        text = texts[row].as_buffer().to_pybytes()
        left = cutting.left(text, list(zip(starts[mine].tolist(), ends[mine].tolist(), strict=True)))
        if len(left) < cutting.min_left_bytes:
            reasons[row], evidence[row] = "duplicate_text", f"bytes_cut={len(text) - len(left)} of {len(text)}"
        changed[row] = left.decode("utf-8")
    left_texts = edited(texts, changed)
    kept, removed = split_table(group, reasons, evidence, with_column(group, "text", left_texts))
    ids = group["id"].take(pa.array(rows)) if len(rows) else pa.array([], pa.string())
    names = pa.array([cutting.kinds[kind] for kind in kinds], pa.string())
    others = {name: spans[name] for name in cutting.schema.names if name not in CUT_SCHEMA.names}
    cuts = pa.table({"id": ids, "kind": names, "start": starts, "end": ends, **others}, schema=cutting.schema)
    sizes_in, sizes_out = pc.binary_length(texts).to_pylist(), pc.binary_length(left_texts).to_pylist()
    cut = {f"{name}s": int((kinds == kind).sum()) for kind, name in enumerate(cutting.kinds)}
    counts = funnel(group["source"].to_pylist(), sizes_in, sizes_out, reasons)
    return (kept, removed, cuts), {**counts, "cut": {**cut, "documents": len(changed)}}
