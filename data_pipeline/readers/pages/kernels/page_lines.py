"""Lines and containers of a page's marked layout (`readers/main_text.py`).

The layout is read as code points, once. Marks are taken out; what is left of each line comes with its container, its
size and the share of it that is link text. A size counts the characters between white space at both ends, those of
dense scripts (of three bytes in UTF-8, such as Chinese, Thai and Hindi) three times.

Price: 4 ns per code point.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint32, uint64

from governance.kernels.buffers import SPACE
from governance.kernels.compiled import part

START, END, BOX, SIZE, LINKS, KIND, NAMES, BLANK, PLACE, PROSE = range(10)
"""Columns of a line: its text's place in the code points that come back, its container, its size, that of its links,
the kind of its last tag, the weight of that tag's names, whether a blank line precedes it, its number in the layout,
and whether it is prose."""
LINE_COLUMNS = 10
PARENT, MARK_LETTER, WEIGHT = range(3)
"""Columns of a container, numbered as they open; container 0 is the page."""
NO_WEIGHT = ord("_")
"""Code of the letter that is written for a weight of 0."""
PLAIN, BULLET = 0, 1
KINDS = "P1HFT"
"""Letters of the tags whose kind a line keeps; as numbers they begin at 2."""

_MARK, _TAB, _LINE_END, _BLANK, _DOT, _ROUND = 2, 9, 10, 32, ord("."), ord("•")
_LINK, _UNLINK, _CLOSE, _CELL, _UNCELL, _MAIN = map(ord, "LleCcM")
_BULLET_SIZE, _DIGITS = 10, 9
_KIND_LETTERS = np.array([ord(letter) for letter in KINDS])


@part
def strip(points, start, end, classes):  # type: ignore[no-untyped-def]
    """Bounds of a text without white space at its ends."""
    while start < end and classes[points[start]] & SPACE:
        start += 1
    while end > start and classes[points[end - 1]] & SPACE:
        end -= 1
    return start, end


@part
def _width(points, start, end, classes):  # type: ignore[no-untyped-def]
    start, end = strip(points, start, end, classes)
    size = int64(0)
    for i in range(start, end):
        point = points[i]
        size += 1 if point < 0x80 else 2 if point < 0x800 else 3 if point < 0x10000 else 4
    return size if size > 2 * (end - start) else end - start


@part
def is_bullet(points, start, end, classes):  # type: ignore[no-untyped-def]
    """Return whether a text is a bullet or an item's number."""
    start, end = strip(points, start, end, classes)
    if end - start == 1 and points[start] == _ROUND:
        return True
    if not 2 <= end - start <= _DIGITS + 1 or points[end - 1] != _DOT:
        return False
    for i in range(start, end - 1):  # noqa: SIM110, compiled
        if not 48 <= points[i] <= 57:
            return False
    return True


@part
def _close(cell, open_now, depth, cells, boxes):  # type: ignore[no-untyped-def]
    """Close the innermost table cell, or container, with its children."""
    if (cell and not cells) or (not cell and depth - 1 <= cells):
        return depth, cells  # it closes what never opened
    while True:
        depth -= 1
        was_cell = boxes[open_now[depth], MARK_LETTER] == _CELL
        cells -= was_cell
        if was_cell == cell:
            return depth, cells


@part
def kind_of(letter):  # type: ignore[no-untyped-def]
    """Number of a tag's kind; 0 for letters of other tags."""
    for place in range(len(_KIND_LETTERS)):
        if letter == _KIND_LETTERS[place]:
            return place + 2
    return 0


@part
def count_of(points, wanted):  # type: ignore[no-untyped-def]
    """Number of points of a kind."""
    found = int64(0)
    for point in points:
        if point == wanted:  # a sum of comparisons takes six times as long
            found += 1
    return found


@part
def copy(points, start, end, to, filled):  # type: ignore[no-untyped-def]
    """Copy a stretch of points; return where it ends.

    An assignment of slices takes four times as long.
    """
    place, out = uint64(start), uint64(filled)
    for i in range(uint64(end - start)):
        to[out + i] = points[place + i]
    return filled + end - start


@part
def _copy_segment(points, start, text, filled):  # type: ignore[no-untyped-def]
    """Copy points up to a mark or a line's end; count them.

    Places are without sign, so that none has to be checked for one that counts from the end.
    """
    one, place, to, size = uint64(1), uint64(start), uint64(filled), uint64(len(points))
    while place < size and points[place] != _MARK and points[place] != _LINE_END:
        text[to] = points[place]
        place += one
        to += one
    return int64(place) - start


@part
def read_layout(points, classes):  # type: ignore[no-untyped-def]
    """Text without marks, lines and containers of a layout.

    Lines are [n, LINE_COLUMNS], containers [m, 3].
    """
    line_ends, marks = count_of(points, _LINE_END) + 1, count_of(points, _MARK) + 1
    text = np.empty(len(points), uint32)
    lines = np.empty((line_ends, LINE_COLUMNS), int64)
    boxes = np.zeros((marks, 3), int64)
    boxes[0, MARK_LETTER] = _MAIN
    open_now = np.zeros(marks + 1, int64)
    depth, cells, link_depth = int64(1), int64(0), int64(0)
    box_count, line_count, filled, blank, number, kind, names = (
        int64(1), int64(0), int64(0), int64(0), int64(0), int64(0), int64(0),
    )  # fmt: skip
    i, size = int64(0), len(points)
    while i <= size:
        start, container, width, link_width = filled, int64(-1), int64(0), int64(0)
        line_start = i
        alone = False  # the line is one mark: it says nothing of the lines around it
        while True:
            segment = filled
            filled += _copy_segment(points, i, text, filled)
            i += filled - segment
            if filled > segment:
                found = _width(text, segment, filled, classes)
                width += found
                if link_depth:
                    link_width += found
                if container < 0 and found and (found > _BULLET_SIZE or not is_bullet(text, segment, filled, classes)):
                    container = open_now[depth - 1]
            if i >= size or points[i] == _LINE_END:
                break
            first_mark = i == line_start
            i += 1  # the mark
            if i >= size or points[i] == _LINE_END:
                continue
            letter = points[i]
            i += 1
            if letter == _LINK:
                link_depth = depth
            elif letter == _UNLINK:
                link_depth = 0
            elif letter in (_CLOSE, _UNCELL):
                depth, cells = _close(letter == _UNCELL, open_now, depth, cells, boxes)
                if depth < link_depth:
                    link_depth = 0
                if container < 0:  # a bullet alone is resiliparse's answer to an item outside of any list
                    filled, width, link_width = start, int64(0), int64(0)
            else:
                weight = int64(0)
                if i < size and points[i] != _LINE_END:
                    weight = int64(points[i]) - NO_WEIGHT
                    i += 1
                own = kind_of(letter)
                if own:
                    kind = own
                    names = weight
                    if (filled == start or text[filled - 1] == _BLANK) and i < size and points[i] == _BLANK:
                        i += 1
                else:
                    boxes[box_count, PARENT] = open_now[depth - 1]
                    boxes[box_count, MARK_LETTER] = letter
                    boxes[box_count, WEIGHT] = weight
                    open_now[depth] = box_count
                    depth += 1
                    box_count += 1
                    cells += letter == _CELL
            alone = first_mark and (i >= size or points[i] == _LINE_END)
        if width:
            line = lines[line_count]
            line[START], line[END] = start, filled
            line[BOX] = open_now[depth - 1] if container < 0 else container
            line[SIZE], line[LINKS], line[KIND], line[NAMES] = width, link_width, kind, names
            line[BLANK], line[PLACE], line[PROSE] = blank, number, 0
            line_count += 1
            kind, names, blank = int64(0), int64(0), int64(0)
        else:
            filled = start
            if i == line_start:
                blank = int64(1)
            elif not alone:
                kind, names = int64(0), int64(0)
        i += 1
        number += 1
    return text[:filled], lines[:line_count], boxes[:box_count]


@part
def _write_bullet(out, filled, text, line, classes):  # type: ignore[no-untyped-def]
    """Write a bullet and a blank; return where they end."""
    if line[BLANK]:
        out[filled] = _LINE_END
        filled += 1
    end = line[END]
    while classes[text[end - 1]] & SPACE:
        end -= 1
    filled = copy(text, line[START], end, out, filled)
    out[filled] = _BLANK
    return filled + 1


@part
def _dedented(text):  # type: ignore[no-untyped-def]
    """`textwrap.dedent` in place, for lines without white space at their ends."""
    count, margin, begin = len(text), int64(0), int64(0)
    while text[margin] == _BLANK or text[margin] == _TAB:
        margin += 1
    for i in range(1, count):
        if text[i] == _LINE_END:
            begin = i + 1
        elif begin and i - begin < margin and text[i] != text[i - begin]:
            margin = i - begin
    filled, begin = int64(0), int64(0)
    for i in range(count):
        if text[i] == _LINE_END:
            begin = i + 1
        elif i - begin < margin:
            continue
        text[filled] = text[i]
        filled += 1
    return text[:filled]


@part
def write_lines(text, lines, keeps, classes):  # type: ignore[no-untyped-def]
    """Code points of the kept lines, with bullets before their texts.

    A line of blanks alone, before a line, becomes a blank line. The indentation that all lines share is taken off.
    """
    size, first = int64(0), int64(0)
    for i in range(len(lines)):
        size += (lines[i, END] - lines[i, START] + 3) if keeps[i] else 0
    out = np.empty(size, uint32)
    filled, bullet = int64(0), int64(-1)
    for i in range(len(lines)):
        if not keeps[i]:
            continue
        line = lines[i]
        begin, end = line[START], line[END]
        while end > begin and classes[text[end - 1]] & SPACE:
            end -= 1
        if line[SIZE] <= _BULLET_SIZE and is_bullet(text, begin, end, classes):
            bullet = i
            continue
        joins = False
        if bullet >= 0:
            joins = lines[bullet, BOX] <= line[BOX]  # else its text was left out
        if joins:
            filled = _write_bullet(out, filled, text, lines[bullet], classes)
            while begin < end and classes[text[begin]] & SPACE:
                begin += 1
        elif line[BLANK]:
            out[filled] = _LINE_END
            filled += 1
        bullet = int64(-1)
        filled = copy(text, begin, end, out, filled)
        out[filled] = _LINE_END
        filled += 1
    while filled and out[filled - 1] == _LINE_END:
        filled -= 1
    while first < filled and out[first] == _LINE_END:
        first += 1
    out = out[first:filled]
    return _dedented(out) if len(out) and out[0] == _BLANK else out


@part
def write_utf8(points, out, filled):  # type: ignore[no-untyped-def]
    """Write code points in UTF-8; return where they end."""
    to = uint64(filled)
    for point in points:
        if point < 0x80:
            out[to] = point
            to += uint64(1)
            continue
        if point < 0x800:
            out[to] = 0xC0 | point >> 6
            to += uint64(1)
        else:
            if point < 0x10000:
                out[to] = 0xE0 | point >> 12
            else:
                out[to] = 0xF0 | point >> 18
                to += uint64(1)
                out[to] = 0x80 | (point >> 12 & 0x3F)
            out[to + uint64(1)] = 0x80 | (point >> 6 & 0x3F)
            to += uint64(2)
        out[to] = 0x80 | (point & 0x3F)
        to += uint64(1)
    return int64(to)
