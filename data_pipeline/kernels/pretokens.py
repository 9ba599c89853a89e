r"""Pre-tokens of byte-level BPE by GPT-2's pattern, without regular expressions.

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

(Radford et al. 2019). What is a letter, a number or a space is told by a table of all code points, which the caller
takes from the library that defines the ids. Runs of ASCII letters are read eight bytes at a time.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from governance.kernels.compiled import inlined

OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3  # the classes of code points

_ONE = np.uint64(1)
_HIGH_BITS = np.uint64(0x8080808080808080)  # one bit of each of a word's eight bytes
_SEVEN_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
_CASE_BITS = np.uint64(0x2020202020202020)
_TO_A = np.uint64(0x1F1F1F1F1F1F1F1F)  # added, lifts 'a' and what follows to the high bit
_PAST_Z = np.uint64(0x0505050505050505)  # added, lifts what follows 'z' to the high bit
_PLACES = np.uint64(0x0001020304050607)  # times 1 << 8 k, has k in its top byte


@inlined
def _class_at(data, i, end, classes):  # type: ignore[no-untyped-def]
    """Class and width of the character at i, packed.

    class << 3, with the number of bytes below.
    """
    c = int64(data[i])
    width = 1
    if c >= 0xC0:
        if c < 0xE0 and i + 1 < end:
            c, width = (c & 0x1F) << 6 | (int64(data[i + 1]) & 0x3F), 2
        elif c < 0xF0 and i + 2 < end:
            c = (c & 0x0F) << 12 | (int64(data[i + 1]) & 0x3F) << 6 | (int64(data[i + 2]) & 0x3F)
            width = 3
        elif i + 3 < end:
            c = (c & 0x07) << 18 | (int64(data[i + 1]) & 0x3F) << 12
            c |= (int64(data[i + 2]) & 0x3F) << 6 | (int64(data[i + 3]) & 0x3F)
            c, width = min(c, 0x10FFFF), 4
    return int64(classes[c]) << 3 | width


@inlined
def _contraction(c, d):  # type: ignore[no-untyped-def]
    """Length of an English contraction after an apostrophe, or 0."""
    width = 0
    if c == 115 or c == 116 or c == 109 or c == 100:
        width = 2
    elif (c == 114 and d == 101) or (c == 118 and d == 101) or (c == 108 and d == 108):
        width = 3
    return width


@inlined
def _leading_letters(word):  # type: ignore[no-untyped-def]
    """Number of leading ASCII letters in eight bytes."""
    lower = (word | _CASE_BITS) & _SEVEN_BITS
    others = ~((lower + _TO_A) & ~(lower + _PAST_Z) & ~word) & _HIGH_BITS
    if others == uint64(0):
        return 8
    lowest = (others & (~others + _ONE)) >> uint64(7)
    return int64((lowest * _PLACES) >> uint64(56))


@inlined
def pretoken_end(data, eights, i, end, classes):  # type: ignore[no-untyped-def]
    """One past the last byte of the pre-token that begins at i.

    It has one way out, for numba then proves that it need not count references to the arrays.
    """
    first = int64(data[i])
    j = i
    if first == 39 and i + 1 < end:
        j += _contraction(data[i + 1], data[i + 2] if i + 2 < end else 0)
    if j == i:
        if first == 32 and i + 1 < end:
            j += 1
        found = _class_at(data, j, end, classes)
        kind = found >> 3
        last = i
        if kind == SPACE:
            j = i
        elif kind == LETTER:
            count = 8
            while count == 8 and j + 8 <= end:
                count = _leading_letters(eights[j])
                j += count
        while j < end:
            found = _class_at(data, j, end, classes)
            if found >> 3 != kind:
                break
            last = j
            j += found & 7
        if kind == SPACE and j < end and last > i:
            j = last  # the last white space may lead the next pre-token
    return j
