"""Run on each rank: train a little at every ZeRO stage and save, or continue others' saves and save again.

    python resume_layouts.py FOLDER write|read|hpz...

Each precision has a folder of its own. `read` leaves, for each checkpoint that it finds, the digest of what it saved
after loading it (which is a function of the masters and moments), which form it read, and the loss of a batch that
nobody trained on. fp16 (DeepSpeed sees this CPU as able) has overflowed twice, so its loss scale is not
that of a start. `hpz` writes and then reads with weights kept twice, which DeepSpeed begins once in a process: last.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from governance.manifest import Input
from pretrain.checkpoint.format import CheckpointStore, TrainState, require_step
from pretrain.checkpoint.load import newest_whole, resume
from pretrain.checkpoint.save import open_saver
from pretrain.config.optim import OptimConfig
from pretrain.config.training import CheckpointConfig, EngineConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import gather, join, ranks_store, read_ranks
from pretrain.engine.engine import open_engine
from pretrain.engine.fragments import local_state
from pretrain.engine.state import loss_scale_of
from pretrain.model.decoder import Batch
from pretrain.model.init import initial_weight
from tests.pretrain.small_models import config

VOCABULARY, LENGTH, STEPS = 200, 32, 2
STAGES = {"fp32": (0, 1, 2, 3), "bf16": (1, 2, 3), "fp16": (1, 3)}
"""Those of each precision; fp16 differs from bf16 in its scale alone, so two of them do."""


def batch_of(seed: int, rows: int) -> Batch:
    tokens = torch.randint(1, VOCABULARY, (rows, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(LENGTH).expand(rows, LENGTH).contiguous()
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.zeros_like(positions), positions)


def job_in(root: Path, precision: str, stage: int, ranks, inner: int = 64, hpz: int = 1) -> SimpleNamespace:
    model = config(intermediate_size=inner)
    train = TrainConfig(sequence_length=LENGTH, global_batch_size=4, steps=10, precision=precision)
    recipe = TrainRecipe(model=model, optim=OptimConfig(learning_rate=3e-3), train=train)
    tokens = Input(stage="encode", digest="d" * 64, path="x")
    store = CheckpointStore(
        root, "a" * 64, VOCABULARY, recipe, (tokens,), ranks=ranks, gather=gather, key_value_store=ranks_store()
    )
    engine = EngineConfig(zero_stage=stage, micro_batch_size=4 // ranks.world_size, threads=1, hpz_partition_size=hpz)
    settings = SimpleNamespace(engine=engine, checkpoint=CheckpointConfig())
    return SimpleNamespace(
        recipe=recipe, store=store, settings=settings, energy={}, record=lambda *output, **facts: None
    )


def held_out(engine) -> float:
    with torch.no_grad():
        return float(engine.forward(batch_of(99, 2))[1].double().sum())


def write(job, engine, rank: int) -> None:
    rows = job.settings.engine.micro_batch_size
    for step in range(STEPS):
        objective, _ = engine.forward(batch_of(10 * step + rank, rows))
        engine.backward(objective, 4 * LENGTH, last=True)
        engine.update(1.0, torch.zeros(()))
    overflows = 2 if job.recipe.train.precision == "fp16" else 0
    for step in range(overflows):
        objective, _ = engine.forward(batch_of(step, rows))
        engine.backward(objective * math.inf, 4 * LENGTH, last=True)
        engine.update(1.0, torch.zeros(()))
    loss, steps = held_out(engine), STEPS + overflows
    with open_saver(job.store, job.settings, engine, {}, lambda step, manifest: None) as saver:
        saver.save(TrainState(steps, steps, [loss] * steps, skipped=[{"step": STEPS + 1}, {"step": steps}][:overflows]))


def counted_preadv(counts: list[int]):
    """`os.preadv` that notes how much it read."""
    plain = os.preadv

    def preadv(*arguments):
        counts.append(plain(*arguments))
        return counts[-1]

    return preadv


def read(job, target: Path, engine_of) -> dict:
    found = newest_whole(job.store, job.settings.engine.zero_stage)[0]
    counts: list[int] = []
    with mock.patch.object(os, "preadv", counted_preadv(counts)):
        engine, state = resume(job.store, job.settings, engine_of)
    owned = sum(4 * part.length * len(part.tensors) for part in local_state(engine))
    if job.settings.engine.zero_stage == 0:  # a rank owns all, and saves a share
        owned = sum(job.store.gather(owned))
    loss = held_out(engine)
    stage, inner = job.settings.engine.zero_stage, job.recipe.model.intermediate_size
    again = job_in(target, job.recipe.train.precision, stage, read_ranks(), inner)
    with open_saver(again.store, again.settings, engine, {}, lambda step, manifest: None) as saver:
        saver.save(state)
    return {
        "first": found.manifest.digest,
        "digest": require_step(again.store, found.step).digest,
        "native": found.native is not None,
        "read": sum(counts) / owned,
        "scale": loss_scale_of(engine),
        "loss": loss,
        "learned": state.losses[-1],
    }


def hpz(folder: Path, precision: str, ranks, device) -> dict:
    """Matrices of 131072 elements: DeepSpeed keeps smaller ones whole on every rank, and never reads the copies."""
    once = job_in(folder / "first", precision, 3, ranks, inner=4096)
    twice = job_in(folder / "first", precision, 3, ranks, inner=4096, hpz=ranks.world_size)

    def engine_of(weight, job=twice):
        return open_engine(job.recipe, job.settings.engine, VOCABULARY, ranks, device, weight)

    first = engine_of(lambda name, shape: initial_weight(name, shape, once.recipe.model, 0), once)
    write(once, first, ranks.rank)
    return {"hpz": read(twice, folder / "again", engine_of)}


def every_stage(folder: Path, precision: str, act: str, ranks, device) -> dict:
    found = {}
    if precision == "fp16":
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: True
    for stage in STAGES[precision]:
        layout = f"{ranks.world_size}x{stage}"

        def engine_of(weight, job):
            return open_engine(job.recipe, job.settings.engine, VOCABULARY, ranks, device, weight)

        if act == "write":
            job = job_in(folder / layout, precision, stage, ranks)
            engine = engine_of(lambda n, s, job=job: initial_weight(n, s, job.recipe.model, 0), job)
            write(job, engine, ranks.rank)
            continue
        for root in sorted(folder.glob("?x?")):
            job = job_in(root, precision, stage, ranks)
            target = folder / "again" / f"{root.name}-{layout}"
            found[f"{root.name}-{layout}"] = read(job, target, lambda weight, job=job: engine_of(weight, job))
    return found


def main() -> None:
    torch.set_num_threads(1)
    root, acts = Path(sys.argv[1]), sys.argv[2:]
    ranks = read_ranks()
    device = join(ranks, 120.0)
    for act in acts:
        for precision in ("fp32",) if act == "hpz" else STAGES:
            folder = root / (act if act == "hpz" else precision)
            if act == "hpz":
                found = hpz(folder, precision, ranks, device)
            else:
                found = every_stage(folder, precision, act, ranks, device)
            if ranks.first and act != "write":
                (folder / f"read-{ranks.world_size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
