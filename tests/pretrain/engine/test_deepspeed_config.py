"""Every key that we emit is one that the installed DeepSpeed reads; required values are set."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from assay.config import load_run
from governance.errors import ConfigError
from pretrain.config import deepspeed_keys
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.engine.deepspeed_config import BUCKET, COLUMN, ROW, deepspeed_config
from pretrain.engine.engine import refuse_unknown_keys
from tests.pretrain.small_models import TINY

REMOVED = {"elasticity", "nebula", "compression_training", "amp", "mics_shard_size", "curriculum_learning"}
ENGINES = [
    {"zero_stage": 0},
    {"zero_stage": 1, "offload_optimizer": "cpu"},
    {"zero_stage": 2},
    {"zero_stage": 3, "hpz_partition_size": 2},
    {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "nvme", "nvme_path": "swap"},
    {"zero_stage": 3, "offload_optimizer": "nvme", "nvme_path": "swap"},
    {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu", "deepcompile": True},
    {"zero_stage": 1, "tensor_parallel_size": 2},
]
PRESETS = Path(__file__).parents[3] / "configs"
PRECISIONS = ["fp32", "bf16", "bf16_masters", "autocast", "fp16", "fp8"]


def recipe(optimizer: str = "adamw", **train) -> TrainRecipe:
    optim = OptimConfig(optimizer=optimizer, learning_rate=0.1, gradient_clipping=0.5)
    values = {"sequence_length": 32, "global_batch_size": 24, "steps": 10, **train}
    return TrainRecipe(model=TINY, optim=optim, train=TrainConfig(**values))


class Noting(dict):
    """A dictionary that records which of its keys were read, at any depth; copies share the record."""

    def __init__(self, values, read, path=()):
        super().__init__({k: Noting(v, read, (*path, k)) if isinstance(v, dict) else v for k, v in values.items()})
        self.read, self.path = read, path

    def __copy__(self):
        return self

    def __getitem__(self, key):
        self.read.add((*self.path, key))
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.read.add((*self.path, key))
        return super().get(key, default)

    def __iter__(self):  # else `**values` would bypass __getitem__; pydantic, which gets them so, refuses unknown keys
        return super().__iter__()


def keys_of(values, path=()):
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*path, key))


@pytest.mark.parametrize(("engine", "precision"), itertools.product(ENGINES, PRECISIONS))
def test_deepspeed_reads_every_key(engine, precision):
    from deepspeed.module_inject.autotp_config import AutoTPConfig
    from deepspeed.runtime.config import DeepSpeedConfig

    if engine["zero_stage"] == 0 and precision == "bf16_masters":
        return  # refused before
    ranks = engine.get("tensor_parallel_size", 1)
    quantized = engine["zero_stage"] == 3
    train = {"precision": precision, "quantized_weights": quantized, "quantized_gradients": quantized}
    emitted = deepspeed_config(recipe(**train), EngineConfig(micro_batch_size=8, **engine), ranks)
    assert ("zero_quantized_gradients" in emitted["zero_optimization"]) is quantized
    read: set = set()
    DeepSpeedConfig(Noting(emitted, read))
    if ranks > 1:  # the one table below the second level that pydantic does not check
        path = ("tensor_parallel", "partition_config")
        table = emitted[path[0]][path[1]]
        AutoTPConfig.from_dict(Noting(table, read, path))
        assert {(*path, key) for key in table} - read == set()
        for spec in table["layer_specs"]:
            notes: set = set()
            AutoTPConfig.from_dict({"layer_specs": [Noting(spec, notes)]})
            assert {(key,) for key in spec} - notes == set()
    assert {path for path in keys_of(emitted) if len(path) <= 2} - read == set()
    assert "gradient_clipping" in emitted
    assert {part for path in keys_of(emitted) for part in path} & REMOVED == set()


def test_an_unknown_key_would_be_found():
    from deepspeed.runtime.config import DeepSpeedConfig

    emitted = deepspeed_config(recipe(), EngineConfig(micro_batch_size=8), 1)
    read: set = set()
    DeepSpeedConfig(Noting({**emitted, "nonsense": 1}, read))
    assert ("nonsense",) in set(keys_of({**emitted, "nonsense": 1})) - read
    engine = EngineConfig(micro_batch_size=8, zero_stage=1, offload_optimizer="cpu")
    for names in (["zero_optimization"], ["zero_optimization", "offload_optimizer"], ["bf16"]):
        emitted = deepspeed_config(recipe(), engine, 1)
        place = emitted
        for name in names:
            place = place[name]
        place["nonsense"] = 1
        with pytest.raises(Exception, match="nonsense"):
            DeepSpeedConfig(emitted)


def test_deepspeed_means_what_we_mean():
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig(deepspeed_config(recipe(), EngineConfig(zero_stage=2, micro_batch_size=8), 1))
    assert (read.train_batch_size, read.gradient_accumulation_steps) == (24, 3)
    assert read.gradient_clipping == 0.0  # ours clips
    assert read.bfloat16_config.enabled
    assert not read.bfloat16_config.check_grad_overflow
    assert read.grad_accum_dtype == "fp32"
    assert read.zero_optimization_stage == 2
    assert read.zero_config.reduce_bucket_size == BUCKET
    assert read.steps_per_print == 1 << 40


@pytest.mark.parametrize(
    ("precision", "bf16", "fp16", "autocast"),
    [
        ("fp32", False, False, False),
        ("bf16", True, False, False),
        ("bf16_masters", True, False, False),
        ("autocast", False, False, True),
        ("fp16", False, True, False),
        ("fp8", True, False, False),
    ],
)
def test_one_arithmetic_is_on(precision, bf16, fp16, autocast):
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig(deepspeed_config(recipe(precision=precision), EngineConfig(micro_batch_size=8), 1))
    assert (read.bfloat16_config.enabled, read.float16_config.enabled) == (bf16, fp16)
    assert read.torch_autocast_enabled == autocast
    assert read.bfloat16_config.bf16_master_weights_and_grads == (precision == "bf16_masters")
    assert read.float16_config.loss_scale == 0  # dynamic


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_masters"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_are_reduced_as_the_setting_says_at_every_stage(stage, precision):
    import torch
    from deepspeed.runtime.config import DeepSpeedConfig

    if stage == 0 and precision == "bf16_masters":
        return  # refused before
    engine = EngineConfig(zero_stage=stage, micro_batch_size=8)
    for messages, meant in (({}, torch.float32), ({"gradient_reduction": "bf16"}, torch.bfloat16)):
        read = DeepSpeedConfig(deepspeed_config(recipe(precision=precision, **messages), engine, 1))
        assert read.communication_data_type == meant
    quantized = deepspeed_config(recipe(quantized_gradients=True), engine, 1)
    assert "communication_data_type" not in quantized


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_are_reduced_during_the_backward_pass(stage):
    """DeepSpeed's default overlaps at stage 3 alone."""
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig(deepspeed_config(recipe(), EngineConfig(zero_stage=stage, micro_batch_size=8), 1))
    assert read.zero_config.overlap_comm is True


@pytest.mark.parametrize(("preset", "most"), [("125m", 7), ("1b", 78), ("7b", 401)])
def test_stage_2_reduces_to_owners_and_does_not_all_reduce(preset, most):
    """Half the bytes, while a bucket has few owners: on so many ranks. DeepSpeed's default always all-reduces."""
    from deepspeed.runtime.config import DeepSpeedConfig

    config = load_run(PRESETS / f"{preset}.toml", [], needs="model").config
    for ranks in (most, most + 1):
        train = config.train.model_copy(update={"global_batch_size": ranks})
        given = (config.recipe.model_copy(update={"train": train}), EngineConfig(zero_stage=2, micro_batch_size=1))
        emitted = deepspeed_config(*given, ranks, "cuda", config.data.tokenizer.vocabulary_size)
        assert DeepSpeedConfig(emitted).zero_config.use_multi_rank_bucket_allreduce == (ranks > most)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion"])
def test_deepspeed_never_clips(optimizer):
    """DeepSpeed's default is 1, so 0 is stated: Assay clips by itself, without a wait."""
    assert deepspeed_config(recipe(optimizer), EngineConfig(zero_stage=3), 1)["gradient_clipping"] == 0.0


def test_ranks_that_share_rows_take_no_share_of_the_batch():
    for split in ({"sequence_parallel_size": 2}, {"tensor_parallel_size": 2}):
        emitted = deepspeed_config(recipe(), EngineConfig(micro_batch_size=4, **split), 6)
        assert emitted["gradient_accumulation_steps"] == 2


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="global_batch_size = 24"):
        deepspeed_config(recipe(), EngineConfig(micro_batch_size=5), 1)


def test_memory_is_pinned_for_a_gpu_only_and_swap_buffers_hold_the_largest_piece():
    engine = EngineConfig(zero_stage=3, offload_parameters="nvme", nvme_path="swap")
    on_gpu = deepspeed_config(recipe(), engine, 1, "cuda", 100_000)["zero_optimization"]["offload_param"]
    assert on_gpu["pin_memory"]
    assert on_gpu["buffer_size"] >= 100_096 * 32
    assert on_gpu["nvme_path"] == "swap"
    assert not deepspeed_config(recipe(), engine, 1)["zero_optimization"]["offload_param"]["pin_memory"]


def test_tensor_parallelism_cuts_every_matrix_of_a_block_once():
    from pretrain.model.decoder import Decoder

    for name, parameter in Decoder(recipe().model, 100).named_parameters():
        cut = [bool(re.match(pattern, name)) for pattern in (COLUMN, ROW)]
        assert sum(cut) == (parameter.dim() == 2 and ".layers." in name), name


CHOSEN = {
    "steps_per_print", "allgather_bucket_size", "reduce_bucket_size", "sub_group_size", "buffer_count", "buffer_size",
    "pin_memory", "overlap_comm", "reduce_scatter", "contiguous_gradients", "use_multi_rank_bucket_allreduce",
    "zero_optimization", "offload_optimizer", "offload_param", "leaf_module", "classes", "names", "name_suffixes",
    "memory_efficient_linear",
}  # fmt: skip
"""Of what we emit: tables that are joined, and values that no setting decides, which an expert may replace."""


@pytest.mark.parametrize(("engine", "precision"), itertools.product(ENGINES, PRECISIONS))
def test_each_key_that_is_emitted_is_decided_by_a_setting_or_can_be_replaced(engine, precision):
    quantized = {"quantized_weights": True, "quantized_gradients": True} if engine["zero_stage"] == 3 else {}
    ranks = engine.get("tensor_parallel_size", 1)
    emitted = deepspeed_config(recipe("lion", precision=precision, **quantized), EngineConfig(**engine), ranks)
    for key in deepspeed_keys.keys_of(emitted):
        parents = {key[: match.start()] for match in re.finditer(r"\.|$", key)}
        assert parents & deepspeed_keys.OWNED.keys() or key.rpartition(".")[2] in CHOSEN, key


def test_what_is_passed_joins_tables_and_replaces_what_no_setting_decides():
    passed = {"wall_clock_breakdown": True, "zero_optimization": {"reduce_bucket_size": 7, "overlap_comm": True}}
    engine = {"zero_stage": 2, "micro_batch_size": 8}
    plain = deepspeed_config(recipe(), EngineConfig(**engine), 1)
    found = deepspeed_config(recipe(), EngineConfig(**engine, deepspeed=passed), 1)
    assert found == {
        **plain,
        "wall_clock_breakdown": True,
        "zero_optimization": {**plain["zero_optimization"], **passed["zero_optimization"]},
    }
    refuse_unknown_keys(found)


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        ({"wall_clock_breakdwon": True}, "knows no key wall_clock_breakdwon"),
        ({"zero_optimization": {"overlap_com": True}}, "overlap_com"),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, "reduce_bucket_size"),
    ],
)
def test_what_deepspeed_does_not_know_is_named(passed, words):
    with pytest.raises(ConfigError, match=words):
        refuse_unknown_keys(deepspeed_config(recipe(), EngineConfig(micro_batch_size=8, deepspeed=passed), 1))


def test_nobody_else_writes_the_dictionary():
    folder = Path(__file__).parents[3] / "pretrain"
    writers = {path.name for path in folder.rglob("*.py") if '"zero_optimization":' in path.read_text()}
    assert writers == {"deepspeed_config.py"}
