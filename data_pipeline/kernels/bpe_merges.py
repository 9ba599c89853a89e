"""Merges of byte-pair encoding, from distinct words and their counts.

The algorithm is that of Sennrich et al. 2016. The merges equal those of `tokenizers`: the most frequent pair is merged
next, of equal ones the one of the lowest ids, within a word from left to right, until the vocabulary is full or no pair
is left.

A pair occurs only where its younger token was made, and from then on ever less often. So a pair that is rare at once
stays so, and only the others are *followed*: each has a number, the places where it began, and a count that falls as
other merges take its occurrences. A merge costs its occurrences, where `tokenizers` visits whole words. When no
followed pair is left, the bound sinks, and all symbols are counted again.

Price: 24 bytes for each byte of the words, and 4 for each occurrence of a followed pair; with the copies of setting
up, a peak of 43 bytes for each byte of the words.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import int64, uint64

from governance.kernels.compiled import inlined, kernel, part

_FACTOR = 0x9E3779B97F4A7C15
_NAME = (1 << 63) - 1
_NONE = -1
_FIRST_SLOTS = 1 << 16
_SHARE = 32
"""At first a pair is followed if it occurs at most this many times less often than a token of a uniform text."""
_SINK = 8  # the bound falls to this part
_SYMBOL, _BEFORE, _BEHIND, _PAIR = range(4)  # columns of the symbols: neighbours in the word, number of the pair begun
_KEY, _COUNT, _START, _SIZE = range(4)  # columns of the pairs: the last two are where their places are
_TIMES, _PLACES, _NUMBER = range(3)  # columns of tables of pairs that may be followed: `_NUMBER` from 1

Integers = npt.NDArray[np.int64]


@inlined
def _slot_of(key, keys):  # type: ignore[no-untyped-def]
    """The slot of a key, or the free one where it belongs."""
    mask = uint64(len(keys) - 1)
    slot = (uint64(key) * uint64(_FACTOR) >> uint64(24)) & mask
    while keys[slot] != _NONE and keys[slot] != key:
        slot = (slot + uint64(1)) & mask
    return slot


@inlined
def _pair_at(at, symbols):  # type: ignore[no-untyped-def]
    return int64(symbols[at, _SYMBOL]) << 32 | int64(symbols[symbols[at, _BEHIND], _SYMBOL])


@part
def _larger(keys, found):  # type: ignore[no-untyped-def]
    new_keys, new_found = np.full(2 * len(keys), _NONE, np.int64), np.zeros((2 * len(keys), 3), np.int64)
    for old in range(len(keys)):
        if keys[old] != _NONE:
            slot = _slot_of(keys[old], new_keys)
            new_keys[slot], new_found[slot] = keys[old], found[old]
    return new_keys, new_found


@part
def _count_all(symbols, weights):  # type: ignore[no-untyped-def]
    """Occurrences of all pairs that are not followed, in a hash table."""
    keys, found = np.full(_FIRST_SLOTS, _NONE, np.int64), np.zeros((_FIRST_SLOTS, 3), np.int64)
    used = 0
    for at in range(len(symbols)):
        if symbols[at, _PAIR] == _NONE and symbols[at, _SYMBOL] >= 0 and symbols[at, _BEHIND] >= 0:
            key = _pair_at(at, symbols)
            slot = _slot_of(key, keys)
            used += keys[slot] == _NONE
            keys[slot] = key
            found[slot, _TIMES] += weights[at]
            found[slot, _PLACES] += 1
            if 2 * used > len(keys):
                keys, found = _larger(keys, found)
    return keys, found


@part
def _link_all(symbols, keys, found, pairs, places):  # type: ignore[no-untyped-def]
    """Note the places of the pairs that are followed from now on."""
    for at in range(len(symbols)):
        if symbols[at, _PAIR] == _NONE and symbols[at, _SYMBOL] >= 0 and symbols[at, _BEHIND] >= 0:
            number = found[_slot_of(_pair_at(at, symbols), keys), _NUMBER]
            if number:
                _follow(at, number - 1, symbols, pairs, places)


@inlined
def _follow(at, pair, symbols, pairs, places):  # type: ignore[no-untyped-def]
    symbols[at, _PAIR] = pair
    places[pairs[pair, _START] + pairs[pair, _SIZE]] = at
    pairs[pair, _SIZE] += 1


@inlined
def _leave(at, weight, symbols, pairs):  # type: ignore[no-untyped-def]
    """Take an occurrence off the pair that begins at `at`."""
    pair = symbols[at, _PAIR]
    if pair >= 0:
        pairs[pair, _COUNT] -= weight
        symbols[at, _PAIR] = _NONE


@part
def _join(pair, merged, symbols, weights, pairs, places, joined):  # type: ignore[no-untyped-def]
    """Merge all occurrences of a pair.

    Write their places to `joined`, and return how many there are. Places ascend, those of each pair and so those of
    each token made here: of "aaa" the first two are merged.
    """
    count = 0
    for place in range(pairs[pair, _START], pairs[pair, _START] + pairs[pair, _SIZE]):
        at = places[place]
        if symbols[at, _PAIR] != pair:  # another merge took it
            continue
        weight = weights[at]
        left, right = symbols[at, _BEFORE], symbols[at, _BEHIND]
        after = symbols[right, _BEHIND]
        if left >= 0:
            _leave(left, weight, symbols, pairs)
        _leave(at, weight, symbols, pairs)
        _leave(right, weight, symbols, pairs)
        symbols[at, _SYMBOL], symbols[at, _BEHIND] = merged, after
        symbols[right, _SYMBOL] = _NONE
        if after >= 0:
            symbols[after, _BEFORE] = at
        joined[count] = at
        count += 1
    return count


@inlined
def _meet(slot, at, weight, symbols, near, met, count):  # type: ignore[no-untyped-def]
    if near[slot, _PLACES] == 0:
        met[count] = slot
        count += 1
    near[slot, _TIMES] += weight
    near[slot, _PLACES] += 1
    near[slot, _NUMBER] = max(near[slot, _NUMBER], symbols[at, _PAIR] + 1)
    return count


@part
def _count_near(joined, merged, symbols, weights, near, met):  # type: ignore[no-untyped-def]
    """Count a token's pairs by its neighbour.

    The token is at `joined`. `near` has a row for each id before the token, then one for each after it.
    Return how many it meets.
    """
    count = 0
    for at in joined:
        weight = weights[at]
        left, right = symbols[at, _BEFORE], symbols[at, _BEHIND]
        if left >= 0 and symbols[left, _SYMBOL] != merged:  # else it is met from there
            count = _meet(int64(symbols[left, _SYMBOL]), left, weight, symbols, near, met, count)
        if right >= 0:
            count = _meet(int64(symbols[right, _SYMBOL]) + len(near) // 2, at, weight, symbols, near, met, count)
    return count


@part
def _link_near(joined, merged, symbols, near, pairs, places):  # type: ignore[no-untyped-def]
    for at in joined:
        left, right = symbols[at, _BEFORE], symbols[at, _BEHIND]
        if left >= 0 and symbols[left, _SYMBOL] != merged:
            number = near[symbols[left, _SYMBOL], _NUMBER]
            if number:
                _follow(left, number - 1, symbols, pairs, places)
        if right >= 0:
            number = near[symbols[right, _SYMBOL] + len(near) // 2, _NUMBER]
            if number:
                _follow(at, number - 1, symbols, pairs, places)


@kernel
def _merges(symbols, weights, tokens, known, least):  # type: ignore[no-untyped-def]
    """Merges as rows of ids: left, right, merged.

    `tokens` has a row per id: hash and factor, by which a text that comes before is multiplied; 0 for special tokens.
    Pairs are followed at first from `least` occurrences on.
    """
    names = np.full(1 << (2 + int64(np.ceil(np.log2(len(tokens))))), _NONE, np.int64)  # hash -> id
    ids = np.zeros(len(names), np.int64)
    for token in range(known):
        if tokens[token, 1]:
            name = int64(tokens[token, 0] & uint64(_NAME))
            place = _slot_of(name, names)
            names[place], ids[place] = name, token
    rows = [(int64(0), int64(0), int64(0))]
    heap = [(int64(0), int64(0), int64(0))]  # (-count, key, number) of the pairs that occur `least` times or more
    heap.clear()
    pairs, used = np.zeros((_FIRST_SLOTS, 4), np.int64), int64(0)
    places, filled = np.zeros(len(symbols), np.int32), int64(0)
    near, met = np.zeros((2 * len(tokens), 3), np.int64), np.zeros(2 * len(tokens), np.int64)
    joined = np.zeros(1, np.int64)
    begun = False
    while known < len(tokens):
        if not heap:
            if begun and least == 1:
                break
            least, begun = max(int64(1), least // _SINK) if begun else least, True
            keys, found = _count_all(symbols, weights)
            chosen = np.flatnonzero(found[:, _TIMES] >= least)
            pairs, places = _with_room(pairs, used + len(chosen)), _with_places(places, filled + len(symbols))
            for slot in chosen:
                used, filled = _begin(keys[slot], found[slot], pairs, used, filled)
            _link_all(symbols, keys, found, pairs, places)
            for pair in range(used):
                if pairs[pair, _COUNT] >= least:
                    heap.append((-pairs[pair, _COUNT], pairs[pair, _KEY], pair))
            heapq.heapify(heap)
            continue
        count, key, pair = heapq.heappop(heap)
        now = pairs[pair, _COUNT]
        if now != -count:
            if now >= least:
                heapq.heappush(heap, (-now, key, pair))
            continue
        left, right = key >> 32, key & 0xFFFFFFFF
        tokens[known, 0] = tokens[left, 0] * tokens[right, 1] + tokens[right, 0]
        name = int64(tokens[known, 0] & uint64(_NAME))
        place = _slot_of(name, names)
        new = names[place] == _NONE
        if new:
            names[place], ids[place] = name, known
            tokens[known, 1] = tokens[left, 1] * tokens[right, 1]
            known += 1
        merged = ids[place]
        rows.append((left, right, merged))
        if len(joined) < pairs[pair, _SIZE]:
            joined = np.zeros(2 * pairs[pair, _SIZE], np.int64)
        made = joined[: _join(pair, merged, symbols, weights, pairs, places, joined)]
        if not new:  # a token of two ways: its pairs are counted again
            made = np.flatnonzero(symbols[:, _SYMBOL] == merged)
        count = _count_near(made, merged, symbols, weights, near, met)
        pairs, places = _with_room(pairs, used + count), _with_places(places, filled + 2 * len(made))
        for slot in met[:count]:
            if near[slot, _TIMES] >= least or near[slot, _NUMBER]:
                behind = slot - len(tokens)
                key = merged << 32 | behind if behind >= 0 else slot << 32 | merged
                used, filled = _begin(key, near[slot], pairs, used, filled)
                if near[slot, _TIMES] >= least:
                    heapq.heappush(heap, (-near[slot, _TIMES], key, near[slot, _NUMBER] - 1))
        _link_near(made, merged, symbols, near, pairs, places)
        for slot in met[:count]:
            near[slot] = 0
    return np.array(rows)[1:]


@part
def _begin(key, found, pairs, used, filled):  # type: ignore[no-untyped-def]
    """Give a pair room for its places, and a number.

    Return the new ends of both tables.
    """
    if found[_NUMBER] == 0:
        used += 1
        found[_NUMBER] = used
    row = pairs[found[_NUMBER] - 1]
    row[_KEY], row[_COUNT], row[_START], row[_SIZE] = key, found[_TIMES], filled, 0
    return used, filled + found[_PLACES]


@part
def _with_room(pairs, count):  # type: ignore[no-untyped-def]
    if count <= len(pairs):
        return pairs
    larger = np.zeros((2 * count, 4), np.int64)
    larger[: len(pairs)] = pairs
    return larger


@part
def _with_places(places, count):  # type: ignore[no-untyped-def]
    if count <= len(places):
        return places
    larger = np.zeros(count + count // 2, np.int32)
    larger[: len(places)] = places
    return larger


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
    symbols = np.full((len(letters), 4), _NONE, np.int32)
    symbols[:, _SYMBOL] = ids[np.frombuffer(letters, np.uint8)]
    symbols[:, _BEFORE] = np.arange(-1, len(letters) - 1)
    symbols[:, _BEHIND] = np.arange(1, len(letters) + 1)
    symbols[ends - 1, _BEHIND] = symbols[ends - sizes, _BEFORE] = _NONE
    least = max(1, int(sizes @ counts / (_SHARE * len(tokens))))
    return np.asarray(_merges(symbols, np.repeat(counts, sizes), tokens, len(pieces), least))
