"""Expert loads, and their balance by a selection bias (arXiv:2408.15664).

With a rate (`moe.router_bias_update_rate`) each expert of a layer has a bias that is added to its probability when
tokens choose, and to nothing else: outputs are still weighted by the probabilities. After every update it moves by the
rate, up for an expert that fewer tokens chose than the mean, down for one that more chose; a skipped update moves none.

Loads are whole numbers, counted over the tokens that predict and added up over all ranks, so the biases are the same on
every rank, at any ZeRO stage and number of ranks. Without a rate they are counted for the record alone. Price: one sum
of layers x experts numbers over the ranks per update; the host waits for none of it. The biases are in a checkpoint's
`state.json` (layers x experts fp32 numbers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from governance.errors import CheckpointError
from pretrain.config.model import ModelConfig
from pretrain.model.moe import select_experts


@dataclass(frozen=True)
class ExpertBias:
    """Biases and loads of a model's experts; they change in place."""

    values: torch.Tensor
    """fp32 [layers, experts]; without a rate they stay zero and nothing reads them."""
    loads: torch.Tensor
    """int64 [layers, experts], since the last update: choices of tokens that predict, on this rank."""
    greatest: torch.Tensor
    """fp32 scalar: load of the busiest expert in the last update, relative to the mean of its layer; 1 is balance."""
    rate: float

    @property
    def of_layers(self) -> Sequence[torch.Tensor | None]:
        """Biases of each layer, fp32 [experts]; None without a rate."""
        return list(self.values) if self.rate else [None] * len(self.values)

    def count(self, routers: Sequence[torch.Tensor], targets: torch.Tensor, used: int) -> None:
        """Add the choices of a micro batch.

        Args:
            routers: logits of each layer, fp32 [B, L, experts].
            targets: int64 [B, L], -100 where nothing is predicted.
            used: experts that a token uses.
        """
        counted = (targets >= 0).long().unsqueeze(-1).expand(*targets.shape, used).flatten()
        for logits, bias, loads in zip(routers, self.of_layers, self.loads, strict=True):
            chosen = select_experts(logits.detach(), used, bias)[1]
            loads.index_add_(0, chosen.flatten(), counted)

    def move(self, skipped: torch.Tensor) -> None:
        """Move the biases by the loads of all ranks. Collective.

        The loads begin at zero again.

        `skipped` is 1 on the device where the update was skipped, else 0.
        """
        distributed.all_reduce(self.loads)
        total, relative = self.loads.sum(-1, keepdim=True), self.loads * self.loads.shape[-1]
        self.greatest.copy_((relative / total.clamp(min=1)).max())
        self.values.add_((total - relative).sign() * (1.0 - skipped) * self.rate)
        self.loads.zero_()


def attach_expert_bias(model: Any, config: ModelConfig, device: torch.device | str = "cpu") -> None:
    """Count the loads of a decoder's experts, and give them zero biases.

    They get biases only where `[model.moe]` has a rate. Call it once the model is built: within ZeRO-3's context every
    new tensor would take the model's type.
    """
    moe = config.moe
    if moe is None:
        return
    shape = (config.num_hidden_layers, moe.num_local_experts)
    values = torch.zeros(shape, dtype=torch.float32, device=device)
    loads = torch.zeros(shape, dtype=torch.int64, device=device)
    model.expert_bias = ExpertBias(values, loads, values.new_ones(()), moe.router_bias_update_rate)
    for layer, bias in zip(model.model.layers, model.expert_bias.of_layers, strict=True):
        layer.mlp.bias = bias


def on_device(model: Any, device: torch.device | str) -> Any:
    """The model on a device, with its experts' biases.

    They are no buffers, which would be rounded with the weights: the choice of experts is in fp32.
    """
    model.to(device)
    if (held := model.expert_bias) is not None:
        values, loads, greatest = (one.to(device) for one in (held.values, held.loads, held.greatest))
        model.expert_bias = ExpertBias(values, loads, greatest, held.rate)
        for layer, bias in zip(model.model.layers, model.expert_bias.of_layers, strict=True):
            layer.mlp.bias = bias
    return model


def expert_bias_of(model: Any) -> list[list[float]] | None:
    """Biases as a checkpoint keeps them; None without a rate."""
    balance = model.expert_bias
    return balance.values.tolist() if balance is not None and balance.rate else None


def restore_expert_bias(model: Any, values: Sequence[Sequence[float]] | None) -> None:
    """Restore what `expert_bias_of` returned.

    Raises:
        CheckpointError: the checkpoint has no biases, or those of another shape.
    """
    if model.expert_bias is None or not model.expert_bias.rate:
        return
    held = model.expert_bias.values
    shape = [len(values), *{len(row) for row in values}] if values else []
    if shape != list(held.shape):
        raise CheckpointError(
            f"expert_bias in state.json has shape {shape}, the model's experts need {list(held.shape)}. Choose another "
            f"checkpoint."
        )
    held.copy_(torch.tensor(values, dtype=torch.float32))
