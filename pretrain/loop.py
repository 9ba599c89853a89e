"""The training loop."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import distributed

from governance.errors import ConfigError, Preempted
from governance.log import get_logger, progress
from governance.manifest import Manifest
from governance.phases import CHECKPOINT, COMMUNICATION, COMPUTE, EVALUATION, begin, during, report_hang
from governance.stage import artifact_folder
from pretrain.checkpoint.format import TrainState, finite_row
from pretrain.checkpoint.load import resume
from pretrain.checkpoint.retention import remove_old
from pretrain.checkpoint.save import open_saver
from pretrain.context import TrainContext
from pretrain.data.batch_size import batch_sizes
from pretrain.data.dataset import refuse_altered
from pretrain.data.loader import StepRows, by_origin, chain, open_loader
from pretrain.data.sampler import weights_in_use
from pretrain.distillation.distilled_training import refuse_damaged_teacher
from pretrain.distributed.process_group import HOST, add_up
from pretrain.distributed.stragglers import StragglerMonitor
from pretrain.distributed.watchdog import HangReports, watch_hangs
from pretrain.early_stopping import best_validation, is_last_step, own_validations
from pretrain.engine.engine import Engine, Weight, open_engine, translated_errors
from pretrain.engine.fixed_order import tree_order, tree_sum
from pretrain.engine.fragments import nudge
from pretrain.evaluation.loglikelihood import Passes
from pretrain.evaluation.scores import evaluate_tasks, figures_line
from pretrain.evaluation.validation import loss_words, measure
from pretrain.finetuning.adapters import begin_pass, initial_adapter
from pretrain.finetuning.trained_parameters import trained_in_words
from pretrain.loss_spikes import SpikeGuard, window_starts
from pretrain.model.decoder import Batch
from pretrain.model.expert_bias import restore_expert_bias
from pretrain.model.flops import active_parameter_count, parameter_count
from pretrain.model.init import initial_weight
from pretrain.optim.optimizers import rate_factor
from pretrain.preflight.hardware import hardware_of
from pretrain.preflight.memory_room import refuse_what_cannot_fit
from pretrain.profiler import open_profile
from pretrain.step_log import StepEntry, StepLog, read_numbers_later
from pretrain.step_meter import StepMeter, step_note


def train_loop(context: TrainContext) -> TrainState:
    """Train until the last step, a stop request or the energy budget.

    A step reads rows, agrees on stopping, adds up gradients, judges the loss, updates, records, validates and saves.
    """
    config, optim = context.recipe.train, context.recipe.optim
    with _open_parts(context) as state:
        engine, saved_step = context.engine, state.step
        state, last = _catch_up(context, state)
        engine_settings = context.settings.engine
        stragglers = StragglerMonitor(
            engine_settings.straggler_window_steps, context.ranks, context.device, context.record,
            times_passes=engine_settings.expert_parallel_size == 1,
        )  # fmt: skip
        log = StepLog(context, engine.group_names())
        for facts in context.callbacks.facts():
            context.record("callback", state.step, **facts)
        guard = _spike_guard(context, state)
        beat_long = partial(context.heartbeat.beat, long=True)
        with (
            progress("train", config.steps, "steps", done=state.step) as advance,
            open_loader(context.train_rows, config, context.share, context.device, state.step) as loader,
            open_profile(context, state.step, context.meter.aside, beat_long) as profile,
        ):
            for step in range(state.step + 1, last + 1):
                profile.begin(step)
                with stragglers.working(), context.meter.waiting():
                    ready = next(loader)
                # One collective before any gradient: all ranks stop after the same step, or none does.
                sums = _agree(context, ready, stragglers)
                [targets] = sums.targets
                if _must_stop(context, sums):
                    _save_and_stop(context, log.settle(state), saved_step)

                engine.set_accumulation(len(ready.batches))
                loss, origins = _add_up_gradients(context, ready, targets, stragglers)
                # The decision stays on the device, and so do the loss and the norms: until they are read, a step
                # later on CUDA, the host never waits for the GPU.
                decision = guard.judge(loss, step)
                context.stop_requested.defer()  # from here on a stop saves this step first
                factor = rate_factor(step, config.steps, optim)
                context.heartbeat.beat(f"step {step}: the gradients are there")
                skipped, norms = engine.update(factor, decision.skip)
                guard.accept(loss, skipped)

                # On CUDA this waits for the previous step's numbers, while the device works on this step.
                state = log.settle(state)
                stream = chain(state.stream, step, sums.digest)
                state = replace(state, step=step, tokens=state.tokens + targets, stream=stream)
                numbers = read_numbers_later(loss, decision.z, skipped, norms, engine.expert_load(), origins)
                values = {"lr": optim.learning_rate * factor, "tokens": state.tokens}
                values |= context.callbacks.step_values()
                positions = len(ready.rows) * config.sequence_length
                values |= context.meter.step(len(ready.rows), positions, targets, sample=bool(sums.sample[0]))
                state = log.add(state, StepEntry(step, ready.rows, numbers, values))
                context.heartbeat.stepped(step, values["seconds"])
                context.energy["step"] = step
                context.heartbeat.beat(f"step {step}: callbacks", long=True)
                context.callbacks.run()
                advance(1, step_note(log.latest))
                profile.end(step)

                # Validation comes before the checkpoint of the same step, which then holds its result.
                if _due(step, config.validate_every_steps, last):
                    state = _validate(context, log.settle(state), saved_step)
                    last = _last_step(context, state)
                if _due(step, context.recipe.evaluation.every_steps, last):
                    state = _score_tasks(context, log.settle(state), saved_step)
                if _due(step, context.settings.checkpoint.every_steps, last):
                    state = log.settle(state)
                    _save(context, state)
                    saved_step = step
                if step == last:
                    break
    context.callbacks.end(state.step, tokens=state.tokens, loss=state.final_loss)
    _finish_callbacks(context, state.step)
    return state


def _spike_guard(context: TrainContext, state: TrainState) -> SpikeGuard:
    """Spike guard; its window starts again where mixture or batch size change."""
    config = context.recipe.train
    starts = window_starts(config)
    if config.late_sources:  # the number of rows decides at which step they begin
        starts |= frozenset(step["from_step"] for step in weights_in_use(context.train_rows, config))
    return SpikeGuard(config.skip, state.losses, state.skipped, context.device, starts)


def _last_step(context: TrainContext, state: TrainState) -> int:
    """Last step of the run, as its own validations decide."""
    config = context.recipe.train
    own = own_validations(state.validations, context.checkpoints.begun)
    if not is_last_step(state.step, own, config):
        return config.steps
    if state.step < config.steps:
        best = own[best_validation(own)]
        context.record("early_stop", state.step, best_step=best["step"], best_loss=best["loss"])
        get_logger(__name__).info(
            "train: stops at step %d of %d: %d validations did not improve on the loss of step %d",
            state.step, config.steps, config.patience, best["step"],
        )  # fmt: skip
    return state.step


@contextlib.contextmanager
def _open_parts(context: TrainContext) -> Iterator[TrainState]:
    """Fill in the context's engine, saver, meter and heartbeat.

    Yield the state that training starts from.
    """
    folder = artifact_folder("train", context.checkpoints.train_key, context.checkpoints.root)
    reports = HangReports(folder, context.ranks.rank, context.ranks.world_size, context.attempt)
    hung = partial(_report_hang, context)
    # The two `as` below fill in fields of the context.
    limits = context.settings.engine, hung, context.callback_seconds
    with watch_hangs(reports, *limits) as context.heartbeat, translated_errors():
        context.budget.start(lambda payload: add_up(payload, HOST))
        context.engine, state = _open_engine(context)
        if context.settings.nudge:
            nudge(context.engine, context.settings.nudge)
        if context.ranks.first and state.step:  # a kill may have left a removal half done, and no save may follow
            remove_old(context.checkpoints, context.settings.checkpoint, state.step, state.validations)
        durable = partial(_record_checkpoint, context)
        saver = open_saver(context.checkpoints, context.settings, context.engine, context.facts(), durable)
        with saver as context.saver:
            rows_read = batch_sizes(context.recipe.train).before(state.step + 1)
            context.meter = StepMeter(context, state.step, rows_read)
            begin(context.energy, COMPUTE)
            yield state
            begin(context.energy, CHECKPOINT)
            context.heartbeat.beat("waiting for the last checkpoint", long=True)


def _report_hang(context: TrainContext, seconds: float) -> None:
    """Called by the watchdog before it ends the process."""
    report_hang(context.energy, seconds)

    def record() -> None:
        with contextlib.suppress(Exception):
            context.record("hang", context.energy.get("step", 0), seconds=seconds)

    # Not in the watchdog's thread: the main thread may hang inside a record, which holds the record's lock.
    threading.Thread(target=record, daemon=True).start()


def _open_engine(context: TrainContext) -> tuple[Engine, TrainState]:
    """Engine at the newest checkpoint, or else with initial weights."""
    log, recipe, vocabulary = get_logger(__name__), context.recipe, context.train_rows.vocabulary_size
    parameters, active = (count(recipe.model, vocabulary) for count in (parameter_count, active_parameter_count))
    log.info(
        "train: %s parameters%s%s, %d steps of %d rows of %d tokens, %s, %d rank(s) on %s",
        f"{parameters:,}", f" ({active:,} for each token)" if active < parameters else "",
        trained_in_words(recipe, vocabulary), recipe.train.steps,
        recipe.train.global_batch_size, recipe.train.sequence_length, recipe.train.precision,
        context.ranks.world_size, context.device.type,
    )  # fmt: skip
    engine, device = context.settings.engine, context.device
    teacher = None if context.distillation is None else context.distillation.online_model
    refuse_what_cannot_fit(recipe, engine, vocabulary, hardware_of(context.ranks, device), teacher)
    arguments, folder, made = (recipe, engine, vocabulary, context.ranks, device), context.settings.folder, None
    if context.distillation is not None:
        refuse_damaged_teacher(context.distillation, context.checkpoints)
        context.teacher = _measure_teacher(context)  # beside the student's moments there may be no room for it
        made = context.distillation.student(vocabulary, device)
    kept = _first_weights(context) if recipe.train.freezes else None  # checkpoints hold what learns alone
    resumed = resume(
        context.checkpoints, context.settings, lambda weight: open_engine(*arguments, kept or weight, folder, made)
    )
    if resumed is None:
        resumed = open_engine(*arguments, _first_weights(context), folder, made), TrainState()
        bias = context.initial.expert_bias() if context.initial is not None else None
        if context.distillation is not None:
            bias = context.distillation.expert_bias(vocabulary) or bias
        if bias is not None:
            restore_expert_bias(resumed[0].deepspeed.module, bias)
    context.energy["resumed_from"] = resumed[1].step
    return resumed


def _measure_teacher(context: TrainContext) -> dict[str, Any]:
    """The teacher, and its loss on the student's validation rows; collective."""
    assert context.distillation is not None, "a teacher belongs to a distillation"
    stats: dict[str, Any] = {"teacher": context.distillation.teacher.facts(context.train_rows.vocabulary_size)}
    if (rows := context.validation_rows) is not None:
        passing = partial(context.heartbeat.beat, "validation of the teacher", long=True)
        passing()
        measured = context.distillation.loss_of_teacher(
            rows, context.settings.engine.micro_batch_size, context.device, context.checkpoints.gather,
            (context.ranks.rank, context.ranks.world_size), passing,
        )  # fmt: skip
        stats |= {"teacher_loss": measured.loss, "teacher_bits_per_byte": measured.bits_per_byte}
    return stats


def _first_weights(context: TrainContext) -> Weight:
    """Weights before the first step."""
    recipe, initial = context.recipe, context.initial
    draw: Weight = partial(initial_weight, config=recipe.model, seed=recipe.train.seed)
    if initial is not None:
        initial.check(context.train_rows.vocabulary_size)
        draw = partial(initial.weight, seed=recipe.train.seed)
    if context.distillation is not None:
        draw = context.distillation.weight(context.train_rows.vocabulary_size, draw)

    def weight(name: str, shape: torch.Size) -> torch.Tensor:
        of_adapter = initial_adapter(name, shape, recipe.train.seed)
        return draw(name, shape) if of_adapter is None else of_adapter

    return weight if recipe.train.adapter is not None else draw


def _record_checkpoint(context: TrainContext, step: int, manifest: Manifest | None) -> None:
    """Called by the saver's thread with each durable checkpoint."""
    context.energy.update(checkpoint=step)
    if manifest is not None:
        context.record("checkpoint", step, path=manifest.path, digest=manifest.digest)


@dataclass(frozen=True)
class StepSums:
    """Summands of the collective that opens a step.

    After `over_ranks` they are the sums over all ranks.
    """

    stop: list[int]
    """One number: ranks that must stop, for a signal or a failed save."""
    budget: list[int]
    """The energy budget's payload; none without a budget."""
    targets: list[int] = field(default_factory=list)
    """One number: tokens that the global batch predicts."""
    digest: list[int] = field(default_factory=list)
    """Words of the stream's digest, int64, see `loader.py`."""
    work: list[int] = field(default_factory=list)
    """Each rank's microseconds of work at the end of a straggler window; else none."""
    sample: list[int] = field(default_factory=list)
    """One number: ranks with time for another sample of the matrix product."""

    def over_ranks(self) -> StepSums:
        """Sum each number over all ranks, on the host, in one collective."""
        parts = [getattr(self, part.name) for part in fields(self)]
        summed = iter(add_up([number for part in parts for number in part], HOST))
        return StepSums(*(list(itertools.islice(summed, len(part))) for part in parts))


def _agree(context: TrainContext, ready: StepRows, stragglers: StragglerMonitor) -> StepSums:
    """The sums of this step over all ranks."""
    targets, *digest = context.summands([ready.targets, *ready.digest])
    work = stragglers.slots(ready.step)
    sample = [int(context.meter.wants_sample())]
    stop, budget = _stop_summands(context)
    if context.settings.until_step and ready.step > context.settings.until_step:
        stop = [1]
    ours = StepSums(stop, budget, [int(targets)], [int(word) for word in digest], work, sample)
    context.heartbeat.beat(f"step {ready.step}: the rows are read")
    with during(context.energy, COMMUNICATION):
        sums = ours.over_ranks()
    stragglers.report(ready.step, sums.work)
    if ready.mixture:
        context.record("mixture", ready.step, weights=ready.mixture)
    return sums


def _stop_summands(context: TrainContext) -> tuple[list[int], list[int]]:
    """This rank's `stop` and `budget` of `StepSums`."""
    stop = int(context.stop_requested() or context.saver.failed or bool(context.callbacks.failure))
    return [stop], context.budget.payload(context.saver.seconds)


def _must_stop(context: TrainContext, sums: StepSums) -> bool:
    """Return whether every rank saves and stops now."""
    return context.budget.should_stop(sums.budget) or bool(sums.stop[0])


def _due(step: int, every: int, last: int) -> bool:
    """Return whether a step is due; the last one always is."""
    return step == last or (every > 0 and step % every == 0)


def _add_up_gradients(
    context: TrainContext, ready: StepRows, targets: int, stragglers: StragglerMonitor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward of every micro batch.

    `targets` are those of the global batch.

    Returns the global batch's nats per token; then each origin's nats, followed by each origin's tokens. They are fp64,
    on the device: the same bits on every rank, and the host does not wait for them.
    """
    sums, origins, fixed = [], len(context.train_rows.origins), context.engine.fixed
    batches = ready.batches if fixed is None else tree_order(ready.batches)
    seed, adapter = context.recipe.train.seed, context.recipe.train.adapter
    for number, batch in enumerate(batches, 1):
        if adapter is not None:
            begin_pass(context.engine.deepspeed.module, (seed, ready.step, context.ranks.rank, number))
        with stragglers.passing():
            objective, nats = context.engine.forward(batch)
        context.engine.backward(objective, targets, last=number == len(ready.batches))
        divided: tuple[torch.Tensor, ...] = ()
        if origins > 1 and batch.origins is not None:
            divided = by_origin(nats, batch.origins, origins)
        sums.append(torch.cat([nats.double().sum()[None], *divided]))
    with during(context.energy, COMMUNICATION):
        if fixed is not None:
            total = fixed.over_ranks(tree_sum(sums))
        else:
            # Ranks that share rows (sequence, tensor) have the same nats: only one of them counts.
            total = torch.stack(sums).sum(0) * context.layout.counts
            distributed.all_reduce(total)
    return total[0] / max(targets, 1), total[1:]


def _catch_up(context: TrainContext, state: TrainState) -> tuple[TrainState, int]:
    """Run the validation and tasks still due at the resumed step.

    Returns the state and the last step of the run, which that validation may decide.
    """
    resumed, step = state, state.step

    def is_due(every: int, last: int, made: list[dict[str, Any]]) -> bool:
        if not step or not _due(step, every, last) or any(values["step"] == step for values in made):
            return False
        context.stop_requested.defer()
        return True

    validations = context.recipe.train.validate_every_steps
    if context.validation_rows is not None and is_due(validations, context.recipe.train.steps, state.validations):
        state = _validate(context, state, step)
    last = _last_step(context, state)
    if context.suite is not None and is_due(context.recipe.evaluation.every_steps, last, state.tasks):
        state = _score_tasks(context, state, step)
    if state is not resumed and _due(step, context.settings.checkpoint.every_steps, last):
        _save(context, state)  # an uninterrupted run's checkpoint of this step holds the results
    return state, last


def _validate(context: TrainContext, state: TrainState, saved_step: int) -> TrainState:
    """Measure the validation loss, if there are validation rows.

    A stop request is honoured between two batches; `saved_step` is the last step with a checkpoint.
    """
    if (rows := context.validation_rows) is None:
        return state
    recipe, engine, layout = context.recipe, context.settings.engine, context.layout
    nats_of = _nats_function(context, state, saved_step, "validation")
    with context.meter.aside(EVALUATION) as seconds:
        measured = measure(
            nats_of, rows, recipe.train.validation_rows, engine.micro_batch_size,
            (layout.data_rank, layout.data_ranks), context.sum_over_ranks, context.compiles,
        )  # fmt: skip
        values = asdict(measured)
        context.record("validation", state.step, **values, seconds=seconds())
    context.measured.add("validation")
    get_logger(__name__).info(
        "train: step %d, validation loss %s",
        state.step, loss_words(f"{measured.loss:.4f}", measured.bits_per_byte, recipe.model.num_labels),
    )  # fmt: skip
    kept = finite_row({"step": state.step, **values}, f"train: step {state.step}, validation")
    return replace(state, validations=[*state.validations, kept])


def _score_tasks(context: TrainContext, state: TrainState, saved_step: int) -> TrainState:
    """Measure the scores of `[evaluation]`'s tasks, if there are any; as `_validate`."""
    if (suite := context.suite) is None:
        return state
    nats_of = _nats_function(context, state, saved_step, "tasks")
    # A batch of this size is known to fit.
    tokens = context.settings.engine.micro_batch_size * context.recipe.train.sequence_length
    data_rank, data_ranks = context.layout.data_rank, context.layout.data_ranks
    with context.meter.aside(EVALUATION):
        passes = Passes(tokens, data_rank, data_ranks, context.sum_over_ranks, context.compiles)
        scores = [{"step": state.step, **row} for row in evaluate_tasks(suite, nats_of, passes)]
    context.measured.add("tasks")
    for row in scores:
        context.record("task", **row)
        get_logger(__name__).info("train: step %d, %s", state.step, figures_line(row))
    kept_rows = [finite_row(row, f"train: step {state.step}, {row['task']}") for row in scores]
    return replace(state, tasks=[*state.tasks, *kept_rows])


def _nats_function(
    context: TrainContext, state: TrainState, saved_step: int, kind: str
) -> Callable[[Batch], torch.Tensor]:
    """Forward pass (batch -> nats per position) that honours a stop request.

    `kind` names the measurement in reports of hangs; the first of a kind in an attempt may compile.
    """
    compiles = kind not in context.measured

    def nats_of(batch: Batch) -> torch.Tensor:
        # Every rank makes the same number of passes, so all of them reach this collective.
        context.heartbeat.beat(f"{kind} of step {state.step}", long=compiles)
        if _must_stop(context, StepSums(*_stop_summands(context)).over_ranks()):
            _save_and_stop(context, state, saved_step)
        return context.engine.forward(batch)[1]

    return nats_of


def _save(context: TrainContext, state: TrainState) -> None:
    """Start saving in the background.

    The loop pauses for a copy of the state, and before it until the previous save is durable.

    Raises:
        AlteredFile: a token shard was changed while it was read; nothing is saved.
    """
    changes = context.checkpoints.gather(context.train_rows.changed())
    refuse_altered([line for lines, _ in changes for line in lines])
    touched = [name for _, names in changes for name in names]
    context.heartbeat.beat(f"checkpoint of step {state.step}", long=True)
    with context.meter.aside(CHECKPOINT) as seconds:
        context.saver.save(state)
        context.record("save", state.step, seconds=seconds(), **({"touched": touched} if touched else {}))
    context.heartbeat.beat(f"after the copy for the checkpoint of step {state.step}")


def _save_and_stop(context: TrainContext, state: TrainState, saved_step: int) -> NoReturn:
    """Save steps that no checkpoint holds, then raise once they are durable.

    Raises:
        BudgetReached: the energy budget is used up.
        ConfigError: a callback with `on_error = "fail"` failed.
        Preempted: a signal asked to stop, or `Settings.until_step` is reached.
    """
    signalled = True
    if context.stop_requested():
        get_logger(__name__).info(
            "train: stopping after step %d, which is saved first (press Ctrl-C again to stop at once, without saving)",
            state.step,
        )
    if state.step != saved_step:
        _save(context, state)
    context.heartbeat.beat(f"waiting for the checkpoint of step {state.step}", long=True)
    begin(context.energy, CHECKPOINT)
    context.saver.wait()
    if context.budget.reached:
        context.record("budget", state.step, **context.budget.facts())
    elif not context.checkpoints.gather(context.callbacks.failure)[0]:
        signalled = _report_stop_seconds(context, state.step)  # before the callbacks: the step is durable now
    _finish_callbacks(context, state.step)
    if context.budget.reached:
        raise context.budget.error(state.step)
    by = "by a signal" if signalled else "as planned"
    raise Preempted(f"stopped {by} after step {state.step}, which is saved; run the same command to resume")


def _finish_callbacks(context: TrainContext, step: int) -> None:
    """Deliver the events that wait, and record the totals. Collective.

    Raises:
        ConfigError: a function of the first rank with `on_error = "fail"` failed; raised on every rank.
    """
    context.heartbeat.beat("the last callbacks", long=True)
    context.callbacks.run()
    for facts in context.callbacks.facts():
        context.record("callback", step, **facts)
    context.callbacks.warn_of_errors()
    if failure := context.checkpoints.gather(context.callbacks.failure)[0]:
        raise ConfigError(failure)


def _report_stop_seconds(context: TrainContext, step: int) -> bool:
    """Record the seconds from signal to durability; warn near the limit.

    Returns whether a rank had a signal. Collective.
    """
    seconds = max(context.checkpoints.gather(context.stop_requested.seconds()))  # only some ranks may have the signal
    context.record("left", step, seconds=seconds)
    log, given = get_logger(__name__), context.settings.notice_seconds
    if not seconds:
        return False
    log.info("train: %.1f s from the signal until step %d was durable", seconds, step)
    if given and seconds > given / 2:
        log.warning(
            "train: that is more than half of the %d s that a job has to stop (slurm.signal_seconds, or the site's "
            "slurm.notice_seconds): a slower save would be killed before it is durable; raise that limit to %d s",
            given, 4 * math.ceil(seconds),
        )  # fmt: skip
    return True
