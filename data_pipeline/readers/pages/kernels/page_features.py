"""Features of the lines of a page, for choosing main text.

They are the shallow ones of Kohlschütter et al. (WSDM 2010) and of Vogels et al. ("Web2Text", ECIR 2018): size, share
of link text, tag, ends, position, neighbours, and the same of the containers around a line. Containers that hold no
other line than the one inside them are passed over, since pages wrap them at will.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64

from data_pipeline.readers.pages.kernels.page_lines import (
    BOX,
    END,
    KIND,
    LINKS,
    MARK_LETTER,
    NAMES,
    PARENT,
    PROSE,
    SIZE,
    START,
    WEIGHT,
    is_bullet,
    strip,
)
from governance.kernels.buffers import LETTER
from governance.kernels.compiled import part

PROSE_SIZE = 60
"""Characters of a line of prose: ten words or so; one of a dense script (Chinese, Thai, Hindi) counts as three."""
SCOPE_SHARE = 0.85
LEFT_OUT_SIZE = 400
LEFT_OUT_SHARE = 0.1
NOTICE_SIZE = 250
"""Characters of a notice at most: a longer line is a paragraph about the subject."""
SHORT = 180
"""Characters up to which a line's words count."""
NAME_STEP = 10
"""Units of a tag's weight in one unit of a line's score."""
OWN, LEVELS, PER_LEVEL, NEIGHBOURS = 33, 3, 7, 12
INSIDE = 21
"""Feature of a line that the rules keep."""
SET = 32
"""Feature of a line of code, or of a table that is not the page's layout."""
FEATURES = OWN + LEVELS * PER_LEVEL + NEIGHBOURS
VECTOR = 16
"""Lines that are scored at once."""
_NOTICES = tuple(
    tuple(map(ord, words))
    for words in ("cookie", "©", "(c) 19", "(c) 20", "all rights reserved", "privacy policy", "terms of use")
)
_NOTICE_POINTS = np.array([point for words in _NOTICES for point in words], np.uint32)
_NOTICE_ENDS = np.cumsum([len(words) for words in _NOTICES])
_SECOND = np.zeros(256, np.int32)
"""By the first letter of a notice, in either case, its second letter; -1 where the notice is one letter."""
for _words in _NOTICES:
    for _first in (chr(_words[0]), chr(_words[0]).upper()):
        _SECOND[ord(_first)] = _words[1] if len(_words) > 1 else -1
_FIELD = 12  # bits of each count of a line's characters; this many characters are counted before the fields are emptied
_DIGIT, _UPPER, _COMMA, _STOP, _MARKED = (1 << _FIELD * place for place in range(5))
_LETTERS, _COUNTED = np.zeros(256, np.int64), np.zeros(256, np.int64)
"""Lower case and 1 for letters below 256, else 0; counts of each code point."""
for _point, _letter in enumerate(map(chr, range(256))):
    _lower = ord(_letter.lower())
    _LETTERS[_point] = _lower + 1 if _letter.isalpha() else 0
    _COUNTED[_point] = (
        _DIGIT * ("0" <= _letter <= "9") + _UPPER * (_lower != _point) + _COMMA * (_letter == ",")
        + _STOP * (_letter in ".!?") + _MARKED * (_letter in "|©@»")
    )  # fmt: skip
_NEVER, _MAYBE, _MAIN_LETTER, _CELL, CODE = map(ord, "NYMCR")
_FAR = 40
TITLE, HEADING = 3, 4


@part
def is_notice(text, line, lower):  # type: ignore[no-untyped-def]
    """Return whether a short line is about cookies, copyright or terms."""
    start, end = line[START], line[END]
    if line[SIZE] >= NOTICE_SIZE:
        return False
    for i in range(start, end):
        point = text[i]
        if point > 255:
            continue
        second, after = _SECOND[point], lower[text[i + 1]] if i + 1 < end else 0
        if second < 0 or (second == after and second and _begins_notice(text, i, end, lower)):
            return True
    return False


@part
def _begins_notice(text, start, end, lower):  # type: ignore[no-untyped-def]
    first = int64(0)
    for last in _NOTICE_ENDS:
        size = last - first
        if start + size <= end:
            j = int64(0)
            while j < size and lower[text[start + j]] == _NOTICE_POINTS[first + j]:
                j += 1
            if j == size:
                return True
        first = last
    return False


@part
def mark_prose(text, lines, lower):  # type: ignore[no-untyped-def]
    """Mark the lines of prose: long, with few links, and no notice."""
    for line in lines:
        size, links = line[SIZE], line[LINKS]
        line[PROSE] = size - links >= PROSE_SIZE and links * 3 <= size and not is_notice(text, line, lower)


@part
def sum_boxes(lines, boxes):  # type: ignore[no-untyped-def]
    """Size, link size, prose and lines of each container, [m, 4].

    All count what is inside it.
    """
    sums = np.zeros((len(boxes), 4), int64)
    for line in lines:
        own = sums[line[BOX]]
        own[0] += line[SIZE]
        own[1] += line[LINKS]
        own[2] += line[SIZE] * line[PROSE]
        own[3] += 1
    for box in range(len(boxes) - 1, 0, -1):  # inner boxes have higher numbers
        up = boxes[box, PARENT]
        for column in range(4):
            sums[up, column] += sums[box, column]
    return sums


@part
def named_out(boxes, sums):  # type: ignore[no-untyped-def]
    """Containers that their names exclude.

    They hold less than half of the page's prose.
    """
    dead = np.zeros(len(boxes), np.bool_)
    whole = sums[0, 2]
    for box in range(1, len(boxes)):
        letter = boxes[box, MARK_LETTER]
        minor = sums[box, 2] * 2 < whole or not whole
        dead[box] = dead[boxes[box, PARENT]] or (
            minor and (letter == _NEVER or (letter == _MAYBE and sums[box, 2] * 2 < sums[box, 0]))
        )
    return dead


@part
def in_scope(lines, boxes, dead):  # type: ignore[no-untyped-def]
    """Containers within the deepest that holds nearly all prose.

    Few words outside links are left out. With them come those that are in a table or code there.
    """
    prose, unlinked = np.zeros(len(boxes), int64), np.zeros(len(boxes), int64)
    for line in lines:
        if not dead[line[BOX]]:
            prose[line[BOX]] += line[SIZE] * line[PROSE]
            unlinked[line[BOX]] += line[SIZE] - line[LINKS]
    for box in range(len(boxes) - 1, 0, -1):
        prose[boxes[box, PARENT]] += prose[box]
        unlinked[boxes[box, PARENT]] += unlinked[box]
    scope = int64(0)
    for box in range(1, len(boxes)):  # numbered as they open, so each step goes deeper into the last one
        if boxes[box, PARENT] != scope or not prose[box] or prose[box] < SCOPE_SHARE * prose[0]:
            continue
        if unlinked[scope] - unlinked[box] > max(LEFT_OUT_SIZE, LEFT_OUT_SHARE * unlinked[scope]):
            break
        scope = box
        if boxes[box, MARK_LETTER] == _MAIN_LETTER:
            break
    inside, blocks = np.zeros(len(boxes), np.bool_), np.zeros(len(boxes), np.bool_)
    inside[scope] = not dead[scope]
    for box in range(scope + 1, len(boxes)):
        up, letter = boxes[box, PARENT], boxes[box, MARK_LETTER]
        inside[box] = inside[up] and not dead[box]
        blocks[box] = inside[box] and (blocks[up] or letter in (_CELL, CODE))
    return inside, blocks


@part
def names_of(boxes, sums):  # type: ignore[no-untyped-def]
    """Sum of the weights of names of each container.

    It ends at a container that holds half of the prose.
    """
    weights = np.zeros(len(boxes), int64)
    for box in range(1, len(boxes)):
        if sums[box, 2] * 2 < max(sums[0, 2], 1):
            weights[box] = weights[boxes[box, PARENT]] + boxes[box, WEIGHT]
    return weights


@part
def word_sum(text, start, end, classes, lower, table):  # type: ignore[no-untyped-def]
    """Sum of the weights of a line's words, and their number.

    `table` is that of `line_model.word_table`.
    """
    total, count, hashed = 0.0, int64(0), int64(0)
    for point in text[start:end]:
        letter = int64(0)
        if point < 256:
            letter = _LETTERS[point]
        elif classes[point] & LETTER:
            letter = int64(lower[point]) + 1
        if letter:
            hashed = hashed * 1_000_003 + letter
        elif hashed:
            count += 1
            total += _word_weight(hashed, table)
            hashed = int64(0)
    if hashed:
        count += 1
        total += _word_weight(hashed, table)
    return total, count


@part
def _word_weight(hashed, table):  # type: ignore[no-untyped-def]
    words, weights = table
    place = hashed & (len(words) - 1)
    while words[place]:
        if words[place] == hashed:
            return weights[place]
        place = (place + 1) & (len(words) - 1)
    return 0.0


@part
def _counts(text, start, end, lower):  # type: ignore[no-untyped-def]
    """Digits, capitals, commas, stops and marks of a line."""
    digits, upper, commas, stops, marks = int64(0), int64(0), int64(0), int64(0), int64(0)
    mask = (1 << _FIELD) - 1
    for begin in range(start, end, mask):
        fields = int64(0)
        for point in text[begin : min(begin + mask, end)]:
            if point < 256:
                fields += _COUNTED[point]
            else:
                upper += lower[point] != point
                commas += point == 0x3001 or point == 0xFF0C
                stops += point == 0x3002
                marks += point == 8250
        digits += fields & mask
        upper += (fields >> _FIELD) & mask
        commas += (fields >> 2 * _FIELD) & mask
        stops += (fields >> 3 * _FIELD) & mask
        marks += (fields >> 4 * _FIELD) & mask
    return digits, upper, commas, stops, marks


@part
def _own_features(row, text, line, classes, lower):  # type: ignore[no-untyped-def]
    start, end = strip(text, line[START], line[END], classes)
    size = end - start
    digits, upper, commas, stops, marks = _counts(text, start, end, lower)
    last, first = text[end - 1], text[start]
    row[0], row[1] = line[SIZE], line[LINKS] / line[SIZE]
    row[2] = line[KIND] if line[KIND] else 1 if first == 0x2022 or is_bullet(text, start, end, classes) else 0
    row[3] = (
        0 if last == 46 or last == 33 or last == 63 or last == 0x3002 or last == 0x2026
        else 1 if last == 34 or last == 0x201D or last == 0xBB or last == 39 or last == 0x2019 or last == 41
        else 2 if last == 58 else 3 if last == 44 or last == 59 else 4 if classes[last] & LETTER
        else 5 if 48 <= last <= 57 else 6
    )  # fmt: skip
    row[4] = 0 if 48 <= first <= 57 else 1 if lower[first] != first else 2 if classes[first] & LETTER else 3
    row[5], row[6] = digits / size, upper / size
    row[7], row[8], row[9] = commas, stops, marks


@part
def describe(text, lines, boxes, model):  # type: ignore[no-untyped-def]
    """Features of the lines, a row each, with room for more lines.

    [FEATURES, a multiple of `VECTOR`]
    """
    classes, lower, table = model
    count = len(lines)
    columns = np.zeros((FEATURES, -(-count // VECTOR) * VECTOR), float32)
    found = columns.T[:count]
    sums = sum_boxes(lines, boxes)
    dead = named_out(boxes, sums)
    inside, blocks = in_scope(lines, boxes, dead)
    names = names_of(boxes, sums)
    whole = max(sums[0, 2], 1)
    prose, size_before, since, heading, title = int64(0), int64(0), int64(_FAR), int64(_FAR), int64(-1)
    prose_lines = int64(0)
    for i in range(count):
        prose_lines += lines[i, PROSE]
        if title < 0 and lines[i, KIND] == TITLE:
            title = i
    for i in range(count):
        line, row = lines[i], found[i]
        _own_features(row, text, line, classes, lower)
        if line[SIZE] <= SHORT:
            row[10], row[11] = word_sum(text, line[START], line[END], classes, lower, table)
        row[12] = (line[NAMES] + names[line[BOX]]) / NAME_STEP
        row[13], row[14] = i / count, prose / whole
        row[15] = 1 - (prose + line[SIZE] * line[PROSE]) / whole
        row[16], row[17] = size_before / sums[0, 0], since
        row[18] = -1 if title < 0 else min(max(i - title, -_FAR), _FAR)
        heading = 0 if line[KIND] == HEADING or line[KIND] == TITLE else min(heading + 1, _FAR)
        row[19] = heading
        row[20], row[INSIDE], row[22], row[SET] = dead[line[BOX]], inside[line[BOX]], line[PROSE], blocks[line[BOX]]
        row[23], row[24], row[25], row[26] = count, sums[0, 2], sums[0, 1] / sums[0, 0], prose_lines
        prose += line[SIZE] * line[PROSE]
        size_before += line[SIZE]
        since = 1 if line[PROSE] else min(since + 1, _FAR)
        _box_features(row, line[BOX], boxes, sums, whole)
    _look_back(found, lines)
    _neighbour_features(found)
    return columns


@part
def _box_features(row, box, boxes, sums, whole):  # type: ignore[no-untyped-def]
    depth, main, up = int64(0), int64(0), box
    while up:
        main += boxes[up, MARK_LETTER] == _MAIN_LETTER
        depth += 1
        up = boxes[up, PARENT]
    row[28], row[29] = depth, main
    column = OWN
    for _ in range(LEVELS):
        weight, letter = int64(0), boxes[box, MARK_LETTER]
        while box and sums[boxes[box, PARENT], 3] == sums[box, 3]:
            weight += boxes[box, WEIGHT]
            box = boxes[box, PARENT]
        weight += boxes[box, WEIGHT]
        row[column] = sums[box, 2] / whole
        row[column + 1] = sums[box, 1] / sums[box, 0]
        row[column + 2] = sums[box, 0] / sums[box, 3]
        row[column + 3] = sums[box, 3]
        row[column + 4] = letter
        row[column + 5] = weight / NAME_STEP
        row[column + 6] = sums[box, 2] / sums[box, 0]
        column += PER_LEVEL
        box = boxes[box, PARENT]


@part
def _look_back(found, lines):  # type: ignore[no-untyped-def]
    """Distance to the next prose, and lines of prose on each side."""
    after, margin = int64(_FAR), int64(0)
    for i in range(len(lines) - 1, -1, -1):
        found[i, 27] = after
        found[i, 30] = margin
        after = 1 if lines[i, PROSE] else min(after + 1, _FAR)
        margin += lines[i, PROSE]
    margin = int64(0)
    for i in range(len(lines)):
        found[i, 31] = margin
        margin += lines[i, PROSE]


@part
def _neighbour_features(found):  # type: ignore[no-untyped-def]
    count, column = len(found), OWN + LEVELS * PER_LEVEL
    for i in range(count):
        for place in range(4):
            other = i + place - (2 if place < 2 else 1)
            for feature in range(3):
                found[i, column + 3 * place + feature] = found[other, feature] if 0 <= other < count else -1
