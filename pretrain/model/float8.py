"""Linear maps in 8 bits with per-tensor scales (arXiv:2209.05433).

Activations and weights are e4m3, forward and for the gradient of the input; gradients are e5m2, which has more range.
Each tensor is divided by its largest magnitude before rounding, without a host sync. Weights keep their type (bf16
under `train.precision = "fp8"`), so masters, checkpoints and ZeRO do not change. Only the linear maps of blocks are
converted; embedding and output projection keep 16 bits, because the loss is sensitive to both.

Price: two roundings per tensor and product; pays on cards with 8-bit units (compute capability 8.9 on) and wide layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_TINY = 1e-12


def convert_to_float8(model: nn.Module) -> None:
    """Make the linear maps of blocks multiply in 8 bits.

    Their sides must be multiples of 16.
    """
    for name, module in model.named_modules():
        if type(module) is nn.Linear and ".layers." in f".{name}":
            module.__class__ = Float8Linear


class Float8Linear(nn.Linear):
    """Linear map with all three products in 8 bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        flat = _Product.apply(x.flatten(0, -2), self.weight)
        out = flat.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class _Product(torch.autograd.Function):
    """x [N, in], weight [out, in] -> x weight^T [N, out]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, torch.float8_e4m3fn)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        return (
            multiply(gradient, weight.t().contiguous(), torch.float8_e5m2),
            multiply(gradient.t().contiguous(), x.t().contiguous(), torch.float8_e5m2),
        )


def multiply(left: torch.Tensor, right: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Product of two matrices in 8 bits.

    It maps left [N, K] x right [M, K]^T to [N, M] in the type of `left`, which is rounded to `kind`; `right` is rounded
    to e4m3.
    """
    small, small_scale = _quantized(left, kind)
    other, other_scale = _quantized(right, torch.float8_e4m3fn)
    return torch._scaled_mm(small, other.t(), scale_a=small_scale, scale_b=other_scale, out_dtype=left.dtype)


def _quantized(x: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` in 8 bits, and its fp32 scale on the device."""
    largest = torch.finfo(kind).max
    scale = x.detach().abs().amax().float().clamp(min=_TINY) / largest
    return (x.float() / scale).clamp(-largest, largest).to(kind), scale
