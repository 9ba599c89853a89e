"""Search of a text index for the longest passages of a text.

Everything rests on one question, whether a passage occurs, which a binary search of each shard's suffixes answers; the
passages it compares are read from the memory-mapped text itself, so none rests on a hash. A passage occurs only if its
parts do, so the longest ones are found without looking at each place: a window of the least length that does not occur
rules out all places before the longest end of it that does.

The samples (`index_stage.py`) are in memory and leave one page or a few of the suffixes to search, so that a shard that
is not in the page cache costs a read of 4 KiB for each of the last comparisons, and none for the others.

Price: some 0.05 questions for each character that is not found and some 25 for each passage that is, each 5 to 15
microseconds of one core a shard, from memory.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.documents import read_groups, rows_by_group
from data_pipeline.text_index.index_stage import LISTED_SCHEMA, SAMPLE_BYTES, sample_stride
from governance.manifest import Manifest

Occurs = Callable[[int, int], bool]
"""True if the passage from one character up to another occurs."""


@dataclass(frozen=True, repr=False)
class IndexShard:
    """An open index shard, memory-mapped."""

    text: Any
    suffixes: memoryview
    samples: bytes
    ends: npt.NDArray[np.uint32]
    listed: Path

    def within(self, passage: bytes) -> tuple[int, int]:
        """Bounds on the place of the suffixes that begin with a passage."""
        samples, head = self.samples, passage[:SAMPLE_BYTES]
        size, count, stride = len(head), len(samples) // SAMPLE_BYTES, sample_stride(len(self.suffixes))

        def sample(number: int) -> bytes:
            return samples[number * SAMPLE_BYTES : number * SAMPLE_BYTES + size]

        low = bisect_left(range(count), head, key=sample)
        high = low
        if low < count and sample(low) == head:
            high = bisect_right(range(count), head, lo=low, key=sample)
        return max(0, (low - 1) * stride + 1), min(high * stride, len(self.suffixes))

    def first(self, passage: bytes) -> int:
        """Number of the suffixes before those that begin with a passage."""
        text, size = self.text, len(passage)
        return bisect_left(self.suffixes, passage, *self.within(passage), key=lambda at: text[at : at + size])

    def holds(self, passage: bytes) -> bool:
        """Return whether a passage occurs."""
        first = self.first(passage)
        if first == len(self.suffixes):
            return False
        start = self.suffixes[first]
        return bool(self.text[start : start + len(passage)] == passage)

    def places(self, passage: bytes) -> npt.NDArray[np.uint32]:
        """Beginnings of a passage's occurrences."""
        text, size, first = self.text, len(passage), self.first(passage)
        _, most = self.within(passage)
        stop = bisect_right(self.suffixes, passage, first, most, key=lambda at: text[at : at + size])
        return np.asarray(self.suffixes[first:stop], np.uint32)


@dataclass(frozen=True)
class TextIndex:
    """An open index."""

    shards: tuple[IndexShard, ...]


@dataclass(frozen=True)
class Holder:
    """A document that holds a passage."""

    shard: int
    place: int
    """Its number in the shard, from 0."""
    occurrences: int


def open_index(made: Manifest, root: Path) -> TextIndex:
    """Map the shards of an index."""
    roles = [made.files(role, root) for role in ("text", "suffixes", "samples", "ends", "listed")]
    return TextIndex(tuple(_open(*paths) for paths in zip(*roles, strict=True) if paths[0].stat().st_size))


def _open(text: Path, suffixes: Path, samples: Path, ends: Path, listed: Path) -> IndexShard:
    places: Any = np.frombuffer(_mapped(suffixes) if suffixes.stat().st_size else b"", dtype="<u4")
    heads, of_documents = samples.read_bytes(), np.fromfile(ends, dtype="<u4")
    return IndexShard(_mapped(text), memoryview(places), heads, of_documents, listed)


def _mapped(path: Path) -> mmap.mmap:
    """Map a file of which single pages are read."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # otherwise the kernel reads megabytes around each of them
    return mapped


def find_spans(index: TextIndex, text: str, least: int) -> list[tuple[int, int]]:
    """Longest passages of at least `least` characters, in order.

    They are [start, end) in characters. Two may overlap; none is within another, and none that is longer by a character
    occurs.
    """
    data = text.encode("utf-8")
    sizes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    steps = 1 + (sizes >= 0x80).astype(np.int64) + (sizes >= 0x800) + (sizes >= 0x10000)
    at = [0, *np.cumsum(steps).tolist()]

    def occurs(start: int, end: int) -> bool:
        passage = data[at[start] : at[end]]
        return any(shard.holds(passage) for shard in index.shards)

    return longest_spans(occurs, len(text), least)


def longest_spans(occurs: Occurs, length: int, least: int) -> list[tuple[int, int]]:
    """Maximal [start, end) of at least `least` that occur.

    `occurs` must hold for each part of what it holds for; nothing of no length is asked for.
    """
    found, start = [], 0
    while start + least <= length:
        end = start + least
        after = _ruled_out(occurs, start, end)
        if after == start:
            end = _last(partial(occurs, start), end, length)
            found.append((start, end))
            if end == length:
                break
            after = _first(occurs, start + 1, end + 1, end + 1)  # the next one ends behind this one
        start = after
    return found


def _ruled_out(occurs: Occurs, start: int, end: int) -> int:
    """The next place where it may occur; `start` if it occurs there.

    Short ends of it are tried first: most do not occur, and one that does not rules out all places before it but one.
    """
    size, known = max(1, (end - start) // 3), 0
    while size < end - start:
        if not occurs(end - size, end):
            return end - size + 1
        size, known = 3 * size // 2 + 1, size
    return start if occurs(start, end) else _first(occurs, start + 1, end - known, end)


def _first(occurs: Occurs, low: int, high: int, end: int) -> int:
    """The first place whose passage up to `end` occurs, or `high`."""
    return bisect_left(range(high), True, lo=low, key=lambda start: occurs(start, end))


def _last(holds: Callable[[int], bool], known: int, most: int) -> int:
    """The last number from `known`, which holds, to `most` that holds."""
    step = 1
    while known + step <= most and holds(known + step):
        known, step = known + step, 2 * step
    beyond = min(known + step, most + 1)
    return bisect_left(range(beyond), True, lo=known + 1, key=lambda number: not holds(number)) - 1


def holders_of(index: TextIndex, passage: str) -> list[Holder]:
    """Documents that hold a passage, in the order of the corpus."""
    data, found = passage.encode("utf-8"), []
    for number, shard in enumerate(index.shards):
        inside = np.searchsorted(shard.ends, shard.places(data), side="right")
        documents, counts = np.unique(inside, return_counts=True)
        found += [Holder(number, *pair) for pair in zip(documents.tolist(), counts.tolist(), strict=True)]
    return found


def read_listed(index: TextIndex, holders: list[Holder]) -> list[dict[str, Any]]:
    """The listed facts of documents, in the given order."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for number in {holder.shard for holder in holders}:
        places = np.array(sorted({holder.place for holder in holders if holder.shard == number}))
        path, asked = index.shards[number].listed, iter(places.tolist())
        by_group = rows_by_group(path, places)
        tables = read_groups(path, LISTED_SCHEMA, [group for group, _ in by_group])
        for (_, within), table in zip(by_group, tables, strict=True):
            rows |= {(number, next(asked)): row for row in table.take(within).to_pylist()}
    return [rows[holder.shard, holder.place] for holder in holders]
