"""A checkpoint is an artifact: a directory whose manifest was written last.

    <root>/checkpoint/<key>/weights/00000.safetensors   each parameter's fp32 master weight, by its name
                            moments/00000.safetensors   "<name>.exp_avg" and "<name>.exp_avg_sq", fp32
                            state.json                  step, tokens, losses, validations, stream, skipped steps
                            manifest.json

It is *canonical*: whole parameters, whatever the ZeRO stage and the number of ranks that wrote it, so any other layout
can go on from it, and the same layout goes on bit for bit. Its bytes are a function of what was learned: no time, no
host, no history of restarts (those stand in the manifest's `run`). Price: 12 bytes a parameter on disk; each rank
gathers one parameter at a time and holds at most one pair of files (`FILE_BYTES`) until it is written.

A training run keeps the steps that it began to save in `<root>/train/<key>/checkpoints.jsonl`; the key of a checkpoint
follows from the run and the step, and only one whose manifest stands counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from governance.config import Section, validate
from governance.errors import CheckpointError, ConfigError, ManifestError, MissingInput, PipelineError
from governance.files import append_line, atomic_path, read_lines, remove_tree, write_json
from governance.log import get_logger
from governance.manifest import FILE_NAME, Input, Manifest, Output, describe, read_manifest, verify
from governance.stage import Attest, Recipe, artifact_folder, commit, no_attest, now
from pretrain.config import TrainRecipe
from pretrain.series import Series

VERSION = 1
STAGE = "checkpoint"
FILE_BYTES = 1 << 30  # fp32 weights of one file; a larger parameter has a file of its own
STEPS_FILE = "checkpoints.jsonl"


class CheckpointIdentity(Section):
    """What a checkpoint is of: enough to rebuild the model."""

    train_key: str
    """The key of its training run."""
    step: int
    """Optimizer steps that it has seen."""
    vocabulary_size: int
    """Tokens of the vocabulary, before padding."""
    recipe: TrainRecipe
    """How it is trained."""


@dataclass(frozen=True)
class TrainState:
    """What training knows besides the weights; it travels between the loop, the checkpoint and the run's artifact."""

    step: int = 0
    tokens: int = 0
    """Tokens predicted so far."""
    losses: Series[float | None] = field(default_factory=Series)
    """Nats per token of every step so far, in order; none where it was not finite."""
    validations: list[dict[str, Any]] = field(default_factory=list)
    """Measurements on the validation shards: step, loss, bits_per_byte."""
    stream: str = ""
    """Chained SHA-256 of the tokens that were read, see `loader.py`."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """The steps whose update was left out, see `guard.py`: step, reason, z, rows, documents."""


@dataclass(frozen=True)
class Store:
    """Where a run's checkpoints are, and what they are of."""

    root: Path
    train_key: str
    vocabulary_size: int
    recipe: TrainRecipe
    tokens: Input
    """The token shards' manifest."""
    attest: Attest = no_attest
    """As `Runtime.attest`."""

    def identity(self, step: int) -> CheckpointIdentity:
        """The identity of the checkpoint at `step`."""
        return CheckpointIdentity(
            train_key=self.train_key, step=step, vocabulary_size=self.vocabulary_size, recipe=self.recipe
        )

    def key(self, step: int) -> str:
        """The key of the checkpoint at `step`."""
        return Recipe(STAGE, VERSION, self.identity(step)).key([self.tokens.digest])

    def folder(self, step: int) -> Path:
        """The directory of the checkpoint at `step`."""
        return artifact_folder(STAGE, self.key(step), self.root)

    def steps(self) -> list[int]:
        """The steps that were ever begun to be saved, oldest first."""
        lines = read_lines(artifact_folder("train", self.train_key, self.root) / STEPS_FILE)
        return sorted({line["step"] for line in lines})

    def note(self, step: int) -> None:
        """Write down that `step` is about to be saved."""
        append_line(artifact_folder("train", self.train_key, self.root) / STEPS_FILE, f'{{"step": {step}}}')


def newest_whole(store: Store) -> int:
    """The newest step whose checkpoint is whole, byte for byte; 0 when there is none.

    One that is torn or altered is named in a warning, and the one before it is taken.
    """
    for step in reversed(store.steps()):
        path = store.folder(step) / FILE_NAME
        if not path.exists():
            continue  # begun and not finished, or removed since
        try:
            problems = verify(read_manifest(path), store.root)
        except ManifestError as error:
            problems = [str(error)]
        if not problems:
            return step
        get_logger(__name__).warning(
            "checkpoint of step %d is damaged (%s); going back to the one before it", step, "; ".join(problems)
        )
    return 0


def read_checkpoint(folder: Path, root: Path) -> Manifest:
    """The manifest of a checkpoint that someone asked for by name, after its bytes were verified.

    Raises:
        MissingInput: there is none.
        CheckpointError: it is torn or altered, or is no checkpoint.
    """
    path = folder if folder.name == FILE_NAME else folder / FILE_NAME
    try:
        manifest = read_manifest(path)
    except ManifestError as error:
        raise CheckpointError(str(error)) from error
    if manifest.stage != STAGE:
        raise CheckpointError(f"{folder}: is an artifact of stage {manifest.stage!r}, not a checkpoint")
    if problems := verify(manifest, root):
        raise CheckpointError(f"{folder}: is damaged:\n  " + "\n  ".join(problems) + "\n  Choose another checkpoint.")
    return manifest


def identity_of(manifest: Manifest) -> CheckpointIdentity:
    """What a checkpoint is of.

    Raises:
        CheckpointError: another version wrote it.
    """
    try:
        return validate(manifest.config, CheckpointIdentity, manifest.path)
    except ConfigError as error:
        raise CheckpointError(f"{manifest.path}: is of another version: {error}") from error


def read_state(manifest: Manifest, root: Path) -> TrainState:
    """The state beside the weights."""
    values = json.loads((root / manifest.folder / "state.json").read_bytes())
    return TrainState(**values | {"losses": Series(values["losses"])})


class TensorFiles:
    """The tensors of some safetensors files by name, read when asked for; a context, as files stay mapped."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> TensorFiles:
        from safetensors import SafetensorError, safe_open

        for path in self._paths:
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                self._stack.close()
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
            self._files |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._files.clear()

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._files)

    def read(self, name: str, shape: Any = None) -> Any:
        """The tensor of this name.

        Raises:
            CheckpointError: there is none, or it has another shape: the checkpoint is of another model.
        """
        if name not in self._files:
            raise CheckpointError(f"{self._paths[0].parent}: has no {name}: it is of another model")
        tensor = self._files[name].get_tensor(name)
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise CheckpointError(
                f"{self._paths[0].parent}: {name} has shape {tuple(tensor.shape)}, the model wants {tuple(shape)}"
            )
        return tensor


def weights(manifest: Manifest, root: Path) -> TensorFiles:
    """The master weights of a checkpoint, fp32, by parameter name."""
    return TensorFiles(manifest.files("weights", root))


def moments(manifest: Manifest, root: Path) -> TensorFiles:
    """The optimizer's moments of a checkpoint, fp32, as "<name>.exp_avg" and "<name>.exp_avg_sq"."""
    return TensorFiles(manifest.files("moments", root))


def file_plan(sizes: list[tuple[str, int]], limit: int = FILE_BYTES) -> list[list[str]]:
    """Which parameters share a file: in order, up to `limit` bytes of fp32; a function of the model alone.

    `sizes` are (name, number of elements).
    """
    files: list[list[str]] = []
    filled = limit + 1
    for name, elements in sizes:
        if filled + 4 * elements > limit:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += 4 * elements
    return files


@dataclass(frozen=True)
class Peers:
    """What writing needs of the other ranks."""

    rank: int
    world_size: int
    gather: Callable[[Any], list[Any]]


def write_checkpoint(
    store: Store,
    state: TrainState,
    full_state: Iterator[tuple[str, Mapping[str, Any]]],
    shapes: list[tuple[str, Any]],
    peers: Peers,
    run: dict[str, Any],
) -> Manifest:
    """Save; collective. File `i` is written and hashed by rank `i` modulo the ranks; rank 0 commits.

    Raises:
        StorageError: some rank's disk is full; the same error on every rank, and nothing is committed.
    """
    folder, started = store.folder(state.step), now()
    if peers.rank == 0:
        store.note(state.step)
        remove_tree(folder)  # one that stands here was damaged, else the run would have gone on from it
    peers.gather(None)  # no rank writes into a folder that is being removed
    outputs, fault = _write_files(folder, store.root, state, full_state, file_plan(_sizes(shapes)), peers)
    gathered = peers.gather((outputs, fault))
    for _, error in gathered:
        if error is not None:
            raise error
    manifest = Manifest(
        stage=STAGE,
        version=VERSION,
        key=store.key(state.step),
        config=store.identity(state.step).model_dump(mode="json"),
        inputs=(store.tokens,),
        outputs=tuple(sorted((output for made, _ in gathered for output in made), key=lambda output: output.path)),
        stats={"step": state.step, "tokens": state.tokens, "loss": state.losses[-1]},
        run={**run, "started": started, "finished": now()},
    )
    if peers.rank == 0:
        commit(manifest, store.root, store.attest)
    peers.gather(None)
    return manifest


def _sizes(shapes: list[tuple[str, Any]]) -> list[tuple[str, int]]:
    return [(name, shape.numel()) for name, shape in shapes]


def _write_files(
    folder: Path,
    root: Path,
    state: TrainState,
    full_state: Iterator[tuple[str, Mapping[str, Any]]],
    plan: list[list[str]],
    peers: Peers,
) -> tuple[list[Output], PipelineError | None]:
    """This rank's files; a fault is kept until all ranks are through, or those that wait for it would hang."""
    outputs: list[Output] = []
    fault: PipelineError | None = None

    def attempt(write: Callable[[], list[Path]]) -> None:
        nonlocal fault
        if fault is None:
            try:
                outputs.extend(describe(path, root) for path in write())
            except PipelineError as error:
                fault = error

    for number, names in enumerate(plan):
        mine = number % peers.world_size == peers.rank
        held = {}
        for _ in names:
            name, values = next(full_state)
            if mine:
                held[name] = {key: value.cpu() for key, value in values.items()}
        if mine:
            attempt(lambda held=held, number=number: _write_pair(folder, number, held))
    if peers.rank == 0:
        attempt(lambda: _write_state(folder, state))
    return outputs, fault


def _write_state(folder: Path, state: TrainState) -> list[Path]:
    write_json(folder / "state.json", asdict(state))
    return [folder / "state.json"]


def _write_pair(folder: Path, number: int, held: dict[str, dict[str, Any]]) -> list[Path]:
    from safetensors.torch import save_file

    parts = {
        "weights": {name: values["master"] for name, values in held.items()},
        "moments": {f"{name}.{key}": values[key] for name, values in held.items() for key in values if key != "master"},
    }
    paths = []
    for role, tensors in parts.items():
        path = folder / role / f"{number:05d}.safetensors"
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)
        paths.append(path)
    return paths


def remove_old(store: Store, keep_last: int, newest: int) -> None:
    """Remove the run's checkpoints but the `keep_last` newest, and what unfinished ones left behind."""
    older = [step for step in store.steps() if step <= newest and store.folder(step).exists()]
    finished = [step for step in older if (store.folder(step) / FILE_NAME).exists()]
    kept = set(finished[-keep_last:])
    for step in older:
        if step not in kept:
            remove_tree(store.folder(step))


def require_step(store: Store, step: int) -> Manifest:
    """The manifest of the run's checkpoint at `step`.

    Raises:
        MissingInput: it is gone.
    """
    path = store.folder(step) / FILE_NAME
    if not path.exists():
        raise MissingInput(f"{path}: the checkpoint of step {step} is gone. Run the same command again.")
    return read_manifest(path)
