"""Recall of planted facts by distance.

A row is text of the run with facts in it: `FACT slot value` is one token of its own, beyond the vocabulary, and
`ASK slot` another, at a distance of exactly d tokens; the answer is the fact's token again. Every slot has at most one
fact in a row, and facts are spread evenly over it, so that the number of facts in between grows with the distance. A
model whose state has a fixed size must forget; attention need not (arXiv:2312.04927, arXiv:2402.01032). Chance is one
over the values, for a model that has learned to name the slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
ROOM = 4  # a row is 5/4 of its longest distance, so that a fifth of its facts can be asked for at that distance


@dataclass(frozen=True)
class FactForm:
    """Tokens of the facts."""

    first: int
    """Id of the first one: the vocabulary's size."""
    slots: int
    values: int

    @property
    def vocabulary_size(self) -> int:
        """Exclusive upper bound of ids, facts and questions included."""
        return self.first + self.slots * (self.values + 1)


def row_length(distance: int) -> int:
    """Tokens of a row whose longest distance this is."""
    return distance + distance // ROOM


def plant(
    text: Integers, form: FactForm, distances: Sequence[int], draw: np.random.Generator
) -> tuple[Integers, Integers, Integers]:
    """Plant facts and questions in place of some tokens of `text`.

    Returns rows [B, L]: tokens, targets (-100 where nothing is asked) and the distance of each target (0 elsewhere).
    """
    tokens, rows, length = text.copy(), *text.shape
    targets, asked = np.full_like(text, -100), np.zeros_like(text)
    count = max(1, min(form.slots, length // 4))
    for row in range(rows):
        slots = draw.permutation(form.slots)[:count]
        facts = form.first + slots * form.values + draw.integers(form.values, size=count)
        places = (np.arange(count) * length) // count + draw.integers(max(1, length // count), size=count)
        tokens[row, places] = facts
        taken = np.zeros(length, bool)
        taken[places] = True
        pairs = [(fact, distance) for distance in distances for fact in np.flatnonzero(places + distance < length)]
        for number in draw.permutation(len(pairs)):
            fact, distance = pairs[number]
            place = places[fact] + distance
            if not taken[place]:
                taken[place] = True
                tokens[row, place] = form.first + form.slots * form.values + slots[fact]
                targets[row, place], asked[row, place] = facts[fact], distance
    return tokens, targets, asked


def trained_distances(longest: int) -> list[int]:
    """Distances in a training row: powers of two from 2."""
    return [1 << power for power in range(1, longest.bit_length()) if 1 << power <= longest] + (
        [] if longest & (longest - 1) == 0 else [longest]
    )


def longest_distance(step: int, steps: int, distances: Sequence[int]) -> int:
    """Longest distance of a step's rows (steps count from 1).

    It rises to the longest over the first half of the steps; then it takes the longer half of the ladder in turn.
    """
    ladder = [1 << power for power in range(3, distances[-1].bit_length()) if 1 << power < distances[-1]]
    ladder = [*ladder, distances[-1]]
    if 2 * step <= steps:
        return ladder[(len(ladder) - 1) * 2 * step // steps]
    return ladder[len(ladder) - 1 - step % ((len(ladder) + 1) // 2)]
