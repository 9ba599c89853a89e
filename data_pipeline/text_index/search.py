"""Search of a text index for the longest passages of a text.

Everything rests on one question, whether a passage occurs, which a binary search of each shard's suffixes answers; the
passages it compares are read from the memory-mapped text itself, so none rests on a hash. A passage occurs only if its
parts do, so the longest ones are found without looking at each place: a window of the least length that does not occur
rules out all places before the longest end of it that does.

The samples (`index_stage.py`) are in memory and leave a few pages of the suffixes to search. A search of a shard that
is not in the page cache waits for the disk, so it asks for these pages at once, and for the pages of text of the next
three comparisons, whichever way they go: in a shard of 1 GB, 5 waits in place of 19.

The suffixes next to where a text would be have the longest common beginnings with it, so one search finds how far a
passage goes.

Price: some 0.05 questions for each character that is not found and some 10 for each passage that is, each 20 to 50
microseconds of one core a shard, from memory.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.text_index.index_stage import LISTED_ROWS, SAMPLE_BYTES, sample_stride
from governance.manifest import Manifest

Occurs = Callable[[int, int], bool]
"""True if the passage from one character up to another occurs."""
Reaches = Callable[[int, int], int]
"""The end of the longest beginning, of the passage from one character up to another, that occurs."""
_ASKED_AT_ONCE = 3  # comparisons; their text is 7 pages, of which 3 are read
_FURTHER = 4  # times the length known to occur is asked for next
_BELIEVED = 2  # reads without a wait after which a search takes the rest to be in memory: to ask costs a fourth of it
_MAX_AHEAD_BYTES = 1 << 18  # bytes of suffixes; a short passage begins more of them, and most are not read


@dataclass(frozen=True, repr=False)
class IndexShard:
    """An open index shard, memory-mapped."""

    text: Any
    text_file: IO[bytes]
    suffixes: memoryview
    suffix_map: Any
    """Memory map that `suffixes` reads."""
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
        text, suffixes, size = self.text, self.suffixes, len(passage)
        low, high = self.within(passage)
        if low < high and (high - low) * suffixes.itemsize <= _MAX_AHEAD_BYTES:
            _ask_for(self.suffix_map, low * suffixes.itemsize, high * suffixes.itemsize)
        compared = there = 0
        while low < high:
            if there < _BELIEVED and compared % _ASKED_AT_ONCE == 0:
                waits = _waits(self.text_file, suffixes[(low + high) // 2])
                for number in next_middles(low, high, _ASKED_AT_ONCE) if waits else ():
                    _ask_for(text, suffixes[number], suffixes[number] + size)
                there += not waits
            middle = (low + high) // 2
            start = suffixes[middle]
            if text[start : start + size] < passage:
                low = middle + 1
            else:
                high = middle
            compared += 1
        return low

    def holds(self, passage: bytes) -> bool:
        """Return whether a passage occurs."""
        first = self.first(passage)
        if first == len(self.suffixes):
            return False
        start = self.suffixes[first]
        return bool(self.text[start : start + len(passage)] == passage)

    def longest(self, passage: bytes) -> int:
        """Bytes of the longest beginning of a passage that occurs."""
        first = self.first(passage)
        beside = (number for number in (first - 1, first) if 0 <= number < len(self.suffixes))
        return max((_alike(self.text, self.suffixes[number], passage) for number in beside), default=0)

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


@dataclass(frozen=True)
class Holders:
    """Documents that hold a passage: their number, and the first of them."""

    documents: int
    occurrences: int
    first: list[Holder]
    """In the order of the corpus."""


def open_index(made: Manifest, root: Path) -> TextIndex:
    """Map the shards of an index."""
    roles = [made.files(role, root) for role in ("text", "suffixes", "samples", "ends", "listed")]
    return TextIndex(tuple(_open(*paths) for paths in zip(*roles, strict=True) if paths[0].stat().st_size))


def _open(text: Path, suffixes: Path, samples: Path, ends: Path, listed: Path) -> IndexShard:
    suffix_map = _mapped(suffixes) if suffixes.stat().st_size else b""
    places: Any = np.frombuffer(suffix_map, dtype="<u4")
    heads, of_documents = samples.read_bytes(), np.fromfile(ends, dtype="<u4")
    return IndexShard(_mapped(text), open(text, "rb"), memoryview(places), suffix_map, heads, of_documents, listed)


def _mapped(path: Path) -> mmap.mmap:
    """Map a file of which single pages are read."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # otherwise the kernel reads megabytes around each of them
    return mapped


def _waits(file: IO[bytes], place: int) -> bool:
    """Return whether a read at a place waits for the disk.

    True where the file system does not say.
    """
    try:
        os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT)
    except OSError:
        return True
    return False


def _alike(text: Any, start: int, passage: bytes) -> int:
    """Bytes of a passage's beginning that the text has at a place."""
    sizes = range(1, len(passage) + 1)
    return bisect_left(sizes, True, key=lambda size: text[start : start + size] != passage[:size])


def _ask_for(mapped: Any, start: int, end: int) -> None:
    """Have the kernel read the pages of [start, end) in the background."""
    first, last = start - start % mmap.PAGESIZE, min(end, len(mapped))
    if first < last:  # else an altered suffix, past the end of its text
        mapped.madvise(mmap.MADV_WILLNEED, first, last - first)


def next_middles(low: int, high: int, levels: int) -> list[int]:
    """Places that the next `levels` comparisons of a binary search may read."""
    ranges, found = [(low, high)], []
    for _ in range(levels):
        middles = [(first + last) // 2 for first, last in ranges]
        found += middles
        halves = [
            half
            for (first, last), middle in zip(ranges, middles, strict=True)
            for half in ((first, middle), (middle + 1, last))
        ]
        ranges = [half for half in halves if half[0] < half[1]]
    return found


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

    def reaches(start: int, end: int) -> int:
        passage = data[at[start] : at[end]]
        return bisect_right(at, at[start] + max((shard.longest(passage) for shard in index.shards), default=0)) - 1

    return longest_spans(occurs, reaches, len(text), least)


def longest_spans(occurs: Occurs, reaches: Reaches, length: int, least: int) -> list[tuple[int, int]]:
    """Maximal [start, end) of at least `least` that occur.

    `occurs` must hold for each part of what it holds for; nothing of no length is asked for.
    """
    found, start = [], 0
    while start + least <= length:
        end = start + least
        after = _ruled_out(occurs, start, end)
        if after == start:
            end = _last(reaches, start, end, length)
            found.append((start, end))
            if end == length:
                break
            after = end + 2 - least  # the next one ends after this one
            if occurs(after - 1, end + 1):
                after = _first(occurs, start + 1, after - 1, end + 1)
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


def _last(reaches: Reaches, start: int, known: int, most: int) -> int:
    """The end of the longest passage, from `known` to `most`."""
    end, asked = known, known
    while end == asked < most:
        asked = min(most, start + _FURTHER * (asked - start))
        end = reaches(start, asked)
    return end


def holders_of(index: TextIndex, passage: str, most: int) -> Holders:
    """Documents that hold a passage, up to `most` of them named."""
    data = passage.encode("utf-8")
    documents, occurrences, first = 0, 0, list[Holder]()
    for number, shard in enumerate(index.shards):
        inside = np.searchsorted(shard.ends, np.sort(shard.places(data)), side="right")
        begins = np.flatnonzero(np.append(True, inside[1:] != inside[:-1])[: len(inside)])
        counts = np.diff(begins[: most + 1], append=len(inside))
        for begin, count in zip(begins[: most - len(first)].tolist(), counts.tolist(), strict=False):
            first.append(Holder(number, int(inside[begin]), count))
        documents += len(begins)
        occurrences += len(inside)
    return Holders(documents, occurrences, first)


def read_listed(index: TextIndex, holders: Sequence[Holder]) -> list[dict[str, Any]]:
    """The listed facts of documents, in the given order."""
    options = pa.ipc.IpcReadOptions(use_threads=False)  # a batch is smaller than what a thread costs
    files = {
        number: pa.ipc.open_file(pa.memory_map(str(index.shards[number].listed)), options=options)
        for number in {holder.shard for holder in holders}
    }

    def row(holder: Holder) -> dict[str, Any]:
        batch, place = divmod(holder.place, LISTED_ROWS)
        found: list[dict[str, Any]] = files[holder.shard].get_batch(batch).slice(place, 1).to_pylist()
        return found[0]

    return list(map(row, holders))
