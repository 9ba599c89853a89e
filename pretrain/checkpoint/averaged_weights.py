"""Average of the weights of a training's last checkpoints (arXiv:1706.03762, section 6.1).

Each element is the mean in double precision, rounded to fp32 once, so the order of the checkpoints does not matter.
Adapters are added to their matrices before. Selection biases of experts are averaged too: a bias balances the loads of
its own router, and the mean of the routers scores tokens, to first order, by the mean of their scores. Price: a pass
over the weights of each, one parameter in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from governance.errors import CheckpointError, ConfigError, MissingInput
from governance.manifest import Manifest
from pretrain.checkpoint.format import (
    CheckpointStore,
    identity_of,
    read_checkpoint,
    read_state,
    require_step,
    whole_weights,
)


def last_checkpoints(newest: Manifest, count: int, root: Path) -> list[Manifest]:
    """The last `count` checkpoints of a training up to `newest`, newest first.

    The files of the others are verified, as those of `newest` were. Only checkpoints that are kept count.

    Raises:
        ConfigError: fewer are kept.
        CheckpointError: one is damaged, or of another run or model.
    """
    of, found = identity_of(newest), [newest]
    store = CheckpointStore(root, of.train_key, of.vocabulary_size, of.recipe, newest.inputs)
    for step in sorted((step for step in store.steps() if step < of.step), reverse=True):
        if len(found) == count:
            break
        try:
            require_step(store, step)
        except MissingInput:
            continue  # removed since, or its save was cut off
        found.append(read_checkpoint(store.folder(step), root))
    if len(found) < count:
        steps = ", ".join(str(identity_of(one).step) for one in reversed(found))
        raise ConfigError(
            f"--average {count}: of the checkpoints up to step {of.step} {len(found)} are kept (step {steps}). Average "
            f"{len(found)}, or train with checkpoint.keep_last = {count} and a smaller checkpoint.every_steps"
        )
    return found


def averaged_expert_bias(checkpoints: Sequence[Manifest], root: Path) -> list[list[float]] | None:
    """Mean selection bias of each expert, by layer; None without biases.

    Raises:
        CheckpointError: one has biases of another shape, or lacks them.
    """
    held = [read_state(one, root).expert_bias for one in checkpoints]
    if len(held) == 1 or not any(held):
        return held[0]
    shapes = [[len(row) for row in values or ()] for values in held]
    for one, shape in zip(checkpoints, shapes, strict=True):
        if shape != shapes[0]:
            raise CheckpointError(
                f"{one.folder}: expert_bias in state.json has layers of {shape} experts, that of "
                f"{checkpoints[0].folder} {shapes[0]}. Average checkpoints of one model"
            )
    layers = zip(*(values or () for values in held), strict=True)
    return [[math.fsum(of_one) / len(held) for of_one in zip(*rows, strict=True)] for rows in layers]


@contextmanager
def averaged_weights(checkpoints: Sequence[Manifest], root: Path) -> Iterator[Callable[[str, Any], Any]]:
    """Reader of parameters, by name and shape, as the mean over checkpoints.

    Raises:
        CheckpointError: they are of different trainings, or one lacks a parameter of this shape.
    """
    trainings = {identity_of(one).train_key for one in checkpoints}
    if len(trainings) > 1:
        names = ", ".join(one.folder for one in checkpoints)
        raise CheckpointError(f"{names}: are of {len(trainings)} trainings; average checkpoints of one training")
    with ExitStack() as stack:
        files = [stack.enter_context(whole_weights(one, root)) for one in checkpoints]

        def read(name: str, shape: Any) -> Any:
            found = files[0].read(name, shape)
            if len(files) == 1:
                return found
            total = found.double()
            for other in files[1:]:
                total += other.read(name, shape)
            return (total / len(files)).float()

        yield read
