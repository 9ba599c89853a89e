"""The price of the sum over the ranks follows the stage, the split and the arithmetic."""

from __future__ import annotations

import pytest

from pretrain.config.training import EngineConfig
from pretrain.engine.deepspeed_config import in_words, reduced_bytes
from pretrain.model.flops import parameter_count
from tests.pretrain.engine.test_deepspeed_config import recipe

VOCABULARY = 1000


def sent(ranks: int, train: dict | None = None, micro: int = 2, **engine) -> int:
    settings = EngineConfig(micro_batch_size=micro, **engine)
    return reduced_bytes(recipe(**(train or {})), settings, VOCABULARY, ranks)


def test_bytes_of_a_ring_by_stage_and_split():
    whole = 4 * parameter_count(recipe().model, VOCABULARY)
    passes = 24 // (2 * 4)
    assert [sent(4, zero_stage=stage) for stage in (1, 2, 3)] == pytest.approx(
        [2 * whole * 3 / 4, whole * 3 / 4 * passes, whole * 3 / 4 * passes]
    )
    assert sent(8, micro=1, zero_stage=2) == pytest.approx(
        2 * whole * 7 / 8 * 3
    )  # more owners than a bucket is sent to
    assert sent(4, {"gradient_reduction": "bf16"}, zero_stage=2) * 2 == sent(4, zero_stage=2)
    assert sent(4, {"quantized_gradients": True}, zero_stage=3) * 8 == sent(4, zero_stage=3)
    assert sent(1) == 0
    assert sent(4, tensor_parallel_size=2) == pytest.approx(2 * whole / 2 / 2)


def test_the_price_of_fp32_is_reported_where_there_is_one():
    big = 4_000_000
    words = [in_words(recipe(**train), EngineConfig(micro_batch_size=2), big, ranks) for train, ranks in
             (({}, 1), ({}, 4), ({"gradient_reduction": "bf16"}, 4))]  # fmt: skip
    assert ["half as much" in messages for messages in words] == [False, True, False]
    assert "bf16" in words[2]
