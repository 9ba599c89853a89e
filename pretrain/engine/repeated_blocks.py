"""Blocks that run more than once per micro batch, under ZeRO-3.

Stage 3 gathers a block's weights together because the block is a leaf module of DeepSpeed (`deepspeed_config.BLOCK`).
DeepSpeed reduces the gradients of a leaf module whenever a backward pass through it ends. Where a block runs twice, the
first of these passes ends before all gradients exist: within one bucket DeepSpeed's assertion fails; over several
buckets a part of the gradient is lost without a word (69 % of it in the tests' model, version 0.19.8).

So a model that declares `repeats_blocks` has no leaf modules (`deepspeed_config.without_leaf_modules`). Each matrix is
gathered separately then, and its gradient is reduced once, when it is whole. A model that repeats a block without
declaring it is stopped.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from governance.errors import PipelineError
from pretrain.model.layers import Block


def stop_at_repeated_blocks(model: nn.Module) -> None:
    """Raise in the second pass of a block that awaits gradients.

    A pass counts until its outputs have their gradients, or are dropped without them. Recomputation happens within the
    block and does not count as a pass.

    Raises:
        PipelineError: in the second pass.
    """
    for name, block in model.named_modules():
        if isinstance(block, Block):
            block.register_forward_hook(_Once(name))


class _Once:
    """Forward hook that knows whether a pass of its block awaits gradients."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._awaited: Callable[[], Any] = _nothing

    def __call__(self, block: nn.Module, given: Any, made: tuple[torch.Tensor, Any]) -> None:
        if not made[0].requires_grad:
            return
        if self._awaited() is not None:
            raise PipelineError(
                f"{self._name} runs twice before a backward pass: at ZeRO stage 3 its gradients would be wrong. Set "
                f"repeats_blocks = True in the class of the model."
            )
        done = self._done
        made[0].register_hook(done)
        self._awaited = weakref.ref(done)  # only the graph of this pass holds it, and is freed with it

    def _done(self, gradient: torch.Tensor) -> None:
        self._awaited = _nothing


def _nothing() -> None:
    """Stand for the hook of no pass."""
