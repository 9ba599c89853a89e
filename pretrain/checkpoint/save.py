"""Asynchronous checkpoints: training pauses for a copy only.

    with open_saver(store, peers, settings, engine, run, when_durable) as saver:
        saver.save(state)        copies what this rank owns into host memory (pinned on CUDA), and returns
        saver.wait()             returns once it is durable, on every rank

The thread writes, hashes and syncs, meets the other ranks through their store (`meeting.py`), and rank 0 commits:
first the canonical checkpoint, then the native shards beside it. It never calls a collective. A kill at any moment
leaves the checkpoint before it, or this one, whole.

Promises: the next `save` waits for the one before. A fault of any rank's thread is raised on every rank at the next
`save` or `wait`, or when the context ends, and nothing is committed. When training fails the thread is given the time
to finish, since what it holds is good. Price: host memory for one copy of this rank's part (12 bytes a parameter with
AdamW, divided by the ranks) while training lasts, and the processor's time for writing and hashing, which the thread
takes at a lower priority than training.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import PipelineError
from governance.files import remove_file, write_text
from governance.log import get_logger
from governance.manifest import FILE_NAME, Manifest, Output, describe
from governance.stage import commit, now
from pretrain.checkpoint.canonical import Shapes, write_canonical
from pretrain.checkpoint.format import STAGE, VERSION, Peers, Store, TrainState, state_text
from pretrain.checkpoint.meeting import Meeting, MeetingOver
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
from pretrain.checkpoint.shard_ranges import Shares, gather_shares
from pretrain.config.training import CheckpointConfig, Settings
from pretrain.energy_budget import first_save_seconds

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine
    from pretrain.engine.fragments import Owned

WhenDurable = Callable[[int, "Manifest | None"], None]
"""Called with a durable step and, on the first rank, its manifest."""

_PATIENCE_SECONDS = 0.2  # between two looks, together, at whether every rank's thread is through
_NICE = 10  # of the thread: about a tenth of a share where training wants the whole processor


@dataclass(frozen=True)
class Source:
    """Source of a checkpoint."""

    fragments: Callable[[], Iterable[Owned]]
    """What this rank owns, as it stands; each holds until the next is asked for; no collective."""
    shapes: Shapes
    zero_stage: int
    pinned: bool = False
    """Whether it lies on a GPU."""
    room: Path | None = None
    """Folder whose disk holds the copy instead of host memory; none: host memory does."""
    native: bool = True
    """Whether this layout can go on from each rank's own part."""
    loss_scale: Callable[[], dict[str, float] | None] = lambda: None
    """Where the search for fp16's loss scale stands, as `TrainState.loss_scale`."""


@contextlib.contextmanager
def open_saver(
    store: Store, peers: Peers, settings: Settings, engine: Engine, run: dict[str, Any], when_durable: WhenDurable
) -> Iterator[Saver]:
    """A saver of this engine.

    `run` are the facts of this attempt, for the manifests' `run` block; `when_durable` gets each step that is durable.
    """
    from pretrain.engine.engine_loss_scale import loss_scale_of
    from pretrain.engine.fragments import local_state

    layout = settings.engine
    source = Source(
        lambda: local_state(engine),
        [(name, tuple(shape)) for name, shape in engine.shapes()],
        engine.zero_stage,
        pinned=engine.device.type == "cuda",
        room=Path(layout.nvme_path or "").absolute() if layout.offload_optimizer == "nvme" else None,
        native=reads_native(layout),
        loss_scale=lambda: loss_scale_of(engine),
    )
    saver = Saver(store, source, peers, settings.checkpoint, run)
    saver.when_durable = when_durable
    with saver:
        yield saver


class Saver:
    """Saves one after the other, in the background; see the module.

    A context.
    """

    def __init__(
        self, store: Store, source: Source, peers: Peers, config: CheckpointConfig, run: dict[str, Any]
    ) -> None:
        from pretrain.engine.fragments import host_buffers

        self._store, self._source, self._peers, self._config, self._run = store, source, peers, config, run
        # Their places alone: a list of the tensors would hold whole matrices where ranks hold parts of them.
        places = [replace(fragment, tensors=dict.fromkeys(fragment.tensors)) for fragment in source.fragments()]
        self._buffers = host_buffers(places, source.pinned, source.room)
        self._shares = gather_shares(places, [name for name, _ in source.shapes], peers)
        self._thread: threading.Thread | None = None
        self._meeting: Meeting | None = None
        self._fault: BaseException | None = None
        self._over, self._failing = threading.Event(), threading.Event()
        self.seconds = first_save_seconds(sum(math.prod(shape) for _, shape in source.shapes), peers.world_size)
        """How long the longest save took until it was durable; before the first, what is guessed."""
        self._saved = False
        self.when_durable: Callable[[int, Manifest | None], None] = lambda step, manifest: None
        """Called on every rank, in its thread, with the step that became durable, and on rank 0 its manifest."""

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
            get_logger(__name__).error("the checkpoint in the making is lost: %s", self._fault)

    @property
    def failed(self) -> bool:
        """Return whether this rank's saving thread has failed."""
        return self._fault is not None

    def save(self, state: TrainState) -> None:
        """Save the engine as it is now; collective.

        What is still being saved is waited for first.

        Raises:
            StorageError: an earlier save, or this one where it is not asynchronous, met a full disk.
        """
        from pretrain.engine.fragments import copy_to_host

        began = time.monotonic()
        number = self._settle()
        copy_to_host(self._source.fragments(), self._buffers)
        state = replace(state, loss_scale=self._source.loss_scale())
        peers = self._peers
        self._meeting = Meeting(peers.store, number, peers.rank, peers.world_size, self._over, self._failing)
        self._thread = threading.Thread(
            target=self._work, args=(state, self._meeting, began), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not self._config.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return once all that was saved is durable, on every rank; collective.

        Raises:
            StorageError: it cannot be, on whatever rank.
        """
        self._settle()

    def _settle(self) -> str:
        """Wait for every rank's thread.

        Raise what any of them met; return a number that all ranks agree on.
        """
        while True:
            if self._thread is not None:
                self._thread.join(_PATIENCE_SECONDS)
            busy = self._thread is not None and self._thread.is_alive()
            answers = self._peers.gather((busy, self._told(), uuid.uuid4().hex[:16]))
            faults = [fault for _, fault, _ in answers if fault is not None]
            if faults:
                self._over.set()
                if self._thread is not None:
                    self._thread.join()
                raise self._fault or faults[0]
            if not any(busy for busy, _, _ in answers):
                break
        if self._meeting is not None and self._peers.rank == 0:
            self._meeting.clear()
        self._thread = self._meeting = None
        return str(answers[0][2])

    def _told(self) -> PipelineError | None:
        """This rank's fault, as the others hear of it."""
        if self._fault is None or isinstance(self._fault, PipelineError):
            return self._fault
        return PipelineError(f"rank {self._peers.rank} could not save a checkpoint: {self._fault!r}")

    def _work(self, state: TrainState, meeting: Meeting, began: float) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # Linux: of this thread alone
        try:
            ours = Part(self._buffers, self._source, self._shares)
            made = write_checkpoint(self._store, state, ours, meeting, self._config, self._run)
            self.when_durable(state.step, made)
            lasted = time.monotonic() - began
            self.seconds, self._saved = max(lasted, self.seconds if self._saved else 0.0), True
        except MeetingOver:
            pass
        except BaseException as error:
            self._fault = error


@dataclass(frozen=True)
class Part:
    """This rank's part of a save."""

    own: Sequence[Owned]
    """The copy of what it owns."""
    source: Source
    shares: Shares
    """Of all ranks."""

    def fragments(self, native: Path, rank: int, names: list[str]) -> Iterator[Owned]:
        """Fragments of all ranks of these parameters.

        This rank's from its copy, the others' from their shards.
        """
        yield from (fragment for fragment in self.own if fragment.name in names)
        for other in self.shares.owners(names):
            if other != rank:
                yield from self.shares.read(shard_path(native, other), other, names)


def write_checkpoint(
    store: Store,
    state: TrainState,
    part: Part,
    meeting: Meeting,
    config: CheckpointConfig,
    run: dict[str, Any],
) -> Manifest | None:
    """Write and commit, together with the other ranks' threads.

    When it returns, it is durable.

    Returns, on rank 0, the checkpoint's manifest.

    Raises:
        StorageError: this rank's disk is full.
        MeetingOver: another rank's is, or training has ended.
        Occupied: a newer attempt of this run has begun; nothing is committed.
    """
    store.allowed()
    started, folder, first, source = now(), store.folder(state.step), meeting.rank == 0, part.source
    told = state_text(state) if first else ""  # what cannot be written fails before anything is touched
    of = identity(store, state.step, meeting.world_size, source.zero_stage)
    native = native_folder(store, of)
    several = meeting.world_size > 1  # one rank's shard would hold what the canonical files hold
    if first:
        store.note(state.step, **({"native": native.name} if several else {}))
    shards: list[Output] = []
    if several:
        shard = write_shard(native, store.root, meeting.rank, part.own)
        shards = _outputs(meeting.collect("shard", [shard.model_dump(mode="json")]))
    ranks = (meeting.rank, meeting.world_size)
    store.allowed()
    made = write_canonical(
        folder, store.root, source.shapes, lambda names: part.fragments(native, meeting.rank, names), ranks
    )
    outputs = _outputs(meeting.collect("canonical", [output.model_dump(mode="json") for output in made]))
    manifest = None
    if first:
        facts = {**run, "started": started, "finished": now()}
        # One that stands here is damaged, or is saved anew with a validation that its own attempt was kept from. Its
        # files of weights were replaced by themselves; only between the next line and the commit does nothing stand.
        store.allowed()
        remove_file(folder / FILE_NAME)
        write_text(folder / "state.json", told)
        outputs.append(describe(folder / "state.json", store.root))
        store.allowed()
        manifest = commit(_manifest(store, state, outputs, facts), store.root, store.attest)
        kept = native if several and config.native and source.native else None
        if kept is not None:
            remove_file(kept / FILE_NAME)
            commit(native_manifest(store, of, shards, manifest, facts), store.root, store.attest)
        remove_native(store, kept)
        remove_old(store, config, state.step, state.validations)
    meeting.collect("durable", None)
    return manifest


def _outputs(told: list[list[dict[str, Any]]] | None) -> list[Output]:
    """Those of all ranks, on rank 0."""
    return [Output.model_validate(value) for values in told or () for value in values]


def _manifest(store: Store, state: TrainState, outputs: Sequence[Output], run: dict[str, Any]) -> Manifest:
    return Manifest(
        stage=STAGE,
        version=VERSION,
        key=store.key(state.step),
        config=store.identity(state.step).model_dump(mode="json"),
        inputs=store.inputs,
        outputs=tuple(sorted(outputs, key=lambda output: output.path)),
        stats={"step": state.step, "tokens": state.tokens, "loss": state.losses[-1], **store.continued},
        run=run,
    )
