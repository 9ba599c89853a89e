"""Planted scaling laws: how exactly the fit finds them, and how often its intervals contain the truth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.measures.goals import Goal, figure
from pretrain.experiments.scaling.scaling_law import ScalingLaw, Trained, fit_law

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
"""Sizes of the rungs in best sizes of the middle budget: the default ladder has four widths for all budgets."""


def _ladder(law: ScalingLaw, noise: float, chance: np.random.Generator) -> list[Trained]:
    middle = law.best(float(_BUDGETS[1]))[0]
    pairs = [(middle * size, budget / 6 / (middle * size)) for budget in _BUDGETS for size in _SIZES]
    return [Trained(n, d, law.loss(n, d) + chance.normal(0, noise)) for n, d in pairs]


def scaling_laws(quick: bool) -> Iterator[Goal]:
    """Error on laws without noise, and coverage of 95 % intervals with it."""
    worst = max(_error(law) for law in LAWS.values())
    yield Goal("scaling.planted_error", worst, 0.01, "<=", "largest relative error of any parameter, no noise")
    yield from _coverage(40 if quick else 200)


def _error(law: ScalingLaw) -> float:
    found = fit_law(_ladder(law, 0.0, np.random.default_rng(0)), resamples=0).law
    names = ("constant", "parameter_factor", "token_factor", "parameter_exponent", "token_exponent")
    return max(abs(getattr(found, name) / getattr(law, name) - 1) for name in names)


def _coverage(count: int) -> Iterator[Goal]:
    """Coverage over all laws and noises, each with `count` ladders of its own."""
    right, ladders = {"loss": 0, "size_exponent": 0}, 0
    for name, law in LAWS.items():
        target = law.best(TARGET)
        truth = law.loss(*target)
        for noise in NOISES:
            widths = []
            for _ in range(count):
                chance = np.random.default_rng(ladders)
                fit = fit_law(_ladder(law, noise, chance), resamples=200, seed=ladders)
                low, high = fit.interval(*target)
                right["loss"] += low <= truth + chance.normal(0, noise) <= high
                widths.append(high - low)
                low, high = fit.interval_of("size_exponent")
                right["size_exponent"] += low <= law.size_exponent <= high
                ladders += 1
            yield figure(f"scaling.{name}.{noise:g}.interval_width", float(np.median(widths)), "nats, median")
    for what, hits in right.items():
        note = f"{ladders} ladders of 12 rungs; 95 % intervals"
        yield Goal(f"scaling.{what}_coverage_at_least", hits / ladders, 0.90, ">=", note)
        yield Goal(f"scaling.{what}_coverage_at_most", hits / ladders, 0.98, "<=", note)
