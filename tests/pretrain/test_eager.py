from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.model import eager
from pretrain.model.positions import rotary_angles, rotate
from tests.pretrain.small_models import config


def both(function, plain, *inputs):
    """Results and gradients of two functions of the same inputs."""
    told = []
    for compute in (function, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = compute(*leaves)
        (out.float() * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
        told.append([out, *(leaf.grad for leaf in leaves)])
    return zip(*told, strict=True)


@pytest.mark.parametrize("piece", [1 << 19, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_torchs(dtype, piece, monkeypatch):
    monkeypatch.setattr(eager, "_PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 5, 24, generator=generator).to(dtype), torch.randn(24, generator=generator).to(dtype)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    for ours, plain in both(
        lambda x, weight: eager.RootMeanSquare.apply(x, weight, 1e-5),
        lambda x, weight: F.rms_norm(x, (24,), weight, 1e-5),
        x, weight,
    ):  # fmt: skip
        torch.testing.assert_close(ours, plain, **tolerance)
    for ours, plain in both(
        lambda x: eager.RootMeanSquare.apply(x, None, 1e-5), lambda x: F.rms_norm(x, (24,), None, 1e-5), x
    ):
        torch.testing.assert_close(ours, plain, **tolerance)


@pytest.mark.parametrize("transposed", [True, False])
def test_turning_by_hand_is_the_formula(transposed, monkeypatch):
    angles = rotary_angles(torch.arange(9).expand(2, 9), config(), torch.float32)
    x = torch.randn(2, 9, 4, 8, generator=torch.Generator().manual_seed(0))
    x = x.transpose(1, 2) if transposed else x.transpose(1, 2).contiguous()
    told = [rotate(x, angles)]
    by_hand = both(lambda x: eager.Rotate.apply(x, angles), lambda x: _formula(x, angles), x)
    for ours, plain in by_hand:
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    monkeypatch.setattr("pretrain.model.positions.by_hand", lambda x: False)
    torch.testing.assert_close(told[0], rotate(x, angles), atol=1e-6, rtol=1e-6)


def _formula(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pairs of channels as complex numbers, times e^(i angle)."""
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(angles[0], angles[1])
    return torch.cat((pairs.real, pairs.imag), dim=-1)
