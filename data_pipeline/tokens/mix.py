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

`stats` holds the common counts (a document of 0 copies is removed as `mix_quota`; bytes count each document once) and

    copies, bytes_mixed             of all documents, copies counted
    mix_by_source, mix_by_language  name -> bytes_in, bytes_wanted, bytes_got (copies counted), share_wanted_ppm and
                                    share_got_ppm (parts per million of all), epochs_thousandths (bytes_got / bytes_in)
    notes                           in words, what could not be had as wanted and why

Price: one pass over the texts' lengths and ids, two over `sizes`; 32 KiB per cell, and the documents that share 12 bits
of hash with the last one chosen, are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.documents import document_shards, funnel, read_table, required, write_table
from data_pipeline.tokens.mixture_sizes import Allocation, Cell, MixConfig, allocate
from data_pipeline.tokens.token_shards import document_identity
from governance.config import canonical_json
from governance.errors import ConfigError
from governance.files import sha256_bytes, write_json
from governance.log import get_logger
from governance.manifest import Manifest
from governance.parallel import Shard, ShardMade, map_shards, once, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 2
PLAN_SCHEMA = required(row=pa.int64(), copies=pa.int64())
SIZES_SCHEMA = required(source=pa.string(), language=pa.string(), hash=pa.uint64(), bytes=pa.int64())
_BUCKET_BITS = 12
_NONE = -1  # the threshold below every hash

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]
Rule = tuple[int, int]
"""(copies of every document of a cell, the largest hash that has one more)."""


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
    allocation: Allocation, sizes: Mapping[Cell, int], read: Callable[[], Iterator[pa.Table]]
) -> dict[Cell, Rule]:
    """The rule of each cell.

    `read()` gives the tables of `SIZES_SCHEMA`, as often as it is called.
    """
    rules: dict[Cell, Rule] = {}
    rooms: dict[Cell, int] = {}
    for cell, size in sizes.items():
        epochs, rest = divmod(allocation.got[cell], size) if size else (0, 0)
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
    """Each (source, language) of a table, in order, with its rows."""
    sources, languages = (table[name].combine_chunks().dictionary_encode() for name in ("source", "language"))
    count = len(languages.dictionary)
    codes = sources.indices.to_numpy().astype(np.int64) * count + languages.indices.to_numpy()
    names = {
        int(code): (sources.dictionary[int(code) // count].as_py(), languages.dictionary[int(code) % count].as_py())
        for code in np.unique(codes)
    }
    for code, cell in sorted(names.items(), key=lambda item: item[1]):
        yield cell, np.flatnonzero(codes == code)


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


def _measure_shard(config: MixConfig, path: Path, path_of: Callable[[str], Path]) -> ShardMade:
    table = read_table(path, columns=["id", "text", "source", "language"])
    hashes = np.array([document_hash(name) for name in table["id"].to_pylist()], np.uint64)
    columns = [table["source"], table["language"], hashes, pc.binary_length(table["text"]).cast(pa.int64())]
    measured = pa.table(columns, schema=SIZES_SCHEMA)
    write_table(path_of("sizes"), measured)
    cells: dict[str, dict[str, int]] = {}
    lengths = measured["bytes"].to_numpy()
    for (source, language), rows in rows_by_cell(measured):
        cells.setdefault(source, {})[language] = int(lengths[rows].sum())
    return ShardMade({"sizes": path_of("sizes")}, {"cells": cells})


def _plan_shard(config: MixConfig, work: tuple[Path, dict[Cell, Rule]], path_of: Callable[[str], Path]) -> ShardMade:
    path, rules = work
    table = read_table(path, SIZES_SCHEMA)
    copies, lengths = copies_of(table, rules), table["bytes"].to_numpy()
    write_table(path_of("plan"), pa.table([np.arange(len(copies)), copies], schema=PLAN_SCHEMA))
    mixed: dict[str, dict[str, int]] = {}
    for (source, language), rows in rows_by_cell(table):
        mixed.setdefault(source, {})[language] = int((copies[rows] * lengths[rows]).sum())
    reasons = ["" if number else "mix_quota" for number in copies.tolist()]
    counts = funnel(table["source"].to_pylist(), lengths.tolist(), lengths.tolist(), reasons)
    return ShardMade({"plan": path_of("plan")}, {**counts, "copies": int(copies.sum()), "mixed": mixed})


def _flat(cells: Mapping[str, Mapping[str, int]]) -> dict[Cell, int]:
    return {(source, language): size for source, inner in cells.items() for language, size in inner.items()}


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


def mix(documents: Manifest, config: MixConfig, runtime: Runtime) -> Manifest:
    """Plan how many copies of each document are encoded.

    The roles are `plan` and `sizes`; the module describes `stats`.

    Raises:
        ConfigError: the weights leave out a source of the corpus, or no document is left.
        ManifestError: a shard cannot be read.
    """
    recipe = Recipe("mix", VERSION, config)

    def make(folder: Path) -> Made:
        inputs = document_shards(documents, runtime.root)
        shards = [Shard(path.stem, ("sizes", output.sha256), path, (output,)) for output, path in inputs]
        measured = map_shards(recipe, _measure_shard, shards, folder, runtime)
        sizes = _flat(sum_stats([shard.stats for shard in measured]).get("cells", {}))
        allocation = allocate(sizes, config)
        paths = [runtime.root / shard.outputs["sizes"].path for shard in measured]
        rules = _shared_rules(allocation, sizes, paths, folder, runtime)
        known = sha256_bytes(canonical_json([[*cell, *rule] for cell, rule in sorted(rules.items())]))
        work = [
            Shard(path.stem, ("plan", shard.outputs["sizes"].sha256, known), (path, rules), (shard.outputs["sizes"],))
            for path, shard in zip(paths, measured, strict=True)
        ]
        done = map_shards(recipe, _plan_shard, work, folder, runtime)
        stats = sum_stats([funnel([], [], [], []), {"copies": 0, "mixed": {}}, *(shard.stats for shard in done)])
        got = _flat(stats.pop("mixed"))
        if stats["documents_in"] and not stats["copies"]:
            room = max(allocation.got.values(), default=0)
            raise ConfigError(
                f"mix: nothing is left: the most that total_bytes, max_epochs and the quotas of [data.mix] leave to a "
                f"language of a source is {room} bytes, and no document fits. Raise them."
            )
        stats["bytes_mixed"] = sum(got.values())
        for axis, name in enumerate(("source", "language")):
            stats[f"mix_by_{name}"] = _table(axis, sizes, allocation.wanted, got)
        stats["notes"] = allocation.notes
        for note in allocation.notes:
            get_logger(__name__).warning("mix: %s", note)
        return Made([output for shard in (*measured, *done) for output in shard.outputs.values()], stats)

    return run_stage(recipe, [documents.as_input()], runtime, make)


def _shared_rules(
    allocation: Allocation, sizes: Mapping[Cell, int], paths: Sequence[Path], folder: Path, runtime: Runtime
) -> dict[Cell, Rule]:
    """The rules, decided once for all workers."""

    def decide(path: Path) -> None:
        rules = thresholds(allocation, sizes, lambda: (read_table(table, SIZES_SCHEMA) for table in paths))
        write_json(path, [[*cell, *rule] for cell, rule in sorted(rules.items())])

    path = once(runtime, folder.parent / "records" / f"{folder.name}.rules.json", decide)
    return {(source, language): (epochs, last) for source, language, epochs, last in json.loads(path.read_bytes())}
