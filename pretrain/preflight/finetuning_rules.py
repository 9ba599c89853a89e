"""Rules of `compatibility.py` on frozen parameters and adapters.

They import no torch.
"""

from __future__ import annotations

from governance.errors import ConfigError
from pretrain.config.training import Settings, TrainRecipe
from pretrain.finetuning.trained_parameters import trained_shapes
from pretrain.preflight.hardware import Hardware


def frozen_parameters_have_a_base(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Refuse frozen parameters without weights to freeze."""
    train = recipe.train
    if not train.freezes or (train.initial_weights and not train.continue_from):
        return None
    field = "train.adapter" if train.adapter is not None else f"train.trained = {list(train.trained)}"
    return (
        f"{field} keeps parameters as they are, and needs the folder that has them: set train.initial_weights (a "
        f"checkpoint of yours becomes such a folder with `assay export`), without train.continue_from"
    )


def learning_parameters_exist(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Refuse patterns and targets that match nothing, and ranks too large."""
    try:
        trained_shapes(recipe.model, recipe.train, 1)
    except ConfigError as error:
        return str(error)
    return None


def frozen_parameters_suit_the_layout(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Refuse layouts that cut or rewrite the matrices that adapters join."""
    engine, train = settings.engine, recipe.train
    if not train.freezes:
        return None
    values = {
        "engine.tensor_parallel_size": (engine.tensor_parallel_size, 1),
        "engine.expert_parallel_size": (engine.expert_parallel_size, 1),
        "engine.offload_parameters": (engine.offload_parameters, "none"),
        "engine.deepcompile": (engine.deepcompile, False),
        "train.distillation": ("a teacher" if train.distillation else None, None),
        "train.precision": (train.precision, "bf16") if train.precision == "fp8" else (0, 0),
    }
    if train.adapter is not None and train.adapter.dropout:
        values["engine.compile"] = (engine.compile, False)  # its generator is no part of a graph
    wrong = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    if not wrong:
        return None
    name, (found, fix) = next(iter(wrong.items()))
    what = "train.adapter.dropout" if name == "engine.compile" else "frozen parameters (train.adapter, train.trained)"
    return f"{name} = {found!r} with {what} is not supported; set it to {fix!r}"


FROZEN = (frozen_parameters_have_a_base, learning_parameters_exist, frozen_parameters_suit_the_layout)
