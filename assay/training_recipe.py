"""The recipe of a run's training, and the folder that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from assay.config import LoadedRun
from governance.manifest import Manifest
from pretrain.evaluation.tasks import pin

if TYPE_CHECKING:
    from pretrain.config.training import TrainRecipe


def training_folder(run: LoadedRun, artifacts: Mapping[str, Manifest], root: Path) -> Path:
    """Folder of this run's training record."""
    from pretrain.train import folder_of

    return folder_of(artifacts.get("pack", artifacts["encode"]), pinned(run), root)


def pinned(run: LoadedRun) -> TrainRecipe:
    """The recipe with the digests of task files filled in."""
    train = run.config.train
    for field in ("continue_from", "initial_weights"):
        path = run.folder / getattr(train, field)
        if getattr(train, field) and path.exists():
            train = train.model_copy(update={field: str(path.absolute())})
    evaluation = pin(run.config.evaluation, run.folder)
    return run.config.recipe.model_copy(update={"train": train, "evaluation": evaluation})
