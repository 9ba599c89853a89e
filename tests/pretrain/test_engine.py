from __future__ import annotations

import pytest

from governance.errors import PipelineError
from pretrain.engine import foreign_errors
from tests.pretrain.test_engine_state import gradient, learn, open_one, same, state_of


def test_a_full_device_is_told_with_the_mend():
    import torch

    with pytest.raises(PipelineError, match="micro_batch_size"), foreign_errors():
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="our own"), foreign_errors():
        raise RuntimeError("our own mistake")


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16")])
def test_one_rank_sums_over_nobody_and_learns_the_same_bits(stage, precision, monkeypatch):
    import torch

    summing = open_one("adamw", stage, precision)
    summing.deepspeed.enable_backward_allreduce = True  # DeepSpeed's own way
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
    assert max(alone, default=0) == 1  # the loss of the test itself
    assert max(sums) > 1000
