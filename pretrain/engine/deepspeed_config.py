"""DeepSpeed's configuration, derived from our sections.

Promises: the pinned DeepSpeed reads every key (a test passes it a dictionary that records reads); keys whose default is
not neutral (`gradient_clipping`) are always present; keys that DeepSpeed removed never are. A key that works around a
conflict has a comment.

`bytes_per_gradient` is the price of the reduction, for reports and forecasts; nothing here imports torch. In a ring of
N ranks, each rank sends every element of an all-reduce 2 (N - 1) / N times, and of a reduce-scatter half as often
(Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). Stage 3 reduces and scatters; stage 2 reduces to each owner
while a bucket has few (`many_owners`), else it all-reduces, as stages 0 and 1 do. Stages 0 and 1 reduce the sum of a
step, stages 2 and 3 the gradient of each micro batch. What bf16 loses: `docs/engine.md`.
"""

from __future__ import annotations

from typing import Any, Literal

from pretrain.config.deepspeed_keys import with_passed
from pretrain.config.model import ModelConfig, padded_vocabulary
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe, gradient_accumulation_steps
from pretrain.distributed.layout import data_ranks, parameter_shares
from pretrain.finetuning.trained_parameters import trained_count

COLUMN = r".*\.(q|k|v|gate|up)_proj\.weight$"
"""Tensor parallelism: matrices cut by output."""
ROW = r".*\.(o|down)_proj\.weight$"
"""Tensor parallelism: matrices cut by input; their outputs are summed over the ranks."""
_HEAD_NORMS = r".*\.(q|k)_norm\.weight$"
BUCKET = 1 << 26
"""Elements reduced or gathered together; DeepSpeed's default of 5e8 would reserve 1 to 2 GB for any model."""
BLOCK = "pretrain.model.layers.Block"
"""Stage 3 gathers the weights of a whole block together: one collective instead of one per matrix."""
OWNERS = 4
"""Most ranks to which a bucket is reduced one by one; with more owners it is all-reduced."""
SWAPPED_GROUP = 100_000_000
"""Elements of an optimizer in files whose state is in memory together; DeepSpeed's 1e9 would need 16 GB."""
SWAP_BUFFERS = 4
"""Buffers of `SWAPPED_GROUP` elements: the master, two moments, the gradient."""
_SWAP_ALIGNMENT = 1 << 16


def deepspeed_config(
    recipe: TrainRecipe,
    engine: EngineConfig,
    world_size: int,
    device: Literal["cpu", "cuda"] = "cpu",
    vocabulary_size: int = 1,
) -> dict[str, Any]:
    """DeepSpeed's whole configuration for `world_size` ranks.

    Raises:
        ConfigError: the global batch does not divide evenly over ranks and micro batches.
    """
    batch, micro = recipe.train.global_batch_size, engine.micro_batch_size
    optimizer = recipe.optim.optimizer
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": gradient_accumulation_steps(batch, micro, data_ranks(world_size, engine)),
        # Explicit, because the default is 1.0. Assay clips (`step.py`): DeepSpeed's waits for the device, and would
        # divide Muon's orthogonal update by its own norm (DeepSpeed#8439).
        "gradient_clipping": 0.0,
        "steps_per_print": 1 << 40,  # never: Assay has its own log
        "zero_optimization": _zero(recipe, engine, world_size, device, vocabulary_size),
        **_precision(recipe.train.precision),
    }
    if not recipe.train.quantized_gradients:  # their kernel only takes gradients in the type of the passes
        values["communication_data_type"] = recipe.train.gradient_reduction
    if optimizer != "adamw":
        values["zero_allow_untested_optimizer"] = True
    if engine.offload_optimizer != "none":
        values["zero_force_ds_cpu_optimizer"] = False  # torch's fused AdamW is as fast and needs no build
    if engine.deepcompile:
        values["compile"] = {"deepcompile": True}
    if engine.tensor_parallel_size > 1:
        values["tensor_parallel"] = _tensor_parallel(engine.tensor_parallel_size)
    return with_passed(values, engine.deepspeed)


def _precision(precision: str) -> dict[str, Any]:
    """Precision section; only fp16's loss scale needs a host sync."""
    if precision == "fp16":
        return {"fp16": {"enabled": True, "loss_scale": 0.0}, "data_types": {"grad_accum_dtype": "fp32"}}
    if precision == "autocast":
        # No module is marked safe for lower precision, so gradients are reduced in fp32.
        autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        return {"torch_autocast": autocast, "data_types": {"grad_accum_dtype": "fp32"}}
    if precision == "bf16_masters":
        masters = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
        bf16 = {"enabled": True, "check_grad_overflow": False, **masters}
        return {"bf16": bf16, "data_types": {"grad_accum_dtype": "bf16"}}
    bf16 = {"enabled": precision in ("bf16", "fp8"), "check_grad_overflow": False}
    return {"bf16": bf16, "data_types": {"grad_accum_dtype": "fp32"}}  # else bf16 gradients would be summed in bf16


def _zero(
    recipe: TrainRecipe, engine: EngineConfig, world_size: int, device: str, vocabulary_size: int
) -> dict[str, Any]:
    values: dict[str, Any] = {"stage": engine.zero_stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    if engine.zero_stage:
        values["overlap_comm"] = True  # without effect in bf16 at stage 1, another class without a second stream
    if engine.zero_stage == 2:
        shares = _gradient_shares(recipe, engine, vocabulary_size, world_size)
        values["use_multi_rank_bucket_allreduce"] = many_owners(sum(held for held, _ in shares), shares[0][1])
    if engine.zero_stage == 3:
        values |= _gathering(recipe, engine)
    if engine.offload_optimizer != "none":
        values["offload_optimizer"] = _offload(engine.offload_optimizer, engine.nvme_path, device)
    if engine.offload_optimizer == "nvme":
        values["offload_optimizer"]["buffer_count"] = SWAP_BUFFERS
        values["sub_group_size"] = SWAPPED_GROUP
    if engine.offload_parameters != "none":
        values["offload_param"] = _offload(engine.offload_parameters, engine.nvme_path, device)
    if engine.offload_parameters == "nvme":
        values["offload_param"]["buffer_size"] = _swap_buffer(recipe.model, vocabulary_size, world_size)
    return values


def _gathering(recipe: TrainRecipe, engine: EngineConfig) -> dict[str, Any]:
    """Gathering of weights at stage 3, block by block."""
    # DeepSpeed's own linear map frees weights that the backward pass gathers again. It breaks a compiled graph, and
    # adds the bias in place to the product that selective checkpointing keeps: added twice, gradients are wrong.
    kept_products = engine.activation_checkpointing == "selective" and recipe.model.bias
    values: dict[str, Any] = {
        "leaf_module": {"classes": [BLOCK], "names": [], "name_suffixes": []},
        "memory_efficient_linear": not (compiles_blocks(engine) or kept_products),
    }
    if engine.hpz_partition_size > 1:
        values["zero_hpz_partition_size"] = engine.hpz_partition_size
    if recipe.train.quantized_weights:
        values["zero_quantized_weights"] = True
    if recipe.train.quantized_gradients:
        values["zero_quantized_gradients"] = True
    return values


def many_owners(parameters: int, ranks: int) -> bool:
    """Return whether a gradient bucket spans many ranks' parts.

    Reducing to each owner takes half the bytes of an all-reduce, but one collective per owner, and before each of them
    DeepSpeed's overlapped reduction waits for the device.
    """
    return min(BUCKET, parameters) * ranks > OWNERS * parameters


def compiles_blocks(engine: EngineConfig) -> bool:
    """Return whether blocks are compiled separately, because hooks act between them.

    At stage 3 hooks gather weights; at stage 2 they reduce gradients during the backward pass, where one graph of the
    whole model would hold all gradients until its end.
    """
    return engine.compile and engine.zero_stage >= 2 and not engine.deepcompile


def _offload(place: str, nvme_path: str | None, device: str) -> dict[str, Any]:
    """Offload section, with pinned memory for copies to a GPU."""
    path = {"nvme_path": nvme_path} if place == "nvme" else {}
    return {"device": place, "pin_memory": device == "cuda", **path}


def _swap_buffer(model: ModelConfig, vocabulary_size: int, world_size: int) -> int:
    """Elements of a rank's largest piece of a parameter, which buffers hold."""
    largest = max(padded_vocabulary(vocabulary_size), model.intermediate_size, model.hidden_size) * model.hidden_size
    return -(-largest // (world_size * _SWAP_ALIGNMENT)) * _SWAP_ALIGNMENT


def _tensor_parallel(size: int) -> dict[str, Any]:
    """Tensor-parallel section that names every cut, without AutoTP's own table of models."""
    specs = [
        {"patterns": [ROW], "partition_type": "row"},
        {"patterns": [COLUMN], "partition_type": "column"},
        # Used by heads that are split over ranks, so each rank has a part of the gradient.
        {"patterns": [_HEAD_NORMS], "partition_type": "skip", "grad_allreduce": True},
    ]
    return {"autotp_size": size, "partition_config": {"use_default_specs": False, "layer_specs": specs}}


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
    shares = _gradient_shares(recipe, engine, vocabulary_size, world_size)
    to_owners = engine.zero_stage == 2 and not many_owners(sum(held for held, _ in shares), shares[0][1])
    ways = 1 if engine.zero_stage == 3 or to_owners else 2
    each = bytes_per_gradient(train)
    return round(sum(times * ways * elements * each * (ranks - 1) / ranks for elements, ranks in shares))


def _gradient_shares(
    recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, world_size: int
) -> list[tuple[int, int]]:
    """Numbers of a rank's trained parameters and of their holders (`parameter_shares`)."""
    if recipe.train.freezes:  # compatible with neither tensor nor expert parallelism
        return [(trained_count(recipe, vocabulary_size), world_size)]
    return parameter_shares(recipe.model, engine, vocabulary_size, world_size)


def in_words(recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, world_size: int) -> str:
    """Line about the reduction, with the cost of fp32."""
    sent = reduced_bytes(recipe, engine, vocabulary_size, world_size) / 2**30
    kind = "4 bits" if recipe.train.quantized_gradients else recipe.train.gradient_reduction
    choice = "; in bf16 half as much, with an error that grows with the ranks" if kind == "fp32" and sent else ""
    return f"gradients in {kind}: each rank sends {sent:,.2f} GiB per step{choice}"


def without_leaf_modules(config: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration without leaf modules (`repeated_blocks.py` says why)."""
    zero = {name: value for name, value in config["zero_optimization"].items() if name != "leaf_module"}
    return {**config, "zero_optimization": zero}
