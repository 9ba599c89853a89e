"""Choice of the interval for a comparison: exact, jackknife or none.

    expected < 1, or fewer than 5 buckets    none: "too few to say"
    expected < 5                             exact, of effective units (`small_samples.py`)
    more, or 30 counted                      the jackknife's (`statistics.py`)

`expected` is the group's expected count of the rarer outcome (sentences with a listed word, removed documents) at the
reference's rate. Observed counts are not used: a threshold on them would select the extremes. The threshold of 5 is
that of Cochran 1954, Biometrics 10(4), 417-451, and simulation confirms it (`benchmarks/governance.py bias_null`):
below 3 the jackknife of a mean of scores covers 57 to 90 % instead of 95 %, because sentences that all score 0 have no
variance.

Large groups on a dozen sites have few effective units and yet many outcomes, whose variance the jackknife sees: the
exact interval of the effective units covers .97 of toxicity ratios there, the jackknife's .96. `counted` is the
expected count of all units. p stays the exact one.

p is the greater of the jackknife's and the exact one wherever both are known: a variance estimated from few sites is
occasionally far too small.

    effective units = units / (1 + rho (m - 1))    m: mean units per bucket, by unit (sum of squares / sum)

Where the exact interval is chosen, p is at least that of as many units as the group has documents, fewer where these
are of unequal lengths (`documents_of`): rho is estimated by bucket, and a bucket of several documents resembles itself
less than one of them does. Ten sentences in six documents had p < .001 in up to .036 of simulated corpora without a
difference (rho .7 within a document); now in at most .0001 (`docs/bias_counts.md`).

rho is the intraclass correlation of the reference's units within a bucket (Kish 1965), from its own design effect; of
toxicity ratios within a site, with m by site (`fates.py`).
"""

from __future__ import annotations

import numpy as np

from governance.checks.bias.small_samples import Bounds, rate_bounds
from governance.checks.bias.statistics import Estimates, Floats, Integers

MIN_EXPECTED = 1.0
JACKKNIFE_EXPECTED = 5.0
MANY_COUNTED = 30.0
MIN_BUCKETS = 5
_ONE_UNIT = 1.05  # units per site up to which a reference does not show how those of one site resemble each other
TOO_FEW = "too few to say"


def rate_ratio_bounds(rate: Floats, reference: Floats, units: Floats) -> Bounds:
    """Bounds of a rate ratio, and p of 1.

    The upper bound is at most 1 / reference.
    """
    with np.errstate(all="ignore"):
        found = rate_bounds(rate, units, reference)
        return Bounds(found.lower / reference, found.upper / reference, found.p)


def effective_units(
    units: Integers | Floats, sums: Integers | Floats, of: Integers | Floats, variance: Floats
) -> Floats:
    """Effective units of a group, [rows], of `units` [rows, buckets].

    Args:
        units: the group's, by bucket.
        sums: of the reference's scores or hits, by bucket.
        of: the reference's units, by bucket.
        variance: of one unit of the reference, [rows].
    """
    with np.errstate(all="ignore"):
        return np.asarray(units.sum(axis=-1) / design_effects(units, sums, of, variance))


def design_effects(
    units: Integers | Floats,
    sums: Integers | Floats,
    of: Integers | Floats,
    variance: Floats,
    by_site: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Design effects 1 + rho (m - 1), [rows].

    The arguments are those of `effective_units`. `by_site` is m of the group and of the reference by site, each [rows];
    where it is unknown, or the reference has one unit per site, m is by bucket. A bucket of several sites resembles
    itself less than one of its sites, and a group on one of them would seem to hold more information than it has.
    """
    whole = units.sum(axis=-1).astype(np.float64)
    with np.errstate(all="ignore"):
        size = of.sum(axis=-1).astype(np.float64)
        residuals = sums - (sums.sum(axis=-1) / size)[:, None] * of
        clusters = (of > 0).sum(axis=-1)
        effect = clusters / (clusters - 1) * (residuals**2).sum(axis=-1) / (size * variance)
        crowded = (of.astype(np.float64) ** 2).sum(axis=-1) / size
        own = (units.astype(np.float64) ** 2).sum(axis=-1) / whole
        if by_site is not None:
            known = np.isfinite(by_site[0]) & (by_site[1] > _ONE_UNIT)
            own, crowded = np.where(known, by_site[0], own), np.where(known, by_site[1], crowded)
        rho = np.clip(np.nan_to_num((effect - 1) / (crowded - 1)), 0.0, 1.0)
        return np.asarray(1 + rho * (own - 1))


def documents_of(documents: Integers, sentences: Integers) -> Floats:
    """Effective number of documents of unequal lengths, [rows].

    Counts are [rows, ..., buckets]. It is (sum of s)^2 / (sum of s^2) over documents of s sentences (Kish 1965). Those
    of a bucket are known together and count as equally long.
    """
    within, of = tuple(range(1, documents.ndim)), sentences.astype(np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(of.sum(axis=within) ** 2 / np.where(documents > 0, of**2 / documents, 0.0).sum(axis=within))


def units_against(units: Floats, of: Floats) -> Floats:
    """Effective units against a reference known without error."""
    with np.errstate(all="ignore"):
        return np.asarray(units * of / (units + of))


def chosen_intervals(
    found: Estimates,
    exact: Bounds,
    expected: Floats,
    sampled: Integers | Floats,
    counted: Floats | None = None,
    of_documents: Floats | None = None,
) -> tuple[Estimates, list[str]]:
    """Choose the interval of each row; notes mark too few units.

    Args:
        found: the jackknife's.
        exact: of the same rows.
        expected: of the rarer outcome, by the reference's rate.
        sampled: the group's units by bucket.
        counted: as `expected`, of all units instead of the effective ones; None where `expected` is.
        of_documents: the exact p of as many units as the group has documents; None or NaN where unknown.
    """
    unknown = ~np.isfinite(found.lower)
    few = (expected < JACKKNIFE_EXPECTED) | unknown
    bare = few if counted is None else few & (unknown | ~(counted >= MANY_COUNTED))
    with np.errstate(all="ignore"):
        lower, upper = np.where(bare, exact.lower, found.lower), np.where(bare, exact.upper, found.upper)
        least = (
            exact.p if of_documents is None else np.where(np.isnan(exact.p), exact.p, np.fmax(exact.p, of_documents))
        )
        p = np.where(few, least, np.fmax(found.p, exact.p))
    fit = (expected >= MIN_EXPECTED) & ((sampled > 0).sum(axis=-1) >= MIN_BUCKETS)
    fit &= np.isfinite(found.value) & np.isfinite(lower) & np.isfinite(upper)
    lower, upper, p = (np.where(fit, part, np.nan) for part in (lower, upper, p))
    notes = ["" if one else TOO_FEW for one in fit.tolist()]
    return Estimates(found.value, lower, upper, p, found.error, found.degrees), notes
