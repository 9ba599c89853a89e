"""The references for the kernels compute the same, with torch's own operations and nothing of ours."""

from __future__ import annotations

import pytest
import torch

from benchmarks import training
from benchmarks.measures.training import training_kernels
from benchmarks.measures.training.training_kernels import _batch, _errors, _model, torch_s_own
from pretrain.model import attention, feed_forward, layers, loss
from pretrain.model import position_embeddings as positions


@pytest.mark.parametrize("documents", [1, 4])
def test_torch_s_own_operations_give_the_same_loss(monkeypatch, documents):
    monkeypatch.setattr(training_kernels, "ROWS", 2)
    model, batch = _model(), _batch(documents)
    given = batch.tokens, batch.targets, batch.segments, batch.positions
    ours, nats = model(*given)

    def never(*_):
        raise AssertionError("an operation of ours was taken")

    for module, name in (
        (attention, "BlockAttention"), (layers, "RMSNormFunction"), (feed_forward, "SwiGlu"),
        (positions, "RotaryFunction"), (loss, "_InPieces"),
    ):  # fmt: skip
        monkeypatch.setattr(getattr(module, name), "apply", never)
    with pytest.raises(AssertionError, match="of ours"):
        model(*given)
    with torch_s_own():
        theirs, their_nats = model(*given)
    assert float(theirs) == pytest.approx(float(ours), rel=1e-3)
    torch.testing.assert_close(their_nats, nats, atol=0.05, rtol=0.02)
    assert float(theirs) == pytest.approx(float(their_nats.sum()))


def test_attention_in_bf16_is_about_as_exact_as_its_inputs(monkeypatch):
    monkeypatch.setattr(training_kernels, "ROWS", 2)
    found = {goal.name.removeprefix("kernels_attention_error_"): goal.value for goal in _errors(1)}
    assert found["of_writing_bf16_1"] < found["torch_1"] < found["ours_1"] < 1.5


def test_the_page_names_every_group():
    assert training.__doc__ is not None
    [line] = [line for line in training.__doc__.splitlines() if line.startswith("Groups: ")]
    assert line.removeprefix("Groups: ").partition(".")[0].split() == list(training.groups(quick=True))
