"""Compatibility rules: settings that do not work together.

Two moments. `check_together` reads sections alone, on a login node, and leaves alone what depends on the machine.
`check_start` knows the device and the ranks. Neither imports torch. A rule is a function `Situation -> fault or None`;
those that ask how ranks share the work are in `rank_rules.py`. `RULES` is the table, `docs/engine.md` the same in words
(a test ties them); what is only warned of is in `cautions.py`. What DeepSpeed wants said otherwise and we can say for
it (clipping with Muon) is no rule but a line of `deepspeed_config.py`.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

from governance.errors import ConfigError
from governance.log import get_logger
from pretrain.config.deepspeed_keys import conflict
from pretrain.config.training import FLASH_PACKAGES, EngineConfig, Settings, TrainRecipe
from pretrain.distributed.process_group import Ranks
from pretrain.optim.optimizers import decay_fault
from pretrain.preflight.cautions import WARNINGS
from pretrain.preflight.rank_rules import (
    experts_see_whole_rows,
    hpz_wants_stage_3,
    quantized_gradients_want_whole_nodes,
    questions_divide,
    sequence_parallelism_divides,
    splits_divide_the_ranks,
    tensor_parallelism_divides,
    tensor_parallelism_keeps_state_out_of_files,
    tensor_parallelism_knows_the_model,
    the_batch_divides,
)
from pretrain.preflight.situation import Rule, Situation


def rows_fit_the_positions(s: Situation) -> str | None:
    """A row longer than the model has positions for."""
    if s.train.sequence_length <= s.model.max_position_embeddings:
        return None
    return (
        f"train.sequence_length = {s.train.sequence_length} is above model.max_position_embeddings = "
        f"{s.model.max_position_embeddings}; raise the latter"
    )


def schedule_fits_the_steps(s: Situation) -> str | None:
    """Warm-up and decay that overlap."""
    if s.optim.warmup_steps + s.optim.decay_steps <= s.train.steps:
        return None
    return (
        f"optim.warmup_steps + optim.decay_steps = {s.optim.warmup_steps + s.optim.decay_steps} is above "
        f"train.steps = {s.train.steps}; shorten the warm-up or the decay"
    )


def decay_leaves_the_weights(s: Situation) -> str | None:
    """A decay that empties weights or turns their sign.

    With `[[optim.groups]]` it is `parameter_groups` that knows.
    """
    o = s.optim
    kinds = [("matrices", o.learning_rate, o.weight_decay)]
    if o.optimizer == "muon":
        kinds.append(("muon", o.muon_learning_rate, o.muon_weight_decay))
    return None if o.groups else next((fault for kind in kinds if (fault := decay_fault(*kind))), None)


def half_precision_wants_a_stage(s: Situation) -> str | None:
    """Refuse bf16 and fp16 at stage 0.

    DeepSpeed's optimizer takes a step before the first, and AdamW corrects its moments by one too many.

    So bf16 takes another trajectory there: 6.341 against 6.311 nats after 60 steps. It adds gradients up in bf16, too.
    """
    if s.engine.zero_stage or s.train.precision in ("fp32", "autocast"):
        return None
    return (
        f"engine.zero_stage = 0 with train.precision = {s.train.precision!r} would learn otherwise than at "
        f"the other stages: DeepSpeed's optimizer of stage 0 counts a step before the first, and adds gradients up in "
        f"half precision; set zero_stage = 1, or precision = 'autocast' or 'fp32'"
    )


def fp16_wants_cuda(s: Situation) -> str | None:
    """DeepSpeed computes in fp16 on few CPUs, those with AVX512-FP16.

    In bf16 on all.
    """
    if s.train.precision != "fp16" or s.device != "cpu":
        return None
    return "train.precision = 'fp16' on CPU: most have no instructions for it; set precision = 'bf16', or use a GPU"


def fp8_wants_a_card_that_has_it(s: Situation) -> str | None:
    """8-bit products exist from compute capability 8.9 on."""
    if s.train.precision != "fp8" or s.device is None:
        return None
    if s.device == "cuda" and (s.capability is None or s.capability >= (8, 9)):
        return None
    found = "the CPU" if s.device == "cpu" else f"a GPU of compute capability {s.capability}"
    return (
        f"train.precision = 'fp8' on {found}: 8-bit products need an NVIDIA GPU of compute capability 8.9 or more; "
        f"set precision = 'bf16'"
    )


def fp8_shapes_divide(s: Situation) -> str | None:
    """Refuse fp8 with sides that are no multiple of 16."""
    parts = s.engine.sequence_parallel_size
    sides = {
        "model.hidden_size": s.model.hidden_size,
        "model.intermediate_size": s.model.intermediate_size,
        "the width of queries (num_attention_heads x head_dim)": s.model.attention_width,
        "the width of keys (num_key_value_heads x head size)": s.model.num_key_value_heads * s.model.head_dim,
        "micro_batch_size x sequence_length / sequence_parallel_size": s.engine.micro_batch_size
        * (s.train.sequence_length // parts),
    }
    odd = [f"{name} = {size}" for name, size in sides.items() if size % 16]
    if s.train.precision != "fp8" or not odd:
        return None
    return f"train.precision = 'fp8' wants multiples of 16, and {odd[0]} is none; change it, or set precision = 'bf16'"


def fp8_wants_no_experts(s: Situation) -> str | None:
    """The router decides how many tokens an expert multiplies.

    None, or no multiple of 16.
    """
    if s.train.precision != "fp8" or s.model.moe is None:
        return None
    return "train.precision = 'fp8' with model.moe: experts get any number of tokens; set precision = 'bf16'"


def bf16_masters_stay_on_the_device(s: Situation) -> str | None:
    """Refuse offloaded bf16 masters: only DeepSpeed's own Adam works."""
    if s.train.precision != "bf16_masters" or s.engine.offload_optimizer == "none":
        return None
    return (
        f"train.precision = 'bf16_masters' with engine.offload_optimizer = {s.engine.offload_optimizer!r}: offloaded "
        f"masters are fp32; set precision = 'bf16', or offload_optimizer = 'none'"
    )


def flash_wants_cuda_and_16_bits(s: Situation) -> str | None:
    """FlashAttention's kernels know bf16 and fp16, on CUDA.

    Whether one is installed is known where a GPU is.
    """
    if s.engine.attention != "flash":
        return None
    if s.device == "cpu":
        return "engine.attention = 'flash' on CPU: its kernels are CUDA's; set attention = 'auto'"
    if s.train.precision == "fp32":
        return "engine.attention = 'flash' with train.precision = 'fp32': it knows 16 bits; set precision = 'bf16'"
    if s.capability is not None and not any(importlib.util.find_spec(name) for name in FLASH_PACKAGES):
        return (
            f"engine.attention = 'flash': neither {' nor '.join(FLASH_PACKAGES)} is installed; install one that is "
            f"built for this torch and CUDA, or set attention = 'auto' (FlexAttention, a part of torch)"
        )
    return None


def quantized_collectives_want_cuda(s: Situation) -> str | None:
    """QwZ and qgZ are CUDA kernels of stage 3.

    DeepSpeed refuses qwZ with autocast.
    """
    asked = [name for name in ("quantized_weights", "quantized_gradients") if getattr(s.train, name)]
    if not asked:
        return None
    if s.device == "cpu":
        return f"train.{asked[0]} on CPU: ZeRO++ quantizes with CUDA kernels; set it to false"
    if s.engine.zero_stage != 3:
        return f"train.{asked[0]} with engine.zero_stage = {s.engine.zero_stage}: set zero_stage = 3, or it to false"
    if s.train.precision in ("autocast", "fp32"):
        return f"train.{asked[0]} with train.precision = {s.train.precision!r}: set precision = 'bf16', or it to false"
    return None


def bf16_reduction_suits_the_gradients(s: Situation) -> str | None:
    """DeepSpeed reduces as autocast says, and in 4 bits where asked.

    Scaled fp16 gradients lose digits that they have.

    Stage 0 would obey with autocast, and learn otherwise than the other stages.
    """
    asked = "train.quantized_gradients" if s.train.quantized_gradients else None
    if s.train.precision in ("autocast", "fp16"):
        asked = f"train.precision = {s.train.precision!r}"
    if s.train.gradient_reduction != "bf16" or asked is None:
        return None
    return f"train.gradient_reduction = 'bf16' with {asked}: it would have no effect, or lose digits; set it to 'fp32'"


def deepspeed_gets_no_key_of_ours(s: Situation) -> str | None:
    """One truth for each value."""
    return conflict(s.engine.deepspeed)


def deepcompile_wants_cuda(s: Situation) -> str | None:
    """Refuse DeepCompile without CUDA or with other splits."""
    if not s.engine.deepcompile:
        return None
    if s.device == "cpu":
        return "engine.deepcompile on CPU: it needs a GPU; set compile = true instead"
    if s.engine.zero_stage == 0:
        return "engine.deepcompile with engine.zero_stage = 0: set zero_stage = 1 or more, or compile = true instead"
    if s.engine.sequence_parallel_size * s.engine.tensor_parallel_size > 1:
        return "engine.deepcompile with sequence or tensor parallelism: set compile = true instead"
    return None


def parameter_offload_wants_stage_3(s: Situation) -> str | None:
    """Below stage 3 every rank uses its weights where they are."""
    if s.engine.offload_parameters == "none" or s.engine.zero_stage == 3:
        return None
    return (
        f"engine.offload_parameters = {s.engine.offload_parameters!r} with engine.zero_stage = "
        f"{s.engine.zero_stage}: only stage 3 moves weights; set zero_stage = 3, or offload_parameters = 'none'"
    )


def optimizer_offload_wants_its_stage(s: Situation) -> str | None:
    """Stage 0 has nothing apart to offload.

    Only stage 3 has files for it.
    """
    place, least = s.engine.offload_optimizer, 3 if s.engine.offload_optimizer == "nvme" else 1
    if place == "none" or s.engine.zero_stage >= least:
        return None
    return (
        f"engine.offload_optimizer = {place!r} with engine.zero_stage = {s.engine.zero_stage}: set zero_stage = "
        f"{least}{' or more' if least == 1 else ''}, or it to {'none' if place == 'cpu' else 'cpu'!r}"
    )


def nvme_has_a_folder(s: Situation) -> str | None:
    """Files need a place."""
    asked = [name for name in ("offload_optimizer", "offload_parameters") if getattr(s.engine, name) == "nvme"]
    if not asked or s.engine.nvme_path:
        return None
    return f"engine.{asked[0]} = 'nvme' without engine.nvme_path: give a folder on a fast local disk"


def only_adamw_is_offloaded(s: Situation) -> str | None:
    """Off the device, only AdamW of torch was made to run."""
    if s.optim.optimizer == "adamw" or s.engine.offload_optimizer == "none":
        return None
    return (
        f"optim.optimizer = {s.optim.optimizer!r} with engine.offload_optimizer = {s.engine.offload_optimizer!r}: only "
        f"AdamW is updated off the device; set offload_optimizer = 'none'"
    )


RULES: tuple[Rule, ...] = (
    rows_fit_the_positions,
    schedule_fits_the_steps,
    decay_leaves_the_weights,
    half_precision_wants_a_stage,
    fp16_wants_cuda,
    fp8_wants_a_card_that_has_it,
    fp8_shapes_divide,
    fp8_wants_no_experts,
    bf16_masters_stay_on_the_device,
    flash_wants_cuda_and_16_bits,
    quantized_collectives_want_cuda,
    quantized_gradients_want_whole_nodes,
    bf16_reduction_suits_the_gradients,
    deepspeed_gets_no_key_of_ours,
    deepcompile_wants_cuda,
    parameter_offload_wants_stage_3,
    optimizer_offload_wants_its_stage,
    nvme_has_a_folder,
    tensor_parallelism_keeps_state_out_of_files,
    hpz_wants_stage_3,
    sequence_parallelism_divides,
    experts_see_whole_rows,
    tensor_parallelism_divides,
    tensor_parallelism_knows_the_model,
    splits_divide_the_ranks,
    the_batch_divides,
    only_adamw_is_offloaded,
    questions_divide,
)


def faults_of(situation: Situation) -> list[str]:
    """Faults of all rules."""
    return [fault for rule in RULES if (fault := rule(situation))]


def check_together(recipe: TrainRecipe, engine: EngineConfig) -> None:
    """Refuse sections that cannot work together on any machine.

    Raises:
        ConfigError: a line a fault: the fields, their values and what to change.
    """
    device = None if engine.device == "auto" else engine.device
    asked = bool(recipe.evaluation.tasks)
    _refuse(Situation(recipe.model, recipe.optim, recipe.train, engine, device, asked=asked))


def check_start(
    recipe: TrainRecipe,
    engine: EngineConfig,
    ranks: Ranks,
    device: Literal["cpu", "cuda"],
    capability: tuple[int, int] | None = None,
    settings: Settings | None = None,
    gpus: int = 0,
) -> None:
    """Refuse what cannot work here.

    Warn of what works badly or has no effect (`cautions.py`).

    Args:
        recipe: what is learned.
        engine: how the work is spread.
        ranks: this one among the others; the first one warns.
        device: that it computes on.
        capability: of its GPU.
        settings: how the run is carried out, for what is only warned of.
        gpus: that this node shows.

    Raises:
        ConfigError: a line a fault: the fields, their values and what to change.
    """
    sections = (recipe.model, recipe.optim, recipe.train, engine)
    where = (device, ranks.world_size, ranks.local_world_size, capability)
    situation = Situation(
        *sections, *where, asked=bool(recipe.evaluation.tasks), evaluation=recipe.evaluation, gpus=gpus,
        checkpoint=settings.checkpoint if settings else None, profile=settings.profile if settings else None,
    )  # fmt: skip
    _refuse(situation)
    for rule in WARNINGS:
        if ranks.first and (told := rule(situation)):
            get_logger(__name__).warning("%s", told)


def _refuse(situation: Situation) -> None:
    if faults := faults_of(situation):
        raise ConfigError("\n".join(faults))
