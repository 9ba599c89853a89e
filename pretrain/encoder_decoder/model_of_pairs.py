"""Encoder-decoder over packed rows of pairs (arXiv:1706.03762).

One table embeds sources and targets in one look-up and, where it is tied, projects the output. Price of a row: each of
its tokens passes through the encoder or the decoder (the source's last through both), and attention's masks hold all
pairs of tokens of a row.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import torch
from torch import nn

from pretrain.config.model import ModelConfig, padded_vocabulary
from pretrain.encoder_decoder.dropout import Drops
from pretrain.encoder_decoder.pair_blocks import DecoderBlock, Drop, EncoderBlock, keep_all
from pretrain.encoder_decoder.pair_rows import PairSide, attention_within, row_sizes, sides_of
from pretrain.model.activation_checkpointing import Checkpointing
from pretrain.model.attention_rule import Attend
from pretrain.model.decoder import Batch, Decoder
from pretrain.model.loss import Head, Logits
from pretrain.model.position_embeddings import sinusoids


class SourceEncoder(nn.Module):
    """Blocks that read sources."""

    def __init__(self, config: ModelConfig, checkpointing: Checkpointing) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderBlock(config, layer, checkpointing) for layer in range(config.encoder_layers)
        )

    def forward(self, x: torch.Tensor, attend: Attend, drop: Drop) -> torch.Tensor:
        """[B, N, hidden] -> [B, N, hidden]."""
        for number, layer in enumerate(self.layers):
            x = layer(x, attend, drop, 1 + number * EncoderBlock.sites)
        return x


class PairStack(nn.Module):
    """Everything below the output projection; `layers` are the decoder's."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, checkpointing: Checkpointing) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(padded_vocabulary(vocabulary_size), config.hidden_size)
        self.encoder = SourceEncoder(config, checkpointing)
        self.layers = nn.ModuleList(
            DecoderBlock(config, layer, checkpointing) for layer in range(config.num_hidden_layers)
        )

    def forward(
        self, tokens: torch.Tensor, sides: tuple[PairSide, PairSide], drops: tuple[Drop, Drop] = (keep_all, keep_all)
    ) -> torch.Tensor:
        """Packed rows [B, L] to the decoder's output [B, M, hidden]."""
        source, target = sides
        scale, columns = self.config.attention_scale, [side.of(tokens) for side in sides]
        read, written = self.embed_tokens(torch.cat(columns, dim=1)).split([x.shape[1] for x in columns], dim=1)
        x = drops[0](self.placed(read, source.positions), 0)
        memory = self.encoder(x, attention_within(source.segments, source.segments, scale), drops[0])
        x = drops[1](self.placed(written, target.positions), 0)
        attends = (
            attention_within(target.segments, target.segments, scale, causal=True),
            attention_within(target.segments, source.segments, scale),
        )
        for number, layer in enumerate(self.layers):
            x = layer(x, memory, attends, drops[1], 1 + number * DecoderBlock.sites)
        return x

    def placed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Embeddings times sqrt(hidden), plus the vectors of positions (sections 3.4 and 3.5)."""
        return x * math.sqrt(self.config.hidden_size) + sinusoids(positions, x.shape[-1]).to(x.dtype)


class EncoderDecoder(nn.Module):
    """A model of targets given their sources; arguments as those of `Decoder`."""

    repeats_blocks = False
    expert_bias = None

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        activation_checkpointing: Literal["none", "full", "selective"] = "none",
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.model = PairStack(config, vocabulary_size, activation_checkpointing)
        rule = Logits(1.0, config.final_logit_softcapping, config.z_loss, config.label_smoothing, vocabulary_size)
        self.lm_head = Head(config.hidden_size, padded_vocabulary(vocabulary_size), rule)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @staticmethod
    def extra_inputs(batch: Batch, moved: Batch) -> dict[str, Any]:
        """Sizes of the sides, found on the CPU, and the rows' seeds."""
        return {"sizes": row_sizes(batch.targets, batch.segments), "seeds": moved.seeds}

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        segments: torch.Tensor,
        positions: torch.Tensor,
        documents: int | None = None,
        *,
        sizes: tuple[int, int] | None = None,
        seeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Objective and nats, as `Decoder.forward` gives them.

        Smoothing is part of the objective alone. Without `seeds`, int64 [B], nothing is dropped.
        """
        sides = sides_of(targets, segments, positions, sizes or row_sizes(targets, segments))
        drops: tuple[Drop, Drop] = (keep_all, keep_all)
        if seeds is not None and self.config.dropout:
            make = functools.partial(Drops.of, self.config.dropout)
            drops = (make(seeds, sides[0].places.shape[1]), make(~seeds, sides[1].places.shape[1]))
        hidden = self.model(tokens, sides, drops)
        objective, nats = self.lm_head(hidden, sides[1].of(targets))
        return objective, torch.zeros_like(targets, dtype=nats.dtype).scatter(1, sides[1].places, nats)


def make_model(config: ModelConfig, vocabulary_size: int) -> Decoder | EncoderDecoder:
    """The model of a `[model]` section."""
    return (EncoderDecoder if config.encoder_layers else Decoder)(config, vocabulary_size)
