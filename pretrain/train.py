"""Training stage: from token shards to a finished run.

    <root>/train/<key>/losses.json            the loss of every step, validations, tasks, what was skipped
                       metrics.jsonl          what happened, with times and attempts (see metrics_log.py); not hashed
                       checkpoints.jsonl      the steps that were saved (see format.py)
                       run.lock, holders/     who trains here, and who may no more (see lease.py)
                       profile/               where the time of some steps went (see profiler.py)
                       hangs/                 where each rank was when it hung (see watchdog.py)
                       manifest.json          lists losses.json and the files of the last checkpoint

Promise: run the same command again, after a kill, a preemption or a full disk, and it goes on from the newest whole
checkpoint with the very rows and numbers that an uninterrupted run would have seen. With the same ranks, threads and
micro batches the artifact has the same digest, bit for bit on CPU; with others it agrees to rounding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import MissingInput
from governance.files import write_json
from governance.hooks import UNKNOWN_ENERGY, Watched
from governance.log import get_logger
from governance.malloc import keep_freed_memory
from governance.manifest import Manifest, Output, describe, describe_folder
from governance.phases import INTERVAL
from governance.stage import Recipe, Runtime, artifact_folder, commit, find, now
from pretrain.checkpoint.continuing import parent_of, refuse_unlike
from pretrain.config.training import EngineConfig, Settings, TrainConfig, TrainRecipe
from pretrain.distributed.lease import hold_folder
from pretrain.distributed.preemption import Leave, watch_signals
from pretrain.distributed.process_group import Ranks, read_ranks, slurm_attempt
from pretrain.metrics.metrics_log import Beside, open_record
from pretrain.metrics.run_identity import About
from pretrain.preflight.compatibility import check_start, check_together

if TYPE_CHECKING:
    from pretrain.checkpoint.format import Parent, TrainState
    from pretrain.context import Job
    from pretrain.data.dataset import Rows
    from pretrain.evaluation.scores import Suite

VERSION = 3
STAGE = "train"


def train(
    tokens: Manifest,
    recipe: TrainRecipe,
    settings: Settings,
    runtime: Runtime,
    *,
    before_start: Callable[[], None] = lambda: None,
    suite: Callable[[], Suite] | None = None,
    beside: Beside | None = None,
) -> Manifest:
    """Train, or find trained.

    `before_start` runs before anything is opened, and may refuse by raising.

    `suite` opens the questions of `recipe.evaluation`, encoded as the tokens are. `beside` is what the run's mirrors
    show beside its record, and decides nothing. Called on every rank; returns the run's manifest on every rank. A
    finished run is found without importing torch.

    Raises:
        ConfigError: the sections do not fit together, the batch does not divide over the ranks, or the checkpoint to go
            on from is not of the beginning of this run.
        MissingInput: it is not trained yet and `runtime.make` is False; the checkpoint to go on from is not there.
        CheckpointError: that one is torn, or no checkpoint.
        ManifestError: a token shard is not what its manifest says.
        PipelineError: too few rows, a run that diverged, a full device.
        Preempted: a signal came; what was learned is saved.
        BudgetReached: the policy's energy budget leaves no more, or nobody can tell; what was learned is saved.
        Occupied: another run that is alive trains the same, or a later start of the same Slurm job has begun.
    """
    check_together(recipe, settings.engine)
    parent = parent_of(recipe.train, runtime.root)
    key = _key(tokens, recipe, parent)
    found = find(STAGE, key, runtime.root)
    if found is not None:
        return found
    if not runtime.make:
        raise MissingInput(f"{STAGE}: not made yet for this configuration. Make it with: {runtime.command}")
    if parent is not None:
        refuse_unlike(parent, tokens, recipe)
    before_start()
    runtime.hooks.budget.check(STAGE, artifact_folder(STAGE, key, runtime.root).relative_to(runtime.root).as_posix())
    if recipe.evaluation.tasks and suite is None:
        raise TypeError("recipe.evaluation names tasks: pass the suite that asks them")
    with watch_signals() as leave:
        questions = suite() if suite and recipe.evaluation.tasks else None
        beside = beside or Beside()
        made_from = (tokens.as_input(), *([parent.manifest.as_input()] if parent is not None else []))
        about = About(recipe, key, (*made_from, *beside.evidence), runtime.hooks.head, beside.shown)
        return _train(tokens, parent, about, settings, runtime, leave, questions)


def folder_of(tokens: Manifest, recipe: TrainRecipe, root: Path) -> Path:
    """Folder of this recipe's run, begun or not."""
    return artifact_folder(STAGE, _key(tokens, recipe, parent_of(recipe.train, root)), root)


def _key(tokens: Manifest, recipe: TrainRecipe, parent: Parent | None) -> str:
    made_from = [tokens, *([parent.manifest] if parent is not None else [])]
    return Recipe(STAGE, VERSION, recipe).key([manifest.digest for manifest in made_from])


def _train(
    tokens: Manifest,
    parent: Parent | None,
    about: About,
    settings: Settings,
    runtime: Runtime,
    leave: Leave,
    suite: Suite | None,
) -> Manifest:
    from pretrain.checkpoint.format import Peers, Store
    from pretrain.context import Job
    from pretrain.distributed.process_group import capability_of, gather, gpus_of, join, ranks_store
    from pretrain.energy_budget import Allowance
    from pretrain.loop import learn, run_facts

    recipe, key, ranks, started = about.recipe, about.key, read_ranks(), now()
    hooks = runtime.hooks
    folder = artifact_folder(STAGE, key, runtime.root)
    meter = hooks.meter(STAGE) if ranks.local_rank == 0 else contextlib.nullcontext(dict(UNKNOWN_ENERGY))
    with (
        hold_folder(folder, slurm_attempt(), first=ranks.first, leads=ranks.local_rank == 0) as fence,
        meter as energy,
        _arithmetic(ranks, settings.engine),
        open_record(folder, settings.tracking, about, fence.check, writes=ranks.first) as (record, attempt),
    ):
        energy["artifact"] = folder.relative_to(runtime.root).as_posix()
        device = join(ranks, settings.engine.collective_timeout_seconds, settings.engine.device)
        fence.follow(gather(fence.number)[0])
        there = (device.type, capability_of(device), settings, gpus_of(device))
        check_start(recipe, settings.engine, ranks, *there)
        train_rows, validation_rows = _open_data(tokens, recipe.train, runtime.root, ranks)
        allowed = fence.look if ranks.first else fence.check  # who commits looks; what the others write counts then
        store = Store(
            runtime.root,
            key,
            train_rows.vocabulary_size,
            recipe,
            tokens.as_input(),
            runtime.hooks.attest,
            allowed,
            parent,
        )
        peers = Peers(ranks.rank, ranks.world_size, gather, ranks_store())
        own = frozenset(name for name in gather(energy.get(INTERVAL)) if name)
        watched = Watched(energy, energy["artifact"], own, measures=ranks.local_rank == 0, first=ranks.first)
        job = Job(
            recipe, settings, ranks, device, train_rows, validation_rows, store, peers, record, attempt, energy, leave,
            suite, Allowance(hooks.budget.watch(watched)),
        )  # fmt: skip
        state = learn(job)
        fence.look()
        outputs, stats = _finish(job, state, folder) if ranks.first else ((), {})
    manifest = Manifest(
        stage=STAGE,
        version=VERSION,
        key=key,
        config=recipe.model_dump(mode="json"),
        inputs=store.inputs,
        outputs=tuple(sorted(outputs, key=lambda output: output.path)),
        stats=stats,
        run={
            **run_facts(job),
            "started": started,
            "finished": now(),
            "energy": energy,
            "journal": runtime.hooks.head(),
        },
    )
    if ranks.first:
        manifest = commit(manifest, runtime.root, hooks.attest, describe_folder(folder, runtime.root))
    return gather(manifest)[0]


@contextlib.contextmanager
def _arithmetic(ranks: Ranks, engine: EngineConfig) -> Iterator[None]:
    """Fix what decides the order of sums while the context lasts.

    Threads, and torch's deterministic kernels.

    Those are a setting on CUDA (`engine.deterministic`): with them a compiler falls back to slow scatters and sorts.

    From now on what a step frees stays with the process: on CPU the next one would fault it in again, for 4 % of a
    small step's time.
    """
    import torch

    from pretrain.distributed.process_group import device_of, threads_of
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


def _open_data(tokens: Manifest, train: TrainConfig, root: Path, ranks: Ranks) -> tuple[Rows, Rows | None]:
    """Verify the token shards, each by one rank, and map them."""
    from pretrain.data.batch_size import batch_sizes
    from pretrain.data.dataset import altered_shards, open_rows, refuse_altered, refuse_small
    from pretrain.data.tokenizer_check import refuse_foreign_vocabulary
    from pretrain.distributed.process_group import gather

    problems = gather(altered_shards(tokens, root, ranks.rank, ranks.world_size))
    refuse_altered([line for lines in problems for line in lines])
    train_rows = open_rows(tokens, "train", root, train.sequence_length)
    refuse_foreign_vocabulary(tokens, train_rows, root)
    refuse_small(train_rows, max(batch_sizes(train).sizes))
    if not tokens.files("validation", root) or not tokens.stats.get("validation_tokens", 1):
        get_logger(__name__).warning("%s holds out no document: nothing is validated", tokens.folder)
        return train_rows, None
    return train_rows, open_rows(tokens, "validation", root, train.sequence_length)


def _finish(job: Job, state: TrainState, folder: Path) -> tuple[list[Output], dict[str, Any]]:
    """Outputs and figures of a finished run."""
    from pretrain.checkpoint.format import require_step
    from pretrain.data.sampler import weights_in_use
    from pretrain.model.flops import parameter_count

    told = {name: getattr(state, name) for name in ("validations", "tasks", "skipped")}
    write_json(folder / "losses.json", {"losses": list(state.losses), **told})
    losses = describe(folder / "losses.json", job.store.root)
    last = require_step(job.store, state.step)
    best = state.validations[-1] if state.validations else {}
    stats = {
        "steps": state.step,
        "tokens": state.tokens,
        "parameters": parameter_count(job.recipe.model, job.train_rows.vocabulary_size),
        "vocabulary_size": job.train_rows.vocabulary_size,
        "final_loss": next((loss for loss in reversed(state.losses) if loss is not None), None),
        "skipped_steps": len(state.skipped),
        "validation_loss": best.get("loss"),
        "bits_per_byte": best.get("bits_per_byte"),
        "tasks": {row["task"]: row for row in state.tasks if row["step"] == state.step},
        "losses_sha256": losses.sha256,
        "stream_sha256": state.stream,
        "mixture": weights_in_use(job.train_rows, job.recipe.train),
        "checkpoint": {"path": last.path, "digest": last.digest},
        **job.store.continued,
    }
    return [losses, *last.outputs], stats
