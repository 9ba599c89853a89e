"""Operations whose forward and backward are written by hand, because torch's own are slow on a CPU without a compiler.

Each is equal to a plain formula, which the tests hold it to; on CUDA and under torch.compile that formula (or torch's
fused kernel) is used instead: `by_hand` decides. Measured on 2 cores, 4,096 tokens, bf16, forward and backward:
RMSNorm over 384 channels 3.3 ms against 15; attention of 6 heads of 64 channels over rows of 256 tokens 42 ms against
87 for `scaled_dot_product_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

_PIECE = 1 << 19  # numbers of a piece that stays in a core's cache
_QUERIES = 64  # queries of a block of attention; 128 is as fast, 256 reads too much above the diagonal


def by_hand(x: torch.Tensor) -> bool:
    """Whether the operations of this file are the faster way for this tensor."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class RootMeanSquare(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in pieces of rows that stay in the cache; sums in fp32."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
        """[..., size], [size] -> [..., size], in the type of x."""
        size = x.shape[-1]
        flat = x.reshape(-1, size)
        out, inverse = torch.empty_like(flat), torch.empty(len(flat), 1, dtype=torch.float32)
        step = max(1, _PIECE // size)
        for start in range(0, len(flat), step):
            rows = slice(start, start + step)
            part = flat[rows].float()
            torch.linalg.vecdot(part, part, out=inverse[rows, 0])
            part = part * inverse[rows].div_(size).add_(eps).rsqrt_()
            out[rows] = part if weight is None else part.mul_(weight)
        ctx.save_for_backward(flat, weight, inverse)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """With y = x / rms: dx = (g w - y mean(g w y)) / rms, dw = sum of g y."""
        flat, weight, inverse = ctx.saved_tensors
        size = flat.shape[-1]
        into = gradient.reshape(-1, size)
        for_x = torch.empty_like(flat)
        for_weight = None if weight is None else torch.zeros(size, dtype=torch.float32)
        step = max(1, _PIECE // size)
        for start in range(0, len(flat), step):
            rows = slice(start, start + step)
            normal = flat[rows] * inverse[rows]
            scaled = into[rows].float()
            if for_weight is not None:
                for_weight += (scaled * normal).sum(0)
                scaled = scaled * weight
            normal *= torch.linalg.vecdot(scaled, normal).div_(size).unsqueeze(-1)
            for_x[rows] = (scaled - normal).mul_(inverse[rows])
        return for_x.view(gradient.shape), None if for_weight is None else for_weight.to(weight.dtype), None


class Rotate(torch.autograd.Function):
    """Turn pairs of channels by angles; backward turns back. Writes what its reader wants in memory, so none copies."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """[B, H, L, D], [2, B, 1, L, D / 2] -> [B, H, L, D], contiguous: heads first, as attention reads."""
        ctx.save_for_backward(angles)
        out = torch.empty(x.shape, dtype=x.dtype)
        _turn(x, angles[0], angles[1], out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The same with the angles negated; tokens first in memory, as the projection's backward reads."""
        (angles,) = ctx.saved_tensors
        out = torch.empty_like(gradient.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        _turn(gradient, angles[0], -angles[1], out)
        return out, None


def _turn(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, out: torch.Tensor) -> None:
    low, high = x.chunk(2, dim=-1)
    first, second = out.chunk(2, dim=-1)
    torch.mul(low, cosines, out=first).addcmul_(high, sines, value=-1)
    torch.mul(high, cosines, out=second).addcmul_(low, sines)


class BlockAttention(torch.autograd.Function):
    """Softmax attention by matrix products over blocks of queries, each with the keys that one of it may see.

    Keeps the probabilities, O(B H L^2 / 2) numbers in the type of q: for short rows. In bf16 the logits are rounded
    before the softmax, as where attention is written out with matrix products.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, reach: Any, scale: float
    ) -> torch.Tensor:
        """Attend.

        Args:
            ctx: autograd's.
            q: [B, H, L, D], and so are k and v.
            k: the keys.
            v: the values.
            table: [B or 1, 1, L, L] in the type of q, 0 where a query may see a key and -inf elsewhere.
            reach: of each block of `_QUERIES` queries: the first key that one may see, the first that not all may see
                in every row, the end.
            scale: what products are multiplied by.

        Returns:
            [B, H, L, D].
        """
        shape = q.shape
        q, k, v = (x.reshape(-1, *shape[2:]) for x in (q, k, v))
        out, kept = torch.empty_like(q), []
        for number, (first, unsure, end) in enumerate(reach):
            queries, keys = slice(number * _QUERIES, end), slice(first, end)
            products = torch.baddbmm(q.new_empty(()), q[:, queries], k[:, keys].transpose(1, 2), beta=0.0, alpha=scale)
            logits = products.view(*shape[:2], *products.shape[1:])
            logits[..., unsure - first :] += table[:, :, queries, unsure:end]
            kept.append(torch.softmax(products, -1))
            out[:, queries] = torch.bmm(kept[-1], v[:, keys])
        ctx.save_for_backward(q, k, v, *kept)
        ctx.shape, ctx.reach, ctx.scale = shape, reach, scale
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """With P the probabilities: dV = P' g, dS = P (g V' - rowsum(P g V')), dQ = dS K, dK = dS' Q."""
        q, k, v, *kept = ctx.saved_tensors
        into = gradient.reshape(q.shape)
        for_q, for_k, for_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for number, (first, _, end) in enumerate(ctx.reach):
            queries, keys = slice(number * _QUERIES, end), slice(first, end)
            chances = kept[number]
            products = torch.bmm(into[:, queries], v[:, keys].transpose(1, 2))
            slopes = torch._softmax_backward_data(products, chances, -1, chances.dtype)
            for_q[:, queries] = torch.bmm(slopes, k[:, keys])
            for_k[:, keys] += torch.bmm(slopes.transpose(1, 2), q[:, queries])
            for_v[:, keys] += torch.bmm(chances.transpose(1, 2), into[:, queries])
        for_q *= ctx.scale
        for_k *= ctx.scale
        return for_q.view(ctx.shape), for_k.view(ctx.shape), for_v.view(ctx.shape), None, None, None


def reach_of(pairs: torch.Tensor) -> tuple[tuple[int, int, int], ...]:
    """What `BlockAttention` may leave out, from the table of allowed pairs [B or 1, 1, L, L]; O(B L^2) once a batch.

    Every query must see itself and nothing after it.
    """
    length = pairs.shape[-1]
    seen_by_some, seen_by_all = pairs.any(0)[0], pairs.all(0)[0]
    found = []
    for start in range(0, length, _QUERIES):
        end = min(length, start + _QUERIES)
        some, every = seen_by_some[start:end, :end].any(0), seen_by_all[start:end, :end].all(0)
        first = int(some.int().argmax())
        rest = every[first:]
        unsure = first + (len(rest) if bool(rest.all()) else int(rest.int().argmin()))
        found.append((first, unsure, end))
    return tuple(found)
