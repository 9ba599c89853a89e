"""The training loop."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import distributed

from governance.errors import Preempted
from governance.hooks import UNKNOWN_ENERGY
from governance.log import get_logger, progress
from governance.manifest import Manifest
from governance.phases import CHECKPOINT, COMMUNICATION, COMPUTE, EVALUATION, begin, during, tell_hang
from governance.provenance import provenance
from governance.stage import artifact_folder
from pretrain.checkpoint.format import TrainState, told_finite
from pretrain.checkpoint.load import resume
from pretrain.checkpoint.save import Saver, open_saver
from pretrain.context import Job
from pretrain.data.batch_size import batch_sizes
from pretrain.data.loader import LANES, StepRows, by_origin, chain, open_loader
from pretrain.distributed.process_group import HOST, add_up
from pretrain.distributed.stragglers import Pace
from pretrain.distributed.watchdog import Heart, Place, watch_hangs
from pretrain.engine.engine import Engine, foreign_errors, open_engine
from pretrain.evaluation.loglikelihood import Passes
from pretrain.evaluation.scores import ask, told
from pretrain.evaluation.validation import measure
from pretrain.loss_spikes import Guard, window_starts
from pretrain.model.decoder import Batch
from pretrain.model.flops import active_parameter_count, parameter_count
from pretrain.model.init import initial_weight
from pretrain.optim.optimizers import rate_factor
from pretrain.preflight.memory_room import refuse_what_cannot_fit
from pretrain.profiler import open_profile
from pretrain.step_log import Entry, Ledger, read_later
from pretrain.step_meter import Meter, step_note


@dataclass(frozen=True)
class Parts:
    """Moving parts of the loop."""

    job: Job
    engine: Engine
    saver: Saver
    heart: Heart
    meter: Meter


def learn(job: Job) -> TrainState:
    """Train until the last step, a signal or the energy budget."""
    folder = artifact_folder("train", job.store.train_key, job.store.root)
    hung = partial(tell_hang, job.energy)
    place = Place(folder, job.ranks.rank, job.ranks.world_size, job.peers.gather(job.attempt)[0])
    with watch_hangs(place, job.settings.engine, hung) as heart, foreign_errors():
        job.allowance.start(lambda words: add_up(words, HOST))
        engine, state = _start(job)
        with open_saver(job.store, job.peers, job.settings, engine, run_facts(job), partial(_durable, job)) as saver:
            meter = Meter(job, state.step, batch_sizes(job.recipe.train).before(state.step + 1))
            parts = Parts(job, engine, saver, heart, meter)
            begin(job.energy, COMPUTE)
            state = _steps(parts, _catch_up(parts, state))
            begin(job.energy, CHECKPOINT)
            heart.beat("waiting for the last checkpoint", long=True)
    return state


def _durable(job: Job, step: int, manifest: Manifest | None) -> None:
    job.energy.update(checkpoint=step)
    if manifest is not None:
        job.record("checkpoint", step, path=manifest.path, digest=manifest.digest)


def _steps(parts: Parts, state: TrainState) -> TrainState:
    """The loop.

    A step: read rows, agree on leaving, add up gradients, judge, update, record, validate, save.
    """
    job, engine, saved = parts.job, parts.engine, state.step
    config, optim = job.recipe.train, job.recipe.optim
    pace = Pace(job.settings.engine.straggler_window_steps, job.ranks, job.device, job.record)
    ledger = Ledger(job, engine.group_names())
    guard = Guard(config.skip, state.losses, state.skipped, job.device, window_starts(config))
    with (
        progress("train", config.steps, "steps", done=state.step) as advance,
        open_loader(job.train_rows, config, job.share, job.device, state.step) as loader,
        open_profile(job, state.step, parts.meter.aside, partial(parts.heart.beat, long=True)) as profile,
    ):
        for step in range(state.step + 1, config.steps + 1):
            profile.begin(step)
            with pace.working(), parts.meter.waiting():
                ready = next(loader)
            targets, leaving, lanes = _agree(parts, ready, pace)
            if leaving:
                _leave(parts, ledger.settle(state), saved)

            engine.set_accumulation(len(ready.batches))
            loss, origins = _add_up_gradients(job, engine, ready.batches, targets, pace)
            verdict = guard.judge(loss, step)
            job.leave.gently()  # from here on there is something to save
            factor = rate_factor(step, config.steps, optim)
            parts.heart.beat(f"step {step}: the gradients are there")
            skipped, norms = engine.update(factor, verdict.skip)
            guard.accept(loss, skipped)

            state = ledger.settle(state)
            state = replace(state, step=step, tokens=state.tokens + targets, stream=chain(state.stream, step, lanes))
            numbers = read_later(torch.cat([torch.stack([loss, verdict.z, skipped.double()]), norms.double(), origins]))
            values = {"lr": optim.learning_rate * factor, "tokens": state.tokens}
            values |= parts.meter.step(len(ready.rows), len(ready.rows) * config.sequence_length, targets)
            state = ledger.add(state, Entry(step, ready.rows, numbers, values))
            parts.heart.stepped(step, values["seconds"])
            job.energy["step"] = step
            advance(1, step_note(ledger.told))
            profile.end(step)
            if _due(step, config.validate_every_steps, config.steps):
                state = _validate(parts, ledger.settle(state), saved)
            if _due(step, job.recipe.evaluation.every_steps, config.steps):
                state = _ask(parts, ledger.settle(state), saved)
            if _due(step, job.settings.checkpoint.every_steps, config.steps):
                state = ledger.settle(state)
                _save(parts, state)
                saved = step
    return state


def _agree(parts: Parts, ready: StepRows, pace: Pace) -> tuple[int, bool, list[int]]:
    """In one collective.

    Tokens that the global batch predicts, whether to leave, the lanes of the stream's digest.
    """
    job, leaving = parts.job, int(parts.job.leave() or parts.saver.failed)
    budget = job.allowance.words(parts.saver.seconds)
    words = [*job.counted([ready.targets, *ready.digest]), leaving, *budget, *pace.slots(ready.step)]
    parts.heart.beat(f"step {ready.step}: the rows are read")
    with during(job.energy, COMMUNICATION):
        targets, *lanes, leaving = (summed := add_up(words, HOST))[: 2 + LANES]
    rest = summed[2 + LANES :]
    over = job.allowance.heed(rest[: len(budget)])
    pace.tell(ready.step, rest[len(budget) :])
    if ready.mixture:
        job.record("mixture", ready.step, weights=ready.mixture)
    return targets, bool(leaving) or over, lanes


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _add_up_gradients(
    job: Job, engine: Engine, batches: list[Batch], targets: int, pace: Pace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward of every micro batch.

    `targets` are those of the global batch.

    Returns its nats per token, and the nats and then the tokens of each origin; fp64, on the device: the same bits on
    every rank, and the host does not wait for them.
    """
    sums = []
    for batch in batches:
        with pace.passing():
            objective, nats = engine.forward(batch)
        engine.backward(objective, targets, last=batch is batches[-1])
        sums.append(torch.cat([nats.double().sum()[None], *_divided(job, batch, nats)]))
    total = torch.stack(sums).sum(0) * job.layout.counts
    with during(job.energy, COMMUNICATION):
        distributed.all_reduce(total)
    return total[0] / max(targets, 1), total[1:]


def _divided(job: Job, batch: Batch, nats: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Nats and tokens by origin, where there are several to tell apart."""
    several = len(job.train_rows.origins) > 1 and batch.origins is not None
    return by_origin(nats, batch.origins, len(job.train_rows.origins)) if several else ()


def _start(job: Job) -> tuple[Engine, TrainState]:
    """Engine with initial weights or the newest checkpoint's."""
    log, recipe, vocabulary = get_logger(__name__), job.recipe, job.train_rows.vocabulary_size
    parameters, active = (count(recipe.model, vocabulary) for count in (parameter_count, active_parameter_count))
    log.info(
        "train: %s parameters%s, %d steps of %d rows of %d tokens, %s, %d rank(s) on %s",
        f"{parameters:,}", f" ({active:,} for each token)" if active < parameters else "", recipe.train.steps,
        recipe.train.global_batch_size, recipe.train.sequence_length, recipe.train.precision,
        job.ranks.world_size, job.device.type,
    )  # fmt: skip
    arguments = (recipe, job.settings.engine, vocabulary, job.ranks, job.device)
    refuse_what_cannot_fit(*arguments)
    found = resume(job.store, job.peers, job.settings, lambda weight: open_engine(*arguments, weight))
    if found is None:
        seed = recipe.train.seed
        found = (
            open_engine(*arguments, lambda name, shape: initial_weight(name, shape, recipe.model, seed)),
            TrainState(),
        )
    job.energy["resumed_from"] = found[1].step
    return found


def _catch_up(parts: Parts, state: TrainState) -> TrainState:
    """Run the validation and tasks that the resumed step still owes."""
    job, config, step = parts.job, parts.job.recipe.train, state.step

    def owes(every: int, made: list[dict[str, Any]]) -> bool:
        return bool(step) and _due(step, every, config.steps) and all(values["step"] != step for values in made)

    measure_now = job.validation_rows is not None and owes(config.validate_every_steps, state.validations)
    ask_now = job.suite is not None and owes(job.recipe.evaluation.every_steps, state.tasks)
    if not measure_now and not ask_now:
        return state
    job.leave.gently()
    state = _validate(parts, state, saved=step) if measure_now else state
    state = _ask(parts, state, saved=step) if ask_now else state
    if _due(step, job.settings.checkpoint.every_steps, config.steps):
        _save(parts, state)  # the artifact of an uninterrupted run holds it
    return state


def _validate(parts: Parts, state: TrainState, saved: int) -> TrainState:
    """Measure; a signal is heeded between two batches. `saved`: as in `_leave`."""
    job = parts.job
    if job.validation_rows is None:
        return state

    def nats_of(batch: Batch) -> torch.Tensor:
        _heed(parts, state, saved, f"validation of step {state.step}")
        return parts.engine.forward(batch)[1]

    with parts.meter.aside(EVALUATION) as seconds:
        measured = measure(
            nats_of,
            job.validation_rows,
            job.recipe.train.validation_rows,
            job.settings.engine.micro_batch_size,
            (job.layout.data_rank, job.layout.data_ranks),
            lambda values: add_up(job.counted(values), HOST),
            _compiles(job),
        )
        values = asdict(measured)
        job.record("validation", state.step, **values, seconds=seconds())
    get_logger(__name__).info(
        "train: step %d, validation loss %.4f nats/token, %.4f bits/byte",
        state.step, measured.loss, measured.bits_per_byte,
    )  # fmt: skip
    kept = told_finite({"step": state.step, **values}, f"train: step {state.step}, validation")
    return replace(state, validations=[*state.validations, kept])


def _ask(parts: Parts, state: TrainState, saved: int) -> TrainState:
    """Ask the model the questions of `[evaluation]`.

    A signal is heeded between two batches, as in `_validate`.
    """
    job = parts.job
    if job.suite is None:
        return state

    def nats_of(batch: Batch) -> torch.Tensor:
        _heed(parts, state, saved, f"questions at step {state.step}")
        return parts.engine.forward(batch)[1]

    tokens = job.settings.engine.micro_batch_size * job.recipe.train.sequence_length  # what is known to fit
    place = (job.layout.data_rank, job.layout.data_ranks)
    passes = Passes(tokens, *place, lambda values: add_up(job.counted(values), HOST), _compiles(job))
    with parts.meter.aside(EVALUATION):
        rows = [{"step": state.step, **row} for row in ask(job.suite, nats_of, passes)]
    for row in rows:
        job.record("task", **row)
        get_logger(__name__).info("train: step %d, %s", state.step, told(row))
    kept = [told_finite(row, f"train: step {state.step}, {row['task']}") for row in rows]
    return replace(state, tasks=[*state.tasks, *kept])


def _compiles(job: Job) -> bool:
    """Return whether a batch of another shape is compiled for."""
    return job.device.type == "cuda" or job.settings.engine.compile


def _heed(parts: Parts, state: TrainState, saved: int, what: str) -> None:
    """Beat, and stop if any rank was asked to.

    Every rank makes the same number of passes.
    """
    parts.heart.beat(what, long=not state.validations)
    allowance = parts.job.allowance
    leaving, *budget = add_up([int(parts.job.leave()), *allowance.words(parts.saver.seconds)], HOST)
    if allowance.heed(budget) or leaving:
        _leave(parts, state, saved)


def _save(parts: Parts, state: TrainState) -> None:
    """Begin to save.

    The loop stands still for a copy, and for the save before this one if it is not done yet.
    """
    parts.heart.beat(f"checkpoint of step {state.step}", long=True)
    with parts.meter.aside(CHECKPOINT) as seconds:
        parts.saver.save(state)
        parts.job.record("save", state.step, seconds=seconds())
    parts.heart.beat(f"after the copy for the checkpoint of step {state.step}")


def _leave(parts: Parts, state: TrainState, saved: int) -> NoReturn:
    """Save the progress since `saved`, then raise once it is durable."""
    if state.step != saved:
        _save(parts, state)
    parts.heart.beat(f"waiting for the checkpoint of step {state.step}", long=True)
    begin(parts.job.energy, CHECKPOINT)
    parts.saver.wait()
    if parts.job.allowance.reached:
        parts.job.record("budget", state.step, **parts.job.allowance.facts())
        raise parts.job.allowance.error(state.step)
    _tell_haste(parts.job, state.step)
    raise Preempted(f"told to leave after step {state.step}, which is saved; the same command goes on from there")


def _tell_haste(job: Job, step: int) -> None:
    """Log the time from signal to durability, and warn if close."""
    seconds = max(job.peers.gather(job.leave.seconds()))  # the signal may have come to some ranks only
    job.record("left", step, seconds=seconds)
    log, given = get_logger(__name__), job.settings.notice_seconds
    log.info("train: %.1f s from the signal until step %d was durable", seconds, step)
    if given and seconds > given / 2:
        log.warning(
            "train: that is more than half of the %d s that a job is given to leave (slurm.signal_seconds, or the "
            "site's slurm.notice_seconds): a run that saves more slowly is killed before it is done; it wants %d s",
            given, 4 * math.ceil(seconds),
        )  # fmt: skip


def run_facts(job: Job) -> dict[str, Any]:
    """The facts of this attempt, which never enter a digest."""
    execution = {
        "world_size": job.ranks.world_size,
        "device": job.device.type,
        "zero_stage": job.settings.engine.zero_stage,
        "micro_batch_size": job.settings.engine.micro_batch_size,
        **({"deepspeed": passed} if (passed := job.settings.engine.deepspeed) else {}),
    }
    return {**provenance(), "attempt": job.attempt, "execution": execution, "energy": dict(UNKNOWN_ENERGY)}
