"""Training stage: from token shards to a finished run.

    <root>/train/<key>/losses.json            the loss of every step, validations, tasks, what was skipped
                       metrics.jsonl          events with times and attempts (see metrics_log.py); not hashed
                       checkpoints.jsonl      the saved steps (see format.py)
                       run.lock, holders/     the lease of the attempt that trains here (see lease.py)
                       profile/               traces of profiled steps (see profiler.py)
                       hangs/                 stacks of ranks that hung (see watchdog.py)
                       manifest.json          lists losses.json and the files of the last checkpoint

Promise: after a kill, a preemption or a full disk the same command resumes from the newest whole checkpoint, with the
rows and numbers of an uninterrupted run. With the same ranks, threads and micro batches the artifact has the same
digest, bit for bit on CPU; with others it agrees to rounding.
"""

from __future__ import annotations

import contextlib
import gc
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from governance.errors import ConfigError
from governance.files import write_json
from governance.hooks import UNKNOWN_ENERGY, Watched
from governance.log import get_logger
from governance.malloc import keep_freed_memory
from governance.manifest import Input, Manifest, Output, describe, describe_folder
from governance.phases import INTERVAL
from governance.processes import importing
from governance.provenance import provenance
from governance.stage import Recipe, Runtime, artifact_folder, commit, find, not_made, now
from pretrain.callbacks import open_callbacks
from pretrain.checkpoint.base_weights import BaseIdentity, keep_base
from pretrain.checkpoint.format import STEPS_FILE, CheckpointStore, Parent, TrainState, require_step
from pretrain.checkpoint.load import parent_of, refuse_read, refuse_unlike
from pretrain.config.training import EngineConfig, Settings, TrainRecipe
from pretrain.context import TrainContext
from pretrain.data.batch_size import batch_sizes
from pretrain.data.corrupted_rows import corrupted_rows
from pretrain.data.dataset import (
    Rows,
    altered_shards,
    holds_validation,
    open_rows,
    refuse_altered,
    refuse_other_than_pairs,
    refuse_small,
    refuse_unknown_documents,
    watch_shards,
    without_removed,
)
from pretrain.data.sampler import weights_in_use
from pretrain.data.tokenizer_check import refuse_foreign_vocabulary
from pretrain.distillation.distilled_training import Distillation, distillation_of
from pretrain.distributed.lease import RunLease, hold_folder
from pretrain.distributed.preemption import watch_signals
from pretrain.distributed.process_group import (
    Ranks,
    device_of,
    gather,
    join,
    ranks_store,
    read_ranks,
    rendezvous_device,
    slurm_attempt,
    threads_of,
)
from pretrain.energy_budget import BudgetGuard
from pretrain.evaluation.scores import Suite
from pretrain.finetuning.trained_parameters import parameters_of
from pretrain.initial_weights.start import InitialWeights, initial_weights_of
from pretrain.metrics.metrics_log import open_record
from pretrain.metrics.run_identity import METRICS_FILE, MirrorTables, RunIdentity
from pretrain.preflight.compatibility import check_start, check_together
from pretrain.preflight.hardware import hardware_of

VERSION = 4
STAGE = "train"


def train(
    tokens: Manifest,
    recipe: TrainRecipe,
    settings: Settings,
    runtime: Runtime,
    *,
    suite: Callable[[], Suite] | None = None,
    evidence: tuple[Input, ...] = (),
    tables: MirrorTables = dict,
) -> Manifest:
    """Train, or find the finished run, without importing torch.

    It is called on every rank.

    Args:
        tokens: token shards or packed rows.
        recipe: decides what is learned.
        settings: decide how it runs; enter no key.
        runtime: root, meter, energy budget, journal.
        suite: opens the tasks of `recipe.evaluation`, encoded as the tokens are.
        evidence: what let the corpus through (a verdict), for the run's mirrors.
        tables: shown by the mirrors next to the charts.

    Returns:
        The run's manifest, on every rank.

    Raises:
        ConfigError: the sections do not fit together, the batch does not divide over the ranks, or the parent
            checkpoint is not of this run's first steps.
        MissingInput: the run is not trained yet and `runtime.make` is False, or the parent checkpoint is missing.
        CheckpointError: the parent checkpoint is torn, or is not a checkpoint.
        ManifestError: a token shard differs from its manifest.
        PipelineError: too few rows, a run that diverged, a full device.
        Preempted: stopped by a signal; what was learned is saved.
        BudgetReached: the energy budget is used up, or the use is unknown; what was learned is saved.
        Occupied: another run that is alive trains the same, or a later start of the same Slurm job has begun.
    """
    check_together(recipe, settings)
    origin = _origin_of(tokens, recipe, runtime)
    if (finished := find(STAGE, origin.key, runtime.root)) is not None:
        if runtime.make:
            _compare_recipes(origin.key, settings.engine)
        return finished
    if not runtime.make:
        raise not_made(STAGE, recipe.model_dump(mode="json"), runtime)
    if origin.parent is not None:
        refuse_unlike(origin.parent, tokens, recipe)
    folder = artifact_folder(STAGE, origin.key, runtime.root)
    runtime.hooks.budget.check(STAGE, folder.relative_to(runtime.root).as_posix())
    if recipe.evaluation.tasks and suite is None:
        raise TypeError("recipe.evaluation names tasks: pass their suite")
    identity = RunIdentity(recipe, origin.key, (*origin.inputs, *evidence), runtime.hooks.head, tables)
    with importing():
        from pretrain.loop import train_loop

    started = now()
    with _open_run(tokens, origin, settings, runtime, identity, suite) as (context, lease):
        state = train_loop(context)
        lease.look()
        outputs, stats = _outputs(context, state, folder) if context.ranks.first else ([], {})
    run = {**context.facts(), "started": started, "journal": runtime.hooks.head(), "finished": now()}
    run["energy"] = context.energy
    if recipe.train.callbacks:
        run["callbacks"] = context.callbacks.facts()
    manifest = Manifest(
        stage=STAGE, version=VERSION, key=origin.key, config=recipe.model_dump(mode="json"), inputs=origin.inputs,
        outputs=tuple(sorted(outputs, key=lambda output: output.path)), stats=stats, run=run,
    )  # fmt: skip
    if context.ranks.first:
        manifest = commit(manifest, runtime.root, runtime.hooks.attest, describe_folder(folder, runtime.root))
    return gather(manifest)[0]


def folder_of(tokens: Manifest, recipe: TrainRecipe, runtime: Runtime) -> Path:
    """Folder of this recipe's run, whether it exists or not."""
    return artifact_folder(STAGE, _origin_of(tokens, recipe, runtime).key, runtime.root)


@dataclass(frozen=True)
class _Origin:
    """Everything that a training starts from, and the key that follows."""

    parent: Parent | None
    initial: InitialWeights | None
    distillation: Distillation | None
    inputs: tuple[Input, ...]
    """The token shards, then the parent checkpoint, the folder of first weights, the teacher and the draws from it, if
    any."""
    key: str


def _origin_of(tokens: Manifest, recipe: TrainRecipe, runtime: Runtime) -> _Origin:
    initial = initial_weights_of(recipe, tokens, runtime)
    parent = parent_of(recipe.train, runtime.root)
    distillation = distillation_of(recipe, tokens, runtime)
    checkpoint = [parent.manifest.as_input()] if parent is not None else []
    weights = [initial.source] if initial is not None else []
    inputs = (tokens.as_input(), *checkpoint, *weights, *(distillation.inputs if distillation is not None else ()))
    key = Recipe(STAGE, VERSION, recipe).key([item.digest for item in inputs])
    return _Origin(parent, initial, distillation, inputs, key)


def _refuse_unlike_ranks(keys: Sequence[str]) -> None:
    """Raise where ranks would train different runs.

    Raises:
        ConfigError: a custom task or a file differs between their processes or nodes.
    """
    if len(set(keys)) > 1:
        raise ConfigError(
            f"the ranks have different recipes ({', '.join(sorted({key[:12] for key in keys}))}): a file, a source or "
            "the records of a custom task differ between their nodes or processes. Make custom tasks deterministic (no "
            "order of sets, no clock), and give every node the same files."
        )


def _compare_recipes(key: str, engine: EngineConfig) -> None:
    """Compare this rank's run with those of the other ranks.

    A rank that would train another run waits for all ranks, even where this one finds its run finished. On a node
    without the run's devices no rank can train, so they compare on the CPU: a finished run is found on any machine.

    Raises:
        ConfigError: as `_refuse_unlike_ranks`.
    """
    ranks = read_ranks()
    if ranks.world_size > 1:
        join(ranks, engine.collective_timeout_seconds, rendezvous_device(ranks, engine.device))
        _refuse_unlike_ranks(gather(key))


@contextlib.contextmanager
def _open_run(
    tokens: Manifest,
    origin: _Origin,
    settings: Settings,
    runtime: Runtime,
    identity: RunIdentity,
    suite: Callable[[], Suite] | None,
) -> Iterator[tuple[TrainContext, RunLease]]:
    """Open everything that a training needs, as the loop's context.

    In this order: signals, the lease of the folder, the energy meter, the arithmetic, the record, the other ranks, the
    data.
    """
    recipe, ranks, hooks = identity.recipe, read_ranks(), runtime.hooks
    folder = artifact_folder(STAGE, origin.key, runtime.root)
    callbacks = open_callbacks(recipe.train.callbacks, settings.folder, first=ranks.first)
    first_on_node = ranks.local_rank == 0  # it measures the node's energy, and watches the lease
    meter = hooks.meter(STAGE) if first_on_node else contextlib.nullcontext(dict(UNKNOWN_ENERGY))
    with watch_signals() as stop_requested:
        questions = suite() if suite and recipe.evaluation.tasks else None
        with (
            hold_folder(folder, slurm_attempt(), first=ranks.first, leads=first_on_node, nodes=ranks.nodes) as lease,
            meter as energy,
            _arithmetic(ranks, settings.engine),
            open_record(folder, settings.tracking, identity, lease.check, hooks.line_signer, writes=ranks.first) as (
                record,
                attempt,
            ),
        ):
            if ranks.first:
                hooks.begin(folder, (METRICS_FILE, STEPS_FILE))
            energy["artifact"] = folder.relative_to(runtime.root).as_posix()
            device = join(ranks, settings.engine.collective_timeout_seconds, settings.engine.device)
            _refuse_unlike_ranks(gather(origin.key))  # before a rank keeps a lease in another folder
            number, attempt = gather((lease.number, attempt))[0]
            lease.follow(number)
            check_start(recipe, settings, hardware_of(ranks, device))
            train_rows, validation_rows = _open_data(tokens, recipe, runtime.root, ranks)
            if origin.parent is not None:
                refuse_read(origin.parent, train_rows, recipe.train)
            if (distillation := origin.distillation) is not None:
                place = (ranks.rank, ranks.world_size)
                train_rows = distillation.open_rows(train_rows, runtime.root, gather, place)
            intervals = frozenset(name for name in gather(energy.get(INTERVAL)) if name)
            watched = Watched(energy, energy["artifact"], intervals, measures=first_on_node, first=ranks.first)
            yield (
                TrainContext(
                    recipe=recipe,
                    settings=settings,
                    ranks=ranks,
                    device=device,
                    train_rows=train_rows,
                    validation_rows=validation_rows,
                    checkpoints=_checkpoint_store(recipe, origin, runtime, ranks, lease, train_rows.vocabulary_size),
                    record=callbacks.observing(record),
                    attempt=attempt,
                    energy=energy,
                    stop_requested=stop_requested,
                    suite=questions,
                    initial=origin.initial,
                    distillation=distillation,
                    budget=BudgetGuard(hooks.budget.watch(watched)),
                    callbacks=callbacks,
                ),
                lease,
            )


def _checkpoint_store(
    recipe: TrainRecipe, origin: _Origin, runtime: Runtime, ranks: Ranks, lease: RunLease, vocabulary_size: int
) -> CheckpointStore:
    """The run's checkpoints, and the facts that each states."""
    steps = artifact_folder(STAGE, origin.key, runtime.root) / STEPS_FILE
    return CheckpointStore(
        root=runtime.root,
        train_key=origin.key,
        vocabulary_size=vocabulary_size,
        recipe=recipe,
        inputs=origin.inputs,
        attest=runtime.hooks.attest,
        # The first rank commits, so it looks at the lease itself; files of the others count only then.
        check_lease=lease.look if ranks.first else lease.check,
        parent=origin.parent,
        base=_base_weights(recipe, vocabulary_size, runtime, origin.initial) if ranks.first else None,
        source_facts=origin.initial.folder.facts() if origin.initial is not None else {},
        ranks=ranks,
        gather=gather,
        sign=runtime.hooks.line_signer(steps, uuid.uuid4().hex) if ranks.first else dict,
        key_value_store=ranks_store(),
    )


@contextlib.contextmanager
def _arithmetic(ranks: Ranks, engine: EngineConfig) -> Iterator[None]:
    """Fix what decides the order of sums: threads and deterministic kernels.

    Deterministic kernels are a setting on CUDA (`engine.deterministic`): with them a compiler falls back to slow
    scatters and sorts. From now on the process keeps the memory that a step frees: on CPU the next step would fault it
    in again, for 4 % of a small step's time.
    """
    import torch

    from pretrain.engine.uncompiled import set_deterministic

    on_cpu = device_of(ranks, engine.device).type == "cpu"
    if engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, deterministic cuBLAS refuses to start
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads_of(ranks, engine.threads))
    keep_freed_memory()
    compiles = not on_cpu or engine.compile
    set_deterministic(on_cpu or engine.deterministic, warn_only=not on_cpu, compiles=compiles)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, at the price of a pass over memory
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        set_deterministic(before[1], compiles=compiles)
        gc.unfreeze()  # undoes the freeze of `importing`


def _open_data(tokens: Manifest, recipe: TrainRecipe, root: Path, ranks: Ranks) -> tuple[Rows, Rows | None]:
    """Verify the token shards, each by one rank, and map them."""
    train = recipe.train
    changed = watch_shards(tokens, root, ranks.rank, ranks.world_size)
    problems = gather(altered_shards(tokens, root, ranks.rank, ranks.world_size))
    refuse_altered([line for lines in problems for line in lines])
    if recipe.model.encoder_layers and train.span_corruption is None:
        refuse_other_than_pairs(tokens, root)
    train_rows = replace(open_rows(tokens, "train", root, train.sequence_length), changed=changed)
    train_rows = corrupted_rows(without_removed(train_rows, train), tokens, train, root)
    refuse_foreign_vocabulary(tokens, train_rows, root)
    refuse_small(train_rows.count, train.sequence_length, max(batch_sizes(train).sizes))
    if not holds_validation(tokens, root):
        if train.patience:
            raise ConfigError(
                f"train.patience = {train.patience}: {tokens.folder} has no validation documents to stop by. Raise "
                f"data.encode.validation_share, or remove patience."
            )
        get_logger(__name__).warning("%s has no validation documents: no validation loss is measured", tokens.folder)
        refuse_unknown_documents(train_rows.removed, [train_rows])
        return train_rows, None
    validation_rows = without_removed(open_rows(tokens, "validation", root, train.sequence_length), train)
    validation_rows = corrupted_rows(validation_rows, tokens, train, root)
    refuse_unknown_documents(train_rows.removed, [train_rows, validation_rows])
    return train_rows, validation_rows


def _base_weights(
    recipe: TrainRecipe, vocabulary_size: int, runtime: Runtime, initial: InitialWeights | None
) -> Manifest | None:
    """Base of a training with frozen parameters; None where all learn."""
    if initial is None or not recipe.train.freezes:
        return None
    initial.check(vocabulary_size)
    identity, started = BaseIdentity(model=recipe.model, vocabulary_size=vocabulary_size), now()
    facts = {**provenance(), "started": started, "finished": started, "energy": dict(UNKNOWN_ENERGY)}
    return keep_base(identity, initial.source, initial.weight, runtime.root, runtime.hooks.attest, facts)


def _outputs(context: TrainContext, state: TrainState, folder: Path) -> tuple[list[Output], dict[str, Any]]:
    """Outputs and statistics of a finished run."""
    others = {name: getattr(state, name) for name in ("validations", "tasks", "skipped")}
    write_json(folder / "losses.json", {"losses": list(state.losses), **others})
    losses = describe(folder / "losses.json", context.checkpoints.root)
    last = require_step(context.checkpoints, state.step)
    last_validation = state.validations[-1] if state.validations else {}
    stats = {
        "steps": state.step,
        "tokens": state.tokens,
        **parameters_of(context.recipe, context.train_rows.vocabulary_size),
        "vocabulary_size": context.train_rows.vocabulary_size,
        "final_loss": state.final_loss,
        "skipped_steps": len(state.skipped),
        "validation_loss": last_validation.get("loss"),
        "bits_per_byte": last_validation.get("bits_per_byte"),
        "tasks": {row["task"]: row for row in state.tasks if row["step"] == state.step},
        "losses_sha256": losses.sha256,
        "stream_sha256": state.stream,
        "mixture": weights_in_use(context.train_rows, context.recipe.train),
        "checkpoint": {"path": last.path, "digest": last.digest},
        **context.checkpoints.continued,
        **context.checkpoints.on_base,
        **({"distillation": context.teacher} if context.teacher else {}),
    }
    return [losses, *last.outputs], stats
