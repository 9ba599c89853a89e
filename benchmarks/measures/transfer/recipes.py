"""Training recipes: the shipped preset `configs/speedrun.toml` against itself without one of them.

Whole runs of `assay train` take turns, all of a seed before the next seed, on the same corpus, rows and starting
weights. The gain of a recipe is the loss without it minus the preset's, on the same held-out rows, at equal tokens; its
interval is Student's, of the differences by seed. Its price is the CPU time of the preset's whole runs as a share of
that without it. Goals are those of the preset's whole length; in the 24 steps of `--quick` there are figures alone.
What was tried and not taken is in `docs/decisions/0004-training.md`.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.training.training_setting import prepare
from benchmarks.measures.training.training_to_loss import BYTES, own_run, preset

RECIPES = {
    "muon": 'optim.optimizer="adamw"',
    "squared_relu": 'model.feed_forward="gelu"',
    "qk_norm": "model.qk_norm=false",
    "norm_weights": "model.norm_weights=false",
}
"""Each recipe, and what takes it away."""
SEEDS, QUICK_SEEDS = (1, 2, 3, 4, 5), (1, 2)
QUICK = ("train.steps=24", "optim.decay_steps=18")
GAIN = 0.005
"""Nats that a recipe must gain to stay."""


def recipes(quick: bool) -> list[Goal]:
    """Gain of each recipe in nats, the lower end of its 95 % interval, and its share of CPU time."""
    with tempfile.TemporaryDirectory() as scratch:
        path = prepare(Path(scratch) / "ours", preset(), BYTES // 6 if quick else BYTES)
        found = compare(path, QUICK_SEEDS if quick else SEEDS, QUICK if quick else ())
        if quick:
            return [figure(f"recipe_{name}_gain_24_steps", gain[0], words(gain)) for name, (gain, _) in found.items()]
        goals = []
        for name, (gain, price) in found.items():
            goals += [
                Goal(f"recipe_{name}_gain_nats", gain[0], GAIN, note=words(gain)),
                Goal(f"recipe_{name}_gain_lower_end", gain[1], 0.0),
                figure(f"recipe_{name}_cpu_share", price),
            ]
        return goals


def words(gain: tuple[float, float, float]) -> str:
    """The interval of a gain, for a note."""
    return f"95 % {gain[1]:.4f} to {gain[2]:.4f}"


def compare(
    path: Path, seeds: Sequence[int], length: Sequence[str]
) -> dict[str, tuple[tuple[float, float, float], float]]:
    """Gain with its interval, and share of CPU time, of each recipe."""
    gains: dict[str, list[float]] = {name: [] for name in RECIPES}
    spent = dict.fromkeys(["", *RECIPES], 0.0)
    for seed in seeds:
        whole, loss = own_run(path, [f"train.seed={seed}", *length])
        spent[""] += whole.cpu_seconds
        for name, switch in RECIPES.items():
            ended, reached = own_run(path, [f"train.seed={seed}", *length, switch])
            spent[name] += ended.cpu_seconds
            gains[name].append(reached - loss)
            print(f"# seed {seed}, {name}: {loss:.4f}, without {reached:.4f}", file=sys.stderr, flush=True)
    return {name: (interval(found), spent[""] / spent[name]) for name, found in gains.items()}


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t."""
    from scipy.stats import t

    mean, count = statistics.fmean(differences), len(differences)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return mean, mean - half, mean + half
