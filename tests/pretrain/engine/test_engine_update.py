from __future__ import annotations

import math

import pytest
import torch

from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks, join
from pretrain.engine.engine import open_engine
from pretrain.engine.state import full_state
from pretrain.engine.step import _skip_and_clip
from pretrain.model.decoder import Batch
from pretrain.model.init import initial_weight
from tests.pretrain.small_models import TINY


def test_the_skip_flag_is_on_the_parameters_device():
    """The meta device represents one other than the loss's; a group without parameters needs none."""
    seen = []

    class Looks(torch.optim.SGD):
        def step(self):
            seen.append(self.found_inf.device.type)

    parameters = [{"params": []}, {"params": [torch.nn.Parameter(torch.zeros(2, device="meta"))]}]
    optimizer = Looks(parameters, lr=0.1)
    with _skip_and_clip(optimizer, lambda: torch.ones(()), lambda: torch.ones(()), 1.0):
        optimizer.step()
    assert seen == ["meta"]
    assert optimizer.found_inf is None


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_an_update_that_is_skipped_changes_no_bit_of_weights_and_moments(stage, precision):
    train = TrainConfig(sequence_length=16, global_batch_size=4, steps=10, precision=precision)
    recipe = TrainRecipe(model=TINY, optim=OptimConfig(learning_rate=0.01), train=train)
    settings = EngineConfig(zero_stage=stage, micro_batch_size=2, threads=1)
    device = join(Ranks(), 60)
    engine = open_engine(
        recipe, settings, 100, Ranks(), device, lambda name, shape: initial_weight(name, shape, TINY, 0)
    )
    generator = torch.Generator().manual_seed(0)

    def state():
        return {(name, kind): value.clone() for name, values in full_state(engine) for kind, value in values.items()}

    def step(skip, poison=1.0):
        for last in (False, True):
            tokens = torch.randint(0, 100, (2, 16), generator=generator)
            positions = torch.arange(16, dtype=torch.int32).repeat(2, 1)
            batch = Batch(tokens, tokens.roll(-1, 1), torch.zeros(2, 16, dtype=torch.int32), positions)
            objective, _ = engine.forward(batch)
            engine.backward(objective * poison, 64, last)
        skipped, norms = engine.update(1.0, torch.tensor(skip))
        return float(skipped), math.isfinite(float(norms[0])), state()

    def same(left, right):
        return all(torch.equal(left[key], right[key]) for key in left)

    *messages, first = step(0.0)
    assert messages == [0.0, True]
    *messages, second = step(1.0)
    assert messages == [1.0, True]
    assert same(first, second)
    *messages, third = step(0.0, math.nan)  # no caller skips it; its gradient does
    assert messages == [1.0, False]
    assert same(first, third)
    *messages, fourth = step(0.0)
    assert messages == [0.0, True]
    assert not same(first, fourth)
    assert all(torch.isfinite(value).all() for value in fourth.values())
