from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from pretrain.model import activation_checkpointing as checkpointing
from pretrain.model import attention, flex
from tests.pretrain.small_models import VARIANTS, config, model_of, rows


class Products(TorchDispatchMode):
    """Counts matrix products of linear maps, and the softmaxes of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = self.softmax = self.fused = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.linear += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        self.softmax += func is torch.ops.aten._softmax.default
        self.fused += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))


def learn(variant: str, how: str):
    """Loss, gradients, the computed parts, and how many numbers were kept for the backward pass."""
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


@pytest.fixture(autouse=True)
def plain_linear(monkeypatch):
    """torch's own linear map: a run at stage 3 earlier in this process leaves DeepSpeed's, which adds a bias twice."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)


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


@pytest.mark.parametrize("how", ["full", "selective"])
def test_selective_keeps_the_result_of_an_attention_that_is_one_kernel(how, monkeypatch):
    monkeypatch.setattr(attention, "SHORT", 16)
    none, other = (learn("llama", kind)[2] for kind in ("none", how))
    assert none.fused == 2
    assert other.fused == (4 if how == "full" else 2)
    assert difference("llama", how) == {}


@torch.library.custom_op("assay_tests::noted", mutates_args=())
def noted(x: torch.Tensor) -> torch.Tensor:
    """The same numbers; each run is counted."""
    RUNS.append(1)
    return x.clone()


noted.register_fake(torch.empty_like)
noted.register_autograd(lambda context, gradient: gradient)
RUNS: list[int] = []


@pytest.mark.slow
def test_selective_keeps_what_is_compiled_by_itself(monkeypatch):
    """A formula, compiled with the same options, represents FlexAttention, which needs CUDA."""

    def formula(q, k, v):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return noted((q @ k.transpose(-1, -2)).tril().softmax(-1)) @ v

    compiled = torch.compile(formula, dynamic=False, fullgraph=True, **flex.compiler())
    monkeypatch.setattr(attention, "attention", lambda segments, rule: compiled)
    counts, batch = {}, rows([[32], [32]])
    for how in ("none", "selective", "full"):
        model = model_of(config(), activation_checkpointing=how)
        RUNS.clear()
        model(batch.tokens, batch.targets, batch.segments, batch.positions)[0].backward()
        counts[how] = len(RUNS)
    assert counts == {"none": 2, "selective": 2, "full": 4}


@pytest.mark.parametrize("name", ["flex_attention", "inductor_compiled_code"])
def test_the_operations_of_flex_are_known_by_their_names(name):
    operation = getattr(torch.ops.higher_order, name)
    assert checkpointing._policy(None, operation) is CheckpointPolicy.MUST_SAVE


def test_selective_computes_short_rows_again_and_linear_maps_once():
    none, full, selective = (learn("llama", how)[2] for how in ("none", "full", "selective"))
    assert selective.linear == none.linear
    assert full.linear > none.linear
    assert selective.softmax == full.softmax == 2 * none.softmax


def test_what_is_computed_again_is_not_kept():
    none, full = (learn("llama", how)[3] for how in ("none", "full"))
    assert full < none / 3
