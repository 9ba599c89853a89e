"""Rates and means compared within source.

    w_s            = n1 n0 / (n1 + n0)                             weight of source s; 0 where one side is not there
    mean of a side = sum over s of w_s x_s / n_s  /  sum of w_s    direct standardisation

A source is a stratum: parliaments and plays differ in vocabulary, whatever group they mention, and a group that occurs
mostly in one of them takes on its tone. The weights are Cochran's (1954, Biometrics 10(4), 417-451); with them a
difference of means has the least variance where sources differ by a constant, and a ratio of rates is Mantel and
Haenszel's (1959, JNCI 22(4), 719-748). With one source the weights have no effect.

Arrays are [rows, sources, buckets], or [rows, sources, replicates]; a row is a comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from governance.checks.bias.count_tables import Counts, stacked
from governance.checks.bias.interval_choice import design_effects
from governance.checks.bias.statistics import BUCKETS, Floats, Integers

NOT_TOGETHER = "no source has both sides"


def sources_of(keys: Iterable[tuple[Any, ...]]) -> list[str]:
    """The sources of keys that end with one, in order."""
    return sorted({key[-1] for key in keys})


def by_source(counts: Counts, keys: Iterable[tuple[Any, ...]], sources: Sequence[str]) -> Integers:
    """[keys, sources, buckets] of counts whose keys end with the source."""
    found = stacked(counts, [(*key, source) for key in keys for source in sources])
    return found.reshape(-1, len(sources), BUCKETS)


def comparable(own: Integers, others: Integers) -> Integers:
    """[rows, sources, 1]: 1 where both sides have sentences."""
    return np.asarray((own.sum(axis=-1) > 0) & (others.sum(axis=-1) > 0), np.int64)[:, :, None]


def weights(own: Floats | Integers, others: Floats | Integers) -> Floats:
    """w_s of counts of any shape."""
    whole = own + others
    return np.asarray(np.where(whole > 0, own * others / np.maximum(whole, 1), 0.0))


def standardised(sums: Floats, of: Floats, weight: Floats) -> Floats:
    """Means sums / of over the axis of sources (the second).

    A mean is NaN where no source has a weight.
    """
    with np.errstate(all="ignore"):
        means = np.where(weight > 0, sums / of, 0.0)
        return np.asarray((means * weight).sum(axis=1) / weight.sum(axis=1))


def units_within(
    own: Integers,
    others: Integers,
    sums: Integers,
    of: Integers,
    variance: Floats,
    by_site: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Effective units of a comparison, [rows].

    So many units carry, against an exactly known reference, the same information as the comparison.

    The variance of a weighed difference is sum of w_s^2 (1/n1 + 1/n0) over (sum of w_s)^2, the group's units counted by
    the design effect that its buckets have (`interval_choice.py`).

    Args:
        own: the group's units.
        others: the reference's units.
        sums: scores or hits from which the intraclass correlation is estimated.
        of: the units of these.
        variance: of one unit within its source, [rows].
        by_site: units per site of either side (`interval_choice.py`).
    """
    n1, n0, size = (part.sum(axis=-1).astype(np.float64) for part in (own, others, of))
    with np.errstate(all="ignore"):
        rates = np.where(size > 0, sums.sum(axis=-1) / size, 0.0)
        residuals = (sums - rates[:, :, None] * of).sum(axis=1)
        effective = n1 / design_effects(own.sum(axis=1), residuals, of.sum(axis=1), variance, by_site)[:, None]
        weight = weights(n1, n0)
        each = effective * n0 / (effective + n0)
        spread = np.where(weight > 0, weight**2 / each, 0.0).sum(axis=1)
        return np.asarray(weight.sum(axis=1) ** 2 / spread)


def notes_of(within: Floats, pooled: Floats, own: Integers, others: Integers) -> Iterator[str]:
    """Notes of each row on its sources.

    Args:
        within: the values, [rows].
        pooled: the values, had all sources been one.
        own: the group's units.
        others: the reference's.
    """
    several = ((own + others).sum(axis=-1) > 0).sum(axis=1) > 1
    mine, all_ = (own * comparable(own, others)).sum(axis=(1, 2)), own.sum(axis=(1, 2))
    for row, value in enumerate(within.tolist()):
        parts = []
        if not mine[row]:
            parts.append(NOT_TOGETHER)
        elif mine[row] < all_[row]:
            parts.append(f"{mine[row]:,} of {all_[row]:,} sentences are in a source with both sides")
        if several[row] and np.isfinite(pooled[row]) and value != pooled[row]:
            parts.append(f"{pooled[row]:.3g} with sources pooled")
        yield "; ".join(parts)
