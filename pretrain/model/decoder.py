"""The decoder-only Transformer, its loss as a sum over tokens, its initial weights, and its arithmetic per token.

The forward pass returns the *sum* of the cross entropies and never a mean: only the trainer knows how many tokens the
whole global batch predicts, over micro batches and ranks, and a mean of unequal means is not the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from governance.files import sha256_bytes
from pretrain.model.attention import document_mask
from pretrain.model.layers import Block, RMSNorm, rotary_angles
from pretrain.model_config import ModelConfig, padded_vocabulary

INITIAL_STD = 0.02  # of every matrix, as in GPT-2; projections into the stream are scaled down by sqrt(2 layers)


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them."""

    tokens: torch.Tensor
    """int64 [B, L]."""
    targets: torch.Tensor
    """int64 [B, L], -100 where nothing is predicted."""
    segments: torch.Tensor
    """int32 [B, L], number of the document within its row."""
    positions: torch.Tensor
    """int32 [B, L], position within the document."""
    origins: torch.Tensor | None = None
    """int64 [B, L], number of the document's "source/language" (`Rows.origins`), -1 where nothing is predicted."""

    def to(self, device: torch.device) -> Batch:
        """The same rows on another device."""
        return self._each(lambda column: column.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same rows in page-locked memory, from which a copy to CUDA does not hold up the host."""
        return self._each(lambda column: column.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        columns = (self.tokens, self.targets, self.segments, self.positions, self.origins)
        return Batch(*(None if column is None else change(column) for column in columns))


class Stack(nn.Module):
    """Embedding, blocks, final norm: everything below the output projection."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(padded_vocabulary(vocabulary_size), config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head_dim, self.theta = config.head_dim, config.rope_theta

    def forward(self, tokens: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Token ids [B, L] -> hidden states [B, L, hidden]."""
        x = self.embed_tokens(tokens)
        angles = rotary_angles(positions, self.head_dim, self.theta, x.dtype)
        mask = document_mask(segments)
        for layer in self.layers:
            x = layer(x, angles, mask)
        return self.norm(x)


class Decoder(nn.Module):
    """A Llama-shaped language model; `vocabulary_size` is the data's, before padding."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.model = Stack(config, vocabulary_size)
        self.lm_head = nn.Linear(config.hidden_size, padded_vocabulary(vocabulary_size), bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def logits(self, batch: Batch) -> torch.Tensor:
        """[B, L, padded vocabulary], in the model's precision."""
        return self.lm_head(self.model(batch.tokens, batch.segments, batch.positions))

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is differentiated, an fp32 scalar: the sum over all targets; and each token's nats, fp32 [B, L].

        The nats are the plain cross entropies, 0 where nothing is predicted, and carry no gradient.
        """
        logits = self.lm_head(self.model(tokens, segments, positions))
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return nats.sum(), nats.detach().view(targets.shape)


def initial_weight(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> torch.Tensor:
    """The fp32 values that a parameter starts from: a function of its name and the seed, whatever the ranks.

    Norms are 1. Matrices are normal with deviation 0.02; the two projections of a block that write into the residual
    stream are divided by sqrt(2 layers), so that its variance does not grow with depth (GPT-2, section 2.3).
    """
    if len(shape) == 1:
        return torch.ones(shape)
    scale = math.sqrt(2 * config.num_hidden_layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
    digest = sha256_bytes(f"{seed}/{name}".encode())
    generator = torch.Generator().manual_seed(int(digest[:15], 16))
    return torch.empty(shape).normal_(0.0, INITIAL_STD / scale, generator=generator)


def parameter_count(config: ModelConfig, vocabulary_size: int) -> int:
    """Parameters, padding included, in closed form."""
    width, narrow = config.hidden_size, config.num_key_value_heads * config.head_dim
    block = 2 * width * width + 2 * width * narrow + 3 * width * config.intermediate_size + 2 * width
    tables = 1 if config.tie_word_embeddings else 2
    return tables * padded_vocabulary(vocabulary_size) * width + config.num_hidden_layers * block + width


def flops_per_token(config: ModelConfig, vocabulary_size: int, sequence_length: int) -> int:
    """Floating-point operations of forward and backward per token: 6 N + 12 layers x width x length.

    N counts every weight that multiplies (the input embedding is a look-up). The attention term takes each row as one
    document and both triangles, as PaLM does (arXiv:2204.02311, appendix B), so that MFU compares with others'.
    """
    embedding = padded_vocabulary(vocabulary_size) * config.hidden_size
    tied = config.tie_word_embeddings
    weights = parameter_count(config, vocabulary_size) - (0 if tied else embedding)
    return 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * sequence_length
