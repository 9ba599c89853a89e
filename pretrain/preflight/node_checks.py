"""Node checks before training: `assay slurm preflight`.

    preflight node2: gpus: 8 of 8 visible
    preflight node2: ecc: BAD: GPU 3: 2 uncorrected errors
    preflight bad-node=node2;

One line a check with its figures. A fault that another node would not have names the node ("bad-node=...;") and ends
with status 69: the job script leaves the node out and asks for another. A fault that every node would have (no room
below the root, a root that is not shared) names none. What is found of a finished run is that it is finished; then
nothing is checked.

The nodes meet by files below the root first, which is the check that they share it, and then by the network, over which
they compare their clocks: no file's time is believed. A node that does not come is named by the first one. Price:
about ten seconds, most of it importing torch.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from governance.errors import ClusterError
from governance.files import write_json
from pretrain.config.training import EngineConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks, node_name

if TYPE_CHECKING:
    from torch import distributed

_MEET_SECONDS = 120.0  # from the first node's start to the last one's, and until its file is seen
_CONNECT_SECONDS = 60.0
_SUM_SECONDS = 120.0
_POLL_SECONDS = 0.05
_LAST_WORD_SECONDS = 2.0  # the first node's store lives so much longer, for the others to hear who is missing
_SKEW_SECONDS = 5.0
_EXCHANGES = 5  # of the time, a node; the quickest counts
_ELEMENTS = 8 << 20  # of the all-reduce: 32 MiB
_ROUNDS = 3
_PERIOD = 1000  # sums of whole numbers below this are exact in fp32 up to 4,000 nodes
_MIB = 1 << 20


@dataclass(frozen=True)
class Finding:
    """Result of one check on this node."""

    check: str
    figures: str
    bad: bool = False
    nodes: tuple[str, ...] = ()
    """Which nodes to leave out; none where another node would not mend it."""

    def line(self, node: str) -> str:
        """As it is printed."""
        return f"preflight {node}: {self.check}: {'BAD: ' * self.bad}{self.figures}"


@dataclass(frozen=True)
class Asked:
    """Requirements of the run on each node."""

    gpus: int
    recipe: TrainRecipe
    engine: EngineConfig
    native: bool
    """`checkpoint.native`."""
    vocabulary_size: int
    processes: int
    """On each node."""


def check_node(asked: Asked, root: Path, ranks: Ranks, meeting: str, say: Callable[[str], None]) -> None:
    """Check this node together with the others of its step.

    Args:
        asked: what training wants of it.
        root: the folder of all artifacts.
        ranks: this node among the others: one process each.
        meeting: a name that only this start of this job uses.
        say: prints a line.

    Raises:
        ClusterError: something is bad.
    """
    node = node_name()
    findings = [gpus(asked, node), ecc(asked, node, _nvidia_smi), disk(asked, ranks.world_size, root)]
    findings += extension(asked, node)
    found, names = shared_root(root / "slurm" / "preflight" / meeting, ranks, node)
    findings += found
    if ranks.world_size > 1 and names is not None:
        findings += network(ranks, names, asked.engine.device)
    lines = [finding.line(node) for finding in findings]
    out = sorted({name for finding in findings for name in finding.nodes})
    say("\n".join([*lines, *(f"preflight bad-node={name};" for name in out)]))
    if bad := [finding for finding in findings if finding.bad]:
        raise ClusterError(
            f"{node}: " + "; ".join(f"{finding.check}: {finding.figures}" for finding in bad)
            + (f". Leave out {', '.join(out)}." if out else ". Another node would not mend it.")
        )  # fmt: skip


def gpus(asked: Asked, node: str) -> Finding:
    """Check the number of GPUs that torch sees."""
    if not asked.gpus:
        return Finding("gpus", "none asked for")
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if asked.engine.device == "cpu":
        return Finding("gpus", f"{len(given)} of {asked.gpus} given by Slurm; engine.device = 'cpu' uses none")
    import torch

    if torch.version.cuda is None:
        return Finding("gpus", f"this torch is built without CUDA; Slurm gave {len(given)}", bad=True)
    seen = torch.cuda.device_count()
    told = f"{seen} of {asked.gpus} visible to torch, {len(given)} given by Slurm"
    return Finding("gpus", told, bad=seen < asked.gpus, nodes=(node,) if seen < asked.gpus else ())


def ecc(asked: Asked, node: str, query: Callable[[], str | None]) -> Finding:
    """Check ECC errors since the driver was loaded, and pending repairs."""
    if not asked.gpus:
        return Finding("ecc", "no GPU")
    try:
        answer = query()
    except subprocess.TimeoutExpired as error:
        return Finding("ecc", f"nvidia-smi did not answer for {error.timeout:.0f} s", bad=True, nodes=(node,))
    if answer is None:
        return Finding("ecc", "unknown: no nvidia-smi on this node, or it cannot tell")
    faults, count = [], 0
    for line in answer.splitlines():
        index, *counts = [word.strip() for word in line.split(",")]
        count += 1
        kinds = ("uncorrected errors", "retired pages pending", "rows to remap pending")
        numbers = {kind: {"Yes": 1, "No": 0}.get(text, text) for kind, text in zip(kinds, counts, strict=False)}
        faults += [
            f"GPU {index}: {number} {kind}"
            for kind, number in numbers.items()
            if str(number).isdecimal() and int(number) > 0
        ]
    if faults:
        return Finding("ecc", "; ".join(faults), bad=True, nodes=(node,))
    return Finding("ecc", f"{count} GPUs, no uncorrected error")


def _nvidia_smi() -> str | None:
    """A line for each GPU.

    None where the tool is not there or refuses. A driver that hangs is a TimeoutExpired.
    """
    fields = "index,ecc.errors.uncorrected.volatile.total,retired_pages.pending,remapped_rows.pending"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def disk(asked: Asked, nodes: int, root: Path) -> Finding:
    """Room below the root for one more checkpoint of this model."""
    root = next(folder for folder in (root, *root.parents) if folder.exists())
    free, needed = shutil.disk_usage(root).free, checkpoint_bytes(asked, nodes)
    told = f"{free // _MIB:,} MiB free below {root}, a checkpoint takes {needed // _MIB:,} MiB"
    return Finding("disk", told, bad=free < needed)


def checkpoint_bytes(asked: Asked, nodes: int) -> int:
    """Bytes of a checkpoint: masters and moments, twice with native shards."""
    from pretrain.model.flops import parameter_count

    values = 1 + (2 if asked.recipe.optim.optimizer == "adamw" else 1)
    several = nodes * asked.processes > 1 and asked.native
    return 4 * values * parameter_count(asked.recipe.model, asked.vocabulary_size) * (2 if several else 1)


def extension(asked: Asked, node: str) -> list[Finding]:
    """The extensions that the engine asks for can be built here.

    They are, for training to find.
    """
    from pretrain.engine.extensions import ASYNC_IO_OP, SHARED_MEMORY_OP, build, extension_folder

    engine, found = asked.engine, []
    if engine.shared_memory_collectives:
        built = build(extension_folder(), engine.extension_build_seconds)
        told = "built" if built else "cannot be built; training goes on without it, slower"
        found.append(Finding("extension", f"{SHARED_MEMORY_OP}: {told}"))
    if "nvme" in (engine.offload_optimizer, engine.offload_parameters):
        built = build(extension_folder(), engine.extension_build_seconds, ASYNC_IO_OP, "cuda" if asked.gpus else "cpu")
        told = "built" if built else "cannot be built; install libaio with its headers and a C++ compiler"
        found.append(Finding("extension", f"{ASYNC_IO_OP}: {told}", bad=not built, nodes=() if built else (node,)))
    return found


def shared_root(folder: Path, ranks: Ranks, node: str) -> tuple[list[Finding], list[str] | None]:
    """That all nodes see each other's files.

    Returns the finding, and the nodes' names in order; None where they did not all meet.
    """
    write_json(folder / f"{ranks.rank:05d}.json", {"node": node})
    wanted = {f"{rank:05d}.json" for rank in range(ranks.world_size)}
    deadline = time.monotonic() + _MEET_SECONDS
    met: dict[str, str] = {}
    while True:
        for name in sorted((wanted & set(os.listdir(folder))) - set(met)):
            met[name] = json.loads((folder / name).read_bytes())["node"]
        if len(met) == len(wanted) or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    told = f"{len(met)} of {len(wanted)} nodes see {folder.parents[2]}"
    if len(met) < len(wanted):
        alone = len(met) == 1 and ranks.world_size > 2 and not ranks.first
        why = f"{told} within {_MEET_SECONDS:.0f} s of each other; the root must lie on a disk that all nodes share"
        return [Finding("root", why, bad=True, nodes=(node,) if alone else ())], None
    return [Finding("root", told)], [met[name] for name in sorted(met)]


def network(ranks: Ranks, names: Sequence[str], device: str) -> list[Finding]:
    """Check connectivity, clocks, a global sum and its speed."""
    from torch import distributed

    from pretrain.distributed.process_group import publish

    publish(ranks)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = datetime.timedelta(seconds=_CONNECT_SECONDS)
    try:
        store = distributed.TCPStore(address, port, None, ranks.first, patience, wait_for_workers=False)
        missing = _presence(store, ranks, names)
    except (RuntimeError, OSError) as error:
        # The first node names who did not come. If it cannot open its store, none of the others is to blame.
        told = f"cannot reach {address}:{port} of {names[0]}: {_last_line(error)}"
        return [Finding("network", told, bad=True)]
    if missing:
        if len(missing) == len(names) - 1 > 1:  # nobody reaches the first: it is the one
            missing = [names[0]]
        told = f"no connection from {', '.join(missing)} to {address}:{port} within {_CONNECT_SECONDS:.0f} s"
        return [Finding("network", told, bad=True, nodes=tuple(missing))]
    found = []
    try:
        offsets = exchange(store, ranks)
        found = [clock(offsets, ranks, names)]
        return [*found, _sum(ranks, names, store, device)]
    except (RuntimeError, OSError) as error:
        what = "all-reduce" if found else "exchange of the time"
        return [*found, Finding("network", f"{what} failed: {_last_line(error)}", bad=True)]


def exchange(store: distributed.Store, ranks: Ranks) -> list[tuple[float, float]]:
    """Clock offsets from the first node, with error bounds.

    The first node answers each of the others in turn with its time, which is of a moment between question and answer:
    half their distance bounds the error (F. Cristian, Probabilistic clock synchronization, 1989). Of `_EXCHANGES` the
    quickest counts; the first one of a node waits for its turn.

    Raises:
        RuntimeError: a node does not answer.
    """
    if ranks.first:
        for rank in range(1, ranks.world_size):
            for turn in range(_EXCHANGES):
                store.get(f"asked-{rank}-{turn}")
                store.set(f"time-{rank}-{turn}", repr(time.time()))
        others = [json.loads(store.get(f"ahead-{rank}")) for rank in range(1, ranks.world_size)]
        store.set("ahead", json.dumps([[0.0, 0.0], *others]))
    else:
        quickest = (0.0, float("inf"))
        for turn in range(_EXCHANGES):
            asked = time.monotonic()
            store.set(f"asked-{ranks.rank}-{turn}", "")
            theirs = float(store.get(f"time-{ranks.rank}-{turn}"))
            bound = (time.monotonic() - asked) / 2
            quickest = min(quickest, (time.time() - bound - theirs, bound), key=lambda pair: pair[1])
        store.set(f"ahead-{ranks.rank}", json.dumps(quickest))
    return [(ahead, bound) for ahead, bound in json.loads(store.get("ahead"))]


def clock(offsets: Sequence[tuple[float, float]], ranks: Ranks, names: Sequence[str]) -> Finding:
    """Check this node's clock against the majority.

    So a first node whose clock is off is named, and not all the others. Of two nodes that differ nobody can say which
    one is wrong: both are left out.
    """
    ahead, bound = offsets[ranks.rank]
    agree = sum(abs(ahead - other) - bound - error <= _SKEW_SECONDS for other, error in offsets)
    bad = 2 * agree <= len(offsets)
    told = f"{ahead:+.3f} s (within {bound:.3f} s) from {names[0]}'s, {agree} of {len(offsets)} nodes agree"
    return Finding("clock", told, bad=bad, nodes=(names[ranks.rank],) if bad else ())


def _presence(store: distributed.Store, ranks: Ranks, names: Sequence[str]) -> list[str]:
    """Nodes that did not reach the first one's store."""
    store.set(f"here-{ranks.rank}", "yes")
    if not ranks.first:
        return list(json.loads(store.get("missing")))
    deadline, waiting = time.monotonic() + _CONNECT_SECONDS / 2, list(range(len(names)))
    while waiting and time.monotonic() < deadline:
        waiting = [rank for rank in waiting if not store.check([f"here-{rank}"])]
        time.sleep(_POLL_SECONDS)
    missing = [names[rank] for rank in waiting]
    store.set("missing", json.dumps(missing))
    if missing:
        time.sleep(_LAST_WORD_SECONDS)
    return missing


def _sum(ranks: Ranks, names: Sequence[str], store: distributed.Store, wanted: str) -> Finding:
    import torch
    from torch import distributed

    from pretrain.distributed.process_group import device_of

    device = device_of(Ranks(ranks.rank, ranks.world_size), wanted)
    backend = "nccl" if device.type == "cuda" else "gloo"
    world = ranks.world_size
    distributed.init_process_group(
        backend,
        store=distributed.PrefixStore("sum", store),
        rank=ranks.rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=_SUM_SECONDS),
    )
    try:
        numbers = torch.arange(_ELEMENTS, dtype=torch.float32, device=device).remainder_(_PERIOD)
        right = numbers * world + world * (world - 1) / 2
        seconds, wrong = [], 0
        for _ in range(_ROUNDS + 1):
            values = numbers + ranks.rank
            distributed.barrier()
            began = time.monotonic()
            distributed.all_reduce(values)
            wrong += int((values != right).sum())  # waits for the device
            seconds.append(time.monotonic() - began)
        quickest = min(seconds[1:])  # the first one connects
        moved = 4 * _ELEMENTS * 2 * (world - 1) / world  # what a ring sends and receives on each node
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "chosen by the library")
        told = f"{backend} over {interface}: {moved / quickest / 1e9:.2f} GB/s a node, sums over {world} nodes "
        count = torch.tensor(float(wrong > 0), device=device)
        distributed.all_reduce(count)
        if wrong:  # where all have a wrong sum, any of them may have spoilt it
            blamed = (names[ranks.rank],) if count < world else ()
            return Finding("network", f"{told}are wrong in {wrong} elements", bad=True, nodes=blamed)
        return Finding("network", f"{told}are right")
    finally:
        distributed.destroy_process_group()


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def say_at_once(text: str) -> None:
    """Print in one write: several nodes write into one log."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
