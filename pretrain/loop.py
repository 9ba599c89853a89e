"""The training loop, which reads from top to bottom."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from governance.errors import PipelineError, Preempted
from governance.log import get_logger, progress
from governance.manifest import KEY_LENGTH
from governance.provenance import provenance
from governance.stage import UNKNOWN_ENERGY
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
from pretrain.dataset import micro_batches, rows_of_step
from pretrain.distributed import add_up
from pretrain.engine import Engine, foreign_errors, open_engine
from pretrain.engine_state import MOMENTS, full_state, load_state
from pretrain.evaluate import measure
from pretrain.job import Job
from pretrain.meter import Meter, step_note
from pretrain.model.decoder import initial_weight, parameter_count
from pretrain.optim import learning_rate


def learn(job: Job) -> TrainState:
    """The loop. A step: agree on leaving, read rows, add up gradients, update, record, validate, save."""
    config, optim = job.recipe.train, job.recipe.optim
    micro = job.settings.engine.micro_batch_size
    engine, state = _start(job)
    meter = Meter(job, state.step, state.step * config.global_batch_size)
    job.energy.update(artifact=f"train/{job.store.train_key[:KEY_LENGTH]}", resumed_from=state.step)
    with progress("train", config.steps, "steps", done=state.step) as advance, foreign_errors():
        for step in range(state.step + 1, config.steps + 1):
            with meter.waiting():
                numbers = rows_of_step(step, config.global_batch_size, job.train_rows.count, config.seed)
                groups = micro_batches(numbers, micro, job.ranks.rank, job.ranks.world_size)
                batches = [job.train_rows.batch(group) for group in groups]
            targets = sum(int((batch.targets >= 0).sum()) for batch in batches)
            targets, leaving = add_up([targets, int(job.leave())], job.device)
            if leaving:
                _leave(job, engine, state, meter)

            rate = learning_rate(step, config.steps, optim)
            engine.set_rate(rate)
            losses = []
            for batch in batches:
                objective, nats = engine.forward(batch)
                engine.backward(objective, targets)
                losses.append(nats.sum())
            loss = add_up([float(sum(losses))], job.device)[0] / max(targets, 1)

            state = replace(state, step=step, tokens=state.tokens + targets, losses=[*state.losses, loss])
            values = {"loss": loss, "lr": rate, "grad_norm": engine.gradient_norm(), "tokens": state.tokens}
            values |= meter.step(len(numbers), len(numbers) * config.sequence_length, targets)
            job.record("step", step, **values)
            job.energy["step"] = step
            _refuse_not_finite(step, values)
            advance(1, step_note(values))
            if _due(step, config.validate_every_steps, config.steps):
                state = _validate(job, engine, state, meter)
            if _due(step, job.settings.checkpoint.every_steps, config.steps):
                _save(job, engine, state, meter)
                job.energy["checkpoint"] = step
    return state


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


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


def _refuse_not_finite(step: int, values: dict[str, Any]) -> None:
    bad = {name: values[name] for name in ("loss", "grad_norm") if not math.isfinite(values[name] or 0.0)}
    if bad:
        told = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise PipelineError(
            f"step {step}: {told}; training stops before it is saved. The checkpoint before it is kept; lower "
            f"optim.learning_rate, lengthen optim.warmup_steps, or set optim.gradient_clipping."
        )


def _validate(job: Job, engine: Engine, state: TrainState, meter: Meter) -> TrainState:

    if job.validation_rows is None:
        return state
    with meter.aside() as seconds:
        measured = measure(
            lambda batch: engine.forward(batch)[1],
            job.validation_rows,
            job.recipe.train.validation_rows,
            job.settings.engine.micro_batch_size,
            (job.ranks.rank, job.ranks.world_size),
            lambda values: add_up(values, job.device),
        )
        values = asdict(measured)
        job.record("validation", state.step, **values, seconds=seconds())
    get_logger(__name__).info(
        "train: step %d, validation loss %.4f nats/token, %.4f bits/byte",
        state.step, measured.loss, measured.bits_per_byte,
    )  # fmt: skip
    return replace(state, validations=[*state.validations, {"step": state.step, **values}])


def _save(job: Job, engine: Engine, state: TrainState, meter: Meter) -> None:

    with meter.aside() as seconds:
        manifest = write_checkpoint(job.store, state, full_state(engine), engine.shapes(), job.peers, run_facts(job))
        if job.ranks.first:
            remove_old(job.store, job.settings.checkpoint.keep_last, state.step)
        job.record("checkpoint", state.step, path=manifest.path, digest=manifest.digest, seconds=seconds())


def _leave(job: Job, engine: Engine, state: TrainState, meter: Meter) -> None:
    """Save what was learned since the last checkpoint, and raise."""
    every = job.settings.checkpoint.every_steps
    if state.step and not _due(state.step, every, job.recipe.train.steps):
        _save(job, engine, state, meter)
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
