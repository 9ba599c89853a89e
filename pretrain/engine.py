"""The DeepSpeed door, with `engine_state.py`: our settings -> its dictionary -> an engine.

Promises: every key that we emit follows from our sections; nothing is compiled at start unless asked for. DeepSpeed's
own attributes that this needs appear in `_import_deepspeed`; they are why the dependency is pinned below 0.20.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from governance.errors import PipelineError
from pretrain.config import EngineConfig, TrainRecipe, gradient_accumulation_steps
from pretrain.distributed import Ranks
from pretrain.engine_state import full_shape, prepare_moments
from pretrain.engine_update import update
from pretrain.extension import SHARED_MEMORY_OP, build_shared_memory
from pretrain.model.decoder import Batch, Decoder
from pretrain.optim import make_optimizer, parameter_groups

Weight = Callable[[str, torch.Size], torch.Tensor]
"""(name, shape) -> the fp32 values that a parameter starts from."""


def deepspeed_config(recipe: TrainRecipe, engine: EngineConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's whole configuration, derived.

    Raises:
        ConfigError: the global batch does not divide evenly over ranks and micro batches.
    """
    batch = recipe.train.global_batch_size
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": engine.micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps(batch, engine.micro_batch_size, world_size),
        "gradient_clipping": recipe.optim.gradient_clipping,  # explicit: its default of 1.0 is not everyone's
        "bf16": {"enabled": recipe.train.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},  # else bf16 gradients are added up in bf16
        "zero_optimization": {"stage": engine.zero_stage},
        "steps_per_print": 1 << 40,  # we log ourselves
    }


@dataclass(frozen=True)
class Engine:
    """A model under training; frozen in its parts, though training changes what they hold."""

    deepspeed: Any
    """The `DeepSpeedEngine`."""
    zero_stage: int
    device: torch.device
    world_size: int
    learning_rate: float
    """The full rate."""

    @property
    def loss_scale(self) -> float:
        """Accumulation steps x ranks: by how much DeepSpeed divides the gradients that it adds up."""
        return float(self.deepspeed.gradient_accumulation_steps() * self.world_size)

    def set_accumulation(self, micro_batches: int) -> None:
        """Say of how many micro batches of this rank the coming update is made; between two updates only."""
        rows = self.deepspeed.train_micro_batch_size_per_gpu() * micro_batches * self.world_size
        self.deepspeed.set_train_batch_size(rows)
        self.deepspeed.micro_steps = 0  # the end of an update is told by this count modulo the number

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A micro batch on this rank: what is differentiated, and the nats of each token (see `Decoder.forward`)."""
        rows = batch.to(self.device)
        return self.deepspeed(rows.tokens, rows.targets, rows.segments, rows.positions)

    def backward(self, objective: torch.Tensor, targets: int, last: bool) -> None:
        """Add up the gradient of `objective / targets`, where `targets` counts the whole global batch.

        After the last micro batch of a global batch comes `update`.
        """
        self.deepspeed.backward(objective * (self.loss_scale / max(targets, 1)))
        if not last:
            self.deepspeed.step()  # it counts micro batches, and computes nothing

    def update(self, factor: float, skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the weights at `factor` of the full rate, or leave them as they are (see `engine_update.py`).

        `skip`, a scalar on the device: 1 leaves the update out. Returns the same, with 1 also where the gradient was
        not finite, and the global L2 norm of the gradient before clipping; neither is waited for.
        """
        return update(self.deepspeed, factor, skip, self.learning_rate)

    def gradient_norm(self) -> float | None:
        """The global L2 norm of the last update's gradient before clipping; the host waits for the device."""
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """All parameters by name, tied ones once, in one order on every rank."""
        return list(self.deepspeed.module.named_parameters())

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """Full shapes by name, in the order of `parameters`."""
        return [(name, full_shape(parameter)) for name, parameter in self.parameters()]


@contextlib.contextmanager
def foreign_errors() -> Iterator[None]:
    """Turn what DeepSpeed and the device complain of, where a user can mend it, into `PipelineError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PipelineError(
            f"the device's memory is full: {error}. Lower engine.micro_batch_size, or raise engine.zero_stage or the "
            f"number of ranks; neither changes what is learned."
        ) from error
    except RuntimeError as error:
        if "DeepSpeed" not in type(error).__name__ and "can't allocate memory" not in str(error):
            raise
        raise PipelineError(f"the training engine refuses: {error}") from error


def open_engine(
    recipe: TrainRecipe,
    settings: EngineConfig,
    vocabulary_size: int,
    ranks: Ranks,
    device: torch.device,
    weight: Weight,
) -> Engine:
    """Build the model with the weights that `weight` gives, and wrap it.

    Raises:
        ConfigError: the global batch does not divide evenly.
        PipelineError: the device's memory is full.
    """
    config = deepspeed_config(recipe, settings, ranks.world_size)
    deepspeed = _import_deepspeed(settings, ranks, device)
    with foreign_errors():
        model = _build(deepspeed, config, recipe, vocabulary_size, weight)
        groups = parameter_groups(model.named_parameters(), recipe.optim.weight_decay, lambda p: len(full_shape(p)))
        optimizer = make_optimizer([group for group in groups if group["params"]], recipe.optim)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if settings.compile:
        wrapped.compile()
    engine = Engine(wrapped, settings.zero_stage, device, ranks.world_size, recipe.optim.learning_rate)
    prepare_moments(engine, 0)
    return engine


def _import_deepspeed(settings: EngineConfig, ranks: Ranks, device: torch.device) -> Any:
    """Import it quietly, and decide which of its C++ extensions it may build: it builds one for gloo unless told."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    built = settings.shared_memory_collectives and device.type == "cpu"
    if built:
        built = build_shared_memory(ranks, settings.extension_build_seconds)
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import bf16_optimizer

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its memory report at each start collects garbage six times: 1.5 s here, for lines that nobody asked for.
    vars(bf16_optimizer)["see_memory_usage"] = lambda message, force=False: None
    # Setting the table also spares the compiler probes by which DeepSpeed would fill it.
    vars(deepspeed.ops)["__compatible_ops__"] = {SHARED_MEMORY_OP: built}
    # Now, not within `initialize`: building a model at stage 3 already asks for the number of ranks.
    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl", verbose=False)
    return deepspeed


def _build(
    deepspeed: Any, config: dict[str, Any], recipe: TrainRecipe, vocabulary_size: int, weight: Weight
) -> Decoder:
    """The model with its starting weights; at stage 3 no rank ever holds more than one whole parameter."""
    if config["zero_optimization"]["stage"] < 3:
        model = Decoder(recipe.model, vocabulary_size)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weight(name, parameter.shape))
        return model
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = Decoder(recipe.model, vocabulary_size)
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if torch.distributed.get_rank() == 0:
                parameter.copy_(weight(name, parameter.shape))
    return model
