"""Repeated spans cut out of documents: the passes of `paragraphs` and `substrings`.

A first pass lists what is compared, shard by shard; a join determines the spans to cut; a second pass cuts them out and
lists them with the bytes of the text that came in. A document of which too little remains is removed as
`duplicate_text`, with the text as it came in.
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
    document_shards,
    edited,
    funnel,
    gathered,
    pass_on,
    split_table,
    with_column,
)
from governance.config import Section
from governance.manifest import Manifest
from governance.parallel import Shard, ShardMade, map_shards, once
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import all_intact

CUT_SCHEMA = pa.schema([("id", pa.string()), ("kind", pa.string()), ("start", pa.int64()), ("end", pa.int64())])
SPAN_SCHEMA = pa.schema(
    [("document", pa.int64()), ("kind", pa.int8()), ("start", pa.int64()), ("end", pa.int64())]
)  # fmt: skip
"""Spans to cut: number of the document in the corpus, number of the kind, bytes."""
_IN_ORDER = [("document", "ascending"), ("end", "ascending"), ("kind", "descending")]


@dataclass(frozen=True)
class Cutting:
    """Both passes of a stage, its spans, and the text that remains."""

    role: str
    """Role of the first pass's files."""
    find: Callable[..., ShardMade]
    """First pass on one shard, as `map_shards` calls it."""
    join: Callable[[Sequence[Path], Sequence[Path], str, Path], None]
    """Write the spans to cut, of documents, files of the first pass, and the name of the engine.

    Columns are SPAN_SCHEMA's and those of `cuts`; the metadata holds counts."""
    kinds: Sequence[str]
    """Names of the numbers in the column `kind`."""
    schema: pa.Schema
    """Columns of `cuts`: CUT_SCHEMA's, and others of the spans."""
    left: Callable[[bytes, Sequence[tuple[int, int]]], bytes]
    """The text without its spans."""
    min_left_bytes: int


def first_rows(paths: Sequence[Path]) -> npt.NDArray[np.int64]:
    """Number of each file's first row, then of all rows."""
    counts = [pq.read_metadata(path).num_rows for path in paths]
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def cut_repeats(recipe: Recipe, documents: Manifest, runtime: Runtime, cutting: Cutting) -> Manifest:
    """Find or make the artifact of `paragraphs` or `substrings`."""

    def make(folder: Path) -> Made:
        inputs = document_shards(documents, runtime.root)
        listed = [Shard(path.stem, ("repeats", output.sha256), path, (output,)) for output, path in inputs]
        found = map_shards(recipe, cutting.find, listed, folder, runtime)
        marks = [shard.outputs[cutting.role] for shard in found]
        known = [file.sha256 for (output, _), mark in zip(inputs, marks, strict=True) for file in (output, mark)]
        joined = recipe.key(known)  # one digest of all, since the key of each shard has it
        paths, files = [path for _, path in inputs], [runtime.root / mark.path for mark in marks]

        def join(target: Path) -> None:
            with all_intact([output for output, _ in inputs], runtime.root):
                cutting.join(paths, files, runtime.engine, target)

        spans = once(runtime, folder.parent / "records" / f"{joined}.parquet", join)
        work = [
            Shard(path.stem, ("cut", output.sha256, str(a), joined), (path, spans, (a, b), cutting), (output,))
            for (output, path), (a, b) in zip(inputs, itertools.pairwise(first_rows(paths).tolist()), strict=True)
        ]
        done = map_shards(recipe, _cut_shard, work, folder, runtime)
        made = gathered([*found, *done], _nothing_cut(cutting.kinds))
        counts = {name.decode(): int(value) for name, value in (pq.read_schema(spans).metadata or {}).items()}
        return Made(made.outputs, {**made.stats, **counts})

    return run_stage(recipe, [documents.as_input()], runtime, make)


def _nothing_cut(kinds: Sequence[str]) -> dict[str, Any]:
    """Counts of a shard without documents."""
    return {**funnel([], [], [], []), "cut": {**{f"{kind}s": 0 for kind in kinds}, "documents": 0}}


def _cut_shard(
    section: Section, work: tuple[Path, Path, tuple[int, int], Cutting], path_of: Callable[[str], Path]
) -> ShardMade:
    """Write `documents`, `removed` and `cuts` of a shard by row group.

    `work` has the shard's documents, the spans of the corpus, the numbers of the shard's documents, and the cutting.
    """
    path, spans_of_all, (first, end), cutting = work
    ours = [("document", ">=", first), ("document", "<", end)]
    spans = pq.read_table(spans_of_all, filters=ours, partitioning=None).sort_by(_IN_ORDER)

    def cut(group: pa.Table) -> tuple[Sequence[pa.Table], dict[str, Any]]:
        nonlocal first
        number = spans["document"]
        here = spans.filter(pc.and_(pc.greater_equal(number, first), pc.less(number, first + len(group))))
        made = _cut_group(cutting, group, here, first)
        first += len(group)
        return made

    schemas = {"documents": DOCUMENT_SCHEMA, "removed": REMOVED_SCHEMA, "cuts": cutting.schema}
    return pass_on(path, path_of, schemas, cut, _nothing_cut(cutting.kinds))


def _cut_group(
    cutting: Cutting, group: pa.Table, spans: pa.Table, first: int
) -> tuple[tuple[pa.Table, pa.Table, pa.Table], dict[str, Any]]:
    rows, kinds = spans["document"].to_numpy() - first, spans["kind"].to_numpy()
    starts, ends = spans["start"].to_numpy(), spans["end"].to_numpy()
    texts = group["text"].combine_chunks()
    reasons, evidence = [""] * len(group), [""] * len(group)
    changed: dict[int, str] = {}
    bounds = [*np.flatnonzero(np.diff(rows, prepend=-1)).tolist(), len(rows)]
    for a, b in itertools.pairwise(bounds):
        row = int(rows[a])
        text = texts[row].as_buffer().to_pybytes()
        left = cutting.left(text, list(zip(starts[a:b].tolist(), ends[a:b].tolist(), strict=True)))
        if len(left) < max(1, cutting.min_left_bytes):  # an empty document is none
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
