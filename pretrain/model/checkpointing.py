"""What a block's forward pass keeps for its backward pass.

- none: everything that the backward pass reads.
- full: the block's input; the block is computed again (arXiv:1604.06174). About a third more arithmetic.
- selective: the block's input and the results of its linear maps; norms, positions, activations and attention are
  computed again (arXiv:2205.05198). A few per cent more arithmetic.

Losses and gradients are those of "none": the same operations on the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pretrain.model.attention import DocumentMask

Checkpointing = Literal["none", "full", "selective"]
_PRODUCTS = torch.ops.aten
_KEPT = (
    _PRODUCTS.mm.default, _PRODUCTS.addmm.default, _PRODUCTS.linear.default, _PRODUCTS._scaled_mm.default
)  # fmt: skip


def run_block(
    block: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
    x: torch.Tensor,
    angles: torch.Tensor | None,
    mask: DocumentMask,
    how: Checkpointing,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What `block(x, angles, mask)` returns; keeps what `how` says."""
    if how == "none" or not torch.is_grad_enabled():
        return block(x, angles, mask)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # a block draws no random number
    if how == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, x, angles, mask, **options)


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
