"""The training loop, which reads from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NoReturn

import torch
from torch import distributed

from governance.errors import Preempted
from governance.log import get_logger, progress
from governance.manifest import KEY_LENGTH, Manifest
from governance.provenance import provenance
from governance.stage import UNKNOWN_ENERGY, artifact_folder
from pretrain.checkpoint import (
    TrainState,
    moments,
    newest_whole,
    read_state,
    remove_old,
    require_step,
    weights,
    write_checkpoint,
)
from pretrain.distributed import HOST, add_up
from pretrain.engine import Engine, foreign_errors, open_engine
from pretrain.engine_state import MOMENTS, full_state, load_state
from pretrain.evaluate import measure
from pretrain.guard import Guard
from pretrain.job import Job
from pretrain.ledger import Entry, Ledger, read_later
from pretrain.loader import StepRows, chain, open_loader
from pretrain.model.decoder import Batch, initial_weight, parameter_count
from pretrain.optim import rate_factor
from pretrain.speed import Speed
from pretrain.stragglers import Pace
from pretrain.watchdog import Heart, watch_hangs


def learn(job: Job) -> TrainState:
    """Train to the last step, or until a signal; see `_steps`."""
    folder = artifact_folder("train", job.store.train_key, job.store.root)
    with watch_hangs(folder, job.ranks.rank, job.settings.engine) as heart, foreign_errors():
        engine, state = _start(job)
        return _steps(job, engine, state, heart)


def _steps(job: Job, engine: Engine, state: TrainState, heart: Heart) -> TrainState:
    """The loop. A step: read rows, agree on leaving, add up gradients, judge, update, record, validate, save."""
    config, optim = job.recipe.train, job.recipe.optim
    speed, pace, ledger = Speed(job), Pace(job), Ledger(job)
    guard = Guard(config.skip, state.losses, state.skipped, job.device)
    job.energy.update(artifact=f"train/{job.store.train_key[:KEY_LENGTH]}", resumed_from=state.step)
    state = _catch_up(job, engine, state, heart)
    saved = state.step
    with progress("train", config.steps, "steps", done=saved) as advance, open_loader(job, state) as loader:
        for step in range(state.step + 1, config.steps + 1):
            began = time.perf_counter()
            with pace.working():
                ready = next(loader)
            targets, leaving, digest = _agree(job, ready, pace)
            if leaving:
                _leave(job, engine, ledger.settle(state), heart, saved)

            loss = _add_up_gradients(engine, ready.batches, targets, pace)
            verdict = guard.judge(loss, step)
            job.leave.gently()  # from here on there is something to save
            factor = rate_factor(step, config.steps, optim)
            skipped, norm = engine.update(factor, verdict.skip)
            guard.accept(loss, skipped)

            state = ledger.settle(state)
            stream = chain(state.stream, step, digest)
            state = replace(state, step=step, tokens=state.tokens + targets, stream=stream)
            numbers = read_later(torch.stack([loss, verdict.z, skipped.double(), norm.double()]))
            seconds = time.perf_counter() - began
            values = {"lr": optim.learning_rate * factor, "tokens": state.tokens}
            values |= speed.of(seconds, len(ready.rows))
            if ready.mixture:
                job.record("mixture", step, weights=ready.mixture)
            state = ledger.add(state, Entry(step, ready.rows, numbers, values))
            heart.stepped(step, seconds)
            job.energy["step"] = step
            advance(1, f"loss {ledger.told['loss']:.3f}, {ledger.told.get('tokens_per_second', 0.0):,.0f} tokens/s")
            if _due(step, config.validate_every_steps, config.steps):
                state = _validate(job, engine, ledger.settle(state), heart, saved)
            if _due(step, job.settings.checkpoint.every_steps, config.steps):
                state = ledger.settle(state)
                _save(job, engine, state, heart)
                saved = step
    return state


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _agree(job: Job, ready: StepRows, pace: Pace) -> tuple[int, int, list[int]]:
    """What the host must know of all ranks before a step: its targets, who was told to leave, the stream's digest."""
    times = pace.slots(ready.step)
    counts = [ready.targets, int(job.leave()), *ready.digest]
    told = add_up([*counts, *times], HOST)
    pace.tell(ready.step, told[len(counts) :])
    targets, leaving, *digest = told[: len(counts)]
    return targets, leaving, digest


def _add_up_gradients(engine: Engine, batches: Sequence[Batch], targets: int, pace: Pace) -> torch.Tensor:
    """Forward and backward of every micro batch; `targets` are those of the global batch.

    Returns its nats per token, fp64, on the device: the same bits on every rank, and the host does not wait for them.
    """
    losses = []
    engine.set_accumulation(len(batches))
    for batch in batches:
        with pace.passing():
            objective, nats = engine.forward(batch)
        engine.backward(objective, targets, last=batch is batches[-1])
        losses.append(nats.sum())
    total = torch.stack(losses).double().sum()
    distributed.all_reduce(total)
    return total / max(targets, 1)


def _start(job: Job) -> tuple[Engine, TrainState]:
    """An engine with initial weights, or with those of the newest whole checkpoint."""
    log, recipe = get_logger(__name__), job.recipe
    log.info(
        "train: %s parameters, %d steps of %d rows of %d tokens, %s, %d rank(s) on %s",
        f"{parameter_count(recipe.model, job.train_rows.vocabulary_size):,}", recipe.train.steps,
        recipe.train.global_batch_size, recipe.train.sequence_length, recipe.train.precision,
        job.ranks.world_size, job.device.type,
    )  # fmt: skip
    step = job.peers.gather(newest_whole(job.store) if job.ranks.first else None)[0]
    arguments = (recipe, job.settings.engine, job.train_rows.vocabulary_size, job.ranks, job.device)
    if not step:
        seed = recipe.train.seed
        engine = open_engine(*arguments, lambda name, shape: initial_weight(name, shape, recipe.model, seed))
        return engine, TrainState()
    log.info("train: going on from the checkpoint of step %d", step)
    manifest = require_step(job.store, step)
    with weights(manifest, job.store.root) as masters, moments(manifest, job.store.root) as others:
        engine = open_engine(*arguments, masters.read)
        load_state(
            engine,
            lambda name: (
                {"master": masters.read(name)} | {moment: others.read(f"{name}.{moment}") for moment in MOMENTS}
            ),
            step,
        )
    return engine, read_state(manifest, job.store.root)


def _catch_up(job: Job, engine: Engine, state: TrainState, heart: Heart) -> TrainState:
    """Make the validation of the step that the checkpoint is of, if the run was told to leave in its midst."""
    config, step = job.recipe.train, state.step
    measured = job.validation_rows is None or any(values["step"] == step for values in state.validations)
    if not step or measured or not _due(step, config.validate_every_steps, config.steps):
        return state
    job.leave.gently()
    state = _validate(job, engine, state, heart, saved=step)
    if _due(step, job.settings.checkpoint.every_steps, config.steps):
        _save(job, engine, state, heart)  # the artifact of an uninterrupted run holds it
    return state


def _validate(job: Job, engine: Engine, state: TrainState, heart: Heart, saved: int) -> TrainState:
    """Measure; a signal is heeded between two batches. `saved`: as in `_leave`."""
    if job.validation_rows is None:
        return state

    def nats_of(batch: Batch) -> torch.Tensor:
        heart.beat(f"validation of step {state.step}", long=not state.validations)
        if add_up([int(job.leave())], HOST)[0]:  # every rank makes the same number of passes
            _leave(job, engine, state, heart, saved)
        return engine.forward(batch)[1]

    measured = measure(
        nats_of,
        job.validation_rows,
        job.recipe.train.validation_rows,
        job.settings.engine.micro_batch_size,
        (job.ranks.rank, job.ranks.world_size),
        lambda values: add_up(values, HOST),
    )
    values = asdict(measured)
    job.record("validation", state.step, **values)
    get_logger(__name__).info(
        "train: step %d, validation loss %.4f nats/token, %.4f bits/byte",
        state.step, measured.loss, measured.bits_per_byte,
    )  # fmt: skip
    return replace(state, validations=[*state.validations, {"step": state.step, **values}])


def _save(job: Job, engine: Engine, state: TrainState, heart: Heart) -> Manifest:
    def parts() -> Iterator[Any]:
        for name, values in full_state(engine):
            heart.beat(f"checkpoint of step {state.step}, {name}", long=True)
            yield name, values

    manifest = write_checkpoint(job.store, state, parts(), engine.shapes(), job.peers, run_facts(job))
    if job.ranks.first:
        remove_old(job.store, job.settings.checkpoint.keep_last, state.step)
    heart.beat(f"after the checkpoint of step {state.step}")
    job.energy["checkpoint"] = state.step
    return manifest


def _leave(job: Job, engine: Engine, state: TrainState, heart: Heart, saved: int) -> NoReturn:
    """Save what was learned since the checkpoint of step `saved`, and raise."""
    if state.step != saved:
        _save(job, engine, state, heart)
    raise Preempted(f"told to leave after step {state.step}, which is saved; the same command goes on from there")


def run_facts(job: Job) -> dict[str, Any]:
    """The facts of this attempt, which never enter a digest."""
    execution = {
        "world_size": job.ranks.world_size,
        "device": job.device.type,
        "zero_stage": job.settings.engine.zero_stage,
        "micro_batch_size": job.settings.engine.micro_batch_size,
    }
    return {**provenance(), "attempt": job.attempt, "execution": execution, "energy": dict(UNKNOWN_ENERGY)}
