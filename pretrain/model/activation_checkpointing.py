"""Activation checkpointing: tensors that a block keeps for its backward pass.

- none: everything that the backward pass reads.
- full: the block's input; the block is recomputed (arXiv:1604.06174). About a third more arithmetic.
- selective: the block's input, the results of its linear maps, and that of attention where it is one kernel (everywhere
  but in the matrix products for short rows on CPU); norms, positions and activations are recomputed (arXiv:2205.05198).
  Hardly more arithmetic.

Losses and gradients equal those of "none": the same operations on the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pretrain.model.attention import DocumentMask

Checkpointing = Literal["none", "full", "selective"]
BlockOutput = tuple[torch.Tensor, torch.Tensor | None]
"""Stream, and router logits of experts."""
_PRODUCTS = torch.ops.aten
_KEPT = (
    _PRODUCTS.mm.default, _PRODUCTS.addmm.default, _PRODUCTS.linear.default, _PRODUCTS._scaled_mm.default,
    _PRODUCTS._grouped_mm.default, _PRODUCTS._scaled_dot_product_flash_attention_for_cpu.default,
)  # fmt: skip
_KEPT_NAMES = (
    "flex_attention",  # name in a compiled model
    "inductor_compiled_code",  # FlexAttention compiled by itself (`flex.py`)
    "flash_attn::_flash_attn_varlen_forward",  # FlashAttention 2
    "flash_attn_3::_flash_attn_forward",  # FlashAttention 3
    "flash_attn_3::fwd",  # name in its first versions
)


def run_block(
    block: Callable[..., BlockOutput],
    x: torch.Tensor,
    angles: torch.Tensor | None,
    mask: DocumentMask,
    how: Checkpointing,
) -> BlockOutput:
    """Output of `block(x, angles, mask)`, with activations kept according to `how`."""
    if how == "none" or not torch.is_grad_enabled():
        return block(x, angles, mask)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # a block draws no random numbers
    if how == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, x, angles, mask, **options)


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    kept = operation in _KEPT or _name(operation) in _KEPT_NAMES
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _name(operation: Any) -> str:
    """Name of an operation without its overload."""
    name = operation.name() if callable(getattr(operation, "name", None)) else str(operation)
    return name.partition(".")[0]
