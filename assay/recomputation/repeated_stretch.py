"""Repetition of a stretch of a training, and comparison.

The same trainer makes it, in a root of its own, from one checkpoint to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from assay.checkpoint_evaluation import task_suite
from assay.config import LoadedRun
from assay.training_recipe import pinned, training_rows
from governance.errors import MissingInput, Preempted
from governance.files import append_line, place
from governance.manifest import FILE_NAME, Manifest, read_manifest
from governance.stage import Runtime, artifact_folder
from pretrain.checkpoint.base_weights import base_of
from pretrain.checkpoint.format import STEPS_FILE, moments, read_state, weights
from pretrain.checkpoint.safetensors_files import TensorFiles
from pretrain.config.training import CheckpointConfig, ProfileConfig, Settings, TrackingConfig, TrainRecipe

NUDGE = 2.0**-22
"""Relative change of each weight, four times the rounding of fp32, from which the bound is measured."""
_SHARDS = ("encode", "pack", "tokenizer")


@dataclass(frozen=True)
class Stretch:
    """The steps between two published checkpoints."""

    number: int
    begin: Manifest | None
    """None: the weights that the run begins with."""
    end: Manifest
    after: int
    """The step before its first one."""

    @property
    def first_step(self) -> int:
        """Its first step."""
        return self.after + 1

    @property
    def last_step(self) -> int:
        """Its last step."""
        return int(self.end.config["step"])


@dataclass(frozen=True)
class Differences:
    """Largest relative differences between two checkpoints; 0 is equal to the bit."""

    weights: float
    """A parameter's weights or moments: the L2 norm of the difference over that of the values."""
    losses: float
    """A step's loss."""

    def within(self, bound: Differences) -> bool:
        """Return whether neither is larger."""
        return self.weights <= bound.weights and self.losses <= bound.losses


def repeat(
    run: LoadedRun, artifacts: Mapping[str, Manifest], root: Path, stretch: Stretch, scratch: Path, nudge: float = 0.0
) -> Manifest:
    """The checkpoint of a stretch's last step, made again below `scratch`.

    One that is there is taken. `nudge` changes the first weights.

    Raises:
        Preempted: a signal stopped it; the same call continues.
        MissingInput: a file of the corpus or of a checkpoint is gone.
    """
    from pretrain.train import train

    made = scratch / stretch.end.path
    if not made.exists():
        _lay_out(artifacts, root, stretch, scratch)
        recipe, settings = _recipe(run, root), replace(_settings(run, stretch), nudge=nudge)
        window = run.config.train.sequence_length
        suite = partial(task_suite, run, artifacts, Runtime(root, make=False), recipe.evaluation, window)
        tokens = training_rows(artifacts)
        try:
            train(tokens, recipe, settings, Runtime(scratch), suite=suite)
        except Preempted:
            if not made.exists():
                raise
    return read_manifest(made)


def _lay_out(artifacts: Mapping[str, Manifest], root: Path, stretch: Stretch, scratch: Path) -> None:
    """Give the files that the training reads a second name below `scratch`."""
    needed = [artifact for stage, artifact in artifacts.items() if stage in _SHARDS]
    if stretch.begin is not None:
        base = base_of(stretch.begin, root)
        needed += [stretch.begin, *([base] if base is not None else [])]
    for artifact in artifacts.values():
        place(root / artifact.path, scratch / artifact.path)
    for artifact in needed:
        for name in (*(output.path for output in artifact.outputs), artifact.path):
            if not (root / name).exists():
                raise MissingInput(f"{root / name}: is missing, and the audit reads it. Restore it, then repeat this")
            place(root / name, scratch / name)
    if stretch.begin is not None:
        steps = artifact_folder("train", str(stretch.end.config["train_key"]), scratch) / STEPS_FILE
        if not steps.exists():
            append_line(steps, f'{{"step": {stretch.after}}}')


def _recipe(run: LoadedRun, root: Path) -> TrainRecipe:
    """The run's recipe, whose other inputs are found from any root."""
    recipe = pinned(run)
    train = recipe.train.model_copy(update={"callbacks": ()})
    for name in ("continue_from", "initial_weights"):
        if (value := getattr(train, name)) and (root / value / FILE_NAME).exists():
            train = train.model_copy(update={name: str((root / value).absolute())})
    if (section := train.distillation) is not None and (root / section.teacher).exists():
        teacher = str((root / section.teacher).absolute())
        train = train.model_copy(update={"distillation": section.model_copy(update={"teacher": teacher})})
    return recipe.model_copy(update={"train": train})


def _settings(run: LoadedRun, stretch: Stretch) -> Settings:
    """Settings of the stretch's own execution, as its checkpoint states it."""
    execution = stretch.end.run["execution"]
    layout = {name: execution[name] for name in ("micro_batch_size", "zero_stage", "threads") if name in execution}
    layout |= {"rank_invariant": bool(execution.get("rank_invariant")), "device": execution["device"]}
    return replace(
        run.settings,
        checkpoint=CheckpointConfig(every_steps=run.config.checkpoint.every_steps, native=False),
        engine=run.config.engine.model_copy(update=layout),
        tracking=TrackingConfig(mode="disabled"),
        profile=ProfileConfig(),
        until_step=stretch.last_step,
    )


def other_arithmetic(published: Manifest, again: Manifest) -> list[str]:
    """Differences, in words, in whatever decides the last bits."""
    there, here = (one.run["execution"] for one in (published, again))
    names = {*there, *here}
    if there.get("rank_invariant") and here.get("rank_invariant"):
        names -= {"world_size", "zero_stage"}
    found = [(name, there.get(name), here.get(name)) for name in sorted(names)]
    for package in ("torch", "deepspeed"):
        found.append((package, *(one.run["packages"].get(package) for one in (published, again))))
    if there["device"] != "cpu":
        found.append(("device", there["device"], "one whose kernels may add in any order"))
    return [f"{name.replace('_', ' ')} {before} there, {now} here" for name, before, now in found if before != now]


def learned_alike(one: Manifest, other: Manifest) -> bool:
    """Return whether weights and moments have the same digests."""

    def learned(manifest: Manifest) -> dict[str, str]:
        parts = ((Path(output.path), output.sha256) for output in manifest.outputs)
        return {f"{path.parent.name}/{path.name}": digest for path, digest in parts if path.name != "state.json"}

    return learned(one) == learned(other)


def differences(published: Manifest, root: Path, again: Manifest, scratch: Path, stretch: Stretch) -> Differences:
    """Differences of the published checkpoint from the repeated one."""
    largest = _largest(_apart(kind, published, root, again, scratch) for kind in (weights, moments))
    losses = [read_state(one, home).losses for one, home in ((published, root), (again, scratch))]
    pairs = zip(*(history[stretch.after :] for history in losses), strict=True)
    return Differences(largest, _largest(abs(a - b) / abs(b) if a and b else float(a != b) for a, b in pairs))


def _largest(values: Iterable[float]) -> float:
    """The largest value; infinite where one is not a number."""
    return max((math.inf if math.isnan(value) else value for value in values), default=0.0)


def _apart(
    kind: Callable[[Manifest, Path], TensorFiles], published: Manifest, root: Path, again: Manifest, scratch: Path
) -> float:
    import torch

    found = []
    with kind(published, root) as ours, kind(again, scratch) as theirs:
        if ours.names() != theirs.names():
            return math.inf
        for name in theirs.names():
            one, other = ours.read(name).double(), theirs.read(name).double()
            if one.shape != other.shape:
                return math.inf
            norm, apart = (float(torch.linalg.vector_norm(values)) for values in (other, one - other))
            found.append(apart / norm if norm else float(apart != 0))
    return _largest(found)
