from __future__ import annotations

import math

import pytest
import torch

from pretrain.model.position_embeddings import rotary_angles, rotary_frequencies, sinusoids
from tests.pretrain.small_models import LLAMA3, YARN, config

LINEAR = {"rope_type": "linear", "factor": 2.0}
WIDE = {"hidden_size": 256, "max_position_embeddings": 4096}
LONG = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256}
FAR = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}
CPU = torch.device("cpu")


def test_unstretched_waves_are_the_papers():
    expected = [10_000.0 ** (-2 * i / 8) for i in range(4)]
    assert rotary_frequencies(config(), CPU).tolist() == pytest.approx(expected)


def test_linear_stretching_divides_positions():
    plain, stretched = config(), config(rope_scaling=LINEAR)
    positions = torch.arange(20).view(1, 20)
    halves = rotary_angles(positions.float() / 2, plain, torch.float32)
    torch.testing.assert_close(rotary_angles(positions, stretched, torch.float32), halves)


@pytest.mark.parametrize("scaling", [FAR, LONG, LLAMA3, YARN], ids=str)
def test_short_waves_stay_and_long_ones_are_stretched(scaling):
    settings = config(**WIDE, rope_scaling=scaling)
    plain = rotary_frequencies(config(**WIDE), CPU)
    ratio = plain / rotary_frequencies(settings, CPU)
    assert ratio[0].item() == pytest.approx(1)
    assert ratio[-1].item() == pytest.approx(scaling["factor"], rel=1e-5)
    assert (ratio.diff() >= -1e-5).all()


@pytest.mark.parametrize("scaling", [LINEAR, FAR, LONG, LLAMA3, YARN], ids=str)
def test_stretched_waves_are_those_of_transformers(scaling):
    transformers = pytest.importorskip("transformers", reason="compares with transformers, which is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = config(**WIDE, rope_scaling=scaling)
    parameters = settings.rope_scaling.model_dump(exclude_none=True) | {"rope_theta": 10_000.0}
    theirs = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=4096, rope_parameters=parameters
    )
    frequencies, warmth = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, CPU)
    torch.testing.assert_close(rotary_frequencies(settings, CPU), frequencies, rtol=1e-5, atol=1e-9)
    cosine_of_zero = rotary_angles(torch.zeros(1, 1), settings, torch.float32)[0].max().item()
    assert cosine_of_zero == pytest.approx(warmth)


def test_sinusoids_are_the_papers():
    table = sinusoids(torch.arange(7).view(1, 7), 6)[0]
    for position in range(7):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            assert table[position, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
