"""Correction of a plan by a run's own record.

Its factors are measured over predicted time and memory, and the measured power. The prediction is that of the record's
own recipe and layout on the plan's cluster, so the two differ by what the cluster file or the calibration has wrong;
the factors then multiply the plan. The first steps, which compile and warm up, are left out. On GPUs the time is the
mean of the others, because single steps are only queued (`docs/monitoring.md`); on CPUs their median, which a busy
moment does not move.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.planning.plan import Correction, PlanInputs, offloads, step_plan
from governance.config import validate
from governance.errors import ConfigError, MissingInput
from governance.files import read_lines
from governance.manifest import FILE_NAME
from governance.reports.html.markup import decimal
from pretrain.config.training import LAYOUT, EngineConfig, TrainConfig, TrainRecipe
from pretrain.finetuning.trained_parameters import training_flops
from pretrain.metrics.run_identity import METRICS_FILE
from pretrain.model.flops import parameter_count

_WARM_UP = 2
_MIN_STEPS = 3
_SIZES = 16
"""Most that the FLOPs of a token of two runs may differ for one to narrow the bounds of the other."""
_VOCABULARY = 0.05
"""Share of the parameters by which vocabularies of one model may differ, before the corpus has its tokenizer."""


@dataclass(frozen=True)
class MeasuredRun:
    """Figures that a run measured."""

    world_size: int
    device: str
    tokens_per_second: float
    """Over all ranks."""
    memory: int | None
    """Peak of rank 0's device; None on CPU."""
    watts: float | None
    """Mean power of a node."""
    layout: Mapping[str, Any] | None
    """Settings of its engine that are not the defaults; None: the record does not have them."""
    parameters: int | None


def correction_from(named: Path, run: LoadedRun, inputs: PlanInputs) -> Correction:
    """Correction by a training, named by its root or folder.

    The teacher and the mean length of documents in `inputs` count for both trainings.

    Raises:
        MissingInput: there is no record.
        ConfigError: it has too few steps, computed on another kind of device, in another precision or on other numbers
            of ranks a node, only one of the two has an online teacher, it offloads other state, or it is not finished
            and has another model.
    """
    folder = _training(named)
    record, cluster = read_record(folder), inputs.cluster
    if record.device != cluster.device:
        raise ConfigError(
            f"--from {named}: that run computed on {record.device}, and {cluster.name} computes on {cluster.device}; "
            "name a run of such nodes"
        )
    recipe, size = _trained(named, folder, record, run.config.recipe, inputs.vocabulary)
    settings = replace(run.settings, engine=_engine(folder, record, run.settings.engine))
    if (there := offloads(settings.engine)) != (here := offloads(run.settings.engine)):
        raise ConfigError(
            f"--from {named}: that run has {_words(there)}, and this one {_words(here)}; what offload adds to the "
            "time is not predicted, so name a run with the same"
        )
    of_run = run.config.recipe.train
    if recipe.train.precision != of_run.precision:
        raise ConfigError(
            f"--from {named}: that run computed in {recipe.train.precision}, and this one is to in {of_run.precision}; "
            "name a run of the same train.precision"
        )
    if _online(recipe.train) != _online(of_run):
        raise ConfigError(f"--from {named}: only one of the two runs has an online teacher; name a run that matches")
    a_node = min(cluster.ranks_per_node, record.world_size)
    if record.world_size % a_node:
        raise ConfigError(
            f"--from {named}: its {record.world_size} ranks do not fill nodes of {cluster.ranks_per_node}; name the "
            "cluster that it ran on"
        )
    alike = cluster.with_ranks(a_node)
    measured = replace(inputs, vocabulary=size, cluster=alike, nodes=record.world_size // a_node)
    predicted = step_plan(recipe, settings, measured)
    time = predicted.tokens / predicted.seconds / record.tokens_per_second
    memory = 1.0 if record.memory is None else record.memory / predicted.memory.device_bytes
    words = f"{folder}: {time:.2f} times the predicted time"
    if record.memory is not None:
        words += f", {memory:.2f} times the memory"
    # With fewer GPUs a node than the plan's, the power is not that of its nodes.
    watts = record.watts if cluster.device == "cpu" or a_node == cluster.ranks_per_node else None
    if watts is not None:
        words += f", {watts:,.0f} W a node"
    theirs, ours = (training_flops(one, of) for one, of in ((recipe, size), (run.config.recipe, inputs.vocabulary)))
    near = max(theirs, ours) <= _SIZES * min(theirs, ours)
    if not near:
        words += (
            f"; its tokens take {decimal(max(theirs, ours) / min(theirs, ours))} times "
            f"{'fewer' if theirs < ours else 'more'} FLOPs than this run's, so what a step costs whatever its size may "
            "distort the ratio, and the bounds stay wide"
        )
    return Correction(time, memory, watts, words, inputs.correction.document_tokens, near)


def _trained(
    named: Path, folder: Path, record: MeasuredRun, recipe: TrainRecipe, vocabulary: int
) -> tuple[TrainRecipe, int]:
    """The training's recipe and vocabulary, or until its end the plan's."""
    manifest = folder / FILE_NAME
    if manifest.exists():
        stated = json.loads(manifest.read_bytes())
        return validate(stated["config"], TrainRecipe, str(manifest)), int(stated["stats"]["vocabulary_size"])
    planned = parameter_count(recipe.model, vocabulary)
    if record.parameters and not math.isclose(record.parameters, planned, rel_tol=_VOCABULARY):
        raise ConfigError(
            f"--from {named}: that run is not finished and has {record.parameters:,} parameters, and this one has "
            f"{planned:,}; until its end a run corrects only plans of its own model"
        )
    return recipe, vocabulary


def _engine(folder: Path, record: MeasuredRun, planned: EngineConfig) -> EngineConfig:
    """Engine of the measured run.

    What nothing states is as in the plan.

    Raises:
        ConfigError: the record states what no start accepts.
    """
    known: dict[str, Any] = {}
    if record.layout is not None:
        known = EngineConfig().model_dump(include=set(LAYOUT)) | dict(record.layout)
    elif (folder / FILE_NAME).exists():  # by a build whose records lack the layout
        execution = json.loads((folder / FILE_NAME).read_bytes()).get("run", {}).get("execution", {})
        known = {name: execution[name] for name in ("zero_stage", "micro_batch_size") if name in execution}
        if known.get("zero_stage", 3) != 3:
            known["hpz_partition_size"] = 1
    engine = validate(planned.model_dump() | known, EngineConfig, str(folder / METRICS_FILE))
    if record.world_size % (engine.tensor_parallel_size * engine.sequence_parallel_size):
        raise ConfigError(f"{folder / METRICS_FILE}: its layout does not divide its {record.world_size} ranks")
    return engine


def _words(places: Mapping[str, str]) -> str:
    return " and ".join(f"{name} = {place!r}" for name, place in places.items())


def _online(train: TrainConfig) -> bool:
    return train.distillation is not None and train.distillation.logits == "online"


def _training(named: Path) -> Path:
    """Folder of a training, or of the newest of a root."""
    if (named / METRICS_FILE).exists():
        return named
    found = sorted(named.glob(f"train/*/{METRICS_FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise MissingInput(
            f"--from {named}: no {METRICS_FILE} there or in a train folder below; name the root of a run that has "
            "trained, or the folder of its training"
        )
    return found[-1].parent


def read_record(folder: Path) -> MeasuredRun:
    """Figures of the newest attempt in a training's metrics.

    Raises:
        ConfigError: it has too few steps.
    """
    start: Mapping[str, Any] = {}
    lines: list[Mapping[str, Any]] = []
    for line in read_lines(folder / METRICS_FILE):
        if line.get("event") == "start":
            start, lines = line, []
        elif line.get("event") != "step" or (line.get("seconds") and line.get("tokens_per_second")):
            lines.append(line)
    places = [place for place, line in enumerate(lines) if line.get("event") == "step"][_WARM_UP:]
    steps = [lines[place] for place in places]
    if len(steps) < _MIN_STEPS or not start:
        raise ConfigError(
            f"{folder / METRICS_FILE}: its last attempt has {len(steps)} step(s) after the first {_WARM_UP}, too few "
            f"to correct a plan; let it take at least {_MIN_STEPS} more"
        )
    layout, parameters = start.get("layout"), start.get("parameters")
    stated = layout is None or (isinstance(layout, dict) and layout.keys() <= set(LAYOUT))
    if not stated or not isinstance(parameters, int | None):
        raise ConfigError(f"{folder / METRICS_FILE}: its event start has an unknown layout or number of parameters")
    kind = "cuda" if steps[-1].get("memory_reserved") is not None else "cpu"
    speeds = [(step["tokens_per_second"], step["seconds"]) for step in steps]
    per_second = statistics.median(speed for speed, _ in speeds)
    if kind == "cuda":
        per_second = sum(speed * took for speed, took in speeds) / sum(took for _, took in speeds)
    # On CPU the peak counts pages of files too, which the estimate leaves out.
    peaks = [int(step["memory_peak"]) for step in steps] if kind == "cuda" else []
    watts = _watts(lines[places[0] :])
    return MeasuredRun(int(start["world_size"]), kind, per_second, max(peaks, default=None), watts, layout, parameters)


def _watts(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean power over the lines of an attempt.

    A step's seconds leave out validations and saves, which the meter counts: their own seconds are added. Those of
    tasks are not recorded, so what spans them is left out.
    """
    spent = took = passed = 0.0
    before: float | None = None
    for line in lines:
        if line.get("event") == "task":
            before, passed = None, 0.0
        if line.get("event") in ("step", "validation", "save"):
            passed += line.get("seconds") or 0.0
        if line.get("event") == "step" and (joules := line.get("joules")) is not None:
            if before is not None:
                spent, took = spent + joules - before, took + passed
            before, passed = joules, 0.0
    return spent / took if spent > 0 and took > 0 else None
