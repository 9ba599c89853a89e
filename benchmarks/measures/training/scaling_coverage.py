"""Planted scaling laws: how exactly the fit finds them, and how often its intervals contain the truth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.measures.goals import Goal, figure
from pretrain.experiments.scaling.scaling_law import Fit, ScalingLaw, Trained, fit_law

LAWS = {
    "chinchilla": ScalingLaw(1.69, 406.4, 410.7, 0.34, 0.28),  # arXiv:2203.15556, table A3
    "replication": ScalingLaw(1.82, 482.0, 2085.4, 0.348, 0.366),  # arXiv:2404.10102
    "equal": ScalingLaw(2.0, 90.0, 500.0, 0.25, 0.35),
}
NOISES = (0.002, 0.01)
"""Standard deviation of a training's loss, in nats."""
TARGET = 1e21
"""FLOPs of the run that is predicted, a hundred times those of the largest rung."""
_BUDGETS = np.geomspace(1e18, 1e19, 3)
_SIZES = np.geomspace(1 / 4, 4, 4)
"""Of a budget's rungs, in best sizes of the middle budget: the default ladder has four widths for all budgets."""


def _ladder(law: ScalingLaw, noise: float, chance: np.random.Generator) -> list[Trained]:
    middle = law.best(float(_BUDGETS[1]))[0]
    pairs = [(middle * size, budget / 6 / (middle * size)) for budget in _BUDGETS for size in _SIZES]
    return [Trained(n, d, law.loss(n, d) + chance.normal(0, noise)) for n, d in pairs]


def scaling_laws(quick: bool) -> Iterator[Goal]:
    """Error on laws without noise, and coverage of 95 % intervals with it."""
    worst = max(_error(law) for law in LAWS.values())
    yield Goal("scaling.planted_error", worst, 0.01, "<=", "largest relative error of any parameter, no noise")
    count = 40 if quick else 200
    for name, law in LAWS.items():
        for noise in NOISES:
            yield from _coverage(f"{name}.{noise:g}", law, noise, count)


def _error(law: ScalingLaw) -> float:
    found = fit_law(_ladder(law, 0.0, np.random.default_rng(0)), resamples=0).law
    names = ("constant", "parameter_factor", "token_factor", "parameter_exponent", "token_exponent")
    return max(abs(getattr(found, name) / getattr(law, name) - 1) for name in names)


def _coverage(name: str, law: ScalingLaw, noise: float, count: int) -> Iterator[Goal]:
    target = law.best(TARGET)
    truth, right, widths = law.loss(*target), {"loss": 0, "size_exponent": 0}, []
    for seed in range(count):
        chance = np.random.default_rng(seed)
        fit: Fit = fit_law(_ladder(law, noise, chance), resamples=200, seed=seed)
        low, high = fit.interval(*target)
        right["loss"] += low <= truth + chance.normal(0, noise) <= high
        widths.append(high - low)
        low, high = fit.interval_of("size_exponent")
        right["size_exponent"] += low <= law.size_exponent <= high
    slack = 2 * (0.95 * 0.05 / count) ** 0.5  # two standard errors of so many ladders
    for what, hits in right.items():
        note = f"{count} ladders of 12 rungs; 95 % intervals, within two standard errors"
        yield Goal(f"scaling.{name}.{what}_coverage_at_least", hits / count, 0.90 - slack, ">=", note)
        yield Goal(f"scaling.{name}.{what}_coverage_at_most", hits / count, 0.98 + slack, "<=", note)
    yield figure(f"scaling.{name}.interval_width", float(np.median(widths)), "nats, median")
