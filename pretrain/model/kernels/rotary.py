"""Rotary position embeddings (arXiv:2104.09864)."""

from __future__ import annotations

from typing import Any

from governance.kernels.compiled import kernel, loose
from pretrain.model.kernels.bf16 import number, stored


@loose
def _rotate_head(x: Any, cosines: Any, sines: Any, sign: Any, out: Any) -> None:
    half = len(cosines)
    low, high, out_low, out_high = x[:half], x[half:], out[:half], out[half:]
    for at in range(half):
        first, second = number(low[at]), number(high[at])
        cosine, sine = number(cosines[at]), sign * number(sines[at])
        out_low[at] = stored(first * cosine - second * sine, out_low[at])
        out_high[at] = stored(second * cosine + first * sine, out_high[at])


@kernel
def rotary(
    _part: int, start: int, end: int, x: Any, cosines: Any, sines: Any, out: Any, shape: Any, orders: Any, sign: Any
) -> None:
    """Rotate channel pairs (i, i + D/2) of tokens start..end.

    x and out are flat, cosines and sines [tokens, D / 2] and shape is (H, L, D). `orders` says of x and of out whether
    tokens come first in memory, [B, L, H, D], or heads, [B, H, L, D].
    """
    heads, length, size = shape
    from_tokens, to_tokens = orders
    for token in range(start, end):
        row, place = token // length, token % length
        for head in range(heads):
            by_token = (token * heads + head) * size
            by_head = ((row * heads + head) * length + place) * size
            read, write = by_token if from_tokens else by_head, by_token if to_tokens else by_head
            _rotate_head(x[read : read + size], cosines[token], sines[token], sign, out[write : write + size])
