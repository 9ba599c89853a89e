from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretrain.small_models import VARIANTS, config, model_of, rows


class Products(TorchDispatchMode):
    """Counts matrix products of linear maps, and the softmaxes of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = self.softmax = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.linear += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        self.softmax += func is torch.ops.aten._softmax.default
        return func(*args, **(kwargs or {}))


def learn(variant: str, how: str):
    """Loss, gradients, what was computed, and how many numbers waited for the backward pass."""
    model, batch = model_of(config(**VARIANTS[variant]), activation_checkpointing=how), rows([[9, 20, 3], [32, 0, 0]])
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with Products() as products, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective, _ = model(batch.tokens, batch.targets, batch.segments, batch.positions)
    with products:
        objective.backward()
    size = sum(count for place, count in kept.items() if place not in weights)
    return objective, {name: p.grad for name, p in model.named_parameters()}, products, size


@pytest.mark.parametrize("how", ["full", "selective"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_the_same(variant, how):
    assert difference(variant, how) == {}


def difference(variant: str, how: str) -> dict[str, float]:
    """The largest difference of each gradient, and of the loss, that is not equal to the bit."""
    objective, gradients, *_ = learn(variant, "none")
    again, others, *_ = learn(variant, how)
    pairs = {"loss": (objective, again), **{name: (gradients[name], others[name]) for name in gradients}}
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items() if not torch.equal(a, b)}


def test_selective_computes_attention_again_and_linear_maps_once():
    none, full, selective = (learn("llama", how)[2] for how in ("none", "full", "selective"))
    assert selective.linear == none.linear
    assert full.linear > none.linear
    assert selective.softmax == full.softmax == 2 * none.softmax


def test_what_is_computed_again_is_not_kept():
    none, full = (learn("llama", how)[3] for how in ("none", "full"))
    assert full < none / 3
