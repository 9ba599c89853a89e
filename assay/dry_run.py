"""`assay train --dry-run`: sizes, layout and memory, without starting.

It starts nothing and makes no artifact.

Promise: it refuses with the message and the exit code of a start on this machine (`start_preflight.py`), or
with `--device` and `--gpu-memory` on nodes of that kind, of which this one need not be. Not checked, so a start may
still refuse them: the gate, the rows, `train.initial_weights`, `train.continue_from`, the teacher, files of tasks. It
imports neither torch nor DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from assay.config import LoadedRun
from assay.start_preflight import (
    corpus_figures,
    local_hardware,
    refuse_groups,
    refuse_missing_packages,
    refuse_passed_keys,
    require_site_rules,
)
from assay.training_recipe import pinned
from governance.errors import ConfigError, PipelineError
from governance.files import json_text
from governance.stage import Runtime
from pretrain.config.model import ModelConfig
from pretrain.config.training import EngineConfig, TrainRecipe
from pretrain.data.batch_size import batch_sizes
from pretrain.distillation.teacher import online_teacher
from pretrain.distributed.layout import data_ranks
from pretrain.distributed.process_group import Ranks
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.engine.deepspeed_config import in_words as reduction_in_words
from pretrain.finetuning.trained_parameters import trained_in_words, training_flops
from pretrain.model.flops import active_parameter_count, flops_per_token, parameter_count
from pretrain.preflight.compatibility import check_start
from pretrain.preflight.forecast import forecast
from pretrain.preflight.hardware import Hardware, cpu_hardware
from pretrain.preflight.memory_room import in_words, needed_memory, refuse_what_cannot_fit


def planned(
    engine: EngineConfig, ranks: Ranks, device: Literal["cpu", "cuda"] | None, gpu_memory: int | None
) -> Hardware | None:
    """Hardware of a rank on nodes of `device`, or this machine's.

    Their GPUs have `gpu_memory` bytes; None takes this machine's hardware.

    Raises:
        ConfigError: a start would compute on something else, or the memory of its GPUs is not given.
    """
    if device is None and gpu_memory is None:
        return None
    if device == "cpu" and gpu_memory is not None:
        raise ConfigError("--gpu-memory requires --device cuda: a plan for CPUs has no GPU")
    device = device or "cuda"
    if engine.device not in ("auto", device):
        raise ConfigError(
            f"--device {device}: a start would compute on {engine.device!r}, as engine.device says. Plan with "
            f"--set 'engine.device=\"{device}\"', or leave --device out."
        )
    if device == "cpu":
        return cpu_hardware(ranks)
    if gpu_memory is None:
        raise ConfigError("--device cuda: add the memory of a GPU of those nodes, for example --gpu-memory 80GiB")
    return Hardware(ranks, "cuda", gpus=ranks.local_world_size, device_bytes=gpu_memory)


def dry_run(run: LoadedRun, runtime: Runtime, ranks: Ranks, hardware: Hardware | None = None) -> Iterator[str]:
    """Lines of the plan.

    A refusal follows all lines that do not depend on its fix.

    `hardware` is that of a rank; None takes this machine's.

    Raises:
        GateClosed: the run is not under the rules of its site.
        ConfigError: the settings do not work on these ranks, or the GPU that they ask for is missing.
        PipelineError: the model does not fit.
    """
    require_site_rules(run)
    recipe, engine = run.config.recipe, run.config.engine
    vocabulary, source, document_tokens, _ = corpus_figures(run, runtime)
    yield f"vocabulary  {vocabulary:,} {source}"
    yield from _sizes(recipe, vocabulary)
    refuse_missing_packages(run.config.tracking)
    refuse_groups(recipe, vocabulary, run.folder)
    hardware = hardware or local_hardware(engine, ranks)
    check_start(recipe, run.settings, hardware)
    yield f"layout      {_layout(recipe, engine, ranks)}, on {hardware.device}"
    teacher = None
    if recipe.train.distillation is not None:
        teacher, words = online_teacher_of(run, runtime, vocabulary)
        yield f"teacher     {words}"
    yield f"memory      {in_words(needed_memory(recipe, engine, vocabulary, hardware, teacher), hardware)}"
    yield f"reduction   {reduction_in_words(recipe, engine, vocabulary, ranks.world_size)}"
    refuse_passed_keys(recipe, engine, ranks.world_size)
    if hardware.device == "cuda":
        found = forecast(recipe, engine, vocabulary, ranks, teacher=teacher, document_tokens=document_tokens)
        yield f"forecast    {found.in_words()}"
    dictionary = deepspeed_config(recipe, engine, ranks.world_size, hardware.device or "cpu", vocabulary)
    yield f"deepspeed   {json_text(dictionary).rstrip()}"
    refuse_what_cannot_fit(recipe, engine, vocabulary, hardware, teacher)
    unchecked = "the gate, the rows, train.initial_weights, train.continue_from, the teacher and tasks"
    yield f"result      would start; a start also checks {unchecked}"


def online_teacher_of(run: LoadedRun, runtime: Runtime, vocabulary: int) -> tuple[ModelConfig | None, str]:
    """The teacher that runs alongside the student, and its cost in words."""
    recipe = pinned(run)
    try:
        model = online_teacher(recipe, runtime)
    except PipelineError as error:
        return None, f"not counted, and refused at the start: {error}"
    if model is None:
        return None, "does not run in this training: tokens are drawn from it beforehand (assay teacher-logits)"
    flops = flops_per_token(model, vocabulary, recipe.train.sequence_length) // 3
    share = flops / training_flops(recipe, vocabulary)
    size = parameter_count(model, vocabulary)
    return model, f"{size:,} parameters alongside the student, {flops:,} more FLOPs per token ({100 * share:.0f} %)"


def ranks_of(total: int | None, a_node: int) -> Ranks:
    """Rank 0 of `total` ranks, `a_node` of them on each node.

    All ranks share one node where `a_node` is None.

    Raises:
        ConfigError: the nodes would not be alike.
    """
    world = total or a_node
    if world % a_node:
        raise ConfigError(f"--ranks {world} is not a multiple of --nproc {a_node}, the ranks of a node; change one")
    return Ranks(0, world, 0, a_node)


def _sizes(recipe: TrainRecipe, vocabulary: int) -> Iterator[str]:
    """The model's, and the run's."""
    model, train = recipe.model, recipe.train
    parameters, active = parameter_count(model, vocabulary), active_parameter_count(model, vocabulary)
    experts = f" ({active:,} for each token)" if active < parameters else ""
    flops, learn = training_flops(recipe, vocabulary), trained_in_words(recipe, vocabulary)
    yield f"model       {parameters:,} parameters{experts}{learn}, {flops:,} FLOPs per token"
    sizes = batch_sizes(train)
    grown = " -> ".join(f"{size * train.sequence_length:,}" for size in sizes.sizes)
    total = sizes.before(train.steps + 1) * train.sequence_length
    yield f"tokens      {grown} per step, {total:,} in {train.steps:,} steps, {total * flops:.3g} FLOPs"


def _layout(recipe: TrainRecipe, engine: EngineConfig, ranks: Ranks) -> str:
    copies = data_ranks(ranks.world_size, engine)
    experts = f", experts over {engine.expert_parallel_size}" if engine.expert_parallel_size > 1 else ""
    passes = [size // (engine.micro_batch_size * copies) for size in batch_sizes(recipe.train).sizes]
    return (
        f"{ranks.world_size} rank(s), {ranks.local_world_size} per node: {copies} data x "
        f"{engine.sequence_parallel_size} sequence x {engine.tensor_parallel_size} tensor{experts}; "
        f"ZeRO stage {engine.zero_stage}, {recipe.train.precision}; "
        f"{' -> '.join(map(str, passes))} micro batch(es) of {engine.micro_batch_size} row(s) per data rank and step"
    )
