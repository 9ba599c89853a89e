"""Rules of `compatibility.py` on expert parallelism.

They import no torch.
"""

from __future__ import annotations

import itertools
import re

from pretrain.config.training import Settings, TrainRecipe
from pretrain.preflight.hardware import Hardware

_EXPERT_PARTS = [f"{name}_proj.{kind}" for name in ("gate", "up", "down") for kind in ("weight", "bias")]


def fp8_excludes_experts(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Refuse fp8 with experts."""
    if recipe.train.precision != "fp8" or recipe.model.moe is None:
        return None
    return "train.precision = 'fp8' with model.moe: experts get any number of tokens; set precision = 'bf16'"


def expert_parallelism_divides(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Refuse expert parallelism that does not divide experts and ranks."""
    size, moe = settings.engine.expert_parallel_size, recipe.model.moe
    if size == 1:
        return None
    if moe is None:
        return f"engine.expert_parallel_size = {size} without model.moe: no layer has experts; set it to 1"
    if moe.num_local_experts % size:
        return (
            f"engine.expert_parallel_size = {size} does not divide model.moe.num_local_experts = "
            f"{moe.num_local_experts}; choose a divisor"
        )
    if hardware.world_size is not None and hardware.world_size % size:
        return (
            f"engine.expert_parallel_size = {size} does not divide {hardware.world_size} rank(s); start a multiple of "
            f"{size}"
        )
    return None


def expert_parallelism_supports_the_run(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Refuse stage 3, fp16 and compilation where ranks divide experts."""
    engine = settings.engine
    name = f"engine.expert_parallel_size = {engine.expert_parallel_size}"
    if engine.expert_parallel_size == 1:
        return None
    if engine.zero_stage == 3:
        return f"{name} with engine.zero_stage = 3: it gathers all experts on every rank; set zero_stage = 1 or 2"
    if recipe.train.precision == "fp16":
        return f"{name} with train.precision = 'fp16': its loss scale is unproven there; set precision = 'bf16'"
    for setting in ("compile", "deepcompile"):
        if getattr(engine, setting):
            return f"{name} with engine.{setting}: the numbers of tokens differ in every layer; set {setting} = false"
    passed = engine.deepspeed.get("zero_optimization", {})
    for key in ("contiguous_gradients", "reduce_scatter"):  # without them DeepSpeed adds up different experts
        if passed.get(key) is False:
            return (
                f"{name} with engine.deepspeed.zero_optimization.{key} = false, which adds up gradients of different "
                f"experts; remove it, or set expert_parallel_size = 1"
            )
    return None


def expert_groups_are_alike(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Refuse `[[optim.groups]]` that separate divided experts of a layer."""
    moe, rules = recipe.model.moe, recipe.optim.groups
    if settings.engine.expert_parallel_size == 1 or moe is None or not rules:
        return None
    for layer, part in itertools.product(range(recipe.model.num_hidden_layers), _EXPERT_PARTS):
        names = [f"model.layers.{layer}.mlp.experts.{expert}.{part}" for expert in range(moe.num_local_experts)]
        taken = {next((rule.pattern for rule in rules if re.search(rule.pattern, name)), None) for name in names}
        if len(taken) > 1:
            pattern = next(pattern for pattern in taken if pattern is not None)
            return (
                f"engine.expert_parallel_size = {settings.engine.expert_parallel_size} with optim.groups: pattern "
                f"{pattern!r} matches some experts of layer {layer} and not others, and each rank needs the same "
                f"groups; match all of them, or set expert_parallel_size = 1"
            )
    return None


def expert_ranks_span_nodes(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Warn where expert ranks span nodes: every layer exchanges tokens."""
    size = settings.engine.expert_parallel_size
    return across_nodes("expert_parallel_size", size, hardware, "tokens of each layer cross the network, which is slow")


def across_nodes(field: str, size: int, hardware: Hardware, effect: str) -> str | None:
    """Fault of groups of `size` ranks that span nodes."""
    if hardware.world_size is None or hardware.local_world_size % size == 0:
        return None
    return f"engine.{field} = {size} does not divide the {hardware.local_world_size} ranks of a node: {effect}"
