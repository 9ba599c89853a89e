"""CPU operations with hand-written backward passes.

Tests compare each with a plain formula; on CUDA and under torch.compile that formula (or torch's fused kernel) is used
instead: `on_eager_cpu` decides. Attention is an operation of compiled graphs, too. Measured on one core of an Intel
Xeon with AMX, 4,096 tokens, bf16, forward and backward, CPU milliseconds, the least of nine or more: RMSNorm over 384
channels 2.4 against torch's 37; attention of 6 heads of 64 channels over rows of 256 tokens 31 against 56 for
`scaled_dot_product_attention`; of 1,536 channels SwiGLU 11 against 51 and squared ReLU 3 against 36.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from pretrain.model.kernels import activations
from pretrain.model.kernels.rms_norm import rms_norm, rms_norm_gradient
from pretrain.model.kernels.rotary import rotary
from pretrain.model.kernels.softmax import softmax, softmax_gradient
from pretrain.model.kernels.threads import run_in_threads, thread_count

KERNEL_TYPES = (torch.bfloat16, torch.float32)
QUERIES = 128  # queries per attention block: fewer would skip more invisible keys, but make smaller products


def on_eager_cpu(x: torch.Tensor) -> bool:
    """Return whether the tensor is computed on the CPU without a compiler."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def has_cpu_kernels(x: torch.Tensor) -> bool:
    """Return whether `pretrain.model.kernels` compute this tensor.

    They take `KERNEL_TYPES` on an eager CPU.
    """
    return on_eager_cpu(x) and x.dtype in KERNEL_TYPES


class RMSNormFunction(torch.autograd.Function):
    """RMSNorm over the last axis, sums in fp32.

    It computes x / sqrt(mean(x^2) + eps) * weight, in bf16 or fp32.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
        """[..., size], [size] -> [..., size], in the type of x."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        wide = torch.ones(rows.shape[1]) if weight is None else weight.float()
        out, inverse = torch.empty_like(rows), torch.empty(len(rows), dtype=torch.float32)
        run_in_threads(rms_norm, len(rows), (rows, out, inverse, wide), np.float32(eps))
        ctx.save_for_backward(rows, inverse, wide)
        ctx.weight_type = None if weight is None else weight.dtype
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x and the weight.

        With y = x / rms they are dx = (g w - y mean(g w y)) / rms and dw = sum of g y.
        """
        rows, inverse, wide = ctx.saved_tensors
        out, sums = torch.empty_like(rows), torch.empty(thread_count(len(rows)), rows.shape[1])
        run_in_threads(
            rms_norm_gradient, len(rows), (rows, gradient.reshape(rows.shape).contiguous(), inverse, out, sums, wide)
        )
        for_weight = None if ctx.weight_type is None else sums.sum(0).to(ctx.weight_type)
        return out.view(gradient.shape), for_weight, None


class RotaryFunction(torch.autograd.Function):
    """Rotate channel pairs by angles; the backward pass rotates back.

    Each result has the memory layout that its consumer reads, so that nothing is copied.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """[B, H, L, D] of any layout -> contiguous, heads first."""
        ctx.save_for_backward(angles)
        out = torch.empty(x.shape, dtype=x.dtype)
        _turn(x, angles, out, 1.0)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Rotation by the negated angles.

        Tokens come first in memory, as the projection's backward reads.
        """
        (angles,) = ctx.saved_tensors
        out = torch.empty_like(gradient.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        _turn(gradient, angles, out, -1.0)
        return out, None


def _turn(x: torch.Tensor, angles: torch.Tensor, out: torch.Tensor, sign: float) -> None:
    rows, heads, length, size = x.shape
    orders = (not x.is_contiguous(), not out.is_contiguous())
    if orders[0]:
        x = x.transpose(1, 2).contiguous()
    cosines, sines = angles.reshape(2, rows * length, size // 2).contiguous()
    written = out.transpose(1, 2) if orders[1] else out
    given = (x.view(-1), cosines, sines, written.view(-1))
    run_in_threads(rotary, rows * length, given, (heads, length, size), orders, np.float32(sign))


class BlockAttention(torch.autograd.Function):
    """Softmax attention over query blocks and their visible keys, for short rows.

    It keeps the probabilities, in the type of q. In bf16 the logits are rounded before the softmax, as where attention
    is written out with matrix products.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, firsts: torch.Tensor, starts: Any, scale: float
    ) -> torch.Tensor:
        """Attention of q over k and v.

        Args:
            ctx: autograd's context.
            q: [B, H, L, D], bf16 or fp32; k and v have the same type and shape.
            k: the keys.
            v: the values.
            firsts: int32 [B, L], the first key that a query sees; it sees all keys from there to itself.
            starts: a key for each block of `QUERIES`; none of its queries sees an earlier one (`block_starts`).
            scale: factor of the products.

        Returns:
            [B, H, L, D].
        """
        out, *kept = _attend(q, k, v, firsts, starts, scale)
        ctx.save_for_backward(k, v, firsts, *kept)
        ctx.starts, ctx.scale = starts, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        k, v, firsts, *kept = ctx.saved_tensors
        return *_attend_gradients(gradient, k, v, firsts, kept, ctx.starts, ctx.scale), None, None, None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, firsts: torch.Tensor, starts: Sequence[int], scale: float
) -> list[torch.Tensor]:
    """Attention [B, H, L, D]; then queries and probabilities of each block."""
    k, v = (x.reshape(-1, *x.shape[2:]) for x in (k, v))
    out, kept = _tokens_first(q), []
    for number, first in enumerate(starts):
        queries, keys = _block(number, first, q.shape[2])
        own = _queries(q, queries)
        near, values = k[:, keys].contiguous(), v[:, keys].contiguous()
        logits = torch.baddbmm(q.new_empty(()), own, near.transpose(1, 2), beta=0.0, alpha=scale)
        run_in_threads(softmax, len(logits), (logits, firsts), queries.start, first)
        out[:, :, queries] = torch.bmm(logits, values).view(*q.shape[:2], *own.shape[1:])
        kept += [own, logits]
    return [out, *kept]


def _attend_gradients(
    gradient: torch.Tensor, k: torch.Tensor, v: torch.Tensor, firsts: torch.Tensor, kept: Sequence[torch.Tensor],
    starts: Sequence[int], scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of queries, keys and values.

    With probabilities P they are dV = P' g, dS = P (g V' - rowsum(P g V')), dQ = dS K and dK = dS' Q.
    """
    shape, last = gradient.shape, len(starts) - 1
    k, v = (x.reshape(-1, *x.shape[2:]) for x in (k, v))
    for_q, for_k, for_v = _tokens_first(gradient), torch.empty_like(k), torch.empty_like(v)
    for number, first in reversed([*enumerate(starts)]):
        queries, keys = _block(number, first, shape[2])
        own, probs = kept[2 * number : 2 * number + 2]
        into = _queries(gradient, queries)
        slopes = torch.bmm(into, v[:, keys].contiguous().transpose(1, 2))
        given = (slopes, probs, firsts)
        run_in_threads(softmax_gradient, len(slopes), given, queries.start, first, np.float32(scale))
        for_q[:, :, queries] = torch.bmm(slopes, k[:, keys].contiguous()).view(*shape[:2], *own.shape[1:])
        _gather(for_k, keys, slopes, own, number == last)
        _gather(for_v, keys, probs, into, number == last)
    return for_q, for_k.view(shape), for_v.view(shape)


@torch.library.custom_op("assay::block_attention", mutates_args=())
def traced_block_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, firsts: torch.Tensor, scale: float
) -> list[torch.Tensor]:
    """Attention as one operation of a compiled graph.

    It returns attention [B, H, L, D] and the probabilities of each block. Each block sees all keys before its end, so
    that sizes do not depend on the documents.
    """
    out, *kept = _attend(q, k, v, firsts, [0] * _blocks(q), scale)
    return [out, *kept[1::2]]


@traced_block_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, firsts: torch.Tensor, scale: float) -> list[torch.Tensor]:
    blocks = (_block(number, 0, q.shape[2]) for number in range(_blocks(q)))
    heads = q.shape[0] * q.shape[1]
    return [_tokens_first(q), *(q.new_empty(heads, one.stop - one.start, keys.stop) for one, keys in blocks)]


@torch.library.custom_op("assay::block_attention_gradients", mutates_args=())
def _traced_gradients(
    gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, firsts: torch.Tensor,
    probs: Sequence[torch.Tensor], scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    kept = []
    for number, one in enumerate(probs):
        kept += [_queries(q, _block(number, 0, q.shape[2])[0]), one]
    return _attend_gradients(gradient, k, v, firsts, kept, [0] * len(probs), scale)


@_traced_gradients.register_fake
def _(
    gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, firsts: torch.Tensor,
    probs: Sequence[torch.Tensor], scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    return _tokens_first(gradient), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx: Any, gradients: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    q, k, v, firsts, *probs = ctx.saved_tensors
    return *_traced_gradients(gradients[0], q, k, v, firsts, probs, ctx.scale), None, None


traced_block_attention.register_autograd(_differentiate, setup_context=_keep)


def _blocks(x: torch.Tensor) -> int:
    """Blocks of queries in [B, H, L, D]."""
    return -(-x.shape[2] // QUERIES)


def _queries(x: torch.Tensor, queries: slice) -> torch.Tensor:
    """Copy a block of queries to [B x H, Q, D].

    Factors that are parts of a longer tensor would be copied in each product, more slowly.
    """
    return x[:, :, queries].reshape(-1, queries.stop - queries.start, x.shape[-1]).contiguous()


def _tokens_first(x: torch.Tensor) -> torch.Tensor:
    """Empty tensor like [B, H, L, D], tokens before heads in memory.

    So the projections read it without a copy.
    """
    rows, heads, length, size = x.shape
    return torch.empty((rows, length, heads, size), dtype=x.dtype).transpose(1, 2)


def _block(number: int, first: int, length: int) -> tuple[slice, slice]:
    """Queries of a block, and the keys that it sees."""
    end = min(length, (number + 1) * QUERIES)
    return slice(number * QUERIES, end), slice(first, end)


def _gather(total: torch.Tensor, keys: slice, left: torch.Tensor, right: torch.Tensor, latest: bool) -> None:
    """Add left' right to the visible rows of `total`."""
    if latest:
        total[:, : keys.start] = 0
        torch.bmm(left.transpose(1, 2), right, out=total[:, keys])
    else:
        total[:, keys].baddbmm_(left.transpose(1, 2), right)


def block_starts(firsts: torch.Tensor) -> tuple[int, ...]:
    """First visible key of each block of queries."""
    return tuple(int(block.min()) for block in firsts.split(QUERIES, dim=1))


class SquaredRelu(torch.autograd.Function):
    """max(x, 0)^2 in bf16 or fp32, and its gradient from x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """[...] -> [...]."""
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        run_in_threads(activations.squared_relu, x.numel(), (x.view(-1), out.view(-1)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Gradient from x alone, the only tensor kept."""
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        run_in_threads(
            activations.squared_relu_gradient, x.numel(), (x.view(-1), gradient.contiguous().view(-1), out.view(-1))
        )
        return out


class SwiGlu(torch.autograd.Function):
    """SwiGLU, silu(gate) up, with both gradients in one pass.

    It takes bf16 and fp32.
    """

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """[...], [...] -> [...]."""
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        run_in_threads(activations.swiglu, gate.numel(), (gate.view(-1), up.view(-1), out.view(-1)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        for_gate, for_up = torch.empty_like(gate), torch.empty_like(up)
        given = (gate, up, gradient.contiguous(), for_gate, for_up)
        run_in_threads(activations.swiglu_gradient, gate.numel(), tuple(x.view(-1) for x in given))
        return for_gate, for_up
