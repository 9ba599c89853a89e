"""Merges of byte-pair encoding, from distinct words and their counts.

The algorithm is that of Sennrich et al. 2016. The merges equal those of `tokenizers`: the most frequent pair is merged
next, of equal ones the one of the lowest ids, within a word from left to right, until the vocabulary is full or no pair
is left. Each symbol is in the list of the pair that it begins, so a merge costs its occurrences, where that library
visits whole words.

Price: 28 bytes for each byte of the words, and 64 to 128 for each pair that ever occurred.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import int32, int64, njit, uint64

from governance.kernels.compiled import kernel

_FACTOR = 0x9E3779B97F4A7C15
_NAME = (1 << 63) - 1
_NONE = -1
_FIRST_SLOTS = 1 << 16
_PAIR, _COUNT, _HEAD, _STEP = range(4)  # columns of the table of pairs: the step is the last that met the pair
_SYMBOL, _BEFORE, _BEHIND, _EARLIER, _LATER = range(5)  # columns of the symbols: neighbours in the word and in the list

Integers = npt.NDArray[np.int64]


@njit(inline="always")
def _slot_of(key, table):  # type: ignore[no-untyped-def]
    """The slot of a key, or the free one where it belongs."""
    mask = uint64(len(table) - 1)
    slot = (uint64(key) * uint64(_FACTOR) >> uint64(24)) & mask
    while table[slot, _PAIR] != _NONE and table[slot, _PAIR] != key:
        slot = (slot + uint64(1)) & mask
    return slot


@njit
def _larger(table):  # type: ignore[no-untyped-def]
    new = np.full((2 * len(table), 4), _NONE, np.int64)
    for old in range(len(table)):
        if table[old, _PAIR] != _NONE:
            new[_slot_of(table[old, _PAIR], new)] = table[old]
    return new


@njit(inline="always")
def _pair_at(at, symbols):  # type: ignore[no-untyped-def]
    return int64(symbols[at, _SYMBOL]) << 32 | int64(symbols[symbols[at, _BEHIND], _SYMBOL])


@njit
def _leave(at, symbols, weights, table):  # type: ignore[no-untyped-def]
    """Take a symbol off the list of the pair that it begins."""
    slot = _slot_of(_pair_at(at, symbols), table)
    table[slot, _COUNT] -= weights[at]
    earlier, later = symbols[at, _EARLIER], symbols[at, _LATER]
    if earlier >= 0:
        symbols[earlier, _LATER] = later
    else:
        table[slot, _HEAD] = later
    if later >= 0:
        symbols[later, _EARLIER] = earlier


@njit
def _enter(at, step, symbols, weights, table, met):  # type: ignore[no-untyped-def]
    """Put a symbol on the list of the pair that it begins.

    The result is 1 for a new pair, else 0; `met` gets each pair of this step once.
    """
    key = _pair_at(at, symbols)
    slot = _slot_of(key, table)
    new = table[slot, _PAIR] == _NONE
    if new:
        table[slot, _PAIR], table[slot, _COUNT] = key, 0
    table[slot, _COUNT] += weights[at]
    later = table[slot, _HEAD]
    symbols[at, _EARLIER], symbols[at, _LATER] = _NONE, int32(later)
    if later >= 0:
        symbols[later, _EARLIER] = at
    table[slot, _HEAD] = at
    if table[slot, _STEP] != step:
        table[slot, _STEP] = step
        met.append(key)
    return int64(new)


@njit
def _join(at, merged, step, symbols, weights, table, met):  # type: ignore[no-untyped-def]
    """Merge a symbol with the next one; count new pairs."""
    left, right = symbols[at, _BEFORE], symbols[at, _BEHIND]
    after = symbols[right, _BEHIND]
    if left >= 0:
        _leave(left, symbols, weights, table)
    _leave(at, symbols, weights, table)
    if after >= 0:
        _leave(right, symbols, weights, table)
        symbols[after, _BEFORE] = at
    symbols[at, _SYMBOL], symbols[at, _BEHIND] = merged, after
    new = int64(0)
    if left >= 0:
        new += _enter(left, step, symbols, weights, table, met)
    if after >= 0:
        new += _enter(at, step, symbols, weights, table, met)
    return new


@kernel
def _merges(symbols, weights, tokens, known):  # type: ignore[no-untyped-def]
    """Merges as rows of ids: left, right, merged.

    `tokens` has a row per id: hash and factor, by which a text that comes before is multiplied; 0 for special tokens.
    """
    table = np.full((_FIRST_SLOTS, 4), _NONE, np.int64)
    names = np.full((1 << (2 + int64(np.ceil(np.log2(len(tokens))))), 2), _NONE, np.int64)  # hash -> id
    for token in range(known):
        if tokens[token, 1]:
            name = int64(tokens[token, 0] & uint64(_NAME))
            slot = _slot_of(name, names)
            names[slot, 0], names[slot, 1] = name, token
    rows = [(int64(0), int64(0), int64(0))]
    heap = [(int64(0), int64(0))]  # of (-count, pair), of the pairs that occur `least` times or more
    met = [int64(0)]
    heap.clear()
    used = step = least = int64(0)
    for at in range(len(symbols)):
        if symbols[at, _BEHIND] >= 0:
            used += _enter(at, 0, symbols, weights, table, met)
            if 2 * used > len(table):
                table = _larger(table)
    while known < len(tokens):
        if not heap:
            most = table[:, _COUNT].max()
            if most < 1:
                break
            least = max(int64(1), most // 2)
            for slot in range(len(table)):
                if table[slot, _COUNT] >= least:
                    heap.append((-table[slot, _COUNT], table[slot, _PAIR]))
            heapq.heapify(heap)
        count, key = heapq.heappop(heap)
        now = table[_slot_of(key, table), _COUNT]
        if now != -count:
            if now >= least:
                heapq.heappush(heap, (-now, key))
            continue
        left, right = key >> 32, key & 0xFFFFFFFF
        tokens[known, 0] = tokens[left, 0] * tokens[right, 1] + tokens[right, 0]
        name = int64(tokens[known, 0] & uint64(_NAME))
        place = _slot_of(name, names)
        if names[place, 0] == _NONE:
            names[place, 0], names[place, 1] = name, known
            tokens[known, 1] = tokens[left, 1] * tokens[right, 1]
            known += 1
        merged = names[place, 1]
        rows.append((left, right, merged))
        step += 1
        met.clear()
        at = table[_slot_of(key, table), _HEAD]
        while at >= 0:
            while left == right and symbols[at, _BEFORE] >= 0 and symbols[symbols[at, _BEFORE], _SYMBOL] == left:
                at = int64(symbols[at, _BEFORE])  # of "aaa" the first two
            while at >= 0 and symbols[at, _BEHIND] >= 0 and _pair_at(at, symbols) == key:
                used += _join(at, merged, step, symbols, weights, table, met)
                if 2 * used + 2 > len(table):
                    table = _larger(table)
                at = int64(symbols[at, _BEHIND])
            at = table[_slot_of(key, table), _HEAD]
        for pair in met:
            count = table[_slot_of(pair, table), _COUNT]
            if count >= least:
                heapq.heappush(heap, (-count, pair))
    return np.array(rows)[1:]


def merges(
    letters: bytes, sizes: Integers, counts: Integers, pieces: Sequence[bytes], vocabulary_size: int
) -> Integers:
    """Merges in order, as rows of ids: left, right, both together.

    `letters` are the words joined, with the bytes and the occurrences of each. `pieces` are the known tokens by id: all
    single bytes, and special tokens, whose ids are those of merges that spell them (empty where none can).
    """
    ids = np.zeros(256, np.int32)
    tokens = np.zeros((max(len(pieces), vocabulary_size), 2), np.uint64)
    for index, piece in enumerate(pieces):
        if piece:
            ids[piece[0]] = index if len(piece) == 1 else ids[piece[0]]
            name = functools.reduce(lambda name, byte: (name * _FACTOR + byte + 1) % (1 << 64), piece, 0)
            tokens[index] = name, pow(_FACTOR, len(piece), 1 << 64)
    ends = np.cumsum(sizes)
    symbols = np.full((len(letters), 5), _NONE, np.int32)
    symbols[:, _SYMBOL] = ids[np.frombuffer(letters, np.uint8)]
    symbols[:, _BEFORE] = np.arange(-1, len(letters) - 1)
    symbols[:, _BEHIND] = np.arange(1, len(letters) + 1)
    symbols[ends - 1, _BEHIND] = symbols[ends - sizes, _BEFORE] = _NONE
    return np.asarray(_merges(symbols, np.repeat(counts, sizes), tokens, len(pieces)))
