"""Causal attention within documents.

One door, `DocumentMask`, built once per micro batch for each kind of layer (all of the document, or a window of it) and
shared by the layers of that kind. Five ways keep its one promise:

- FlexAttention (arXiv:2412.05496) on CUDA (`flex.py`), which skips blocks without an allowed pair; the soft cap is its
  score_mod. Rows of any length go there: nothing on CUDA is ever computed by the last two ways.
- FlashAttention's kernel for rows of several lengths (`flash.py`), where `engine.attention` asks for it.
- Matrix products over blocks of queries (`eager.BlockAttention`) on CPU, for rows of up to `SHORT` tokens: half the
  time of the next at 256 tokens in bf16, 0.7 of it at 1,024; in fp32 as fast for one document a row, else faster.
- `torch.nn.functional.scaled_dot_product_attention` for longer rows on CPU, and under torch.compile on CPU: with
  `is_causal` and no table where the host knows that each row is one document and no window cuts it, else with a
  block-diagonal causal table [B, 1, L, L].
- The formula written out, for a soft cap on CPU: it keeps fp32 logits of all pairs of a row (`cautions.py` warns).

Nothing here makes a host wait for a GPU: rows are looked at only on CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pretrain.config.model import ModelConfig
from pretrain.model.attention_rule import Attend, Rule, first_keys
from pretrain.model.cpu_ops import BlockAttention, block_starts, by_hand, has_kernels
from pretrain.model.flash import Kernel, flash_attention

SHORT = 1024  # longest row, in tokens, whose probabilities are kept on CPU


@dataclass(frozen=True)
class DocumentMask:
    """Attention masks of a micro batch, one for each layer kind."""

    kinds: dict[int | None, Attend]
    """By window; none: the whole document."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        """Causal attention of queries over visible keys.

        Queries [B, H, L, D], keys and values [B, K, L, D], where K divides H -> [B, H, L, D].
        """
        return self.kinds[window](q, k, v)


def document_mask(
    segments: torch.Tensor, config: ModelConfig, flash: Kernel | None = None, documents: int | None = None
) -> DocumentMask:
    """The mask of rows, for all layers of `config`.

    Args:
        segments: [B, L], the number of each token's document.
        config: the model.
        flash: FlashAttention's kernel; none: the fastest of the other ways.
        documents: for that kernel, a bound on the documents of all rows (`flash.documents_at_most`).
    """
    windows = {config.window(layer): None for layer in range(config.num_hidden_layers)}
    scale, softcap = config.attention_scale, config.attn_logit_softcapping
    rules = {window: Rule(scale, softcap, window) for window in windows}
    if flash is not None:
        return DocumentMask({w: flash_attention(segments, rule, flash, documents) for w, rule in rules.items()})
    return DocumentMask({window: attention(segments, rule) for window, rule in rules.items()})


def attention(segments: torch.Tensor, rule: Rule) -> Attend:
    """The fastest way to attend by `rule` on the device of `segments`."""
    if segments.is_cuda:
        from pretrain.model.flex import flex_attention

        return flex_attention(segments, rule)
    if rule.softcap is not None:
        return written_out(segments, rule)
    if not by_hand(segments):
        return tabled_attention(segments, rule)
    if segments.shape[1] <= SHORT:
        return block_attention(segments, rule)
    alone = bool((segments == segments[:, :1]).all())
    return causal_attention(rule) if alone and not rule.window else tabled_attention(segments, rule)


def allowed_pairs(segments: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """The promise as a table [B, 1, L, L].

    True where a query (row) may see a key (column).
    """
    same = segments[:, None, :, None] == segments[:, None, None, :]
    length = segments.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    return same & seen


def _spread(q: torch.Tensor, *narrow: torch.Tensor) -> list[torch.Tensor]:
    """Repeat key and value heads to the number of query heads."""
    groups = q.shape[1] // narrow[0].shape[1]
    return [x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in narrow]


def block_attention(segments: torch.Tensor, rule: Rule) -> Attend:
    """Attention by matrix products over query blocks, with CPU kernels."""
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
    """The formula itself, with logits and probabilities in fp32.

    O(B H L^2) numbers.
    """
    hidden = ~allowed_pairs(segments, rule.window)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = _spread(q, k, v)
        logits = (q @ k.transpose(-1, -2)).float() * rule.scale
        if rule.softcap is not None:
            logits = rule.softcap * torch.tanh(logits / rule.softcap)
        return logits.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype) @ v

    return attend
