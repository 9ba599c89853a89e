"""Paragraphs and lines with a 128-bit hash of their words.

A *line* ends at LF; a *paragraph* is a run of lines that are not blank. Of each, leading, trailing and repeated ASCII
white space does not count. A run without a letter of any script or an ASCII digit is neither: the rule below a heading
or below the header of a table repeats no words. Two hashes of 64 bits are treated as equality: among 10^10 units the
chance of one false match is below 10^-18.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import int64, njit, uint64

from governance.kernels.buffers import LETTER, code_point_classes
from governance.kernels.code_points import decode

PARAGRAPH, LINE = 0, 1


@dataclass(frozen=True)
class Units:
    """The paragraphs and lines of some texts, in order.

    A paragraph comes after its lines.
    """

    row: npt.NDArray[np.int64]
    """The text."""
    kind: npt.NDArray[np.int8]
    """PARAGRAPH or LINE."""
    start: npt.NDArray[np.int64]
    """First byte within the text."""
    end: npt.NDArray[np.int64]
    """Byte after its last, the line end left out."""
    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]


def find_units(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], min_paragraph: int, min_line: int) -> Units:
    """Units of at least the given sizes in bytes, without extra blanks."""
    bound = int(np.count_nonzero(data[offsets[0] : offsets[-1]] == 10)) + len(offsets)
    row, kind = np.zeros(2 * bound, np.int64), np.zeros(2 * bound, np.int8)
    start, end = np.zeros(2 * bound, np.int64), np.zeros(2 * bound, np.int64)
    high, low = np.zeros(2 * bound, np.uint64), np.zeros(2 * bound, np.uint64)
    count = _find(data, offsets, code_point_classes(), min_paragraph, min_line, row, kind, start, end, high, low)
    return Units(row[:count], kind[:count], start[:count], end[:count], high[:count], low[:count])


@njit(inline="always")
def _blank(byte):  # type: ignore[no-untyped-def]
    return byte == 32 or 9 <= byte <= 13


@njit(inline="always")
def _hash(data, start, end):  # type: ignore[no-untyped-def]
    """Two hashes of the bytes with folded blanks, and the length."""
    high, low = uint64(0xCBF29CE484222325), uint64(0x9AE16A3B2F90404F)
    size = 0
    pending = False
    for i in range(start, end):
        byte = data[i]
        if _blank(byte):
            pending = size > 0
            continue
        if pending:
            high = (high ^ uint64(32)) * uint64(0x100000001B3)
            low = (low + uint64(33)) * uint64(0xC6A4A7935BD1E995)
            low ^= low >> uint64(47)
            size += 1
            pending = False
        high = (high ^ uint64(byte)) * uint64(0x100000001B3)
        low = (low + uint64(byte) + uint64(1)) * uint64(0xC6A4A7935BD1E995)
        low ^= low >> uint64(47)
        size += 1
    high ^= high >> uint64(32)
    high *= uint64(0xD6E8FEB86659FD93)
    return high ^ (high >> uint64(32)), low, size


@njit(inline="always")
def _has_words(data, start, end, classes):  # type: ignore[no-untyped-def]
    i = start
    while i < end:
        byte = data[i]
        if byte < 128:
            if 48 <= byte <= 57 or 65 <= (byte & 0xDF) <= 90:
                return True
            i += 1
        else:
            point, width = decode(data, i, end)
            if classes[point] & LETTER:
                return True
            i += width
    return False


@njit(nogil=True, cache=True)
def _find(data, offsets, classes, min_paragraph, min_line, row, kind, start, end, high, low):  # type: ignore[no-untyped-def]
    count = 0
    for text in range(len(offsets) - 1):
        first, last = offsets[text], offsets[text + 1]
        opened = closed = int64(-1)  # the paragraph that is being read: its first byte, and one after its last
        i = first
        while i <= last:
            j = i
            blank = True
            while j < last and data[j] != 10:
                if not _blank(data[j]):
                    blank = False
                j += 1
            if not blank:
                opened, closed = i if opened < 0 else opened, j
                one, two, size = _hash(data, i, j)
                if size >= min_line and _has_words(data, i, j, classes):
                    row[count], kind[count], start[count], end[count] = text, 1, i - first, j - first
                    high[count], low[count] = one, two
                    count += 1
            if opened >= 0 and (blank or j >= last):
                one, two, size = _hash(data, opened, closed)
                if size >= min_paragraph and _has_words(data, opened, closed, classes):
                    row[count], kind[count], start[count], end[count] = text, 0, opened - first, closed - first
                    high[count], low[count] = one, two
                    count += 1
                opened = int64(-1)
            i = j + 1
    return count
