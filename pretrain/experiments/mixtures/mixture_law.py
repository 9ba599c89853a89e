"""Loss as a function of the sources' weights, and its minimum.

    L(w) = sum of a_i w_i + b_i w_i log w_i,    b_i >= 0,    sum of w_i = 1

Each source has its own level and its own curvature: its first rows teach most and repeated ones less, which makes the
law convex. The law is linear in a and b (least squares with bounds). Its minimum under caps has a closed form but for
one multiplier, which bisection finds. The law only describes the neighbourhood of good mixtures, so a training is
weighted by the distance of its loss from the least one: 1 / (1 + (distance / median distance)^2)^2.

Intervals are percentiles of a bootstrap: errors are drawn, the law is fitted again, and its best weights are computed
again. Their spread is that of trainings which the fit leaves out (residual / (1 - leverage)), because the law is only
an approximation, and residuals of trainings in the fit hide its error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from governance.errors import PipelineError
from pretrain.experiments.scaling.scaling_law import Floats, percentiles

MIN_CURVE = 1e-6
"""Least b, in nats: the best weights stay unique."""


@dataclass(frozen=True)
class MixtureLaw:
    """A law of the loss, in nats per token, over the weights."""

    levels: tuple[float, ...]
    """a of each source."""
    curves: tuple[float, ...]
    """b of each source."""

    def loss(self, weights: Sequence[float]) -> float:
        """Loss of a mixture."""
        parts = zip(self.levels, self.curves, weights, strict=True)
        return sum(a * w + (b * w * math.log(w) if w else 0.0) for a, b, w in parts)

    def best(self, caps: Sequence[float]) -> tuple[float, ...]:
        """Weights of the least loss; none is above its cap.

        Each has the same marginal loss, a + b (1 + log w), unless its cap holds it.
        """
        levels, curves, most = np.array(self.levels), np.array(self.curves), np.array(caps)

        def at(marginal: float) -> Floats:
            return np.minimum(most, np.exp(np.minimum((marginal - levels) / curves - 1, 0.0)))

        low, high = float(np.min(levels - 700 * curves)), float(np.max(levels + curves))
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (low, middle) if at(middle).sum() >= 1 else (middle, high)
        weights = at(high)
        return tuple(float(weight) for weight in weights / weights.sum())


@dataclass(frozen=True)
class MixtureFit:
    """A law with its uncertainty."""

    law: MixtureLaw
    noise: float
    """Standard deviation of a good mixture's loss about a law that was fitted without it, in nats."""
    caps: tuple[float, ...]
    best: tuple[float, ...]
    draws: tuple[MixtureLaw, ...]
    """Laws of the bootstrap's resamples."""

    def intervals(self) -> list[tuple[float, float]]:
        """95 % interval of each best weight."""
        best = np.array([law.best(self.caps) for law in self.draws])
        return [percentiles(weights, 0.95) for weights in best.T]

    def gain(self, weights: Sequence[float]) -> tuple[float, float, float]:
        """Loss above that of the best weights, and its 95 % interval."""
        gains = np.array([law.loss(weights) - law.loss(self.best) for law in self.draws])
        return self.law.loss(weights) - self.law.loss(self.best), *percentiles(gains, 0.95)


def fit_mixtures(
    weights: Sequence[Sequence[float]], losses: Sequence[float], caps: Sequence[float], resamples: int, seed: int = 0
) -> MixtureFit:
    """The law of these trainings, its best weights, and a bootstrap.

    Raises:
        PipelineError: as many coefficients as trainings, or equal losses.
    """
    shares, measured, most = np.array(weights), np.array(losses), np.array(caps)
    count, sources = shares.shape
    freedom = count - 2 * sources
    if freedom < 1:
        raise PipelineError(
            f"mixture: {count} trainings determine no law of {sources} sources, which has {2 * sources} coefficients. "
            f"Raise mixture.trainings above that."
        )
    distance = measured - measured.min()
    if not distance.any():
        raise PipelineError(
            "mixture: all trainings have the same loss, so nothing tells the mixtures apart. Raise mixture.budget, or "
            "lower optim.learning_rate if no training learns at it."
        )
    counted = (1 + (distance / np.median(distance[distance > 0])) ** 2) ** -2.0
    law = _fit(shares, measured, counted)
    fitted = np.array([law.loss(row) for row in shares])
    columns = _columns(shares) * np.sqrt(counted)[:, None]
    leverage = np.minimum(np.einsum("ij,ji->i", columns, np.linalg.pinv(columns)), 0.95)
    noise = math.sqrt(float(np.mean(counted * ((measured - fitted) / (1 - leverage)) ** 2)))
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        # A spread that is itself uncertain widens the intervals, as Student's t does for a mean.
        spread = noise * math.sqrt(freedom / generator.chisquare(freedom))
        draws.append(_fit(shares, fitted + spread * generator.normal(0, 1, count) / np.sqrt(counted), counted))
    return MixtureFit(law, noise, tuple(most.tolist()), law.best(most.tolist()), tuple(draws))


def _columns(shares: Floats) -> Floats:
    """The terms that the coefficients multiply."""
    return np.hstack([shares, shares * np.log(np.maximum(shares, 1e-300))])


def _fit(shares: Floats, losses: Floats, counted: Floats) -> MixtureLaw:
    """Least squares, no curvature below its least."""
    from scipy.optimize import lsq_linear

    sources, scale = shares.shape[1], np.sqrt(counted)
    bounds = np.repeat([-np.inf, MIN_CURVE], sources)
    coefficients = lsq_linear(_columns(shares) * scale[:, None], losses * scale, (bounds, np.inf), method="bvls").x
    return MixtureLaw(
        tuple(coefficients[:sources].tolist()), tuple(np.maximum(coefficients[sources:], MIN_CURVE).tolist())
    )
