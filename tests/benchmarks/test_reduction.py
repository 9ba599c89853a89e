"""The loss of bf16 over 64 and 512 ranks in docs/engine.md is that of the simulation."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reduction import gradients, lost, ring, tree


@pytest.mark.parametrize(
    ("ranks", "signal", "error", "projection"),
    [(64, 1.0, 0.008, 1.0), (512, 0.1, 0.023, 1.0), (512, 1.0, 0.074, 0.948), (512, 10.0, 0.265, 0.764)],
)
def test_a_ring_in_bf16_loses_what_the_page_says_and_fp32_nothing(ranks, signal, error, projection):
    parts = gradients(ranks, signal, seed=3, elements=2048)
    found, along = lost(parts, ring, torch.bfloat16)
    assert found == pytest.approx(error, rel=0.2)
    assert along == pytest.approx(projection, abs=0.02)
    assert lost(parts, tree, torch.bfloat16)[0] < 0.005
    assert lost(parts, ring, torch.float32)[0] < 1e-6


def test_both_ways_sum_what_is_there():
    parts = gradients(8, 1.0, elements=64)
    for way in (ring, tree):
        assert torch.allclose(way(parts, torch.float64), parts.double().sum(0))
