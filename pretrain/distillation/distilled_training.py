"""Distillation of a training: inputs, student, loss of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import ConfigError
from governance.manifest import Input, Manifest
from governance.stage import Runtime
from pretrain.checkpoint.format import CheckpointStore
from pretrain.checkpoint.load import refuse_damaged
from pretrain.config.distillation import DistillationConfig
from pretrain.config.model import ModelConfig
from pretrain.config.training import TrainRecipe
from pretrain.data.dataset import Rows, altered_shards, refuse_altered, watch_shards
from pretrain.distillation.drawn_logits import find_draws, open_draws
from pretrain.distillation.teacher import FIELD, Teacher, open_teacher
from pretrain.evaluation.loglikelihood import NatsOf
from pretrain.evaluation.validation import Measurement, measure, nats_with, placed

if TYPE_CHECKING:
    import torch

    from pretrain.distillation.student import Student
    from pretrain.engine.engine import Weight
    from pretrain.model.decoder import Batch


@dataclass(frozen=True)
class Distillation:
    """The teacher of a training, and the draws from it."""

    teacher: Teacher
    recipe: TrainRecipe
    config: DistillationConfig
    drawn: Manifest | None
    """None: the teacher runs alongside the student."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Inputs of the training and of its checkpoints."""
        return (self.teacher.source, *([self.drawn.as_input()] if self.drawn is not None else []))

    @property
    def online_model(self) -> ModelConfig | None:
        """The teacher's model, where it runs alongside the student."""
        return self.teacher.model if self.drawn is None else None

    def open_rows(self, rows: Rows, root: Path, gather: Callable[[Any], list[Any]], place: tuple[int, int]) -> Rows:
        """Rows with their draws, verified, and watched as they are.

        Collective over `place` (rank, ranks).
        """
        if self.drawn is None:
            return rows
        own, of_draws = rows.changed, watch_shards(self.drawn, root, *place)
        problems = [line for lines in gather(altered_shards(self.drawn, root, *place)) for line in lines]
        refuse_altered(problems, "the draws of train.distillation", "assay teacher-logits CONFIG")

        def changed() -> tuple[list[str], list[str]]:
            (texts, touched), (more, also) = own(), of_draws()
            return [*texts, *more], [*touched, *also]

        return replace(rows, drawn=open_draws(self.drawn, rows, root), changed=changed)

    def student(self, vocabulary_size: int, device: torch.device) -> Callable[..., Student]:
        """Function that builds the student.

        A frozen teacher runs alongside it, unless tokens were drawn from it.
        """
        from pretrain.distillation.student import Student

        teacher = self._placed_teacher(vocabulary_size, device) if self.drawn is None else None
        return partial(Student, distillation=self.config, teacher=teacher)

    def _placed_teacher(self, vocabulary_size: int, device: torch.device) -> Any:
        return placed(self.teacher.decoder(vocabulary_size), self.recipe.train.precision, device)

    def weight(self, vocabulary_size: int, draw: Weight) -> Weight:
        """First weights of the student; `draw` has random ones."""
        if self.config.start == "random":
            return draw
        from pretrain.distillation.narrowed_weights import narrowed
        from pretrain.distillation.student import PROJECTION

        @cache
        def of_teacher() -> Weight:
            return narrowed(self.teacher.decoder(vocabulary_size), self.recipe.model)

        return lambda name, shape: draw(name, shape) if name == PROJECTION else of_teacher()(name, shape)

    def expert_bias(self, vocabulary_size: int) -> list[list[float]] | None:
        """Selection biases of the student's experts at first; None: zeros."""
        moe = self.recipe.model.moe
        if self.config.start == "random" or moe is None or not moe.router_bias_update_rate:
            return None
        from pretrain.distillation.narrowed_weights import kept_layer
        from pretrain.model.expert_bias import expert_bias_of

        held = expert_bias_of(self.teacher.decoder(vocabulary_size)) or []
        layers = self.recipe.model.num_hidden_layers
        return [held[kept_layer(layer, layers, len(held))] for layer in range(layers)]

    def loss_of_teacher(
        self,
        rows: Rows,
        rows_per_pass: int,
        device: torch.device,
        gather: Callable[[Any], list[Any]],
        place: tuple[int, int],
        passing: Callable[[], None] = lambda: None,
    ) -> Measurement:
        """The teacher's validation loss, on the rows of the student's.

        It leaves no memory of the device taken, nor a peak of it. Collective over `place` (rank, ranks). `passing` is
        called before each pass.
        """
        import torch

        most = self.recipe.train.validation_rows
        teacher = self._placed_teacher(rows.vocabulary_size, device)
        nats_of = _noted(nats_with(teacher, self.recipe.train.precision), passing)
        del teacher

        def add_up(sums: list[Any]) -> list[Any]:
            return [sum(values) for values in zip(*gather(sums), strict=True)]

        found = measure(nats_of, rows, most, rows_per_pass, place, add_up, device.type == "cuda")
        del nats_of
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        return found


def _noted(nats_of: NatsOf, passing: Callable[[], None]) -> NatsOf:
    def noted(batch: Batch) -> torch.Tensor:
        passing()
        return nats_of(batch)

    return noted


def distillation_of(recipe: TrainRecipe, tokens: Manifest, runtime: Runtime) -> Distillation | None:
    """The distillation that a recipe names, or None.

    It looks draws up, and makes none.

    Raises:
        ConfigError: the settings do not fit together, or the student's layers have another form than the teacher's.
        MissingInput: there is no such teacher, or nothing was drawn from it.
        CheckpointError: it is torn, or of another tokenizer.
    """
    config = recipe.train.distillation
    teacher = open_teacher(recipe, tokens, runtime)
    if config is None or teacher is None:
        return None
    if any(model.num_labels or model.encoder_layers for model in (recipe.model, teacher.model)):
        raise ConfigError(
            "train.distillation with a classifier or an encoder-decoder (model.num_labels, encoder_layers): student "
            "and teacher are language models; remove the section, or choose another teacher"
        )
    if config.start == "teacher":
        from pretrain.distillation.narrowed_weights import refuse_other_form

        refuse_other_form(recipe.model, teacher.model)
    widths = recipe.model.hidden_size, teacher.model.hidden_size
    if config.hidden_weight and widths[0] != widths[1] and not config.projection:
        raise ConfigError(
            f"train.distillation.hidden_weight: the student's hidden states have {widths[0]} units, those of {FIELD} "
            f"have {widths[1]}. Set projection = true."
        )
    length = recipe.train.sequence_length
    drawn = find_draws(teacher, tokens, (config, length), runtime) if config.logits == "sampled" else None
    return Distillation(teacher, recipe, config, drawn)


def refuse_damaged_teacher(distillation: Distillation, store: CheckpointStore) -> None:
    """Raise unless a teacher's files are whole. Collective.

    With draws they are read, too: for the first weights and for the teacher's validation loss.

    Raises:
        CheckpointError: a file differs from its manifest.
    """
    if (held := distillation.teacher.checkpoint) is not None:
        refuse_damaged(store, held, FIELD)
