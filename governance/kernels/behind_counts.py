"""Terms and sampled sentences behind the counts of mentions.

A priority is 63 bits of a hash of the document's id; bit 63 is set for a long sentence, so it ranks behind. The
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
def add_terms(hits, first, last, labels, groups, categories, score, sums):  # type: ignore[no-untyped-def]
    """Count terms `first` to `last` of a sentence with their context.

    `hits` holds identity terms and others, with -1 and -2 for none; `labels` holds the others' label starts and labels.
    """
    terms, more = hits
    _, pairs, _, named, beside, _ = sums
    cells, nobody = 1 + pairs.shape[2], len(beside) - 1
    for k in range(first, last):
        term, word = terms[k], more[k]
        if term >= 0:
            named[term, 0] += 1
            for c in categories:
                named[term, 1 + c] += 1
            for instrument in range(len(score)):
                if score[instrument]:
                    named[term, cells + 2 * instrument + (score[instrument] > 0)] += 1
        if word >= 0 and labels[1][labels[0][word], 0] != 2:
            free = term == -1
            if len(groups) == 0:
                beside[nobody, word, 0] += 1
                beside[nobody, word, 1] += free
            for g in groups:
                beside[g, word, 0] += 1
                beside[g, word, 1] += free


@part
def cell_of(k, categories, score, cells):  # type: ignore[no-untyped-def]
    """Cell of a sentence's `k`-th category or instrument; -1 if none."""
    if k < len(categories):
        return categories[k]
    if cells == 1:
        return 0
    value = score[k - len(categories)]
    return -1 if value == 0 else cells - 2 * len(score) + 2 * (k - len(categories)) + (value > 0)


@part
def has_room(rank, groups, categories, score, best):  # type: ignore[no-untyped-def]
    """Return whether a sentence of this priority fits a cell."""
    cells, last = best.shape[1], best.shape[2] - 1
    for k in range(len(categories) + len(score) + (cells == 1)):
        cell = cell_of(k, categories, score, cells)
        for g in groups:
            if cell >= 0 and rank < best[g, cell, last]:
                return True
    return False


@part
def keep_examples(here, span, groups, categories, score, best, chosen, filled):  # type: ignore[no-untyped-def]
    """Record the sentence in each of its cells with room."""
    cells = best.shape[1]
    for k in range(len(categories) + len(score) + (cells == 1)):
        cell = cell_of(k, categories, score, cells)
        for g in groups:
            if cell >= 0 and keep_example(here[1], best[g, cell]):
                if filled == len(chosen):
                    chosen = more_rows(chosen)
                chosen[filled, 0], chosen[filled, 1], chosen[filled, 2] = here[0], g, cell
                chosen[filled, 3], chosen[filled, 4] = span
                filled += 1
    return chosen, filled
