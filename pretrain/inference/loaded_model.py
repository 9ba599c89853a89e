"""Model of a checkpoint, ready for passes without gradients.

It computes in fp32, whatever the precision of its training: in bf16, rounding depends on the number of rows in a batch,
and with it the text (`docs/inference.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from governance.manifest import Manifest
from pretrain.checkpoint.format import identity_of
from pretrain.config.training import EngineConfig
from pretrain.distributed.process_group import lone_device
from pretrain.evaluation.validation import load_decoder, require_language_model

if TYPE_CHECKING:
    from pretrain.model.decoder import Decoder


@dataclass(frozen=True)
class LoadedModel:
    """A decoder on its device."""

    decoder: Decoder
    context: int
    """Most tokens of a text: the rows of its training. It has seen no later position."""
    vocabulary_size: int
    """Ids that it may produce; not those of padding rows."""


def load_model(checkpoint: Manifest, engine: EngineConfig, root: Path, others: Sequence[Manifest] = ()) -> LoadedModel:
    """Language model of a verified checkpoint.

    With `others` of its training its weights are the mean of all.

    Raises:
        ConfigError: the device that `engine` requests does not exist, or the model has an encoder.
        CheckpointError: the files belong to another model, or it is a classifier.
    """
    require_language_model(checkpoint)
    return _load(checkpoint, engine, root, others)


def load_classifier(checkpoint: Manifest, engine: EngineConfig, root: Path) -> LoadedModel:
    """Classifier of a verified checkpoint; raises as `load_model`."""
    return _load(checkpoint, engine, root)


def _load(checkpoint: Manifest, engine: EngineConfig, root: Path, others: Sequence[Manifest] = ()) -> LoadedModel:
    from pretrain.model.expert_bias import on_device

    identity = identity_of(checkpoint)
    decoder = on_device(load_decoder(checkpoint, root, others), lone_device(engine)).eval()
    return LoadedModel(decoder, identity.recipe.train.sequence_length, identity.vocabulary_size)
