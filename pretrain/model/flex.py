"""FlexAttention (arXiv:2412.05496) within documents.

*Tables.* A query sees one run of keys (`first_keys`), so the key blocks that a block of queries sees are a run too:
first those that the mask cuts, then those seen whole, then the diagonal. All four tables follow from the least and the
greatest first key of each block, in O(B (L / 128)^2) bytes: 16 per pair of blocks (FlexAttention's own four int32
tables) and 22 at the peak, where `create_block_mask` needs 10 bytes for every pair of tokens. The host never waits for
the device.

*Compilation.* Uncompiled FlexAttention holds all logits in fp32, and torch.compile leaves a function uncompiled after
eight recompilations. So each class of shapes has a function of its own, compiled whole: one class more costs one more
compilation, and a failure to compile is an error. In a model that is compiled as a whole it is part of the graph.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from pretrain.model.attention_rule import Attend, AttentionRule, first_keys

BLOCK = 128  # tokens in a block of queries, and of keys

Flex = Callable[..., torch.Tensor]


def flex_attention(segments: torch.Tensor, rule: AttentionRule) -> Attend:
    """Attention by `rule` through FlexAttention.

    Documents are numbered by `segments` [B, L]; L is padded to whole blocks.
    """
    length, softcap = segments.shape[1], rule.softcap or 0.0
    padding = -length % BLOCK
    firsts = first_keys(segments, rule.window)
    if padding:  # a padded query sees itself
        added = torch.arange(length, length + padding, dtype=torch.int32, device=segments.device)
        firsts = torch.cat([firsts, added.expand(len(firsts), padding)], dim=1)
    blocks = block_table(firsts)

    def capped(logit: torch.Tensor, *place: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(logit / softcap)

    change = capped if softcap else None

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if padding:
            q, k, v = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v))
        flex = torch_flex_attention
        if not torch.compiler.is_compiling():
            learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
            flex = compiled((q.shape, k.shape[1], q.dtype, q.device, learns, rule.scale, softcap))
        grouped = q.shape[1] != k.shape[1]
        out = flex(q, k, v, score_mod=change, block_mask=blocks, scale=rule.scale, enable_gqa=grouped)
        return out[:, :, :length] if padding else out

    return attend


def block_table(firsts: torch.Tensor) -> BlockMask:
    """FlexAttention's block table for first visible keys [B, L].

    L is a multiple of `BLOCK`.
    """
    rows, length = firsts.shape
    of_block = firsts.view(rows, -1, BLOCK)
    own = torch.arange(of_block.shape[1], dtype=torch.int32, device=firsts.device).repeat(rows, 1)
    first = of_block.amin(-1) // BLOCK
    whole = torch.minimum((of_block.amax(-1) + (BLOCK - 1)) // BLOCK, own)  # from here on every query sees every key
    # Neither falls along a row, so the query blocks that see a key block are runs too.
    cut_until, cut_from = (torch.searchsorted(x.contiguous(), own, right=True, out_int32=True) for x in (first, whole))

    def table(start: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        turn = own[:1, None]
        return torch.where(turn < count[..., None], start[..., None] + turn, own[..., None])[:, None]

    def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (firsts[b, q] <= k) & (k <= q)

    return BlockMask(
        seq_lengths=(length, length),
        kv_num_blocks=(whole - first + 1)[:, None],
        kv_indices=table(first, whole - first),  # the diagonal is next
        full_kv_num_blocks=(own - whole)[:, None],
        full_kv_indices=table(whole, own - whole),
        q_num_blocks=(cut_until - cut_from + 1)[:, None],
        q_indices=table(cut_from, cut_until - cut_from),
        full_q_num_blocks=(cut_from - own - 1)[:, None],
        full_q_indices=table(own + 1, cut_from - own - 1),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=allowed,
    )


@functools.cache
def compiled(shapes: Any) -> Flex:
    """FlexAttention compiled for one class of shapes.

    Its function shares compilations with no other.
    """

    def of_one_class(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        return torch_flex_attention(q, k, v, **options)

    code, found = of_one_class.__code__.replace(), of_one_class  # torch counts recompilations by code object
    own = types.FunctionType(code, found.__globals__, found.__name__, found.__defaults__, found.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=True, **compiler())


def compiler() -> dict[str, Any]:
    """The compiling function, as one operation for selective checkpointing."""
    from torch._inductor import config

    wraps = "wrap_inductor_compiled_regions"
    return {"options": {wraps: True}} if hasattr(config, wraps) else {}
