"""Blocks of the encoder and the decoder (arXiv:1706.03762, section 3.1).

Each sub-layer's output is dropped in part, added to its input, and the sum is normalised. As in the paper's formulas
attention has no biases; feed-forward layers and norms have them with `bias`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pretrain.config.model import ModelConfig
from pretrain.model.activation_checkpointing import BlockOutput, Checkpointing, run_block
from pretrain.model.attention import DocumentMask
from pretrain.model.attention_rule import Attend
from pretrain.model.feed_forward import FeedForward
from pretrain.model.layers import Attention, make_norm

Drop = Callable[[torch.Tensor, int], torch.Tensor]
"""(output of a sub-layer, number of the sub-layer) -> the output, a part of it dropped."""


def keep_all(x: torch.Tensor, site: int) -> torch.Tensor:
    """No dropout."""
    return x


class CrossAttention(Attention):
    """Attention of the decoder over the encoder's output."""

    def keys_and_values(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, H, N, D] of outputs [B, N, hidden]."""
        shape = (*memory.shape[:2], -1, self.head_dim)
        return self.k_proj(memory).view(shape).transpose(1, 2), self.v_proj(memory).view(shape).transpose(1, 2)

    def over(self, x: torch.Tensor, held: tuple[torch.Tensor, torch.Tensor], attend: Attend) -> torch.Tensor:
        """[B, L, hidden] -> [B, L, hidden], with `keys_and_values`."""
        q = self.q_proj(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        return self.o_proj(attend(q, *held).transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward layer."""

    sites = 2
    """Sub-layers, each with a dropout of its own."""

    def __init__(self, config: ModelConfig, layer: int, checkpointing: Checkpointing) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.self_attn = Attention(config.model_copy(update={"bias": False}), layer)
        self.input_layernorm = make_norm(config)
        self.mlp = FeedForward(config)
        self.post_attention_layernorm = make_norm(config)

    def forward(self, x: torch.Tensor, attend: Attend, drop: Drop, site: int) -> torch.Tensor:
        """[B, L, hidden] -> [B, L, hidden]; `site` numbers the first sub-layer."""

        def compute(x: torch.Tensor, angles: None, mask: DocumentMask) -> BlockOutput:
            x = self.input_layernorm(x + drop(self.self_attn(x, None, mask), site))
            return self.post_attention_layernorm(x + drop(self.mlp(x), site + 1)), None

        return run_block(compute, x, None, DocumentMask({None: attend}), self.checkpointing)[0]


class DecoderBlock(nn.Module):
    """Self-attention, attention over the encoder's output, feed-forward layer."""

    sites = 3

    def __init__(self, config: ModelConfig, layer: int, checkpointing: Checkpointing) -> None:
        super().__init__()
        without = config.model_copy(update={"bias": False})
        self.checkpointing = checkpointing
        self.self_attn = Attention(without, layer)
        self.input_layernorm = make_norm(config)
        self.cross_attn = CrossAttention(without, layer)
        self.cross_attention_layernorm = make_norm(config)
        self.mlp = FeedForward(config)
        self.post_attention_layernorm = make_norm(config)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, attends: tuple[Attend, Attend], drop: Drop, site: int
    ) -> torch.Tensor:
        """[B, L, hidden] -> [B, L, hidden], reading `memory` [B, N, hidden].

        `attends` are those over the target so far and over the source.
        """

        def compute(x: torch.Tensor, angles: None, mask: DocumentMask) -> BlockOutput:
            return self.after(x, self.cross_attn.keys_and_values(memory), (mask, attends[1]), drop, site), None

        return run_block(compute, x, None, DocumentMask({None: attends[0]}), self.checkpointing)[0]

    def after(
        self,
        x: torch.Tensor,
        held: tuple[torch.Tensor, torch.Tensor],
        seen: tuple[DocumentMask, Attend],
        drop: Drop = keep_all,
        site: int = 0,
    ) -> torch.Tensor:
        """Compute the block with the source's keys and values."""
        x = self.input_layernorm(x + drop(self.self_attn(x, None, seen[0]), site))
        x = self.cross_attention_layernorm(x + drop(self.cross_attn.over(x, held, seen[1]), site + 1))
        return self.post_attention_layernorm(x + drop(self.mlp(x), site + 2))
