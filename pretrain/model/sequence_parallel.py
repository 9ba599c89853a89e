"""Sequence parallelism (Ulysses, arXiv:2309.14509).

All layers but attention treat each token separately and need no change. For attention each rank exchanges its stretch
of all heads for all tokens of its own heads, attends with the mask of the whole row, and exchanges back.

    tokens, targets, positions [B, L / n]    q, k, v [B, H, L / n, D] -> [B, H / n, L, D] -> attend -> [B, H, L / n, D]

Positions are split with their tokens and the mask covers whole rows, so documents and windows mean the same as on one
rank. The model itself does not change: hooks do the work. The nats are returned whole, the same on all n ranks; the
objective covers the rank's stretch, and the gradients of the n ranks add up to the row's.

Price: four exchanges of a rank's activations per block and pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd

from pretrain.model.attention import Attend, DocumentMask
from pretrain.model.decoder import Decoder
from pretrain.model.layers import Attention

Group = distributed.ProcessGroup


def split_sequences(model: Decoder, group: Group) -> None:
    """Split each row among the ranks of `group`.

    All of them receive the same whole rows.
    """
    size, rank = distributed.get_world_size(group), distributed.get_rank(group)

    def cut(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, targets, segments, positions, *rest = args
        # [B, L] -> this rank's [B, L / n]
        tokens, targets, positions = (
            value.chunk(size, dim=1)[rank].contiguous() for value in (tokens, targets, positions)
        )
        return (tokens, targets, segments, positions, *rest)

    def join(module: nn.Module, args: Any, out: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        objective, nats = out
        whole = [torch.empty_like(nats) for _ in range(size)]
        distributed.all_gather(whole, nats.contiguous(), group=group)
        return objective, torch.cat(whole, dim=1)

    def exchange(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(exchanged_mask(value, group) if isinstance(value, DocumentMask) else value for value in args)

    model.register_forward_pre_hook(cut)
    model.register_forward_hook(join)
    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(exchange)


def exchanged_mask(mask: DocumentMask, group: Group) -> DocumentMask:
    """Whole-row `mask` for ranks that hold stretches of the rows."""

    def exchanged(attend: Attend) -> Attend:
        def through(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (heads_for_tokens(value, group) for value in (q, k, v))
            return tokens_for_heads(attend(q, k, v), group)

        return through

    return DocumentMask({window: exchanged(attend) for window, attend in mask.kinds.items()})


def heads_for_tokens(x: torch.Tensor, group: Group) -> torch.Tensor:
    """All-to-all from tokens to heads.

    It maps [B, H, L / n, D] to [B, H / n, L, D].
    """
    size = distributed.get_world_size(group)
    rows, heads, length, width = x.shape
    parts = x.reshape(rows, size, heads // size, length, width).transpose(0, 1)
    return _exchange(parts, group).permute(1, 2, 0, 3, 4).reshape(rows, heads // size, size * length, width)


def tokens_for_heads(x: torch.Tensor, group: Group) -> torch.Tensor:
    """All-to-all from heads to tokens.

    It maps [B, H / n, L, D] to [B, H, L / n, D].
    """
    size = distributed.get_world_size(group)
    rows, heads, length, width = x.shape
    parts = x.reshape(rows, heads, size, length // size, width).permute(2, 0, 1, 3, 4)
    return _exchange(parts, group).transpose(0, 1).reshape(rows, size * heads, length // size, width)


def _exchange(parts: torch.Tensor, group: Group) -> torch.Tensor:
    """Send part i to rank i and receive part i from it.

    Gradients travel back.
    """
    sizes = [1] * parts.shape[0]
    return all_to_all_single_autograd(parts.contiguous(), sizes, sizes, group)
