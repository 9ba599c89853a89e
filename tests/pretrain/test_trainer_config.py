from __future__ import annotations

import ast
import inspect
import itertools
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.config import validate
from governance.errors import ConfigError
from pretrain.config.model import ModelConfig, padded_vocabulary
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, Settings, TrainConfig, TrainRecipe, gradient_accumulation_steps
from pretrain.preflight.compatibility import check_together

MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"hidden_size": 66}, "not a multiple of num_attention_heads"),
        ({"hidden_size": 60}, "odd"),
        ({"hidden_size": 0}, "must be above 0"),
        ({"qk_norm_whole": True}, "without qk_norm"),
        ({"rope_local_base_freq": 1e4}, "set sliding_window"),
        ({"partial_rotary_factor": 0.5, "position_embedding": "none"}, "turns none"),
        ({"partial_rotary_factor": 0.01}, "choose another head_dim"),
        ({"heads": 4}, "unknown key"),
    ],
)
def test_impossible_models_are_refused_with_a_fix(change, words):
    with pytest.raises(ConfigError, match=words):
        validate({**MODEL, **change}, ModelConfig, "file")


@pytest.mark.parametrize("betas", [[0.9, 1.0], [-0.1, 0.9]])
def test_betas_outside_the_unit_interval_are_refused(betas):
    with pytest.raises(ConfigError, match="beta"):
        validate({"learning_rate": 0.1, "betas": betas}, OptimConfig, "file")


def test_more_threads_than_a_machine_has_are_refused():
    with pytest.raises(ConfigError, match="threads"):
        validate({"threads": 100_000}, EngineConfig, "file")


@pytest.mark.parametrize(
    ("optim", "train", "engine", "words"),
    [
        ({"warmup_steps": 8, "decay_steps": 3}, {}, {}, "warmup_steps"),
        ({}, {"sequence_length": 256}, {}, "max_position_embeddings"),
        ({}, {"precision": "bf16"}, {"zero_stage": 0}, "zero_stage = 0"),
    ],
)
def test_impossible_combinations_are_refused(optim, train, engine, words):
    recipe = TrainRecipe(
        model=ModelConfig(**MODEL),
        optim=OptimConfig(learning_rate=0.1, **optim),
        train=TrainConfig(**{"sequence_length": 64, "global_batch_size": 8, "steps": 10, **train}),
    )
    with pytest.raises(ConfigError, match=words):
        check_together(recipe, Settings(engine=EngineConfig(**engine)))


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 16))
def test_accumulation_gives_the_global_batch_back_or_refuses(batch, micro, world):
    if batch % (micro * world):
        with pytest.raises(ConfigError, match=str(micro * world)):
            gradient_accumulation_steps(batch, micro, world)
    else:
        assert gradient_accumulation_steps(batch, micro, world) * micro * world == batch


@given(st.integers(1, 10**6))
def test_padding_is_the_least_multiple_of_128(size):
    assert 0 <= padded_vocabulary(size) - size < 128
    assert padded_vocabulary(size) % 128 == 0


def test_every_setting_is_described():
    from pretrain.config import training as config

    for section in ("ModelConfig", "OptimConfig", "TrainConfig", "CheckpointConfig", "EngineConfig", "TrackingConfig"):
        settings = getattr(config, section)
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
        described = {
            line.target.id
            for line, below in itertools.pairwise(tree.body)
            if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        }
        assert described >= settings.__annotations__.keys(), section
