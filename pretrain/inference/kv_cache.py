"""Key-value cache of a batch of texts.

Attention is the trainer's own module: only the masks of its layers differ (`Stack.through`). The first pass reads the
prompts with the trainer's masks and keeps keys and values; each later pass reads one token per row and attends over
what was kept.

Rows end together: a shorter prompt has padding before it, which is a document of its own, so nothing sees it. A layer
with a window keeps as many tokens as its window, in a ring; key heads are kept once, however many query heads share
them. For rows of C tokens the cache takes

    2 x rows x num_key_value_heads x head_dim x bytes per element x sum over layers of min(window, C)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pretrain.config.model import ModelConfig
from pretrain.model.attention import DocumentMask, document_mask, explicit_formula, layer_rules
from pretrain.model.attention_rule import Attend, AttentionRule


class LayerCache:
    """Keys and values that later tokens of one layer see."""

    def __init__(self, rule: AttentionRule, capacity: int) -> None:
        self.rule = rule
        self.slots = capacity if rule.window is None else min(rule.window, capacity)
        """Tokens that are kept; token t is in slot t modulo this number."""
        self.keys = self.values = torch.empty(0)
        """[B, K, slots, D] after the first pass."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def first(self, attend: Attend) -> Attend:
        """The first pass: `attend`, and keep what later tokens see."""

        def through(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            length = k.shape[2]
            kept = torch.arange(max(0, length - self.slots), length, device=k.device)
            self.keys, self.values = (self._allocated(x) for x in (k, v))
            self.keys[:, :, kept % self.slots], self.values[:, :, kept % self.slots] = k[:, :, kept], v[:, :, kept]
            return attend(q, k, v)

        return through

    def _allocated(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_empty((*x.shape[:2], self.slots, x.shape[3]))

    def next(self, time: int, padding: torch.Tensor, longest: int) -> Attend:
        """A pass over token number `time` of each row.

        Args:
            time: tokens before it, padding included.
            padding: int64 [B], padding tokens before each row.
            longest: the greatest of them, known to the host.
        """
        filled = min(time + 1, self.slots)
        visible: torch.Tensor | None = None
        if longest > time + 1 - filled:
            slots = torch.arange(filled, device=padding.device)
            times = time - (time - slots) % self.slots
            visible = (times >= padding[:, None])[:, None, None, :]

        def through(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.keys[:, :, time % self.slots], self.values[:, :, time % self.slots] = k[:, :, 0], v[:, :, 0]
            return _attend(q, self.keys[:, :, :filled], self.values[:, :, :filled], visible, self.rule)

        return through

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Forget all rows but these."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None, rule: AttentionRule
) -> torch.Tensor:
    """Attention of one query per head over the kept keys.

    Queries are [B, H, 1, D], keys and values [B, K, N, D]. Heads that share a key head take the place of queries, so
    that no key is repeated.
    """
    grouped = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    if rule.softcap is not None:
        out = explicit_formula(grouped, k, v, None if visible is None else ~visible, rule)
    else:
        out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=visible, scale=rule.scale)
    return out.reshape(q.shape)


def open_caches(config: ModelConfig, capacity: int) -> list[LayerCache]:
    """Empty cache of each layer, for rows of at most `capacity` tokens."""
    return [LayerCache(rule, capacity) for rule in layer_rules(config)]


def first_masks(caches: Sequence[LayerCache], segments: torch.Tensor, config: ModelConfig) -> list[DocumentMask]:
    """Masks of the pass that reads the prompts.

    `segments` [B, L] number padding and text.
    """
    kinds = document_mask(segments, config).kinds
    return [DocumentMask({cache.rule.window: cache.first(kinds[cache.rule.window])}) for cache in caches]


def next_masks(caches: Sequence[LayerCache], time: int, padding: torch.Tensor, longest: int) -> list[DocumentMask]:
    """Masks of a pass over one more token of each row (`LayerCache.next`)."""
    return [DocumentMask({cache.rule.window: cache.next(time, padding, longest)}) for cache in caches]


def cache_bytes(config: ModelConfig, rows: int, capacity: int, element_bytes: int) -> int:
    """Bytes of a whole cache (see the module)."""
    tokens = sum(cache.slots for cache in open_caches(config, capacity))
    return 2 * rows * config.num_key_value_heads * config.head_dim * element_bytes * tokens
