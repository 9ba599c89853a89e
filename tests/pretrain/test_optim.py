from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.optim import make_optimizer, parameter_groups, rate_factor
from pretrain.optim_config import OptimConfig

CONFIG = OptimConfig(learning_rate=2.0, warmup_steps=4, decay_steps=5, min_lr_ratio=0.1)


def test_the_schedule_warms_up_stays_and_decays():
    rates = [2.0 * rate_factor(step, 20, CONFIG) for step in range(1, 21)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[3:15] == pytest.approx([2.0] * 12)
    assert rates[14:] == pytest.approx([2.0, 1.64, 1.28, 0.92, 0.56, 0.2])


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 50),
    st.floats(0, 1),
    st.floats(1e-6, 10),
    st.integers(0, 200),
)
def test_the_schedule_stays_in_its_bounds(warmup, decay, stable, ratio, rate, offset):
    steps = warmup + decay + stable
    config = OptimConfig(learning_rate=rate, warmup_steps=warmup, decay_steps=decay, min_lr_ratio=ratio)
    step = 1 + offset % steps
    value = rate_factor(step, steps, config)
    assert 0 <= value <= 1
    if warmup <= step <= steps - decay:
        assert value == pytest.approx(1.0)
    if decay:
        assert rate_factor(steps, steps, config) == pytest.approx(ratio)


def test_only_matrices_decay_and_every_parameter_has_a_group():
    from torch import nn

    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    groups = parameter_groups(model.named_parameters(), 0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(parameter.dim() > 1 for parameter in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    optimizer = make_optimizer(groups, CONFIG)
    assert optimizer.defaults["betas"] == (0.9, 0.95)
