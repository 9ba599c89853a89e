"""Compatibility of distillation with the other settings."""

from __future__ import annotations

from pretrain.config.training import Settings, TrainRecipe
from pretrain.preflight.hardware import Hardware


def students_learn_whole_rows(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Refuse distillation with split rows or matrices, compilers, fp16 and fp8."""
    engine = settings.engine
    split = ("sequence_parallel_size", "tensor_parallel_size", "expert_parallel_size")
    others = [f"engine.{name} = {getattr(engine, name)}" for name in split if getattr(engine, name) > 1]
    others += [f"engine.{name}" for name in ("compile", "deepcompile") if getattr(engine, name)]
    if recipe.train.precision in ("fp16", "fp8"):
        others.append(f"train.precision = {recipe.train.precision!r}")
    if recipe.train.distillation is None or not others:
        return None
    return (
        f"train.distillation with {', '.join(others)}: the teacher computes whole rows beside the student, without a "
        f"compiler, in fp32 or bf16; remove the one or the other"
    )
