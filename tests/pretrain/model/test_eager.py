from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pretrain.model import cpu_ops as eager
from pretrain.model.kernels import threads
from pretrain.model.kernels.threads import run_in_threads
from pretrain.model.position_embeddings import rotary_angles, rotate
from tests.pretrain import kernels_of_widths as widths
from tests.pretrain.small_models import config

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def with_threads():
    """Set the number of threads of torch, and so of a kernel."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def both(function, plain, *inputs):
    """Results and gradients of two functions of the same inputs."""
    messages = []
    for compute in (function, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = compute(*leaves)
        (out.float() * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
        messages.append([out, *(leaf.grad for leaf in leaves)])
    return zip(*messages, strict=True)


def near(dtype):
    """Tolerance between two results whose sums are taken in another order."""
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    return {"atol": tolerance, "rtol": tolerance}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_rms_norm_is_torchs(dtype, count, with_threads):
    with_threads(count)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 5, 24, generator=generator).to(dtype), torch.randn(24, generator=generator).to(dtype)
    for ours, plain in both(
        lambda x, weight: eager.RMSNormFunction.apply(x, weight, 1e-5),
        lambda x, weight: F.rms_norm(x, (24,), weight, 1e-5),
        x, weight,
    ):  # fmt: skip
        torch.testing.assert_close(ours, plain, **near(dtype))
    for ours, plain in both(
        lambda x: eager.RMSNormFunction.apply(x, None, 1e-5), lambda x: F.rms_norm(x, (24,), None, 1e-5), x
    ):
        torch.testing.assert_close(ours, plain, **near(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_small_work_stays_on_the_callers_thread_and_gives_the_same_bits(dtype, with_threads, monkeypatch):
    with_threads(3)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 7, 24, generator=generator).to(dtype), torch.randn(24, generator=generator).to(dtype)

    def bits():
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = eager.RMSNormFunction.apply(*leaves, 1e-5)
        out.backward(torch.ones_like(out))
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    pools, pool = [], threads._pool
    monkeypatch.setattr(threads, "_pool", lambda process: pools.append(process) or pool(process))
    alone = bits()
    assert not pools
    monkeypatch.setattr(threads, "SMALL", 0)
    assert all(torch.equal(shared, one) for shared, one in zip(bits(), alone, strict=True))
    assert pools


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_functions_of_the_feed_forward_are_their_formulas(dtype, strided):
    gate, up = torch.randn(2, 3, 7, 33, generator=torch.Generator().manual_seed(0)).mul(4).to(dtype)
    if strided:
        gate, up = gate.transpose(0, 1), up.transpose(0, 1)
    for ours, plain in both(
        eager.SwiGlu.apply, lambda gate, up: (F.silu(gate.float()) * up.float()).to(dtype), gate, up
    ):
        torch.testing.assert_close(ours, plain, **near(dtype))
    for ours, plain in both(eager.SquaredRelu.apply, lambda x: F.relu(x).square(), gate):
        torch.testing.assert_close(ours, plain, **near(dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e4, 1e4, -0.0])
def test_what_is_not_finite_stays_so_and_what_is_far_stays_finite(value, dtype):
    x = torch.full((1, 40), value, dtype=dtype)
    one = torch.ones_like(x)
    for ours, plain in (
        (eager.SwiGlu.apply(x, one), F.silu(x)),
        (eager.SquaredRelu.apply(x), F.relu(x).square()),
        (eager.RMSNormFunction.apply(x, None, 1e-5), F.rms_norm(x, (40,), None, 1e-5)),
    ):
        assert torch.equal(ours.isfinite(), plain.isfinite())
        torch.testing.assert_close(ours[ours.isfinite()], plain[ours.isfinite()], rtol=0.01, atol=1e-30)


@given(hnp.arrays(np.float32, st.integers(1, 80), elements=st.floats(width=32)))
@settings(max_examples=60)
def test_rounding_to_bf16_is_torchs(values):
    out = torch.empty(len(values), dtype=torch.bfloat16)
    run_in_threads(widths.narrow, len(values), (torch.from_numpy(values), out))
    torch.testing.assert_close(out, torch.from_numpy(values).bfloat16(), rtol=0, atol=0, equal_nan=True)


@given(st.floats(-87, 88, width=32))
@settings(max_examples=300)
def test_the_exponential_is_within_three_last_places(x):
    out = torch.empty(1)
    run_in_threads(widths.raised, 1, (torch.tensor([x]), out))
    assert abs(out.item() - math.exp(x)) <= 3 * 2**-23 * math.exp(x)


def test_kernels_refuse_what_they_do_not_know():
    with pytest.raises(TypeError, match=r"not torch\.float64"):
        eager.SquaredRelu.apply(torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("transposed", [True, False])
def test_the_rotary_kernel_equals_the_formula(transposed, monkeypatch):
    angles = rotary_angles(torch.arange(9).expand(2, 9), config(), torch.float32)
    x = torch.randn(2, 9, 4, 8, generator=torch.Generator().manual_seed(0))
    x = x.transpose(1, 2) if transposed else x.transpose(1, 2).contiguous()
    messages = [rotate(x, angles)]
    by_hand = both(lambda x: eager.RotaryFunction.apply(x, angles), lambda x: _formula(x, angles), x)
    for ours, plain in by_hand:
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    monkeypatch.setattr("pretrain.model.position_embeddings.has_cpu_kernels", lambda x: False)
    torch.testing.assert_close(messages[0], rotate(x, angles), atol=1e-6, rtol=1e-6)


def _formula(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pairs of channels as complex numbers, times e^(i angle)."""
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(angles[0], angles[1])
    return torch.cat((pairs.real, pairs.imag), dim=-1)
