"""Warnings of `compatibility.py` about slow ways of computing.

They import no torch.
"""

from __future__ import annotations

from pretrain.config.training import Settings, TrainRecipe
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.memory import SHORT_ROWS


def soft_caps_on_cpu_are_slow(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Warn of soft caps on CPU, where torch has no kernel."""
    if hardware.device != "cpu" or recipe.model.attn_logit_softcapping is None:
        return None
    length = recipe.train.sequence_length
    return (
        f"model.attn_logit_softcapping on CPU: attention is computed by the formula, which keeps fp32 logits of all "
        f"{length} x {length} pairs of each row and head; it is slow and needs memory. On a GPU it is one kernel"
    )


def long_rows_on_cpu_are_slow(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Warn of rows that the CPU's own attention does not take."""
    length = recipe.train.sequence_length
    if hardware.device != "cpu" or length <= SHORT_ROWS or recipe.model.attn_logit_softcapping is not None:
        return None
    return (
        f"train.sequence_length = {length} on CPU: above {SHORT_ROWS} tokens attention is torch's, with a table of all "
        f"{length} x {length} pairs where a row holds several documents or a window cuts it; shorter rows are faster"
    )


def gpus_compute_uncompiled(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Warn of a model on CUDA that is not compiled."""
    engine, train = settings.engine, recipe.train
    refused = engine.expert_parallel_size > 1 or train.distillation is not None or recipe.model.encoder_layers > 0
    refused = refused or (train.adapter is not None and train.adapter.dropout > 0)
    if hardware.device != "cuda" or engine.compile or engine.deepcompile or refused:
        return None
    return (
        "engine.compile = false on a GPU: rotations, residual sums and norms are kernels of their own, and queries, "
        "keys and values three products; set compile = true"
    )


def split_losses_are_not_fused(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> str | None:
    """Warn of a vocabulary split on CUDA, whose loss takes several passes."""
    if hardware.device != "cuda" or settings.engine.tensor_parallel_size == 1:
        return None
    return (
        f"engine.tensor_parallel_size = {settings.engine.tensor_parallel_size}: the loss over the ranks' parts of the "
        f"vocabulary takes several passes over fp32 logits, which one kernel does without the split"
    )
