from __future__ import annotations

import pytest

from governance.errors import PipelineError
from pretrain.engine.engine import translated_errors
from tests.pretrain.engine.test_engine_state import gradient, learn, open_one, same, state_of


def test_a_full_device_is_reported_with_the_fix():
    import torch

    with pytest.raises(PipelineError, match="micro_batch_size"), translated_errors():
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="our own"), translated_errors():
        raise RuntimeError("our own mistake")


def test_gradients_are_added_up_in_one_pass_to_the_same_bits():
    theirs = open_one("muon", 1, "bf16")
    for name in ("update_hp_grads", "clear_hp_grads"):  # DeepSpeed's own methods again
        delattr(theirs.deepspeed.optimizer, name)
    losses = learn(theirs)
    ours = open_one("muon", 1, "bf16")
    assert learn(ours) == losses
    assert same(state_of(ours), state_of(theirs))


def test_a_parameter_without_a_gradient_gets_none_of_an_earlier_update():
    import torch

    optimizer = open_one("adamw", 1, "bf16").deepspeed.optimizer
    sums, weights = optimizer.fp32_groups_gradients[0], optimizer.bf16_groups[0]

    def add(*gradients):
        for weight, value in zip(weights, gradients, strict=False):
            weight.grad = None if value is None else torch.full_like(weight, value)
        optimizer.update_hp_grads()

    add(1.0, 2.0)
    add(3.0, None)
    assert [float(total.max()) for total in sums[:2]] == [4.0, 2.0]
    optimizer.clear_hp_grads()
    add(None, 5.0)
    assert [float(total.abs().max()) for total in sums[:2]] == [0.0, 5.0]
    assert all(weight.grad is None for weight in weights)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16")])
def test_one_rank_sums_over_nobody_and_learns_the_same_bits(stage, precision, monkeypatch):
    import torch

    summing = open_one("adamw", stage, precision)
    summing.deepspeed.enable_backward_allreduce = True  # DeepSpeed's own path
    losses = learn(summing)
    ours = open_one("adamw", stage, precision)
    assert learn(ours) == losses
    assert same(state_of(ours), state_of(summing))
    sums, plain = [], torch.distributed.all_reduce

    def counted(tensor, *given, **named):
        sums.append(tensor.numel())
        return plain(tensor, *given, **named)

    monkeypatch.setattr(torch.distributed, "all_reduce", counted)
    gradient(ours, 1)
    alone = sums.copy()
    gradient(summing, 1)
    assert max(alone, default=0) == 1  # the test's own loss
    assert max(sums) > 1000
