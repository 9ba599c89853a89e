"""Low-rank adapters of linear maps, and frozen parameters.

The adapters are those of LoRA (arXiv:2106.09685). A linear map W of `adapted_matrices` becomes a `LowRankLinear`:
x W' + scale (drop(x) A') B'. Parameters have PEFT's names below the map's own (`q_proj.lora_A.weight`) and its initial
values: A uniform within 1 / sqrt(inputs), B zero, so that training begins with the model of `initial_weights`. An
embedding's table is such a map, too: [tokens, channels].

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
from pretrain.finetuning.trained_parameters import DOWN, EMBEDDING, UP, adapted_matrices, trained_shapes
from pretrain.model.loss import Head


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


class LowRankEmbedding(nn.Embedding):
    """Embedding with a low-rank adapter."""

    lora_A: nn.Linear  # noqa: N815 - PEFT's name
    lora_B: nn.Linear  # noqa: N815 - PEFT's name
    adapter: AdapterConfig

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[...] -> [..., channels]."""
        added = nn.functional.embedding(tokens, self.lora_B.weight) @ self.lora_A.weight
        return super().forward(tokens) + added * self.adapter.scale


class LowRankHead(Head):
    """Output projection by the table of a `LowRankEmbedding`."""

    embedding: tuple[LowRankEmbedding]
    """In a tuple, so that its parameters keep one name."""

    def table(self) -> torch.Tensor:
        """Table with its adapter; its copy is freed after the loss."""
        [embedding] = self.embedding
        return self.weight + embedding.lora_B.weight @ embedding.lora_A.weight * embedding.adapter.scale


def freeze(model: nn.Module, recipe: TrainRecipe, vocabulary_size: int) -> None:
    """Add the adapters, and let only what the recipe trains learn.

    At stage 3 it is called within DeepSpeed's context, which partitions the new parameters.

    Raises:
        ConfigError: a pattern or target matches nothing, or the rank is larger than a matrix.
    """
    if recipe.train.adapter is not None:
        for name in adapted_matrices(recipe.model, recipe.train.adapter):
            adapt(model.get_submodule(name), recipe.train.adapter)
        if recipe.train.adapter.embedding_rank:
            _adapt_embedding(model, recipe.train.adapter, tied=recipe.model.tied)
    learning = trained_shapes(recipe.model, recipe.train, vocabulary_size)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)


def adapt(linear: Any, adapter: AdapterConfig) -> None:
    """Turn a linear map into a `LowRankLinear`, without values yet."""
    linear.lora_A = nn.Linear(linear.in_features, adapter.rank, bias=False)
    linear.lora_B = nn.Linear(adapter.rank, linear.out_features, bias=False)
    linear.__class__, linear.adapter = LowRankLinear, adapter


def _adapt_embedding(model: Any, adapter: AdapterConfig, *, tied: bool) -> None:
    embedding = model.get_submodule(EMBEDDING)
    embedding.lora_A = nn.Linear(embedding.embedding_dim, adapter.embedding_rank, bias=False)
    embedding.lora_B = nn.Linear(adapter.embedding_rank, embedding.num_embeddings, bias=False)
    embedding.__class__, embedding.adapter = LowRankEmbedding, adapter
    if tied:
        model.lm_head.__class__, model.lm_head.embedding = LowRankHead, (embedding,)


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
