"""Duplicate document ids over all shards, exact, in bounded memory.

The worker of a shard hashes its ids to 64 bits and writes the hashes sorted. Then one range of hashes after the other
is gathered from all shards and sorted: hashes that occur more than once are candidates, and only their ids are read and
compared, so that two ids with one hash are not duplicates.

Price: 8 bytes per document on disk; one pass over the ids, and one over those of shards with candidates. Memory: one
range (256 MiB of hashes), and 12 bytes for each document whose id is repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from governance.config import Section
from governance.files import write_bytes
from governance.parallel import ShardMade

RANGE_BYTES = 256 << 20
Hashes = npt.NDArray[np.uint64]
ReadIds = Callable[[Path], pa.ChunkedArray]
"""The column of ids of a shard, without nulls."""


@dataclass(frozen=True)
class Repeats:
    """Rows of a shard whose id occurs elsewhere as well."""

    rows: npt.NDArray[np.int64]
    """Ascending."""
    others: npt.NDArray[np.int32]
    """How many other documents of the corpus have the row's id, at least 1."""


def write_hashes(section: Section, work: tuple[Path, ReadIds], path_of: Callable[[str], Path]) -> ShardMade:
    """The sorted hashes of a shard's ids, 8 bytes each, little-endian.

    It is a function for `map_shards`.
    """
    from governance.kernels.identities import hash_texts

    shard, read_ids = work
    hashes = np.sort(hash_texts(read_ids(shard)))
    path = path_of("id_hashes")
    write_bytes(path, hashes.astype("<u8").tobytes())
    return ShardMade({"id_hashes": path}, {"documents": len(hashes)})


def read_hashes(path: Path) -> Hashes:
    """The hashes of a shard, mapped from disk."""
    return np.memmap(path, "<u8", "r") if path.stat().st_size else np.zeros(0, np.uint64)


def repeated_ids(
    shards: Sequence[Path], hashes: Sequence[Path], read_ids: ReadIds, range_bytes: int = RANGE_BYTES
) -> list[Repeats]:
    """Rows of each shard whose id another document has.

    A row is counted once for each of the others.

    Args:
        shards: the shards.
        hashes: for each, the file that `write_hashes` made of it.
        read_ids: reads the ids of a shard.
        range_bytes: about how many bytes of hashes are held at a time.
    """
    mapped = [read_hashes(path) for path in hashes]
    ranges = max(1, -(-8 * sum(map(len, mapped)) // range_bytes))
    found: list[list[tuple[int, int]]] = [[] for _ in shards]
    for number in range(ranges):
        bounds = [(number * (1 << 64)) // ranges, ((number + 1) * (1 << 64)) // ranges]
        parts = [part[_place(part, bounds[0]) : _place(part, bounds[1])] for part in mapped]
        together = np.sort(np.concatenate([*parts, np.zeros(0, np.uint64)]))
        candidates = np.unique(together[1:][together[1:] == together[:-1]])
        if len(candidates):
            holders = [index for index, part in enumerate(parts) if np.isin(candidates, part).any()]
            _compare(candidates, holders, shards, read_ids, found)
    tables = (np.array(sorted(rows), np.int64).reshape(-1, 2) for rows in found)
    return [Repeats(table[:, 0], table[:, 1].astype(np.int32)) for table in tables]


def _place(hashes: Hashes, bound: int) -> int:
    """Offset of the first hash at or above a bound."""
    return len(hashes) if bound >> 64 else int(np.searchsorted(hashes, np.uint64(bound)))


def _compare(
    candidates: Hashes,
    holders: Sequence[int],
    shards: Sequence[Path],
    read_ids: ReadIds,
    found: list[list[tuple[int, int]]],
) -> None:
    """Read the ids behind the candidates.

    Append (row, others) where the ids themselves are equal.
    """
    places: list[tuple[int, npt.NDArray[np.int64], list[Any]]] = []
    for index in holders:
        from governance.kernels.identities import hash_texts

        ids = read_ids(shards[index])
        rows = np.flatnonzero(np.isin(hash_texts(ids), candidates))
        places.append((index, rows, ids.take(pa.array(rows)).to_pylist()))
    times = Counter(name for _, _, names in places for name in names)
    for index, rows, names in places:
        found[index] += [
            (row, times[name] - 1) for row, name in zip(rows.tolist(), names, strict=True) if times[name] > 1
        ]
