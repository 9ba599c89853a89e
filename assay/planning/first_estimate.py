"""Rough time of a first run's steps, before anything here was measured.

Steps that this root has made take as long again (`governance/stage.py`: `earlier_seconds`). The others are estimated
from the sizes of the sources and rates of two cores of one machine (benchmarks/RESULTS.md, Doors), slower where
others use the cores; a training on a GPU by the forecast of `assay train --dry-run`. Promise: the order of magnitude.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from assay.config import LoadedRun
from assay.planning.data_stages import MILLISECONDS
from assay.start_preflight import may_have_gpu
from assay.training_recipe import steps_before
from data_pipeline.prepare import survey
from governance.errors import PipelineError
from governance.log import get_logger
from governance.stage import Runtime, earlier_seconds
from pretrain.data.batch_size import batch_sizes
from pretrain.distributed.process_group import Ranks
from pretrain.finetuning.trained_parameters import training_flops
from pretrain.preflight.forecast import forecast

_ALONE = {"tokenizer": (2.3, 0.045), "bias": (3.7, 0.06), "audit": (3.8, 0.02), "report": (1.2, 0.0)}
"""CPU-seconds of a step that one process makes: at any size, and for each megabyte of text."""
_START = 0.1
"""CPU-seconds of every other step."""
_USUAL = 30.0
"""CPU milliseconds for a megabyte, of stages without a measured rate."""
_FLOPS_OF_CORE = 5e10
_TRAINING_START = 12.0
"""Seconds until the first step, imports included."""


def expected_seconds(run: LoadedRun, runtime: Runtime, steps: Sequence[str], ranks: Ranks) -> dict[str, float]:
    """Expected duration of each step of the run.

    In the first run of a root the sum is logged.
    """
    earlier = earlier_seconds(runtime.root, steps)
    if len(earlier) == len(steps):
        return earlier
    cores = len(os.sched_getaffinity(0))
    busy = max(1.0, os.getloadavg()[0] / cores)
    try:
        found = survey(run.config.data, run.folder, runtime)
    except PipelineError:
        return earlier  # the first stage reports it
    megabytes, processes = found.bytes / 1e6, min(runtime.workers, cores, found.shards)
    seconds = {}
    for step in steps:
        start, each = _ALONE.get(step, (_START, MILLISECONDS.get(step, _USUAL) / 1e3 / processes))
        seconds[step] = busy * (start + each * megabytes)
    seconds["train"] = _training_seconds(run, runtime.root, ranks, cores / busy)
    if not earlier:
        total = timedelta(seconds=round(sum(seconds.values())))
        training = timedelta(seconds=round(seconds["train"]))
        get_logger(__name__).info(
            "first run: roughly %s in all, %s of them training, by the rates of another machine; "
            "compilation is extra",
            total, training,
        )  # fmt: skip
    return seconds | earlier


def _training_seconds(run: LoadedRun, root: Path, ranks: Ranks, cores: float) -> float:
    recipe, engine = run.config.recipe, run.config.engine
    train, vocabulary = recipe.train, run.config.data.tokenizer.vocabulary_size
    sizes, begun = batch_sizes(train), min(steps_before(run, root), train.steps)
    tokens = (sizes.before(train.steps + 1) - sizes.before(begun + 1)) * train.sequence_length
    if engine.device == "cuda" or (engine.device == "auto" and may_have_gpu()):
        a_step = train.global_batch_size * train.sequence_length
        return _TRAINING_START + forecast(recipe, engine, vocabulary, ranks).step * tokens / a_step
    return _TRAINING_START + tokens * training_flops(recipe, vocabulary) / (cores * _FLOPS_OF_CORE)
