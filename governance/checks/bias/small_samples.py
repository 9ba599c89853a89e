"""Intervals and p values for small samples.

    rate r of n units       beta quantiles of (x + 1/2, n - x + 1/2), x = r n; 0 and 1 are their own bounds
    count x                 gamma quantiles of x + 1/2 (Poisson)
    mean of n scores        the pool's scores -c, 0, +c with chances tilted by exp(theta s), n convolved

Ten sentences that all score 0 have no variance, yet carry little information. The rate's interval is Jeffreys' (Brown,
Cai & DasGupta 2001, "Interval Estimation for a Binomial Proportion", Statistical Science 16(2), 101-133), close to the
mid-p interval of Clopper & Pearson 1934. The mean's is its counterpart for scores: exponential tilting of the scores of
all groups gives a family with one parameter in which the sum is sufficient (Efron 1981, Canadian Journal of Statistics
9(2), 139-172), and the limits are those thetas under which the sum is in a tail of 2.5 % (mid-p, Lancaster 1961, JASA
56, 223-234); with two scores it is the binomial's. p are two-sided mid-p.

n need not be an integer: correlated units, or a small reference, count as fewer (effective sample size, Korn & Graubard
1998, "Confidence Intervals for Proportions with Small Expected Number of Positive Counts", Survey Methodology 24(2),
193-201).

Where few units are expected, no count is too low: the interval of a count of 0 still holds the rate. Its lower tail is
empty there, and 2.5 % in the upper one cover .973 in the mean over one to two expected units. So up to the upper bound
of a count of 0, a rate's lower bound has ONE_SIDED; likewise its upper bound near 1. With the 5 % of both tails a count
of 3 would miss a rate of one expected unit, the least that has an interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_TAIL = 0.025
ONE_SIDED = 0.04
"""Tail of a rate's bound where the other tail is empty."""
MAX_RARER = 30.0
"""Units of the rarer scores expected beyond which a mean of scores is treated as normal."""
_TURNS = 40  # halvings of theta


@dataclass(frozen=True)
class Bounds:
    """95 % intervals and two-sided p values, each [rows]; NaN is unknown."""

    lower: Floats
    upper: Floats
    p: Floats


def rate_bounds(rate: Floats, n: Floats, null: Floats, one_sided: float = ONE_SIDED) -> Bounds:
    """Bounds of rates of effective units, and p of `null`.

    `one_sided` is the tail of a bound where the other tail is empty.
    """
    from scipy.special import betainc, betaincinv

    rate, n, null = (np.asarray(part, np.float64) for part in np.broadcast_arrays(rate, n, null))
    known = np.isfinite(rate) & np.isfinite(n) & (n > 0)
    n = np.where(known, n, 1.0)
    x = np.where(known, np.clip(rate, 0.0, 1.0) * n, 0.0)
    rest = n - x
    of_none = betaincinv(0.5, n + 0.5, 1 - _TAIL)  # upper bound of a count of 0
    lower, most_lower = (np.where(x > 0, betaincinv(x + 0.5, rest + 0.5, tail), 0.0) for tail in (_TAIL, one_sided))
    upper, least_upper = (
        np.where(rest > 0, betaincinv(x + 0.5, rest + 0.5, 1 - tail), 1.0) for tail in (_TAIL, one_sided)
    )
    lower = np.maximum(lower, np.minimum(most_lower, of_none))
    upper = np.minimum(upper, np.maximum(least_upper, 1 - of_none))
    with np.errstate(invalid="ignore"):
        at = np.clip(null, 0.0, 1.0)
        least = np.where(x > 0, betainc(np.maximum(x, 1e-12), rest + 1, at), 1.0)  # P(X >= x)
        more = np.where(rest > 0, betainc(x + 1, np.maximum(rest, 1e-12), at), 0.0)  # P(X >= x + 1)
    above = (least + more) / 2
    p = np.minimum(1.0, 2 * np.minimum(above, 1 - above))
    testable = known & np.isfinite(null)
    return Bounds(np.where(known, lower, np.nan), np.where(known, upper, np.nan), np.where(testable, p, np.nan))


def count_bounds(count: Floats) -> tuple[Floats, Floats]:
    """95 % bounds of the mean of a Poisson count (Jeffreys').

    The count need not be an integer.
    """
    from scipy.special import gammaincinv

    return gammaincinv(count + 0.5, _TAIL), gammaincinv(count + 0.5, 1 - _TAIL)


@dataclass(frozen=True)
class Scores:
    """The chances of the scores -step, 0, +step.

    The rate of scored sentences, their mean and their spread equal the pool's.
    """

    minus: float
    plus: float
    step: float

    @property
    def mean(self) -> float:
        """Points per sentence."""
        return self.step * (self.plus - self.minus)

    @property
    def rarer(self) -> float:
        """Share of the scores that are not the most common one."""
        return 1 - max(self.minus, self.plus, 1 - self.minus - self.plus)


def scores_of(n: float, total: float, squares: float, hits: float) -> Scores | None:
    """The scores of a pool from its sums; None where nothing varies."""
    if n <= 0 or hits <= 0 or squares <= 0:
        return None
    step = max((squares / hits) ** 0.5, (squares / n) ** 0.5)
    scored = squares / n / step**2
    balance = float(np.clip(total / n / step, -scored, scored))
    return Scores((scored - balance) / 2, (scored + balance) / 2, step)


def mean_p(mean: float, n: float, null: float, pool: Scores) -> float:
    """Two-sided p of `null` for the mean of n scores."""
    if n * pool.rarer > MAX_RARER:
        return _normal_bounds(mean, n, null, pool)[2]
    under = _chance_below(mean, n, pool)(_theta_of(pool, null))
    return min(1.0, 2 * min(under, 1 - under))


def mean_bounds(mean: float, n: float, null: float, pool: Scores) -> tuple[float, float, float]:
    """Lower, upper and p of `null` for the mean of n scores."""
    if n * pool.rarer > MAX_RARER:
        return _normal_bounds(mean, n, null, pool)
    below = _chance_below(mean, n, pool)
    at = mean / pool.step

    def solved(tail: float) -> float:
        low, high = -40.0, 40.0
        for _ in range(_TURNS):
            theta = (low + high) / 2
            low, high = (theta, high) if below(theta) > tail else (low, theta)
        return (low + high) / 2

    lower = -pool.step if at <= -1 else _tilted_mean(pool, solved(1 - _TAIL))
    upper = pool.step if at >= 1 else _tilted_mean(pool, solved(_TAIL))
    under = below(_theta_of(pool, null))
    return lower, upper, min(1.0, 2 * min(under, 1 - under))


def _chance_below(mean: float, n: float, pool: Scores) -> Callable[[float], float]:
    """Mid-p chance of a lower mean, as a function of theta."""
    units = max(1, round(n))
    log_weights, support = _convolved(pool, units), np.arange(-units, units + 1, dtype=np.float64)
    at = float(np.clip(mean / pool.step * units, -units, units))

    def below(theta: float) -> float:
        """P(T <= at) - P(T = at) / 2, interpolated between sums."""
        logs = log_weights + theta * support
        chances = np.exp(logs - logs.max())
        chances /= chances.sum()
        mid_p = np.cumsum(chances) - chances / 2
        return float(np.interp(at, support, mid_p))

    return below


def _normal_bounds(mean: float, n: float, null: float, pool: Scores) -> tuple[float, float, float]:
    from scipy.special import ndtr, ndtri

    error = (max((pool.plus + pool.minus) * pool.step**2 - pool.mean**2, 0.0) / n) ** 0.5
    margin = float(ndtri(1 - _TAIL)) * error
    return mean - margin, mean + margin, float(2 * ndtr(-abs(mean - null) / error)) if error else float("nan")


def _convolved(pool: Scores, units: int) -> Floats:
    """Log P(sum = k) of `units` scores, by repeated squaring."""
    square = np.array([max(pool.minus, 1e-9), max(1 - pool.minus - pool.plus, 1e-9), max(pool.plus, 1e-9)])
    chances, left = np.ones(1), units
    while left:
        if left & 1:
            chances = np.convolve(chances, square)
        left >>= 1
        square = np.convolve(square, square) if left else square
    return np.log(np.maximum(chances, 1e-300))


def _tilted_mean(pool: Scores, theta: float) -> float:
    minus, plus = max(pool.minus, 1e-9) * np.exp(-theta), max(pool.plus, 1e-9) * np.exp(theta)
    zero = max(1 - pool.minus - pool.plus, 1e-9)
    return float(pool.step * (plus - minus) / (plus + minus + zero))


def _theta_of(pool: Scores, mean: float) -> float:
    """The tilt under which a score has this mean, by halving."""
    low, high = -40.0, 40.0
    for _ in range(_TURNS):
        theta = (low + high) / 2
        low, high = (theta, high) if _tilted_mean(pool, theta) < mean else (low, theta)
    return (low + high) / 2
