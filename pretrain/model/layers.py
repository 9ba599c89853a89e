"""Norms, grouped-query attention and the residual block.

Parameter names are those of Hugging Face's Llama (`q_norm` and `k_norm` are Qwen 3's, the norms of a sandwich Gemma
2's, those of the reordered block OLMo 2's), so that exported weights mean the same there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.config.model import ModelConfig
from pretrain.model.activation_checkpointing import BlockOutput, Checkpointing, run_block
from pretrain.model.attention import DocumentMask
from pretrain.model.cpu_ops import RMSNormFunction, has_cpu_kernels
from pretrain.model.feed_forward import FeedForward
from pretrain.model.moe import Experts
from pretrain.model.position_embeddings import rotate


class RMSNorm(nn.Module):
    """RMSNorm over the last axis (arXiv:1910.07467).

    It computes x / sqrt(mean(x^2) + eps) * weight; the weight may be None.
    """

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size)) if config.norm_weights else None
        self.eps = config.rms_norm_eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        if has_cpu_kernels(x):
            return RMSNormFunction.apply(x, self.weight, self.eps)
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm over the stream (arXiv:1910.07467, arXiv:1607.06450)."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config)
    learned = config.norm_weights
    return nn.LayerNorm(config.hidden_size, config.rms_norm_eps, elementwise_affine=learned, bias=config.bias)


class Attention(nn.Module):
    """Multi-head, grouped-query (arXiv:2305.13245) or multi-query attention inside documents."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, narrow = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.head_dim, self.window = config.head_dim, config.window(layer)
        self.q_proj = nn.Linear(width, config.attention_width, bias=config.bias)
        self.k_proj = nn.Linear(width, narrow, bias=config.bias)
        self.v_proj = nn.Linear(width, narrow, bias=config.bias)
        self.o_proj = nn.Linear(config.attention_width, width, bias=config.bias)
        self.joined = False
        self.normal, self.normal_whole = config.qk_norm, config.qk_norm_whole
        if config.qk_norm:
            sizes = (config.attention_width, narrow) if config.qk_norm_whole else (self.head_dim, self.head_dim)
            self.q_norm, self.k_norm = (RMSNorm(size, config) for size in sizes)

    def forward(self, x: torch.Tensor, angles: torch.Tensor | None, mask: DocumentMask) -> torch.Tensor:
        """[B, L, hidden] -> [B, L, hidden].

        `angles` rotate queries and keys; with None there are no rotary positions.
        """
        rows, length, _ = x.shape
        shape = (rows, length, -1, self.head_dim)  # -1: under tensor parallelism a rank holds some of the heads
        q, k, v = self._project(x)
        if self.normal_whole:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.view(shape), k.view(shape), v.view(shape)
        if self.normal and not self.normal_whole:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        seen = mask.attend(q, k, v, self.window)
        return self.o_proj(seen.transpose(1, 2).flatten(2))

    def _project(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Queries, keys and values, in one product where parameters are joined (`join_projections`)."""
        maps = (self.q_proj, self.k_proj, self.v_proj)
        if not self.joined or not torch.compiler.is_compiling():
            return [part(x) for part in maps]
        bias = torch.cat([part.bias for part in maps]) if self.q_proj.bias is not None else None
        out = F.linear(x, torch.cat([part.weight for part in maps]), bias)
        return out.split([len(part.weight) for part in maps], dim=-1)


def join_projections(model: nn.Module) -> None:
    """Join the query, key and value products of compiled attention.

    That makes one product instead of three forward, two instead of six backward, and no sum of three gradients of the
    stream. The parameters stay separate, so checkpoints, exports and optimizers do not change; each pass copies them,
    which costs little next to the products of thousands of tokens. Without a compiler nothing changes, because the
    backward pass would keep the copy. It needs plain linear maps with whole weights, not cut by AutoTP.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.joined = True


class Block(nn.Module):
    """Attention and feed-forward with residuals; norms by `norm_position`."""

    def __init__(self, config: ModelConfig, layer: int, checkpointing: Checkpointing = "none") -> None:
        super().__init__()
        self.order, self.checkpointing = config.norm_position, checkpointing
        if self.order != "reordered":
            self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        if self.order == "sandwich":
            self.pre_feedforward_layernorm = make_norm(config)
        if self.order in ("sandwich", "reordered"):
            self.post_feedforward_layernorm = make_norm(config)
        self.mlp = FeedForward(config) if config.moe is None else Experts(config, config.moe)

    def forward(self, x: torch.Tensor, angles: torch.Tensor | None, mask: DocumentMask) -> BlockOutput:
        """[B, L, hidden] -> [B, L, hidden], and router logits.

        Those are None without experts. Recomputation happens inside this call, below the hooks with which ZeRO-3
        gathers the block's weights.
        """
        return run_block(self._compute, x, angles, mask, self.checkpointing)

    def _compute(self, x: torch.Tensor, angles: torch.Tensor | None, mask: DocumentMask) -> BlockOutput:
        read = x if self.order in ("post", "reordered") else self.input_layernorm(x)
        seen = self.self_attn(read, angles, mask)
        if self.order == "post":
            x = self.input_layernorm(x + seen)
            out, router = self._feed(x)
            return self.post_attention_layernorm(x + out), router
        if self.order == "pre":
            x = x + seen
            out, router = self._feed(self.post_attention_layernorm(x))
            return x + out, router
        x = x + self.post_attention_layernorm(seen)
        out, router = self._feed(x if self.order == "reordered" else self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(out), router

    def _feed(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = self.mlp(x)
        return out if isinstance(out, tuple) else (out, None)
