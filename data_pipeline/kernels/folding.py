r"""Word folding for passage search: case, form, accents and punctuation removed.

A character is folded by itself, by a table, so that the kernel is one look-up per character:

    1. NFKC, case folding, NFKC (what Unicode calls NFKC_Casefold): "Ｆ" is "f", "ﬁ" is "fi", "ß" is "ss";
    2. NFD, combining marks of a class other than 0 go (accents, vowel points, tone marks), NFC: "é" is "e", "й" is "и".
       The vowel signs of Indic scripts have class 0 and stay.

Of what is left, letters, digits and marks belong to words; apostrophes and characters that are not seen (soft hyphen,
joiners) are passed over, so that "don't", "don’t" and "dont" are one word; everything else parts words. A character of
a script without spaces (Han, kana, Thai ...) is a word by itself. A backslash parts words together with an `n`, `r` or
`t` after it, and `\uXXXX` is the character of that number: so a text and its form in JSON (RFC 8259) have the same
words. A word is known by a 64-bit hash: FNV-1a over its code points, mixed.

Two measures say how much a text says. Its *letters*: of each word the letters, a Han character as two, digits not at
all (a row of numbers, however long, is a commonplace). Its *length*, in tenths of a word of a language with spaces: a
character of a script without them is a part of a word, 6 tenths for Han, 4 for kana, 2 for the others, as words there
have about 1.7, 2.5 and 5 characters.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import numpy.typing as npt
from numba import int64, njit, uint64

from governance.kernels.buffers import UNSPACED, code_point_classes

PARTS = 0  # parts words
PASSED = -1  # is not there
ALONE = 1 << 24  # with a code point: a word by itself
HAN = 1 << 25
KANA = 1 << 26
NUMBER = 1 << 27  # no letter
_CODE_POINT = (1 << 24) - 1
_TENTHS = 20  # a word's measure holds its length above this many bits, its letters below
_APOSTROPHES = "'`´ʻʼˈ‘’‛′＇\u055a\ua78c"
_HAN_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_TABLE_END = 0x1F000  # above: emoji and unassigned part words, Han is a word by itself, selectors are passed over

Table = npt.NDArray[np.int32]


def fold(character: str) -> str:
    """Folded form of one character; "" for dropped marks."""
    value = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", character).casefold())
    value = "".join(part for part in unicodedata.normalize("NFD", value) if not unicodedata.combining(part))
    return unicodedata.normalize("NFC", value)


def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"


def _alone(point: int) -> int:
    """The entry of a character that is a word by itself."""
    if any(first <= point <= last for first, last in _HAN_RANGES):
        return point | ALONE | HAN
    return point | ALONE | (KANA if 0x3040 <= point <= 0x31FF else 0)


def _entry(point: int, classes: npt.NDArray[np.uint8]) -> int | str:
    """Table entry of a code point, or its several characters."""
    character = chr(point)
    kind = unicodedata.category(character)
    if character in _APOSTROPHES or kind in ("Cf", "Me"):
        return PASSED
    if kind == "Cs":
        return PARTS
    folded = fold(character)
    if not folded:
        return PASSED
    if classes[point] & UNSPACED and _in_word(character):
        return _alone(ord(folded) if len(folded) == 1 else point)
    inside = [_in_word(part) for part in folded]
    if not any(inside):
        return PARTS
    folded = folded[inside.index(True) : len(inside) - inside[::-1].index(True)]  # "⑴" is "1"
    if any(classes[ord(part)] & UNSPACED for part in folded) or not all(map(_in_word, folded)):
        return _alone(ord(folded) if len(folded) == 1 else point)  # "½", "℀", "㈱": a word of its own
    if len(folded) > 1:
        return folded
    return ord(folded) | (NUMBER if unicodedata.category(folded)[0] == "N" else 0)


@functools.cache
def folding() -> tuple[Table, Table]:
    """Folding table of 0x110000 code points (4.5 MB) and multi-character forms.

    An entry is PARTS, PASSED, a code point (with ALONE, HAN, KANA, NUMBER), or -2 - k: then `several[k]` characters
    follow at `k + 1`.
    """
    classes = code_point_classes()
    table = np.zeros(0x110000, np.int32)
    several: list[int] = []
    for point in range(_TABLE_END):
        entry = _entry(point, classes)
        if isinstance(entry, str):
            table[point] = -2 - len(several)
            several += [len(entry), *map(ord, entry)]
        else:
            table[point] = entry
    table[0x20000:0x323B0] = np.arange(0x20000, 0x323B0) | ALONE | HAN
    for point in range(0x2F800, 0x2FA1E):  # compatibility ideographs are other Han characters
        table[point] = _alone(ord(fold(chr(point))[0]))
    table[0xE0000:0xE1000] = PASSED
    table.flags.writeable = False
    return table, np.array(several, np.int32)


@njit(inline="always")
def mix(h):  # type: ignore[no-untyped-def]
    """The finaliser of MurmurHash3 (public domain)."""
    h ^= h >> uint64(33)
    h *= uint64(0xFF51AFD7ED558CCD)
    h ^= h >> uint64(33)
    h *= uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> uint64(33))


@njit(inline="always")
def _hexadecimal(data, i):  # type: ignore[no-untyped-def]
    """The number of four hexadecimal digits, or -1."""
    value = int64(0)
    for k in range(i, i + 4):
        c = int64(data[k])
        if 48 <= c <= 57:
            digit = c - 48
        elif 97 <= (c | 32) <= 102:
            digit = (c | 32) - 87
        else:
            return int64(-1)
        value = value << 4 | digit
    return value


@njit(cache=True, nogil=True)
def fold_words(data, start, end, table, several, words, spans):  # type: ignore[no-untyped-def]
    """Write each word of `data[start:end]` into `words`.

    `spans` gets the first byte of each, the byte after it, and its measures. Bytes are counted from `start`. Return
    the number of words, for which `most_words` is the room.
    """
    basis, prime = uint64(0xCBF29CE484222325), uint64(0x100000001B3)
    h = basis
    count = int64(0)
    inside = False
    i = start
    while i <= end:
        width = 1
        entry = int64(0)
        if i < end:
            c = int64(data[i])
            if c < 0x80:
                entry = int64(table[c])
                if c == 92 and i + 1 < end:
                    following = data[i + 1]
                    if following == 110 or following == 114 or following == 116:
                        width = 2
                    elif following == 117 and i + 5 < end:
                        point = _hexadecimal(data, i + 2)
                        if point >= 0:
                            entry, width = int64(table[point]), 6
            else:
                if c < 0xE0 and i + 1 < end:
                    c, width = (c & 0x1F) << 6 | (int64(data[i + 1]) & 0x3F), 2
                elif c < 0xF0 and i + 2 < end:
                    c = (c & 0x0F) << 12 | (int64(data[i + 1]) & 0x3F) << 6 | (int64(data[i + 2]) & 0x3F)
                    width = 3
                elif i + 3 < end:
                    c = (c & 0x07) << 18 | (int64(data[i + 1]) & 0x3F) << 12
                    c |= (int64(data[i + 2]) & 0x3F) << 6 | (int64(data[i + 3]) & 0x3F)
                    width = 4
                entry = int64(table[c]) if c < 0x110000 else int64(0)
        if entry != -1:
            alone = entry > 0 and entry & ALONE != 0
            if inside and (entry == 0 or alone):
                words[count] = mix(h)
                count += 1
                inside = False
            if alone:
                words[count] = mix((basis ^ uint64(entry & _CODE_POINT)) * prime)
                spans[count, 0], spans[count, 1] = i - start, i + width - start
                if entry & HAN:
                    spans[count, 2] = 6 << _TENTHS | 2
                else:
                    spans[count, 2] = (4 if entry & KANA else 2) << _TENTHS | 1
                count += 1
            elif entry != 0:
                if not inside:
                    h, inside = basis, True
                    spans[count, 0], spans[count, 2] = i - start, 10 << _TENTHS
                if entry > 0:
                    h = (h ^ uint64(entry & _CODE_POINT)) * prime
                    spans[count, 2] += entry & NUMBER == 0
                else:
                    first = -2 - entry
                    for k in range(first + 1, first + 1 + several[first]):
                        h = (h ^ uint64(several[k])) * prime
                    spans[count, 2] += several[first]
                spans[count, 1] = i + width - start
        i += width
    return count


def most_words(size: int) -> int:
    """The most words that a text of `size` bytes may have.

    A character that is a word by itself may take two bytes ("½"), and part a word of one byte from the next: "a½a½".
    """
    return 2 * size // 3 + 1


@njit(cache=True, nogil=True)
def _all_words(data, offsets, table, several, capacity, out, measures):  # type: ignore[no-untyped-def]
    words = np.empty(capacity, np.uint64)
    spans = np.empty((capacity, 3), np.int32)
    filled = 0
    for text in range(len(offsets) - 1):
        count = fold_words(data, offsets[text], offsets[text + 1], table, several, words, spans)
        out[filled : filled + count] = words[:count]
        for k in range(count):
            letters = spans[k, 2] & ((1 << _TENTHS) - 1)
            measures[text, 0] += 1
            measures[text, 1] += spans[k, 2] >> _TENTHS
            measures[text, 2] += letters
            measures[text, 3] += letters == 0
        filled += count
    return filled


def word_hashes(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The words of n texts end to end.

    For each text there are its number of words, its length in tenths, its letters and its numbers.
    """
    capacity = most_words(int(np.diff(offsets).max(initial=0)))
    words = np.empty(most_words(int(offsets[-1] - offsets[0])) + len(offsets), np.uint64)
    measures = np.zeros((len(offsets) - 1, 4), np.int64)
    filled = _all_words(data, offsets, *folding(), capacity, words, measures)
    return words[:filled].copy(), measures
