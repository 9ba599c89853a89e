"""Optimizer step that can be skipped without a host-device sync.

Promise: a skipped update changes no bit of a weight or moment, at any ZeRO stage. An update is skipped where the caller
requests it, and where the norm of the whole gradient is not finite. DeepSpeed computes that norm before it touches the
first parameter group, so either all groups are updated or none.

Mechanism: optimizers for mixed precision read a tensor `found_inf` (torch's `GradScaler` protocol). It is placed on the
parameters' device, so the host waits for CUDA only if they are offloaded: then once per call of the optimizer.
Gradients are clipped here too, by a factor on the device, because DeepSpeed would compare the norm with its bound on
the host. It would also check there whether a norm is valid; `skip_norm_checks` prevents that in every precision but
fp16, whose loss scale depends on the result. `tests/pretrain/engine/test_host_waits.py` counts host syncs. DeepSpeed's
own names used here: `_global_grad_norm` of its engine and optimizers, and `is_invalid_grad_norm` in their modules.

The fp32 gradient sums of ZeRO-1 in bf16 are made in one pass, for which DeepSpeed takes six: the bf16 gradient is
zeroed before each pass and accumulated by autograd, copied to fp32, added to the sum, and the sum is zeroed after each
update. Here autograd hands over each gradient as it is, and the first one of an update overwrites the sum. The results
are equal bit for bit, except for the sign of zeros.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from pretrain.engine.fixed_order import update_in_order
from pretrain.engine.state import before_update
from pretrain.engine.wrapped import Wrapped

Skip = torch.Tensor
"""Fp32 scalar on the device: 1 skips the update."""
_ABOVE_ZERO = 1e-6  # added to a norm before it divides, as DeepSpeed and torch do


def skip_norm_checks(modules: Iterable[Any], real: Callable[[Any], bool], precision: str) -> None:
    """Make DeepSpeed accept every norm without a host sync, except in fp16.

    It applies to this process until the next engine is opened.
    """
    for module in modules:
        vars(module)["is_invalid_grad_norm"] = real if precision == "fp16" else (lambda norm: False)


def update(engine: Wrapped, factor: float, skip: Skip) -> tuple[Skip, torch.Tensor]:
    """Update the weights with the accumulated gradients, or skip; `Engine.update`.

    Args:
        engine: after the backward pass of the last micro batch.
        factor: share of each group's peak learning rate.
        skip: the caller's request.

    Returns:
        1 where the update was skipped, also because the gradient was not finite; and the L2 norms of the gradient
        before clipping (infinite or NaN where a part of it is): of all of it, then of each group. On the device; the
        host does not wait for them.
    """
    if engine.fixed is not None:
        return update_in_order(engine, factor, skip)
    deepspeed = engine.deepspeed
    norms = torch.stack([*before_update(engine).values()])
    wrapper = deepspeed.optimizer
    optimizer = getattr(wrapper, "optimizer", wrapper)
    for group in wrapper.param_groups:
        group["lr"] = group["base_lr"] * factor
    # DeepSpeed computes none at stage 0, and another one where ranks hold other experts.
    own = torch.linalg.vector_norm(norms) if wrapper is optimizer or engine.expert_parts.size > 1 else None

    def norm() -> torch.Tensor:
        found = wrapper._global_grad_norm if own is None else own
        value = torch.as_tensor(found, device=skip.device).reshape(())  # fp64 at stage 3
        return torch.where(value < 0, torch.inf, value)  # DeepSpeed returns -1 for a norm that is not finite

    def skipped() -> Skip:
        return torch.maximum(skip, (~torch.isfinite(norm())).float())

    with _skip_and_clip(optimizer, skipped, norm, engine.clipping):
        deepspeed.step()
    if deepspeed.module.expert_bias is not None:
        deepspeed.module.expert_bias.move(skipped())
    return skipped(), torch.stack([norm().float(), *norms])


@contextlib.contextmanager
def _skip_and_clip(
    optimizer: Any, skipped: Callable[[], Skip], norm: Callable[[], torch.Tensor], clipping: float
) -> Iterator[None]:
    """Set `found_inf` and clip gradients just before the optimizer computes.

    The norm is known by then.
    """

    def prepare(*_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # Offloaded parameters are on the host. Torch would copy the flag there without waiting and read it at once,
        # so it would see an old value. For parameters on the device this copies nothing.
        place = parameters[0].device if parameters else skipped().device
        optimizer.found_inf = skipped().to(place)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if clipping and gradients:
            over = ((norm() + _ABOVE_ZERO) / clipping).clamp(min=1.0)
            torch._foreach_mul_(gradients, over.reciprocal().to(place))

    hook = optimizer.register_step_pre_hook(prepare)
    try:
        yield
    finally:
        hook.remove()
        optimizer.found_inf = None


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
