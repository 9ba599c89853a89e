"""Feed-forward layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.config.model import ModelConfig
from pretrain.model.cpu_ops import SquaredRelu, SwiGlu, has_cpu_kernels


class FeedForward(nn.Module):
    """Gated (arXiv:2002.05202) or plain feed-forward layer.

    It computes down(f(gate(x)) * up(x)) with f SiLU or GELU, or down(f(up(x))) with f GELU, ReLU or squared ReLU.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.kind = config.feed_forward
        self.gated = config.gated
        if self.gated:
            self.gate_proj = nn.Linear(width, inner, bias=config.bias)
        self.up_proj = nn.Linear(width, inner, bias=config.bias)
        self.down_proj = nn.Linear(inner, width, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        gate = self.gate_proj(x) if self.gated else None
        return self.down_proj(self.activate(self.up_proj(x), gate))

    def activate(self, up: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        """Input of `down_proj` from the products of `up_proj` and, if gated, `gate_proj`."""
        return _activate(up, self.kind) if gate is None else _gated(gate, up, self.kind)


def _gated(gate: torch.Tensor, up: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "geglu":
        return F.gelu(gate, approximate="tanh") * up
    return SwiGlu.apply(gate, up) if has_cpu_kernels(gate) else F.silu(gate) * up


def _activate(x: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "gelu":
        return F.gelu(x)
    if kind == "relu":
        return F.relu(x)
    return SquaredRelu.apply(x) if has_cpu_kernels(x) else F.relu(x).square()
