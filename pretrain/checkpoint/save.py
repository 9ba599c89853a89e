"""Asynchronous checkpoints: training pauses only for a copy.

    with open_saver(store, settings, engine, run, when_durable) as saver:
        saver.save(state)        copies what this rank owns into host memory (pinned on CUDA), and returns
        saver.wait()             returns once it is durable, on every rank

The thread writes, hashes and syncs, meets the other ranks through their store (`rendezvous.py`), and rank 0 commits:
first the canonical checkpoint, then the native shards next to it. It never calls a collective. A kill at any moment
leaves the previous checkpoint, or this one, whole.

Promises: the next `save` waits for the previous one. A fault in any rank's thread is raised on every rank at the next
`save` or `wait`, or when the context ends, and nothing is committed. When training fails, the thread may still finish,
because its copy is valid. Price: host memory for one copy of this rank's part (12 bytes per parameter with
AdamW, divided by the ranks) while training lasts, and processor time for writing and hashing, which the thread takes
at a lower priority than training.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import PipelineError
from governance.files import place, remove_file, write_text
from governance.log import get_logger
from governance.manifest import FILE_NAME, Manifest, Output, describe
from governance.stage import commit, now
from pretrain.checkpoint.canonical import Shares, gather_shares, write_canonical
from pretrain.checkpoint.format import STAGE, VERSION, CheckpointStore, TrainState, state_beside, state_text
from pretrain.checkpoint.native import (
    identity,
    native_folder,
    native_manifest,
    reads_native,
    remove_native,
    shard_path,
    write_shard,
)
from pretrain.checkpoint.retention import remove_old
from pretrain.checkpoint.safetensors_files import Shapes
from pretrain.config.training import CheckpointConfig, Settings
from pretrain.distributed.rendezvous import Rendezvous, RendezvousOver
from pretrain.energy_budget import first_save_seconds

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine
    from pretrain.engine.fragments import Owned

WhenDurable = Callable[[int, "Manifest | None"], None]
"""Called with a durable step and, on the first rank, its manifest."""

_POLL_SECONDS = 0.2  # between two collective looks at whether every rank's thread has finished
_NICE = 10  # the thread's niceness: about a tenth of a share where training uses the whole processor


@dataclass(frozen=True)
class CheckpointSource:
    """The training state of this rank, as a saver reads it."""

    fragments: Callable[[], Iterable[Owned]]
    """Fragments that this rank owns now; each is valid until the next is taken; no collective."""
    shapes: Shapes
    zero_stage: int
    pinned: bool = False
    """True on a GPU: the copy is in pinned memory then."""
    room: Path | None = None
    """Folder whose disk holds the copy; None: host memory does."""
    native: bool = True
    """True where this layout can resume from each rank's own part."""
    shared: Callable[[], dict[str, Any]] = dict
    """State that every rank holds alike: fields of `TrainState`."""


def open_saver(
    store: CheckpointStore, settings: Settings, engine: Engine, run: dict[str, Any], when_durable: WhenDurable
) -> Saver:
    """A saver of this engine, which is a context.

    `run` is what manifests record about this attempt; `when_durable` is called with each durable step.

    Raises:
        PipelineError: the model has frozen parameters.
    """
    from pretrain.engine.fragments import local_state
    from pretrain.engine.state import loss_scale_of, scalars_of
    from pretrain.model.expert_bias import expert_bias_of

    if not store.recipe.train.freezes:
        _refuse_frozen(engine)
    layout = settings.engine
    source = CheckpointSource(
        lambda: local_state(engine),
        [(name, tuple(shape)) for name, shape in engine.shapes()],
        engine.zero_stage,
        pinned=engine.device.type == "cuda",
        room=Path(layout.nvme_path or "").absolute() if layout.offload_optimizer == "nvme" else None,
        native=reads_native(layout),
        shared=lambda: {
            "loss_scale": loss_scale_of(engine),
            "expert_bias": expert_bias_of(engine.deepspeed.module),
            "scalars": scalars_of(engine),
        },
    )
    return Saver(store, source, settings.checkpoint, run, when_durable)


def _refuse_frozen(engine: Engine) -> None:
    """Raise if some parameters are frozen, which no checkpoint would hold."""
    trained = {name for name, _ in engine.parameters()}
    if frozen := [name for name, _ in engine.deepspeed.module.named_parameters() if name not in trained]:
        raise PipelineError(
            f"{len(frozen)} of the model's parameters are frozen (requires_grad = False; the first is {frozen[0]}). "
            f"Checkpoints hold trained parameters only, so these would be lost: train all parameters of the model, or "
            f"name those that learn in train.trained."
        )


class Saver:
    """Background saver, one checkpoint at a time; a context."""

    def __init__(
        self,
        store: CheckpointStore,
        source: CheckpointSource,
        config: CheckpointConfig,
        run: dict[str, Any],
        when_durable: WhenDurable = lambda step, manifest: None,
    ) -> None:
        from pretrain.engine.fragments import host_buffers

        self._store, self._source, self._config, self._run = store, source, config, run
        self._when_durable = when_durable
        # Positions only: a list of the tensors would hold whole matrices where ranks hold parts of them.
        places = [replace(fragment, tensors=dict.fromkeys(fragment.tensors)) for fragment in source.fragments()]
        self._buffers = host_buffers(places, source.pinned, source.room)
        self._shares = gather_shares(places, [name for name, _ in source.shapes], store)
        self._thread: threading.Thread | None = None
        self._rendezvous: Rendezvous | None = None
        self._fault: BaseException | None = None
        self._over, self._failing = threading.Event(), threading.Event()
        self.seconds = first_save_seconds(sum(math.prod(shape) for _, shape in source.shapes), store.ranks.world_size)
        """Seconds of the longest save, from its copy until it was durable; an estimate before the first."""
        self._saved = False

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.wait()
            return
        self._failing.set()
        if self._thread is not None:
            self._thread.join()
        if self._fault is not None:
            get_logger(__name__).error("the checkpoint that was being written is lost: %s", self._fault)

    @property
    def failed(self) -> bool:
        """Return whether this rank's saving thread has failed."""
        return self._fault is not None

    def save(self, state: TrainState) -> None:
        """Save the engine's present state, once an earlier save is durable; collective.

        Raises:
            StorageError: the disk was full in an earlier save, or in this one where it is not asynchronous.
        """
        from pretrain.engine.fragments import copy_to_host

        name = self._settle()
        began = time.monotonic()  # after the wait for the previous save, which is not part of this one
        copy_to_host(self._source.fragments(), self._buffers)
        state = replace(state, **self._source.shared())
        ranks, keys = self._store.ranks, self._store.key_value_store
        rendezvous = Rendezvous(keys, name, ranks.rank, ranks.world_size, self._over, self._failing)
        self._rendezvous = rendezvous
        work = (state, rendezvous, began)
        self._thread = threading.Thread(target=self._work, args=work, name="checkpoint", daemon=True)
        self._thread.start()
        if not self._config.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait until every save is durable, on every rank; collective.

        Raises:
            StorageError: the disk of some rank is full.
        """
        self._settle()

    def _settle(self) -> str:
        """Wait for every rank's thread, and raise the fault of any.

        Returns a new name that all ranks agree on.
        """
        while True:
            if self._thread is not None:
                self._thread.join(_POLL_SECONDS)
            busy = self._thread is not None and self._thread.is_alive()
            answers = self._store.gather((busy, self._shared_fault(), uuid.uuid4().hex[:16]))
            faults = [fault for _, fault, _ in answers if fault is not None]
            if faults:
                self._over.set()
                if self._thread is not None:
                    self._thread.join()
                raise self._fault or faults[0]
            if not any(busy for busy, _, _ in answers):
                break
        if self._rendezvous is not None and self._store.ranks.first:
            self._rendezvous.clear()
        self._thread = self._rendezvous = None
        return str(answers[0][2])

    def _shared_fault(self) -> PipelineError | None:
        """This rank's fault as the other ranks raise it."""
        if self._fault is None or isinstance(self._fault, PipelineError):
            return self._fault
        return PipelineError(f"rank {self._store.ranks.rank} could not save a checkpoint: {self._fault!r}")

    def _work(self, state: TrainState, rendezvous: Rendezvous, began: float) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # Linux: of this thread alone
        try:
            ours = RankCopy(self._buffers, self._source, self._shares)
            made = write_checkpoint(self._store, state, ours, rendezvous, self._config, self._run)
            self._when_durable(state.step, made)
            lasted = time.monotonic() - began
            self.seconds, self._saved = max(lasted, self.seconds if self._saved else 0.0), True
        except RendezvousOver:
            pass
        except BaseException as error:
            self._fault = error


@dataclass(frozen=True)
class RankCopy:
    """This rank's copy of its part, and the shares of all ranks."""

    own: Sequence[Owned]
    source: CheckpointSource
    shares: Shares

    def fragments(self, native: Path, rank: int, names: Collection[str]) -> Iterator[Owned]:
        """All ranks' fragments of these parameters.

        This rank's come from its copy, the others' from their shards.
        """
        requested = frozenset(names)
        yield from (fragment for fragment in self.own if fragment.name in requested)
        for other in self.shares.owners(names):
            if other != rank:
                yield from self.shares.read(shard_path(native, other), other, requested)


def write_checkpoint(
    store: CheckpointStore,
    state: TrainState,
    part: RankCopy,
    rendezvous: Rendezvous,
    config: CheckpointConfig,
    run: dict[str, Any],
) -> Manifest | None:
    """Write and commit a checkpoint, together with the other ranks' threads.

    It is durable when this returns.

    Returns its manifest on rank 0.

    Raises:
        StorageError: this rank's disk is full.
        RendezvousOver: another rank's is, or training has ended.
        Occupied: a newer attempt of this run has begun; nothing is committed.
    """
    store.check_lease()
    started, folder, first, source = now(), store.folder(state.step), store.ranks.first, part.source
    text = state_text(state) if first else ""  # a value that JSON cannot hold fails before any file is touched
    identified = identity(store, state.step, store.ranks.world_size, source.zero_stage)
    native = native_folder(store, identified)
    several = store.ranks.world_size > 1  # the shard of a single rank would repeat the canonical files
    if first:
        store.note(state.step, **({"native": native.name} if several else {}))
    shards: list[Output] = []
    if several:
        shard = write_shard(native, store.root, store.ranks.rank, part.own)
        shards = _outputs(rendezvous.collect("shard", [shard.model_dump(mode="json")]))
    ranks = (store.ranks.rank, store.ranks.world_size)
    store.check_lease()
    # All shards are complete now: this rank reads its canonical files' missing fragments out of them.
    fragments = functools.partial(part.fragments, native, store.ranks.rank)
    made = write_canonical(folder, store.root, source.shapes, fragments, ranks)
    outputs = _outputs(rendezvous.collect("canonical", [output.model_dump(mode="json") for output in made]))
    manifest = None
    if first:
        facts = {**run, "started": started, "finished": now()}
        # A manifest that exists already is of a damaged checkpoint, or of one that is saved again with the validation
        # that its attempt could not finish. Its weights were replaced file by file, with equal bytes. Until
        # the new manifest is written, the next attempt finds the state that the old one lists by its second name.
        store.check_lease()
        if (folder / FILE_NAME).exists() and (folder / "state.json").exists():
            place(folder / "state.json", state_beside(folder))
        write_text(folder / "state.json", text)
        outputs.append(describe(folder / "state.json", store.root))
        store.check_lease()
        manifest = commit(_manifest(store, state, outputs, facts), store.root, store.attest, replaces=True)
        remove_file(state_beside(folder))
        kept = native if several and config.native and source.native else None
        if kept is not None:
            remove_file(kept / FILE_NAME)
            commit(native_manifest(store, identified, shards, manifest, facts), store.root, store.attest)
        remove_native(store, kept)
        remove_old(store, config, state.step, state.validations)
    rendezvous.collect("durable", None)
    return manifest


def _outputs(collected: list[list[dict[str, Any]]] | None) -> list[Output]:
    """Outputs of all ranks, on rank 0."""
    return [Output.model_validate(value) for values in collected or () for value in values]


def _manifest(store: CheckpointStore, state: TrainState, outputs: Sequence[Output], run: dict[str, Any]) -> Manifest:
    reached = {"step": state.step, "tokens": state.tokens, "loss": state.losses[-1]}
    return Manifest(
        stage=STAGE,
        version=VERSION,
        key=store.key(state.step),
        config=store.identity(state.step).model_dump(mode="json"),
        inputs=store.inputs,
        outputs=tuple(sorted(outputs, key=lambda output: output.path)),
        stats={**reached, **store.continued, **store.on_base},
        run=run,
    )
