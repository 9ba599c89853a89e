"""The file operations and bytes of a rank, by the number of ranks: a save, a load, and the looks at a run's holders.

Ranks are threads of this process, eight to a node, that own equal pieces of every parameter as stage 3 of ZeRO cuts
them. Counted are Python's own events of files below the run's root (open, list, rename, make, remove) and the bytes
that are read from shards and canonical files. The ranks meet through a store in this process; no engine, no network.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks.measures.goals import Goal, figure

RANKS = (8, 64, 512)
A_NODE = 8
_KINDS = ("master", "exp_avg", "exp_avg_sq")
_SHAPES = [(f"layers.{number}.weight", (128, 256)) for number in range(24)]
_FILE_BYTES = 3 * 4 * 128 * 256  # three parameters: eight canonical files, whatever the ranks
NODES = (512, 4096)
_LOOKS = 3
_EVENTS = {
    "open": "opened", "os.listdir": "listed", "os.scandir": "listed", "os.rename": "changed", "os.remove": "changed",
    "os.mkdir": "changed", "os.rmdir": "changed", "os.link": "changed",
}  # fmt: skip
_listeners: list[tuple[str, Counter[str]]] = []
_lock = threading.Lock()
Figures = dict[str, float]


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Count an event. Python never removes an audit hook, so this one does nothing while nobody listens."""
    if not _listeners or event not in _EVENTS or not isinstance(arguments[0], str | Path):
        return
    with _lock:
        for root, counts in _listeners:
            if str(arguments[0]).startswith(root):
                counts[_EVENTS[event]] += 1


sys.addaudithook(_hear)


@contextmanager
def _events(root: Path) -> Iterator[Counter[str]]:
    counts = Counter[str]()
    _listeners.append((str(root), counts))
    try:
        yield counts
    finally:
        _listeners.pop()


def figures(ranks: int) -> Figures:
    """The counts of so many ranks, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        return _save(root / "run", ranks) | _load(root / "run", ranks) | _looks(root / "fence", ranks)


def _own(rank: int, ranks: int) -> list[Any]:
    """A rank's piece of each parameter."""
    import torch

    from pretrain.engine.fragments import Owned

    found = []
    for number, (name, shape) in enumerate(_SHAPES):
        size = math.prod(shape) // ranks
        values = torch.arange(rank * size, (rank + 1) * size, dtype=torch.float32)
        tensors = {kind: values + 1e6 * (number + place / 8) for place, kind in enumerate(_KINDS)}
        found.append(Owned(name, rank * size, size, tensors))
    return found


def _store(root: Path) -> Any:
    from governance.manifest import Input
    from pretrain.checkpoint.format import CheckpointStore
    from pretrain.config.model import ModelConfig
    from pretrain.config.optim import OptimConfig
    from pretrain.config.training import TrainConfig, TrainRecipe

    model = ModelConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    train = TrainConfig(sequence_length=32, global_batch_size=8, steps=9)
    recipe = TrainRecipe(model=model, optim=OptimConfig(learning_rate=0.1), train=train)
    return CheckpointStore(
        root, "a" * 64, 200, recipe, (Input(stage="encode", digest="d" * 64, path="encode/x/manifest.json"),)
    )


def _save(root: Path, ranks: int) -> Figures:
    """One save by all ranks: the events of files per rank, and the bytes of others' shards per byte of the state."""
    import numpy

    from pretrain.checkpoint import canonical
    from pretrain.checkpoint.format import TrainState
    from pretrain.checkpoint.save import CheckpointSource, Saver
    from pretrain.config.training import CheckpointConfig

    read = Counter[str]()

    class Counted(numpy.memmap):
        """Mapping that counts the bytes read from it."""

        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            if isinstance(place, slice):
                with _lock:
                    read["bytes"] += found.nbytes
            return found

    def act(peers: Any) -> None:
        store = replace(_store(root), **peers)
        source = CheckpointSource(lambda: _own(store.ranks.rank, ranks), _SHAPES, 3)
        with Saver(store, source, CheckpointConfig(), {}) as saver:
            saver.save(TrainState(1, 10, [1.5]))

    patches = (mock.patch.object(canonical, "FILE_BYTES", _FILE_BYTES), mock.patch.object(numpy, "memmap", Counted))
    with _events(root) as counts, patches[0], patches[1]:
        _together(ranks, act)
    state = 4 * len(_KINDS) * sum(math.prod(shape) for _, shape in _SHAPES)
    events = {f"save.{kind}_a_rank": counts[kind] / ranks for kind in ("opened", "listed", "changed")}
    return events | {"save.bytes_of_others_to_state": read["bytes"] / state}


def _load(root: Path, ranks: int) -> Figures:
    """Bytes that some ranks read of the canonical form, without headers, per byte that they own."""
    import torch

    from pretrain.checkpoint.format import moments, require_step, weights

    manifest, got, owned, plain = require_step(_store(root), 1), 0, 0, os.preadv

    def counted(*arguments: Any) -> int:
        nonlocal got
        done = plain(*arguments)
        got += done
        return done

    with (
        weights(manifest, root) as masters,
        moments(manifest, root) as others,
        mock.patch.object(os, "preadv", counted),
    ):
        for rank in sorted({0, ranks // 2, ranks - 1}):
            for mine in _own(rank, ranks):
                place = (mine.start, mine.length)
                values = {"master": masters.stretch(mine.name, *place), **others.of(mine.name, *place)}
                assert all(torch.equal(values[kind], mine.tensors[kind]) for kind in _KINDS)
                owned += 4 * len(_KINDS) * mine.length
    return {"load.bytes_to_owned": got / owned}


def _looks(root: Path, ranks: int) -> Figures:
    """Listings of a run's holders that a node requests per second of training, by a simulated clock.

    The first ranks of all nodes look, and all ranks of the first node.
    """
    from pretrain.distributed import lease as fence

    holder, nodes, now = fence.LeaseHolder("node-0", 1, "2030-01-01T00:00:00Z", number=1), -(-ranks // A_NODE), 1e6
    path = root / "run" / fence.HOLDERS / "000001.json"
    path.parent.mkdir(parents=True)
    path.write_text(fence.json_text(fence.asdict(holder)), encoding="utf-8")
    leases, due = [], {}
    for rank in [*range(min(ranks, A_NODE)), *range(A_NODE, ranks, A_NODE)]:
        memory = root / f"node-{rank // A_NODE}"
        memory.mkdir(exist_ok=True)
        ours = replace(holder, number=int(rank == 0))
        with mock.patch.object(fence, "SHARED_MEMORY", memory):
            leases.append(fence.RunLease(root / "run", ours, leads=rank % A_NODE == 0, nodes=nodes))
        leases[-1]._ours = holder  # as after `follow`, whose thread would beat by the real clock
    beats = _LOOKS * math.ceil(fence.look_seconds(nodes) / fence.BEAT_SECONDS)
    with _events(root / "run") as counts, mock.patch.object(fence, "time", SimpleNamespace(monotonic=lambda: now)):
        for _ in range(beats):
            for lease in leases:
                if now >= due.get(lease, now):
                    due[lease] = now + (lease._every if lease._leads else fence.BEAT_SECONDS)
                    lease._beat()
            now += fence.BEAT_SECONDS
    return {"fence.lists_a_node_and_second": counts["listed"] / nodes / (beats * fence.BEAT_SECONDS)}


def _together(ranks: int, act: Callable[[Any], None]) -> None:
    """`act(peers)` of each rank in a thread of its own."""
    from torch.distributed import HashStore

    from pretrain.distributed.process_group import Ranks

    barrier, room, store = threading.Barrier(ranks, timeout=300), [None] * ranks, HashStore()

    def gather_as(rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            room[rank] = value
            barrier.wait()
            heard = list(room)
            barrier.wait()
            return heard

        return gather

    with ThreadPoolExecutor(ranks) as threads:
        fields = [
            {"ranks": Ranks(rank, ranks), "gather": gather_as(rank), "key_value_store": store} for rank in range(ranks)
        ]
        for done in [threads.submit(act, own) for own in fields]:
            done.result()


def goals(quick: bool) -> list[Goal]:
    """Counts at each number of ranks; a rank's work must not grow with their number."""
    found = {ranks: figures(ranks) for ranks in (RANKS[:2] if quick else RANKS)}
    lines = [
        figure(f"ranks.{ranks}.{name}", value) for ranks, values in found.items() for name, value in values.items()
    ]
    first, last = found[RANKS[0]], found[max(found)]
    for kind in ("opened", "listed", "changed"):
        name = f"save.{kind}_a_rank"
        lines.append(Goal(f"ranks.{name}_last_to_first", last[name] / first[name], 1.2, "<="))
    lines.append(Goal("ranks.save.bytes_of_others_to_state", last["save.bytes_of_others_to_state"], 1.0, "<="))
    lines.append(Goal("ranks.load.bytes_to_owned", last["load.bytes_to_owned"], 1.1, "<="))
    lines.append(Goal("ranks.fence.lists_a_node_and_second", last["fence.lists_a_node_and_second"], 1.0, "<="))
    for nodes in NODES:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:  # each sighting is made durable
            a_node = _looks(Path(scratch), nodes * A_NODE)["fence.lists_a_node_and_second"]
        lines.append(Goal(f"ranks.fence.lists_a_run_and_second.{nodes}_nodes", nodes * a_node, 10.0, "<="))
    return lines
