"""One update of the weights that can be left out: which one is known on the device only, and nobody waits to learn it.

Promise: an update that is left out changes no bit of a weight or a moment, at any ZeRO stage. It is left out where the
caller says so, and where the norm of the whole gradient is not finite. DeepSpeed computes that norm before the first
group of parameters is touched, so no group is updated beside one that is not.

How: optimizers that know mixed precision read a tensor `found_inf` (torch's protocol of `GradScaler`; the attribute
`_step_supports_amp_scaling` says who does). It is set where the parameters lie, so CUDA is never waited for unless
they are offloaded: then, and with an optimizer that does not know it, each call of the optimizer waits once.
DeepSpeed's own attributes that this needs: `_global_grad_norm` of its engine and of its optimizers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

Skip = torch.Tensor
"""A scalar on the device, fp32: 1 leaves the update out."""


def update(deepspeed: Any, factor: float, skip: Skip, whole: torch.Tensor) -> tuple[Skip, torch.Tensor]:
    """Update the weights with the gradients of this global batch, or leave them as they are.

    Args:
        deepspeed: the `DeepSpeedEngine`, after the backward pass of the last micro batch.
        factor: share of its highest rate that each group learns at.
        skip: the caller's word.
        whole: the norm of the whole gradient over all ranks, for stage 0, where DeepSpeed computes none.

    Returns:
        1 where the update was left out, and the norm of the whole gradient before clipping (infinite or NaN where a
        part of it is); scalars on the device.
    """
    wrapper = deepspeed.optimizer
    optimizer = getattr(wrapper, "optimizer", wrapper)
    for group in wrapper.param_groups:
        group["lr"] = group["base_lr"] * factor
    if wrapper is optimizer:
        deepspeed._global_grad_norm = whole
    keeper = deepspeed if wrapper is optimizer else wrapper

    def norm() -> torch.Tensor:
        value = torch.as_tensor(keeper._global_grad_norm, dtype=torch.float32, device=skip.device).reshape(())
        return torch.where(value < 0, torch.inf, value)  # DeepSpeed gives -1 for a norm that is not finite

    def left_out() -> Skip:
        return torch.maximum(skip, (~torch.isfinite(norm())).float())

    knows = getattr(optimizer, "_step_supports_amp_scaling", False)
    with _found_inf(optimizer, left_out) if knows else _asked_first(optimizer, left_out):
        deepspeed.step()
    return left_out(), norm()


@contextlib.contextmanager
def _found_inf(optimizer: Any, left_out: Callable[[], Skip]) -> Iterator[None]:
    """Tell the optimizer on the device, just before it computes: by then the norm is known."""

    def tell(*_: Any) -> None:
        # Offloaded parameters lie on the host. Torch would move the word there without waiting, and read it at once:
        # the step before's, or none. On the device's own parameters this copies nothing.
        places = (parameter.device for group in optimizer.param_groups for parameter in group["params"])
        word = left_out()
        optimizer.found_inf = word.to(next(places, word.device))

    hook = optimizer.register_step_pre_hook(tell)
    try:
        yield
    finally:
        hook.remove()
        optimizer.found_inf = None


@contextlib.contextmanager
def _asked_first(optimizer: Any, left_out: Callable[[], Skip]) -> Iterator[None]:
    """Do not call an optimizer that cannot be told."""
    step = optimizer.step
    optimizer.step = lambda *given, **named: None if float(left_out()) else step(*given, **named)
    try:
        yield
    finally:
        del optimizer.step
