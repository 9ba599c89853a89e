"""fp32 gradient sums of ZeRO-1 in bf16, in one pass.

Its own way takes six: the bf16 gradient is set to zero before each pass and added to by autograd; it is copied to fp32,
added to the sum, and the sum is set to zero after each update. Here autograd hands each gradient over as it is, and the
first of an update is written over the sum. Both are equal bit for bit, but for the sign of a zero.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


def add_up_in_one_pass(optimizer: Any) -> None:
    """Replace `BF16_Optimizer`'s accumulation by one pass."""
    optimizer.update_hp_grads = functools.partial(_add, optimizer)
    optimizer.clear_hp_grads = functools.partial(_begin_anew, optimizer)


@torch.no_grad()
def _add(optimizer: Any, clear_lp_grads: bool = False) -> None:
    """Add a micro batch's gradients to the sums and free them."""
    groups = optimizer.bf16_groups, optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients
    for parameters, sums, begun in zip(*groups, strict=True):
        for index, (parameter, total) in enumerate(zip(parameters, sums, strict=True)):
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                if not begun[index]:  # what it holds is the last update's
                    total.zero_()
            elif begun[index]:
                total.add_(gradient.view(total.shape))
            else:
                total.copy_(gradient.view(total.shape))
                parameter._hp_grad, begun[index] = total, True


def _begin_anew(optimizer: Any) -> None:
    """The next gradients are written over the sums."""
    optimizer.fp32_groups_has_gradients = [[False] * len(group) for group in optimizer.fp32_groups_gradients]
