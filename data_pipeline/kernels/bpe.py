"""Byte-level BPE over an Arrow buffer, with a cache of pre-tokens.

Within a pre-token, the adjacent pair of the lowest rank merges first, the leftmost of equals, until no pair has a rank
(Sennrich, Haddow and Birch 2016, arXiv:1508.07909): by search while the pre-token is short, else by a heap over a
linked list, so that n bytes cost O(n log n) whatever they are. One of more than 1 MiB is merged 1 MiB at a time.

The cache maps a pre-token's bytes to its ids; it compares bytes, not hashes alone, so it never changes an id. It is
of a fixed size, so its look-ups are of a fixed cost. It is written while texts are encoded: one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import int64, uint64

from data_pipeline.kernels.pretokens import pretoken_end
from data_pipeline.kernels.unowned import unowned
from governance.kernels.buffers import Bytes, Offsets
from governance.kernels.compiled import inlined, kernel, part

_CACHE_SLOTS = 1 << 18  # with half as many, half as many words again were not found, in texts of many languages
_CACHE_BYTES = 4 << 20
_CACHE_IDS = 1 << 20
_CACHED_BYTES = 1024  # a longer pre-token is encoded each time
_PACKED_BYTES = 15  # a pre-token of no more bytes is its own key
_SEARCHED_BYTES = 48  # a pre-token of more bytes is merged by a heap,
_STRETCH_BYTES = 1 << 20  # so many at a time, which takes 28 MB
_GROUP = 4  # slots in which a pre-token may lie; in a full group one makes room, each in its turn
_INLINE_IDS = 3  # as many ids stand in the entry itself
_NO_RANK = 0x7FFFFFFF

_ONE = np.uint64(1)
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# For n = 0 ... 15 bytes in two words: the bits of the first word, and of the second, whose top byte holds n.
_FIRST_MASKS = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(16)], np.uint64)
_SECOND_MASKS = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(16)], np.uint64)

Words = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Merges:
    """A vocabulary's merges as the kernel reads them."""

    letters: Ids
    """[256], the id of each byte."""
    pairs: Words
    """[slots, 2], an open-addressing table: left id << 32 | right id, and its rank."""
    merged: Ids
    """[merges], the id that the pair of each rank becomes."""


@dataclass(frozen=True)
class Cache:
    """Pre-tokens already encoded.

    8 MB for the table, 4 MB for long bytes, 4 MB for long ids.
    """

    table: Words
    """[slots, 4]: the bytes (two words), then up to three ids and their count, see `_insert`."""
    arena: Bytes
    spill: Ids
    used: npt.NDArray[np.int64]
    """[3]: entries written so far, bytes of the arena, ids of the spill."""


def build_merges(letters: Sequence[int], merges: Mapping[tuple[int, int], tuple[int, int]]) -> Merges:
    """The tables of a vocabulary.

    `letters[b]` is the id of byte b, `merges` maps (left, right) to (rank, merged id).

    The ranks are 0, 1, 2 ... with none left out.
    """
    slots = 1 << max(4, (2 * len(merges)).bit_length())
    pairs = np.full((slots, 2), _FREE)
    merged = np.zeros(max(1, len(merges)), np.uint32)
    if merges:
        keys = np.array(list(merges), np.uint64)
        values = np.array(list(merges.values()), np.uint64)
        merged[values[:, 0]] = values[:, 1]
        _fill_pairs(pairs, keys[:, 0] << np.uint64(32) | keys[:, 1], values[:, 0].copy())
    return Merges(np.array(letters, np.uint32), pairs, merged)


def new_cache(slots: int = _CACHE_SLOTS) -> Cache:
    """An empty cache of `slots` (a power of two) entries."""
    return Cache(
        np.zeros((slots, 4), np.uint64),
        np.zeros(_CACHE_BYTES + 8, np.uint8),
        np.zeros(_CACHE_IDS, np.uint32),
        np.zeros(3, np.int64),
    )


def encode_texts(
    data: Bytes, offsets: Offsets, classes: Bytes, merges: Merges, cache: Cache, end: int
) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Token ids of n texts with `end` after each, and offsets.

    Args:
        data: valid UTF-8, read-only as Arrow gives it.
        offsets: [n + 1], text i is `data[offsets[i]:offsets[i + 1]]`.
        classes: [0x110000], LETTER, NUMBER, SPACE or OTHER (see `pretokens.py`) for each code point; read-only.
        merges: the vocabulary.
        cache: of this vocabulary; changed.
        end: the id that closes a text.
    """
    if not len(data):
        return np.full(len(offsets) - 1, end, np.uint32), np.arange(len(offsets), dtype=np.int64)
    ends = np.zeros(len(offsets), np.int64)
    out = np.empty(int(offsets[-1] - offsets[0]) + len(offsets) + _INLINE_IDS, np.uint32)
    eights = np.ndarray((max(0, len(data) - 7),), np.dtype("<u8"), data, strides=(1,))  # the word at every byte
    used = _encode_texts(
        data, eights, offsets, classes, merges.letters, merges.pairs, merges.merged,
        cache.table, cache.arena, cache.spill, cache.used, np.uint32(end), out, ends,
    )  # fmt: skip
    return out[:used], ends


@kernel
def _fill_pairs(pairs, keys, ranks):  # type: ignore[no-untyped-def]
    mask = uint64(len(pairs) - 1)
    for k in range(len(keys)):
        slot = _pair_slot(keys[k]) & mask
        while pairs[slot, 0] != _FREE:
            slot = (slot + _ONE) & mask
        pairs[slot, 0] = keys[k]
        pairs[slot, 1] = ranks[k]


@inlined
def _pair_slot(key):  # type: ignore[no-untyped-def]
    h = key * _GOLDEN
    return h ^ h >> uint64(32)


@inlined
def _rank(pairs, left, right):  # type: ignore[no-untyped-def]
    """The rank of a pair of ids, or 0x7FFFFFFF."""
    mask = uint64(len(pairs) - 1)
    key = uint64(left) << uint64(32) | uint64(right)
    slot = _pair_slot(key) & mask
    while True:
        found = pairs[slot, 0]
        if found == key:
            return int64(pairs[slot, 1])
        if found == _FREE:
            return int64(_NO_RANK)
        slot = (slot + _ONE) & mask


@part
def _merge_searching(data, start, stop, letters, pairs, merged, ranks, out, o):  # type: ignore[no-untyped-def]
    """Merge a short pre-token in place at out[o:].

    Return one past its last id. O(n * n).
    """
    count = stop - start
    for k in range(count):
        out[o + k] = letters[data[start + k]]
    for k in range(count - 1):
        ranks[k] = _rank(pairs, out[o + k], out[o + k + 1])
    while count > 1:
        best = 0
        low = ranks[0]
        for k in range(1, count - 1):
            if ranks[k] < low:
                low, best = ranks[k], k
        if low == _NO_RANK:
            break
        out[o + best] = merged[low]
        count -= 1
        for k in range(best + 1, count):
            out[o + k] = out[o + k + 1]
            ranks[k - 1] = ranks[k]
        if best > 0:
            ranks[best - 1] = _rank(pairs, out[o + best - 1], out[o + best])
        if best < count - 1:
            ranks[best] = _rank(pairs, out[o + best], out[o + best + 1])
    return o + count


@part
def _sift_down(heap, size, k):  # type: ignore[no-untyped-def]
    value = heap[k]
    while 2 * k + 1 < size:
        child = 2 * k + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[k] = heap[child]
        k = child
    heap[k] = value


@part
def _push(heap, size, value):  # type: ignore[no-untyped-def]
    k = size
    while k > 0 and heap[(k - 1) >> 1] > value:
        heap[k] = heap[(k - 1) >> 1]
        k = (k - 1) >> 1
    heap[k] = value
    return size + 1


@part
def _merge_with_heap(data, start, stop, letters, pairs, merged, out, o):  # type: ignore[no-untyped-def]
    """Merge a long pre-token at out[o:]; return one past its last id.

    O(n log n), 28 bytes of memory a byte.

    The heap holds rank << 32 | place; an entry is stale when the pair at its place no longer has its rank.
    """
    n = stop - start
    after = np.empty(n, np.int32)
    before = np.empty(n, np.int32)
    ranks = np.empty(n, np.int32)
    heap = np.empty(2 * n, np.int64)
    size = 0
    for k in range(n):
        out[o + k] = letters[data[start + k]]
        after[k], before[k] = k + 1, k - 1
    for k in range(n):
        ranks[k] = _rank(pairs, out[o + k], out[o + k + 1]) if k + 1 < n else _NO_RANK
        if ranks[k] != _NO_RANK:
            heap[size] = int64(ranks[k]) << 32 | k
            size += 1
    for k in range(size // 2 - 1, -1, -1):
        _sift_down(heap, size, k)
    while size:
        low, k = heap[0] >> 32, heap[0] & 0xFFFFFFFF
        size -= 1
        heap[0] = heap[size]
        if size:
            _sift_down(heap, size, 0)
        if ranks[k] != low:
            continue
        gone = after[k]
        following = after[gone]
        out[o + k] = merged[low]
        after[k] = following
        ranks[gone] = ranks[k] = _NO_RANK
        if following < n:
            before[following] = k
            ranks[k] = _rank(pairs, out[o + k], out[o + following])
            if ranks[k] != _NO_RANK:
                size = _push(heap, size, int64(ranks[k]) << 32 | k)
        p = before[k]
        if p >= 0:
            ranks[p] = _rank(pairs, out[o + p], out[o + k])
            if ranks[p] != _NO_RANK:
                size = _push(heap, size, int64(ranks[p]) << 32 | p)
    k = used = 0
    while k < n:
        out[o + used] = out[o + k]
        used += 1
        k = after[k]
    return o + used


@inlined
def _key_of(data, eights, i, n):  # type: ignore[no-untyped-def]
    """Two words that stand for the n bytes at i.

    The bytes themselves up to 15 (with n in the top byte), else a hash.

    The second word of a longer pre-token has 255 in the top byte, then n; its low half is filled by `_insert`.
    """
    if n <= _PACKED_BYTES:
        low = high = uint64(0)
        if i + 16 <= len(data):
            low, high = eights[i] & _FIRST_MASKS[n], eights[i + 8] & _SECOND_MASKS[n]
        else:
            for k in range(min(n, 8)):
                low |= uint64(data[i + k]) << uint64(8 * k)
            for k in range(8, n):
                high |= uint64(data[i + k]) << uint64(8 * (k - 8))
        return low, high | uint64(n) << uint64(56)
    low = uint64(0)
    k = i
    while k + 8 <= i + n:
        low = (low ^ eights[k]) * _GOLDEN
        low ^= low >> uint64(29)
        k += 8
    low = (low ^ eights[i + n - 8]) * _GOLDEN  # the last eight bytes, some of them twice
    return low ^ low >> uint64(32), uint64(255) << uint64(56) | uint64(n) << uint64(32)


@inlined
def _find(table, arena, data, i, n, low, high):  # type: ignore[no-untyped-def]
    """The slot of the n bytes at i.

    Of a free place where they belong; or -1 - the first of a group that is full.
    """
    h = (low ^ high * uint64(0xC4CEB9FE1A85EC53)) * _GOLDEN
    group = int64((h >> uint64(32)) & uint64(len(table) - 1)) & -_GROUP
    slot = -1 - group
    for place in range(group, group + _GROUP):
        found = table[place, 1]
        if found == uint64(0):
            slot = place
            break
        if table[place, 0] == low:
            if n <= _PACKED_BYTES:
                if found == high:  # the words are the bytes
                    slot = place
                    break
            elif found >> uint64(32) == high >> uint64(32):
                begin = int64(found & _LOW_HALF)
                k = 0
                while k < n and arena[begin + k] == data[i + k]:
                    k += 1
                if k == n:
                    slot = place
                    break
    return slot


@part
def _insert(table, arena, spill, used, slot, data, i, n, low, high, out, first, o):  # type: ignore[no-untyped-def]
    """Cache ids of the n bytes at i; empty a full cache.

    An entry: low, high; id 0 | id 1 << 32; count | id 2 << 32, or, of more than three ids, count | place << 32.
    """
    count = o - first
    if used[1] + n > len(arena) or used[2] + count > len(spill):
        table[:, 1] = uint64(0)
        used[:] = 0
        return
    if slot < 0:
        slot = -1 - slot + used[0] % _GROUP
    values = uint64(0)
    more = uint64(count)
    if count <= _INLINE_IDS:
        values = uint64(out[first])
        if count > 1:
            values |= uint64(out[first + 1]) << uint64(32)
        if count > 2:
            more |= uint64(out[first + 2]) << uint64(32)
    else:
        more |= uint64(used[2]) << uint64(32)
        for k in range(count):
            spill[used[2] + k] = out[first + k]
        used[2] += count
    if n > _PACKED_BYTES:
        high |= uint64(used[1])
        for k in range(n):
            arena[used[1] + k] = data[i + k]
        used[1] += n
    used[0] += 1
    table[slot, 0], table[slot, 1], table[slot, 2], table[slot, 3] = low, high, values, more


@kernel
def _encode_texts(data, eights, offsets, classes, letters, pairs, merged, table, arena, spill, used, close, out, ends):  # type: ignore[no-untyped-def]
    data, eights, offsets, classes = unowned(data), unowned(eights), unowned(offsets), unowned(classes)
    letters, pairs, merged = unowned(letters), unowned(pairs), unowned(merged)
    table, arena, spill, used = unowned(table), unowned(arena), unowned(spill), unowned(used)
    out, ends = unowned(out), unowned(ends)
    ranks = np.empty(_SEARCHED_BYTES, np.int64)
    o = 0
    for d in range(len(offsets) - 1):
        i = offsets[d]
        end = offsets[d + 1]
        while i < end:
            j = pretoken_end(data, eights, i, end, classes)
            n = j - i
            if n <= _CACHED_BYTES:
                low, high = _key_of(data, eights, i, n)
                slot = _find(table, arena, data, i, n, low, high)
                if slot >= 0 and table[slot, 1] != uint64(0):
                    more = table[slot, 3]
                    count = int64(more & _LOW_HALF)
                    if count <= _INLINE_IDS:
                        values = table[slot, 2]
                        out[o] = values & _LOW_HALF
                        out[o + 1] = values >> uint64(32)
                        out[o + 2] = more >> uint64(32)
                    else:
                        begin = int64(more >> uint64(32))
                        for k in range(count):
                            out[o + k] = spill[begin + k]
                    o += count
                else:
                    first = o
                    if n <= _SEARCHED_BYTES:
                        o = _merge_searching(data, i, j, letters, pairs, merged, ranks, out, o)
                    else:
                        o = _merge_with_heap(data, i, j, letters, pairs, merged, out, o)
                    _insert(table, arena, spill, used, slot, data, i, n, low, high, out, first, o)
            else:
                for k in range(i, j, _STRETCH_BYTES):
                    o = _merge_with_heap(data, k, min(j, k + _STRETCH_BYTES), letters, pairs, merged, out, o)
            i = j
        out[o] = close
        o += 1
        ends[d + 1] = o
    return o
