"""How long to a loss: the shipped preset `configs/speedrun.toml` against the small GPT under a tuned AdamW.

The GPT (4 layers x 256, bytes, rows of 256, fp32) takes 600 steps at the best rate of those that were tried, 2e-3 (nats
on the held-out rows: 1e-3 1.97, 2e-3 1.76, 3e-3 2.40, where it stalled, or 1.73); the preset takes the steps that
its file says, on the same corpus. Both are measured on the same tokens of the same held-out rows, and their steps are
taken in turn, so that the seconds compare on a busy machine. Loading and validating are not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measures import rivals
from benchmarks.measures.goals import Goal, told
from benchmarks.measures.in_turn import ours, runners
from benchmarks.measures.training_setting import HERE, THREADS, prepare, stream, tokens_of
from benchmarks.measures.training_speed import GPT, RIVALS, dump, rival
from pretrain.dataset import spread
from pretrain.run_config import load_run

STEPS, RATE, HEADS = 600, 2e-3, 4
SMALL = GPT.replace("384", "256").replace("1536", "1024").replace("= 6", "= 4")


def preset() -> str:
    """The sections of the shipped file from [model] on."""
    text = (HERE / "configs" / "speedrun.toml").read_text()
    return text[text.index("[model]") :]


def time_to_loss(quick: bool) -> list[Goal]:
    """The share of the GPT's time that the preset needs, and both losses, by seed; quick: one seed, a quarter."""
    seeds, steps = ((1,), STEPS // 4) if quick else ((1, 2, 3), STEPS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights, _ = dump(prepare(folder / "gpt", SMALL, 18_000_000), folder)
        path = prepare(folder / "ours", preset(), 18_000_000)
        rows, held = tokens_of(path), tokens_of(path, "validation")
        batch = held.batch(spread(held.count, 128))
        files = {"stream": stream(rows), "rows": batch.tokens.numpy(), "targets": batch.targets.numpy()}
        for name, array in files.items():
            np.save(folder / f"{name}.npy", array)
        goals = []
        for seed in seeds:
            goals += _one(folder, path, weights, seed, steps)
            print(f"# seed {seed}: {goals[-2].note}", file=sys.stderr, flush=True)  # a seed takes ten minutes
        return goals


def _own(path: Path, share: float) -> tuple[int, list[str]]:
    """The preset's steps, and the words that make it `share` as long: its schedule shrinks with it."""
    config = load_run(path, []).config
    steps = round(config.train.steps * share)
    sizes = {
        "train.steps": steps,
        "optim.warmup_steps": round(config.optim.warmup_steps * share),
        "optim.decay_steps": min(steps, round(config.optim.decay_steps * share)),
        "train.validate_every_steps": 0,
    }
    return steps, [word for name, value in sizes.items() for word in ("--set", f"{name}={value}")]


def _validation_loss(root: Path, steps: int) -> float:
    """Of the newest training in this root."""
    newest = max(root.glob("train/*/losses.json"), key=lambda path: path.stat().st_mtime)
    [last] = [line for line in json.loads(newest.read_bytes())["validations"] if line["step"] == steps]
    return float(last["loss"])


def _one(folder: Path, path: Path, weights: Path, seed: int, steps: int) -> list[Goal]:
    python = str(rivals.environment("training", RIVALS))
    arrays = [str(folder / f"{name}.npy") for name in ("stream", "rows", "targets")]
    root = path.parent / "root"
    own, changed = _own(path, steps / STEPS)
    words = ["train", str(path), "--root", str(root), "--set", f"train.seed={seed}", *changed]
    commands = {
        "ours": ours(*words),
        "gpt": [python, rival("gpt_to_loss.py"), *map(str, (weights, HEADS, THREADS, *arrays, steps, RATE, seed))],
    }
    with runners(commands, folder) as started:
        for number in range(own):
            if number + 1 < own:
                started["ours"].step()
            for _ in range(steps * number // own, steps * (number + 1) // own):
                started["gpt"].step()
        spent = {name: sum(runner.seconds) for name, runner in started.items()}
        spent["ours"] *= own / (own - 1)  # the last step cannot be told from the validation behind it
        started["gpt"].step()
        wanted = started["gpt"].answers[-1]["loss"]
        started["ours"].finish(300)
    reached = _validation_loss(root, own)
    return [
        Goal(f"time_to_loss_share_seed_{seed}", spent["ours"] / spent["gpt"], 0.25, "<="),
        Goal(f"time_to_loss_difference_seed_{seed}", reached - wanted, 0.0, "<=", note=f"{reached:.4f} {wanted:.4f}"),
        told(f"time_to_loss_seconds_seed_{seed}", spent["ours"], note=f"the GPT's {spent['gpt']:.0f}"),
    ]
