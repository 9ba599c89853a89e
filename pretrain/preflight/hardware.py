"""Hardware of one rank, against which a start of training is checked."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, Settings, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks

if TYPE_CHECKING:
    import torch

_MATRIX_FLAGS = (
    "avx2", "avx_vnni", "avx_ne_convert", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16",
)  # fmt: skip
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Limit and use, of version 2 and of version 1."""


@dataclass(frozen=True)
class Hardware:
    """Ranks, device and memory, as far as they are known.

    None and 0 are unknown: rules about them do not apply, and nothing is refused for lack of memory.
    """

    ranks: Ranks | None = None
    """All ranks, of which this is one."""
    device: Literal["cpu", "cuda"] | None = None
    capability: tuple[int, int] | None = None
    """Compute capability of the GPU."""
    gpus: int = 0
    """GPUs that the node shows to a rank that computes on one."""
    device_bytes: int | None = None
    """Memory that the rank may use where it computes."""
    host_bytes: int | None = None
    """Its share of the node's memory; on CPU this is the same memory."""

    @property
    def world_size(self) -> int | None:
        """Number of ranks."""
        return None if self.ranks is None else self.ranks.world_size

    @property
    def local_world_size(self) -> int:
        """Ranks of a node."""
        return 1 if self.ranks is None else self.ranks.local_world_size


class Start(NamedTuple):
    """A start of training, as a compatibility rule sees it."""

    recipe: TrainRecipe
    settings: Settings
    hardware: Hardware

    @property
    def model(self) -> ModelConfig:
        """Section `[model]`."""
        return self.recipe.model

    @property
    def optim(self) -> OptimConfig:
        """Section `[optim]`."""
        return self.recipe.optim

    @property
    def train(self) -> TrainConfig:
        """Section `[train]`."""
        return self.recipe.train

    @property
    def engine(self) -> EngineConfig:
        """Section `[engine]`."""
        return self.settings.engine


def arithmetic() -> dict[str, Any]:
    """Threads, processor and instructions, which decide the last bits of sums."""
    import torch

    lines = _lines(Path("/proc/cpuinfo"))
    model = next((line for line in lines if line.startswith("model name")), ":")
    return {
        "threads": torch.get_num_threads(),
        "processor": model.partition(":")[2].strip() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "matrix_instructions": _matrix_instructions(lines),
    }


def _matrix_instructions(lines: list[str]) -> str:
    """Instructions by which oneDNN chooses kernels, and its settings.

    Virtual machines of one processor's name have them or not, and torch's own capability does not say so.
    """
    flags = next((line for line in lines if line.startswith("flags")), ":").partition(":")[2].split()
    known = [name for name in _MATRIX_FLAGS if name in flags]
    limits = (os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"))
    mode = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE")  # lower precision for products in fp32
    return " ".join([*known, *(f"up to {limit}" for limit in limits if limit), *([f"fpmath {mode}"] if mode else [])])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def hardware_of(ranks: Ranks, device: torch.device) -> Hardware:
    """Hardware of this rank, with the memory that is free now."""
    import torch

    if device.type != "cuda":
        return cpu_hardware(ranks)
    return Hardware(
        ranks,
        "cuda",
        torch.cuda.get_device_capability(device),
        torch.cuda.device_count(),
        device_bytes=torch.cuda.mem_get_info(device)[0],
        host_bytes=host_share(ranks),
    )


def cpu_hardware(ranks: Ranks) -> Hardware:
    """Hardware of a rank that computes on this node's CPUs.

    It imports no torch.
    """
    share = host_share(ranks)
    return Hardware(ranks, "cpu", device_bytes=share, host_bytes=share)


def host_share(ranks: Ranks) -> int:
    """This rank's share of the node's free memory, in bytes."""
    return free_host_bytes() // ranks.local_world_size


def free_host_bytes(root: Path = Path("/")) -> int:
    """Bytes of the node that this job's processes may still take.

    The system's count, or what the process's cgroup or one around it still allows, if less. A node's Slurm sets the
    limit on the group of the job, and shows the node's own groups to its processes.

    `root` is the parent of proc and sys.
    """
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    for group in _groups(root):
        for limit, used in _CGROUP_FILES:
            if (group / limit).exists() and (group / used).exists():
                text = (group / limit).read_text(encoding="ascii").strip()
                taken = int((group / used).read_text(encoding="ascii")) - _cached(group)
                if text != "max":
                    free = min(free, max(0, int(text) - taken))
    return free


def _groups(root: Path) -> list[Path]:
    """Folders of this process's memory cgroups, and of enclosing ones.

    A container may show its own group as the top one, under whatever path the process has on the node.
    """
    found: dict[Path, None] = {}
    paths = {"": "/", "memory": "/"} | {
        names: path for _, names, path in (line.split(":", 2) for line in _lines(root / "proc/self/cgroup"))
    }
    for names, path in paths.items():
        if names == "" or "memory" in names.split(","):
            top = root / "sys/fs/cgroup" / names
            inner = top / path.lstrip("/")
            found |= dict.fromkeys(folder for folder in (inner, *inner.parents) if folder.is_relative_to(top))
    return list(found)


def _cached(group: Path) -> int:
    """Reclaimable page cache of the cgroup, inner ones included, in bytes."""
    path = group / "memory.stat"
    if not path.exists():
        return 0
    lines = path.read_text(encoding="ascii").splitlines()
    values = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    return values.get("total_inactive_file", values.get("inactive_file", 0))
