"""Bytes that gradient reduction sends, by stage and precision.

It imports no torch.

In a ring of N ranks, each rank sends every element of an all-reduce 2 (N - 1) / N times, and of a reduce-scatter half
as often (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). Stage 3 reduces and scatters; stage 2 reduces to
each owner while a bucket has few (`deepspeed_config.many_owners`), else it all-reduces, as stages 0 and 1 do. Stages 0
and 1 reduce the sum of a step, stages 2 and 3 the gradient of each micro batch. What bf16 loses: `docs/engine.md`.
"""

from __future__ import annotations

from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe, gradient_accumulation_steps
from pretrain.distributed.layout import data_ranks, parameter_shares
from pretrain.engine.deepspeed_config import many_owners


def bytes_per_gradient(train: TrainConfig) -> float:
    """Bytes in which one element of a gradient is sent."""
    if train.quantized_gradients:
        return 0.5
    return {"fp32": 4.0, "bf16": 2.0}[train.gradient_reduction]


def reduced_bytes(recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, world_size: int) -> int:
    """Bytes that each rank sends to reduce one step's gradients.

    Raises:
        ConfigError: the global batch does not divide evenly over ranks and micro batches.
    """
    train, micro = recipe.train, engine.micro_batch_size
    passes = gradient_accumulation_steps(train.global_batch_size, micro, data_ranks(world_size, engine))
    times = passes if engine.zero_stage > 1 else 1
    shares = parameter_shares(recipe.model, engine, vocabulary_size, world_size)
    to_owners = engine.zero_stage == 2 and not many_owners(sum(held for held, _ in shares), shares[0][1])
    ways = 1 if engine.zero_stage == 3 or to_owners else 2
    each = bytes_per_gradient(train)
    return round(sum(times * ways * elements * each * (ranks - 1) / ranks for elements, ranks in shares))


def in_words(recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, world_size: int) -> str:
    """Line about the reduction, with the cost of fp32."""
    sent = reduced_bytes(recipe, engine, vocabulary_size, world_size) / 2**30
    kind = "4 bits" if recipe.train.quantized_gradients else recipe.train.gradient_reduction
    choice = "; in bf16 half as much, with an error that grows with the ranks" if kind == "fp32" and sent else ""
    return f"gradients in {kind}: each rank sends {sent:,.2f} GiB per step{choice}"
