"""Attention inside documents: a token sees the earlier tokens of its own document, and nothing else of its row.

One door, `DocumentMask`, built once per micro batch for each kind of layer (all of the document, or a window of it) and
shared by the layers of that kind. Four ways keep its one promise:

- FlexAttention (arXiv:2412.05496) on CUDA, which skips blocks without an allowed pair; the soft cap is its score_mod.
- Matrix products over blocks of queries (`eager.BlockAttention`) on CPU, for rows of up to `SHORT` tokens: half the
  time of the next at 256 tokens in bf16, 0.7 of it at 1,024; in fp32 as fast for one document a row, else faster.
- `torch.nn.functional.scaled_dot_product_attention` for longer rows on CPU, under torch.compile on CPU, and where
  FlexAttention is missing or a row is no multiple of 128: with `is_causal` and no table where the host knows that each
  row is one document and no window cuts it, else with a block-diagonal causal table [B, 1, L, L].
- The formula written out, for a soft cap where there is no FlexAttention.

Nothing here makes a host wait for a GPU: rows are looked at only on CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pretrain.model.eager import BlockAttention, block_starts, by_hand, first_keys, has_kernels
from pretrain.model_config import ModelConfig

BLOCK = 128  # FlexAttention's block of queries and of keys, in tokens
SHORT = 1024  # longest row, in tokens, whose probabilities are kept on CPU

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(q [B, H, L, D], k [B, K, L, D], v [B, K, L, D]) -> [B, H, L, D], where K divides H."""


@dataclass(frozen=True)
class Rule:
    """Who may attend to whom, and how products become logits."""

    scale: float
    """What products of queries and keys are multiplied by."""
    softcap: float | None = None
    """c: logits become c tanh(logits / c)."""
    window: int | None = None
    """Tokens that a token sees, itself included; none: all of its document so far."""


@dataclass(frozen=True)
class DocumentMask:
    """Attention within the documents of one micro batch, for each kind of layer."""

    kinds: dict[int | None, Attend]
    """By window; none: the whole document."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        """Queries [B, H, L, D], keys and values [B, K, L, D], where K divides H -> [B, H, L, D]."""
        return self.kinds[window](q, k, v)


def document_mask(segments: torch.Tensor, config: ModelConfig) -> DocumentMask:
    """The mask of rows whose documents are numbered by `segments` [B, L], for all layers of `config`."""
    windows = {config.window(layer): None for layer in range(config.num_hidden_layers)}
    scale, softcap = config.attention_scale, config.attn_logit_softcapping
    return DocumentMask({window: attention(segments, Rule(scale, softcap, window)) for window in windows})


def attention(segments: torch.Tensor, rule: Rule) -> Attend:
    """The fastest way to attend by `rule` on the device of `segments`."""
    flex = _compiled_flex() if segments.is_cuda and segments.shape[1] % BLOCK == 0 else None
    if flex is not None:
        return flex_attention(segments, rule, flex)
    if rule.softcap is not None:
        return written_out(segments, rule)
    if not by_hand(segments):
        return tabled_attention(segments, rule)
    if segments.shape[1] <= SHORT:
        return block_attention(segments, rule)
    alone = bool((segments == segments[:, :1]).all())
    return causal_attention(rule) if alone and not rule.window else tabled_attention(segments, rule)


def allowed_pairs(segments: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """The promise as a table [B, 1, L, L]: True where a query (row) may see a key (column)."""
    same = segments[:, None, :, None] == segments[:, None, None, :]
    length = segments.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    return same & seen


def _spread(q: torch.Tensor, *narrow: torch.Tensor) -> list[torch.Tensor]:
    """Repeat key and value heads until there are as many as query heads."""
    groups = q.shape[1] // narrow[0].shape[1]
    return [x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in narrow]


def block_attention(segments: torch.Tensor, rule: Rule) -> Attend:
    """Matrix products over blocks of queries and kernels between them, for numbers that the kernels know."""
    firsts = first_keys(segments, rule.window)
    starts = block_starts(firsts)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not has_kernels(q):
            return tabled_attention(segments, rule)(q, k, v)
        return BlockAttention.apply(q, *_spread(q, k, v), firsts, starts, rule.scale)

    return attend


def causal_attention(rule: Rule) -> Attend:
    """Rows of one document: no table at all."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, *_spread(q, k, v), is_causal=True, scale=rule.scale)

    return attend


def tabled_attention(segments: torch.Tensor, rule: Rule) -> Attend:
    """The mask as a table; O(B L^2) bytes."""
    pairs = allowed_pairs(segments, rule.window)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, *_spread(q, k, v), attn_mask=pairs, scale=rule.scale)

    return attend


def written_out(segments: torch.Tensor, rule: Rule) -> Attend:
    """The formula itself, with logits and probabilities in fp32; O(B H L^2) numbers."""
    hidden = ~allowed_pairs(segments, rule.window)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = _spread(q, k, v)
        logits = (q @ k.transpose(-1, -2)).float() * rule.scale
        if rule.softcap is not None:
            logits = rule.softcap * torch.tanh(logits / rule.softcap)
        return logits.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype) @ v

    return attend


def flex_attention(segments: torch.Tensor, rule: Rule, flex: Callable[..., torch.Tensor]) -> Attend:
    """The mask as FlexAttention's block table; O(B (L / 128)^2) bytes."""
    from torch.nn.attention.flex_attention import create_block_mask

    reach, softcap = rule.window or segments.shape[1], rule.softcap or 0.0

    def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (segments[b, q] == segments[b, k]) & (q >= k) & (q - k < reach)

    def capped(logit: torch.Tensor, *place: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(logit / softcap)

    rows, length = segments.shape
    blocks = create_block_mask(allowed, rows, None, length, length, device=segments.device, BLOCK_SIZE=BLOCK)
    change = capped if softcap else None

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        grouped = q.shape[1] != k.shape[1]
        return flex(q, k, v, score_mod=change, block_mask=blocks, scale=rule.scale, enable_gqa=grouped)

    return attend


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor] | None:
    """FlexAttention compiled, or None where this torch has none: uncompiled it would build the whole table."""
    try:
        from torch.nn.attention.flex_attention import flex_attention
    except ImportError:
        return None
    return torch.compile(flex_attention, dynamic=False)
