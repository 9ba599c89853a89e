"""Memory preflight: refuse what cannot fit.

Promise: a configuration that cannot fit is refused within a second, with what is needed, what is available and settings
that would fit; one that fits is refused only if the estimate is too high by more than `_TOLERANCE`.
"""

from __future__ import annotations

import math

from governance.errors import ConfigError, PipelineError
from pretrain.config.model import ModelConfig, padded_vocabulary
from pretrain.config.training import EngineConfig, Settings, TrainRecipe
from pretrain.distributed.process_group import Ranks
from pretrain.preflight.compatibility import faults_of
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.memory import Estimate, estimate

_TOLERANCE = 1.10
_MAX_RANKS = 1 << 16


def fits(needed: Estimate, hardware: Hardware, tolerance: float = 1.0) -> bool:
    """Return whether the need is within `tolerance` times the available memory."""
    pairs = ((needed.device_bytes, hardware.device_bytes), (needed.host_bytes, hardware.host_bytes))
    return all(free is None or need <= free * tolerance for need, free in pairs)


def needed_memory(
    recipe: TrainRecipe,
    engine: EngineConfig,
    vocabulary_size: int,
    hardware: Hardware,
    teacher: ModelConfig | None = None,
) -> Estimate:
    """Estimate for these ranks on this device, which must be known.

    `teacher` runs alongside a student.
    """
    assert hardware.device is not None, "an estimate needs a device"
    return estimate(recipe, engine, vocabulary_size, hardware.world_size or 1, hardware.device, teacher)


def refuse_what_cannot_fit(
    recipe: TrainRecipe,
    engine: EngineConfig,
    vocabulary_size: int,
    hardware: Hardware,
    teacher: ModelConfig | None = None,
) -> None:
    """Raise where the model, its state and its activations cannot fit.

    Raises:
        ConfigError: tensor ranks do not divide the padded vocabulary.
        PipelineError: what is needed, what is available, and settings that would fit.
    """
    rows, tensor = padded_vocabulary(vocabulary_size), engine.tensor_parallel_size
    if rows % tensor:
        divisor = math.gcd(rows, 1 << tensor.bit_length() - 1)
        raise ConfigError(
            f"engine.tensor_parallel_size = {tensor} does not divide the {rows} rows of the vocabulary "
            f"({vocabulary_size} tokens, padded to a multiple of 128); set it to {divisor}"
        )
    needed = needed_memory(recipe, engine, vocabulary_size, hardware, teacher)
    if not fits(needed, hardware, _TOLERANCE):
        raise PipelineError(
            f"this model does not fit: {in_words(needed, hardware)}. "
            + suggestion(recipe, engine, vocabulary_size, hardware, teacher)
            + ("" if teacher is None else " Without a running teacher: train.distillation.logits = 'sampled'.")
        )


def suggestion(
    recipe: TrainRecipe,
    engine: EngineConfig,
    vocabulary_size: int,
    hardware: Hardware,
    teacher: ModelConfig | None = None,
) -> str:
    """The smallest change that would make it fit, in words.

    Fewer settings come before more, and those that cost less speed first. Offloading is suggested only where nothing
    else helps; then the number of ranks that would do without it is named too.
    """
    ranks = hardware.ranks or Ranks()

    def fitting(world_size: int, ladder: list[dict[str, object]]) -> dict[str, object] | None:
        """The first changes of the ladder that fit on this many ranks."""
        there = Hardware(Ranks(0, world_size), hardware.device)
        changes: dict[str, object] = {}
        for change in ladder:
            changes |= {name: value for name, value in change.items() if getattr(engine, name) != value}
            tried = engine.model_copy(update=changes)
            if not faults_of(recipe, Settings(engine=tried), there) and fits(
                needed_memory(recipe, tried, vocabulary_size, there, teacher), hardware
            ):
                return changes
        return None

    ladder, offloads = _ladder(engine), _offloads(engine)
    here = fitting(ranks.world_size, ladder)
    if here is not None:
        return f"It would fit with {_settings(here)}."
    here, world, more = fitting(ranks.world_size, [*ladder, *offloads]), ranks.world_size, None
    while more is None and world < _MAX_RANKS:
        world *= 2
        more = fitting(world, ladder)
    if here is not None:
        alternative = f", or on {world} ranks with {_settings(more)}" if more is not None else ""
        return f"It would fit with {_settings(here)}{alternative}."
    if more is not None:
        return f"No setting makes it fit on {ranks.world_size} rank(s); {world} would do, with {_settings(more)}."
    return "No setting makes it fit on ranks of this size; choose a smaller model or shorter rows."


def _settings(changes: dict[str, object]) -> str:
    """Changes in words; there are none where only ranks are missing."""
    return (
        "these settings" if not changes else ", ".join(f"engine.{name} = {value!r}" for name, value in changes.items())
    )


def _ladder(engine: EngineConfig) -> list[dict[str, object]]:
    """Changes that save memory, cheap ones first; each adds to the previous."""
    changes: list[dict[str, object]] = [{}, {"zero_stage": max(engine.zero_stage, 2)}]
    if engine.expert_parallel_size == 1:  # refused at stage 3
        changes.append({"zero_stage": 3})
    changes.append({"activation_checkpointing": "full"})
    micro = engine.micro_batch_size
    while micro > 1:
        micro //= 2
        changes.append({"micro_batch_size": micro})
    return changes


def _offloads(engine: EngineConfig) -> list[dict[str, object]]:
    """Last changes of the ladder.

    They offload state, then weights into host memory, which every step fetches.
    """
    places = {"offload_optimizer": engine.offload_optimizer}
    if engine.expert_parallel_size == 1:
        places["offload_parameters"] = engine.offload_parameters
    return [{name: "cpu"} for name, place in places.items() if place != "nvme"]


def in_words(needed: Estimate, hardware: Hardware) -> str:
    """Memory needed, by purpose, and memory available, in words."""
    parts = [f"{_gib(needed.device_bytes)} on the device ({_listed(needed.device)})"]
    if needed.host:
        parts.append(f"{_gib(needed.host_bytes)} of the host ({_listed(needed.host)})")
    host = f" and {_gib(hardware.host_bytes)} of the host" if needed.host else ""
    return (
        f"a rank needs about {' and '.join(parts)}, and may use {_gib(hardware.device_bytes)} on the device{host} "
        f"({hardware.local_world_size} rank(s) per node)"
    )


def _listed(values: dict[str, int]) -> str:
    largest = sorted(values.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {_gib(count)}" for name, count in largest if count)


def _gib(count: int | None) -> str:
    return "an unknown amount" if count is None else f"{count / 2**30:,.1f} GiB"
