"""Choice of the lines of main text, by two ensembles of trees.

The first scores each line by its features (`page_features.py`). The second sets each score against those of its
neighbours and containers, so that blocks stay or go together. `readers/line_model.py` has the weights.

All tests of a tree are made, each on many lines at once: the outcome of a test takes the leaves on its other side off a
set of bits, and the first leaf that is left is the line's (QuickScorer: Lucchese et al., SIGIR 2015). No branch and no
load depends on the test before, which is five times as fast as a walk from the root to a leaf.

Price: 1 microsecond per line.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, uint8, uint32

from data_pipeline.readers.pages.kernels.page_features import (
    CODE,
    FEATURES,
    HEADING,
    INSIDE,
    SET,
    TITLE,
    VECTOR,
    describe,
    is_notice,
    mark_prose,
)
from data_pipeline.readers.pages.kernels.page_lines import (
    BLANK,
    BOX,
    BULLET,
    KIND,
    LINKS,
    MARK_LETTER,
    PARENT,
    PROSE,
    SIZE,
    copy,
    read_layout,
    write_lines,
    write_utf8,
)
from governance.kernels.compiled import kernel, part

CONTEXT = 12
"""Scores that the second step sees of each line."""
LONG, LIKELY, SURE = 100, 0.5, 1.0
"""Scores above which a line of this many characters, and a shorter one, stays: most that is not main text is short."""
_CLIP = 5.0
_EDGE = -2.0  # the score of what would be beyond the first and the last line
_LINE_WEIGHT, _LONGEST = 10, 400  # a line weighs its characters in a mean, up to this many, and these on top


MAX_LEAVES = 32
"""Leaves of a tree at most: the bits of a set."""
_ALL = (1 << MAX_LEAVES) - 1
_BLOCK = 64  # lines at once, in the first cache
_BIT_FACTOR, _BIT_SHIFT = 0x077CB531, 27  # each power of two times the factor (de Bruijn) begins with other bits
_BIT_NUMBERS = np.zeros(MAX_LEAVES, np.uint8)
for _bit in range(MAX_LEAVES):
    _BIT_NUMBERS[((_BIT_FACTOR << _bit) & _ALL) >> _BIT_SHIFT] = _bit


@part
def add_trees(scores, columns, begin, trees):  # type: ignore[no-untyped-def]
    """Add the leaves that lines reach to their scores.

    The lines are those from number `begin` on.

    `columns` has a row per feature, for whole vectors of lines. `trees` has the first test of each tree, the tests
    (feature, bound, the leaves that stay where the feature is above the bound) and the leaves of each tree.
    """
    starts, features, bounds, stays, leaves = trees
    left = np.empty(_BLOCK, uint32)
    wide = -(-len(scores) // VECTOR) * VECTOR
    for tree in range(len(starts) - 1):
        for i in range(wide):
            left[i] = uint32(_ALL)
        for test in range(starts[tree], starts[tree + 1]):
            column, bound, stay = columns[features[test]][begin : begin + wide], bounds[test], stays[test]
            for i in range(wide):
                left[i] &= stay if column[i] > bound else uint32(_ALL)
        for i in range(len(scores)):
            first = uint32(left[i] & uint32(~left[i] + uint32(1)))
            scores[i] += leaves[tree, _BIT_NUMBERS[uint32(first * uint32(_BIT_FACTOR)) >> uint32(_BIT_SHIFT)]]


@part
def score_lines(columns, count, trees):  # type: ignore[no-untyped-def]
    """Sums of trees for the first `count` lines."""
    scores = np.zeros(count, float64)
    for begin in range(0, count, _BLOCK):
        add_trees(scores[begin : begin + _BLOCK], columns, begin, trees)
    return scores


@part
def _outer(box, boxes, sums):  # type: ignore[no-untyped-def]
    """The container around a line's that holds more than it."""
    while box and sums[boxes[box, PARENT], 3] == sums[box, 3]:
        box = boxes[box, PARENT]
    return boxes[box, PARENT]


@part
def context_of(lines, boxes, scores):  # type: ignore[no-untyped-def]
    """Scores around each line, [n, CONTEXT].

    They are the line's own, those of the two lines on each side, and means, by size, of its container, of the two
    around it, of the lines before and after it, of eleven lines around it, and of the page.
    """
    count = len(lines)
    found = np.zeros((count, CONTEXT), float32)
    clipped, weights = np.empty(count), np.empty(count)
    sums = np.zeros((len(boxes), 4))  # score and weight of its own lines, and of those inside it
    totals, whole = np.zeros(count + 1), np.zeros(count + 1)
    for i in range(count):
        clipped[i] = min(_CLIP, max(-_CLIP, scores[i]))
        weights[i] = min(lines[i, SIZE], _LONGEST) + _LINE_WEIGHT
        totals[i + 1] = totals[i] + clipped[i] * weights[i]
        whole[i + 1] = whole[i] + weights[i]
        sums[lines[i, BOX], 0] += clipped[i] * weights[i]
        sums[lines[i, BOX], 1] += weights[i]
    for box in range(len(boxes)):
        sums[box, 2], sums[box, 3] = sums[box, 0], sums[box, 1]
    for box in range(len(boxes) - 1, 0, -1):
        sums[boxes[box, PARENT], 2] += sums[box, 2]
        sums[boxes[box, PARENT], 3] += sums[box, 3]
    for i in range(count):
        row, box = found[i], lines[i, BOX]
        row[0] = clipped[i]
        for side in range(2):
            step = 1 + side
            row[1 + 2 * side] = clipped[i - step] if i >= step else _EDGE
            row[2 + 2 * side] = clipped[i + step] if i + step < count else _EDGE
        row[5] = sums[box, 0] / sums[box, 1]
        box = _outer(box, boxes, sums)
        row[6] = sums[box, 2] / sums[box, 3]
        box = _outer(box, boxes, sums)
        row[7] = sums[box, 2] / sums[box, 3]
        row[8] = totals[i] / whole[i] if i else 0.0
        row[9] = (totals[count] - totals[i + 1]) / (whole[count] - whole[i + 1]) if i < count - 1 else 0.0
        first, last = max(0, i - 5), min(count, i + 6)
        row[10] = (totals[last] - totals[first]) / (whole[last] - whole[first])
        row[11] = totals[count] / whole[count]
    return found


@kernel
def read_lines(points, classes, lower):  # type: ignore[no-untyped-def]
    """Text, lines and containers of a layout."""
    text, lines, boxes = read_layout(points, classes)
    mark_prose(text, lines, lower)
    return text, lines, boxes


@kernel
def describe_lines(text, lines, boxes, words):  # type: ignore[no-untyped-def]
    """Features of the lines, [n, FEATURES]."""
    return describe(text, lines, boxes, words).T[: len(lines)]


@kernel
def context_of_lines(lines, boxes, scores):  # type: ignore[no-untyped-def]
    """Scores around each line, [n, CONTEXT]."""
    return context_of(lines, boxes, scores)


@kernel
def keep_lines(text, lines, boxes, words, first, second):  # type: ignore[no-untyped-def]
    """Return for each line whether it is main text."""
    return choose_lines(text, lines, boxes, words, first, second)


@kernel
def main_utf8(points, ends, words, first, second):  # type: ignore[no-untyped-def]
    """The main texts of layouts in UTF-8, and where each ends.

    `ends` has the end of each layout in `points`. To call a kernel with so many tables takes as long as a small page.
    """
    out, out_ends = np.empty(len(points) + len(points) // 4 + 64, uint8), np.empty(len(ends), int64)
    begin, filled = int64(0), int64(0)
    for page in range(len(ends)):
        text, lines, boxes = read_layout(points[begin : ends[page]], words[0])
        mark_prose(text, lines, words[1])
        found = write_lines(text, lines, choose_lines(text, lines, boxes, words, first, second), words[0])
        if filled + 4 * len(found) > len(out):
            longer = np.empty(2 * (filled + 4 * len(found)), uint8)
            copy(out, 0, filled, longer, 0)
            out = longer
        filled = write_utf8(found, out, filled)
        begin, out_ends[page] = ends[page], filled
    return out[:filled], out_ends


@part
def choose_lines(text, lines, boxes, words, first, second):  # type: ignore[no-untyped-def]
    """Return for each line whether it is main text."""
    count = len(lines)
    keeps = np.zeros(count, np.bool_)
    if not count:
        return keeps
    found = describe(text, lines, boxes, words)
    scores = score_lines(found, count, first)
    columns = np.zeros((FEATURES + CONTEXT, found.shape[1]), float32)
    columns[:FEATURES] = found
    columns[FEATURES:, :count] = context_of(lines, boxes, scores).T
    second_scores = score_lines(columns, count, second)
    for i in range(count):
        keeps[i] = second_scores[i] > (SURE if lines[i, SIZE] < LONG else LIKELY)
    if _settle(keeps, lines, boxes, found.T):
        _trim(keeps, text, lines, found.T, words[1])
    return keeps


@part
def _trim(keeps, text, lines, found, lower):  # type: ignore[no-untyped-def]
    """Take links and notices off both ends, but not a first heading."""
    for end in range(2):
        for i in range(len(lines)):
            place = len(lines) - 1 - i if end else i
            line = lines[place]
            if keeps[place] and line[LINKS] * 3 <= line[SIZE] and not is_notice(text, line, lower):
                break
            keeps[place] &= not end and TITLE <= line[KIND] <= HEADING and found[place, INSIDE] > 0


@part
def _keep_code(keeps, lines, boxes, found):  # type: ignore[no-untyped-def]
    """Keep all lines of code among the text.

    Names in it may be links, on some lines nearly all characters; a list of links has them on all its lines.
    """
    code, sizes, links = np.zeros(len(boxes), int64), np.zeros(len(boxes), int64), np.zeros(len(boxes), int64)
    for box in range(1, len(boxes)):
        outer = code[boxes[box, PARENT]]
        code[box] = outer if outer else box if boxes[box, MARK_LETTER] == CODE else 0
    for line in lines:
        sizes[code[line[BOX]]] += line[SIZE]
        links[code[line[BOX]]] += line[LINKS]
    for i in range(len(lines)):
        block = code[lines[i, BOX]]
        if block and found[i, SET] and links[block] * 2 <= sizes[block]:
            keeps[i] = True


@part
def _settle(keeps, lines, boxes, found):  # type: ignore[no-untyped-def]
    """Correct the model's choice by rules.

    What the rules keep stays where the model keeps no prose; titles, code and tables among the text stay; lines between
    breaks and bullets go with their neighbours. The result is whether the page has prose.
    """
    prose, kept, kept_prose = 0, 0, 0
    for i in range(len(lines)):
        prose += lines[i, PROSE]
        kept += keeps[i]
        kept_prose += keeps[i] and lines[i, PROSE]
    if (not kept_prose and prose) or not kept:
        for i in range(len(lines)):
            keeps[i] = found[i, INSIDE] > 0
    for i in range(len(lines)):
        own = found[i, SET] or (lines[i, KIND] == TITLE and found[i, INSIDE])
        if own and lines[i, LINKS] * 3 <= lines[i, SIZE]:
            keeps[i] = True
    _keep_code(keeps, lines, boxes, found)
    for i in range(1, len(lines)):  # lines between breaks
        line = lines[i]
        if not line[BLANK] and line[BOX] == lines[i - 1, BOX] and line[LINKS] * 3 <= line[SIZE]:
            keeps[i] |= keeps[i - 1]
    for i in range(len(lines) - 2, -1, -1):
        if lines[i, SIZE] == 1 and found[i, 2] == BULLET:
            keeps[i] = keeps[i + 1]
    return prose > 0
