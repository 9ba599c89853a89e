"""Causal attention within documents.

`DocumentMask` is built once per micro batch for each kind of layer (all of the document, or a window of it), and the
layers of that kind share it. It has five implementations:

- FlexAttention (arXiv:2412.05496) on CUDA (`flex.py`), which skips blocks without an allowed pair; the soft cap is its
  score_mod. It takes rows of any length: CUDA never uses the last two.
- FlashAttention's variable-length kernel (`flash.py`), where `engine.attention` requests it.
- Matrix products over blocks of queries (`cpu_ops.BlockAttention`) on CPU, for rows of up to `SHORT` tokens:
  half the time of the next one at 256 tokens in bf16 and 0.7 of it at 1,024; in fp32 as fast for one document per row,
  else faster.
- `torch.nn.functional.scaled_dot_product_attention` for longer rows on CPU: with
  `is_causal` and no mask where each row is one document and no window cuts it, else with a block-diagonal causal mask
  [B, 1, L, L].
- The explicit formula, for a soft cap on CPU: it keeps fp32 logits of all pairs of a row (`compatibility.py` warns).

Nothing here makes the host wait for a GPU: only on CPU are the rows inspected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pretrain.config.model import ModelConfig
from pretrain.model.attention_rule import Attend, AttentionRule, first_keys
from pretrain.model.cpu_ops import KERNEL_TYPES, BlockAttention, block_starts, on_eager_cpu, traced_block_attention
from pretrain.model.flash import Kernel, flash_attention

SHORT = 1024  # longest row, in tokens, whose probabilities are kept on CPU


@dataclass(frozen=True)
class DocumentMask:
    """Attention masks of a micro batch, one for each layer kind."""

    kinds: dict[int | None, Attend]
    """Keyed by window; None: the whole document."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        """Causal attention of queries over visible keys.

        Queries are [B, H, L, D], keys and values [B, K, L, D], where K divides H; the result is [B, H, L, D].
        """
        return self.kinds[window](q, k, v)


def layer_rules(config: ModelConfig) -> list[AttentionRule]:
    """Attention rule of each layer."""
    scale, softcap = config.attention_scale, config.attn_logit_softcapping
    return [AttentionRule(scale, softcap, config.window(layer)) for layer in range(config.num_hidden_layers)]


def document_mask(
    segments: torch.Tensor, config: ModelConfig, flash: Kernel | None = None, documents: int | None = None
) -> DocumentMask:
    """Build the mask of these rows for all layers of `config`.

    Args:
        segments: [B, L], the number of each token's document.
        config: the model.
        flash: FlashAttention's kernel; None: the fastest of the other implementations.
        documents: for that kernel, an upper bound on the documents of all rows (`flash.documents_at_most`).
    """
    rules = {rule.window: rule for rule in layer_rules(config)}
    if flash is not None:
        return DocumentMask({w: flash_attention(segments, rule, flash, documents) for w, rule in rules.items()})
    return DocumentMask({window: attention(segments, rule) for window, rule in rules.items()})


def attention(segments: torch.Tensor, rule: AttentionRule) -> Attend:
    """Fastest implementation of `rule` on the device of `segments`."""
    if segments.is_cuda:
        from pretrain.model.flex import flex_attention

        return flex_attention(segments, rule)
    if rule.softcap is not None:
        return explicit_attention(segments, rule)
    if segments.shape[1] <= SHORT:
        return block_attention(segments, rule)
    if not on_eager_cpu(segments):
        return masked_attention(segments, rule)
    alone = bool((segments == segments[:, :1]).all())
    return causal_attention(rule) if alone and not rule.window else masked_attention(segments, rule)


def allowed_pairs(segments: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Boolean mask [B, 1, L, L] of visible pairs.

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


def block_attention(segments: torch.Tensor, rule: AttentionRule) -> Attend:
    """Attention by matrix products over query blocks, with CPU kernels."""
    firsts = first_keys(segments, rule.window)
    starts = block_starts(firsts) if on_eager_cpu(segments) else ()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if q.dtype not in KERNEL_TYPES:
            return masked_attention(segments, rule)(q, k, v)
        if not on_eager_cpu(q):
            return traced_block_attention(q, *_spread(q, k, v), firsts, rule.scale)[0]
        return BlockAttention.apply(q, *_spread(q, k, v), firsts, starts, rule.scale)

    return attend


def causal_attention(rule: AttentionRule) -> Attend:
    """Causal attention of rows of one document, without a mask tensor."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, *_spread(q, k, v), is_causal=True, scale=rule.scale)

    return attend


def masked_attention(segments: torch.Tensor, rule: AttentionRule) -> Attend:
    """Attention with a mask tensor of O(B L^2) bytes."""
    pairs = allowed_pairs(segments, rule.window)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, *_spread(q, k, v), attn_mask=pairs, scale=rule.scale)

    return attend


def explicit_attention(segments: torch.Tensor, rule: AttentionRule) -> Attend:
    """Attention by its formula, with fp32 logits and probabilities.

    It takes O(B H L^2) elements.
    """
    hidden = ~allowed_pairs(segments, rule.window)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = _spread(q, k, v)
        return explicit_formula(q, k, v, hidden, rule)

    return attend


def explicit_formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None, rule: AttentionRule
) -> torch.Tensor:
    """Attention of queries over as many heads of keys.

    `hidden` is True for pairs that are not seen; None: each query sees every key.
    """
    return attention_pattern(q, k, hidden, rule).to(v.dtype) @ v


def attention_pattern(
    q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor | None, rule: AttentionRule
) -> torch.Tensor:
    """Probabilities with which queries see keys, fp32 [..., queries, keys]."""
    logits = (q @ k.transpose(-1, -2)).float() * rule.scale
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    if hidden is not None:
        logits = logits.masked_fill(hidden, float("-inf"))
    return logits.softmax(-1)
