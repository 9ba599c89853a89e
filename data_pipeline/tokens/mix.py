"""Mixing stage: copies of each document in the training corpus.

`mixture_sizes.py` says how many bytes of each (source, language) are mixed. Here they become documents: whole epochs
first (every document of the cell), then the documents of the smallest hash of their id, in that order, while they fit
the rest. So the choice depends on ids alone: not on the shards' order, not on the number of workers; and a larger share
keeps every document that a smaller one had. What is left over in a cell is less than its next document. A cell of empty
documents weighs nothing and predicts nothing; it is left out.

Roles: `plan`: one Parquet file per document shard, with its name, a row per document:

    row     int64  the document's row in its shard: 0, 1, 2 ...
    copies  int64  how often it is trained on; 0: not at all

`sizes`: one per shard, what the plan was decided from: source, language, hash (uint64: the first 8 bytes of the SHA-256
of the id, big-endian), bytes (int64: UTF-8 bytes of the text).

With `by`, cells are of the values of a column in place of sources: `sizes` have a column `part`, and `stats` hold
`mix_by_column` in place of `mix_by_source`. With `quality` (`mix_quality.py`) a cell is one bucket of a topic of a
(source, language); `plan` has a column `bucket` (string: "<topic> <percentages>") and `sizes` have `topic` and `score`.

`stats` holds the common counts (a document of 0 copies is removed as `mix_quota`; bytes count each document once) and

    copies, bytes_mixed             of all documents, copies counted
    mix_by_source, mix_by_language  name -> bytes_in, bytes_wanted, bytes_got (copies counted), share_wanted_ppm and
                                    share_got_ppm (parts per million of all), epochs_thousandths (bytes_got / bytes_in)
    notes                           in words, what could not be had as wanted and why
    mix_by_bucket                   with `quality`: bucket -> documents, bytes_in, copies, bytes_got (copies counted)

Price: one pass over the texts' lengths and ids, two over `sizes`; 32 KiB per cell, and the documents that share 12 bits
of hash with the last one chosen, are in memory. `quality` takes four passes more over `sizes`, and 16 bytes per
distinct score of a cell.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    document_shards,
    funnel,
    read_groups,
    read_table,
    required,
    write_table,
)
from data_pipeline.tokens.mix_quality import (
    Group,
    bucketed,
    bytes_by_score,
    divide,
    labels,
    named_value,
    read_kept,
    read_values,
)
from data_pipeline.tokens.mixture_sizes import SOURCE, Allocation, Cell, MixConfig, allocate, epochs_of
from data_pipeline.tokens.token_shards import document_identity
from governance.config import canonical_json
from governance.errors import ConfigError, ManifestError
from governance.files import sha256_bytes, write_json
from governance.log import get_logger
from governance.manifest import Manifest, Output
from governance.parallel import Shard, ShardMade, map_shards, once, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import all_intact

VERSION = 3
PLAN_SCHEMA = required(row=pa.int64(), copies=pa.int64())
SIZES_SCHEMA = required(source=pa.string(), language=pa.string(), hash=pa.uint64(), bytes=pa.int64())
_OF_QUALITY = required(topic=pa.string(), score=pa.float64())
_PART = required(part=pa.string())
BUCKET = required(bucket=pa.string()).field(0)
_MEASURED = pa.schema([DOCUMENT_SCHEMA.field(name) for name in ("id", "text", "source", "language")])
_DIMENSIONS = ("language", "topic", "bucket")
_MAX_PARTS = 1000
_BUCKET_BITS = 12
_NONE = -1  # the threshold below every hash

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]
Rule = tuple[int, int]
"""(copies of every document of a cell, the largest hash that has one more)."""


def sizes_schema(config: MixConfig) -> pa.Schema:
    """Columns of `sizes`."""
    of_part = _PART if config.by != SOURCE else []
    return pa.schema([*SIZES_SCHEMA, *(_OF_QUALITY if config.quality else []), *of_part])


def document_hash(document_id: str) -> int:
    """The 64 bits by which a document is chosen."""
    return int.from_bytes(document_identity(document_id)[:8], "big")


def smallest_hashes(hashes: Hashes, sizes: Integers, room: int) -> int:
    """Largest hash of the documents that fit `room` bytes; or -1.

    Documents of one hash stay together.
    """
    order = np.argsort(hashes, kind="stable")
    ordered, sums = hashes[order], np.cumsum(sizes[order])
    lasts = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]
    fitting = np.flatnonzero(lasts & (sums <= room))
    return int(ordered[fitting[-1]]) if len(fitting) else _NONE


def thresholds(
    got: Mapping[Cell, int], sizes: Mapping[Cell, int], read: Callable[[], Iterator[pa.Table]]
) -> dict[Cell, Rule]:
    """The rule of each cell.

    `got` has its bytes in the mixture, `sizes` those of its documents.

    `read()` gives the tables of `sizes`, as often as it is called.
    """
    rules: dict[Cell, Rule] = {}
    rooms: dict[Cell, int] = {}
    for cell, size in sizes.items():
        epochs, rest = divmod(got[cell], size) if size else (0, 0)
        rules[cell] = (epochs, _NONE)
        if rest:
            rooms[cell] = rest
    filled = {cell: np.zeros(1 << _BUCKET_BITS, np.int64) for cell in rooms}
    for cell, hashes, lengths in _cells(read(), rooms):
        np.add.at(filled[cell], hashes >> np.uint64(64 - _BUCKET_BITS), lengths)
    buckets: dict[Cell, int] = {}
    for cell, sums in filled.items():
        buckets[cell] = int(np.searchsorted(np.cumsum(sums), rooms[cell], side="right"))
        rooms[cell] -= int(sums[: buckets[cell]].sum())
    members: dict[Cell, list[tuple[Hashes, Integers]]] = {cell: [] for cell in rooms}
    for cell, hashes, lengths in _cells(read(), rooms):
        inside = hashes >> np.uint64(64 - _BUCKET_BITS) == buckets[cell]
        members[cell].append((hashes[inside], lengths[inside]))
    for cell, parts in members.items():
        hashes, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
        last = smallest_hashes(hashes, lengths, rooms[cell])
        if last == _NONE:  # all of the buckets before, none of this one
            last = (buckets[cell] << (64 - _BUCKET_BITS)) - 1
        rules[cell] = (rules[cell][0], last)
    return rules


def _cells(tables: Iterable[pa.Table], cells: Mapping[Cell, Any]) -> Iterator[tuple[Cell, Hashes, Integers]]:
    """Hashes and bytes of the given cells, table by table."""
    for table in tables:
        hashes, lengths = table["hash"].to_numpy(), table["bytes"].to_numpy()
        for cell, rows in rows_by_cell(table):
            if cell in cells:
                yield cell, hashes[rows], lengths[rows]


def rows_by_cell(table: pa.Table) -> Iterator[tuple[Cell, Integers]]:
    """Each cell of a table, in order, with its rows."""
    part = "part" if "part" in table.column_names else SOURCE
    names = [part, *(name for name in _DIMENSIONS if name in table.column_names)]
    columns = [table[name].combine_chunks().dictionary_encode() for name in names]
    codes = np.zeros(table.num_rows, np.int64)
    for column in columns:
        codes = codes * len(column.dictionary) + column.indices.to_numpy()
    _, firsts, places = np.unique(codes, return_index=True, return_inverse=True)
    cells = [tuple(column[first].as_py() for column in columns) for first in firsts.tolist()]
    for cell, place in sorted((cell, place) for place, cell in enumerate(cells)):
        yield cell, np.flatnonzero(places == place)


def copies_of(table: pa.Table, rules: Mapping[Cell, Rule]) -> Integers:
    """Copies of each document of a sizes table."""
    hashes = table["hash"].to_numpy()
    copies = np.zeros(table.num_rows, np.int64)
    for cell, rows in rows_by_cell(table):
        epochs, last = rules[cell]
        copies[rows] = epochs
        if last >= 0:
            copies[rows] += hashes[rows] <= np.uint64(last)
    return copies


def _measure_shard(config: MixConfig, work: tuple[Path, Path | None], path_of: Callable[[str], Path]) -> ShardMade:
    path, scores = work
    table = pa.concat_tables(
        map(_with_lengths, itertools.chain([_MEASURED.empty_table()], read_groups(path, _MEASURED)))
    )
    hashes = np.array([document_hash(name) for name in table["id"].to_pylist()], np.uint64)
    columns = [table["source"], table["language"], hashes, table["bytes"]]
    columns += read_values(config.quality, path, scores) if config.quality else ()
    if config.by != SOURCE:
        columns.append(list(map(named_value, read_kept(path, [config.by])[config.by])))
    measured = pa.table(columns, schema=sizes_schema(config))
    write_table(path_of("sizes"), measured)
    lengths = measured["bytes"].to_numpy()
    return ShardMade({"sizes": path_of("sizes")}, {"cells": _nested(measured, lengths)})


def _with_lengths(table: pa.Table) -> pa.Table:
    lengths = pc.binary_length(table["text"]).cast(pa.int64())
    return table.drop_columns("text").append_column("bytes", lengths)


def _plan_shard(config: MixConfig, work: tuple[Path, Rules], path_of: Callable[[str], Path]) -> ShardMade:
    path, (bounds, rules) = work
    table = read_table(path, sizes_schema(config))
    lengths = table["bytes"].to_numpy()
    divided = bucketed(table, bounds, config.quality, rows_by_cell) if config.quality else table
    copies = copies_of(divided, rules)
    counts = {"copies": int(copies.sum()), "mixed": _nested(table, copies * lengths)}
    plan = pa.table([np.arange(len(copies)), copies], schema=PLAN_SCHEMA)
    if config.quality:
        named = [f"{topic} {bucket}".strip() for topic, bucket in zip(
            divided["topic"].to_pylist(), divided["bucket"].to_pylist(), strict=True)]  # fmt: skip
        plan = plan.append_column(BUCKET, pa.array(named, pa.string()))
        parts = {"documents": np.ones_like(copies), "bytes_in": lengths, "copies": copies,
                 "bytes_got": copies * lengths}  # fmt: skip
        codes, every = np.array(named, object), sorted(set(named))
        counts["mix_by_bucket"] = {
            name: {part: int(values[codes == name].sum()) for part, values in parts.items()} for name in every
        }
    write_table(path_of("plan"), plan)
    reasons = ["" if number else "mix_quota" for number in copies.tolist()]
    counted = funnel(table["source"].to_pylist(), lengths.tolist(), lengths.tolist(), reasons)
    return ShardMade({"plan": path_of("plan")}, {**counted, **counts})


def read_buckets(plan: Path) -> npt.NDArray[np.object_] | None:
    """Quality buckets of a plan's documents; None where it has none."""
    if BUCKET.name not in pq.read_schema(plan).names:
        return None
    return np.array(read_table(plan, pa.schema([BUCKET]))[BUCKET.name].to_pylist(), object)


def read_plan_rows(plan: Path, rows: Sequence[int]) -> list[tuple[int, str]]:
    """Copies and quality bucket ("" if none) of documents."""
    copies, buckets = read_table(plan, PLAN_SCHEMA)["copies"].to_pylist(), read_buckets(plan)
    return [(copies[row], "" if buckets is None else buckets[row]) for row in rows]


def copies_in_words(copies: int, bucket: str) -> str:
    """A document's part in the mixture."""
    return f"{copies} {'copy' if copies == 1 else 'copies'}{f', quality bucket {bucket}' if bucket else ''}"


def _nested(table: pa.Table, sizes: Integers) -> dict[str, Any]:
    """Sums of each cell as nested dictionaries, which shards add up."""
    sums: dict[str, Any] = {}
    for cell, rows in rows_by_cell(table):
        inner = sums
        for name in cell[:-1]:
            inner = inner.setdefault(name, {})
        inner[cell[-1]] = int(sizes[rows].sum())
    return sums


def _flat(sums: Mapping[str, Any], cell: Cell = ()) -> dict[Cell, int]:
    flat: dict[Cell, int] = {}
    for name, inner in sums.items():
        flat |= _flat(inner, (*cell, name)) if isinstance(inner, Mapping) else {(*cell, name): inner}
    return flat


def _table(axis: int, sizes: Mapping[Cell, int], wanted: Mapping[Cell, int], got: Mapping[Cell, int]) -> dict[str, Any]:
    """Sizes by source (axis 0) or language (axis 1).

    They are the input, requested and allocated bytes.
    """
    rows: dict[str, dict[str, int]] = {}
    for name in sorted({cell[axis] for cell in sizes}):
        mine = [cell for cell in sizes if cell[axis] == name]
        came, want, have = (sum(step[cell] for cell in mine) for step in (sizes, wanted, got))
        rows[name] = {
            "bytes_in": came,
            "bytes_wanted": want,
            "bytes_got": have,
            "share_wanted_ppm": want * 1_000_000 // max(1, sum(wanted.values())),
            "share_got_ppm": have * 1_000_000 // max(1, sum(got.values())),
            "epochs_thousandths": have * 1000 // max(1, came),
        }
    return rows


def mix(documents: Manifest, config: MixConfig, runtime: Runtime, scored: Manifest | None = None) -> Manifest:
    """Plan how many copies of each document are encoded.

    The roles are `plan` and `sizes`; the module describes `stats`.

    Args:
        documents: what to mix.
        config: the mixture.
        runtime: where.
        scored: the artifact of `classify`, if a classifier of it ranks the documents.

    Raises:
        ConfigError: the weights leave out a source of the corpus, no document is left, or a document has no score.
        ManifestError: a shard cannot be read.
    """
    recipe = Recipe("mix", VERSION, config)

    def make(folder: Path) -> Made:
        inputs = document_shards(documents, runtime.root)
        of_scores = document_shards(scored, runtime.root, "scores") if scored else []
        scores = {path.stem: (output, path) for output, path in of_scores}
        shards = []
        for output, path in inputs:
            if scored and path.stem not in scores:
                raise ManifestError(f"{scored.path}: has no scores for {path}; make it again.")
            reads = [output, *([scores[path.stem][0]] if scored else [])]
            work_of = (path, scores[path.stem][1] if scored else None)
            shards.append(Shard(path.stem, ("sizes", *(item.sha256 for item in reads)), work_of, tuple(reads)))
        measured = map_shards(recipe, _measure_shard, shards, folder, runtime)
        sizes = _flat(sum_stats([shard.stats for shard in measured]).get("cells", {}))
        if config.by != SOURCE and len(parts := {cell[0] for cell in sizes}) > _MAX_PARTS:
            raise ConfigError(
                f"mix: data.mix.by = {config.by!r} has {len(parts):,} different values, such as {max(parts)[:80]!r}; "
                f"at most {_MAX_PARTS:,} can be mixed. Use a value that groups documents."
            )
        allocation = allocate(sizes, config)
        measures = [shard.outputs["sizes"] for shard in measured]
        rules = _shared_rules(allocation, sizes, measures, folder, config, runtime)
        known = sha256_bytes(canonical_json(_written(rules)))
        work = [
            Shard(Path(one.path).stem, ("plan", one.sha256, known), (runtime.root / one.path, rules), (one,))
            for one in measures
        ]
        done = map_shards(recipe, _plan_shard, work, folder, runtime)
        stats = sum_stats([funnel([], [], [], []), {"copies": 0, "mixed": {}}, *(shard.stats for shard in done)])
        got = _flat(stats.pop("mixed"))
        if stats["documents_in"] and not stats["copies"]:
            room = max(allocation.got.values(), default=0)
            raise ConfigError(
                f"mix: nothing is left: the most that total_bytes, max_epochs and the quotas of [data.mix] leave to a "
                f"language of a {config.by} is {room} bytes, and no document fits. Raise them."
            )
        stats["bytes_mixed"] = sum(got.values())
        for axis, name in enumerate((SOURCE if config.by == SOURCE else "column", "language")):
            stats[f"mix_by_{name}"] = _table(axis, sizes, allocation.wanted, got)
        stats["notes"] = allocation.notes
        for note in allocation.notes:
            get_logger(__name__).warning("mix: %s", note)
        return Made([output for shard in (*measured, *done) for output in shard.outputs.values()], stats)

    return run_stage(recipe, [documents.as_input(), *([scored.as_input()] if scored else [])], runtime, make)


Rules = tuple[dict[Group, list[float]], dict[Cell, Rule]]
"""Bounds of each group's buckets (without `quality` none), and the rule of each cell or bucket."""


def _written(rules: Rules) -> list[Any]:
    bounds, of_cells = rules
    written: list[Any] = [[*cell, *rule] for cell, rule in sorted(of_cells.items())]
    return [*written, [[*group, *values] for group, values in sorted(bounds.items())]] if bounds else written


def _shared_rules(
    allocation: Allocation,
    sizes: Mapping[Cell, int],
    measures: Sequence[Output],
    folder: Path,
    config: MixConfig,
    runtime: Runtime,
) -> Rules:
    """The rules, decided once for all workers."""

    def tables() -> Iterator[pa.Table]:
        return (read_table(runtime.root / one.path, sizes_schema(config)) for one in measures)

    def decide(path: Path) -> None:
        with all_intact(measures, runtime.root):
            if config.quality is None:
                bounds: dict[Group, list[float]] = {}
                rules = thresholds(allocation.got, sizes, tables)
            else:
                bounds, rules = quality_rules(allocation, config, tables)
        write_json(path, {"bounds": [[*item] for item in sorted(bounds.items())],
                          "rules": [[*item] for item in sorted(rules.items())]})  # fmt: skip

    path = once(runtime, folder.parent / "records" / f"{folder.name}.bucket_rules.json", decide)
    found = json.loads(path.read_bytes())
    bounds = {tuple(group): values for group, values in found["bounds"]}
    return bounds, {tuple(cell): (epochs, last) for cell, (epochs, last) in found["rules"]}


def quality_rules(allocation: Allocation, config: MixConfig, read: Callable[[], Iterator[pa.Table]]) -> Rules:
    """Bounds of each group's buckets, and the rule of each bucket.

    `read()` gives the tables of `sizes`, as often as it is called.
    """
    quality = config.quality
    assert quality is not None, "the caller looked"
    names = labels(quality)
    bounds: dict[Group, list[float]] = {}
    sizes: dict[Cell, int] = {}
    got: dict[Cell, int] = {}
    last: dict[Group, Cell] = {}  # the bucket that takes what whole documents leave over in the others
    for group, (scores, lengths) in bytes_by_score(read(), rows_by_cell).items():
        epochs = epochs_of(group, config)
        bounds[group], buckets = divide(scores, lengths, allocation.got[group], epochs, quality)
        for name, (size, given) in zip(names, buckets, strict=False):
            cell = (*group, name)
            sizes[cell], got[cell] = size, given
            if given and given < size * epochs:
                last[group] = cell

    def tables() -> Iterator[pa.Table]:
        return (bucketed(table, bounds, quality, rows_by_cell) for table in read())

    others = {cell: 0 if cell == last.get(cell[:-1]) else given for cell, given in got.items()}
    rules = thresholds(others, sizes, tables)
    filled = dict.fromkeys(sizes, 0)
    for table in tables():
        copies = copies_of(table, rules) * table["bytes"].to_numpy()
        for cell, rows in rows_by_cell(table):
            filled[cell] += int(copies[rows].sum())
    rooms: dict[Cell, int] = {}
    for group, cell in last.items():
        rest = allocation.got[group] - sum(filled[(*group, name)] for name in names if (*group, name) in filled)
        rooms[cell] = min(rest, sizes[cell] * epochs_of(group, config))
    return bounds, rules | thresholds(rooms, {cell: sizes[cell] for cell in rooms}, tables)
