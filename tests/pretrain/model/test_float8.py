from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pretrain.model.float8 import Float8Linear, convert_to_float8, multiply


@pytest.mark.parametrize(("kind", "step"), [(torch.float8_e4m3fn, 2**-4), (torch.float8_e5m2, 2**-3)])
def test_a_product_is_within_the_rounding_of_its_factors(kind, step):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(sides, generator=generator) for sides in ((32, 64), (48, 64)))
    exact = left @ right.t()
    # Each factor is within half a step of its relative rounding; the errors of 64 terms add up at random.
    bound = (step**2 + 2**-8) ** 0.5 * (left.norm(dim=1)[:, None] * right.norm(dim=1)) * 0.5
    error = (multiply(left.bfloat16(), right.bfloat16(), kind).float() - exact).abs()
    assert (error < bound).all()
    assert error.max() > 1e-3  # it does round


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_scale_of_a_tensor_does_not_matter(size):
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    plain, scaled = (multiply(value, x, torch.float8_e4m3fn) for value in (x.bfloat16(), (x * size).bfloat16()))
    assert torch.allclose(scaled.float() / size, plain.float(), rtol=0.1, atol=0.5)
    assert torch.isfinite(multiply(torch.zeros(16, 32).bfloat16(), x, torch.float8_e4m3fn)).all()


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_point_where_those_of_16_bits_do(bias):
    torch.manual_seed(2)
    exact = nn.Linear(64, 32, bias=bias).bfloat16()
    rounded = copy.deepcopy(exact)
    rounded.__class__ = Float8Linear
    inputs = [torch.randn(4, 16, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(1)] * 2
    gradients = []
    for layer, x in zip((exact, rounded), inputs, strict=True):
        x.grad = None
        layer(x).float().pow(2).sum().backward()
        gradients.append([x.grad.clone(), *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert torch.cosine_similarity(one.float().flatten(), other.float().flatten(), dim=0) > 0.99


def test_only_maps_of_blocks_are_in_8_bits():
    from pretrain.config.model import ModelConfig
    from pretrain.model.decoder import Decoder

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    model = Decoder(ModelConfig(**sizes, num_attention_heads=2, num_key_value_heads=2), 100)
    names = [name for name, _ in model.named_parameters()]
    convert_to_float8(model)
    changed = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    assert len(changed) == 2 * 7
    assert "lm_head" not in changed
    assert [name for name, _ in model.named_parameters()] == names
