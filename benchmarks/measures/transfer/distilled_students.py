"""Students of a teacher against twins without one: tokens to the twin's loss, quality, time, memory, energy; draws.

English books (ASSAY_TEST_DATA) with a vocabulary of 512, through the pipeline and its gate. The teacher has four layers
of width 64 and reads four times the student's tokens; students and twins have two of its layers, the same rows in the
same order, and the same schedule. A student's tokens are those until its validation loss, interpolated between
validations, is that of its twin's end.

What they cost: every training is a process of its own, all of a seed one after the other, so a slow hour falls on all
of them; CPU-seconds and peak memory are the process's, joules the ledger's, as medians of the ratios by seed. The draws
are a process of their own, before. A training that was found and not made has no cost.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measures.children import whole
from benchmarks.measures.goals import Goal, figure, peak_mb
from governance.manifest import Manifest

MODEL = {
    "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
COSTS = ("cpu_seconds", "peak_mb", "joules")
DRAWS = "draws"
STEPS, EVERY, TEACHER_STEPS = 100, 5, 400
MODES: dict[str, dict[str, Any] | None] = {
    "twin": None,
    "online": {"weight": 0.5},
    "sampled": {"weight": 0.5, "logits": "sampled"},
    "sampled, begun as the teacher": {"weight": 0.5, "logits": "sampled", "start": "teacher"},
}
_STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def students(quick: bool) -> Iterator[Goal]:
    """Tokens that students need to the loss of their twins, with an interval over seeds, and what they cost."""
    from benchmarks.measures.training.training_setting import prepare

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = "\n".join(f"{field} = {value}" for field, value in {**MODEL, "num_hidden_layers": 2}.items())
        config = f"[model]\n{sizes}\n[optim]\nlearning_rate = 3e-3\n[train]\nsequence_length = 64\n"
        config += "global_batch_size = 16\nsteps = 1\n"
        prepare(folder, config, 1_500_000, 512)
        modes = ("twin", "sampled, begun as the teacher") if quick else tuple(MODES)
        yield from measured(folder / "root", 3 if quick else 5, modes)


def measured(root: Path, seeds: int, modes: Sequence[str]) -> Iterator[Goal]:
    """`students` on the token shards of a root."""
    teacher = _run(root, "teacher", 0)
    yield figure("distillation.teacher.loss", teacher["loss"], f"{TEACHER_STEPS} steps, 4 layers")
    drawn = _run(root, DRAWS, 0, teacher["checkpoint"])
    yield Goal("distillation.bytes_per_token", drawn["bytes_per_token"], 64, "<=")
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    for seed in range(seeds):
        for mode in modes:
            found[mode].append(_run(root, mode, seed, teacher["checkpoint"]))
    twins = found.pop("twin")
    yield figure("distillation.twin.loss", statistics.mean(one["loss"] for one in twins), f"{len(twins)} seeds")
    for field in COSTS:
        if known := [one[field] for one in twins if one[field]]:
            of_draws = f"the draws took {drawn[field]:.0f}" if drawn[field] else "the draws were found"
            yield figure(f"distillation.twin.{field}", statistics.median(known), of_draws)
    for mode, runs in found.items():
        yield from _compare(mode, runs, twins)


def _compare(mode: str, runs: list[dict[str, Any]], twins: list[dict[str, Any]]) -> Iterator[Goal]:
    name = f"distillation.{mode.replace(', ', '_').replace(' ', '_')}"
    saved = [1 - _steps_to(twin["loss"], one["validations"]) / STEPS for one, twin in zip(runs, twins, strict=True)]
    mean, half = _interval(saved)
    note = f"95 % interval {mean - half:.3f} to {mean + half:.3f}, {len(saved)} seeds"
    yield Goal(f"{name}.tokens_saved", mean, 0.20, note=note)
    yield Goal(f"{name}.tokens_saved_at_least", mean - half, 0.0)
    gain, half = _interval([twin["loss"] - one["loss"] for one, twin in zip(runs, twins, strict=True)])
    yield figure(f"{name}.nats_below_the_twin", gain, f"95 % interval {gain - half:.4f} to {gain + half:.4f}")
    for field in COSTS:
        pairs = [(one[field], twin[field]) for one, twin in zip(runs, twins, strict=True) if one[field] and twin[field]]
        if pairs:
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            yield figure(f"{name}.{field}_of_the_twin", ratio, f"median of {len(pairs)} pairs")


def _interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval by Student's t."""
    return statistics.mean(values), _STUDENT_T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def _steps_to(loss: float, validations: list[tuple[int, float]]) -> float:
    """Steps until the loss is reached, interpolated; infinite if it never is."""
    before: tuple[float, float] | None = None
    for step, value in validations:
        if value <= loss:
            return step if before is None else before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = step, value
    return math.inf


def _run(root: Path, mode: str, seed: int, teacher: str = "") -> dict[str, Any]:
    """One training in a process of its own."""
    ended = whole([sys.executable, "-m", __name__, str(root), mode, str(seed), teacher])
    result = json.loads(ended.printed.splitlines()[-1])
    costs = {"cpu_seconds": ended.cpu_seconds, "peak_mb": result["peak_mb"], "joules": result["joules"]}
    return {**result, **(costs if result["made"] else dict.fromkeys(COSTS))}


def _train(root: Path, mode: str, seed: int, teacher: str) -> dict[str, Any]:
    from governance.energy.meters import EnergyConfig, meter
    from governance.hooks import Hooks
    from governance.manifest import read_manifest
    from governance.stage import Runtime
    from pretrain.config.model import ModelConfig
    from pretrain.config.optim import OptimConfig
    from pretrain.config.training import EngineConfig, Settings, TrackingConfig, TrainConfig, TrainRecipe
    from pretrain.distillation.drawn_logits import draw_logits
    from pretrain.distillation.teacher import open_teacher
    from pretrain.train import train

    [tokens] = [read_manifest(path) for path in root.glob("encode/*/manifest.json")]
    of_teacher = mode == "teacher"
    steps = TEACHER_STEPS if of_teacher else STEPS
    section = MODES["sampled" if mode == DRAWS else mode] if not of_teacher else None
    section = None if section is None else {"teacher": teacher, **section}
    recipe = TrainRecipe(
        model=ModelConfig(num_hidden_layers=4 if of_teacher else 2, **MODEL),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=12, decay_steps=steps // 5),
        train=TrainConfig(
            sequence_length=64, global_batch_size=16, steps=steps, precision="fp32", seed=seed,
            validate_every_steps=EVERY if not of_teacher else 0, validation_rows=48, distillation=section,
        ),
    )  # fmt: skip
    runtime = Runtime(root=root, hooks=Hooks(meter=meter(EnergyConfig(), root / "energy.jsonl")))
    before = set(root.glob("t*/*/manifest.json"))
    if mode == DRAWS:
        found = open_teacher(recipe, tokens, runtime)
        assert found is not None
        assert recipe.train.distillation is not None
        drawn = draw_logits(found, tokens, (recipe.train.distillation, 64), runtime, EngineConfig(threads=1))
        return {**drawn.stats, **_facts(drawn, root, before)}
    engine = EngineConfig(micro_batch_size=16, threads=1)
    made = train(tokens, recipe, Settings(engine=engine, tracking=TrackingConfig(mode="disabled")), runtime)
    losses = json.loads((root / made.folder / "losses.json").read_bytes())
    return {
        "loss": made.stats["validation_loss"],
        "validations": [(row["step"], row["loss"]) for row in losses["validations"]],
        "checkpoint": str(Path(made.stats["checkpoint"]["path"]).parent),
        **_facts(made, root, before),
    }


def _facts(manifest: Manifest, root: Path, before: set[Path]) -> dict[str, Any]:
    """Cost of an artifact by its own process, and whether this one made it."""
    made = root / manifest.path not in before
    return {"joules": manifest.run["energy"].get("joules"), "peak_mb": peak_mb(), "made": made}


if __name__ == "__main__":
    print(json.dumps(_train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])))
