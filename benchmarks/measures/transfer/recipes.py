"""Training recipes: the shipped preset `configs/speedrun.toml` against itself without one of them.

Whole runs of `assay train` take turns, all of a seed before the next seed, on the same corpus, rows and starting
weights. The gain of a recipe is the loss without it minus the preset's, on the same held-out rows, at equal tokens; its
interval is Student's, of the differences by seed. Its price is the CPU time of a whole run as a share of that without
it. What was tried and not taken is in `docs/decisions/0004-training.md`.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measures.children import Ended
from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.training.training_setting import prepare
from benchmarks.measures.training.training_to_loss import BYTES, own_run, preset

WITHOUT = {"value_residual": "model.value_residual=0.0"}
"""Each recipe of the preset, and what switches it off."""
SEEDS, QUICK_SEEDS = (1, 2, 3, 4, 5), (1, 2, 3)
QUICK = ("train.steps=60", "optim.decay_steps=40")
GAIN = 0.005
"""Nats that a recipe must gain to stay."""


def recipes(quick: bool) -> list[Goal]:
    """Gain of each recipe in nats, the lower end of its 95 % interval, and its share of CPU time."""
    seeds, shorter = (QUICK_SEEDS, QUICK) if quick else (SEEDS, ())
    arms: dict[str, tuple[str, ...]] = {"preset": (), **{name: (off,) for name, off in WITHOUT.items()}}
    ended: dict[str, list[tuple[Ended, float]]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as scratch:
        path = prepare(Path(scratch) / "ours", preset(), BYTES // 6 if quick else BYTES)
        for seed in seeds:
            for name, changes in arms.items():
                ended[name].append(own_run(path, [f"train.seed={seed}", *shorter, *changes]))
                print(f"# seed {seed}, {name}: {ended[name][-1][1]:.4f}", file=sys.stderr, flush=True)
    goals = [figure("recipes_preset_loss", statistics.fmean(loss for _, loss in ended["preset"]))]
    for name in WITHOUT:
        pairs = list(zip(ended["preset"], ended[name], strict=True))
        gain, low, high = interval([without - with_it for (_, with_it), (_, without) in pairs])
        price = sum(one.cpu_seconds for (one, _), _ in pairs) / sum(other.cpu_seconds for _, (other, _) in pairs)
        goals += [
            Goal(f"recipe_{name}_gain_nats", gain, GAIN, note=f"95 % {low:.4f} to {high:.4f}, {len(seeds)} seeds"),
            Goal(f"recipe_{name}_gain_lower_end", low, 0.0),
            figure(f"recipe_{name}_cpu_share", price),
        ]
    return goals


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t."""
    from scipy.stats import t

    mean, count = statistics.fmean(differences), len(differences)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return mean, mean - half, mean + half
