"""Resume from the newest whole checkpoint, or from a parent run.

Nothing is loaded before its bytes were verified, each file by one rank. The same ranks and ZeRO stage read the native
shards, each rank its own file; any other layout, or one whose shards are missing, torn, altered or parted otherwise (by
another DeepSpeed), reads the canonical form. A damaged checkpoint is named in a warning, and the one before it is
taken. A run that had a durable checkpoint and has none that is whole is refused: it never starts again by itself
(`checkpoint.from_scratch` says so on purpose). A disk that cannot be read is an error of its own, not damage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import CheckpointError, ManifestError, MissingInput, PipelineError, StorageError
from governance.files import read_lines
from governance.log import get_logger
from governance.manifest import Manifest, Output, verify
from governance.stage import artifact_folder
from pretrain.checkpoint.format import Parent, Peers, Store, TrainState, moments, read_state, require_step, weights
from pretrain.checkpoint.native import (
    find_native,
    identity,
    native_folder,
    read_shard,
    reader,
    reads_native,
    shard_path,
)
from pretrain.metrics.run_identity import METRICS_FILE

if TYPE_CHECKING:
    import torch

    from pretrain.config.training import Settings
    from pretrain.engine.engine import Engine

OpenWith = Callable[["Callable[[str, Any], torch.Tensor] | None"], "Engine"]
"""Open an engine with what a weight starts from, by name and shape; none: whatever, its state will be placed."""


@dataclass(frozen=True)
class Found:
    """A whole checkpoint, of this run or of its parent."""

    step: int
    manifest: Manifest
    root: Path
    native: Manifest | None
    """The shards beside it, where they are of this layout and whole; then the canonical files were not read."""


def newest_whole(store: Store, peers: Peers, zero_stage: int | None = None) -> Found | None:
    """The newest step whose checkpoint is whole, byte for byte.

    None when there is none. Collective.

    `zero_stage`: look for native shards of this stage and these ranks; without it only for the canonical form.

    Raises:
        CheckpointError: what stands in a checkpoint's place is of another run or model.
        StorageError: a file of a checkpoint cannot be read.
    """
    return _search(store, peers, zero_stage)[0]


def _search(store: Store, peers: Peers, zero_stage: int | None) -> tuple[Found | None, list[str]]:
    """The newest whole checkpoint, and faults of newer ones."""
    damaged: list[str] = []
    steps: list[int] = peers.gather(store.steps() if peers.rank == 0 else [])[0]
    for step in reversed(steps):
        manifest, native, fault = peers.gather(_look(store, step, peers, zero_stage) if peers.rank == 0 else None)[0]
        if isinstance(fault, CheckpointError | StorageError):
            raise fault
        if manifest is None and fault is None:
            continue  # begun and not finished, or removed since
        problems = [str(fault)] if fault is not None else []
        if native is not None:
            state = [output for output in manifest.outputs if output.path.endswith("/state.json")]
            problems = _verify(native, [*native.outputs, *state], store.root, peers)
            if not problems:
                return Found(step, manifest, store.root, native), damaged
            _warn(
                peers, f"native shards of step {step} are damaged ({'; '.join(problems)}); reading the canonical form"
            )
        if fault is None:
            problems = _verify(manifest, list(manifest.outputs), store.root, peers)
            if not problems:
                return Found(step, manifest, store.root, None), damaged
        damaged.append(f"step {step}: {'; '.join(problems)}")
        _warn(peers, f"checkpoint of step {step} is damaged ({'; '.join(problems)}); going back to the one before it")
    return None, damaged


def _look(
    store: Store, step: int, peers: Peers, zero_stage: int | None
) -> tuple[Manifest | None, Manifest | None, Exception | None]:
    try:
        manifest = require_step(store, step)
    except MissingInput:
        return None, None, None
    except (ManifestError, CheckpointError, StorageError) as error:
        return None, None, error
    if zero_stage is None:
        return manifest, None, None
    return manifest, find_native(store, identity(store, step, peers.world_size, zero_stage), manifest), None


def _whole_parent(parent: Parent, peers: Peers) -> Found:
    """The parent checkpoint, verified. Collective."""
    if problems := _verify(parent.manifest, list(parent.manifest.outputs), parent.root, peers):
        raise CheckpointError(
            f"{parent.root / parent.manifest.folder}, which train.continue_from names, is damaged:\n  "
            + "\n  ".join(problems)
            + "\n  Bring its files back, or choose another checkpoint."
        )
    return Found(parent.step, parent.manifest, parent.root, None)


def _verify(manifest: Manifest, outputs: list[Output], root: Path, peers: Peers) -> list[str]:
    """The differences that all ranks found.

    File `i` is read by rank `i` modulo the ranks.

    Raises:
        StorageError: on every rank, where one of them cannot read a file that is there.
    """
    mine = manifest.model_copy(update={"outputs": tuple(outputs[peers.rank :: peers.world_size])})
    unreadable, problems = "", []
    try:
        problems = verify(mine, root)
    except (MissingInput, OSError) as error:
        unreadable = str(error)
    found = peers.gather((problems, unreadable))
    if told := next((fault for _, fault in found if fault), ""):
        raise StorageError(
            f"{root / manifest.folder}: {told}. The checkpoint may well be whole: make its disk readable, then run the "
            f"same command again."
        )
    return [problem for part, _ in found for problem in part]


def _warn(peers: Peers, told: str) -> None:
    if peers.rank == 0:
        get_logger(__name__).warning("%s", told)


def resume(store: Store, peers: Peers, settings: Settings, open_with: OpenWith) -> tuple[Engine, TrainState] | None:
    """An engine that `open_with` made, at the newest whole checkpoint.

    None when none was ever. Collective.

    Raises:
        CheckpointError: a checkpoint is of another model; that of the run's parent is damaged; every one of the run is.
        MissingInput: the run had durable checkpoints, and all of them are gone.
        StorageError: a checkpoint is there and cannot be read.
    """
    from pretrain.engine.engine_loss_scale import restore_loss_scale

    stage = settings.engine.zero_stage if reads_native(settings.engine) else None
    found, damaged = _search(store, peers, stage)
    if found is not None and found.native is not None and found.step == store.recipe.train.steps:
        found = newest_whole(store, peers)  # the run's manifest will list the canonical files: read them
    if found is not None and found.native is not None:
        engine = open_with(None)
        state = _told_state(found, "native")
        fault = _load_native(store, peers, engine, found.step, _updates(state))
        if fault is None:
            restore_loss_scale(engine, state.loss_scale)
            return engine, state
        _warn(peers, f"{fault}: other software parted them otherwise; reading the canonical form")
        del engine
        found = newest_whole(store, peers)
    if found is None:
        _refuse_restart(store, peers, settings, damaged)
        if store.parent is None:
            return None
        found = _whole_parent(store.parent, peers)
    state = _told_state(found, "canonical")
    engine = _from_canonical(settings, open_with, found, _updates(state))
    restore_loss_scale(engine, state.loss_scale)
    return engine, state


def _refuse_restart(store: Store, peers: Peers, settings: Settings, damaged: list[str]) -> None:
    """Raise where the run's durable checkpoints are gone or damaged.

    What they held cannot be computed for free.

    The event "checkpoint" of `metrics.jsonl` says which were durable; a damaged one says so by its manifest.
    """
    error: PipelineError | None = None
    if peers.rank == 0:
        folder = artifact_folder("train", store.train_key, store.root)
        durable = {line["step"] for line in read_lines(folder / METRICS_FILE) if line.get("event") == "checkpoint"}
        if durable or damaged:
            error = _lost(folder, sorted(durable), damaged)
    if (error := peers.gather(error)[0]) is None:
        return
    if not settings.checkpoint.from_scratch:
        raise error
    _warn(peers, f"{error}\n  Training starts at step 1 all the same: checkpoint.from_scratch is set.")


def _lost(folder: Path, durable: list[int], damaged: list[str]) -> PipelineError:
    """Refusal that names durable steps and what is left."""
    steps = f"step {durable[-1]}" if durable else "a step"
    lines = [f"{folder}: the checkpoint of {steps} was durable, and none of this run is whole now."]
    lines += [f"  {line}" for line in damaged] or ["  Their folders below checkpoint/ are gone."]
    lines.append(
        "  Bring them back (a backup, a snapshot of the disk), then run the same command again. To train from step 1 "
        "on purpose, add --from-scratch."
    )
    return (CheckpointError if damaged else MissingInput)("\n".join(lines))


def _told_state(found: Found, form: str) -> TrainState:
    told = "train: going on from the checkpoint of step %d (%s form) in %s"
    get_logger(__name__).info(told, found.step, form, found.root / found.manifest.folder)
    return read_state(found.manifest, found.root)


def _updates(state: TrainState) -> int:
    """Number of optimizer updates, skipped steps excluded."""
    return state.step - len(state.skipped)


def _from_canonical(settings: Settings, open_with: OpenWith, found: Found, updates: int) -> Engine:
    """Load what this rank owns, and no other byte.

    Weights in files DeepSpeed writes itself, from whole ones.
    """
    from pretrain.engine.fragments import MASTER, bring_up, place_fragments

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
        bring_up(engine)
    return engine


def _load_native(store: Store, peers: Peers, engine: Engine, step: int, updates: int) -> CheckpointError | None:
    """Load this rank's shard; what kept any rank from it. Collective."""
    from pretrain.engine.fragments import bring_up, place_fragments

    folder = native_folder(store, identity(store, step, peers.world_size, engine.zero_stage))
    ranks = range(peers.world_size) if engine.zero_stage == 0 else [peers.rank]  # at stage 0 each rank holds all
    fault = None
    try:
        fragments = [fragment for rank in ranks for fragment in read_shard(shard_path(folder, rank))]
        place_fragments(engine, reader(fragments), updates)
    except CheckpointError as error:
        fault = error
    fault = next((told for told in peers.gather(fault) if told is not None), None)
    if fault is None:
        bring_up(engine)
    return fault
