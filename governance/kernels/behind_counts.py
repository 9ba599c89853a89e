"""Terms and sampled sentences behind the counts of mentions.

A priority is 63 bits of a hash of the document's id; bit 63 is set for a long sentence, so it ranks after. The
least priority of a document counts. Promise: what is kept is the least of all that came, in any order.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from governance.kernels.compiled import part

EXAMPLES = 3
"""Sentences kept of a cell."""
NO_PRIORITY = np.uint64(0xFFFFFFFFFFFFFFFF)
_DOCUMENT = np.uint64(0x7FFFFFFFFFFFFFFF)


@part
def keep_example(priority, best):  # type: ignore[no-untyped-def]
    """Put a priority among the `EXAMPLES` least of its cell, ascending.

    Return whether it was kept.
    """
    last = len(best) - 1
    if priority >= best[last]:
        return False
    place = last
    for j in range(len(best)):
        if (best[j] ^ priority) & uint64(_DOCUMENT) == uint64(0):
            if best[j] <= priority:
                return False
            place = j
    while place > 0 and best[place - 1] > priority:
        best[place] = best[place - 1]
        place -= 1
    best[place] = priority
    return True


@part
def more_rows(values):  # type: ignore[no-untyped-def]
    """The rows with as much room again."""
    more = np.empty((2 * len(values), values.shape[1]), values.dtype)
    more[: len(values)] = values
    return more


@part
def add_terms(hits, first, last, others, people, subjects, score, sums):  # type: ignore[no-untyped-def]
    """Count terms `first` to `last` of a sentence with their context.

    `hits` holds identity terms and others, with -1 and -2 for none; `others` is the others' matcher. `people` and
    `subjects` are the groups and the categories of the sentence, each with their number.
    """
    (terms, more), (groups, many), (categories, several) = hits, people, subjects
    _, pairs, _, named, beside, _ = sums
    _, _, _, label_starts, labels = others
    cells, nobody = 1 + pairs.shape[2], len(beside) - 1
    for k in range(first, last):
        term, word = terms[k], more[k]
        if term >= 0:
            named[term, 0] += 1
            for j in range(several):
                named[term, 1 + categories[j]] += 1
            for instrument in range(len(score)):
                if score[instrument]:
                    named[term, cells + 2 * instrument + (score[instrument] > 0)] += 1
        if word >= 0 and labels[label_starts[word], 0] != 2:
            free = term == -1
            if not many:
                beside[nobody, word, 0] += 1
                beside[nobody, word, 1] += free
            for j in range(many):
                beside[groups[j], word, 0] += 1
                beside[groups[j], word, 1] += free


@part
def cell_of(k, subjects, score, cells):  # type: ignore[no-untyped-def]
    """Cell of a sentence's `k`-th category or instrument; -1 if none."""
    categories, several = subjects
    if k < several:
        return categories[k]
    if cells == 1:
        return 0
    value = score[k - several]
    return -1 if value == 0 else cells - 2 * len(score) + 2 * (k - several) + (value > 0)


@part
def has_room(rank, people, subjects, score, best):  # type: ignore[no-untyped-def]
    """Return whether a sentence of this priority fits a cell."""
    groups, many = people
    cells, last = best.shape[1], best.shape[2] - 1
    for k in range(subjects[1] + len(score) + (cells == 1)):
        cell = cell_of(k, subjects, score, cells)
        for j in range(many):
            if cell >= 0 and rank < best[groups[j], cell, last]:
                return True
    return False


@part
def keep_examples(here, span, people, subjects, score, best, chosen, filled):  # type: ignore[no-untyped-def]
    """Record the sentence in each of its cells with room."""
    groups, many = people
    cells = best.shape[1]
    for k in range(subjects[1] + len(score) + (cells == 1)):
        cell = cell_of(k, subjects, score, cells)
        for j in range(many):
            if cell >= 0 and keep_example(here[1], best[groups[j], cell]):
                if filled == len(chosen):
                    chosen = more_rows(chosen)
                chosen[filled, 0], chosen[filled, 1], chosen[filled, 2] = here[0], groups[j], cell
                chosen[filled, 3], chosen[filled, 4] = span
                filled += 1
    return chosen, filled
