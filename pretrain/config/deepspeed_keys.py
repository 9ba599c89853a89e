"""`[engine.deepspeed]`: keys passed through to DeepSpeed.

No torch is imported here.

    [engine.deepspeed]
    wall_clock_breakdown = true
    [engine.deepspeed.zero_optimization]
    reduce_bucket_size = 200_000_000

Promise: a key that a setting of ours decides is refused, and both are named, so nothing is said twice. What we choose
without a setting (sizes of buckets, overlap) is replaced. Keys that DeepSpeed does not know are named before the corpus
is made (`start_preflight.py`), since it would ignore those of its first level without a warning.

What is passed enters no key of an artifact: it is for speed and memory. The record of a training states it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LEARNED = "[model], [optim] and [train], which decide what is learned"
OWNED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "engine.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size and engine.micro_batch_size",
    "gradient_clipping": "optim.gradient_clipping",
    "optimizer": "[optim]",
    "scheduler": "optim.schedule",
    "zero_allow_untested_optimizer": "optim.optimizer",
    "zero_force_ds_cpu_optimizer": "engine.offload_optimizer",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "fp16_master_weights_and_gradients": "train.precision",
    "communication_data_type": "train.gradient_reduction",
    "seq_parallel_communication_data_type": "train.gradient_reduction",
    "prescale_gradients": "train.gradient_reduction",
    "gradient_predivide_factor": "train.gradient_reduction",
    "gradient_allreduce_op": "train.gradient_reduction",
    "activation_checkpointing": "engine.activation_checkpointing",
    "compile": "engine.compile and engine.deepcompile",
    "tensor_parallel": "engine.tensor_parallel_size",
    "sequence_parallel_size": "engine.sequence_parallel_size",
    "expert_parallel": "engine.expert_parallel_size",
    "use_data_before_expert_parallelism": "engine.expert_parallel_size",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.zero_hpz_partition_size": "engine.hpz_partition_size",
    "zero_optimization.zero_quantized_weights": "train.quantized_weights",
    "zero_optimization.zero_quantized_gradients": "train.quantized_gradients",
    "zero_optimization.offload_optimizer.device": "engine.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "engine.nvme_path",
    "zero_optimization.offload_param.device": "engine.offload_parameters",
    "zero_optimization.offload_param.nvme_path": "engine.nvme_path",
    "zero_optimization.cpu_offload": "engine.offload_optimizer",
    "zero_optimization.cpu_offload_params": "engine.offload_parameters",
    "checkpoint": "[checkpoint]",
    "tensorboard": "tracking.tensorboard",
    "wandb": "tracking.mode",
    "comet": "[tracking]",
    "csv_monitor": "[tracking]",
    "data_efficiency": _LEARNED,
    "progressive_layer_drop": _LEARNED,
    "eigenvalue": _LEARNED,
    "autotuning": _LEARNED,
}
"""DeepSpeed's key, with its table before a dot -> what says the same in a run's file."""


def keys_of(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The dotted names of all keys, tables and what is in them."""
    for key, value in values.items():
        yield f"{before}{key}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{before}{key}.")


def conflict(passed: Mapping[str, Any]) -> str | None:
    """The fault of keys that settings of ours decide, or None."""
    taken = [f"{key} (set {OWNED[key]})" for key in keys_of(passed) if key in OWNED]
    table = passed.get("zero_optimization", {})
    if not isinstance(table, Mapping):
        taken.append("zero_optimization, which is not a table")
    if not taken:
        return None
    return f"engine.deepspeed sets what a setting of Assay decides: {', '.join(taken)}; remove it from engine.deepspeed"


def with_passed(ours: Mapping[str, Any], passed: Mapping[str, Any]) -> dict[str, Any]:
    """Our dictionary with what is passed through.

    Tables are merged; the passed value of a key wins.
    """
    joined = dict(ours)
    for key, value in passed.items():
        held = joined.get(key)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        joined[key] = with_passed(held, value) if both else value
    return joined
