"""Process group set-up from RANK, WORLD_SIZE and SLURM_*.

A rank is started by torchrun, by `srun` (one task a rank), or directly: then it is the only one, and needs neither a
port nor a network. In each case the standard variables are set afterwards, because libraries read them.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import fcntl
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from governance.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from pretrain.config.training import EngineConfig

_FIRST_SPECIAL_STEP = 0xFFFFFFF0  # Slurm's batch, extern and interactive steps: a shell, not ranks
HOST = "cpu"
_PORTS = range(20_000, 32_768)  # ports of a Slurm job's process group; below Linux's ephemeral range
_SOMEWHERE = ("192.0.2.1", 9)  # an address of no host (RFC 5737), reached by the default route
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface
_NETWORK = ("GLOO_", "NCCL_", "TP_SOCKET", "MASTER_", "FI_", "UCX_")
_ALLOCATOR = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}  # the second is the older name
_HOSTS: dict[str, Any] = {}
"""All ranks over the hosts' network ("group"), unless the default group is that already."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Number on this node."""
    local_world_size: int = 1
    """Ranks on this node."""

    @property
    def first(self) -> bool:
        """Return whether this is rank 0, which writes for all."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return -(-self.world_size // self.local_world_size)


def read_ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """Ranks from torchrun's variables, a Slurm step's, or alone.

    Raises:
        ConfigError: a variable is missing or not a number.
    """
    values = os.environ if environment is None else environment
    if "RANK" in values:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        fallbacks: tuple[str | None, ...] = (None, None, values["RANK"], values.get("WORLD_SIZE"))
    elif _in_slurm_step(values):
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        fallbacks = (None, None, None, "1")
    else:
        return Ranks()
    numbers = [_number(name, values.get(name, fallback)) for name, fallback in zip(names, fallbacks, strict=True)]
    ranks = Ranks(*numbers)
    if not ranks.rank < ranks.world_size:
        raise ConfigError(f"{names[0]}={ranks.rank} is not below {names[1]}={ranks.world_size}; start all ranks alike")
    return ranks


def _number(name: str, text: str | None) -> int:
    text = text and text.partition("(")[0].partition(",")[0]  # Slurm writes "4(x2),3" for 4, 4 and 3 tasks
    if text is None or not text.isdecimal():
        raise ConfigError(f"environment variable {name} is {text!r}, not a number; start ranks with torchrun or srun")
    return int(text)


def _in_slurm_step(values: Mapping[str, str]) -> bool:
    """Return whether `srun` started this process.

    A batch script is one process, whatever SLURM_NTASKS is.
    """
    step = values.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in values and step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP


def slurm_attempt(environment: Mapping[str, str] | None = None) -> tuple[str, int, int]:
    """Slurm job ("cluster/id"), restart count, and earlier tries in the allocation.

    ("", 0, 0) outside.
    """
    values = os.environ if environment is None else environment
    if "SLURM_JOB_ID" not in values:
        return "", 0, 0
    job = f"{values.get('SLURM_CLUSTER_NAME', '')}/{values['SLURM_JOB_ID']}"
    restart = _number("SLURM_RESTART_COUNT", values.get("SLURM_RESTART_COUNT", "0"))
    return job, restart, _number("ASSAY_RETRY", values.get("ASSAY_RETRY", "0"))


def rendezvous_name(environment: Mapping[str, str] | None = None) -> str:
    """Name shared by the processes of one start: job, restart, step."""
    values = os.environ if environment is None else environment
    job, restart, _ = slurm_attempt(values)
    place = f"{job.strip('/').replace('/', '-')}-{restart}" if job else "here"
    if step := values.get("SLURM_STEP_ID") if job else None:
        return f"{place}-{step}"
    alone = values.get("WORLD_SIZE", "1") == "1"
    return f"{place}-{os.getpid() if alone else values.get('MASTER_ADDR', '') + '-' + values.get('MASTER_PORT', '')}"


def node_name() -> str:
    """This node's name in Slurm; elsewhere the host's name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rendezvous_address(values: Mapping[str, str]) -> tuple[str, int]:
    """Address and port of rank 0 in a Slurm step.

    The job script sets both (`MASTER_ADDR`, `MASTER_PORT`). Otherwise they are the node that launched the step, and a
    port that follows from the job's id, so that two jobs on one node rarely choose the same.
    """
    address = values.get("MASTER_ADDR") or values.get("SLURM_LAUNCH_NODE_IPADDR")
    address = address or values.get("SLURMD_NODENAME", "127.0.0.1")
    if "MASTER_PORT" in values:
        return address, _number("MASTER_PORT", values["MASTER_PORT"])
    job = _number("SLURM_JOB_ID", values.get("SLURM_JOB_ID"))
    return address, _PORTS[job % len(_PORTS)]


def interface_to(address: str) -> str | None:
    """Network interface by which this node reaches `address`, if known.

    For this node's own name, hosts files often have 127.0.0.1, which other nodes cannot reach: then it is the
    interface of the default route.
    """
    own = _own_address((address, 9))
    if own is None or own.startswith("127."):
        own = _own_address(_SOMEWHERE)
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            request = struct.pack("256s", name.encode()[:15])
            if socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24]) == own:
                return name
    return None


def _own_address(to: tuple[str, int]) -> str | None:
    """Source address of packets to there; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(to)
        return str(probe.getsockname()[0])
    return None


def device_of(ranks: Ranks, requested: str = "auto") -> torch.device:
    """The device that this rank computes on.

    `requested` is "auto" (a GPU if there is one), "cpu" or "cuda".

    Raises:
        ConfigError: a GPU is requested and there is none, or fewer than ranks.
    """
    import torch

    found = torch.cuda.device_count() if requested != "cpu" and torch.cuda.is_available() else 0
    return torch.device("cuda", ranks.local_rank) if kind_of(found, ranks, requested) == "cuda" else torch.device("cpu")


def kind_of(found: int, ranks: Ranks, requested: str) -> Literal["cpu", "cuda"]:
    """Device kind on a node with `found` GPUs.

    Raises:
        ConfigError: a GPU is requested and there is none, or fewer than ranks.
    """
    if requested == "cuda" and not found:
        raise ConfigError(
            "engine.device = 'cuda': this machine shows no GPU to torch (see CUDA_VISIBLE_DEVICES, the driver and "
            "whether this torch is built for CUDA). Run on a machine with a GPU, or set device = 'auto' or 'cpu'."
        )
    if requested == "cpu" or not found:
        return "cpu"
    if ranks.local_rank >= found:
        raise ConfigError(
            f"{ranks.local_world_size} ranks on a node of {found} GPU(s); start one rank per GPU. Each rank must see "
            "all GPUs of its node: remove --gpus-per-task and --gpu-bind from slurm.options and slurm.srun_options."
        )
    return "cuda"


def rendezvous_device(ranks: Ranks, requested: str) -> str:
    """The requested device, or "cpu" where a rank would lack it.

    All ranks of a node get the same answer.
    """
    try:
        device_of(replace(ranks, local_rank=ranks.local_world_size - 1), requested)
    except ConfigError:
        return "cpu"
    return requested


def join(ranks: Ranks, timeout_seconds: float, requested: str = "auto") -> torch.device:
    """Join the process group (nccl or gloo); return this rank's device.

    The group lasts as long as the process, because DeepSpeed keeps the groups that it derives from it.

    Raises:
        ConfigError: the requested device does not exist.
    """
    import torch
    from torch import distributed

    device = device_of(ranks, requested)
    if device.type == "cuda":
        if not _ALLOCATOR & os.environ.keys():  # torch reads it at its first allocation on the device
            os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        torch.cuda.set_device(device)
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives that torch records, for a hang's evidence
    if distributed.is_initialized():
        return device
    # gloo connects two ranks when they first talk: about 2 + 2 log2(N) a rank, instead of all N (N - 1) / 2 pairs
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    publish(ranks)
    options: dict[str, Any] = {
        "backend": "nccl" if device.type == "cuda" else "gloo",
        "timeout": datetime.timedelta(seconds=timeout_seconds),
        "rank": ranks.rank,
        "world_size": ranks.world_size,
    }
    if ranks.world_size == 1:
        options["store"] = distributed.HashStore()
    else:
        _log_network(ranks, options["backend"])
        if device.type == "cuda":  # NCCL connects now, and derives each later group from this one
            options["device_id"] = device
    distributed.init_process_group(**options)
    if options["backend"] != "gloo":
        _HOSTS["group"] = distributed.new_group(backend="gloo", timeout=options["timeout"])
    atexit.register(_part)
    return device


def end_rank(status: int) -> None:
    """End a rank's process with `status`; elsewhere do nothing.

    Everything is written by then. Otherwise the interpreter would be torn down while gloo's threads may still hold
    tensors of a finished collective, and now and then the process would abort after its work is done ("terminate called
    without an active exception"; pytorch#179291 explains it): a finished job would count as crashed.
    """
    from torch import distributed

    if not distributed.is_initialized():
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _part() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def publish(ranks: Ranks) -> None:
    """Set torchrun's variables for torch and DeepSpeed."""
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(ranks.rank), str(ranks.world_size)
    os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"] = str(ranks.local_rank), str(ranks.local_world_size)
    slurm = _in_slurm_step(os.environ)
    if "MASTER_ADDR" not in os.environ or (slurm and "MASTER_PORT" not in os.environ):
        address, port = rendezvous_address(os.environ) if slurm else ("127.0.0.1", _PORTS[0])
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    unset = slurm and ranks.world_size > ranks.local_world_size and "GLOO_SOCKET_IFNAME" not in os.environ
    # by default gloo takes the interface of this host's name, which in many hosts files is the loopback
    if unset and (interface := interface_to(os.environ["MASTER_ADDR"])):
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def _log_network(ranks: Ranks, backend: str) -> None:
    """Log the network settings of the ranks, once."""
    from governance.log import get_logger

    if ranks.first:
        set_here = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(_NETWORK)]
        get_logger(__name__).info("network: %s over %d ranks; %s", backend, ranks.world_size, " ".join(set_here))


def add_up(values: list[float] | list[int], device: torch.device | str) -> list[Any]:
    """Sum each value over all ranks: integers exactly, others in fp64.

    On `HOST` the sum does not wait for a GPU's queue.
    """
    import torch
    from torch import distributed

    device = torch.device(device)
    whole = all(isinstance(value, int) for value in values)
    tensor = torch.tensor(values, dtype=torch.int64 if whole else torch.float64, device=device)
    distributed.all_reduce(tensor, group=_HOSTS.get("group") if device.type == HOST else None)
    return tensor.tolist()


def broadcast(tensor: torch.Tensor, source: int) -> None:
    """Overwrite a tensor on every rank with the tensor of rank `source`."""
    from torch import distributed

    if distributed.get_world_size() > 1:
        distributed.broadcast(tensor, source, group=_HOSTS.get("group") if tensor.is_cpu else None)


def ranks_store() -> Any:
    """A thread's own connection to the ranks' store; None alone."""
    from torch import distributed
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store().clone() if distributed.get_world_size() > 1 else None


def gather(value: Any) -> list[Any]:
    """The value of every rank, in rank order, on every rank."""
    from torch import distributed

    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def lone_device(engine: EngineConfig) -> torch.device:
    """The device of a process without other ranks, whose threads are set.

    Raises: as `device_of`.
    """
    import torch

    torch.set_num_threads(threads_of(Ranks(), engine.threads))
    return device_of(Ranks(), engine.device)


def threads_of(ranks: Ranks, requested: int) -> int:
    """CPU threads of this rank.

    The requested number, or its share of the cores.
    """
    return requested or max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size)
