"""Model of a checkpoint, ready for passes without gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.manifest import Manifest
from pretrain.checkpoint.format import identity_of
from pretrain.config.training import EngineConfig
from pretrain.evaluation.validation import in_precision, load_decoder

if TYPE_CHECKING:
    from pretrain.model.decoder import Decoder


@dataclass(frozen=True)
class LoadedModel:
    """A decoder on its device, and the arithmetic of its passes."""

    decoder: Decoder
    context: int
    """Most tokens of a text: the rows of its training. It has seen no later position."""
    vocabulary_size: int
    """Ids that it may produce; the rows of padding are none."""
    computing: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Context of each pass."""


def load_model(checkpoint: Manifest, engine: EngineConfig, root: Path, precision: str = "") -> LoadedModel:
    """Model of a verified checkpoint.

    `precision` names its arithmetic (`in_precision`); "": that of its training.

    Raises:
        ConfigError: the device that `engine` requests does not exist.
        CheckpointError: the files belong to another model.
    """
    import torch

    from pretrain.distributed.process_group import Ranks, device_of, threads_of

    identity = identity_of(checkpoint)
    device = device_of(Ranks(), engine.device)
    torch.set_num_threads(threads_of(Ranks(), engine.threads))
    train = identity.recipe.train
    decoder, computing = in_precision(load_decoder(checkpoint, root).to(device).eval(), precision or train.precision)
    return LoadedModel(decoder, train.sequence_length, identity.vocabulary_size, computing)
