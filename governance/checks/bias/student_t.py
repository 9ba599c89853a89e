"""Student's t for any degrees of freedom: two-sided p and the 0.975 quantile, in numpy alone.

    p(t, v) = I_x(v/2, 1/2),  x = v / (v + t^2)

I is the regularised incomplete beta function, by its continued fraction (Abramowitz & Stegun 1964, 26.5.8 and
26.7.1). Degrees of freedom are rounded down to a tenth and held in 1 .. 100, so that a quantile is looked up and errs
to the wide side. The quantile is found by halving an interval of p. Price: a tenth of a second once a process, for
the table of quantiles.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_DEGREES = 100.0
_TURNS = 120  # of the continued fraction: it has converged to 1e-15 long before, for every v up to 100
_TINY = 1e-300


def two_sided_p(t: npt.ArrayLike, degrees: npt.ArrayLike) -> Floats:
    """The chance that |T| is at least |t|; NaN where either is.

    Args:
        t: statistics, any shape.
        degrees: degrees of freedom, of a shape that fits.
    """
    with np.errstate(invalid="ignore"):
        v = np.clip(np.floor(np.asarray(degrees, np.float64) * 10 + 1e-6) / 10, 1.0, MOST_DEGREES)
    size, v = np.broadcast_arrays(np.abs(np.asarray(t, np.float64)), v)
    known = np.isfinite(v) & ~np.isnan(size)
    p = np.full(size.shape, np.nan)
    p[known] = _incomplete_beta(v[known], size[known])
    return p


def quantile(degrees: npt.ArrayLike) -> Floats:
    """The t that |T| stays under with a chance of 95 %; NaN where the degrees of freedom are."""
    v = np.asarray(degrees, np.float64)
    tenths = np.clip(np.floor(np.nan_to_num(v, nan=1.0) * 10 + 1e-6), 10, MOST_DEGREES * 10).astype(np.int64)
    return np.asarray(np.where(np.isnan(v), np.nan, _quantiles()[tenths - 10]))


@lru_cache(maxsize=1)
def _quantiles() -> Floats:
    """[tenths of a degree from 1.0 on]"""
    degrees = np.arange(10, int(MOST_DEGREES) * 10 + 1) / 10
    low, high = np.full(len(degrees), 1.9), np.full(len(degrees), 13.0)
    for _ in range(50):
        middle = (low + high) / 2
        above = two_sided_p(middle, degrees) > 0.05
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(high)


def _incomplete_beta(v: Floats, t: Floats) -> Floats:
    """I_x(v/2, 1/2) at x = v / (v + t^2), by the fraction that converges on x's side of the mean."""
    squares = t * t
    with np.errstate(invalid="ignore", over="ignore"):
        x = np.where(np.isinf(squares), 0.0, v / (v + squares))
        rest = np.where(np.isinf(squares), 1.0, squares / (v + squares))
    half = np.full_like(v, 0.5)
    a = v / 2
    lower = x < (a + 1) / (a + 2.5)
    first, second = np.where(lower, a, half), np.where(lower, half, a)
    at, away = np.where(lower, x, rest), np.where(lower, rest, x)
    unique, place = np.unique(a, return_inverse=True)
    log_beta = np.array([math.lgamma(n) + math.lgamma(0.5) - math.lgamma(n + 0.5) for n in unique.tolist()])[place]
    with np.errstate(divide="ignore"):
        front = np.exp(first * np.log(at) + second * np.log(away) - log_beta) / first
    part = front * _fraction(first, second, at)
    return np.asarray(np.clip(np.where(lower, part, 1.0 - part), 0.0, 1.0))


def _fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    """The continued fraction by Lentz's method."""

    def safe(values: Floats) -> Floats:
        return np.asarray(np.where(np.abs(values) < _TINY, _TINY, values))

    c = np.ones_like(x)
    d = 1.0 / safe(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TURNS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / safe(1.0 + numerator * d)
            c = safe(1.0 + numerator / c)
            value = value * c * d
    return value
