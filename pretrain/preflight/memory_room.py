"""Available memory, and refusal of what cannot fit.

Promise: a configuration that cannot fit is refused within a second, with what is needed, what there is and settings
that would fit; one that fits is not refused unless the estimate is too high by more than `_TOLERANCE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from governance.errors import PipelineError
from pretrain.config.training import EngineConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks
from pretrain.preflight.compatibility import faults_of
from pretrain.preflight.memory import Estimate, estimate
from pretrain.preflight.situation import Situation

if TYPE_CHECKING:
    import torch

_TOLERANCE = 1.10
_MOST_RANKS = 1 << 16
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)

Where = tuple[Ranks, Literal["cpu", "cuda"]]
"""All ranks, and on what each computes."""


@dataclass(frozen=True)
class Available:
    """Bytes that a rank may use.

    None: nobody knows, and nothing is refused for it.
    """

    device: int | None
    host: int | None
    """Its share of the node's memory; on CPU both are the same memory."""


def available(device: torch.device, ranks: Ranks) -> Available:
    """Free GPU memory and this rank's share of the host."""
    import torch

    host = host_share(ranks)
    return Available(torch.cuda.mem_get_info(device)[0], host.host) if device.type == "cuda" else host


def host_share(ranks: Ranks) -> Available:
    """Memory that a CPU rank may use now."""
    host = free_host_bytes() // ranks.local_world_size
    return Available(host, host)


def free_host_bytes(root: Path = Path("/")) -> int:
    """Bytes that processes of this job may still take of the node.

    The system's count, or the cgroup's if that is less.

    `root` is where the system's files are found.
    """
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    group = root / "sys/fs/cgroup"
    for limit, used in _CGROUP_FILES:
        if (group / limit).exists() and (group / used).exists():
            text = (group / limit).read_text(encoding="ascii").strip()
            taken = int((group / used).read_text(encoding="ascii")) - _cached(group / Path(limit).parent)
            if text != "max":
                free = min(free, max(0, int(text) - taken))
    return free


def _cached(group: Path) -> int:
    """Reclaimable page cache of the cgroup, in bytes."""
    path = group / "memory.stat"
    if not path.exists():
        return 0
    lines = path.read_text(encoding="ascii").splitlines()
    values = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    return values.get("inactive_file", values.get("total_inactive_file", 0))


def fits(needed: Estimate, there_is: Available, tolerance: float = 1.0) -> bool:
    """Return whether the need is within `tolerance` times the available."""
    pairs = ((needed.device_bytes, there_is.device), (needed.host_bytes, there_is.host))
    return all(has is None or wanted <= has * tolerance for wanted, has in pairs)


def refuse_what_cannot_fit(
    recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, ranks: Ranks, device: torch.device
) -> None:
    """Raise where the model, its state and its activations cannot fit.

    Raises:
        PipelineError: what is needed, what there is, and settings that would fit.
    """
    refuse_beyond(recipe, engine, vocabulary_size, (ranks, device.type), available(device, ranks))


def refuse_beyond(
    recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, where: Where, there_is: Available
) -> None:
    """The same where it is known what there is."""
    ranks, device = where
    needed = estimate(recipe, engine, vocabulary_size, ranks.world_size, device)
    if not fits(needed, there_is, _TOLERANCE):
        told = in_words(needed, there_is, ranks)
        raise PipelineError(
            f"this model does not fit: {told}. " + mend(recipe, engine, vocabulary_size, where, there_is)
        )


def mend(recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, where: Where, there_is: Available) -> str:
    """The least that would make it fit, in words.

    Fewer settings before more, and those that cost less speed first.

    What computes on GPUs is offloaded only where nothing else helps; then the ranks that would do without are named.
    """
    ranks, device = where

    def fitting(world_size: int, ladder: list[dict[str, object]]) -> dict[str, object] | None:
        """The first changes of the ladder that fit on so many ranks."""
        changes: dict[str, object] = {}
        for change in ladder:
            changes |= {name: value for name, value in change.items() if getattr(engine, name) != value}
            tried = engine.model_copy(update=changes)
            situation = Situation(recipe.model, recipe.optim, recipe.train, tried, device, world_size)
            if not faults_of(situation) and fits(
                estimate(recipe, tried, vocabulary_size, world_size, device), there_is
            ):
                return changes
        return None

    ladder, offloads = _ladder(engine), _offloads(engine)
    here = fitting(ranks.world_size, ladder)
    if here is not None:
        return f"It would fit with {_settings(here)}."
    here, world, more = fitting(ranks.world_size, [*ladder, *offloads]), ranks.world_size, None
    while more is None and world < _MOST_RANKS:
        world *= 2
        more = fitting(world, ladder)
    if here is not None:
        told = f", or on {world} ranks with {_settings(more)}" if more is not None else ""
        return f"It would fit with {_settings(here)}{told}."
    if more is not None:
        return f"No setting makes it fit on {ranks.world_size} rank(s); {world} would do, with {_settings(more)}."
    return "No setting makes it fit on ranks of this size; choose a smaller model or shorter rows."


def _settings(changes: dict[str, object]) -> str:
    """In words; nothing to change where only ranks are missing."""
    return (
        "these settings" if not changes else ", ".join(f"engine.{name} = {value!r}" for name, value in changes.items())
    )


def _ladder(engine: EngineConfig) -> list[dict[str, object]]:
    """Changes that need less memory, cheap ones first.

    Each is tried on top of those before it.
    """
    changes: list[dict[str, object]] = [{}, {"zero_stage": max(engine.zero_stage, 2)}, {"zero_stage": 3}]
    changes.append({"activation_checkpointing": "full"})
    micro = engine.micro_batch_size
    while micro > 1:
        micro //= 2
        changes.append({"micro_batch_size": micro})
    return changes


def _offloads(engine: EngineConfig) -> list[dict[str, object]]:
    """The rest of the ladder.

    State, then weights in host memory, which every step fetches.
    """
    places = {"offload_optimizer": engine.offload_optimizer, "offload_parameters": engine.offload_parameters}
    return [{name: "cpu"} for name, place in places.items() if place != "nvme"]


def in_words(needed: Estimate, there_is: Available, ranks: Ranks) -> str:
    """Memory needed by purpose, and available, in words."""
    parts = [f"{_gib(needed.device_bytes)} on the device ({_listed(needed.device)})"]
    if needed.host:
        parts.append(f"{_gib(needed.host_bytes)} of the host ({_listed(needed.host)})")
    host = f" and {_gib(there_is.host)} of the host" if needed.host else ""
    return (
        f"a rank needs about {' and '.join(parts)}, and may use {_gib(there_is.device)} on the device{host} "
        f"({ranks.local_world_size} rank(s) a node)"
    )


def _listed(values: dict[str, int]) -> str:
    largest = sorted(values.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {_gib(count)}" for name, count in largest if count)


def _gib(count: int | None) -> str:
    return "an unknown amount" if count is None else f"{count / 2**30:,.1f} GiB"
