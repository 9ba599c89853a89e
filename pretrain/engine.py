"""The DeepSpeed door: our settings -> its dictionary -> an engine; the only file that imports deepspeed.

Promises: every key that we emit follows from our sections; nothing is compiled at start unless asked for; a parameter's
full state (fp32 master weight and both moments) can be read from and written to any ZeRO stage and number of ranks, bit
for for bit. DeepSpeed's own attributes that this needs appear in `_import_deepspeed`, `_flat_masters` and
`_prepare_moments`; they are why the dependency is pinned below 0.20.
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
from pretrain.extension import SHARED_MEMORY_OP, build_shared_memory
from pretrain.model.decoder import Batch, Decoder
from pretrain.optim import make_optimizer, parameter_groups

MOMENTS = ("exp_avg", "exp_avg_sq")

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
    loss_scale: float
    """Accumulation steps x ranks: by how much DeepSpeed divides the gradients that it adds up."""

    def loss(self, batch: Batch) -> torch.Tensor:
        """The sum of the cross entropies of a micro batch on this rank, in nats."""
        rows = batch.to(self.device)
        return self.deepspeed(rows.tokens, rows.targets, rows.segments, rows.positions)

    def backward(self, loss: torch.Tensor, targets: int) -> None:
        """Add up the gradient of `loss / targets`, where `targets` counts the whole global batch, and maybe step.

        The last micro batch of a global batch updates the weights at the rate that `set_rate` gave.
        """
        self.deepspeed.backward(loss * (self.loss_scale / max(targets, 1)))
        self.deepspeed.step()

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the coming update."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate

    def gradient_norm(self) -> float | None:
        """The global L2 norm of the last update's gradient before clipping; unknown at stage 0, which keeps none."""
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """All parameters by name, tied ones once, in one order on every rank."""
        return list(self.deepspeed.module.named_parameters())

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """Full shapes by name, in the order of `parameters`."""
        return [(name, _shape(parameter)) for name, parameter in self.parameters()]


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
        groups = parameter_groups(model.named_parameters(), recipe.optim.weight_decay, lambda p: len(_shape(p)))
        optimizer = make_optimizer([group for group in groups if group["params"]], recipe.optim)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if settings.compile:
        wrapped.compile()
    scale = float(config["gradient_accumulation_steps"] * ranks.world_size)
    engine = Engine(wrapped, settings.zero_stage, device, scale)
    _prepare_moments(engine, 0)
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


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The full shape: ZeRO-3 keeps it apart, as each rank holds a piece."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def full_state(engine: Engine) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Each parameter's name, and its whole fp32 "master", "exp_avg" and "exp_avg_sq"; after at least one update.

    Collective: every rank must walk through all of it, one parameter at a time.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for name, parameter in engine.parameters():
        if engine.zero_stage == 0:
            state = _adam(engine).state[parameter]
            values = {"master": parameter.detach(), **{moment: state[moment] for moment in MOMENTS}}
        else:
            values = {"master": safe_get_full_fp32_param(parameter)}
            values |= {moment: safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}
        shape = _shape(parameter)
        yield name, {key: value.detach().float().reshape(shape).contiguous() for key, value in values.items()}


def load_state(engine: Engine, read: Callable[[str], dict[str, torch.Tensor]], step: int) -> None:
    """Give a fresh engine the state that `full_state` gave at `step`; the model must hold the same master weights.

    `read(name)` returns "master", "exp_avg" and "exp_avg_sq" in full.
    """
    _prepare_moments(engine, step)
    state = _adam(engine).state
    for name, parameter in engine.parameters():
        values = read(name)
        if engine.zero_stage == 0:
            parameter.data.copy_(values["master"])
            for moment in MOMENTS:
                state[parameter][moment].copy_(values[moment])
        else:
            _set_state(parameter, values)


def _adam(engine: Engine) -> torch.optim.Optimizer:
    """The optimizer that we gave, inside DeepSpeed's wrapper."""
    optimizer = engine.deepspeed.optimizer
    return getattr(optimizer, "optimizer", optimizer)


def _flat_masters(engine: Engine) -> list[torch.Tensor]:
    """The tensors that AdamW updates on this rank: parameters at stage 0, else flat fp32 pieces of them."""
    if engine.zero_stage == 3:
        return list(engine.deepspeed.optimizer.fp32_partitioned_groups_flat)
    return [flat for group in _adam(engine).param_groups for flat in group["params"]]


def _prepare_moments(engine: Engine, step: int) -> None:
    """Make AdamW's state as it is after `step` updates, with moments of zero.

    Also at the start of a run: DeepSpeed links parameters to their moments after the update of its *first* group of
    parameters, when those of the other groups do not exist yet, and never again.
    """
    state = _adam(engine).state
    for flat in _flat_masters(engine):
        count = torch.tensor(float(step), dtype=torch.float32, device=flat.device)
        state[flat] = {"step": count} | {moment: torch.zeros_like(flat) for moment in MOMENTS}
    if engine.zero_stage in (1, 2):
        optimizer = engine.deepspeed.optimizer
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _set_state(parameter: nn.Parameter, values: dict[str, torch.Tensor]) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if not hasattr(parameter, "ds_tensor"):
        safe_set_full_fp32_param(parameter, values["master"])
        for moment in MOMENTS:
            safe_set_full_optimizer_state(parameter, values[moment], moment)
        return
    # Stage 3 cuts a parameter into equal pieces, the last one padded; DeepSpeed's own setter forgets the padding.
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()

    def piece(value: torch.Tensor) -> torch.Tensor:
        part = value.flatten()[size * rank : size * (rank + 1)]
        return nn.functional.pad(part, (0, size - part.numel()))

    safe_set_local_fp32_param(parameter, piece(values["master"]))
    for moment in MOMENTS:
        safe_set_local_optimizer_state(parameter, piece(values[moment]), moment)
