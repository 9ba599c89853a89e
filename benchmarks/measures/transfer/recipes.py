"""Training recipes: the shipped preset `configs/speedrun.toml` against itself with one of them.

Whole runs of `assay train` take turns, all of a seed before the next seed, on the same corpus, rows and starting
weights. The gain of a recipe is the preset's loss minus that with it, on the same held-out rows, at equal tokens; its
interval is Student's, of the differences by seed. Its price is the CPU time of whole runs as a share of that without
it. Goals are those of a short run, half the preset's steps; at its whole length, and in the 24 steps of `--quick`, in
which a decay cannot act yet, there are figures alone. What was tried and not taken is in
`docs/decisions/0004-training.md`.
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

RECIPES = {"muon_weight_decay": "optim.muon_weight_decay=0.1"}
"""Each recipe, and what switches it on."""
SEEDS, QUICK_SEEDS = (1, 2, 3, 4, 5), (1, 2)
SHORT = ("train.steps=120", "optim.decay_steps=88")
QUICK = ("train.steps=24", "optim.decay_steps=18")
GAIN = 0.005
"""Nats that a recipe must gain to stay."""


def recipes(quick: bool) -> list[Goal]:
    """Gain of each recipe in nats, the lower end of its 95 % interval, and its share of CPU time."""
    with tempfile.TemporaryDirectory() as scratch:
        path = prepare(Path(scratch) / "ours", preset(), BYTES // 6 if quick else BYTES)
        if quick:
            return figures(path, "24_steps", QUICK_SEEDS, QUICK)
        goals = []
        for name, ((gain, low, high), price) in compare(path, SEEDS, SHORT).items():
            goals += [
                Goal(f"recipe_{name}_gain_nats", gain, GAIN, note=f"95 % {low:.4f} to {high:.4f}, {len(SEEDS)} seeds"),
                Goal(f"recipe_{name}_gain_lower_end", low, 0.0),
                figure(f"recipe_{name}_cpu_share", price),
            ]
        return goals + figures(path, "whole_length", SEEDS, ())


def figures(path: Path, end: str, seeds: Sequence[int], length: Sequence[str]) -> list[Goal]:
    """Gain of each recipe at a length without a goal."""
    return [
        figure(f"recipe_{name}_gain_{end}", gain, f"95 % {low:.4f} to {high:.4f}, CPU time {price:.2f} of that without")
        for name, ((gain, low, high), price) in compare(path, seeds, length).items()
    ]


def compare(
    path: Path, seeds: Sequence[int], length: Sequence[str]
) -> dict[str, tuple[tuple[float, float, float], float]]:
    """Gain with its interval, and share of CPU time, of each recipe."""
    gains: dict[str, list[float]] = {name: [] for name in RECIPES}
    spent = dict.fromkeys(["", *RECIPES], 0.0)
    for seed in seeds:
        plain, loss = own_run(path, [f"train.seed={seed}", *length])
        spent[""] += plain.cpu_seconds
        for name, switch in RECIPES.items():
            ended, reached = own_run(path, [f"train.seed={seed}", *length, switch])
            spent[name] += ended.cpu_seconds
            gains[name].append(loss - reached)
            print(f"# seed {seed}, {name}: {loss:.4f} to {reached:.4f}", file=sys.stderr, flush=True)
    return {name: (interval(found), spent[name] / spent[""]) for name, found in gains.items()}


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t."""
    from scipy.stats import t

    mean, count = statistics.fmean(differences), len(differences)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return mean, mean - half, mean + half
