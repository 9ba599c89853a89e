"""Teacher of a distillation: a checkpoint, or a Hugging Face folder.

Its digest is in the key of the student and of its checkpoints; its location is not. Its vocabulary and its tokenizer
must be those of the token shards, because the student learns from its probability of each token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from governance.errors import CheckpointError, ConfigError, PipelineError
from governance.manifest import FILE_NAME, Input, Manifest
from governance.stage import Runtime
from pretrain.checkpoint.format import Parent, identity_of
from pretrain.checkpoint.load import named_checkpoint
from pretrain.config.model import ModelConfig
from pretrain.config.training import TrainRecipe
from pretrain.data.tokenizer_check import refuse_foreign_tokenizer
from pretrain.evaluation.validation import load_decoder, require_language_model
from pretrain.initial_weights.folder import FIELD as FOLDER_FIELD
from pretrain.initial_weights.hub_weights import SCHEME
from pretrain.initial_weights.start import InitialWeights, model_of, named_folder, refuse_other_tokenizer
from pretrain.model.flops import parameter_count

if TYPE_CHECKING:
    from pretrain.model.decoder import Decoder

FIELD = "train.distillation.teacher"


@dataclass(frozen=True)
class Teacher:
    """A teacher by its digest; its weights are read by `decoder`."""

    source: Input
    """Input of the student's manifests."""
    model: ModelConfig
    held: Parent | InitialWeights

    @property
    def checkpoint(self) -> Parent | None:
        """The checkpoint, if it is one."""
        return self.held if isinstance(self.held, Parent) else None

    def facts(self, vocabulary_size: int) -> dict[str, Any]:
        """Identity and size, for the student's statistics."""
        return {**self.source.model_dump(mode="json"), "parameters": parameter_count(self.model, vocabulary_size)}

    def decoder(self, vocabulary_size: int) -> Decoder:
        """The frozen model in fp32, on the CPU.

        Raises:
            CheckpointError: its vocabulary has another size, or its files are not those of the model.
        """
        if isinstance(self.held, Parent):
            known = identity_of(self.held.manifest).vocabulary_size
            if known != vocabulary_size:
                raise CheckpointError(
                    f"{FIELD}: {self.source.path} has a vocabulary of {known} tokens, the token shards have "
                    f"{vocabulary_size}. Choose a teacher that was trained with this tokenizer."
                )
            decoder = load_decoder(self.held.manifest, self.held.root)
        else:
            decoder = _from_folder(self.held, vocabulary_size)
        decoder.requires_grad_(False)
        return decoder.eval()


def open_teacher(recipe: TrainRecipe, tokens: Manifest, runtime: Runtime) -> Teacher | None:
    """The teacher that a recipe names, or None.

    It is checked against these token shards.

    Raises:
        MissingInput: there is no such checkpoint or folder.
        CheckpointError: it is torn, or its tokenizer is another than that of the shards.
        ConfigError: its family is unknown, or its positions are fewer than a row has tokens.
    """
    config, held = recipe.train.distillation, named_teacher(recipe, runtime)
    if config is None or held is None:
        return None
    if isinstance(held, Parent):
        require_language_model(held.manifest)
        refuse_foreign_tokenizer(held.manifest, tokens, runtime.root, held.root)
        teacher = Teacher(held.manifest.as_input(), identity_of(held.manifest).recipe.model, held)
    else:
        with _named():
            refuse_other_tokenizer(held.folder, tokens, runtime.root)
        teacher = Teacher(held.source, held.model, held)
    if teacher.model.max_position_embeddings < recipe.train.sequence_length:
        raise ConfigError(
            f"{FIELD} = {config.teacher!r}: has {teacher.model.max_position_embeddings} positions, fewer than "
            f"train.sequence_length = {recipe.train.sequence_length}. Shorten the rows, or choose another teacher."
        )
    return teacher


def named_teacher(recipe: TrainRecipe, runtime: Runtime) -> Parent | InitialWeights | None:
    """The checkpoint or folder that a recipe's teacher is, or None.

    Raises: as `open_teacher`, but for the token shards.
    """
    if recipe.train.distillation is None:
        return None
    named = recipe.train.distillation.teacher
    folder = runtime.root / named
    if named.startswith(SCHEME) or ((folder / "config.json").exists() and not (folder / FILE_NAME).exists()):
        with _named():
            weights, of_hub = named_folder(named, runtime)
            _ = weights.tensors  # a torn file is found before anything is prepared
            return InitialWeights(weights, model_of(weights), of_hub)
    return named_checkpoint(FIELD, named, runtime.root)


def online_teacher(recipe: TrainRecipe, runtime: Runtime) -> ModelConfig | None:
    """The model that runs alongside the student, or None.

    Raises: as `named_teacher`.
    """
    section = recipe.train.distillation
    held = named_teacher(recipe, runtime) if section is not None and section.logits == "online" else None
    return identity_of(held.manifest).recipe.model if isinstance(held, Parent) else held.model if held else None


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Let messages on a folder of weights name the teacher's setting."""
    try:
        yield
    except PipelineError as error:
        error.args = (str(error).replace(FOLDER_FIELD, FIELD), *error.args[1:])
        raise


def _from_folder(weights: InitialWeights, vocabulary_size: int) -> Decoder:
    import torch

    from pretrain.model.decoder import Decoder
    from pretrain.model.expert_bias import attach_expert_bias, restore_expert_bias

    with _named():
        weights.check(vocabulary_size)
    decoder = Decoder(weights.model, vocabulary_size)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(weights.weight(name, parameter.shape))
    attach_expert_bias(decoder, weights.model)
    if (bias := weights.expert_bias()) is not None:
        restore_expert_bias(decoder, bias)
    return decoder
