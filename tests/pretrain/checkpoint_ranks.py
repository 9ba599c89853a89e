"""Checkpoints without an engine: made-up weights, divided over ranks that are threads of this process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed import HashStore

from governance.manifest import Input, Manifest
from pretrain.checkpoint.format import CheckpointStore, TrainState, require_step
from pretrain.checkpoint.save import CheckpointSource, Saver
from pretrain.config.optim import OptimConfig
from pretrain.config.training import CheckpointConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks
from pretrain.engine.fragments import Owned
from tests.pretrain.small_models import TINY

SHAPES = [("a.weight", (3, 4)), ("b.weight", (5,)), ("c.weight", (2, 2))]
KINDS = ("master", "exp_avg", "exp_avg_sq")
ALONE: dict = {}
"""Fields of a store: the ranks that share it, if several."""
KEEP = CheckpointConfig(keep_last=100)


def store_in(root: Path, **kept) -> CheckpointStore:
    train = TrainConfig(sequence_length=32, global_batch_size=8, steps=100)
    recipe = TrainRecipe(model=TINY, optim=OptimConfig(learning_rate=0.1), train=train)
    tokens = Input(stage="encode", digest="d" * 64, path="encode/x/manifest.json")
    return CheckpointStore(root, kept.get("train_key", "a" * 64), 200, recipe, (tokens,))


def values_at(step: int, shapes=SHAPES) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for index, (name, shape) in enumerate(shapes):
        generator = torch.Generator().manual_seed(100 * step + index)
        found[name] = {kind: torch.randn(shape, generator=generator) for kind in KINDS}
    return found


def fragments_at(step: int, rank: int = 0, world_size: int = 1, shapes=SHAPES) -> list[Owned]:
    """Equal pieces of all parameters laid end to end, as ZeRO-1 cuts them: a rank may own nothing of a parameter."""
    total = sum(torch.Size(shape).numel() for _, shape in shapes)
    size = -(-total // world_size)
    begin, end, offset, made = size * rank, min(size * (rank + 1), total), 0, []
    for name, values in values_at(step, shapes).items():
        elements = values["master"].numel()
        start, stop = max(begin - offset, 0), min(end - offset, elements)
        if start < stop:
            cut = {kind: value.flatten()[start:stop] for kind, value in values.items()}
            made.append(Owned(name, start, stop - start, cut))
        offset += elements
    return made


def state_at(step: int, **fields) -> TrainState:
    return TrainState(step, 10 * step, [1.5] * step, **fields)


def saver_of(store: CheckpointStore, live: dict, peers=ALONE, config=KEEP, zero_stage: int = 1, attempt: int = 1):
    """A saver of made-up weights; `live["step"]` is their step."""
    store = replace(store, **peers)
    source = CheckpointSource(
        lambda: fragments_at(live["step"], store.ranks.rank, store.ranks.world_size), SHAPES, zero_stage
    )
    return Saver(store, source, config, {"attempt": attempt})


def save(store: CheckpointStore, *steps: int, peers=ALONE, **settings) -> Manifest:
    live = {"step": steps[0]}
    with saver_of(store, live, peers, **settings) as saver:
        for step in steps:
            live["step"] = step
            saver.save(state_at(step))
    return require_step(store, steps[-1])


def together(world_size: int, act):
    """`act(peers)` on so many ranks, each a thread, and their results. A fault of any is raised."""
    barrier, room, store = threading.Barrier(world_size, timeout=600), [None] * world_size, HashStore()

    def gather_as(rank):
        def gather(value):
            room[rank] = value
            barrier.wait()
            heard = list(room)
            barrier.wait()
            return heard

        return gather

    with ThreadPoolExecutor(world_size) as ranks:
        acts = [
            ranks.submit(act, {"ranks": Ranks(rank, world_size), "gather": gather_as(rank), "key_value_store": store})
            for rank in range(world_size)
        ]
    return [done.result() for done in acts]
