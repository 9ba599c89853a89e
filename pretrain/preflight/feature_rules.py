"""Rules of `compatibility.py` on single features, and on slow ways of computing.

Experts, frozen parameters and adapters, distillation, encoder-decoders; then the warnings of slow kernels. The two
tuples at the end list them for `compatibility.py`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from governance.errors import ConfigError
from pretrain.finetuning.trained_parameters import trained_shapes
from pretrain.preflight.hardware import Hardware, Start
from pretrain.preflight.memory import SHORT_ROWS

_EXPERT_PARTS = [f"{name}_proj.{kind}" for name in ("gate", "up", "down") for kind in ("weight", "bias")]


def fp8_excludes_experts(start: Start) -> Iterator[str]:
    """Refuse fp8 with experts."""
    if start.train.precision == "fp8" and start.model.moe is not None:
        yield "train.precision = 'fp8' with model.moe: experts get any number of tokens; set precision = 'bf16'"


def expert_parallelism_divides(start: Start) -> Iterator[str]:
    """Refuse expert parallelism that does not divide experts and ranks."""
    hardware = start.hardware
    size, moe = start.engine.expert_parallel_size, start.model.moe
    if size == 1:
        return
    if moe is None:
        yield f"engine.expert_parallel_size = {size} without model.moe: no layer has experts; set it to 1"
    elif moe.num_local_experts % size:
        yield (
            f"engine.expert_parallel_size = {size} does not divide model.moe.num_local_experts = "
            f"{moe.num_local_experts}; choose a divisor"
        )
    if hardware.world_size is not None and hardware.world_size % size:
        yield (
            f"engine.expert_parallel_size = {size} does not divide {hardware.world_size} rank(s); start a multiple of "
            f"{size}"
        )


def expert_parallelism_supports_the_run(start: Start) -> Iterator[str]:
    """Refuse stage 3, fp16 and compilation where ranks divide experts."""
    engine = start.engine
    name = f"engine.expert_parallel_size = {engine.expert_parallel_size}"
    if engine.expert_parallel_size == 1:
        return
    if engine.zero_stage == 3:
        yield f"{name} with engine.zero_stage = 3: it gathers all experts on every rank; set zero_stage = 1 or 2"
    if start.train.precision == "fp16":
        yield f"{name} with train.precision = 'fp16': its loss scale is unproven there; set precision = 'bf16'"
    for setting in ("compile", "deepcompile"):
        if getattr(engine, setting):
            yield f"{name} with engine.{setting}: the numbers of tokens differ in every layer; set {setting} = false"
    passed = engine.deepspeed.get("zero_optimization", {})
    for key in ("contiguous_gradients", "reduce_scatter"):  # without them DeepSpeed adds up different experts
        if passed.get(key) is False:
            yield (
                f"{name} with engine.deepspeed.zero_optimization.{key} = false, which adds up gradients of different "
                f"experts; remove it, or set expert_parallel_size = 1"
            )


def expert_groups_are_alike(start: Start) -> Iterator[str]:
    """Refuse `[[optim.groups]]` that separate divided experts of a layer."""
    moe, rules = start.model.moe, start.optim.groups
    if start.engine.expert_parallel_size == 1 or moe is None or not rules:
        return
    for layer, part in itertools.product(range(start.model.num_hidden_layers), _EXPERT_PARTS):
        names = [f"model.layers.{layer}.mlp.experts.{expert}.{part}" for expert in range(moe.num_local_experts)]
        taken = {next((rule.pattern for rule in rules if re.search(rule.pattern, name)), None) for name in names}
        if len(taken) > 1:
            pattern = next(pattern for pattern in taken if pattern is not None)
            yield (
                f"engine.expert_parallel_size = {start.engine.expert_parallel_size} with optim.groups: pattern "
                f"{pattern!r} matches some experts of layer {layer} and not others, and each rank needs the same "
                f"groups; match all of them, or set expert_parallel_size = 1"
            )


def expert_ranks_span_nodes(start: Start) -> Iterator[str]:
    """Warn where expert ranks span nodes: every layer exchanges tokens."""
    size = start.engine.expert_parallel_size
    return across_nodes(
        "expert_parallel_size", size, start.hardware, "tokens of each layer cross the network, which is slow"
    )


def across_nodes(field: str, size: int, hardware: Hardware, effect: str) -> Iterator[str]:
    """Fault of groups of `size` ranks that span nodes."""
    if hardware.world_size is not None and hardware.local_world_size % size:
        yield f"engine.{field} = {size} does not divide the {hardware.local_world_size} ranks of a node: {effect}"


def frozen_parameters_have_a_base(start: Start) -> Iterator[str]:
    """Refuse frozen parameters without weights to freeze."""
    train = start.train
    if not train.freezes or (train.initial_weights and not train.continue_from):
        return
    field = "train.adapter" if train.adapter is not None else f"train.trained = {list(train.trained)}"
    yield (
        f"{field} keeps parameters as they are, and needs the folder that has them: set train.initial_weights (a "
        f"checkpoint of yours becomes such a folder with `assay export`), without train.continue_from"
    )


def learning_parameters_exist(start: Start) -> Iterator[str]:
    """Refuse patterns and targets that match nothing, and ranks too large."""
    if not start.train.freezes:
        return
    try:
        trained_shapes(start.model, start.train, 1)
    except ConfigError as error:
        yield str(error)


def frozen_parameters_suit_the_layout(start: Start) -> Iterator[str]:
    """Refuse layouts that cut or rewrite the matrices that adapters join."""
    engine, train = start.engine, start.train
    if not train.freezes:
        return
    values = {
        "engine.tensor_parallel_size": (engine.tensor_parallel_size, 1),
        "engine.expert_parallel_size": (engine.expert_parallel_size, 1),
        "engine.offload_parameters": (engine.offload_parameters, "none"),
        "engine.deepcompile": (engine.deepcompile, False),
        "train.distillation": ("a teacher" if train.distillation else None, None),
        "train.precision": (train.precision, "bf16") if train.precision == "fp8" else (0, 0),
    }
    if train.adapter is not None and train.adapter.dropout:
        values["engine.compile"] = (engine.compile, False)  # its generator cannot be part of a graph
    if train.adapter is not None and train.adapter.embedding_rank and engine.zero_stage == 3:
        values["engine.zero_stage"] = (3, 2)  # the head reads the table's adapter outside its module
    wrong = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    if not wrong:
        return
    name, (found, fix) = next(iter(wrong.items()))
    what = "train.adapter.dropout" if name == "engine.compile" else "frozen parameters (train.adapter, train.trained)"
    yield f"{name} = {found!r} with {what} is not supported; set it to {fix!r}"


def rank_invariance_is_measured(start: Start) -> Iterator[str]:
    """Refuse `rank_invariant` where equal bits were not measured, or cannot be."""
    engine, train = start.engine, start.train
    if not engine.rank_invariant:
        return
    ranks = start.hardware.world_size or 1
    if ranks & (ranks - 1):
        yield f"engine.rank_invariant on {ranks} ranks: their sums are added in pairs; start 1, 2, 4, 8, ... ranks"
    if not engine.threads:
        yield (
            "engine.rank_invariant with engine.threads = 0, which divides the cores among the ranks: products may "
            "depend on a rank's threads; give their number, such as threads = 1"
        )
    if start.hardware.device == "cuda":
        yield "engine.rank_invariant on a GPU: not measured; set engine.device = 'cpu', or remove it"
    if train.precision not in ("fp32", "bf16", "autocast"):
        yield f"engine.rank_invariant with train.precision = {train.precision!r}: not measured; set 'fp32' or 'bf16'"
    values = {
        **{f"engine.{name}_parallel_size": getattr(engine, f"{name}_parallel_size") > 1 for name in _SPLITS},
        **{f"engine.{name}": getattr(engine, name) for name in ("compile", "deepcompile", "deepspeed")},
        **{f"engine.{name}": getattr(engine, name) != "none" for name in ("offload_optimizer", "offload_parameters")},
        "engine.hpz_partition_size": engine.hpz_partition_size > 1,
        "engine.shared_memory_collectives": engine.shared_memory_collectives,
        "model.moe": start.model.moe,
        "model.encoder_layers": start.model.encoder_layers,
        "optim.optimizer = 'own'": start.optim.optimizer == "own",
        "train.gradient_reduction = 'bf16'": train.gradient_reduction == "bf16",
        "train.distillation": train.distillation,
        "train.adapter.dropout": train.adapter is not None and train.adapter.dropout,
        "train.patience (validation losses depend on ranks in their last bits)": train.patience,
    }
    if (found := next((name for name, value in values.items() if value), None)) is not None:
        yield (
            f"engine.rank_invariant with {found}: equal bits on any number of ranks were not measured; remove one of "
            f"them"
        )


_SPLITS = ("sequence", "tensor", "expert")


def students_learn_whole_rows(start: Start) -> Iterator[str]:
    """Refuse distillation without a teacher, or with settings it lacks."""
    engine = start.engine
    if start.train.distillation is not None and not start.train.distillation.teacher:
        yield "train.distillation.teacher is empty: name a checkpoint or a folder of weights, or remove the section"
    split = ("sequence_parallel_size", "tensor_parallel_size", "expert_parallel_size")
    others = [f"engine.{name} = {getattr(engine, name)}" for name in split if getattr(engine, name) > 1]
    others += [f"engine.{name}" for name in ("compile", "deepcompile") if getattr(engine, name)]
    if start.train.precision in ("fp16", "fp8"):
        others.append(f"train.precision = {start.train.precision!r}")
    if start.train.distillation is not None and others:
        yield (
            f"train.distillation with {', '.join(others)}: the teacher computes whole rows alongside the student, "
            f"without a compiler, in fp32 or bf16; remove one of them"
        )


def students_begin_once(start: Start) -> Iterator[str]:
    """Refuse a student that would begin from two things."""
    train = start.train
    if train.distillation is None:
        return
    if train.continue_from:
        yield (
            "train.distillation with train.continue_from: a student begins at step 0; remove one of them, or start "
            "from the checkpoint's export with train.initial_weights"
        )
    if train.distillation.start == "teacher" and train.initial_weights:
        yield (
            "train.distillation.start = 'teacher' with train.initial_weights: a run starts from one of them; remove "
            "the other. A run whose base is a student's file has its [train.distillation] too: name the base of the "
            "student, and repeat its [model]"
        )


def encoder_decoders_run_plainly(start: Start) -> Iterator[str]:
    """Refuse what encoder-decoders do not have: splits, kernels, tasks."""
    engine, train = start.engine, start.train
    if not start.model.encoder_layers:
        if train.span_corruption is None:
            return
        yield (
            "train.span_corruption without model.encoder_layers: spans are left out of a source, which a decoder "
            "alone does not read; set model.encoder_layers (docs/translation.md), or remove the section"
        )
    wrong = {
        f"engine.{name}": getattr(engine, name)
        for name in ("sequence_parallel_size", "tensor_parallel_size")
        if getattr(engine, name) != 1
    }
    wrong |= {f"engine.{name}": True for name in ("compile", "deepcompile") if getattr(engine, name)}
    wrong |= {"engine.attention": engine.attention} if engine.attention != "auto" else {}
    wrong |= {"train.precision": train.precision} if train.precision == "fp8" else {}
    wrong |= {"train.adapter or trained": "set"} if train.freezes else {}
    wrong |= {"train.distillation": train.distillation} if train.distillation else {}
    wrong |= (
        {"evaluation.tasks": [task.name for task in start.recipe.evaluation.tasks]}
        if start.recipe.evaluation.tasks
        else {}
    )
    if wrong:
        listed = ", ".join(f"{name} = {value!r}" for name, value in wrong.items())
        yield f"model.encoder_layers = {start.model.encoder_layers} with {listed}: not for encoder-decoders; remove it"


def soft_caps_on_cpu_are_slow(start: Start) -> Iterator[str]:
    """Warn of soft caps on CPU, where torch has no kernel."""
    if start.hardware.device != "cpu" or start.model.attn_logit_softcapping is None:
        return
    length = start.train.sequence_length
    yield (
        f"model.attn_logit_softcapping on CPU: attention is computed by the formula, which keeps fp32 logits of all "
        f"{length} x {length} pairs of each row and head; it is slow and needs memory. On a GPU it is one kernel"
    )


def long_rows_on_cpu_are_slow(start: Start) -> Iterator[str]:
    """Warn of rows that the CPU's own attention does not take."""
    length = start.train.sequence_length
    if start.hardware.device == "cpu" and length > SHORT_ROWS and start.model.attn_logit_softcapping is None:
        yield (
            f"train.sequence_length = {length} on CPU: above {SHORT_ROWS} tokens attention is torch's, with a table of "
            f"all {length} x {length} pairs where a row holds several documents or a window cuts it; shorter rows are "
            f"faster"
        )


def gpus_compute_uncompiled(start: Start) -> Iterator[str]:
    """Warn of a model on CUDA that is not compiled."""
    engine, train = start.engine, start.train
    refused = engine.expert_parallel_size > 1 or train.distillation is not None or start.model.encoder_layers > 0
    refused = refused or (train.adapter is not None and train.adapter.dropout > 0)
    if start.hardware.device == "cuda" and not (engine.compile or engine.deepcompile or refused):
        yield (
            "engine.compile = false on a GPU: rotations, residual sums and norms are kernels of their own, and "
            "queries, keys and values three products; set compile = true"
        )


def split_losses_are_not_fused(start: Start) -> Iterator[str]:
    """Warn of a vocabulary split on CUDA, whose loss takes several passes."""
    if start.hardware.device == "cuda" and start.engine.tensor_parallel_size != 1:
        yield (
            f"engine.tensor_parallel_size = {start.engine.tensor_parallel_size}: the loss over the ranks' parts of the "
            f"vocabulary takes several passes over fp32 logits, which one kernel does without the split"
        )


FEATURE_RULES = (
    fp8_excludes_experts,
    expert_parallelism_divides,
    expert_parallelism_supports_the_run,
    expert_groups_are_alike,
    students_learn_whole_rows,
    students_begin_once,
    encoder_decoders_run_plainly,
    rank_invariance_is_measured,
    frozen_parameters_have_a_base,
    learning_parameters_exist,
    frozen_parameters_suit_the_layout,
)
FEATURE_WARNINGS = (
    expert_ranks_span_nodes,
    soft_caps_on_cpu_are_slow,
    long_rows_on_cpu_are_slow,
    gpus_compute_uncompiled,
    split_losses_are_not_fused,
)
