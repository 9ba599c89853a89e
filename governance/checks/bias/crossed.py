"""Intersections: groups of two axes mentioned in one sentence.

"ethnicity x gender" is an axis with the groups "black x female", "white x male", ... A sentence mentions one when it
mentions both groups, or when a single term names both: "black women" is a term of ethnicity that holds the term "women"
of gender. Effects at an intersection need not be the sum of its parts (Crenshaw 1989; Buolamwini & Gebru 2018,
"Gender Shades", FAccT), so it has rows, intervals and p values of its own, in the suite `intersections`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from governance.errors import ConfigError

CROSS = " x "
USUAL = ("ethnicity x gender", "religion x gender", "age x gender")

Words = tuple[str, ...]
Name = tuple[str, str]


class Crossed(NamedTuple):
    """Two groups by number, and the name of their intersection."""

    name: Name
    one: int
    other: int


def chosen_pairs(pairs: Sequence[str] | None, axes: Collection[str]) -> tuple[str, ...]:
    """Pairs of axes to count; None: the usual ones among the lists.

    Raises:
        ConfigError: a pair does not name two axes of the lists, so that nothing would be counted.
    """
    for pair in pairs or ():
        named = pair.split(CROSS)
        if len(named) != 2 or len(set(named)) != 2 or not set(named) <= set(axes):
            known = ", ".join(sorted(axes))
            raise ConfigError(
                f"audit.bias.intersections: {pair!r} is not a pair of axes. Write two of {known} as"
                " 'ethnicity x gender'."
            )
    return tuple(pair for pair in (USUAL if pairs is None else pairs) if set(pair.split(CROSS)) <= set(axes))


def crossed_groups(groups: Sequence[Name], pairs: Sequence[str]) -> tuple[Crossed, ...]:
    """Intersections of one language's groups, ordered by pair and group."""
    of_axis: dict[str, list[tuple[int, str]]] = {}
    for number, (axis, group) in enumerate(groups):
        of_axis.setdefault(axis, []).append((number, group))
    return tuple(
        Crossed((pair, f"{group}{CROSS}{crossing_group}"), one, other)
        for pair in dict.fromkeys(pairs)
        for (one, group), (other, crossing_group) in itertools.product(*(of_axis.get(a, ()) for a in pair.split(CROSS)))
    )


def intersections_of_terms(
    identity: Mapping[Words, Sequence[int]], crossed: Sequence[Crossed], first: int
) -> dict[Words, tuple[int, ...]]:
    """Terms that name intersections by themselves -> their numbers, from `first`."""
    found = {}
    for term, groups in identity.items():
        inner = (term[i:j] for i in range(len(term)) for j in range(i + 1, len(term) + 1))
        named = {*groups, *(group for part in inner for group in identity.get(part, ()))}
        numbers = tuple(
            first + number for number, pair in enumerate(crossed) if pair.one in named and pair.other in named
        )
        if numbers:
            found[term] = numbers
    return found
