"""Kernels that a compiler makes of a block, counted in its code, on CPU, where it fuses by the same rules."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from pretrain.model.attention import document_mask
from pretrain.model.layers import Block, join_projections
from pretrain.model.position_embeddings import rotary_angles
from tests.pretrain.small_models import config, rows


class Code(NamedTuple):
    kernels: list[str]
    products: int


def written(joined: bool) -> tuple[Code, Code, list[torch.Tensor]]:
    """Forward and backward code of a block, and what it computes: output and gradients."""
    settings, batch = config(hidden_size=64, num_key_value_heads=4), rows([[10, 22], [32]])
    block = Block(settings, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    if joined:
        join_projections(block)
    x = torch.randn(2, 32, 64, generator=generator).requires_grad_()
    angles = rotary_angles(batch.positions, settings, x.dtype)

    def run(x, angles, segments):
        return block(x, angles, document_mask(segments, settings))[0]

    def learn():
        out = torch.compile(run)(x, angles, batch.segments)
        out.sin().sum().backward()
        return out

    torch._dynamo.reset()
    out, codes = run_and_get_code(learn)
    found = []
    for code in codes:
        call = code.split("def call(")[1].split("\nrunner = ")[0]
        kernels = re.findall(r"^ +(cpp_fused\w*)\(", call, re.MULTILINE)
        found.append(Code(kernels, len(re.findall(r"extern_kernels\.(?:mm|addmm)\(", call))))
    forward, backward = found
    return forward, backward, [out, x.grad, *(parameter.grad for parameter in block.parameters())]


@pytest.fixture(scope="module")
def codes():
    return {joined: written(joined) for joined in (False, True)}


@pytest.mark.slow
def test_queries_keys_and_values_are_one_product_each_way(codes):
    """Unfused, there are seven products forward and fourteen backward; fused, five and ten."""
    assert [code.products for code in codes[False][:2]] == [7, 14]
    assert [code.products for code in codes[True][:2]] == [5, 10]
    for code in codes[True][:2]:  # the copy of the weights is made again, not kept
        assert any("cat" in name for name in code.kernels)
    for ours, plain in zip(codes[True][2], codes[False][2], strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("joined", [False, True])
def test_rotation_residual_and_norm_are_fused(codes, joined):
    """One kernel between two products, and one for both rotations next to attention."""
    forward = codes[joined][0]
    norms = [name for name in forward.kernels if "rsqrt" in name]
    assert len(norms) == 2
    assert "add" in norms[1]  # with the residual before it
    assert (
        len(forward.kernels) <= 7 + joined
    )  # norm, rotations and mask, copy of heads, residual and norm, gate, residual


def test_without_a_compiler_nothing_changes():
    settings, batch = config(), rows([[32]])
    block = Block(settings, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(len(parameter)))
    x = torch.randn(1, 32, 32)
    given = (x, rotary_angles(batch.positions, settings, x.dtype), document_mask(batch.segments, settings))
    before = block(*given)[0]
    join_projections(block)
    assert torch.equal(block(*given)[0], before)
