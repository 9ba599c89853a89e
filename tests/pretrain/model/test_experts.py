from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.model import MoeConfig
from pretrain.model.moe import Experts, _stacked, balance_losses, grouped_product
from tests.pretrain.small_models import VARIANTS, config, model_of, rows

KINDS = (torch.float32, torch.bfloat16)


def layer_of(experts: int, used: int, normalised: bool = True) -> tuple[Experts, MoeConfig]:
    moe = MoeConfig(num_local_experts=experts, num_experts_per_tok=used, norm_topk_prob=normalised)
    layer = Experts(config(moe=moe), moe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return layer, moe


@pytest.mark.parametrize(("experts", "used", "normalised"), [(4, 2, True), (3, 1, False), (2, 2, True), (8, 3, False)])
def test_a_token_gets_the_weighed_sum_of_the_experts_it_chose(experts, used, normalised):
    layer, _ = layer_of(experts, used, normalised)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    out, logits = layer(x)
    for row in range(2):
        for place in range(5):
            token = x[row, place]
            chances = torch.softmax(layer.gate.weight @ token, 0)
            best = chances.argsort(descending=True)[:used]
            weights = chances[best] / (chances[best].sum() if normalised else 1)
            expected = sum(w * layer.experts[e](token) for w, e in zip(weights, best.tolist(), strict=True))
            torch.testing.assert_close(out[row, place], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(logits[row, place], layer.gate.weight @ token, atol=1e-5, rtol=1e-5)


def test_one_expert_a_token_with_normalised_weights_is_refused():
    """The normalised weight of one expert is always 1, so no gradient of the loss would reach the router."""
    with pytest.raises(ValueError, match="norm_topk_prob = false"):
        MoeConfig(num_local_experts=4, num_experts_per_tok=1)


def test_an_expert_that_nobody_chose_takes_part_and_learns_nothing():
    layer, _ = layer_of(4, 1, normalised=False)
    with torch.no_grad():
        layer.gate.weight.zero_()  # all alike: every token makes the same choice
    layer(torch.ones(1, 3, 32))[0].sum().backward()
    gradients = [[parameter.grad for parameter in expert.parameters()] for expert in layer.experts]
    assert all(gradient is not None for of_expert in gradients for gradient in of_expert)
    assert sum(any(gradient.any() for gradient in of_expert) for of_expert in gradients) == 1


@settings(max_examples=20)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    sizes=st.sampled_from([(8, 16), (8, 16), (44, 12), (6, 10)]),
    even=st.booleans(),
    kind=st.sampled_from(KINDS),
)
def test_a_grouped_product_is_a_product_for_each_group(counts, sizes, even, kind):
    """Forward and both gradients; weights spread over storages, and evenly spaced in one, which is read in place.

    Sizes that are not a multiple of the kernel's 16 bytes are included.
    """
    rows, columns = sizes
    generator = torch.Generator().manual_seed(sum(counts))
    flat = torch.randn(len(counts), 3 * rows * columns, generator=generator).to(kind)
    weights = [row[: rows * columns].view(rows, columns) for row in flat]
    weights = [(weight if even else weight.clone()).detach().requires_grad_() for weight in weights]
    x = torch.randn(sum(counts), columns, generator=generator).to(kind).requires_grad_()
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    slopes = torch.randn(sum(counts), rows, generator=generator).to(kind)
    out = grouped_product(x, ends, weights)
    found = (out, *torch.autograd.grad(out, [x, *weights], slopes))
    plain = torch.cat([part @ weight.t() for part, weight in zip(x.split(counts), weights, strict=True)])
    for ours, expected in zip(found, (plain, *torch.autograd.grad(plain, [x, *weights], slopes)), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5 if kind is torch.float32 else 0.02)
    assert (_stacked(weights).data_ptr() == weights[0].data_ptr()) == (even or len(counts) == 1)


def test_experts_multiply_without_a_number_for_the_host():
    """One grouped product for each projection forward and two backward; no tensor is read, by any operation."""
    layer, _ = layer_of(4, 2)
    seen = Counter[str]()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen[str(function)] += 1
            return function(*args, **(kwargs or {}))

    with Count():
        layer(torch.randn(2, 5, 32, requires_grad=True))[0].sum().backward()
    assert seen["aten._grouped_mm.default"] == 9
    assert not seen["aten._local_scalar_dense.default"]
    assert not seen["aten.nonzero.default"]
    assert seen["aten.mm.default"] <= 3  # the router's


def single(experts: int, **coefficients: float) -> MoeConfig:
    """One expert for each token."""
    return MoeConfig(num_local_experts=experts, num_experts_per_tok=1, norm_topk_prob=False, **coefficients)


def test_balance_is_one_when_all_experts_are_used_alike():
    moe = single(4, router_aux_loss_coef=1.0, router_z_loss_coef=0.0)
    even = 5.0 * torch.eye(4).repeat(3, 1).unsqueeze(0)
    targets = torch.zeros(1, 12, dtype=torch.int64)
    assert balance_losses(even, targets, moe).item() == pytest.approx(12)
    uneven = torch.zeros(1, 12, 4)
    uneven[..., 0] = 50.0
    assert balance_losses(uneven, targets, moe).item() == pytest.approx(4 * 12)


def test_tokens_that_predict_nothing_do_not_count_for_balance():
    _, moe = layer_of(4, 2)
    logits = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(2, 6, dtype=torch.int64)
    targets[:, 4:] = -100
    short = balance_losses(logits[:, :4], targets[:, :4], moe)
    torch.testing.assert_close(balance_losses(logits, targets, moe), short)
    assert balance_losses(logits, torch.full_like(targets, -100), moe).item() == 0


def test_router_z_loss_is_the_squared_log_sum_exp():
    moe = single(3, router_aux_loss_coef=0.0, router_z_loss_coef=0.5)
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    expected = 0.5 * logits.exp().sum(-1).log().square().sum()
    torch.testing.assert_close(balance_losses(logits, torch.zeros(2, 4).long(), moe), expected)


def test_the_objective_does_not_depend_on_how_rows_are_split():
    model, batch = model_of(config(**VARIANTS["mixtral"])), rows([[20], [20], [20]])
    columns = (batch.tokens, batch.targets, batch.segments, batch.positions)
    whole = model(*columns)[0]
    split = sum(model(*(column[row : row + 1] for column in columns))[0] for row in range(3))
    assert whole.item() == pytest.approx(split.item(), rel=1e-6)
