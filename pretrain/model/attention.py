"""Attention inside documents: a token sees the earlier tokens of its own document, and nothing else of its row.

One door, `DocumentMask`, built once per micro batch and shared by all layers. Two kernels keep its one promise:

- `torch.nn.functional.scaled_dot_product_attention` with a block-diagonal causal mask [B, 1, L, L], on CPU and wherever
  FlexAttention is missing. Splitting rows by document and calling the unmasked kernel on each piece was measured on
  2 cores (28 documents in 8 rows of 256 tokens, bf16): no faster, and slower for larger micro batches.
- FlexAttention (arXiv:2412.05496) on CUDA, which skips blocks that hold no allowed pair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

BLOCK = 128  # FlexAttention's block of queries and of keys, in tokens


@dataclass(frozen=True)
class DocumentMask:
    """Who may attend to whom in one micro batch."""

    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """(q [B, H, L, D], k [B, K, L, D], v [B, K, L, D]) -> [B, H, L, D], where K divides H."""


def document_mask(segments: torch.Tensor) -> DocumentMask:
    """The mask of rows whose documents are numbered by `segments` [B, L]; picks the kernel by device."""
    flex = _compiled_flex() if segments.is_cuda and segments.shape[1] % BLOCK == 0 else None
    return dense_mask(segments) if flex is None else flex_mask(segments, flex)


def allowed_pairs(segments: torch.Tensor) -> torch.Tensor:
    """The promise as a table [B, 1, L, L]: True where a query (row) may see a key (column)."""
    same = segments[:, None, :, None] == segments[:, None, None, :]
    length = segments.shape[1]
    return same & torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()


def dense_mask(segments: torch.Tensor) -> DocumentMask:
    """The mask as a table; O(B L^2) bytes."""
    pairs = allowed_pairs(segments)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pairs)

    return DocumentMask(attend)


def flex_mask(segments: torch.Tensor, flex: Callable[..., torch.Tensor]) -> DocumentMask:
    """The mask as FlexAttention's block table; O(B (L / 128)^2) bytes."""
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (segments[b, q] == segments[b, k]) & (q >= k)

    rows, length = segments.shape
    blocks = create_block_mask(allowed, rows, None, length, length, device=segments.device, BLOCK_SIZE=BLOCK)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return flex(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])

    return DocumentMask(attend)


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor] | None:
    """FlexAttention compiled, or None where this torch has none: uncompiled it would build the whole table."""
    try:
        from torch.nn.attention.flex_attention import flex_attention
    except ImportError:
        return None
    return torch.compile(flex_attention, dynamic=False)
