"""An optimizer step that can be skipped without a host-device sync.

Promise: an update that is left out changes no bit of a weight or a moment, at any ZeRO stage. It is left out where the
caller says so, and where the norm of the whole gradient is not finite. DeepSpeed computes that norm before the first
group of parameters is touched, so no group is updated beside one that is not.

How: optimizers that know mixed precision read a tensor `found_inf` (torch's protocol of `GradScaler`). It is set where
the parameters lie, so CUDA is never waited for unless they are offloaded: then each call of the optimizer waits once.
Gradients are clipped here too, by a factor on the device: DeepSpeed would ask the host whether they exceed their bound.
So would it ask whether a norm is valid; `never_ask` answers that, in every precision but fp16, whose loss scale follows
from the answer. `tests/pretrain/engine/test_host_waits.py` counts what is asked. DeepSpeed's own names that this needs:
`_global_grad_norm` of its engine and of its optimizers, and `is_invalid_grad_norm` in the modules of these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

Skip = torch.Tensor
"""A scalar on the device, fp32: 1 leaves the update out."""
_ABOVE_ZERO = 1e-6  # added to a norm before it divides, as DeepSpeed and torch do


def never_ask(modules: Iterable[Any], real: Callable[[Any], bool], precision: str) -> None:
    """Make DeepSpeed take every norm for valid, except in fp16.

    So the host never waits to learn it.

    It holds for this process, until the next engine is opened.
    """
    for module in modules:
        vars(module)["is_invalid_grad_norm"] = real if precision == "fp16" else (lambda norm: False)


def update(
    deepspeed: Any, factor: float, skip: Skip, whole: torch.Tensor, clipping: float
) -> tuple[Skip, torch.Tensor]:
    """Update the weights with the accumulated gradients, or skip.

    Args:
        deepspeed: the `DeepSpeedEngine`, after the backward pass of the last micro batch.
        factor: share of its highest rate that each group learns at.
        skip: the caller's word.
        whole: the norm of the whole gradient over all ranks, for stage 0, where DeepSpeed computes none.
        clipping: the largest norm that is learned from in full; 0 clips nothing.

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
        value = torch.as_tensor(keeper._global_grad_norm, device=skip.device).reshape(())  # fp64 at stage 3
        return torch.where(value < 0, torch.inf, value)  # DeepSpeed gives -1 for a norm that is not finite

    def left_out() -> Skip:
        return torch.maximum(skip, (~torch.isfinite(norm())).float())

    with _told(optimizer, left_out, norm, clipping):
        deepspeed.step()
    return left_out(), norm().float()


@contextlib.contextmanager
def _told(
    optimizer: Any, left_out: Callable[[], Skip], norm: Callable[[], torch.Tensor], clipping: float
) -> Iterator[None]:
    """Tell the optimizer on the device, just before it computes.

    By then the norm is known; and clip its gradients.
    """

    def tell(*_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # Offloaded parameters lie on the host. Torch would move the word there without waiting, and read it at once:
        # the step before's, or none. On the device's own parameters this copies nothing.
        place = parameters[0].device if parameters else left_out().device
        optimizer.found_inf = left_out().to(place)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if clipping and gradients:
            over = ((norm() + _ABOVE_ZERO) / clipping).clamp(min=1.0)
            torch._foreach_mul_(gradients, over.reciprocal().to(place))

    hook = optimizer.register_step_pre_hook(tell)
    try:
        yield
    finally:
        hook.remove()
        optimizer.found_inf = None
