"""A parameter's full state (fp32 master weight and the optimizer's moments), read from and written to any ZeRO stage.

Promise: what `full_state` gives, `load_state` restores bit for bit, at any stage and number of ranks. DeepSpeed's own
attributes that this needs appear in `_flat_masters` and `prepare_moments`; they are why it is pinned below 0.20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pretrain.engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")


def full_shape(parameter: nn.Parameter) -> torch.Size:
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
        shape, parts = full_shape(parameter), engine.tensor_parts
        yield (
            name,
            {
                key: parts.whole(name, value.detach().float().reshape(shape)).contiguous()
                for key, value in values.items()
            },
        )


def load_state(engine: Engine, read: Callable[[str], dict[str, torch.Tensor]], step: int) -> None:
    """Give a fresh engine the state that `full_state` gave at `step`; the model must hold the same master weights.

    `read(name)` returns "master", "exp_avg" and "exp_avg_sq" in full.
    """
    prepare_moments(engine, step)
    state, read = _adam(engine).state, engine.tensor_parts.read_part(read)
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


def prepare_moments(engine: Engine, step: int) -> None:
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
