"""Each rule of `compatibility.py` refuses what it should, names the fix, and lets valid settings pass."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ConfigError, MissingInput
from governance.stage import Recipe
from pretrain import train
from pretrain.checkpoint.retention import kept_steps
from pretrain.config.model import ModelConfig, MoeConfig
from pretrain.config.optim import GroupConfig, OptimConfig
from pretrain.config.training import (
    CheckpointConfig,
    EngineConfig,
    EvaluationConfig,
    MixtureConfig,
    ProfileConfig,
    RampConfig,
    Settings,
    SkipConfig,
    TaskConfig,
    TrainConfig,
    TrainRecipe,
)
from pretrain.distributed.process_group import Ranks, device_of
from pretrain.preflight.compatibility import (
    RULES,
    WARNINGS,
    check_start,
    check_together,
    faults_of,
    no_checkpoint_is_validated,
)
from pretrain.preflight.hardware import Hardware, Start, hardware_of

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 128}


def case(where: dict | None = None, **settings) -> tuple[TrainRecipe, Settings, Hardware]:
    """A rule's arguments: compatible sections, except for `settings` (by the field's name).

    `where`: device, number of ranks, capability, GPUs, and sections that enter no key.
    """
    values = {
        ModelConfig: {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2},
        TrainConfig: {"sequence_length": 64, "global_batch_size": 8, "steps": 10},
        EngineConfig: {"micro_batch_size": 2},
        OptimConfig: {"learning_rate": 0.1},
    }
    made = {}
    for section, fields in values.items():
        own = {name: settings.pop(name) for name in list(settings) if name in section.model_fields}
        made[section] = section(**{**fields, **own})
    assert not settings
    known = dict(where or {})
    evaluation = known.pop("evaluation", EvaluationConfig())
    recipe = TrainRecipe(
        model=made[ModelConfig], optim=made[OptimConfig], train=made[TrainConfig], evaluation=evaluation
    )
    sections = {name: known.pop(name) for name in ("checkpoint", "profile") if name in known}
    local = known.pop("local_world_size", 1)
    ranks = Ranks(0, known.pop("world_size"), 0, local) if "world_size" in known else None
    return recipe, Settings(engine=made[EngineConfig], **sections), Hardware(ranks, **known)


PAIRS = {"encoder_layers": 2, "norm_position": "post", "position_embedding": "sinusoidal", "num_key_value_heads": 4}
INVARIANT = {"rank_invariant": True, "threads": 1}
COMPILED = {"compile": True}
LONG = {"sequence_length": 2048, "max_position_embeddings": 2048}
CPU, CUDA = {"device": "cpu"}, {"device": "cuda", "capability": (9, 0)}
EXPERTS = MoeConfig(num_local_experts=4, num_experts_per_tok=2)
DIVIDED = {"moe": EXPERTS, "expert_parallel_size": 2}
NOT_SCATTERED = {"zero_optimization": {"reduce_scatter": False}}
NOT_CONTIGUOUS = {"zero_optimization": {"contiguous_gradients": False}}
OFFLOAD = {"zero_stage": 3, "offload_optimizer": "cpu"}
TASKS = EvaluationConfig(tasks=(TaskConfig(name="t", format="choices", path="t.jsonl"),))
GRADIENTS = {"quantized_gradients": True, "zero_stage": 3}
OF_8 = {**CUDA, "world_size": 4, "gpus": 8}
"""A node that shows 8 GPUs."""
REFUSED = [
    ("rows_fit_the_positions", {"sequence_length": 256}, "lower the former"),
    ("schedule_fits_the_steps", {"warmup_steps": 8, "decay_steps": 3}, "shorten the warm-up"),
    ("decay_leaves_the_weights", {"learning_rate": 0.01, "weight_decay": 500}, "by -4"),
    (
        "decay_leaves_the_weights",
        {"optimizer": "muon", "muon_learning_rate": 0.02, "muon_weight_decay": 50.0},
        "multiplies these weights by 0;",
    ),
    ("half_precision_needs_a_stage", {"zero_stage": 0, "precision": "bf16"}, "'autocast'"),
    ("fp16_needs_cuda", {"precision": "fp16", "where": CPU}, "'bf16'"),
    ("fp8_needs_a_gpu_that_has_it", {"precision": "fp8", "where": CPU}, "capability 8.9"),
    ("fp8_needs_a_gpu_that_has_it", {"precision": "fp8", "where": {**CUDA, "capability": (8, 0)}}, "(8, 0)"),
    ("fp8_shapes_divide", {"precision": "fp8", "intermediate_size": 136}, "intermediate_size = 136"),
    (
        "fp8_shapes_divide",
        {"precision": "fp8", "sequence_length": 48, "sequence_parallel_size": 2, "micro_batch_size": 1},
        "sequence_parallel_size = 24",
    ),
    ("fp8_excludes_experts", {"precision": "fp8", "moe": EXPERTS}, "'bf16'"),
    ("bf16_masters_stay_on_the_device", {"precision": "bf16_masters", **OFFLOAD}, "precision = 'bf16'"),
    (
        "tensor_parallelism_supports_the_model",
        {"tensor_parallel_size": 2, "qk_norm": True, "qk_norm_whole": True},
        "part of the heads",
    ),
    ("flash_needs_cuda_and_16_bits", {"attention": "flash", "where": CPU}, "attention = 'auto'"),
    ("flash_needs_cuda_and_16_bits", {"attention": "flash", "precision": "fp32"}, "precision = 'bf16'"),
    ("flash_needs_cuda_and_16_bits", {"attention": "flash", "where": {**CUDA, "capability": (9, 0)}}, "is installed"),
    ("quantized_collectives_need_cuda", {"quantized_weights": True, "zero_stage": 3, "where": CPU}, "CUDA kernels"),
    (
        "quantized_collectives_need_cuda",
        {"quantized_gradients": True, "zero_stage": 2, "where": CUDA},
        "zero_stage = 3",
    ),
    (
        "quantized_collectives_need_cuda",
        {"quantized_weights": True, "zero_stage": 3, "precision": "autocast"},
        "'bf16'",
    ),
    ("quantized_gradients_need_whole_nodes", {**GRADIENTS, "where": {**OF_8, "local_world_size": 4}}, "0 node(s)"),
    (
        "quantized_gradients_need_whole_nodes",
        {**GRADIENTS, "where": {**OF_8, "world_size": 12, "local_world_size": 4}},
        "start 8 ranks per node",
    ),
    ("quantized_gradients_need_whole_nodes", {**GRADIENTS, "tensor_parallel_size": 2}, "other parts of a matrix"),
    ("bf16_reduction_suits_the_gradients", {"gradient_reduction": "bf16", "precision": "autocast"}, "'fp32'"),
    ("bf16_reduction_suits_the_gradients", {"gradient_reduction": "bf16", **GRADIENTS}, "quantized_gradients"),
    (
        "deepspeed_keys_conflict_with_no_setting",
        {"deepspeed": {"bf16": {"enabled": True}}},
        "bf16 (set train.precision)",
    ),
    (
        "deepspeed_keys_conflict_with_no_setting",
        {"deepspeed": {"zero_optimization": {"stage": 2}}},
        "engine.zero_stage",
    ),
    ("deepspeed_keys_conflict_with_no_setting", {"deepspeed": {"zero_optimization": 2}}, "not a table"),
    ("deepcompile_needs_cuda", {"deepcompile": True, "where": CPU}, "compile = true"),
    ("deepcompile_needs_cuda", {"deepcompile": True, "zero_stage": 0, "precision": "fp32"}, "zero_stage = 1"),
    ("deepcompile_needs_cuda", {"deepcompile": True, "sequence_parallel_size": 2}, "compile = true"),
    ("parameter_offload_needs_stage_3", {"offload_parameters": "cpu", "zero_stage": 2}, "zero_stage = 3"),
    ("optimizer_offload_needs_its_stage", {"offload_optimizer": "cpu", "zero_stage": 0, "precision": "fp32"}, "= 1"),
    ("optimizer_offload_needs_its_stage", {"offload_optimizer": "nvme", "zero_stage": 2, "nvme_path": "x"}, "= 3"),
    ("nvme_has_a_folder", {"offload_parameters": "nvme", "zero_stage": 3}, "nvme_path"),
    ("nvme_has_a_folder", {"offload_optimizer": "nvme", "zero_stage": 3}, "offload_optimizer = 'nvme'"),
    ("hpz_needs_stage_3", {"hpz_partition_size": 2, "zero_stage": 2}, "zero_stage = 3"),
    ("hpz_needs_stage_3", {"hpz_partition_size": 2, "zero_stage": 3, "where": {"world_size": 3}}, "divisor"),
    ("sequence_parallelism_divides", {"sequence_parallel_size": 3}, "sequence_length = 64"),
    ("sequence_parallelism_divides", {"sequence_parallel_size": 4}, "num_key_value_heads = 2"),
    ("experts_see_whole_rows", {"sequence_parallel_size": 2, "moe": EXPERTS}, "sequence_parallel_size = 1"),
    ("expert_parallelism_divides", {"expert_parallel_size": 2}, "no layer has experts"),
    ("expert_parallelism_divides", {"expert_parallel_size": 3, "moe": EXPERTS}, "num_local_experts = 4"),
    ("expert_parallelism_divides", {**DIVIDED, "where": {"world_size": 3}}, "multiple of 2"),
    ("expert_parallelism_supports_the_run", {**DIVIDED, "zero_stage": 3}, "zero_stage = 1 or 2"),
    ("expert_parallelism_supports_the_run", {**DIVIDED, "precision": "fp16"}, "precision = 'bf16'"),
    ("expert_parallelism_supports_the_run", {**DIVIDED, "compile": True}, "set compile = false"),
    ("expert_parallelism_supports_the_run", {**DIVIDED, "deepcompile": True}, "set deepcompile = false"),
    ("expert_parallelism_supports_the_run", {**DIVIDED, "deepspeed": NOT_SCATTERED}, "reduce_scatter = false"),
    ("expert_parallelism_supports_the_run", {**DIVIDED, "deepspeed": NOT_CONTIGUOUS}, "contiguous_gradients = false"),
    ("expert_groups_are_alike", {**DIVIDED, "groups": (GroupConfig(pattern=r"experts\.0\."),)}, "layer 0"),
    ("tensor_parallelism_divides", {"tensor_parallel_size": 4}, "num_key_value_heads = 2"),
    ("tensor_parallelism_supports_the_model", {"tensor_parallel_size": 2, "optimizer": "muon"}, "whole matrices"),
    ("tensor_parallelism_supports_the_model", {"tensor_parallel_size": 2, "moe": EXPERTS}, "experts are not split"),
    ("tensor_parallelism_supports_the_model", {"tensor_parallel_size": 2, "precision": "fp8"}, "'bf16'"),
    (
        "tensor_parallelism_keeps_state_out_of_files",
        {"tensor_parallel_size": 2, "zero_stage": 3, "offload_optimizer": "nvme", "nvme_path": "/x"},
        "set it to 'cpu'",
    ),
    ("hpz_needs_stage_3", {"hpz_partition_size": 2, "zero_stage": 3, "tensor_parallel_size": 2}, "over all ranks"),
    ("splits_divide_the_ranks", {"tensor_parallel_size": 2, "where": {"world_size": 3}}, "multiple of 2"),
    ("the_batch_divides", {"micro_batch_size": 3, "where": {"world_size": 1}}, "engine.micro_batch_size = 2"),
    ("the_batch_divides", {"micro_batch_size": 4, "where": {"world_size": 4}}, "4 x 4"),
    (
        "evaluation_rows_divide",
        {"sequence_parallel_size": 3, "sequence_length": 768, "where": {"evaluation": TASKS}},
        "256 tokens of an evaluation row",
    ),
    ("frozen_parameters_have_a_base", {"trained": ["lm_head"]}, "set train.initial_weights"),
    ("learning_parameters_exist", {"trained": ["mlp.router"]}, "the nearest names are"),
    ("frozen_parameters_suit_the_layout", {"trained": ["lm_head"], "precision": "fp8"}, "set it to 'bf16'"),
    (
        "bf16_masters_stay_on_the_device",
        {"precision": "bf16_masters", "zero_stage": 3, "offload_optimizer": "nvme", "nvme_path": "x"},
        "'nvme'",
    ),
    ("students_learn_whole_rows", {"distillation": {"teacher": "t"}, "compile": True}, "engine.compile: the teacher"),
    ("students_learn_whole_rows", {"distillation": {}}, "name a checkpoint or a folder"),
    (
        "students_begin_once",
        {"distillation": {"teacher": "t"}, "continue_from": "checkpoint/c"},
        "from the checkpoint's export with train.initial_weights",
    ),
    (
        "students_begin_once",
        {"distillation": {"teacher": "t", "start": "teacher"}, "initial_weights": "w"},
        "name the base of the student",
    ),
    ("rank_invariance_is_measured", {"rank_invariant": True, "where": CPU}, "give their number, such as threads = 1"),
    ("rank_invariance_is_measured", {**INVARIANT, "where": {"world_size": 6}}, "on 6 ranks: their sums are added in p"),
    ("rank_invariance_is_measured", {**INVARIANT, "where": CUDA}, "on a GPU: not measured"),
    ("rank_invariance_is_measured", {**INVARIANT, "precision": "bf16_masters"}, "set 'fp32' or 'bf16'"),
    ("rank_invariance_is_measured", {**INVARIANT, "moe": EXPERTS}, "with model.moe: equal bits on any number"),
    ("rank_invariance_is_measured", {**INVARIANT, "compile": True}, "with engine.compile"),
    ("rank_invariance_is_measured", {**INVARIANT, "zero_stage": 2, "tensor_parallel_size": 2}, "tensor_parallel_size"),
    ("rank_invariance_is_measured", {**INVARIANT, **OFFLOAD}, "with engine.offload_optimizer"),
    ("rank_invariance_is_measured", {**INVARIANT, "patience": 2}, "with train.patience (validation losses depend"),
    ("only_adamw_is_offloaded", {"optimizer": "muon", **OFFLOAD}, "offload_optimizer = 'none'"),
    ("encoder_decoders_run_plainly", {**PAIRS, "tensor_parallel_size": 2}, "engine.tensor_parallel_size = 2"),
    (
        "own_optimizers_are_elementwise_where_ranks_share",
        {"optimizer": "own", "function": "lab:make", "zero_stage": 2},
        "optim.elementwise = true",
    ),
]


@pytest.mark.parametrize(("rule", "settings", "mend"), REFUSED)
def test_a_rule_refuses_with_its_fix(rule, settings, mend):
    assert mend in next({known.__name__: known for known in RULES}[rule](Start(*case(**settings))))


def test_the_page_and_the_table_have_the_same_rules():
    """Each rule once, on a line of its own or with its like; and no line without a rule."""
    text = (Path(__file__).parents[3] / "docs" / "engine.md").read_text()
    part = text.split("## Incompatible settings", 1)[1].split("\n## ", 1)[0]
    for page, table in zip(part.split("Warnings:"), (RULES, WARNINGS), strict=True):
        lines = [line.strip("|").split("|")[-1] for line in page.splitlines() if line.startswith("|")]
        output = [re.findall(r"`(\w+)`", cell) for cell in lines[2:]]
        assert all(output)
        assert sorted(name for names in output for name in names) == sorted(rule.__name__ for rule in table)


def test_every_rule_is_tested_and_none_refuses_what_suits():
    assert {name for name, _, _ in REFUSED} == {rule.__name__ for rule in RULES}
    for where in ({}, {**CPU, "world_size": 1}, {**CPU, "world_size": 4}, {**CUDA, "world_size": 2}):
        assert faults_of(*case(where)) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0, "precision": "autocast"},
        {"zero_stage": 0, "precision": "fp32"},
        {"precision": "fp16", "where": CUDA},
        {"precision": "fp8", "where": CUDA},
        {"precision": "fp8", "where": {"device": "cuda"}},  # a login node does not know its kind
        {"quantized_weights": True, **GRADIENTS, "where": CUDA},
        {**GRADIENTS, "global_batch_size": 32, "where": {**OF_8, "world_size": 16, "local_world_size": 8}},
        {"zero_stage": 3, "where": {**OF_8, "local_world_size": 4}},
        {"sequence_parallel_size": 2, "where": {"world_size": 2}, "micro_batch_size": 8},
        {"tensor_parallel_size": 2, "zero_stage": 3, "where": {"world_size": 4}},
        {"offload_optimizer": "cpu", "offload_parameters": "nvme", "nvme_path": "x", "zero_stage": 3},
        {"offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": "x", "zero_stage": 3},
        {"optimizer": "muon", "zero_stage": 3},
        {"moe": EXPERTS, "where": {"world_size": 2}},
        {**DIVIDED, "zero_stage": 2, "groups": (GroupConfig(pattern=r"experts\.\d+\.up"),), "where": {"world_size": 4}},
        {"sequence_parallel_size": 2, "where": {"evaluation": TASKS}},
    ],
)
def test_what_works_passes(settings):
    assert faults_of(*case(**settings)) == []


def test_what_alters_what_is_learned_enters_the_key_and_the_layout_does_not():
    learned = {"quantized_weights", "quantized_gradients"}
    assert learned < TrainConfig.model_fields.keys()
    assert not learned & EngineConfig.model_fields.keys()
    recipe, _, _ = case(moe=EXPERTS)
    keys = set()
    for name in (None, *learned):
        train = recipe.train.model_copy(update={name: True} if name else {})
        keys.add(Recipe("train", 1, recipe.model_copy(update={"train": train})).key([]))
    assert len(keys) == 3


def test_all_faults_are_reported_at_once():
    recipe, settings, _ = case(sequence_length=256, zero_stage=0)
    with pytest.raises(ConfigError, match=r"(?s)max_position_embeddings.*before the first"):
        check_together(recipe, settings)


def test_both_moments_know_that_tasks_are_requested():
    recipe, settings, _ = case(
        sequence_length=768, max_position_embeddings=768, sequence_parallel_size=3, num_key_value_heads=3,
        num_attention_heads=3, hidden_size=48,
    )  # fmt: skip
    check_together(recipe, settings)
    recipe = recipe.model_copy(update={"evaluation": TASKS})
    with pytest.raises(ConfigError, match="evaluation row"):
        check_together(recipe, settings)
    with pytest.raises(ConfigError, match="evaluation row"):
        check_start(recipe, settings, Hardware(Ranks(0, 3, 0, 3), "cpu"))


def test_a_requested_device_is_known_before_the_start():
    recipe, settings, _ = case(precision="fp16", device="cpu")
    with pytest.raises(ConfigError, match="fp16"):
        check_together(recipe, settings)
    check_together(recipe, Settings())  # "auto": a login node may have no GPU
    with pytest.raises(ConfigError, match="fp16"):
        check_start(recipe, Settings(), Hardware(Ranks(), "cpu"))


BEST = CheckpointConfig(every_steps=2, keep_best=3)
FOUR_OF_EIGHT = {**CUDA, "world_size": 8, "local_world_size": 4, "gpus": 8}
WARNED_OF = [
    ("expert_ranks_span_nodes", {**DIVIDED, "where": {"world_size": 2}}, "cross the network"),
    ("tensor_ranks_span_nodes", {"tensor_parallel_size": 2, "where": {"world_size": 2}}, "cross the network"),
    (
        "hpz_ranks_span_nodes",
        {"hpz_partition_size": 4, "zero_stage": 3, "where": {"world_size": 4, "local_world_size": 2}},
        "crosses the network too",
    ),
    (
        "quantized_gradients_stay_on_a_node",
        {**GRADIENTS, "where": {**CUDA, "world_size": 1, "gpus": 1}},
        "nothing is quantized",
    ),
    ("shared_memory_is_for_the_cpu", {"shared_memory_collectives": True, "where": CUDA}, "no effect"),
    ("soft_caps_on_cpu_are_slow", {"attn_logit_softcapping": 50.0, "where": CPU}, "64 x 64"),
    ("long_rows_on_cpu_are_slow", {**LONG, "where": CPU}, "2048 x 2048"),
    ("gpus_compute_uncompiled", {"where": CUDA}, "set compile = true"),
    ("split_losses_are_not_fused", {"tensor_parallel_size": 2, "where": {**CUDA, "world_size": 2}}, "several passes"),
    ("gpus_are_idle", {"where": {**CUDA, "world_size": 1, "gpus": 8}}, "--nproc 8"),
    ("gpus_are_idle", {"micro_batch_size": 1, "where": FOUR_OF_EIGHT}, "8 GPUs and 4 rank"),
    ("no_checkpoint_is_validated", {"where": {"checkpoint": BEST}, "validate_every_steps": 5}, "no effect"),
    ("no_checkpoint_is_validated", {"where": {"checkpoint": BEST}, "validate_every_steps": 0}, "keep_best = 3"),
    ("no_checkpoint_is_validated", {"where": {"checkpoint": BEST}, "validate_every_steps": 10}, "last step, 10"),
    (
        "steps_are_within_the_run",
        {"batch_size_ramp": (RampConfig(until_step=10, global_batch_size=4),)},
        "train.batch_size_ramp[entry 1].until_step (step 11)",
    ),
    (
        "steps_are_within_the_run",
        {"mixture": (MixtureConfig(from_step=11, weights={"a": 1}),)},
        "train.mixture[entry 1].from_step (step 11)",
    ),
    ("steps_are_within_the_run", {"where": {"checkpoint": CheckpointConfig(every_steps=11)}}, "checkpoint.every_steps"),
    ("steps_are_within_the_run", {"where": {"evaluation": EvaluationConfig(every_steps=11)}}, "evaluation.every_steps"),
    ("steps_are_within_the_run", {"skip": SkipConfig(warmup_steps=10)}, "train.skip.warmup_steps"),
    ("steps_are_within_the_run", {"where": {"profile": ProfileConfig(from_step=11)}}, "profile.from_step (step 11)"),
    (
        "profiled_ranks_exist",
        {"where": {"profile": ProfileConfig(from_step=2, ranks=(0, 2)), "world_size": 2, "local_world_size": 2}},
        "names 2: this run has ranks 0 to 1",
    ),
]


@pytest.mark.parametrize(("rule", "settings", "words"), WARNED_OF)
def test_what_works_badly_is_reported(rule, settings, words, caplog):
    arguments = case(**settings)
    [found] = [one for one in WARNINGS if one.__name__ == rule]
    assert words in next(found(Start(*arguments)))
    with caplog.at_level(logging.WARNING):
        check_start(*arguments)
    assert words in caplog.text


def test_every_warning_is_tested():
    assert {name for name, _, _ in WARNED_OF} == {rule.__name__ for rule in WARNINGS}


@pytest.mark.parametrize(
    "settings",
    [
        {
            **GRADIENTS,
            "compile": True,
            "hpz_partition_size": 8,
            "where": {**OF_8, "world_size": 16, "local_world_size": 8},
        },
        {"compile": True, "where": {**CUDA, "world_size": 8, "local_world_size": 8, "gpus": 8}},
        {
            "compile": True,
            "where": {**CUDA, "world_size": 8, "local_world_size": 8, "gpus": 1},
        },  # Slurm shows each task its own
        {"where": {**CPU, "world_size": 1, "gpus": 8}},
        {**LONG, "sequence_length": 1024, "where": CPU},
        {**LONG, **COMPILED, "where": CUDA},
        {**COMPILED, "sequence_length": 64, "where": {"device": None}},  # not known yet
        *({**refuses_compile, "where": CUDA} for refuses_compile in (DIVIDED, PAIRS, {"deepcompile": True})),
        {"where": {"checkpoint": CheckpointConfig(every_steps=3, keep_best=1)}, "validate_every_steps": 3},
        {"where": {"checkpoint": CheckpointConfig(every_steps=2, keep_best=1)}, "validate_every_steps": 4},
        {"where": {"checkpoint": CheckpointConfig(every_steps=7)}, "validate_every_steps": 5},
        {"where": {"checkpoint": CheckpointConfig()}},  # defaults of 100 steps, and of the guard's 200, in a run of 10
        {
            "batch_size_ramp": (RampConfig(until_step=9, global_batch_size=4),),
            "mixture": (MixtureConfig(from_step=10, weights={"a": 1}),),
            "skip": SkipConfig(warmup_steps=9),
            "validate_every_steps": 10,
        },
    ],
)
def test_what_works_well_is_not_warned_of(settings):
    assert [output for rule in WARNINGS for output in rule(Start(*case(**settings)))] == []


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 30), st.integers(1, 4))
def test_keep_best_is_warned_of_exactly_where_it_keeps_nothing_more(saved, validated, steps, keep_best):
    """Compared with the rules of the loop and of retention, applied checkpoint after checkpoint."""

    def due(step, every):
        return step == steps or (every > 0 and step % every == 0)

    config = CheckpointConfig(every_steps=saved, keep_best=keep_best, keep_last=1)
    validations = [{"step": step, "loss": 1.0} for step in range(1, steps + 1) if due(step, validated)]
    held, differs = [], False
    for step in range(1, steps + 1):
        if due(step, saved):
            held.append(step)
            known = [row for row in validations if row["step"] <= step]
            kept = kept_steps(held, config, known)
            differs |= bool(kept.keys() - kept_steps(held, config.model_copy(update={"keep_best": 0}), known).keys())
            held = sorted(kept)
    arguments = case({"checkpoint": config}, validate_every_steps=validated, steps=steps)
    assert (not list(no_checkpoint_is_validated(Start(*arguments)))) == differs


def test_training_knows_what_the_warnings_need(tmp_path, run_training, caplog):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_open_data", _stop)
        with pytest.raises(MissingInput, match="stop here"), caplog.at_level(logging.WARNING):
            run_training(tmp_path, every_steps=4, validate_every_steps=3, keep_best=1)
    assert "checkpoint.keep_best = 1 has no effect" in caplog.text


def _stop(*_):
    raise MissingInput("stop here")


def test_no_gpu_where_one_is_requested(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(Ranks()).type == "cpu"
    with pytest.raises(ConfigError, match="device = 'auto' or 'cpu'"):
        device_of(Ranks(), "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of(Ranks(), "cpu").type == "cpu"
    with pytest.raises(ConfigError, match="one rank per GPU"):
        device_of(Ranks(1, 2, 1, 2))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 9))
    found = hardware_of(Ranks(), device_of(Ranks()))
    assert (found.device, found.capability, found.gpus, found.device_bytes) == ("cuda", (9, 0), 1, 5)
    assert hardware_of(Ranks(), device_of(Ranks(), "cpu")).gpus == 0
