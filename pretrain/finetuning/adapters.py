"""Low-rank adapters of linear maps, and frozen parameters.

The adapters are those of LoRA (arXiv:2106.09685). A linear map W of `adapted_matrices` becomes a `LowRankLinear`:
x W' + scale (drop(x) A') B'. Parameters have PEFT's names below the map's own (`q_proj.lora_A.weight`) and its initial
values: A uniform within 1 / sqrt(inputs), B zero, so that training begins with the model of `initial_weights`.

The dropout of a pass is a function of the run's seed, the step, the rank and the micro batch: a resumed run drops what
an uninterrupted one drops, and recomputed activations are those of the first pass. Other ranks or micro batches drop
others.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from governance.files import sha256_bytes
from pretrain.config.training import AdapterConfig, TrainRecipe
from pretrain.finetuning.trained_parameters import DOWN, UP, adapted_matrices, trained_shapes


class LowRankLinear(nn.Linear):
    """Linear map with a low-rank adapter; `adapt` turns an `nn.Linear` into one."""

    lora_A: nn.Linear  # noqa: N815 - PEFT's name
    lora_B: nn.Linear  # noqa: N815 - PEFT's name
    adapter: AdapterConfig
    draw = 0
    """Seed of the dropout of this pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        return super().forward(x) + self.lora_B(self.lora_A(self._dropped(x))) * self.adapter.scale

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        rate = self.adapter.dropout
        if not rate or not torch.is_grad_enabled():
            return x
        generator = torch.Generator(x.device).manual_seed(self.draw)
        kept = torch.rand(x.shape, generator=generator, device=x.device) >= rate
        return x * kept / (1.0 - rate)


def freeze(model: nn.Module, recipe: TrainRecipe, vocabulary_size: int) -> None:
    """Add the adapters, and let only what the recipe trains learn.

    At stage 3 it is called within DeepSpeed's context, which partitions the new parameters.

    Raises:
        ConfigError: a pattern or target matches nothing, or the rank is larger than a matrix.
    """
    if recipe.train.adapter is not None:
        for name in adapted_matrices(recipe.model, recipe.train.adapter):
            adapt(model.get_submodule(name), recipe.train.adapter)
    learning = trained_shapes(recipe.model, recipe.train, vocabulary_size)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)


def adapt(linear: Any, adapter: AdapterConfig) -> None:
    """Turn a linear map into a `LowRankLinear`, without values yet."""
    linear.lora_A = nn.Linear(linear.in_features, adapter.rank, bias=False)
    linear.lora_B = nn.Linear(adapter.rank, linear.out_features, bias=False)
    linear.__class__, linear.adapter = LowRankLinear, adapter


def initial_adapter(name: str, shape: torch.Size, seed: int) -> torch.Tensor | None:
    """Initial fp32 values of an adapter's parameter; None for another one."""
    if name.endswith(UP):
        return torch.zeros(shape)
    if not name.endswith(DOWN):
        return None
    generator = torch.Generator().manual_seed(_seed_of(f"{seed}/{name}"))
    bound = 1.0 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def begin_pass(model: nn.Module, place: tuple[int, int, int, int]) -> None:
    """Decide the next pass' dropout: seed, step, rank, micro batch."""
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear) and module.adapter.dropout:
            module.draw = _seed_of(f"{'/'.join(map(str, place))}/{name}")


def _seed_of(text: str) -> int:
    return int(sha256_bytes(text.encode())[:15], 16)
