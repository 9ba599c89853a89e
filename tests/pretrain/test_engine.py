from __future__ import annotations

import pytest

from governance.errors import ConfigError, PipelineError
from pretrain.config import EngineConfig, TrainConfig, TrainRecipe
from pretrain.deepspeed_config import BUCKET, deepspeed_config
from pretrain.engine import foreign_errors
from pretrain.model_config import ModelConfig
from pretrain.optim_config import OptimConfig


def recipe(**train) -> TrainRecipe:
    model = ModelConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    values = {"sequence_length": 32, "global_batch_size": 24, "steps": 10, **train}
    return TrainRecipe(
        model=model, optim=OptimConfig(learning_rate=0.1, gradient_clipping=0.5), train=TrainConfig(**values)
    )


def test_the_whole_dictionary_is_derived():
    emitted = deepspeed_config(recipe(), EngineConfig(zero_stage=2, micro_batch_size=4), 3)
    assert emitted == {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
        "steps_per_print": 1 << 40,
    }


def test_no_clipping_is_said_out_loud():
    quiet = recipe().model_copy(update={"optim": OptimConfig(learning_rate=0.1, gradient_clipping=0.0)})
    assert deepspeed_config(quiet, EngineConfig(), 1)["gradient_clipping"] == 0.0


def test_deepspeed_reads_every_key_as_we_mean_it():
    from deepspeed.runtime.config import DeepSpeedConfig

    emitted = deepspeed_config(recipe(precision="bf16"), EngineConfig(zero_stage=2, micro_batch_size=8), 1)
    read = DeepSpeedConfig(emitted)
    assert read.train_batch_size == 24
    assert read.gradient_accumulation_steps == 3
    assert read.gradient_clipping == 0.5
    assert read.bfloat16_config.enabled
    assert read.grad_accum_dtype == "fp32"
    assert read.zero_optimization_stage == 2
    assert read.steps_per_print == 1 << 40


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="global_batch_size = 24"):
        deepspeed_config(recipe(), EngineConfig(micro_batch_size=5), 1)


def test_a_full_device_is_told_with_the_mend():
    import torch

    with pytest.raises(PipelineError, match="micro_batch_size"), foreign_errors():
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="our own"), foreign_errors():
        raise RuntimeError("our own mistake")
