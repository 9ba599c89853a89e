"""The parts of a block: RMSNorm, rotary positions, grouped-query attention, SwiGLU; all linear maps without bias.

Parameter names are those of Hugging Face's Llama, and so is the rotary convention (channel i is paired with channel
i + head_dim / 2), so that exported weights mean the same there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.model.attention import DocumentMask
from pretrain.model_config import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotary_angles(positions: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> torch.Tensor:
    """Cosines and sines [2, B, 1, L, head_dim] for positions [B, L], computed in fp32 (arXiv:2104.09864, eq. 15)."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].float() * theta ** -(channels / head_dim)
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin())).unsqueeze(2).to(dtype)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (i, i + D/2) of x [B, H, L, D] by its angle."""
    low, high = x.chunk(2, dim=-1)
    return x * angles[0] + torch.cat((-high, low), dim=-1) * angles[1]


class Attention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245) inside documents."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, narrow = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, narrow, bias=False)
        self.v_proj = nn.Linear(width, narrow, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, angles: torch.Tensor, mask: DocumentMask) -> torch.Tensor:
        """[B, L, hidden] -> [B, L, hidden]."""
        rows, length, _ = x.shape
        shape = (rows, length, -1, self.head_dim)  # -1: under tensor parallelism a rank holds a part of the heads
        q = self.q_proj(x).view(shape).transpose(1, 2)
        k = self.k_proj(x).view(shape).transpose(1, 2)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        seen = mask.attend(rotate(q, angles), rotate(k, angles), v)
        return self.o_proj(seen.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, hidden] -> [B, L, hidden]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then feed-forward; each on a normalised copy of the stream, and added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: torch.Tensor, angles: torch.Tensor, mask: DocumentMask) -> torch.Tensor:
        """[B, L, hidden] -> [B, L, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), angles, mask)
        return x + self.mlp(self.post_attention_layernorm(x))
