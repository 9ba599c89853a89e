"""`[train] continue_from`: start from another run's checkpoint.

    20,000 steps, to fall over the last 2,000  ->  its checkpoint of step 8,000  ->  9,000 steps, falling over 1,000

Promise: a run of one go, and one that goes on from a checkpoint of such a run's first steps, are the same from there
on: weights, moments, loss scale, guard and the stream of rows. So what is gone on from must be the beginning of the new
run: the same model, optimizer, token shards, seed and length of rows, and up to its step the same batch sizes and
mixture. Whatever else may differ: steps, schedule, rates, precision, and batch sizes and mixture of later steps (the
branches of a stable phase: arXiv:2404.06395, arXiv:2405.18392).

The checkpoint is an input of the new run and of its checkpoints: its digest is in their keys, where it lies is not. Its
canonical form is read (`load.py`), and only while the new run has no whole checkpoint of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from governance.errors import CheckpointError, ConfigError, MissingInput
from governance.manifest import FILE_NAME, Manifest
from governance.stage import root_of
from pretrain.checkpoint.format import Parent, identity_of, open_checkpoint
from pretrain.config.training import TrainConfig, TrainRecipe
from pretrain.data.batch_size import batch_sizes

_FIELD = "train.continue_from"


def parent_of(train: TrainConfig, root: Path) -> Parent | None:
    """The parent checkpoint (path or name below `root`), or None.

    Its manifest alone is read: enough for the key of the new run.

    Raises:
        MissingInput: it is not there.
        CheckpointError: its manifest is torn, or it is no checkpoint, or lies in a folder of another name.
    """
    if not train.continue_from:
        return None
    folder = root / train.continue_from
    try:
        manifest = open_checkpoint(folder)
    except MissingInput as error:
        raise MissingInput(
            f"{_FIELD} = {train.continue_from!r}: {error}. Give the folder of a checkpoint: a path, or "
            f"checkpoint/<key> of this root. One that was removed: bring it back, for a finished run its {FILE_NAME}"
        ) from error
    home = root_of(folder)
    if (home / manifest.folder).resolve() != (folder.parent if folder.name == FILE_NAME else folder).resolve():
        raise CheckpointError(
            f"{_FIELD} = {train.continue_from!r}: a checkpoint's files are named below its root: call its folder, or "
            f"the copy, <some folder>/{manifest.folder}"
        )
    return Parent(manifest, home)


def refuse_unlike(parent: Parent, tokens: Manifest, recipe: TrainRecipe) -> None:
    """Raise unless the parent's steps begin this recipe.

    Raises:
        ConfigError: names all that differs, there and here.
        CheckpointError: another version wrote the checkpoint.
    """
    identity = identity_of(parent.manifest)
    step = identity.step
    there = _beginning(identity.recipe, parent.manifest.inputs[0].digest, step)
    here = _beginning(recipe, tokens.digest, step)
    unlike = [
        f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
        for name in (there | here)
        if there.get(name) != here.get(name)
    ]
    if recipe.train.steps <= step:
        unlike.append(f"train.steps is {recipe.train.steps} here: it must be more than the {step} that are done")
    if unlike:
        raise ConfigError(
            f"{_FIELD} = {recipe.train.continue_from!r}: the {step} steps of this checkpoint are not the first ones of "
            f"this run:\n  " + "\n  ".join(unlike) + "\n  Set what differs as it was there, or leave continue_from out "
            "to train from the beginning."
        )


def _beginning(recipe: TrainRecipe, tokens: str, step: int) -> dict[str, Any]:
    """Settings that decide the first `step` steps."""
    train, sizes = recipe.train, batch_sizes(recipe.train)
    stages = zip(sizes.steps, sizes.sizes, strict=True)
    mixture = [(phase.from_step, phase.weights) for phase in train.mixture if phase.from_step <= step]
    return {
        **{f"model.{name}": value for name, value in recipe.model.model_dump(mode="json").items()},
        "optim.optimizer": recipe.optim.optimizer,
        "train.seed": train.seed,
        "train.sequence_length": train.sequence_length,
        "the digest of the token shards": tokens,
        f"the batch size up to step {step} (after step, rows)": [stage for stage in stages if stage[0] < step],
        f"train.mixture up to step {step}": mixture if train.mixture else "none",
    }
