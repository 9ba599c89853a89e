"""The roofline: what the presets are chosen by, and that each of its parts moves as it must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.config import load_run
from pretrain.distributed.process_group import Ranks
from pretrain.preflight.forecast import COPIES, PEAK, Forecast, forecast
from pretrain.preflight.memory import estimate

CONFIGS = Path(__file__).parents[3] / "configs"
PRESETS = {"1b": (8, 0.54), "7b": (64, 0.59), "13b": (128, 0.57), "70b": (512, 0.40)}
"""Ranks, and the least share of the peak that a preset's plan must say."""
SLOW = 45e9


def plan(name: str, network: float | None = None, **changes: Any) -> Forecast:
    config, world = load_run(CONFIGS / f"{name}.toml", []).config, PRESETS[name][0]
    engine = config.engine.model_copy(update=changes)
    words = () if network is None else (network,)
    return forecast(config.recipe, engine, config.data.tokenizer.vocabulary_size, Ranks(0, world, 0, 8), *words)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_forecast_at_its_goal_and_fits_its_cards(name):
    config = load_run(CONFIGS / f"{name}.toml", []).config
    world, goal = PRESETS[name]
    assert config.slurm.nodes * config.slurm.gpus_per_node == world
    assert goal <= plan(name).mfu < 0.7
    vocabulary = config.data.tokenizer.vocabulary_size
    assert estimate(config.recipe, config.engine, vocabulary, world, "cuda").device_bytes < 64 << 30


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("1b", {"activation_checkpointing": "selective"}),
        ("1b", {"micro_batch_size": 4}),
        ("7b", {"zero_stage": 2, "hpz_partition_size": 1}),
        ("7b", {"activation_checkpointing": "selective"}),
        ("7b", {"micro_batch_size": 1}),
        ("13b", {"zero_stage": 2, "hpz_partition_size": 1}),
        ("70b", {"micro_batch_size": 1, "activation_checkpointing": "selective", "hpz_partition_size": 1}),
        ("70b", {"zero_stage": 2, "tensor_parallel_size": 8, "hpz_partition_size": 1}),
    ],
)
def test_what_a_preset_was_preferred_to_is_forecast_slower(name, worse):
    assert plan(name, **worse).step > plan(name).step


@pytest.mark.parametrize("name", ["7b", "13b", "70b"])
def test_second_copies_pay_where_the_network_is_slow(name):
    held, without = plan(name, SLOW), plan(name, SLOW, hpz_partition_size=1)
    assert held.mfu > 1.2 * without.mfu


def test_the_parts_add_up_and_the_words_say_so():
    found = plan("70b")
    assert found.step == pytest.approx(sum(found.seconds.values()))
    assert found.mfu == pytest.approx(found.flops / found.step / PEAK)
    assert f"{100 * found.mfu:.0f} % of an H100's bf16 peak" in found.in_words()
    assert found.hidden > 1.0  # seconds: nearly all that it communicates


def test_one_rank_communicates_nothing_and_its_update_is_the_bytes_of_its_state():
    config = load_run(CONFIGS / "1b.toml", []).config
    engine = config.engine.model_copy(update={"zero_stage": 1})
    found = forecast(config.recipe, engine, 50304, Ranks())
    assert found.seconds["communication"] == found.hidden == found.seconds["waits"] == 0.0
    passes, parameters = 512 // 8, 1_317_373_952
    assert found.seconds["update"] == pytest.approx((passes * 20 + 24 + 46) * parameters / COPIES)


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from([1, 2, 3]), st.floats(20e9, 400e9))
def test_a_slower_network_never_helps_and_no_forecast_beats_the_peak(name, stage, network):
    changes = {"zero_stage": stage, "hpz_partition_size": 1}
    slow, fast = plan(name, network, **changes), plan(name, 2 * network, **changes)
    assert slow.step >= fast.step > 0
    assert 0 < slow.mfu <= fast.mfu < 0.75
