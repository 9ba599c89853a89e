"""Parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pretrain.optim_config import OptimConfig

if TYPE_CHECKING:
    import torch


def rate_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The share of the full rate at `step` (1 is the first, `steps` the last): warm up, stay, decay (arXiv:2404.06395).

    Rises linearly to the full rate at step `warmup_steps`, stays, and falls linearly over the last `decay_steps` to
    `min_lr_ratio` of it at the last step. Stopping early and decaying from any checkpoint of the stable phase is what
    this shape is for.
    """
    rising = step / config.warmup_steps if step < config.warmup_steps else 1.0
    left = steps - step
    falling = left / config.decay_steps if left < config.decay_steps else 1.0
    return rising * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * falling)


def parameter_groups(
    named: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float, dimensions: Any = None
) -> list[dict[str, Any]]:
    """Two groups: matrices are decayed, vectors (norms) are not.

    `dimensions(parameter)` gives its axes; ZeRO-3 shows every parameter as a vector and keeps the true shape elsewhere.
    """
    axes = dimensions or (lambda parameter: parameter.dim())
    parameters = [parameter for _, parameter in named]
    matrices = [parameter for parameter in parameters if axes(parameter) > 1]
    vectors = [parameter for parameter in parameters if axes(parameter) <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def make_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.AdamW:
    """The fused AdamW of torch (arXiv:1711.05101): as fast as DeepSpeed's own, and nothing is compiled for it."""
    import torch

    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
