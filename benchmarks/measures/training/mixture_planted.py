"""Planted best mixtures: how near the experiment comes with a sixteenth of the run's tokens.

A problem is drawn at random: texts of each source (some scarce, so that a good mixture repeats them), how much each
teaches about each, and what the validation text consists of. Repeated tokens teach less (arXiv:2305.16264), and the
loss falls as a power of what was taught. The trainings are those of `mixture_runs.py`, all together a sixteenth of the
run's tokens, with noise of .003 nats. Unmatched trainings read whole sources in place of a share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.measures.goals import Goal, figure
from pretrain.experiments.mixtures.mixture_law import fit_mixtures
from pretrain.experiments.mixtures.mixture_runs import spread_mixtures, within

BUDGET = 1 / 16
NOISE = 0.003
"""Standard deviation of a training's loss, in nats."""
CLOSE = 0.05
"""Error of a weight that arXiv:2606.07597 reports for one such experiment on two sources."""
_MAX_EPOCHS = 8
_GRID = 20_000

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def mixtures(quick: bool) -> Iterator[Goal]:
    """Errors on planted problems of two, three and five sources."""
    for sources in (2, 3, 5):
        found = [_problem(sources, seed) for seed in range(40 if quick else 200)]
        off, unmatched, lost, own, _ = (float(np.median(column)) for column in zip(*found, strict=True))
        covered = float(np.mean([row[4] for row in found]))
        name, about = f"mixture.{sources}_sources", f"{3 * sources + 3} trainings, median of {len(found)} problems"
        if sources < 5:
            yield Goal(f"{name}.weight_off", off, CLOSE, "<=", f"largest of the weights; {about}")
        else:
            yield figure(f"{name}.weight_off", off, about)
        yield figure(f"{name}.weight_off_unmatched", unmatched, "each training reads whole sources")
        yield Goal(f"{name}.loss_over_best", lost, own / 10, "<=", f"nats; goal: a tenth of the run's own {own:.4f}")
        yield figure(f"{name}.interval_coverage", covered, "of the best weights by 95 % intervals")


def _problem(sources: int, seed: int) -> tuple[float, float, float, float, float]:
    """Errors of the weights, matched and not; loss over the best, of the found and the own; coverage."""
    chance = np.random.default_rng(seed)
    texts = 0.01 + chance.dirichlet(np.full(sources, 0.7)) * chance.uniform(0.3, 3)
    while np.minimum(1, _MAX_EPOCHS * texts).sum() < 1.05:
        texts *= 1.5
    caps = np.minimum(1, _MAX_EPOCHS * texts)
    loss = _surface(texts, chance)
    grid = np.vstack([within(np.eye(sources), caps), within(chance.dirichlet(np.ones(sources), _GRID), caps)])
    whole = loss(grid, texts, 1.0)
    best = grid[int(whole.argmin())]
    tried = spread_mixtures(texts.tolist(), caps.tolist(), 3 * sources + 3)
    share = BUDGET / len(tried)
    noise = chance.normal(0, NOISE, len(tried))

    def fit(read: Floats) -> tuple[Floats, float]:
        made = fit_mixtures(tried, (loss(np.array(tried), read, share) + noise).tolist(), caps.tolist(), 200, seed)
        inside = [low - 1e-3 <= at <= high + 1e-3 for (low, high), at in zip(made.intervals(), best, strict=True)]
        return np.array(made.best), float(np.mean(inside))

    (matched, covered), (unmatched, _) = fit(share * texts), fit(texts)
    own, reached = loss(np.array([tried[0], matched]), texts, 1.0)
    least = float(whole.min())
    return (
        float(np.abs(matched - best).max()), float(np.abs(unmatched - best).max()), reached - least, own - least,
        covered,
    )  # fmt: skip


def _surface(texts: Floats, chance: np.random.Generator) -> Callable[[Floats, Floats, float], Floats]:
    """Loss of mixtures [n, sources] on texts of some size, after a share of the run's tokens."""
    count = len(texts)
    teaches = chance.uniform(0.02, 0.4, (count, count))
    np.fill_diagonal(teaches, 1)
    asked, fall, forgets = chance.dirichlet(np.ones(count)), chance.uniform(0.2, 0.4), chance.uniform(5, 20)
    height, harm = chance.uniform(0.3, 0.8, count), chance.uniform(0, 0.004)

    def loss(weights: Floats, read: Floats, tokens: float) -> Floats:
        readings = weights * tokens / read
        more = 1 + forgets * (1 - np.exp(-(np.maximum(readings, 1) - 1) / forgets))
        worth = read * np.where(readings <= 1, readings, more)
        taught = worth @ teaches.T + 1e-4 * tokens
        spoilt = harm * (weights * np.maximum(readings - 4, 0)).sum(1)
        return np.asarray(1.5 + (asked * height * taught**-fall).sum(1) + spoilt)

    return loss
