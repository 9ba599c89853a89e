"""Rule of `compatibility.py` on encoder-decoders.

It imports no torch.
"""

from __future__ import annotations

from pretrain.config.training import Settings, TrainRecipe
from pretrain.preflight.hardware import Hardware


def encoder_decoders_run_plainly(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Refuse what encoder-decoders do not have: splits, kernels, tasks."""
    if not recipe.model.encoder_layers:
        return None
    engine, train = settings.engine, recipe.train
    wrong = {
        f"engine.{name}": getattr(engine, name)
        for name in ("sequence_parallel_size", "tensor_parallel_size")
        if getattr(engine, name) != 1
    }
    wrong |= {f"engine.{name}": True for name in ("compile", "deepcompile") if getattr(engine, name)}
    wrong |= {"engine.attention": engine.attention} if engine.attention != "auto" else {}
    wrong |= {"train.precision": train.precision} if train.precision == "fp8" else {}
    wrong |= {"train.initial_weights": train.initial_weights} if train.initial_weights else {}
    wrong |= {"train.distillation": train.distillation} if train.distillation else {}
    wrong |= {"evaluation.tasks": [task.name for task in recipe.evaluation.tasks]} if recipe.evaluation.tasks else {}
    if not wrong:
        return None
    listed = ", ".join(f"{name} = {value!r}" for name, value in wrong.items())
    return f"model.encoder_layers = {recipe.model.encoder_layers} with {listed}: not for encoder-decoders; remove it"
