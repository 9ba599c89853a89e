"""Resume from the newest whole checkpoint, or from a parent run.

Bytes are verified before they are loaded, each file by one rank. The same ranks and ZeRO stage read the native shards,
each rank its own file. Any other layout reads the canonical form, and so does one whose shards are missing, torn,
altered or partitioned differently (by another DeepSpeed). A damaged checkpoint is named in a warning, and the one
before it is used. A run that had a durable checkpoint and has no whole one left is refused: it never silently starts
over (`checkpoint.from_scratch` allows it). A disk that cannot be read is an error of its own, not damage.

`[train] continue_from` starts from a checkpoint of another run, its parent:

    20,000 steps, decaying over the last 2,000  ->  its checkpoint of step 8,000  ->  9,000 steps, decaying over 1,000

Promise: an uninterrupted run, and one that continues a checkpoint of such a run's first steps, are the same from there
on: weights, moments, loss scale, spike window and the stream of rows. So the parent's steps must be the first steps of
the new run: the same model, optimizer, token shards, seed and row length, and up to its step the same batch sizes and
mixture. Everything else may differ: steps, schedule, rates, precision, and batch sizes and mixture of later steps (the
branches of a stable phase: arXiv:2404.06395, arXiv:2405.18392). The parent is an input of the new run and of its
checkpoints: its digest is in their keys, its location is not. Its canonical form is read, and only while the new run
has no whole checkpoint of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import CheckpointError, ConfigError, ManifestError, MissingInput, PipelineError, StorageError
from governance.files import put_in_place, read_steps, remove_file
from governance.log import get_logger
from governance.manifest import FILE_NAME, Manifest, Output, describe, verify
from governance.stage import artifact_folder, root_of
from pretrain.checkpoint.base_weights import base_of
from pretrain.checkpoint.format import (
    CheckpointStore,
    Parent,
    TrainState,
    identity_of,
    moments,
    open_checkpoint,
    read_state,
    require_step,
    state_beside,
    weights,
)
from pretrain.checkpoint.native import (
    find_native,
    identity,
    native_folder,
    read_shard,
    reader,
    reads_native,
    shard_path,
)
from pretrain.config.training import Settings, TrainConfig, TrainRecipe
from pretrain.data.batch_size import batch_sizes
from pretrain.data.sampler import sampler_of
from pretrain.early_stopping import is_last_step, own_validations
from pretrain.metrics.run_identity import METRICS_FILE

if TYPE_CHECKING:
    import torch

    from pretrain.data.dataset import Rows
    from pretrain.engine.engine import Engine

OpenWith = Callable[["Callable[[str, Any], torch.Tensor] | None"], "Engine"]
"""Open an engine with initial weights by name and shape; None: its state will be loaded."""
_PARENT_FIELD = "train.continue_from"


@dataclass(frozen=True)
class WholeCheckpoint:
    """A whole checkpoint, of this run or of its parent."""

    step: int
    manifest: Manifest
    root: Path
    native: Manifest | None
    """Its native shards, where they fit this layout and are whole; the canonical files were not read then."""


def newest_whole(store: CheckpointStore, zero_stage: int | None = None) -> tuple[WholeCheckpoint | None, list[str]]:
    """The newest whole checkpoint, and the faults of newer ones.

    Whole means byte for byte. The call is collective.

    With `zero_stage` it looks for native shards of this stage and these ranks, without it only for the canonical form.

    Raises:
        CheckpointError: a checkpoint's folder holds that of another run or model.
        StorageError: a file of a checkpoint cannot be read.
    """
    damaged: list[str] = []
    first = store.ranks.first
    steps: list[int] = store.gather(store.steps() if first else [])[0]
    for step in reversed(steps):
        # Only the first rank reads manifests: all ranks must take the same branch, whatever each one's disk shows.
        manifest, native, fault = store.gather(_read_manifests(store, step, zero_stage) if first else None)[0]
        if isinstance(fault, CheckpointError | StorageError):
            raise fault
        if manifest is None and fault is None:
            continue  # begun and not finished, or removed since
        problems = [str(fault)] if fault is not None else []
        if native is not None:
            state = [output for output in manifest.outputs if output.path.endswith("/state.json")]
            problems = _verify(store, native, [*native.outputs, *state], store.root)
            if not problems:
                return WholeCheckpoint(step, manifest, store.root, native), damaged
            _warn(
                store, f"native shards of step {step} are damaged ({'; '.join(problems)}); reading the canonical form"
            )
        if fault is None:
            problems = _verify(store, manifest, list(manifest.outputs), store.root)
            if not problems:
                return WholeCheckpoint(step, manifest, store.root, None), damaged
        damaged.append(f"step {step}: {'; '.join(problems)}")
        _warn(store, f"checkpoint of step {step} is damaged ({'; '.join(problems)}); going back to the one before it")
    return None, damaged


def _read_manifests(
    store: CheckpointStore, step: int, zero_stage: int | None
) -> tuple[Manifest | None, Manifest | None, Exception | None]:
    try:
        manifest = require_step(store, step)
    except MissingInput:
        return None, None, None
    except (ManifestError, CheckpointError, StorageError) as error:
        return None, None, error
    _restore_state(store, manifest)
    if zero_stage is None:
        return manifest, None, None
    return manifest, find_native(store, identity(store, step, store.ranks.world_size, zero_stage), manifest), None


def _restore_state(store: CheckpointStore, manifest: Manifest) -> None:
    """Put back the state that a kill parted from its manifest (`save.write_checkpoint`)."""
    folder = store.root / manifest.folder
    before, state = state_beside(folder), folder / "state.json"
    if not before.exists():
        return
    store.check_lease()
    listed = {output.path: output.sha256 for output in manifest.outputs}
    if describe(before, store.root).sha256 == listed.get(state.relative_to(store.root).as_posix()):
        put_in_place(before, state)
    remove_file(before)


def refuse_damaged(store: CheckpointStore, named: Parent, field: str) -> None:
    """Raise unless a checkpoint that a setting names is whole. Collective.

    Raises:
        CheckpointError: names each file that differs.
        StorageError: a file cannot be read.
    """
    problems = _verify(store, named.manifest, list(named.manifest.outputs), named.root)
    if (base := base_of(named.manifest, named.root)) is not None:
        problems += _verify(store, base, list(base.outputs), named.root)
    if problems:
        raise CheckpointError(
            f"{named.root / named.manifest.folder}, which {field} names, is damaged:\n  "
            + "\n  ".join(problems)
            + "\n  Restore its files, or choose another checkpoint."
        )


def _verify(store: CheckpointStore, manifest: Manifest, outputs: list[Output], root: Path) -> list[str]:
    """Differences between files and manifest.

    Rank `i` reads every file `i` modulo the ranks. The call is collective.

    Raises:
        StorageError: on every rank, where one of them cannot read a file that is there.
    """
    mine = manifest.model_copy(update={"outputs": tuple(outputs[store.ranks.rank :: store.ranks.world_size])})
    unreadable, problems = "", []
    try:
        problems = verify(mine, root)
    except (MissingInput, OSError) as error:
        unreadable = str(error)
    found = store.gather((problems, unreadable))
    if reason := next((fault for _, fault in found if fault), ""):
        raise StorageError(
            f"{root / manifest.folder}: {reason}. The checkpoint may well be intact: make its disk readable, then run "
            f"the same command again."
        )
    return [problem for part, _ in found for problem in part]


def _warn(store: CheckpointStore, message: str) -> None:
    if store.ranks.first:
        get_logger(__name__).warning("%s", message)


def resume(store: CheckpointStore, settings: Settings, open_with: OpenWith) -> tuple[Engine, TrainState] | None:
    """Open an engine at the newest whole checkpoint.

    The result is None if the run never saved one. The call is collective.

    Raises:
        CheckpointError: a checkpoint belongs to another model, or the parent's or every one of the run's is damaged.
        MissingInput: the run had durable checkpoints, and all of them are gone.
        StorageError: a checkpoint exists and cannot be read.
    """
    stage = settings.engine.zero_stage if reads_native(settings.engine) else None
    found, damaged = newest_whole(store, stage)
    if found is not None and found.native is not None and _ends_there(store, found):
        found, damaged = newest_whole(store)  # the run's manifest will list the canonical files: they are verified
    if found is not None and found.native is not None:
        engine = open_with(None)
        state = _read_state(found, "native")
        fault = _load_native(store, engine, found.step, _updates(state))
        if fault is None:
            _restore_shared(engine, state)
            return engine, state
        _warn(store, f"{fault}: another DeepSpeed partitioned them differently; reading the canonical form")
        del engine  # before the next one is built: two would not fit
        found, damaged = newest_whole(store)
    if found is None:
        _refuse_restart(store, settings, damaged)
        if store.parent is None:
            return None
        refuse_damaged(store, store.parent, _PARENT_FIELD)
        found = WholeCheckpoint(store.parent.step, store.parent.manifest, store.parent.root, None)
    state = _read_state(found, "canonical")
    engine = _from_canonical(settings, open_with, found, _updates(state))
    _restore_shared(engine, state)
    return engine, state


def _ends_there(store: CheckpointStore, found: WholeCheckpoint) -> bool:
    """Return whether the run makes no step after this checkpoint."""
    validations = read_state(found.manifest, found.root).validations
    return is_last_step(found.step, own_validations(validations, store.begun), store.recipe.train)


def _restore_shared(engine: Engine, state: TrainState) -> None:
    """Restore the state that every rank holds alike."""
    from pretrain.engine.state import restore_loss_scale, restore_scalars
    from pretrain.model.expert_bias import restore_expert_bias

    restore_loss_scale(engine, state.loss_scale)
    restore_expert_bias(engine.deepspeed.module, state.expert_bias)
    restore_scalars(engine, state.scalars)


def _refuse_restart(store: CheckpointStore, settings: Settings, damaged: list[str]) -> None:
    """Raise where the run's durable checkpoints are gone or damaged.

    A restart would pay for their steps twice.

    The event "checkpoint" of `metrics.jsonl` lists the durable ones; a damaged one is known by its manifest.
    """
    error: PipelineError | None = None
    if store.ranks.first:
        folder = artifact_folder("train", store.train_key, store.root)
        durable = {line["step"] for line in read_steps(folder / METRICS_FILE) if line.get("event") == "checkpoint"}
        if durable or damaged:
            error = _lost(folder, sorted(durable), damaged)
    if (error := store.gather(error)[0]) is None:
        return
    if not settings.checkpoint.from_scratch:
        raise error
    _warn(store, f"{error}\n  Training starts at step 1 all the same: checkpoint.from_scratch is set.")


def _lost(folder: Path, durable: list[int], damaged: list[str]) -> PipelineError:
    """Error that names the durable steps and their remaining files."""
    steps = f"step {durable[-1]}" if durable else "a step"
    lines = [f"{folder}: the checkpoint of {steps} was durable, and none of this run is intact now."]
    lines += [f"  {line}" for line in damaged] or ["  Their folders below checkpoint/ are gone."]
    lines.append(
        "  Restore them (a backup, a snapshot of the disk), then run the same command again. To train from step 1 "
        "on purpose, add --from-scratch."
    )
    return (CheckpointError if damaged else MissingInput)("\n".join(lines))


def _read_state(found: WholeCheckpoint, form: str) -> TrainState:
    message = "train: resuming from the checkpoint of step %d (%s form) in %s"
    get_logger(__name__).info(message, found.step, form, found.root / found.manifest.folder)
    return read_state(found.manifest, found.root)


def _updates(state: TrainState) -> int:
    """Number of optimizer updates, skipped steps excluded."""
    return state.step - len(state.skipped)


def _from_canonical(settings: Settings, open_with: OpenWith, found: WholeCheckpoint, updates: int) -> Engine:
    """Load what this rank owns, and no other byte.

    DeepSpeed itself writes offloaded weights (nvme), from whole ones.
    """
    from pretrain.engine.fragments import MASTER, place_fragments, refresh_parameters

    in_files = settings.engine.offload_parameters == "nvme"
    with weights(found.manifest, found.root) as masters, moments(found.manifest, found.root) as others:
        engine = open_with(masters.read if in_files else None)
        for name, shape in engine.shapes():
            masters.refuse_other(name, shape)
        place_fragments(
            engine,
            lambda name, start, count: {MASTER: masters.stretch(name, start, count), **others.of(name, start, count)},
            updates,
        )
    if not in_files:
        refresh_parameters(engine)
    return engine


def _load_native(store: CheckpointStore, engine: Engine, step: int, updates: int) -> CheckpointError | None:
    """Load this rank's shard; return the fault of any rank. Collective."""
    from pretrain.engine.fragments import place_fragments, refresh_parameters

    folder = native_folder(store, identity(store, step, store.ranks.world_size, engine.zero_stage))
    # At stage 0 every rank holds the whole state, but each saved a share of it.
    ranks = range(store.ranks.world_size) if engine.zero_stage == 0 else [store.ranks.rank]
    fault = None
    try:
        fragments = [fragment for rank in ranks for fragment in read_shard(shard_path(folder, rank))]
        place_fragments(engine, reader(fragments), updates)
    except CheckpointError as error:
        fault = error
    fault = next((error for error in store.gather(fault) if error is not None), None)
    if fault is None:
        refresh_parameters(engine)
    return fault


def parent_of(train: TrainConfig, root: Path) -> Parent | None:
    """The parent checkpoint that `continue_from` names, or None.

    Only its manifest is read.

    Raises:
        MissingInput: it does not exist.
        CheckpointError: its manifest is torn, it is not a checkpoint, or its folder was renamed.
    """
    if not train.continue_from:
        return None
    if train.continue_from.startswith("hf://"):
        raise CheckpointError(
            f"{_PARENT_FIELD} = {train.continue_from!r}: a model of the hub has no run's state to continue. Start from "
            f'it at step 0 with train.initial_weights = "{train.continue_from}".'
        )
    folder = root / train.continue_from
    if (folder / "config.json").exists() and not (folder / FILE_NAME).exists():
        raise CheckpointError(
            f"{_PARENT_FIELD} = {train.continue_from!r}: is a folder of Hugging Face weights, without a run's "
            "state. Start from it at step 0 with train.initial_weights."
        )
    return named_checkpoint(_PARENT_FIELD, train.continue_from, root)


def named_checkpoint(field: str, name: str, root: Path) -> Parent:
    """The checkpoint that a setting names.

    Raises: as `parent_of`.
    """
    folder = root / name
    try:
        manifest = open_checkpoint(folder)
    except MissingInput as error:
        raise MissingInput(
            f"{field} = {name!r}: {error}, or "
            f"checkpoint/<key> of this root (--root names another), or a folder of Hugging Face weights. Restore a "
            f"checkpoint that was removed; a finished run needs only its {FILE_NAME}"
        ) from error
    home = root_of(folder)
    if (home / manifest.folder).resolve() != (folder.parent if folder.name == FILE_NAME else folder).resolve():
        raise CheckpointError(
            f"{field} = {name!r}: a checkpoint's files are named relative to its root: rename "
            f"its folder, or the copy, to <some folder>/{manifest.folder}"
        )
    return Parent(manifest, home)


def refuse_unlike(parent: Parent, tokens: Manifest, recipe: TrainRecipe) -> None:
    """Raise unless the parent's steps are the first steps of this recipe.

    Raises:
        ConfigError: names every difference, with both values.
        CheckpointError: another version wrote the checkpoint.
    """
    if "base" in parent.manifest.stats:
        raise ConfigError(
            f"{_PARENT_FIELD} = {recipe.train.continue_from!r}: belongs to a training with frozen parameters, whose "
            f"other weights and moments it lacks. Write it as a folder (`assay export`) and start from that with "
            f"train.initial_weights."
        )
    identity = identity_of(parent.manifest)
    step = identity.step
    there = _beginning(identity.recipe, parent.manifest.inputs[0].digest, step)
    here = _beginning(recipe, tokens.digest, step)
    unlike = [
        f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
        for name in (there | here)
        if there.get(name) != here.get(name)
    ]
    if lost := set(identity.recipe.train.removed_documents) - set(recipe.train.removed_documents):
        unlike.append(f"train.removed_documents lacks {len(lost)} document(s) here that were removed there")
    if recipe.train.steps <= step:
        unlike.append(f"train.steps is {recipe.train.steps} here: it must be more than the {step} steps already done")
    if unlike:
        raise ConfigError(
            f"{_PARENT_FIELD} = {recipe.train.continue_from!r}: the {step} steps of this checkpoint are not the first "
            f"ones of this run:\n  " + "\n  ".join(unlike) + "\n  Set these to the parent's values, or remove "
            "continue_from to train from the beginning."
        )


def refuse_read(parent: Parent, rows: Rows, train: TrainConfig) -> None:
    """Raise where the parent read a document that this run removes.

    Raises:
        ConfigError: names the first step that did.
    """
    before = identity_of(parent.manifest).recipe.train.removed_documents
    removed = rows.removed - frozenset(map(bytes.fromhex, before))
    steps = sampler_of(rows, train).steps_that_read(rows.holding(removed), parent.step) if removed else []
    if steps:
        raise ConfigError(
            f"{_PARENT_FIELD} = {train.continue_from!r}: this checkpoint of step {parent.step} had read a document of "
            f"train.removed_documents at step {steps[0]}. Continue an earlier one, or remove continue_from to train "
            "from the beginning."
        )


_OWN_OPTIMIZER = ("optim.function", "optim.code_sha256", "optim.arguments")


def _beginning(recipe: TrainRecipe, tokens: str, step: int) -> dict[str, Any]:
    """Settings that decide the first `step` steps, by name."""
    train, sizes = recipe.train, batch_sizes(recipe.train)
    stages = zip(sizes.steps, sizes.sizes, strict=True)
    mixture = [(phase.from_step, phase.weights) for phase in train.mixture if phase.from_step <= step]
    return {
        **{f"model.{name}": value for name, value in recipe.model.model_dump(mode="json").items()},
        "optim.optimizer": recipe.optim.optimizer,
        **{name: getattr(recipe.optim, name.partition(".")[2]) for name in _OWN_OPTIMIZER if recipe.optim.function},
        **({"train.distillation": train.distillation.model_dump(mode="json")} if train.distillation else {}),
        "train.seed": train.seed,
        "train.sequence_length": train.sequence_length,
        "the digest of the token shards": tokens,
        f"the batch size up to step {step} (after step, rows)": [stage for stage in stages if stage[0] < step],
        f"train.mixture up to step {step}": mixture if train.mixture else "none",
        # Where late sources begin follows from the rows of the whole run.
        **({"train.late_sources": (train.late_sources, sizes.before(train.steps + 1))} if train.late_sources else {}),
    }
