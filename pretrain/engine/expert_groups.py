"""Expert parallelism under DeepSpeed: groups of ranks and of parameters.

    rank = replica x expert_parallel_size + expert rank

Consecutive ranks hold the experts of a layer among them; ranks with the same expert rank hold the same experts, and
ZeRO partitions the state of those over them, that of all other parameters over all ranks. DeepSpeed divides every
gradient by the number of all ranks, so an expert's, which has the tokens of all of them, is averaged as on one rank.

DeepSpeed's own names used here: the attributes `allreduce` and `group_name` of parameters, the keys `moe` and `name` of
optimizer groups, the tables of `deepspeed.utils.groups`, and `MoE` of its engine, the class that it looks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pretrain.model.expert_parallel import ExpertParts, is_expert
from pretrain.model.moe import Experts


def register(parts: ExpertParts, groups: Any, runtime_engine: Any, bf16_optimizer: Any) -> None:
    """Register the ranks that hold the same experts with DeepSpeed.

    Where all ranks hold all experts, none are registered. It applies to this process until the next engine is opened.
    """
    own = {_name(parts): parts.group} if parts.size > 1 else {}
    vars(groups)["_EXPERT_PARALLEL_GROUP"] = own
    vars(groups)["_EXPERT_DATA_PARALLEL_GROUP"] = {name: parts.replicas for name in own}
    vars(runtime_engine)["MoE"] = Experts if own else ()
    # Its norm counts experts in another way, and waits for the device; `step.py` uses our own.
    vars(bf16_optimizer)["get_norm_with_moe_layers"] = lambda norm, **others: norm


def mark_experts(named: Iterable[tuple[str, nn.Parameter]], parts: ExpertParts) -> None:
    """Mark the parameters whose gradients only replicas share."""
    for name, parameter in named:
        if is_expert(name):
            parameter.allreduce, parameter.group_name = False, _name(parts)


def marked(parameter: torch.Tensor) -> bool:
    """Return whether `mark_experts` marked it."""
    return not getattr(parameter, "allreduce", True)


def separated(groups: Iterable[dict[str, Any]], parts: ExpertParts) -> list[dict[str, Any]]:
    """Optimizer groups with the experts' parameters in groups of their own.

    Their `label` stays that of the group that they come from.
    """
    found = []
    for group in groups:
        others = [parameter for parameter in group["params"] if not marked(parameter)]
        experts = [parameter for parameter in group["params"] if marked(parameter)]
        if others:
            found.append({**group, "params": others})
        if experts:
            own = {"params": experts, "name": _name(parts), "moe": True}
            found.append({**group, **own})
    return found


def _name(parts: ExpertParts) -> str:
    """DeepSpeed's name of the groups; it reads the number."""
    return f"ep_size_{parts.size}"
