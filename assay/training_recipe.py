"""Rows and recipe of a run's training, and its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from assay.config import LoadedRun
from governance.errors import MissingInput
from governance.log import get_logger
from governance.manifest import Manifest
from governance.stage import Runtime
from pretrain.checkpoint.load import parent_of
from pretrain.config.training import TrainConfig, TrainRecipe
from pretrain.data.batch_size import batch_sizes
from pretrain.data.dataset import refuse_small
from pretrain.evaluation.tasks import pin
from pretrain.initial_weights.hub_weights import SCHEME
from pretrain.optim.optimizers import pin_optimizer


def training_rows(artifacts: Mapping[str, Manifest]) -> Manifest:
    """The rows that training reads: the packed ones, else the token shards."""
    return artifacts.get("pack", artifacts["encode"])


def refuse_few_rows(run: LoadedRun, artifacts: Mapping[str, Manifest]) -> None:
    """Raise where the manifests already show too few rows for a batch.

    The training counts again; this comes before minutes of audit. Rows of spans left out are not known from manifests.

    Raises:
        PipelineError: states both numbers.
    """
    rows, train = training_rows(artifacts), run.config.train
    if train.span_corruption is not None:
        return
    at_most = rows.stats.get("train_rows")
    if at_most is None:  # each shard may end with a row that is not full
        at_most = rows.stats["train_tokens"] // train.sequence_length + len(rows.outputs)
    refuse_small(at_most, train.sequence_length, max(batch_sizes(train).sizes))


def training_folder(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime) -> Path:
    """Folder of this run's training record."""
    from pretrain.train import folder_of

    return folder_of(training_rows(artifacts), pinned(run), runtime)


def steps_before(run: LoadedRun, root: Path) -> int:
    """Steps that the checkpoint of `train.continue_from` has made; 0 without one.

    One that does not exist is a warning: an earlier job may still make it.

    Raises:
        CheckpointError: it is not a checkpoint, or its manifest is torn.
    """
    try:
        parent = parent_of(_train(run), root) if run.config.train.continue_from else None
    except MissingInput:
        name = run.config.train.continue_from
        get_logger(__name__).warning("train.continue_from = %r is not there yet, so all steps are counted", name)
        return 0
    return parent.step if parent is not None else 0


def pinned(run: LoadedRun) -> TrainRecipe:
    """The recipe with digests of task files and own code.

    `initial_weights` is relative to the run's file, or an address of the hub (hf://); `continue_from` and the teacher
    of a distillation are relative to the run's file, or else to the artifacts' root.
    """
    evaluation = pin(run.config.evaluation, run.folder)
    optim = pin_optimizer(run.config.optim, run.folder)
    return run.config.recipe.model_copy(update={"train": _train(run), "evaluation": evaluation, "optim": optim})


def _train(run: LoadedRun) -> TrainConfig:
    """The section with absolute paths of its initial weights or checkpoint."""
    train = run.config.train
    if train.initial_weights and not train.initial_weights.startswith(SCHEME):
        weights = run.folder / os.path.expanduser(train.initial_weights)
        train = train.model_copy(update={"initial_weights": str(weights.absolute())})
    if (section := train.distillation) and not section.teacher.startswith(SCHEME):
        teacher = run.folder / os.path.expanduser(section.teacher)
        if teacher.exists():
            named = section.model_copy(update={"teacher": str(teacher.absolute())})
            train = train.model_copy(update={"distillation": named})
    if train.continue_from and (parent := run.folder / train.continue_from).exists():
        return train.model_copy(update={"continue_from": str(parent.absolute())})
    return train
