"""Marks at the tags of a page (`readers/main_text.py`).

Pages are read as UTF-8, once, from one `<` to the next. A tag is one of the names, then nothing or white space and
characters other than `<` and `>`, then `>`.

Price: 1 ns per byte.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint8, uint64

from data_pipeline.readers.pages.kernels.page_lines import copy, count_of
from governance.kernels.compiled import kernel, part

NAMES = (
    "a", "div", "section", "article", "main", "aside", "td", "th", "form", "header", "pre",
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "figcaption", "time",
)  # fmt: skip
"""Names of the tags, by number; closing tags of the first `CLOSED` get a mark too."""
CLOSED = 11
CLOSING, BARE, WITH_ATTRIBUTES = range(3)
"""Rows of a table of marks by name."""
UNKNOWN, NO_MARK, BY_LINK = 0, -1, -2
"""Entries of that table other than marks: the attributes decide; none; that of a link where the tag has an `href`."""
BEFORE = 1 << 16
"""Bit of a mark that precedes its tag; the bytes below are its letter and its weight's letter (0: none)."""
START, END, MARKED = range(3)
"""Columns of a tag: its place in the bytes, and its mark."""
SOUGHT = ("nav", "footer", "dialog", "template", "button", "select")
"""Names of tags of which a page is asked whether it has one: a bit for each."""
ROLE, HIDDEN, MODAL, SPELLED = (bit << len(SOUGHT) for bit in (1, 2, 4, 8))
"""Bits of a page that holds the word, in letters of any case; SPELLED: a role may be written with references."""
_MARK = 2
_LESS, _MORE, _SLASH, _EQUALS, _QUOTE, _APOSTROPHE, _AND, _R, _LINK = map(ord, "<>/=\"'&rL")
_LONGEST_ROLE = 16  # letters; a longer value is not one that is skipped
_HREF, _ROLE, _HIDD, _MODA = (int.from_bytes(word, "little") for word in (b"href", b"role", b"hidd", b"moda"))
_LOW_BITS, _HIGH_BITS = uint64(0x0101010101010101), uint64(0x8080808080808080)
_LESSES, _MORES, _SLASHES, _LOWER = (uint64(0x0101010101010101 * ord(letter)) for letter in "<>/ ")
_CONTROLS = uint64(0x2121212121212121)  # taken off, lowers blanks and control characters to the high bit


def _code(name: str) -> int:
    return int.from_bytes(name.encode("ascii")[:8], "little")


_ALL = (*NAMES, *SOUGHT)
_SIZE = next(size for size in range(len(_ALL), 1000) if len({_code(name) % size for name in _ALL}) == len(_ALL))
_CODES, _NUMBERS = np.ones(_SIZE, np.uint64), np.zeros(_SIZE, np.int64)
"""First eight letters and number of each name, at the place of their remainder; elsewhere 1, the code of none."""
for _place, _name in enumerate(_ALL):
    _CODES[_code(_name) % _SIZE], _NUMBERS[_code(_name) % _SIZE] = _code(_name), _place
_SIZES = np.array([len(name) for name in _ALL])
_LONG, _O, _N = NAMES.index("figcaption"), ord("o"), ord("n")  # the only name with two letters more
_SPACES = np.zeros(256, np.bool_)
_SPACES[list(b" \t\n\r\f\v")] = True


@part
def _find_less(data, eights, start, end):  # type: ignore[no-untyped-def]
    """Place of the next `<`, or the end."""
    i = uint64(start)
    while i + uint64(8) <= end:
        word = eights[i] ^ _LESSES
        if (word - _LOW_BITS) & ~word & _HIGH_BITS:
            break
        i += uint64(8)
    while i < end and data[i] != _LESS:
        i += uint64(1)
    return int64(i)


@part
def _read_name(data, eights, start):  # type: ignore[no-untyped-def]
    """Number of the name at a place, and where it ends.

    Those sought are numbered after the others; any other name has -1.
    """
    word = eights[start]
    ends, closes = word ^ _MORES, word ^ _SLASHES
    stops = (
        ((word - _CONTROLS) & ~word) | ((ends - _LOW_BITS) & ~ends) | ((closes - _LOW_BITS) & ~closes)
    ) & _HIGH_BITS
    stop = stops & (~stops + uint64(1))  # the first one's bit
    code = (word | _LOWER) & ((stop >> uint64(7)) - uint64(1))
    place = code % uint64(_SIZE)
    if _CODES[place] != code:
        return int64(-1), start
    number, end = _NUMBERS[place], start + _SIZES[_NUMBERS[place]]
    if number == _LONG and (data[start + 8] | 32 != _O or data[start + 9] | 32 != _N):
        return int64(-1), start
    return number, end


@part
def _has_word(data, start, end, word):  # type: ignore[no-untyped-def]
    """Return whether the bytes hold four letters, in any case.

    No comparison depends on the one before and no place can be counted from the end, so that 64 are made at once.
    """
    found = False
    if end - start < 4:
        return found
    a, b, c, d = uint8(word), uint8(word >> 8), uint8(word >> 16), uint8(word >> 24)
    first, second = data[start : end - 3], data[start + 1 : end - 2]
    third, fourth = data[start + 2 : end - 1], data[start + 3 : end]
    for i in range(len(first)):
        found |= (
            ((first[i] | uint8(32)) == a)
            & ((second[i] | uint8(32)) == b)
            & ((third[i] | uint8(32)) == c)
            & ((fourth[i] | uint8(32)) == d)
        )
    return found


@part
def _spells_role(data, start, end):  # type: ignore[no-untyped-def]
    """Return whether a `role` may be written with references."""
    for begin in range(start, end - 4):
        if data[begin] | 32 != _R or not _has_word(data, begin, begin + 4, _ROLE):
            continue
        i = begin + 4
        while i < end and (_SPACES[data[i]] or data[i] == _EQUALS):
            i += 1
        if i < end and (data[i] == _QUOTE or data[i] == _APOSTROPHE):
            i += 1
        last = min(end - 1, i + _LONGEST_ROLE)
        while i < last and 97 <= data[i] | 32 <= 122:
            i += 1
        if i < end and data[i] == _AND:
            return True
    return False


@part
def _tag_end(data, start, end):  # type: ignore[no-untyped-def]
    """Place after the tag whose name ends at `start`, or -1."""
    if start >= end or not (_SPACES[data[start]] or data[start] == _MORE):
        return -1
    for i in range(start, end):
        if data[i] == _MORE:
            return i + 1
        if data[i] == _LESS:
            return -1
    return -1


@part
def _mark_of(data, name_end, tag_end, name, closes, marks):  # type: ignore[no-untyped-def]
    if closes:
        return marks[CLOSING, name]
    if data[name_end] == _MORE:
        return marks[BARE, name]
    mark = marks[WITH_ATTRIBUTES, name]
    if mark == BY_LINK:
        return int64(_LINK) if _has_word(data, name_end, tag_end, _HREF) else int64(NO_MARK)
    return mark


@kernel
def find_tags(data, eights, ends, marks):  # type: ignore[no-untyped-def]
    """The tags of pages, [n, 3], and each page's bits.

    `data` holds the pages one after another, `eights` the eight bytes from each of its places on, `ends` the end of
    each page, `marks` is [3, names].
    """
    tags, count = np.empty((count_of(data, _LESS), 3), int64), int64(0)
    bits = np.zeros(len(ends), int64)
    begin = int64(0)
    for page in range(len(ends)):
        end, found = ends[page], int64(0)
        if _has_word(data, begin, end, _ROLE):
            found |= SPELLED | ROLE if _spells_role(data, begin, end) else ROLE
        if _has_word(data, begin, end, _HIDD):
            found |= HIDDEN
        if _has_word(data, begin, end, _MODA):
            found |= MODAL
        i = _find_less(data, eights, begin, end)
        while i < end:
            closes = i + 1 < end and data[i + 1] == _SLASH
            name, name_end = _read_name(data, eights, i + 1 + closes)
            tag_end = int64(-1)
            if name >= len(NAMES):
                found |= 1 << name - len(NAMES)
            elif name >= 0 and (name < CLOSED or not closes):
                tag_end = _tag_end(data, name_end, end)
            if tag_end >= 0:
                tags[count, START], tags[count, END] = i, tag_end
                tags[count, MARKED] = _mark_of(data, name_end, tag_end, name, closes, marks)
                count += 1
            i = _find_less(data, eights, i + 1 if tag_end < 0 else tag_end, end)
        begin, bits[page] = end, found
    return tags[:count], bits


@part
def _write_mark(out, filled, mark):  # type: ignore[no-untyped-def]
    out[filled], out[filled + 1] = _MARK, mark & 255
    weight = mark >> 8 & 255
    out[filled + 2] = weight
    return filled + (3 if weight else 2)


@kernel
def write_marks(data, ends, tags):  # type: ignore[no-untyped-def]
    """The pages with marks at their tags, and the end of each."""
    out, out_ends = np.empty(len(data) + 3 * len(tags) + 1, np.uint8), np.empty(len(ends), int64)
    filled, done, page = int64(0), int64(0), int64(0)
    for i in range(len(tags) + 1):
        last = tags[i, END] if i < len(tags) else int64(0)
        while page < len(ends) and (i == len(tags) or ends[page] < last):
            filled = copy(data, done, ends[page], out, filled)
            done = ends[page]
            out_ends[page] = filled
            page += 1
        if i == len(tags):
            break
        start, mark = tags[i, START], tags[i, MARKED]
        if mark < 0:
            continue
        cut = start if mark & BEFORE else last
        filled = _write_mark(out, copy(data, done, cut, out, filled), mark)
        done = cut
    return out[:filled], out_ends
