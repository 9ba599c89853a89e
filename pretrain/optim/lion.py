"""Lion (arXiv:2302.06675).

Promise: elementwise, so it gives the same weights on any piece of a parameter; `found_inf` as in `optimizers.py`.
Price: 4 bytes of moment per parameter where AdamW keeps 8, and a copy of the largest tensor while it is updated.
"""

from __future__ import annotations

from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Lion: signed momentum with decoupled weight decay.

    Each weight w with gradient g and moment m becomes w (1 - lr decay) - lr sign(beta1 m + (1 - beta1) g), and m
    becomes beta2 m + (1 - beta2) g.
    """

    found_inf: torch.Tensor | None = None
    """fp32 scalar: where it is 1, a step changes nothing."""

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": learning_rate, "betas": betas, "weight_decay": 0.0})
        self._step_supports_amp_scaling = True  # torch's mark of an optimizer that reads `found_inf`

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient; takes no closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
        (first, second), rate, moment = group["betas"], group["lr"], state["exp_avg"]
        gradient, kept = parameter.grad.to(moment.dtype), 1.0 - rate * group["weight_decay"]
        found = None if self.found_inf is None else self.found_inf.to(parameter.device)
        if skipped(found):
            return
        signs = torch.lerp(moment, gradient, 1.0 - first).sign_()
        if found is None or found.device.type == "cpu":
            parameter.mul_(kept).add_(signs, alpha=-rate)
            moment.lerp_(gradient, 1.0 - second)
        else:
            keep_where(found, parameter, (parameter * kept).add_(signs, alpha=-rate))
            keep_where(found, moment, torch.lerp(moment, gradient, 1.0 - second))


def skipped(found_inf: torch.Tensor | None) -> bool:
    """Return whether the step is known to change nothing.

    That is known only where `found_inf` is in host memory.
    """
    return found_inf is not None and found_inf.device.type == "cpu" and bool(found_inf)


def keep_where(found_inf: torch.Tensor, held: torch.Tensor, new: torch.Tensor) -> None:
    """Copy `new` to `held` unless `found_inf` is 1, without a host sync."""
    held.copy_(torch.where(found_inf.bool(), held, new))
