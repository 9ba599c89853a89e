"""Node checks before training: `assay slurm preflight`.

    preflight node2: gpus: 8 of 8 visible
    preflight node2: ecc: BAD: GPU 3: 2 uncorrected errors
    preflight bad-node=node2;

One line per check, with its figures. A fault that another node would not have names the node ("bad-node=...;") and ends
with status 69: the job script excludes the node and requests another. A fault that every node would have (no room below
the root, a root that is not shared) names none. A finished run is not checked.

The nodes meet by files below the root first, which proves that they share it, and then by the network, over which they
compare their clocks: file times are not trusted. The first node names the nodes that do not arrive. Price: about ten
seconds, most of it importing torch.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from governance.errors import ClusterError
from governance.files import json_text, touch, write_text
from pretrain.config.training import EngineConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks, device_of, node_name, publish
from pretrain.distributed.rendezvous import await_keys, until
from pretrain.preflight.hardware import Hardware

if TYPE_CHECKING:
    from torch import distributed

_MEET_SECONDS = 120.0  # between the first and the last node's start, including until its file is seen
_LISTING_SECONDS = 1.0  # between two looks at the folder where nodes meet: a metadata server serves all of them
_NAMES_FILE = "nodes.json"
_CONNECT_SECONDS = 60.0
_ARRIVE_SECONDS = _CONNECT_SECONDS / 2  # the others wait longer for the first node's word on who is missing
_SUM_SECONDS = 120.0
_DRIVER_SECONDS = 60.0
_LINGER_SECONDS = 2.0  # the first node's store stays open this much longer, for the others to read who is missing
_SKEW_SECONDS = 5.0
_EXCHANGES = 5  # clock readings per node; the quickest counts
_ELEMENTS = 8 << 20  # 32 MiB in the all-reduce
_ROUNDS = 3
_PERIOD = 1000  # sums of whole numbers below this are exact in fp32 up to 4,000 nodes
_MIB = 1 << 20


@dataclass(frozen=True)
class NodeFinding:
    """Result of one check on this node."""

    check: str
    figures: str
    bad: bool = False
    nodes: tuple[str, ...] = ()
    """Nodes to exclude; none where another node would have the same fault."""

    def line(self, node: str) -> str:
        """The printed line."""
        return f"preflight {node}: {self.check}: {'BAD: ' * self.bad}{self.figures}"


def check_node(
    engine: EngineConfig,
    hardware: Hardware,
    needed_bytes: int,
    root: Path,
    ranks: Ranks,
    meeting: str,
    say: Callable[[str, Sequence[NodeFinding]], None],
) -> None:
    """Check this node together with the other nodes of its job step.

    Args:
        engine: the run's section.
        hardware: that the job requested on each node.
        needed_bytes: that a save writes (`save_bytes`).
        root: the folder of all artifacts.
        ranks: this node among the others, one process each.
        meeting: a name that only this start of this job uses.
        say: prints the lines of all findings at once.

    Raises:
        ClusterError: a check failed.
    """
    node = node_name()
    findings = [gpus(hardware, engine, node), ecc(hardware, node, _nvidia_smi), disk(needed_bytes, root)]
    findings += extension(engine, hardware, node)
    found, names = shared_root(root / "slurm" / "preflight" / meeting, ranks, node)
    findings += found
    if ranks.world_size > 1 and names is not None:
        findings += network(ranks, names, engine.device)
    lines = [finding.line(node) for finding in findings]
    out = sorted({name for finding in findings for name in finding.nodes})
    say("\n".join([*lines, *(f"preflight bad-node={name};" for name in out)]), findings)
    if bad := [finding for finding in findings if finding.bad]:
        raise ClusterError(
            f"{node}: " + "; ".join(f"{finding.check}: {finding.figures}" for finding in bad)
            + (f". Exclude {', '.join(out)}." if out else ". Another node would have the same fault.")
        )  # fmt: skip


def gpus(hardware: Hardware, engine: EngineConfig, node: str) -> NodeFinding:
    """Check the number of GPUs that torch sees."""
    if not hardware.gpus:
        return NodeFinding("gpus", "none requested")
    shown = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES", "")  # AMD's name
    given = [name for name in shown.split(",") if name]
    if engine.device == "cpu":
        return NodeFinding("gpus", f"{len(given)} of {hardware.gpus} given by Slurm; engine.device = 'cpu' uses none")
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return NodeFinding("gpus", f"this torch is built without CUDA and ROCm; Slurm gave {len(given)}", bad=True)
    seen = torch.cuda.device_count()
    figures = f"{seen} of {hardware.gpus} visible to torch, {len(given)} given by Slurm"
    return NodeFinding("gpus", figures, bad=seen < hardware.gpus, nodes=(node,) if seen < hardware.gpus else ())


def ecc(hardware: Hardware, node: str, query: Callable[[], str | None]) -> NodeFinding:
    """Check ECC errors since the driver was loaded, and pending repairs."""
    if not hardware.gpus:
        return NodeFinding("ecc", "no GPU")
    try:
        answer = query()
    except subprocess.TimeoutExpired as error:
        return NodeFinding("ecc", f"nvidia-smi did not answer for {error.timeout:.0f} s", bad=True, nodes=(node,))
    if answer is None:
        return NodeFinding("ecc", "unknown: no nvidia-smi on this node, or it refuses")
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
        return NodeFinding("ecc", "; ".join(faults), bad=True, nodes=(node,))
    return NodeFinding("ecc", f"{count} GPUs, no uncorrected error")


def _nvidia_smi() -> str | None:
    """One line per GPU; None where the tool is missing or refuses.

    A driver that hangs raises TimeoutExpired. The tool is not waited for then: no signal ends a process in a driver.
    """
    fields = "index,ecc.errors.uncorrected.volatile.total,retired_pages.pending,remapped_rows.pending"
    try:
        tool = subprocess.Popen(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
            errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        return None
    try:
        answer, _ = tool.communicate(timeout=_DRIVER_SECONDS)
    except subprocess.TimeoutExpired:
        tool.kill()
        raise
    return answer if tool.returncode == 0 else None


def disk(needed: int, root: Path) -> NodeFinding:
    """Check that the root has room for one more save."""
    root = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(root).free
    figures = f"{free // _MIB:,} MiB free below {root}, a save takes {needed // _MIB:,} MiB"
    return NodeFinding("disk", figures, bad=free < needed)


def checkpoint_bytes(recipe: TrainRecipe, vocabulary_size: int) -> int:
    """Bytes of a checkpoint's canonical form: masters and moments in fp32."""
    from pretrain.finetuning.trained_parameters import trained_count
    from pretrain.optim.optimizers import moment_count
    from pretrain.preflight.memory import block_parameters

    learning = trained_count(recipe, vocabulary_size)
    in_blocks = 0 if recipe.train.freezes else block_parameters(recipe.model, vocabulary_size)
    return 4 * (learning + moment_count(recipe.optim, learning, learning - in_blocks))


def base_bytes(recipe: TrainRecipe, vocabulary_size: int) -> int:
    """Bytes of the base of frozen parameters, which is stored once."""
    from pretrain.model.flops import parameter_count

    return 4 * parameter_count(recipe.model, vocabulary_size) if recipe.train.freezes else 0


def save_bytes(recipe: TrainRecipe, vocabulary_size: int, world_size: int) -> int:
    """Free bytes that the first save of a run needs.

    Several ranks write their shards before the canonical files, which they read out of them; `checkpoint.native`
    decides only whether the shards stay.
    """
    copies = 2 if world_size > 1 else 1
    return base_bytes(recipe, vocabulary_size) + copies * checkpoint_bytes(recipe, vocabulary_size)


def extension(engine: EngineConfig, hardware: Hardware, node: str) -> Iterator[NodeFinding]:
    """Build the extensions that the engine needs, for training to find."""
    from pretrain.engine.extensions import ASYNC_IO_OP, SHARED_MEMORY_OP, build, extension_folder

    if engine.shared_memory_collectives:
        built = build(extension_folder(), engine.extension_build_seconds)
        result = "built" if built else "cannot be built; training runs without it, slower"
        yield NodeFinding("extension", f"{SHARED_MEMORY_OP}: {result}")
    if "nvme" in (engine.offload_optimizer, engine.offload_parameters):
        device = "cuda" if hardware.gpus else "cpu"
        built = build(extension_folder(), engine.extension_build_seconds, ASYNC_IO_OP, device)
        result = "built" if built else "cannot be built; install libaio with its headers and a C++ compiler"
        yield NodeFinding("extension", f"{ASYNC_IO_OP}: {result}", bad=not built, nodes=() if built else (node,))


def shared_root(folder: Path, ranks: Ranks, node: str) -> tuple[list[NodeFinding], list[str] | None]:
    """Check that all nodes see each other's files.

    A file's name holds its node's name, so that one listing shows all of them and no node opens the others' files. The
    first node alone lists the folder, each second, and writes down the names that it found; the others wait for that
    file. It returns the nodes' names too, or None where some are missing.
    """
    touch(folder / f"{ranks.rank:05d}.{node}")
    deadline, written = time.monotonic() + _MEET_SECONDS, folder / _NAMES_FILE
    names = _nodes_seen(folder) if ranks.first else {}
    while len(names) < ranks.world_size and time.monotonic() < deadline:
        time.sleep(_LISTING_SECONDS)
        names = _nodes_seen(folder) if ranks.first else _nodes_written(written, ranks.world_size)
    if ranks.first and len(names) == ranks.world_size:
        write_text(written, json_text([names[rank] for rank in range(ranks.world_size)]))
    names = names or _nodes_seen(folder)
    seen = len(names)
    summary = f"{seen} of {ranks.world_size} nodes see {folder.parents[2]}"
    if seen < ranks.world_size:
        alone = seen == 1 and ranks.world_size > 2 and not ranks.first
        why = (
            f"{summary} within {_MEET_SECONDS:.0f} s of each other: the root is not on a disk that all nodes share, or "
            f"some nodes start later (importing torch from a slow disk, for example)"
        )
        return [NodeFinding("root", why, bad=True, nodes=(node,) if alone else ())], None
    return [NodeFinding("root", summary)], [names[rank] for rank in range(ranks.world_size)]


def _nodes_seen(folder: Path) -> dict[int, str]:
    """Node names by rank, from one listing of the folder."""
    parts = (name.partition(".") for name in os.listdir(folder))
    return {int(rank): node for rank, _, node in parts if rank.isdecimal()}


def _nodes_written(path: Path, count: int) -> dict[int, str]:
    """Node names by rank, as the first node wrote them.

    {} until then, and where the file does not hold `count` names.
    """
    try:
        names = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    whole = isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)
    return dict(enumerate(names)) if whole else {}


def network(ranks: Ranks, names: Sequence[str], device: str) -> list[NodeFinding]:
    """Check connectivity, clocks, a global sum and its speed."""
    from torch import distributed

    publish(ranks)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = datetime.timedelta(seconds=_CONNECT_SECONDS)
    try:
        store = distributed.TCPStore(address, port, None, ranks.first, patience, wait_for_workers=False)
        missing = _presence(store, ranks, names)
    except (RuntimeError, OSError) as error:
        # The first node names those that did not arrive. If it cannot open its store, none of the others is at fault.
        fault = f"cannot reach {address}:{port} of {names[0]}: {_first_line(error)}"
        return [NodeFinding("network", fault, bad=True)]
    if missing:
        if len(missing) == len(names) - 1 > 1:  # no node reaches the first one, which is at fault
            missing = [names[0]]
        fault = f"no connection from {', '.join(missing)} to {address}:{port} within {_ARRIVE_SECONDS:.0f} s"
        return [NodeFinding("network", fault, bad=True, nodes=tuple(missing))]
    found = []
    try:
        offsets = exchange(store, ranks)
        found = [clock(offsets, ranks, names)]
        return [*found, _sum(ranks, names, store, device)]
    except (RuntimeError, OSError) as error:
        what = "all-reduce" if found else "exchange of the time"
        return [*found, NodeFinding("network", f"{what} failed: {_first_line(error)}", bad=True)]


def exchange(store: distributed.Store, ranks: Ranks) -> list[tuple[float, float]]:
    """Clock offsets from the first node, with error bounds.

    The first node answers each of the others in turn with its time, read between question and answer: half of that
    interval bounds the error (F. Cristian, Probabilistic clock synchronization, 1989). The quickest of `_EXCHANGES`
    counts, since a node's first one includes the wait for its turn.

    Raises:
        RuntimeError: a node does not answer.
    """
    if ranks.first:
        for rank in range(1, ranks.world_size):
            for turn in range(_EXCHANGES):
                store.get(f"question-{rank}-{turn}")
                store.set(f"time-{rank}-{turn}", repr(time.time()))
        others = [json.loads(store.get(f"ahead-{rank}")) for rank in range(1, ranks.world_size)]
        store.set("ahead", json.dumps([[0.0, 0.0], *others]))
    else:
        quickest = (0.0, float("inf"))
        for turn in range(_EXCHANGES):
            began = time.monotonic()
            store.set(f"question-{ranks.rank}-{turn}", "")
            theirs = float(store.get(f"time-{ranks.rank}-{turn}"))
            bound = (time.monotonic() - began) / 2
            quickest = min(quickest, (time.time() - bound - theirs, bound), key=lambda pair: pair[1])
        store.set(f"ahead-{ranks.rank}", json.dumps(quickest))
    return [(ahead, bound) for ahead, bound in json.loads(store.get("ahead"))]


def clock(offsets: Sequence[tuple[float, float]], ranks: Ranks, names: Sequence[str]) -> NodeFinding:
    """Check this node's clock against the majority.

    A first node whose clock is off is therefore named, and not all the others. If two nodes differ, either may be
    wrong: both are excluded.
    """
    ahead, bound = offsets[ranks.rank]
    agree = sum(abs(ahead - other) - bound - error <= _SKEW_SECONDS for other, error in offsets)
    bad = 2 * agree <= len(offsets)
    figures = f"{ahead:+.3f} s (within {bound:.3f} s) from {names[0]}'s, {agree} of {len(offsets)} nodes agree"
    return NodeFinding("clock", figures, bad=bad, nodes=(names[ranks.rank],) if bad else ())


def _presence(store: distributed.Store, ranks: Ranks, names: Sequence[str]) -> list[str]:
    """Names of nodes that did not reach the first one's store."""
    store.set(f"here-{ranks.rank}", "yes")
    if not ranks.first:
        return list(json.loads(store.get("missing")))
    keys = [f"here-{rank}" for rank in range(len(names))]
    late = await_keys(store, keys, until(time.monotonic() + _ARRIVE_SECONDS))
    missing = [names[keys.index(key)] for key in late]
    store.set("missing", json.dumps(missing))
    if missing:
        time.sleep(_LINGER_SECONDS)
    return missing


def _sum(ranks: Ranks, names: Sequence[str], store: distributed.Store, requested: str) -> NodeFinding:
    import torch
    from torch import distributed

    device = device_of(Ranks(ranks.rank, ranks.world_size), requested)
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
        moved = 4 * _ELEMENTS * 2 * (world - 1) / world  # bytes that a ring sends and receives on each node
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "chosen by the library")
        figures = f"{backend} over {interface}: {moved / quickest / 1e9:.2f} GB/s per node, sums over {world} nodes "
        count = torch.tensor(float(wrong > 0), device=device)
        distributed.all_reduce(count)
        if wrong:  # where all have a wrong sum, any of them may have caused it
            blamed = (names[ranks.rank],) if count < world else ()
            return NodeFinding("network", f"{figures}are wrong in {wrong} elements", bad=True, nodes=blamed)
        return NodeFinding("network", f"{figures}are right")
    finally:
        distributed.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def say_at_once(text: str) -> None:
    """Print in one write: several nodes write into one log."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
