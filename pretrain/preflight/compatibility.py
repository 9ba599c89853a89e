"""Compatibility rules: settings that conflict, are slow or have no effect.

`check_together` reads sections alone, on a login node, and skips what depends on the machine; `check_start` knows the
hardware. Neither imports torch. A rule is a function: from a `Start` its faults, each with the fix, of which the first
counts. `RULES` refuse, `WARNINGS` warn; `feature_rules.py` has those of single features. `docs/engine.md` describes
them (a test compares the two). What DeepSpeed expects in another form, and can be given (clipping with Muon), is not a
rule but a line of `deepspeed_config.py`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator

from governance.errors import ConfigError
from governance.log import get_logger
from pretrain.config.deepspeed_keys import conflict
from pretrain.config.training import FLASH_PACKAGES, SHORT, Settings, TrainRecipe
from pretrain.data.batch_size import refuse_uneven
from pretrain.distributed.layout import data_ranks
from pretrain.optim.optimizers import decay_fault
from pretrain.preflight.feature_rules import FEATURE_RULES, FEATURE_WARNINGS, across_nodes
from pretrain.preflight.hardware import Hardware, Start

Rule = Callable[[Start], Iterator[str]]
"""Faults of a start, each with its fix; the first one counts."""


def rows_fit_the_positions(start: Start) -> Iterator[str]:
    """Refuse rows longer than the model has positions."""
    if start.train.sequence_length > start.model.max_position_embeddings:
        yield (
            f"train.sequence_length = {start.train.sequence_length} is above model.max_position_embeddings = "
            f"{start.model.max_position_embeddings}; raise the latter or lower the former"
        )


def schedule_fits_the_steps(start: Start) -> Iterator[str]:
    """Refuse a warm-up and a decay that overlap."""
    if start.optim.warmup_steps + start.optim.decay_steps > start.train.steps:
        yield (
            f"optim.warmup_steps + optim.decay_steps = {start.optim.warmup_steps + start.optim.decay_steps} is above "
            f"train.steps = {start.train.steps}; shorten the warm-up or the decay"
        )


def decay_leaves_the_weights(start: Start) -> Iterator[str]:
    """Refuse a decay that zeroes weights or flips their sign.

    `parameter_groups` checks `[[optim.groups]]`.
    """
    o = start.optim
    kinds = [("matrices", o.learning_rate, o.weight_decay)]
    if o.optimizer == "muon":
        kinds.append(("muon", o.muon_learning_rate, o.muon_weight_decay))
    if not o.groups:
        yield from filter(None, (decay_fault(*kind) for kind in kinds))


def half_precision_needs_a_stage(start: Start) -> Iterator[str]:
    """Refuse bf16 and fp16 at stage 0.

    DeepSpeed's optimizer counts a step before the first there, so AdamW's bias correction is one step ahead, and it
    adds gradients up in half precision: bf16 reaches 6.341 instead of 6.311 nats after 60 steps.
    """
    if not start.engine.zero_stage and start.train.precision not in ("fp32", "autocast"):
        yield (
            f"engine.zero_stage = 0 with train.precision = {start.train.precision!r} learns differently from the other "
            f"stages: DeepSpeed's optimizer of stage 0 counts a step before the first, and adds gradients up in half "
            f"precision; set zero_stage = 1, or precision = 'autocast' or 'fp32'"
        )


def fp16_needs_cuda(start: Start) -> Iterator[str]:
    """Refuse fp16 on CPU."""
    if start.train.precision == "fp16" and start.hardware.device == "cpu":
        yield "train.precision = 'fp16' on CPU: most have no instructions for it; set precision = 'bf16', or use a GPU"


def fp8_needs_a_gpu_that_has_it(start: Start) -> Iterator[str]:
    """Refuse fp8 below compute capability 8.9, the first with 8-bit products."""
    hardware = start.hardware
    if start.train.precision != "fp8" or hardware.device is None:
        return
    if hardware.device == "cuda" and (hardware.capability is None or hardware.capability >= (8, 9)):
        return
    found = "the CPU" if hardware.device == "cpu" else f"a GPU of compute capability {hardware.capability}"
    yield (
        f"train.precision = 'fp8' on {found}: 8-bit products need an NVIDIA GPU of compute capability 8.9 or more; "
        f"set precision = 'bf16'"
    )


def fp8_shapes_divide(start: Start) -> Iterator[str]:
    """Refuse fp8 with sides that are not multiples of 16."""
    parts = start.engine.sequence_parallel_size
    sides = {
        "model.hidden_size": start.model.hidden_size,
        "model.intermediate_size": start.model.intermediate_size,
        "the width of queries (num_attention_heads x head_dim)": start.model.attention_width,
        "the width of keys (num_key_value_heads x head size)": start.model.num_key_value_heads * start.model.head_dim,
        "micro_batch_size x sequence_length / sequence_parallel_size": start.engine.micro_batch_size
        * (start.train.sequence_length // parts),
    }
    odd = [f"{name} = {size}" for name, size in sides.items() if size % 16]
    if start.train.precision == "fp8" and odd:
        yield f"train.precision = 'fp8' needs multiples of 16, not {odd[0]}; change it, or set precision = 'bf16'"


def bf16_masters_stay_on_the_device(start: Start) -> Iterator[str]:
    """Refuse offloaded bf16 masters: only DeepSpeed's own Adam works."""
    if start.train.precision == "bf16_masters" and start.engine.offload_optimizer != "none":
        yield (
            f"train.precision = 'bf16_masters' with engine.offload_optimizer = {start.engine.offload_optimizer!r}: "
            f"offloaded masters are fp32; set precision = 'bf16', or offload_optimizer = 'none'"
        )


def flash_needs_cuda_and_16_bits(start: Start) -> Iterator[str]:
    """Refuse FlashAttention without CUDA and 16 bits."""
    if start.engine.attention != "flash":
        return
    if start.hardware.device == "cpu":
        yield "engine.attention = 'flash' on CPU: its kernels need CUDA; set attention = 'auto'"
    if start.train.precision == "fp32":
        yield "engine.attention = 'flash' with train.precision = 'fp32': it needs 16 bits; set precision = 'bf16'"
    if start.hardware.capability is not None and not any(importlib.util.find_spec(name) for name in FLASH_PACKAGES):
        yield (
            f"engine.attention = 'flash': neither {' nor '.join(FLASH_PACKAGES)} is installed; install one that is "
            f"built for this torch and CUDA, or set attention = 'auto' (FlexAttention, a part of torch)"
        )


def quantized_collectives_need_cuda(start: Start) -> Iterator[str]:
    """Refuse qwZ and qgZ, CUDA kernels of stage 3, elsewhere."""
    names = [name for name in ("quantized_weights", "quantized_gradients") if getattr(start.train, name)]
    if not names:
        return
    if start.hardware.device == "cpu":
        yield f"train.{names[0]} on CPU: ZeRO++ quantizes with CUDA kernels; set it to false"
    if start.engine.zero_stage != 3:
        stage = start.engine.zero_stage
        yield f"train.{names[0]} with engine.zero_stage = {stage}: set zero_stage = 3, or it to false"
    if (precision := start.train.precision) in ("autocast", "fp32"):
        yield f"train.{names[0]} with train.precision = {precision!r}: set precision = 'bf16', or it to false"


def bf16_reduction_suits_the_gradients(start: Start) -> Iterator[str]:
    """Refuse bf16 reduction where it has no effect or loses digits.

    With autocast DeepSpeed chooses the type itself (stage 0 would obey, and learn differently from the other stages);
    quantized gradients travel in 4 bits; scaled fp16 gradients have digits that bf16 lacks.
    """
    other = "train.quantized_gradients" if start.train.quantized_gradients else None
    if start.train.precision in ("autocast", "fp16"):
        other = f"train.precision = {start.train.precision!r}"
    if start.train.gradient_reduction == "bf16" and other is not None:
        effect = "it would have no effect, or lose digits; set it to 'fp32'"
        yield f"train.gradient_reduction = 'bf16' with {other}: {effect}"


def deepspeed_keys_conflict_with_no_setting(start: Start) -> Iterator[str]:
    """Refuse passed keys that a setting decides."""
    yield from filter(None, [conflict(start.engine.deepspeed)])


def deepcompile_needs_cuda(start: Start) -> Iterator[str]:
    """Refuse DeepCompile without CUDA or with other splits."""
    if not start.engine.deepcompile:
        return
    if start.hardware.device == "cpu":
        yield "engine.deepcompile on CPU: it needs a GPU; set compile = true instead"
    if start.engine.zero_stage == 0:
        yield "engine.deepcompile with engine.zero_stage = 0: set zero_stage = 1 or more, or compile = true instead"
    if start.engine.sequence_parallel_size * start.engine.tensor_parallel_size > 1:
        yield "engine.deepcompile with sequence or tensor parallelism: set compile = true instead"


def parameter_offload_needs_stage_3(start: Start) -> Iterator[str]:
    """Refuse offloaded weights below stage 3: ranks use them in place."""
    if start.engine.offload_parameters != "none" and start.engine.zero_stage != 3:
        yield (
            f"engine.offload_parameters = {start.engine.offload_parameters!r} with engine.zero_stage = "
            f"{start.engine.zero_stage}: only stage 3 moves weights; set zero_stage = 3, or offload_parameters = 'none'"
        )


def optimizer_offload_needs_its_stage(start: Start) -> Iterator[str]:
    """Refuse to offload the optimizer at stage 0 (files: below stage 3)."""
    place, least = start.engine.offload_optimizer, 3 if start.engine.offload_optimizer == "nvme" else 1
    if place != "none" and start.engine.zero_stage < least:
        yield (
            f"engine.offload_optimizer = {place!r} with engine.zero_stage = {start.engine.zero_stage}: set zero_stage "
            f"= {least}{' or more' if least == 1 else ''}, or it to {'none' if place == 'cpu' else 'cpu'!r}"
        )


def nvme_has_a_folder(start: Start) -> Iterator[str]:
    """Refuse nvme without a folder."""
    names = [name for name in ("offload_optimizer", "offload_parameters") if getattr(start.engine, name) == "nvme"]
    if names and not start.engine.nvme_path:
        yield f"engine.{names[0]} = 'nvme' without engine.nvme_path: give a folder on a fast local disk"


def only_adamw_is_offloaded(start: Start) -> Iterator[str]:
    """Refuse to offload optimizers other than AdamW."""
    if start.optim.optimizer != "adamw" and start.engine.offload_optimizer != "none":
        yield (
            f"optim.optimizer = {start.optim.optimizer!r} with engine.offload_optimizer = "
            f"{start.engine.offload_optimizer!r}: only AdamW is updated off the device; set offload_optimizer = 'none'"
        )


def own_optimizers_are_elementwise_where_ranks_share(start: Start) -> Iterator[str]:
    """Refuse to share parameters if a custom optimizer is not elementwise."""
    engine = start.engine
    shared = [
        f"engine.{name} = {value}"
        for name, value, whole in (
            ("zero_stage", engine.zero_stage, 0),
            ("tensor_parallel_size", engine.tensor_parallel_size, 1),
            ("expert_parallel_size", engine.expert_parallel_size, 1),
        )
        if value != whole
    ]
    if start.optim.optimizer == "own" and not start.optim.elementwise and shared:
        yield (
            f"optim.optimizer = 'own' with {shared[0]}: ranks would update pieces of a parameter. Set "
            "optim.elementwise = true if each element's update depends on that element alone, else zero_stage = 0 and "
            "no parallelism"
        )


def quantized_gradients_need_whole_nodes(start: Start) -> Iterator[str]:
    """Refuse qgZ where ranks and visible GPUs differ.

    DeepSpeed counts each visible GPU of a node as a rank, derives the nodes from that, and forms groups over all ranks.
    """
    hardware = start.hardware
    if not start.train.quantized_gradients:
        return
    if start.engine.tensor_parallel_size > 1:
        yield (
            "train.quantized_gradients with tensor parallelism: DeepSpeed would add up gradients of other parts of a "
            "matrix; set it to false, or tensor_parallel_size = 1"
        )
    if hardware.gpus not in (0, hardware.local_world_size):
        yield (
            f"train.quantized_gradients with {hardware.local_world_size} rank(s) on a node that shows {hardware.gpus} "
            f"GPUs: DeepSpeed counts each as a rank, and so {(hardware.world_size or 1) // hardware.gpus} node(s); "
            f"start {hardware.gpus} ranks per node, show no more GPUs than ranks (CUDA_VISIBLE_DEVICES), or set it to "
            f"false"
        )


def hpz_needs_stage_3(start: Start) -> Iterator[str]:
    """Refuse hpZ below stage 3."""
    hardware = start.hardware
    size = start.engine.hpz_partition_size
    if size == 1:
        return
    if start.engine.zero_stage != 3:
        stage = start.engine.zero_stage
        yield f"engine.hpz_partition_size = {size} with engine.zero_stage = {stage}: set zero_stage = 3"
    if start.engine.tensor_parallel_size > 1:
        yield f"engine.hpz_partition_size = {size} with tensor parallelism: DeepSpeed forms its groups over all ranks"
    if hardware.world_size is not None and hardware.world_size % size:
        yield f"engine.hpz_partition_size = {size} does not divide {hardware.world_size} ranks; choose a divisor"


def sequence_parallelism_divides(start: Start) -> Iterator[str]:
    """Refuse sequence parallelism (Ulysses) that does not divide rows and heads."""
    size = start.engine.sequence_parallel_size
    split = size * start.engine.tensor_parallel_size
    if size == 1:
        return
    if start.train.sequence_length % size:
        yield (
            f"engine.sequence_parallel_size = {size} does not divide train.sequence_length = "
            f"{start.train.sequence_length}; choose a divisor"
        )
    if start.model.num_key_value_heads % split:
        yield (
            f"engine.sequence_parallel_size x tensor_parallel_size = {split} does not divide "
            f"model.num_key_value_heads = {start.model.num_key_value_heads}; each rank needs whole heads"
        )


def experts_see_whole_rows(start: Start) -> Iterator[str]:
    """Refuse sequence parallelism with experts."""
    if start.engine.sequence_parallel_size != 1 and start.model.moe is not None:
        yield (
            f"engine.sequence_parallel_size = {start.engine.sequence_parallel_size} with model.moe: experts are "
            f"balanced over whole rows, and it cuts them; set sequence_parallel_size = 1"
        )


def tensor_parallelism_divides(start: Start) -> Iterator[str]:
    """Refuse tensor parallelism that does not divide heads or layers."""
    size = start.engine.tensor_parallel_size
    if size == 1:
        return
    for name in ("num_key_value_heads", "intermediate_size"):
        if getattr(start.model, name) % size:
            yield f"engine.tensor_parallel_size = {size} does not divide model.{name} = {getattr(start.model, name)}"


def tensor_parallelism_supports_the_model(start: Start) -> Iterator[str]:
    """Refuse what AutoTP would split wrongly: experts, Muon's matrices, 8-bit products."""
    if start.engine.tensor_parallel_size == 1:
        return
    if start.model.moe is not None:
        yield "engine.tensor_parallel_size with model.moe: experts are not split; set tensor_parallel_size = 1"
    if start.optim.optimizer == "muon":
        yield "engine.tensor_parallel_size with optim.optimizer = 'muon': Muon needs whole matrices; set it to 1"
    if start.model.qk_norm_whole:
        yield "engine.tensor_parallel_size with model.qk_norm_whole: ranks hold a part of the heads; set it to 1"
    if start.train.precision == "fp8":
        yield "engine.tensor_parallel_size with train.precision = 'fp8': set precision = 'bf16'"


def tensor_parallelism_keeps_state_out_of_files(start: Start) -> Iterator[str]:
    """Refuse tensor parallelism with state in files."""
    if start.engine.offload_optimizer == "nvme" and start.engine.tensor_parallel_size != 1:
        yield "engine.offload_optimizer = 'nvme' with tensor parallelism: set it to 'cpu', or tensor_parallel_size = 1"


def splits_divide_the_ranks(start: Start) -> Iterator[str]:
    """Refuse splits that do not divide ranks and nodes."""
    hardware = start.hardware
    split = start.engine.sequence_parallel_size * start.engine.tensor_parallel_size
    if hardware.world_size is not None and hardware.world_size % split:
        yield (
            f"engine.sequence_parallel_size x tensor_parallel_size = {start.engine.sequence_parallel_size} x "
            f"{start.engine.tensor_parallel_size} does not divide {hardware.world_size} rank(s); start a multiple of "
            f"{split}"
        )


def the_batch_divides(start: Start) -> Iterator[str]:
    """Refuse batches that micro batches on all ranks do not divide."""
    hardware = start.hardware
    if hardware.world_size is None or any(splits_divide_the_ranks(start)):
        return
    try:
        refuse_uneven(start.train, start.engine.micro_batch_size, data_ranks(hardware.world_size, start.engine))
    except ConfigError as error:
        yield str(error)


def evaluation_rows_divide(start: Start) -> Iterator[str]:
    """Refuse evaluation rows that sequence ranks cannot divide."""
    size, short = start.engine.sequence_parallel_size, min(SHORT, start.train.sequence_length)
    if start.recipe.evaluation.tasks and short % size:
        yield (
            f"engine.sequence_parallel_size = {size} does not divide the {short} tokens of an evaluation row; choose a "
            f"divisor, or remove evaluation.tasks"
        )


RULES: tuple[Rule, ...] = (
    rows_fit_the_positions,
    schedule_fits_the_steps,
    decay_leaves_the_weights,
    half_precision_needs_a_stage,
    fp16_needs_cuda,
    fp8_needs_a_gpu_that_has_it,
    fp8_shapes_divide,
    bf16_masters_stay_on_the_device,
    flash_needs_cuda_and_16_bits,
    quantized_collectives_need_cuda,
    quantized_gradients_need_whole_nodes,
    bf16_reduction_suits_the_gradients,
    deepspeed_keys_conflict_with_no_setting,
    deepcompile_needs_cuda,
    parameter_offload_needs_stage_3,
    optimizer_offload_needs_its_stage,
    nvme_has_a_folder,
    tensor_parallelism_keeps_state_out_of_files,
    hpz_needs_stage_3,
    sequence_parallelism_divides,
    experts_see_whole_rows,
    tensor_parallelism_divides,
    tensor_parallelism_supports_the_model,
    splits_divide_the_ranks,
    the_batch_divides,
    only_adamw_is_offloaded,
    own_optimizers_are_elementwise_where_ranks_share,
    evaluation_rows_divide,
    *FEATURE_RULES,
)


def tensor_ranks_span_nodes(start: Start) -> Iterator[str]:
    """Warn where tensor ranks span nodes: every block communicates twice."""
    size = start.engine.tensor_parallel_size
    return across_nodes(
        "tensor_parallel_size", size, start.hardware, "sums of each block cross the network, which is slow"
    )


def hpz_ranks_span_nodes(start: Start) -> Iterator[str]:
    """Warn where hpZ groups span nodes, against their purpose."""
    effect = "the second copy of the weights crosses the network too, and only costs memory; choose a divisor"
    return across_nodes("hpz_partition_size", start.engine.hpz_partition_size, start.hardware, effect)


def quantized_gradients_stay_on_a_node(start: Start) -> Iterator[str]:
    """Warn where quantized gradients stay on one node (no effect)."""
    hardware = start.hardware
    if start.train.quantized_gradients and hardware.gpus and hardware.world_size == hardware.local_world_size:
        effect = "DeepSpeed quantizes between nodes only, so nothing is quantized here"
        yield f"train.quantized_gradients on one node: {effect}"


def shared_memory_is_for_the_cpu(start: Start) -> Iterator[str]:
    """Warn of shared-memory collectives on CUDA, where they have no effect."""
    if start.hardware.device == "cuda" and start.engine.shared_memory_collectives:
        yield "engine.shared_memory_collectives has no effect on a GPU"


def gpus_are_idle(start: Start) -> Iterator[str]:
    """Warn of GPUs without a rank."""
    hardware = start.hardware
    if hardware.device == "cuda" and hardware.gpus > hardware.local_world_size:
        yield (
            f"this node shows {hardware.gpus} GPUs and {hardware.local_world_size} rank(s) of this run compute here, "
            f"each on one; the others are idle. For all of them start {hardware.gpus} ranks (--nproc {hardware.gpus}; "
            f"under Slurm slurm.gpus_per_node = {hardware.gpus}); to leave them to other jobs, hide them "
            f"(CUDA_VISIBLE_DEVICES)"
        )


def no_checkpoint_is_validated(start: Start) -> Iterator[str]:
    """Warn of `keep_best` without effect."""
    if not start.settings.checkpoint.keep_best:
        return
    saved, validated = start.settings.checkpoint.every_steps, start.train.validate_every_steps
    if not validated or math.lcm(saved, validated) >= start.train.steps:
        yield (
            f"checkpoint.keep_best = {start.settings.checkpoint.keep_best} has no effect: no checkpoint before the "
            f"last step, {start.train.steps}, is of a step that is validated (checkpoint.every_steps = {saved}, "
            f"train.validate_every_steps = {validated}); make one a multiple of the other, both below train.steps"
        )


def steps_are_within_the_run(start: Start) -> Iterator[str]:
    """Warn of settings for steps beyond the run.

    Defaults that a short run does not reach are not a mistake.
    """
    last = start.train.steps
    ramp = [
        (f"train.batch_size_ramp[entry {number}].until_step", entry.until_step + 1)
        for number, entry in enumerate(start.train.batch_size_ramp, 1)
    ]
    turns = [
        (f"train.mixture[entry {number}].from_step", entry.from_step)
        for number, entry in enumerate(start.train.mixture, 1)
    ]
    fields = [
        ("checkpoint", start.settings.checkpoint, "every_steps", 0),
        ("checkpoint", start.settings.checkpoint, "keep_every_steps", 0),
        ("train", start.train, "validate_every_steps", 0),
        ("train.skip", start.train.skip, "warmup_steps", 1),
        ("evaluation", start.recipe.evaluation, "every_steps", 0),
    ]
    periods = [
        (f"{name}.{field}", getattr(section, field) + after)
        for name, section, field, after in fields
        if field in section.model_fields_set
    ]
    profiled = [("profile.from_step", start.settings.profile.from_step)]
    beyond = [f"{field} (step {step})" for field, step in (*ramp, *turns, *periods, *profiled) if step > last]
    if beyond:
        names = ", ".join(beyond)
        yield f"train.steps = {last}: the run ends before these have an effect: {names}; lower them, or raise steps"


def profiled_ranks_exist(start: Start) -> Iterator[str]:
    """Warn of profiled ranks that the run does not have."""
    hardware = start.hardware
    if not start.settings.profile.from_step or hardware.world_size is None:
        return
    absent = [rank for rank in start.settings.profile.ranks if not 0 <= rank < hardware.world_size]
    if absent:
        yield f"profile.ranks names {', '.join(map(str, absent))}: this run has ranks 0 to {hardware.world_size - 1}"


WARNINGS: tuple[Rule, ...] = (
    tensor_ranks_span_nodes,
    hpz_ranks_span_nodes,
    quantized_gradients_stay_on_a_node,
    shared_memory_is_for_the_cpu,
    gpus_are_idle,
    no_checkpoint_is_validated,
    steps_are_within_the_run,
    profiled_ranks_exist,
    *FEATURE_WARNINGS,
)


def faults_of(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> list[str]:
    """Faults that any rule finds."""
    start = Start(recipe, settings, hardware)
    return [fault for rule in RULES if (fault := next(rule(start), ""))]


def check_together(recipe: TrainRecipe, settings: Settings) -> None:
    """Refuse sections that cannot work together on any machine.

    Raises:
        ConfigError: one line a fault: the fields, their values and what to change.
    """
    device = settings.engine.device
    _refuse(recipe, settings, Hardware(device=None if device == "auto" else device))


def check_start(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> None:
    """Refuse what cannot work on this hardware.

    Rank 0 also warns of settings that are slow or have no effect.

    Raises:
        ConfigError: one line a fault: the fields, their values and what to change.
    """
    _refuse(recipe, settings, hardware)
    for rule in WARNINGS:
        message = next(rule(Start(recipe, settings, hardware)), "")
        if message and (hardware.ranks is None or hardware.ranks.first):
            get_logger(__name__).warning("%s", message)


def _refuse(recipe: TrainRecipe, settings: Settings, hardware: Hardware) -> None:
    if faults := faults_of(recipe, settings, hardware):
        raise ConfigError("\n".join(faults))
