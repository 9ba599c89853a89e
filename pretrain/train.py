"""Training, from token shards to the artifact of a finished run; the loop reads from top to bottom.

    <root>/train/<key>/losses.json            the loss of every step and each validation: a function of the recipe
                       metrics.jsonl          what happened, with times and attempts (see tracking.py); not hashed
                       checkpoints.jsonl      the steps that were saved (see checkpoint.py)
                       manifest.json          lists losses.json and the files of the last checkpoint

Promise: run the same command again, after a kill, a preemption or a full disk, and it goes on from the newest whole
checkpoint with the very rows and numbers that an uninterrupted run would have seen. With the same ranks, threads and
micro batches the artifact has the same digest, bit for bit on CPU; with others it agrees to rounding.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import MissingInput, PipelineError, Preempted
from governance.files import write_json
from governance.log import get_logger, progress
from governance.manifest import KEY_LENGTH, Manifest, Output, describe
from governance.provenance import provenance
from governance.stage import UNKNOWN_ENERGY, Recipe, Runtime, artifact_folder, commit, find, now
from pretrain.config import (
    CheckpointConfig,
    EngineConfig,
    ModelConfig,
    OptimConfig,
    TrackingConfig,
    TrainConfig,
    TrainRecipe,
    check_together,
)
from pretrain.distributed import Ranks, read_ranks

if TYPE_CHECKING:
    import torch

    from pretrain.checkpoint import Peers, Store, TrainState
    from pretrain.dataset import Rows
    from pretrain.engine import Engine
    from pretrain.tracking import Record

VERSION = 1
STAGE = "train"


@dataclass(frozen=True)
class Settings:
    """How this run is carried out; nothing here enters its key."""

    checkpoint: CheckpointConfig
    engine: EngineConfig
    tracking: TrackingConfig


@dataclass(frozen=True)
class Job:
    """What the loop works on."""

    recipe: TrainRecipe
    settings: Settings
    ranks: Ranks
    device: torch.device
    train_rows: Rows
    validation_rows: Rows | None
    store: Store
    peers: Peers
    record: Record
    attempt: int
    energy: dict[str, Any]
    """The meter's: told where the run stands, so that the ledger knows what a kill wasted."""
    leave: Callable[[], bool]


def train(  # noqa: PLR0913 - one argument a section of the run's file
    tokens: Manifest,
    model: ModelConfig,
    optim: OptimConfig,
    train: TrainConfig,
    checkpoint: CheckpointConfig,
    engine: EngineConfig,
    tracking: TrackingConfig,
    runtime: Runtime,
    *,
    before_start: Callable[[], None] = lambda: None,
) -> Manifest:
    """Train, or find trained; `before_start` runs before anything is opened, and may refuse by raising.

    Called on every rank; returns the run's manifest on every rank. A finished run is found without importing torch.

    Raises:
        ConfigError: the sections do not fit together, or the batch does not divide over the ranks.
        MissingInput: it is not trained yet and `runtime.make` is False.
        ManifestError: a token shard is not what its manifest says.
        PipelineError: too few rows, a loss that is not finite, a full device.
        Preempted: a signal came; a checkpoint was saved.
    """
    recipe = TrainRecipe(model=model, optim=optim, train=train)
    check_together(recipe, engine)
    key = Recipe(STAGE, VERSION, recipe).key([tokens.digest])
    found = find(STAGE, key, runtime.root)
    if found is not None:
        return found
    if not runtime.make:
        raise MissingInput(f"{STAGE}: not made yet for this configuration. Make it with: {runtime.command}")
    before_start()
    return _train(tokens, recipe, Settings(checkpoint, engine, tracking), runtime, key)


def _train(tokens: Manifest, recipe: TrainRecipe, settings: Settings, runtime: Runtime, key: str) -> Manifest:
    from pretrain.checkpoint import Peers, Store
    from pretrain.distributed import gather, join
    from pretrain.preemption import watch_signals
    from pretrain.tracking import open_record

    ranks, started = read_ranks(), now()
    folder = artifact_folder(STAGE, key, runtime.root)
    meter = runtime.meter(STAGE) if ranks.local_rank == 0 else contextlib.nullcontext(dict(UNKNOWN_ENERGY))
    with (
        watch_signals() as leave,
        meter as energy,
        _arithmetic(ranks, settings.engine),
        open_record(folder, settings.tracking, recipe, key, writes=ranks.first, head=runtime.head) as (record, attempt),
    ):
        device = join(ranks, settings.engine.collective_timeout_seconds)
        train_rows, validation_rows = _open_data(tokens, recipe.train, runtime.root, ranks)
        store = Store(runtime.root, key, train_rows.vocabulary_size, recipe, tokens.as_input(), runtime.attest)
        peers = Peers(ranks.rank, ranks.world_size, gather)
        job = Job(
            recipe, settings, ranks, device, train_rows, validation_rows, store, peers, record, attempt, energy, leave
        )  # fmt: skip
        state = _learn(job)
        outputs, stats = _finish(job, state, folder) if ranks.first else ((), {})
    manifest = Manifest(
        stage=STAGE,
        version=VERSION,
        key=key,
        config=recipe.model_dump(mode="json"),
        inputs=(tokens.as_input(),),
        outputs=tuple(sorted(outputs, key=lambda output: output.path)),
        stats=stats,
        run={**_run(job), "started": started, "finished": now(), "energy": energy, "journal": runtime.head()},
    )
    if ranks.first:
        manifest = commit(manifest, runtime.root, runtime.attest)
    return gather(manifest)[0]


def _run(job: Job) -> dict[str, Any]:
    """The facts of this attempt, which never enter a digest."""
    execution = {
        "world_size": job.ranks.world_size,
        "device": job.device.type,
        "zero_stage": job.settings.engine.zero_stage,
        "micro_batch_size": job.settings.engine.micro_batch_size,
    }
    return {**provenance(), "attempt": job.attempt, "execution": execution, "energy": dict(UNKNOWN_ENERGY)}


@contextlib.contextmanager
def _arithmetic(ranks: Ranks, engine: EngineConfig) -> Iterator[None]:
    """Fix what decides the order of sums while the context lasts: threads, and torch's deterministic kernels."""
    import torch

    from pretrain.distributed import threads_of

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, deterministic cuBLAS refuses to start
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads_of(ranks, engine.threads))
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, at the price of a pass over memory
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def _open_data(tokens: Manifest, train: TrainConfig, root: Path, ranks: Ranks) -> tuple[Rows, Rows | None]:
    """Verify the token shards, each by one rank, and map them."""
    from pretrain.dataset import altered_shards, open_rows, refuse_altered, refuse_small
    from pretrain.distributed import gather

    problems = gather(altered_shards(tokens, root, ranks.rank, ranks.world_size))
    refuse_altered([line for lines in problems for line in lines])
    train_rows = open_rows(tokens, "train", root, train.sequence_length)
    refuse_small(train_rows, train.global_batch_size)
    if not tokens.files("validation", root) or not tokens.stats.get("validation_tokens", 1):
        get_logger(__name__).warning("%s holds out no document: nothing is validated", tokens.folder)
        return train_rows, None
    return train_rows, open_rows(tokens, "validation", root, train.sequence_length)


def _learn(job: Job) -> TrainState:
    """The loop. A step: agree on leaving, read rows, add up gradients, update, record, validate, save."""
    from pretrain.dataset import micro_batches, rows_of_step
    from pretrain.distributed import add_up
    from pretrain.engine import foreign_errors
    from pretrain.optim import learning_rate

    config, optim = job.recipe.train, job.recipe.optim
    micro = job.settings.engine.micro_batch_size
    engine, state = _start(job)
    speed = _Speed(job)
    job.energy.update(artifact=f"{STAGE}/{job.store.train_key[:KEY_LENGTH]}", resumed_from=state.step)
    with progress("train", config.steps, "steps", done=state.step) as advance, foreign_errors():
        for step in range(state.step + 1, config.steps + 1):
            began = time.perf_counter()
            numbers = rows_of_step(step, config.global_batch_size, job.train_rows.count, config.seed)
            groups = micro_batches(numbers, micro, job.ranks.rank, job.ranks.world_size)
            batches = [job.train_rows.batch(group) for group in groups]
            targets = sum(int((batch.targets >= 0).sum()) for batch in batches)
            targets, leaving = add_up([targets, int(job.leave())], job.device)
            if leaving:
                _leave(job, engine, state)

            rate = learning_rate(step, config.steps, optim)
            engine.set_rate(rate)
            losses = []
            for batch in batches:
                loss = engine.loss(batch)
                engine.backward(loss, targets)
                losses.append(loss.detach())
            loss = add_up([float(sum(losses))], job.device)[0] / max(targets, 1)

            state = replace(state, step=step, tokens=state.tokens + targets, losses=[*state.losses, loss])
            values = {"loss": loss, "lr": rate, "grad_norm": engine.gradient_norm(), "tokens": state.tokens}
            values |= speed.of(time.perf_counter() - began)
            job.record("step", step, **values)
            job.energy["step"] = step
            _refuse_not_finite(step, values)
            advance(1, f"loss {loss:.3f}, {values['tokens_per_second']:,.0f} tokens/s")
            if _due(step, config.validate_every_steps, config.steps):
                state = _validate(job, engine, state)
            if _due(step, job.settings.checkpoint.every_steps, config.steps):
                _save(job, engine, state)
                job.energy["checkpoint"] = step
    return state


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _start(job: Job) -> tuple[Engine, TrainState]:
    """An engine with initial weights, or with those of the newest whole checkpoint."""
    from pretrain.checkpoint import TrainState, moments, newest_whole, read_state, require_step, weights
    from pretrain.engine import MOMENTS, load_state, open_engine
    from pretrain.model.decoder import initial_weight, parameter_count

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


class _Speed:
    """Turns the seconds of a step into tokens per second and MFU."""

    def __init__(self, job: Job) -> None:
        from pretrain.model.decoder import flops_per_token
        from pretrain.tracking import peak

        config = job.recipe.train
        self._tokens = config.global_batch_size * config.sequence_length
        self._flops = flops_per_token(job.recipe.model, job.train_rows.vocabulary_size, config.sequence_length)
        ceiling = peak(job.device, config.precision)
        self._peak = ceiling.flops_per_second and ceiling.flops_per_second * job.ranks.world_size
        job.record(
            "start",
            len(job.store.steps()),
            world_size=job.ranks.world_size,
            peak_flops_per_second=self._peak,
            peak_source=ceiling.source,
            flops_per_token=self._flops,
        )

    def of(self, seconds: float) -> dict[str, float | None]:
        rate = self._tokens / seconds
        mfu = rate * self._flops / self._peak if self._peak else None
        return {"seconds": seconds, "tokens_per_second": rate, "mfu": mfu}


def _refuse_not_finite(step: int, values: dict[str, Any]) -> None:
    bad = {name: values[name] for name in ("loss", "grad_norm") if not math.isfinite(values[name] or 0.0)}
    if bad:
        told = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise PipelineError(
            f"step {step}: {told}; training stops before it is saved. The checkpoint before it is kept; lower "
            f"optim.learning_rate, lengthen optim.warmup_steps, or set optim.gradient_clipping."
        )


def _validate(job: Job, engine: Engine, state: TrainState) -> TrainState:
    from pretrain.distributed import add_up
    from pretrain.evaluate import measure

    if job.validation_rows is None:
        return state
    measured = measure(
        engine.loss,
        job.validation_rows,
        job.recipe.train.validation_rows,
        job.settings.engine.micro_batch_size,
        (job.ranks.rank, job.ranks.world_size),
        lambda values: add_up(values, job.device),
    )
    values = asdict(measured)
    job.record("validation", state.step, **values)
    get_logger(__name__).info(
        "train: step %d, validation loss %.4f nats/token, %.4f bits/byte",
        state.step, measured.loss, measured.bits_per_byte,
    )  # fmt: skip
    return replace(state, validations=[*state.validations, {"step": state.step, **values}])


def _save(job: Job, engine: Engine, state: TrainState) -> Manifest:
    from pretrain.checkpoint import remove_old, write_checkpoint
    from pretrain.engine import full_state

    manifest = write_checkpoint(job.store, state, full_state(engine), engine.shapes(), job.peers, _run(job))
    if job.ranks.first:
        remove_old(job.store, job.settings.checkpoint.keep_last, state.step)
    return manifest


def _leave(job: Job, engine: Engine, state: TrainState) -> None:
    """Save what was learned since the last checkpoint, and raise."""
    every = job.settings.checkpoint.every_steps
    if state.step and not _due(state.step, every, job.recipe.train.steps):
        _save(job, engine, state)
    raise Preempted(f"told to leave after step {state.step}, which is saved; the same command goes on from there")


def _finish(job: Job, state: TrainState, folder: Path) -> tuple[list[Output], dict[str, Any]]:
    """The run's own file, the files of its last checkpoint, and its figures."""
    from pretrain.checkpoint import require_step
    from pretrain.model.decoder import parameter_count

    write_json(folder / "losses.json", {"losses": state.losses, "validations": state.validations})
    losses = describe(folder / "losses.json", job.store.root)
    last = require_step(job.store, state.step)
    best = state.validations[-1] if state.validations else {}
    stats = {
        "steps": state.step,
        "tokens": state.tokens,
        "parameters": parameter_count(job.recipe.model, job.train_rows.vocabulary_size),
        "vocabulary_size": job.train_rows.vocabulary_size,
        "final_loss": state.losses[-1],
        "validation_loss": best.get("loss"),
        "bits_per_byte": best.get("bits_per_byte"),
        "losses_sha256": losses.sha256,
        "checkpoint": {"path": last.path, "digest": last.digest},
    }
    return [losses, *last.outputs], stats
