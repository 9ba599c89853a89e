"""Delete-a-group jackknife for statistics of summed counts.

    v = (G-1)/G x sum over g of (f(total without bucket g) - f(total))^2        on the scale of f
    interval = f(total) +- t(v_eff; 0.975) sqrt(v), taken back from the scale    95 %
    v_eff = (3.16 - 2.77/sqrt(G)) (sum of d_g^2)^2 / sum of d_g^4, in 1 .. G-1,   d_g = f(without g) - f(total)

Kott 2001, "The Delete-a-Group Jackknife", Journal of Official Statistics 17(4), 521-526, gives v; Johnson & Rust 1992,
"Population Inferences and Variance Estimation for NAEP Data", Journal of Educational Statistics 17(2), 175-190, give
the degrees of freedom: few large domains concentrate the variance in few buckets, where G-1 would be too many. G is the
number of buckets with sampled units. Documents of one domain share a bucket, so the interval accounts for their
correlation.

Scales make a skewed statistic nearly symmetric, and keep an interval inside its range: logit for shares, log for
ratios, Fisher's atanh for values between -1 and 1. The variance is that of the observed units: ten sentences that all
score 0 have none, so groups with few units have exact intervals instead (`interval_choice.py`, `share_estimates`).
Coverage is measured by `benchmarks/governance.py bias_null`. Where a handful of huge domains hold most mentions of a
rare group (2,000 domains, sizes log-normal with sigma 2, a group in 1 of 1,000 documents) it falls to 82 %: so few
domains do not show how domains differ.

Promise: a statistic of one bucket alone has no interval (NaN), never a narrow one. Price: 65 evaluations of the
statistic, vectorised; no second pass over documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from governance.checks.bias.small_samples import count_bounds, rate_bounds

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BUCKETS = 64
FEW_UNITS = 10
"""Units of a share, or missing from it, below which the jackknife's interval is skewed."""


@dataclass(frozen=True)
class Scale:
    """Scale on which a statistic is assumed symmetric."""

    forward: Callable[[Floats], Floats]
    backward: Callable[[Floats], Floats]


def _logit(share: Floats) -> Floats:
    return np.log(share) - np.log1p(-share)


def _expit(value: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-value))


IDENTITY = Scale(lambda value: value, lambda value: value)
LOGIT = Scale(_logit, _expit)
LOG = Scale(np.log, np.exp)
FISHER = Scale(np.arctanh, np.tanh)


@dataclass(frozen=True)
class Estimates:
    """Statistics with their 95 % intervals, each [rows]; NaN is unknown."""

    value: Floats
    lower: Floats
    upper: Floats
    p: Floats
    """Two-sided, of the value `null`."""
    error: Floats
    """Standard error on the scale."""
    degrees: Floats
    """Effective degrees of freedom."""


def two_sided_p(t: npt.ArrayLike, degrees: npt.ArrayLike) -> Floats:
    """Two-sided p of Student's t; NaN where undefined."""
    from scipy.special import stdtr

    return np.asarray(2.0 * stdtr(degrees, -np.abs(np.asarray(t, np.float64))))


def quantile(degrees: npt.ArrayLike) -> Floats:
    """Two-sided 95 % quantile of Student's t; NaN where undefined."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(degrees, 0.975))


def replicates(counts: npt.NDArray[np.int64] | Floats) -> Floats:
    """Totals with replicates: [..., buckets] -> [..., 1 + buckets].

    The total comes first, then the total without each bucket.
    """
    total = counts.sum(axis=-1, keepdims=True)
    return np.concatenate([total, total - counts], axis=-1).astype(np.float64)


def jackknife(
    statistic: Callable[..., Floats],
    counts: tuple[Integers | Floats, ...],
    sampled: Integers,
    scale: Scale,
    null: float = np.nan,
    most_degrees: Floats | None = None,
) -> Estimates:
    """Estimate a statistic of summed counts, with its interval.

    Args:
        statistic: elementwise, of as many arrays as there are counts; NaN or infinite where it has no value.
        counts: each [rows, buckets], or [1, buckets] when all rows share them.
        sampled: [rows or 1, buckets] units that could have entered the statistic; one without any is not a cluster.
        scale: on which the statistic is nearly symmetric.
        null: the tested value; NaN for none.
        most_degrees: of freedom, [rows]; `degrees_of_shares` for a share of all documents.
    """
    with np.errstate(all="ignore"):
        values = statistic(*(replicates(part) for part in counts))
        error, degrees = spread(scale.forward(values), sampled)
        degrees = degrees if most_degrees is None else np.minimum(degrees, most_degrees)
        center = scale.forward(values[:, 0])
        margin = quantile(degrees) * error
        p = two_sided_p((center - scale.forward(np.asarray(null))) / error, degrees)
        value = np.where(np.isfinite(values[:, 0]), values[:, 0], np.nan)
        lower, upper = scale.backward(center - margin), scale.backward(center + margin)
    known = np.isfinite(lower) & np.isfinite(upper)
    return Estimates(
        value, np.where(known, lower, np.nan), np.where(known, upper, np.nan), np.where(known, p, np.nan),
        error, degrees,
    )  # fmt: skip


def spread(scaled: Floats, sampled: Integers) -> tuple[Floats, Floats]:
    """Standard error and degrees of freedom from [rows, 1 + buckets].

    Both are NaN where there are fewer than two clusters, where a value without one of the buckets is not finite, and
    where there is no variance.
    """
    used = np.broadcast_to(sampled > 0, scaled[:, 1:].shape)
    with np.errstate(all="ignore"):
        squares = np.where(used, (scaled[:, 1:] - scaled[:, :1]) ** 2, 0.0)
        clusters = used.sum(axis=1).astype(np.float64)
        sums, fourths = squares.sum(axis=1), (squares**2).sum(axis=1)
        error = np.sqrt((clusters - 1) / clusters * sums)
        effective = (3.16 - 2.77 / np.sqrt(clusters)) * sums**2 / fourths
        degrees = np.clip(np.where(fourths > 0, effective, clusters - 1), 1.0, np.maximum(clusters - 1, 1.0))
    known = (clusters >= 2) & np.isfinite(error) & (error > 0)
    return np.where(known, error, np.nan), np.where(known, degrees, np.nan)


def effective_clusters(sampled: Integers) -> Floats:
    """Effective number of buckets, (sum n)^2 / sum n^2 (Kish 1965)."""
    sizes = sampled.astype(np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(sizes.sum(axis=-1) ** 2 / (sizes**2).sum(axis=-1))


def degrees_of_shares(whole: Integers) -> Floats:
    """Most degrees of freedom of a share: effective clusters less 1.

    They are at least 1; `whole` is [rows, buckets].

    Johnson and Rust's are an estimate, from few buckets too high as often as too low: with 12 sites of unlike size
    intervals of shares covered .93. A share is not tested, so a wider interval costs no power.
    """
    return np.asarray(np.maximum(effective_clusters(whole) - 1, 1.0))


def rate_estimates(part: Integers, whole: Integers) -> Estimates:
    """Rates part / whole per million, [rows, buckets] each.

    They are on the log scale; part is a small share of whole.

    A rate of fewer than FEW_UNITS is skewed: it has the interval of a Poisson count of its effective units, with the
    design effect of its own buckets, at least 1.
    """
    most = degrees_of_shares(whole)
    found = jackknife(lambda some, of: some * 1e6 / of, (part, whole), whole, LOG, most_degrees=most)
    count, units = part.sum(axis=-1), whole.sum(axis=-1)
    with np.errstate(all="ignore"):
        used = (whole > 0).sum(axis=-1)
        residuals = part - (count / units)[:, None] * whole
        effect = np.fmax(used / (used - 1) * (residuals**2).sum(axis=-1) / count, 1.0)
        lower, upper = (bound * effect * 1e6 / units for bound in count_bounds(count / effect))
    few = (count > 0) & (count < FEW_UNITS) & (used > 1)
    return replace(found, lower=np.where(few, lower, found.lower), upper=np.where(few, upper, found.upper))


def share_estimates(part: Integers, whole: Integers) -> Estimates:
    """Shares part / whole, [rows, buckets] each, on the logit scale.

    A share of fewer than FEW_UNITS is skewed: it has the interval of its effective units (`small_samples.py`), with the
    design effect of its own buckets, at least 1. A share of 0 or 1 has the exact bound of G independent clusters,
    1 - 0.025^(1/G) from the edge (Clopper & Pearson 1934), with G the effective clusters of the whole: documents of one
    cluster may all be alike.
    """
    found = jackknife(lambda a, b: a / b, (part, whole), whole, LOGIT, most_degrees=degrees_of_shares(whole))
    clusters = np.broadcast_to(effective_clusters(whole), found.value.shape)
    several = np.broadcast_to((whole > 0).sum(axis=-1) > 1, found.value.shape)
    units = np.broadcast_to(whole.sum(axis=-1), found.value.shape).astype(np.float64)
    with np.errstate(all="ignore"):
        reach = 1.0 - 0.025 ** (1.0 / clusters)
        used = np.broadcast_to((whole > 0).sum(axis=-1), found.value.shape)
        residuals = part - found.value[:, None] * whole
        effect = used / (used - 1) * (residuals**2).sum(axis=-1) / (units * found.value * (1 - found.value))
        exact = rate_bounds(found.value, units / np.maximum(np.nan_to_num(effect, nan=1.0), 1.0), found.value)
    few = several & (np.minimum(part, whole - part).sum(axis=-1) < FEW_UNITS)
    lower, upper = np.where(few, exact.lower, found.lower), np.where(few, exact.upper, found.upper)
    none, every = several & (found.value == 0.0), several & (found.value == 1.0)
    lower = np.where(none, 0.0, np.where(every, 1.0 - reach, lower))
    upper = np.where(none, reach, np.where(every, 1.0, upper))
    return Estimates(found.value, lower, upper, found.p, found.error, found.degrees)
