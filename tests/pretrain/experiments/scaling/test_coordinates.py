"""Coordinate check: a standard parametrisation fails it, muP passes."""

import pytest

from pretrain.config.optim import OptimConfig
from pretrain.config.training import TrainConfig, TrainRecipe
from pretrain.experiments.scaling.coordinates import LIMIT, check_widths, coordinate_check
from tests.pretrain.small_models import config, rows


def recipe_of(optimizer="adamw", **model):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
    train = TrainConfig(sequence_length=64, global_batch_size=4, steps=100)
    return TrainRecipe(
        model=config(**{**sizes, **model}), optim=OptimConfig(optimizer=optimizer, learning_rate=3e-3), train=train
    )


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_the_standard_parametrisation_fails_and_mup_passes(optimizer):
    batch = rows([[32, 32]] * 4)
    for settings, transfers in (
        ({"initialisation": "normal"}, False),
        ({"initialisation": "depth_scaled"}, False),
        ({"initialisation": "mup", "mup_base_width": 64}, True),
    ):
        check = coordinate_check(recipe_of(optimizer, **settings), 100, batch)
        assert check.widths == (16, 32, 64, 128)
        assert check.transfers is transfers, settings
        assert (check.as_dict()["largest"] <= LIMIT) is transfers
        assert set(check.sizes) == {"0.self_attn", "0.mlp", "1.self_attn", "1.mlp", "logits"}


def test_one_head_has_no_other_width():
    model = {"num_attention_heads": 1, "num_key_value_heads": 1}
    assert check_widths(recipe_of(**model).model) == [128]
    assert coordinate_check(recipe_of(**model), 100, rows([[8, 8]])) is None
