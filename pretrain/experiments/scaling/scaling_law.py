"""Scaling law of the loss in parameters N and tokens D.

    L(N, D) = E + A N^-alpha + B D^-beta        (arXiv:2203.15556, "approach 3")

The law is linear in E, A and B once the exponents are known. So the fit searches the two exponents alone, and solves
the rest by least squares with no negative coefficient (variable projection; Golub and Pereyra 1973). Five parameters
searched together have many poor local minima.

Intervals are percentiles of a bootstrap: residuals, enlarged for the five parameters that they were fitted with, are
drawn for each training, the law is fitted again, and the noise of one more training is added to what it predicts.

`parabola_exponent` is the other usual way, "approach 2": a parabola in log N for each budget, and a line through their
minima. Its exponent is biased where the sizes are not centred on the optimum or reach far from it (arXiv:2603.22339).
It is shown for comparison; nothing is predicted by it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from governance.errors import PipelineError

Floats = npt.NDArray[np.float64]

PARAMETERS = 5
MIN_TRAININGS = PARAMETERS + 2
"""Fewer leave no residual to estimate the noise from."""
MIN_VALUES = 3
"""Distinct sizes, and distinct numbers of tokens: two cannot tell an exponent from the constant."""
_LOWEST, _HIGHEST = 0.01, 3.0
_GRID = 14
"""Starting values of each exponent, spaced evenly in its logarithm."""


@dataclass(frozen=True)
class Trained:
    """A training of the ladder."""

    parameters: float
    tokens: float
    loss: float
    """Validation loss in nats per token."""


@dataclass(frozen=True)
class ScalingLaw:
    """E + A N^-alpha + B D^-beta, in nats per token."""

    constant: float
    parameter_factor: float
    token_factor: float
    parameter_exponent: float
    token_exponent: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss of a model size after a number of tokens."""
        return float(
            self.constant
            + self.parameter_factor * parameters**-self.parameter_exponent
            + self.token_factor * tokens**-self.token_exponent
        )

    def best(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss for 6 N D FLOPs."""
        a, b = self.parameter_exponent, self.token_exponent
        share = (a * self.parameter_factor / (b * self.token_factor)) ** (1 / (a + b))
        parameters = share * (flops / 6) ** (b / (a + b))
        return parameters, flops / 6 / parameters

    @property
    def size_exponent(self) -> float:
        """Exponent of the best number of parameters in the budget."""
        return self.token_exponent / (self.parameter_exponent + self.token_exponent)


@dataclass(frozen=True)
class Fit:
    """A law with its uncertainty."""

    law: ScalingLaw
    noise: float
    """Standard deviation of a training's loss about the law, in nats."""
    draws: tuple[ScalingLaw, ...]
    """Laws of the bootstrap's resamples; those that a resample does not determine are left out."""
    resamples: int

    def interval(self, parameters: float, tokens: float, level: float = 0.95) -> tuple[float, float]:
        """Interval for the loss of one more training."""
        losses = np.array([law.loss(parameters, tokens) for law in self.draws])
        losses += np.random.default_rng(1).normal(0, self.noise, len(losses))
        return percentiles(losses, level)

    def interval_of(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Interval for a property of the law, such as `token_exponent`."""
        return percentiles(np.array([getattr(law, name) for law in self.draws]), level)


def fit_law(trained: Sequence[Trained], resamples: int = 1000, seed: int = 0) -> Fit:
    """Best law of these trainings, with a bootstrap.

    Raises:
        PipelineError: too few trainings, sizes or numbers of tokens, or losses that show no law.
    """
    _refuse_few(trained)
    n, d, losses = (np.array([getattr(one, name) for one in trained]) for name in ("parameters", "tokens", "loss"))
    law = _fit(n, d, losses, None)
    if law is None:
        raise PipelineError(
            "scaling: the losses do not fall with the parameters and with the tokens, so no law can be fitted to them. "
            "Look at the ladder's losses: a rate that is too high, or budgets that are too close, hide the law."
        )
    fitted = np.array([law.loss(*of) for of in zip(n, d, strict=True)])
    freedom = len(losses) - PARAMETERS
    noise = math.sqrt(float(np.sum((losses - fitted) ** 2)) / freedom)
    drawn = np.random.default_rng(seed)
    laws = []
    for _ in range(resamples):
        # A spread that is itself uncertain widens the intervals, as Student's t does for a mean.
        spread = noise * math.sqrt(freedom / drawn.chisquare(freedom))
        again = _fit(n, d, fitted + drawn.normal(0, spread, len(losses)), law)
        if again is not None:
            laws.append(again)
    return Fit(law, noise, tuple(laws), resamples)


def parabola_exponent(curves: Sequence[Sequence[Trained]]) -> float | None:
    """Best size's exponent by approach 2, from curves of equal FLOPs.

    None where fewer than two curves have a minimum between their sizes.
    """
    found = []
    for curve in curves:
        if len(curve) < MIN_VALUES:
            continue
        sizes = np.log([one.parameters for one in curve])
        square, slope, _ = np.polyfit(sizes, [one.loss for one in curve], 2)
        if square > 0 and sizes.min() <= -slope / (2 * square) <= sizes.max():
            flops = np.mean(np.log([one.parameters * one.tokens for one in curve]))
            found.append((float(flops), float(-slope / (2 * square))))
    if len(found) < 2:
        return None
    budgets, best = zip(*found, strict=True)
    return float(np.polyfit(budgets, best, 1)[0])


def _refuse_few(trained: Sequence[Trained]) -> None:
    sizes, tokens = ({getattr(one, name) for one in trained} for name in ("parameters", "tokens"))
    if len(trained) < MIN_TRAININGS or min(len(sizes), len(tokens)) < MIN_VALUES:
        raise PipelineError(
            f"scaling: {len(trained)} trainings of {len(sizes)} sizes and {len(tokens)} numbers of tokens determine no "
            f"law. It has {PARAMETERS} parameters and needs {MIN_TRAININGS} trainings, {MIN_VALUES} sizes and "
            f"{MIN_VALUES} numbers of tokens: add to scaling.hidden_sizes or scaling.budgets."
        )


def _fit(n: Floats, d: Floats, losses: Floats, near: ScalingLaw | None) -> ScalingLaw | None:
    """Least squares over both exponents, from a grid or a law."""
    from scipy.optimize import minimize, nnls

    sizes, counts = np.exp(np.mean(np.log(n))), np.exp(np.mean(np.log(d)))  # scaled, so that the columns are near 1
    x, y = np.log(n / sizes), np.log(d / counts)

    def solved(exponents: Sequence[float]) -> tuple[Floats, float]:
        columns = np.stack([np.ones_like(x), np.exp(-exponents[0] * x), np.exp(-exponents[1] * y)], axis=1)
        return nnls(columns, losses)

    def distance(logs: Floats) -> float:
        exponents = np.exp(logs)
        if exponents.min() < _LOWEST or exponents.max() > _HIGHEST:
            return math.inf
        return float(solved(exponents)[1])

    if near is None:
        grid = np.linspace(math.log(_LOWEST * 2), math.log(_HIGHEST / 1.5), _GRID)
        start = min((np.array(pair) for pair in itertools.product(grid, grid)), key=distance)
    else:
        start = np.log([near.parameter_exponent, near.token_exponent])
    options = {"xatol": 1e-9, "fatol": 1e-12} if near is None else {"xatol": 1e-4, "fatol": 1e-9}
    found = minimize(distance, start, method="Nelder-Mead", options={"maxiter": 2000, **options})
    alpha, beta = (float(value) for value in np.exp(found.x))
    constant, a, b = (float(value) for value in solved((alpha, beta))[0])
    if a <= 0 or b <= 0:
        return None
    return ScalingLaw(constant, a * sizes**alpha, b * counts**beta, alpha, beta)


def percentiles(values: Floats, level: float) -> tuple[float, float]:
    """Interval that holds this share of a bootstrap's values."""
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
