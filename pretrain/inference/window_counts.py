"""Copies of token windows in shards.

A window is W consecutive tokens of one document, its end-of-document token left out. A copy is a document that holds
it: a run of one token, or any text with a period, overlaps itself many times within one.

Windows are sampled by their hash: all copies of a window have one hash, so a window is in the sample with all its
copies or not at all, and each distinct window is as likely as any other. One pass over the tokens keeps those whose
hash is below a bound; the bound follows from the number of tokens, so that at most about `MAX_WINDOWS` are kept (33
bytes each). Windows that are used are compared token by token: no count rests on a hash alone. Price: 12 ns per token
on one core.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.tokens.token_shards import TokenShard
from governance.splitmix64 import INCREMENT, finalise

MAX_WINDOWS = 1 << 23
_AT_ONCE = 1 << 12  # copies that are compared at once
_BASE = np.uint64(0xD1342543DE82EF95)  # odd, so that a power of it loses no bit

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Windows:
    """Sampled windows of shards, sorted by hash, then by place."""

    length: int
    """Tokens of a window."""
    hashes: Hashes
    places: npt.NDArray[np.int64]
    """First token of each window in the stream of all shards, end to end."""
    documents: npt.NDArray[np.int64]
    """Number of its document over all shards."""
    predicted: npt.NDArray[np.bool_]
    """True where training predicts each token of its end."""


@dataclass(frozen=True)
class Window:
    """One distinct window and its copies."""

    tokens: npt.NDArray[np.int64]
    copies: int
    shard: int
    """Number of the shard that has its first copy."""
    offset: int
    """First token of that copy in its shard."""


def bound_of(tokens: int, most: int = MAX_WINDOWS) -> int:
    """Bound of the hashes that keeps about `most` windows."""
    return (1 << 64) - 1 if tokens <= most else (most << 64) // tokens


def sample_windows(
    shards: Sequence[TokenShard], length: int, bound: int, targets: Iterable[npt.NDArray[np.int8]] = (), end: int = 0
) -> Windows:
    """All windows whose hash is at most `bound`.

    `targets` has, for each shard, 1 where a token is predicted; `end` is the number of a window's last tokens that
    must be for it to count as predicted.
    """
    power = np.uint64(pow(int(_BASE), length, 1 << 64))
    start, hashes, places, ends, predicted = 0, [], [], [], []
    marks, scan = iter(targets), _compiled_scan()
    for shard in shards:
        given = (shard.tokens, shard.document_ends, _mixed(shard.vocabulary_size), length, power, np.uint64(bound))
        found = np.empty((scan(*given, np.empty((0, 2), np.uint64)), 2), np.uint64)
        scan(*given, found)
        hashes.append(found[:, 0])
        within = found[:, 1].astype(np.int64)
        if end:
            sums = np.cumsum(next(marks), dtype=np.int64)
            predicted.append(sums[within + length - 1] - sums[within + length - 1 - end] == end)
        places.append(within + start)
        ends.append(shard.document_ends.astype(np.int64) + start)
        start += len(shard.tokens)
    joined, where = np.concatenate(hashes), np.concatenate(places)
    documents = np.searchsorted(np.concatenate(ends), where, side="right")
    held = np.concatenate(predicted) if end else np.ones(len(where), dtype=bool)
    order = np.argsort(joined, kind="stable")
    return Windows(length, joined[order], where[order], documents[order], held[order])


def copies_of(windows: Windows) -> Windows:
    """The first predicted window of each document and hash."""
    kept = np.flatnonzero(windows.predicted)
    hashes, documents = windows.hashes[kept], windows.documents[kept]
    new = (np.diff(hashes) != 0) | (np.diff(documents) != 0)
    kept = kept[np.concatenate([np.ones(min(1, len(kept)), dtype=bool), new])]
    columns = (windows.hashes, windows.places, windows.documents, windows.predicted)
    return Windows(windows.length, *(column[kept] for column in columns))


def _mixed(vocabulary_size: int) -> Hashes:
    """Word of each token, so that neighbouring ids have unlike hashes."""
    with np.errstate(over="ignore"):
        return finalise(np.arange(1, vocabulary_size + 1, dtype=np.uint64) * INCREMENT)


@functools.cache
def _compiled_scan() -> Any:
    """`_scan` by numba, whose import only a probe pays."""
    from numba import njit

    return njit(cache=True, nogil=True)(_scan)


def _scan(tokens, ends, words, length, power, bound, found):  # type: ignore[no-untyped-def]
    """Write (hash, place) of each document's windows; return their number.

    Without room in `found` it only counts.
    """
    count, start, writes = 0, 0, len(found) > 0
    for document in range(len(ends)):
        end = np.int64(ends[document])
        rolling = np.uint64(0)
        for place in range(start, end - 1):  # without the end-of-document token
            rolling = rolling * _BASE + words[tokens[place]]
            if place - start >= length:
                rolling -= power * words[tokens[place - length]]
            if place - start >= length - 1:
                mixed = rolling ^ (rolling >> np.uint64(30))
                mixed *= np.uint64(0xBF58476D1CE4E5B9)
                mixed ^= mixed >> np.uint64(27)
                mixed *= np.uint64(0x94D049BB133111EB)
                mixed ^= mixed >> np.uint64(31)
                if mixed <= bound:
                    if writes:
                        found[count, 0], found[count, 1] = mixed, np.uint64(place - length + 1)
                    count += 1
        start = end
    return count


def distinct(windows: Windows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First index and copies of each distinct window."""
    _, firsts, copies = np.unique(windows.hashes, return_index=True, return_counts=True)
    return firsts.astype(np.int64), copies.astype(np.int64)


def read_window(shards: Sequence[TokenShard], windows: Windows, first: int, copies: int) -> Window | None:
    """The window at an index.

    It has `copies` equal hashes from index `first` on; None: they are not all the same tokens.
    """
    starts = np.cumsum([0, *(len(shard.tokens) for shard in shards)])
    steps = np.arange(windows.length)
    text: npt.NDArray[np.int64] | None = None
    for begin in range(first, first + copies, _AT_ONCE):
        places = windows.places[begin : min(begin + _AT_ONCE, first + copies)]
        owners = np.searchsorted(starts, places, side="right") - 1
        for number in np.unique(owners).tolist():
            offsets = places[owners == number] - starts[number]
            texts = shards[number].tokens[offsets[:, None] + steps]
            if text is None:
                text, shard, offset = texts[0].astype(np.int64), number, int(offsets[0])
            if not (texts == text).all():
                return None
    return None if text is None else Window(text, copies, shard, offset)
