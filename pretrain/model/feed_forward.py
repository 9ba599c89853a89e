"""The layer between attentions, applied to each token alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.model_config import ModelConfig


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202), or down(f(up(x))) with GELU, ReLU or squared ReLU for f."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.kind = config.feed_forward
        if self.kind == "swiglu":
            self.gate_proj = nn.Linear(width, inner, bias=config.bias)
        self.up_proj = nn.Linear(width, inner, bias=config.bias)
        self.down_proj = nn.Linear(inner, width, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        if self.kind == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(_bend(self.up_proj(x), self.kind))


def _bend(x: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "gelu":
        return F.gelu(x)
    return F.relu(x) if kind == "relu" else F.relu(x).square()
