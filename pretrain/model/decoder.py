"""Decoder: embedding, blocks and output projection.

The forward pass returns the *sum* of the cross entropies, never a mean: only the trainer knows how many tokens the
global batch predicts over micro batches and ranks, and a mean of means over unequal parts is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pretrain.config.model import ModelConfig, padded_vocabulary
from pretrain.model.activation_checkpointing import Checkpointing
from pretrain.model.attention import DocumentMask, document_mask
from pretrain.model.expert_bias import ExpertBias
from pretrain.model.flash import Kernel, load_kernel
from pretrain.model.layers import Block, make_norm
from pretrain.model.loss import Head, Logits, SoftLoss
from pretrain.model.moe import balance_losses
from pretrain.model.position_embeddings import rotary_angles, sinusoids


@dataclass(frozen=True)
class Batch:
    """Rows as the model's input."""

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
    drawn: torch.Tensor | None = None
    """int64 [B, L, samples], next tokens drawn from a teacher's distributions; None: there are none."""
    seeds: torch.Tensor | None = None
    """int64 [B], in training: a random number of each row, from which dropout follows."""

    def to(self, device: torch.device) -> Batch:
        """Copy of the rows on another device."""
        return self._each(lambda column: column.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The rows in page-locked memory, for asynchronous copies to CUDA."""
        return self._each(lambda column: column.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        columns = (
            self.tokens, self.targets, self.segments, self.positions, self.origins, self.drawn, self.seeds,
        )  # fmt: skip
        return Batch(*(None if column is None else change(column) for column in columns))


class Stack(nn.Module):
    """Embedding, blocks, final norm: everything below the output projection."""

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, checkpointing: Checkpointing, flash: Kernel | None
    ) -> None:
        super().__init__()
        self.config, self.flash = config, flash
        self.embed_tokens = nn.Embedding(padded_vocabulary(vocabulary_size), config.hidden_size)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.embedding_norm:
            self.embedding_norm = make_norm(config)
        self.layers = nn.ModuleList(Block(config, layer, checkpointing) for layer in range(config.num_hidden_layers))
        if config.norm_position != "post":
            self.norm = make_norm(config)

    def forward(
        self, tokens: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor, documents: int | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Token ids [B, L] to hidden states and router logits."""
        mask = document_mask(segments, self.config, self.flash, documents)
        return self.through(tokens, positions, [mask] * len(self.layers))

    def through(
        self, tokens: torch.Tensor, positions: torch.Tensor, masks: Sequence[DocumentMask]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Hidden states and router logits, with the mask of each layer.

        In a cached generation each layer's mask attends over the keys of earlier passes, too.
        """
        x = self._embed(tokens, positions)
        windows, angles = [self.config.window(number) for number in range(len(self.layers))], {}
        if self.config.position_embedding == "rope":
            kinds = set(windows) if self.config.rope_local_base_freq else {None}
            angles = {kind: rotary_angles(positions, self.config, x.dtype, kind) for kind in kinds}
        routers = []
        for layer, window, mask in zip(self.layers, windows, masks, strict=True):
            x, router = layer(x, angles.get(window, angles.get(None)), mask)
            if router is not None:
                routers.append(router)
        return (x if self.config.norm_position == "post" else self.norm(x)), routers

    def _embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        config, x = self.config, self.embed_tokens(tokens)
        if config.embedding_multiplier != 1.0:
            x = x * config.embedding_multiplier
        if config.position_embedding == "learned":
            x = x + self.embed_positions(positions)
        if config.position_embedding == "sinusoidal":  # arXiv:1706.03762, section 3.4; of the base's width under mup
            x = x * math.sqrt(config.hidden_size / config.width_ratio) + sinusoids(positions, x.shape[-1]).to(x.dtype)
        return self.embedding_norm(x) if config.embedding_norm else x


def single_documents(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments and positions, int32 [B, L], of rows with one document each."""
    positions = torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device).expand(tokens.shape)
    return torch.zeros_like(positions), positions


class Decoder(nn.Module):
    """A language model, or with `num_labels` a classifier.

    `vocabulary_size` is the data's, before padding.

    `activation_checkpointing` decides what the forward pass keeps for the backward pass, and `attention` whether
    FlashAttention's kernel is used (`flash.py`).
    """

    repeats_blocks = False
    """A forward pass with gradients runs some block more than once (`engine/repeated_blocks.py`)."""

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        activation_checkpointing: Literal["none", "full", "selective"] = "none",
        attention: Literal["auto", "flash"] = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.expert_bias: ExpertBias | None = None
        flash = load_kernel() if attention == "flash" else None
        self.model = Stack(config, vocabulary_size, activation_checkpointing, flash)
        rule = Logits(1.0 / config.width_ratio, config.final_logit_softcapping, config.z_loss)
        if config.num_labels:
            rule = Logits()  # as the classification heads of `transformers`
        self.lm_head = Head(config.hidden_size, config.head_rows(vocabulary_size), rule)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @staticmethod
    def extra_inputs(batch: Batch, moved: Batch) -> dict[str, Any]:
        """Arguments of `forward` besides the rows.

        Taken from the batch on the CPU, and the same one moved to the model's device.
        """
        return {}

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def logits(self, batch: Batch) -> torch.Tensor:
        """[B, L, padded vocabulary], in the model's precision."""
        hidden, _ = self.model(batch.tokens, batch.segments, batch.positions)
        return self.lm_head(hidden)

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        segments: torch.Tensor,
        positions: torch.Tensor,
        documents: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Objective (fp32 scalar) and nats of each token, fp32 [B, L].

        The objective sums cross entropies, z-losses and, with experts, their routers' losses. The nats are the plain
        cross entropies, 0 where nothing is predicted, and carry no gradient. `documents` bounds the number of documents
        (`flash.documents_at_most`); without it FlashAttention makes the host wait for the count.
        """
        hidden, routers = self.model(tokens, segments, positions, documents)
        return self.losses(self.pooled(hidden, positions), routers, targets)

    def pooled(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, L, hidden] that the head reads, under `pooling`.

        The mean at a token is that of its document so far, so at the last one it is that of the text.
        """
        if self.config.pooling == "last":
            return hidden
        sums = nn.functional.pad(hidden.float().cumsum(1), (0, 0, 1, 0))
        begins = torch.arange(hidden.shape[1], device=hidden.device) - positions
        before = sums.gather(1, begins[..., None].long().expand(hidden.shape))
        return ((sums[:, 1:] - before) / (positions[..., None] + 1)).to(hidden.dtype)

    def losses(
        self, hidden: torch.Tensor, routers: list[torch.Tensor], targets: torch.Tensor, soft: SoftLoss | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Result of `forward`, from that of the stack.

        `soft` is a second loss on the logits.
        """
        objective, nats = self.lm_head(hidden, targets, soft)
        moe, balance = self.config.moe, self.expert_bias
        if moe is not None:
            biases = [None] * len(routers) if balance is None else balance.of_layers
            for router, bias in zip(routers, biases, strict=True):
                objective = objective + balance_losses(router, targets, moe, bias)
            if balance is not None and torch.is_grad_enabled():
                balance.count(routers, targets, moe.num_experts_per_tok)
        return objective, nats
