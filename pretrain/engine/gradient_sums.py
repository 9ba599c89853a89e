"""fp32 gradient sums of ZeRO-1 in bf16, in one pass.

DeepSpeed takes six: the bf16 gradient is zeroed before each pass and accumulated by autograd, copied to fp32, added to
the sum, and the sum is zeroed after each update. Here autograd hands over each gradient as it is, and the first one of
an update overwrites the sum. The results are equal bit for bit, except for the sign of zeros.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


def accumulate_in_one_pass(optimizer: Any) -> None:
    """Replace `BF16_Optimizer`'s accumulation by one pass."""
    optimizer.update_hp_grads = functools.partial(_accumulate, optimizer)
    optimizer.clear_hp_grads = functools.partial(_reset, optimizer)


@torch.no_grad()
def _accumulate(optimizer: Any, clear_lp_grads: bool = False) -> None:
    """Add a micro batch's gradients to the sums and free them."""
    groups = optimizer.bf16_groups, optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients
    for parameters, sums, begun in zip(*groups, strict=True):
        for index, (parameter, total) in enumerate(zip(parameters, sums, strict=True)):
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                if not begun[index]:  # the sum is still that of the last update
                    total.zero_()
            elif begun[index]:
                total.add_(gradient.view(total.shape))
            else:
                total.copy_(gradient.view(total.shape))
                parameter._hp_grad, begun[index] = total, True


def _reset(optimizer: Any) -> None:
    """Let the next gradients overwrite the sums."""
    optimizer.fp32_groups_has_gradients = [[False] * len(group) for group in optimizer.fp32_groups_gradients]
