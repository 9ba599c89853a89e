"""Visibility rule of attention, and the form of its implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(q [B, H, L, D], k [B, K, L, D], v [B, K, L, D]) -> [B, H, L, D], where K divides H."""


@dataclass(frozen=True)
class AttentionRule:
    """Visibility rule and logit transform of a layer kind."""

    scale: float
    """Factor of the products of queries and keys."""
    softcap: float | None = None
    """c: logits become c tanh(logits / c)."""
    window: int | None = None
    """Tokens that a token sees, itself included; none: all of its document so far."""


def first_keys(segments: torch.Tensor, window: int | None) -> torch.Tensor:
    """Int32 [B, L]: first key that each query sees.

    It sees all keys from there to itself.

    Args:
        segments: [B, L], the number of each token's document; a document is a contiguous run of its row.
        window: tokens that a token sees, itself included; None: all of its document so far.
    """
    places = torch.arange(segments.shape[1], dtype=torch.int32, device=segments.device).expand(segments.shape)
    begins = torch.where(segments[:, 1:] != segments[:, :-1], places[:, 1:], 0)
    firsts = torch.cat([torch.zeros_like(places[:, :1]), begins], dim=1).cummax(1).values
    return firsts if window is None else torch.maximum(firsts, places - (window - 1))
