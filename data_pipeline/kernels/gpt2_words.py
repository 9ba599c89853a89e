r"""Counts of the words of GPT-2's pre-tokenizer, over batches of texts.

The words are the matches of `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` (Radford et
al. 2019), which cover a text. A character is SPACE, LETTER, NUMBER or, with no bit, another; the caller's table says so
for every code point, so that the words are those of the library that it was asked of.

Price: a pass over the texts; 64 to 256 bytes for each distinct word, and its letters once or twice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import int64, uint64

from data_pipeline.kernels.words import lowest_byte
from governance.kernels.code_points import byte_at, decode
from governance.kernels.compiled import inlined, kernel

SPACE, LETTER, NUMBER = 1, 2, 4
_BLANK, _APOSTROPHE = 32, 39
_FACTOR = 0x9E3779B97F4A7C15
_FIRST, _HASH, _PLACE, _COUNT = range(4)  # columns of the table: the first 8 bytes as a number; start and size
_SIZE_BITS = 24
_SIZE_MASK = (1 << _SIZE_BITS) - 1
_ONES, _HIGH = 0x0101010101010101, 0x8080808080808080
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_FIRST_SLOTS = 1 << 13

Words = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], int, int]
"""A hash table with a row for each word, the letters of all words, how many words and how many letters there are."""


def no_words() -> Words:
    """An empty table."""
    return np.zeros((_FIRST_SLOTS, 4), np.int64), np.empty(4 * _FIRST_SLOTS, np.uint8), 0, 0


def add_words(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], classes: npt.NDArray[np.uint8], words: Words
) -> Words:
    """The table with the words of the texts, which are UTF-8.

    Text i is `data[offsets[i]:offsets[i + 1]]`, less than 16 MiB; 8 bytes or more follow the last.
    """
    eights = np.ndarray((len(data) - 7,), np.dtype("<u8"), data, strides=(1,))  # the number at every byte
    table, letters, used, held = words
    text, at = 0, int(offsets[0])
    while True:
        used, held, text, at = _add(data, eights, offsets, classes, table, letters, used, held, text, at)
        if text == len(offsets) - 1:
            return table, letters, used, held
        if 2 * used >= len(table):
            larger = np.zeros((4 * len(table), 4), np.int64)
            _move(table, larger)
            table = larger
        else:
            letters = np.concatenate((letters, np.empty(len(letters) + len(data), np.uint8)))


def counted_words(words: Words) -> tuple[bytes, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The words joined as they first occurred, their sizes and counts."""
    table, letters, _, held = words
    rows = table[table[:, _COUNT] > 0]
    rows = rows[np.argsort(rows[:, _PLACE])]
    return letters[:held].tobytes(), rows[:, _PLACE] & _SIZE_MASK, rows[:, _COUNT].copy()


@inlined
def _contraction(data, i, end):  # type: ignore[no-untyped-def]
    """Bytes of the contraction whose apostrophe is at `i`, or 0."""
    if i + 1 >= end:
        return 0
    first = byte_at(data, i + 1)
    if first == 115 or first == 116 or first == 109 or first == 100:  # s, t, m, d
        return 2
    if i + 2 < end:
        second = byte_at(data, i + 2)
        if (second == 101 and (first == 114 or first == 118)) or (second == 108 and first == 108):  # re, ve, ll
            return 3
    return 0


@inlined
def _letters_end(eights, i, end):  # type: ignore[no-untyped-def]
    """End of the ASCII letters from `i` on."""
    while i < end:
        low = eights[i] & ~uint64(_HIGH) | uint64(0x20 * _ONES)
        letters = (low + uint64(0x1F * _ONES)) & ~(low + uint64(0x05 * _ONES)) & ~eights[i] & uint64(_HIGH)
        if letters != uint64(_HIGH):
            return min(i + lowest_byte(letters ^ uint64(_HIGH)), end)
        i += 8
    return end


@inlined
def _word_end(data, eights, i, end, classes):  # type: ignore[no-untyped-def]
    """End of the word that begins at `i`."""
    first = i + (byte_at(data, i) == _BLANK)
    j = _letters_end(eights, first, end)
    if j > first and (j == end or byte_at(data, j) < 0x80):  # nearly all words
        return j
    point, width = decode(data, i, end)
    kind = classes[point]
    j = i + width
    if point == _APOSTROPHE:
        short = _contraction(data, i, end)
        if short:
            return i + short
    if point == _BLANK and j < end:  # it begins the word after it
        point, width = decode(data, j, end)
        if not classes[point] & SPACE:
            kind = classes[point]
            j += width
    last = i
    while j < end:
        point = byte_at(data, j)
        if point < 0x80:
            if classes[point] != kind:
                break
            last = j
            j += 1
            continue
        point, width = decode(data, j, end)
        if classes[point] != kind:
            break
        last = j
        j += width
    if kind & SPACE and j < end and last > i:
        return last  # the last of several spaces is the next word's
    return j


@inlined
def _tail(eights, place, size):  # type: ignore[no-untyped-def]
    """The next bytes, at most 8 of them, as a number."""
    return eights[place] & (_ALL >> uint64(64 - 8 * size)) if size < 8 else eights[place]


@inlined
def _name(eights, i, size):  # type: ignore[no-untyped-def]
    name, place = uint64(size), i
    while size > 8:
        name = (name ^ eights[place]) * uint64(_FACTOR)
        name ^= name >> uint64(29)
        place += 8
        size -= 8
    name = (name ^ _tail(eights, place, size)) * uint64(_FACTOR)
    return name ^ name >> uint64(32)


@kernel
def _move(table, larger):  # type: ignore[no-untyped-def]
    """Put the words into an empty table."""
    mask = uint64(len(larger) - 1)
    for old in range(len(table)):
        if table[old, _COUNT]:
            slot = uint64(table[old, _HASH]) & mask
            while larger[slot, _COUNT]:
                slot = (slot + uint64(1)) & mask
            larger[slot] = table[old]


@kernel
def _add(data, eights, offsets, classes, table, letters, used, held, text, at):  # type: ignore[no-untyped-def]
    """Count words from byte `at` of a text on.

    It ends early where there is no room for a new word: arrays that grew in here would cost every word more than its
    count does.
    """
    mask = uint64(len(table) - 1)
    while text < len(offsets) - 1:
        end = offsets[text + 1]
        while at < end:
            behind = _word_end(data, eights, at, end, classes)
            size = behind - at
            name, first = _name(eights, at, size), int64(_tail(eights, at, min(size, 8)))
            slot = name & mask
            while table[slot, _COUNT]:
                if table[slot, _FIRST] == first and table[slot, _HASH] == int64(name):
                    start, place = table[slot, _PLACE] >> _SIZE_BITS, int64(8)
                    if table[slot, _PLACE] & _SIZE_MASK == size:
                        while place < size and letters[start + place] == data[at + place]:
                            place += 1
                        if place >= size:
                            break
                slot = (slot + uint64(1)) & mask
            if not table[slot, _COUNT]:
                if 2 * used >= len(table) or held + size > len(letters):
                    return used, held, text, at
                for place in range(size):
                    letters[held + place] = data[at + place]
                table[slot, _FIRST], table[slot, _HASH] = first, int64(name)
                table[slot, _PLACE] = held << _SIZE_BITS | size
                held += size
                used += 1
            table[slot, _COUNT] += 1
            at = behind
        text += 1
    return used, held, text, at
