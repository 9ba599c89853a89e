"""Warnings for settings that are slow or have no effect.

A rule is a function `Situation -> warning or None`, as in `compatibility.py`, which calls them once the device and the
ranks are known. `docs/engine.md` has the same in words.
"""

from __future__ import annotations

import math

from pretrain.preflight.situation import Rule, Situation


def tensor_ranks_span_nodes(s: Situation) -> str | None:
    """Warn where tensor ranks span nodes: every block communicates twice."""
    if s.world_size is None or s.local_world_size % s.engine.tensor_parallel_size == 0:
        return None
    return (
        f"engine.tensor_parallel_size = {s.engine.tensor_parallel_size} does not divide the {s.local_world_size} ranks "
        f"of a node: sums of each block cross the network, which is slow"
    )


def hpz_ranks_span_nodes(s: Situation) -> str | None:
    """Warn where hpZ groups span nodes, against their purpose."""
    size = s.engine.hpz_partition_size
    if s.world_size is None or s.local_world_size % size == 0:
        return None
    return (
        f"engine.hpz_partition_size = {size} does not divide the {s.local_world_size} ranks of a node: the second copy "
        f"of the weights crosses the network too, and only costs memory; choose a divisor"
    )


def quantized_gradients_stay_on_a_node(s: Situation) -> str | None:
    """Warn where quantized gradients stay on one node (no effect)."""
    if not s.train.quantized_gradients or not s.gpus or s.world_size != s.local_world_size:
        return None
    return "train.quantized_gradients on one node: DeepSpeed quantizes between nodes only, so nothing is quantized here"


def shared_memory_is_for_the_cpu(s: Situation) -> str | None:
    """It acts on the CPU alone."""
    if s.device != "cuda" or not s.engine.shared_memory_collectives:
        return None
    return "engine.shared_memory_collectives has no effect on a GPU"


def soft_caps_on_cpu_are_written_out(s: Situation) -> str | None:
    """No kernel of torch caps logits on a CPU.

    On a GPU FlexAttention does.
    """
    if s.device != "cpu" or s.model.attn_logit_softcapping is None:
        return None
    length = s.train.sequence_length
    return (
        f"model.attn_logit_softcapping on CPU: attention is computed by the formula, which keeps fp32 logits of all "
        f"{length} x {length} pairs of each row and head; it is slow and needs memory. On a GPU it is one kernel"
    )


def gpus_stand_idle(s: Situation) -> str | None:
    """A rank computes on one GPU.

    Who starts one command on a node of eight may believe that it takes all.
    """
    if s.device != "cuda" or s.gpus <= s.local_world_size:
        return None
    return (
        f"this node shows {s.gpus} GPUs and {s.local_world_size} rank(s) of this run compute here, each on one; the "
        f"others stand idle. For all of them start {s.gpus} ranks (--processes {s.gpus}; under Slurm "
        f"slurm.gpus_per_node = {s.gpus}); to leave them to others, hide them (CUDA_VISIBLE_DEVICES)"
    )


def no_checkpoint_is_validated(s: Situation) -> str | None:
    """The best are chosen among checkpoints whose own step is validated.

    The last step's is kept in any case.
    """
    if s.checkpoint is None or not s.checkpoint.keep_best:
        return None
    saved, validated = s.checkpoint.every_steps, s.train.validate_every_steps
    if validated and math.lcm(saved, validated) < s.train.steps:
        return None
    return (
        f"checkpoint.keep_best = {s.checkpoint.keep_best} has no effect: no checkpoint before the last step, "
        f"{s.train.steps}, is of a step that is validated (checkpoint.every_steps = {saved}, "
        f"train.validate_every_steps = {validated}); make one a multiple of the other, both below train.steps"
    )


def steps_lie_within_the_run(s: Situation) -> str | None:
    """A setting for a step that never comes.

    A default that a short run does not reach is nobody's mistake.
    """
    last = s.train.steps
    ramp = [(f"train.batch_size_ramp.{n}.until_step", e.until_step + 1) for n, e in enumerate(s.train.batch_size_ramp)]
    turns = [(f"train.mixture.{number}.from_step", entry.from_step) for number, entry in enumerate(s.train.mixture)]
    told = [
        ("checkpoint", s.checkpoint, "every_steps", 0),
        ("checkpoint", s.checkpoint, "keep_every_steps", 0),
        ("train", s.train, "validate_every_steps", 0),
        ("train.skip", s.train.skip, "warmup_steps", 1),
        ("evaluation", s.evaluation, "every_steps", 0),
    ]
    periods = [
        (f"{name}.{field}", getattr(section, field) + after)
        for name, section, field, after in told
        if section is not None and field in section.model_fields_set
    ]
    profiled = [("profile.from_step", s.profile.from_step)] if s.profile else []
    beyond = [f"{field} (step {step})" for field, step in (*ramp, *turns, *periods, *profiled) if step > last]
    if not beyond:
        return None
    told = ", ".join(beyond)
    return f"train.steps = {last}: the run ends before these have an effect: {told}; lower them, or raise steps"


def profiled_ranks_exist(s: Situation) -> str | None:
    """A rank that the run has not profiles nothing."""
    if s.profile is None or not s.profile.from_step or s.world_size is None:
        return None
    absent = [rank for rank in s.profile.ranks if not 0 <= rank < s.world_size]
    if not absent:
        return None
    return f"profile.ranks names {', '.join(map(str, absent))}: the ranks of this run are 0 to {s.world_size - 1}"


WARNINGS: tuple[Rule, ...] = (
    tensor_ranks_span_nodes,
    hpz_ranks_span_nodes,
    quantized_gradients_stay_on_a_node,
    shared_memory_is_for_the_cpu,
    soft_caps_on_cpu_are_written_out,
    gpus_stand_idle,
    no_checkpoint_is_validated,
    steps_lie_within_the_run,
    profiled_ranks_exist,
)
