"""Draws from the teacher of a run's distillation."""

from __future__ import annotations

from collections.abc import Mapping

from assay.config import LoadedRun
from assay.training_recipe import pinned, training_rows
from assay.weights_origin import weights_origin
from governance.gate.chain import require_stated
from governance.log import get_logger
from governance.manifest import Manifest
from governance.stage import Runtime
from pretrain.config.training import TrainRecipe
from pretrain.data.batch_size import batch_sizes
from pretrain.distillation.drawn_logits import draw_logits, find_draws
from pretrain.distillation.teacher import open_teacher


def _say_if_few_are_read(recipe: TrainRecipe, drawn: int) -> None:
    """Say where an online teacher would compute less."""
    read = batch_sizes(recipe.train).before(recipe.train.steps + 1)
    if 2 * read <= drawn:
        get_logger(__name__).info(
            "teacher_logits: tokens are drawn for all %s rows, and this training reads %s of them: for this student "
            "alone, train.distillation.logits = 'online' costs %d %% of the teacher's work",
            f"{drawn:,}", f"{read:,}", 100 * read // drawn,
        )  # fmt: skip


def teacher_logits(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime) -> Manifest | None:
    """Make or find the draws for the run's distillation.

    Returns None where the run needs no draws.

    Raises:
        GateClosed: the journal does not state the teacher or the draws as they are, or the origin of the teacher is
            refused.
    """
    section = run.config.train.distillation
    if section is None or section.logits != "sampled":
        return None
    recipe, tokens = pinned(run), training_rows(artifacts)
    section = recipe.train.distillation or section
    teacher = open_teacher(recipe, tokens, runtime)
    assert teacher is not None, "the section names a teacher"
    root, settings = runtime.root, (section, recipe.train.sequence_length)
    if (held := teacher.checkpoint) is not None and held.root.resolve() == root.resolve():
        require_stated([held.manifest], root, run.journal(root))
    weights_origin(run, runtime)
    if runtime.make:
        drawn = draw_logits(teacher, tokens, settings, runtime, run.config.engine)
        _say_if_few_are_read(recipe, drawn.stats["rows"])
    else:
        drawn = find_draws(teacher, tokens, settings, runtime)
    require_stated([drawn], root, run.journal(root))
    return drawn
