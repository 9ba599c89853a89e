"""FlashAttention with variable lengths (arXiv:2307.08691, arXiv:2407.08608).

All rows of a micro batch form one sequence; `cu_seqlens` holds where each document begins. Its length depends on the
number of documents, which only the device knows, so the host counts an upper bound before it sends the rows
(`documents_at_most`); entries beyond the last document are documents without tokens. Without a bound the host waits for
the count.

Two packages provide the kernel under one name: `flash_attn_interface` (FlashAttention 3, Hopper) and `flash_attn` (2).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch

from pretrain.config.training import FLASH_PACKAGES
from pretrain.model.attention_rule import Attend, AttentionRule

Kernel = Callable[..., torch.Tensor]


def load_kernel() -> Kernel:
    """Kernel of the first installed package.

    `compatibility.py` has checked that there is one.
    """
    name = next(name for name in FLASH_PACKAGES if importlib.util.find_spec(name))
    kernel: Kernel = importlib.import_module(name).flash_attn_varlen_func
    return kernel


def documents_at_most(segments: torch.Tensor) -> int:
    """Upper bound on the documents of rows on the host.

    A power of two, so that few shapes follow from it.
    """
    count = len(segments) + int((segments.diff(dim=1) != 0).sum())
    return 1 << (count - 1).bit_length()


def flash_attention(segments: torch.Tensor, rule: AttentionRule, kernel: Kernel, documents: int | None) -> Attend:
    """Attention by `rule` through FlashAttention's variable-length kernel.

    Rows hold at most `documents` documents, numbered by `segments` [B, L].
    """
    rows, length = segments.shape
    begins = torch.ones_like(segments, dtype=torch.int32)
    begins[:, 1:] = segments.diff(dim=1) != 0
    number = begins.flatten().cumsum(0)
    count = documents if documents is not None else int(number[-1])
    # The first token of each document; for entries beyond the last, the end.
    starts = torch.searchsorted(number, torch.arange(1, count + 2, device=segments.device)).int()
    window = (-1, -1) if rule.window is None else (rule.window - 1, 0)

    def flat(x: torch.Tensor) -> torch.Tensor:
        """[B, H, L, D] -> [B L, H, D]."""
        return x.transpose(1, 2).flatten(0, 1)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = kernel(
            flat(q), flat(k), flat(v), cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=length,
            max_seqlen_k=length, softmax_scale=rule.scale, causal=True, window_size=window, softcap=rule.softcap or 0.0,
        )  # fmt: skip
        return out.unflatten(0, (rows, length)).transpose(1, 2)

    return attend
