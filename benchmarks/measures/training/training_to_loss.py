"""Time to a loss: the shipped preset `configs/speedrun.toml` against two opponents, whole processes.

    readme  nanoGPT's recipe for a CPU, as its README has it: 4 layers x 128, windows of 64, 12 rows, 2,000 iterations
    tuned   a GPT of 4 layers x 256, windows of 256, 16 rows, 600 steps at the best of three rates

The preset takes 132 steps here: books are harder than the plays and poems of its own corpus, for which it has 112. All
read the same text and are scored on the same windows of the same held-out documents. A time is from the start of
the process to its end, imports, saving and validation included: `assay train` with its gate, record and checkpoint.
Each is started when the one before has ended, so on a shared machine the ratio of processor time says more.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from assay.config import load_run
from benchmarks.measures import rivals
from benchmarks.measures.children import Ended, whole
from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.training.training_setting import HERE, THREADS, prepare, stream, tokens_of
from benchmarks.measures.training.training_speed import RIVALS, rival
from pretrain.config.model import padded_vocabulary
from pretrain.data.dataset import spread

BYTES = 18_000_000
SEEDS = {"readme": (1, 2, 3, 4, 5), "tuned": (1,)}
SHARE = {"readme": 0.20, "tuned": 0.25}
LENGTH = ("train.steps=132", "optim.decay_steps=79")


def preset() -> str:
    """The sections of the shipped file from [model] on."""
    text = (HERE / "configs" / "speedrun.toml").read_text()
    return text[text.index("[model]") :]


def time_to_loss(quick: bool) -> list[Goal]:
    """The share of each opponent's time that the preset needs, and both losses; quick: one seed of `readme`."""
    seeds = {"readme": SEEDS["readme"][:1]} if quick else SEEDS
    with tempfile.TemporaryDirectory() as scratch:
        path = prepare(Path(scratch) / "ours", preset(), BYTES)
        arrays = held_out_arrays(path)
        goals = []
        for seed in sorted({seed for some in seeds.values() for seed in some}):
            ours, reached = own_run(path, [f"train.seed={seed}", *LENGTH])
            goals.append(figure(f"time_to_loss_seconds_seed_{seed}", ours.seconds, f"{ours.cpu_seconds:.1f} of CPU"))
            for name in (name for name, some in seeds.items() if seed in some):
                goals += _against(name, seed, arrays, ours, reached)
            print(f"# seed {seed}: {goals[-1].line()}", file=sys.stderr, flush=True)
        return goals


def held_out_arrays(path: Path) -> list[Path]:
    """The training text, and the held-out rows that the preset is validated on with their targets."""
    train = load_run(path, []).config.train
    held = tokens_of(path, "validation")
    batch = held.batch(spread(held.count, train.validation_rows))
    files = {"stream": stream(tokens_of(path)), "rows": batch.tokens.numpy(), "targets": batch.targets.numpy()}
    for name, array in files.items():
        np.save(path.parent / f"{name}.npy", array)
    return [path.parent / f"{name}.npy" for name in files]


def own_run(path: Path, changes: Sequence[str]) -> tuple[Ended, float]:
    """`assay train` with changed settings, and the validation loss that it ended with."""
    root = path.parent / "root"
    before = set(root.glob("train/*/losses.json"))
    words = ["train", str(path), "--root", str(root), *(word for change in changes for word in ("--set", change))]
    ended = whole([sys.executable, "-m", "pretrain", *words])
    [new] = set(root.glob("train/*/losses.json")) - before
    return ended, float(json.loads(new.read_bytes())["validations"][-1]["loss"])


def _against(name: str, seed: int, arrays: Sequence[Path], ours: Ended, reached: float) -> list[Goal]:
    python = str(rivals.environment("training", RIVALS))
    words = (name, seed, THREADS, padded_vocabulary(257), *arrays)
    theirs = whole([python, rival("gpt_to_loss.py"), *map(str, words)])
    wanted = float(json.loads(theirs.printed)["loss"])
    end = f"{name}_seed_{seed}"
    return [
        Goal(f"time_to_loss_share_of_{end}", ours.seconds / theirs.seconds, SHARE[name], "<="),
        figure(f"time_to_loss_cpu_share_of_{end}", ours.cpu_seconds / theirs.cpu_seconds),
        figure(f"time_to_loss_seconds_of_{end}", theirs.seconds, f"{theirs.cpu_seconds:.1f} of CPU"),
        Goal(f"time_to_loss_difference_{end}", reached - wanted, 0.0, "<=", note=f"{reached:.4f} {wanted:.4f}"),
    ]
