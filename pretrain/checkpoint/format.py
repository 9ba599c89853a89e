"""Checkpoint format: a folder whose manifest is written last.

    <root>/checkpoint/<key>/weights/00000.safetensors   each trained parameter's fp32 master weight, by its name
                            moments/00000.safetensors   what the optimizer keeps, as "<name>.exp_avg", fp32
                            state.json                  step, tokens, losses of all steps, validations, tasks, skipped;
                                                        with fp16 the loss scale; the experts' selection biases
                            manifest.json

It is *canonical*: whole parameters, whatever the ZeRO stage and the number of ranks that wrote it, so any other layout
can resume from it, and the same layout resumes bit for bit. Its bytes are a function of what was learned: no time, no
host, no history of restarts (the manifest's `run` has those). The moments are those of the optimizer: `exp_avg` and
`exp_avg_sq` of AdamW, `momentum_buffer` of Muon, `exp_avg` of Lion. Price: 12 bytes per parameter on disk (AdamW).

A training run lists the steps that it began to save in `<root>/train/<key>/checkpoints.jsonl`; the key of a checkpoint
follows from the run and the step, and only a checkpoint with a manifest counts.

This file is the format and its reading. `save.py` writes a checkpoint, `native.py` the shards for a fast restart,
`load.py` finds the one to resume from, `retention.py` removes old ones. The guide is `docs/checkpoints.md`.

The losses of all steps are an append-only list that all training states share (`LossHistory`):
`longer = history.plus(value)` shares the memory of `history`; both keep their own length. A million steps cost a
million appends, where copying a list each step would cost 5 x 10^11 copies. A state that another thread saves does
not see later values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from governance.config import Section, validate
from governance.errors import CheckpointError, ConfigError, ManifestError, MissingInput
from governance.files import append_line, json_text, read_steps
from governance.hooks import Attest, SignLine, no_attest
from governance.log import get_logger
from governance.manifest import FILE_NAME, Input, Manifest, read_manifest, verify
from governance.stage import Recipe, artifact_folder, root_of
from pretrain.checkpoint.base_weights import WholeWeights, base_problems
from pretrain.checkpoint.safetensors_files import TensorFiles
from pretrain.config.training import TrainRecipe
from pretrain.distributed.process_group import Ranks

T = TypeVar("T")


class LossHistory(Sequence[T]):
    """Immutable sequence, equal to any sequence of equal items."""

    __slots__ = ("_items", "_length")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)

    def plus(self, value: T) -> LossHistory[T]:
        """A history with one more item."""
        grown: LossHistory[T] = LossHistory()
        # If another history has grown from this one already, this branch needs a list of its own.
        grown._items = self._items if len(self._items) == self._length else self._items[: self._length]
        grown._items.append(value)
        grown._length = self._length + 1
        return grown

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(self._length)[index]
        return self._items[places] if isinstance(places, int) else [self._items[place] for place in places]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return (self._items[place] for place in range(self._length))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"LossHistory({list(self)})"

    def __deepcopy__(self, memo: Any) -> list[T]:
        """A plain list: what `dataclasses.asdict` puts into JSON."""
        return list(self)


VERSION = 2
STAGE = "checkpoint"
STEPS_FILE = "checkpoints.jsonl"


class CheckpointIdentity(Section):
    """Identity of a checkpoint: enough to rebuild the model."""

    train_key: str
    """Key of its training run."""
    step: int
    """Optimizer steps done."""
    vocabulary_size: int
    """Tokens of the vocabulary, before padding."""
    recipe: TrainRecipe
    """The run's model, optimizer and training sections."""


@dataclass(frozen=True)
class TrainState:
    """Training state besides the weights."""

    step: int = 0
    tokens: int = 0
    """Tokens predicted so far."""
    losses: LossHistory[float | None] = field(default_factory=LossHistory)
    """Nats per token of every step so far; None where it was not finite."""
    validations: list[dict[str, Any]] = field(default_factory=list)
    """Validation results: step, and the fields of `Measurement`, through `finite_row`."""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    """Task scores: step, and the fields of `scores.py`, through `finite_row`."""
    stream: str = ""
    """Chained SHA-256 of the tokens read, see `loader.py`."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Skipped steps, see `loss_spikes.py`: step, reason, z, rows, documents."""
    loss_scale: dict[str, float] | None = None
    """State of fp16's loss-scale search, see `engine/state.py`; None in other precisions."""
    expert_bias: list[list[float]] | None = None
    """Selection biases by layer and expert, see `expert_bias.py`; None without a rate."""
    scalars: dict[str, dict[str, float]] | None = None
    """Scalars of a custom optimizer's state, by parameter and name; None for the others."""

    @property
    def final_loss(self) -> float | None:
        """The last finite loss, or None."""
        return next((loss for loss in reversed(self.losses) if loss is not None), None)


def finite_row(row: dict[str, Any], what: str) -> dict[str, Any]:
    """Replace figures that are not finite by None, with a warning."""
    lost: list[str] = []

    def known(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: known(inner, f"{name}.{key}" if name else key) for key, inner in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            lost.append(name)
            return None
        return value

    kept: dict[str, Any] = known(row, "")
    if lost:
        get_logger(__name__).warning("%s is not finite, and is stored as null: %s", what, ", ".join(lost))
    return kept


@dataclass(frozen=True)
class Parent:
    """Parent checkpoint of another training; see `load.py`."""

    manifest: Manifest
    root: Path
    """Root of its artifacts."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest.config["step"])


@dataclass(frozen=True)
class CheckpointStore:
    """A run's checkpoints.

    It holds their location and identity, and the ranks that write and read them.
    """

    root: Path
    train_key: str
    vocabulary_size: int
    recipe: TrainRecipe
    inputs: tuple[Input, ...]
    """Inputs of the run and of its checkpoints, the token shards first."""
    attest: Attest = no_attest
    """As `Hooks.attest`."""
    check_lease: Callable[[], None] = lambda: None
    """Called before each part of a checkpoint is written; raises where a newer attempt holds the run."""
    parent: Parent | None = None
    """The checkpoint that a run without one of its own starts from; None: initial weights."""
    base: Manifest | None = None
    """First weights of a training with frozen parameters (`base_weights.py`), on the first rank."""
    source_facts: Mapping[str, Any] = field(default_factory=dict)
    """Licence and other facts of the folder of weights that the run begins from (`initial_weights/`)."""
    ranks: Ranks = field(default_factory=Ranks)
    """This rank among those that save and load."""
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """The value of every rank, on every rank; collective, so for the main thread only."""
    sign: SignLine = dict
    """Signs the lines of `STEPS_FILE`, which the first rank writes."""
    key_value_store: Any = None
    """The ranks' key-value store, by a connection for the thread that saves; None: there is one rank."""

    @property
    def begun(self) -> int:
        """Step that the run's own steps follow: the parent's, or 0."""
        return self.parent.step if self.parent is not None else 0

    @property
    def continued(self) -> dict[str, Any]:
        """Origin of the run's first weights, for the `stats` of manifests.

        It is the parent's step and tokens, and the facts of a folder of weights; {} without either.
        """
        if self.parent is None:
            return {"initial_weights": self.source_facts} if self.source_facts else {}
        stats = self.parent.manifest.stats
        kept = {name: stats[name] for name in ("initial_weights",) if name in stats}
        return {**kept, "continued": {"step": self.parent.step, "tokens": stats["tokens"]}}

    @property
    def on_base(self) -> dict[str, Any]:
        """Reference to the base, for `stats`; {} where all learn."""
        return {} if self.base is None else {"base": {"path": self.base.path, "digest": self.base.digest}}

    def identity(self, step: int) -> CheckpointIdentity:
        """The identity of the checkpoint at `step`."""
        return CheckpointIdentity(
            train_key=self.train_key, step=step, vocabulary_size=self.vocabulary_size, recipe=self.recipe
        )

    def key(self, step: int) -> str:
        """The key of the checkpoint at `step`."""
        return Recipe(STAGE, VERSION, self.identity(step)).key([item.digest for item in self.inputs])

    def folder(self, step: int) -> Path:
        """Folder of the checkpoint at `step`."""
        return artifact_folder(STAGE, self.key(step), self.root)

    def steps(self) -> list[int]:
        """Every step whose save was ever begun, in order."""
        return sorted({line["step"] for line in self._noted()})

    def natives(self) -> set[str]:
        """Folder names of all native shards that were ever begun."""
        names = (str(line["native"]) for line in self._noted() if "native" in line)
        return {name for name in names if re.fullmatch("[0-9a-f]{16}", name)}  # they are removed: no other path

    def note(self, step: int, **facts: str) -> None:
        """Record that the save of `step` begins.

        Of `facts`, `native` is the folder name of its native shards.
        """
        line = json.dumps(self.sign({"step": step, **facts}))
        append_line(artifact_folder("train", self.train_key, self.root) / STEPS_FILE, line)

    def _noted(self) -> list[dict[str, Any]]:
        return read_steps(artifact_folder("train", self.train_key, self.root) / STEPS_FILE)


def open_checkpoint(folder: Path) -> Manifest:
    """Manifest of a checkpoint given by its folder.

    Its files are not verified.

    Raises:
        MissingInput: it does not exist.
        CheckpointError: the manifest is torn or altered, or not of a checkpoint.
    """
    path = folder if folder.name == FILE_NAME else folder / FILE_NAME
    try:
        manifest = read_manifest(path)
    except MissingInput as error:
        raise MissingInput(
            f"{folder}: is not a checkpoint: there is no {path}. Give its folder: ROOT/checkpoint/<key>"
        ) from error
    except ManifestError as error:
        raise CheckpointError(str(error)) from error
    if manifest.stage != STAGE:
        raise CheckpointError(f"{folder}: is an artifact of stage {manifest.stage!r}, not a checkpoint")
    return manifest


def read_checkpoint(folder: Path, root: Path) -> Manifest:
    """Manifest of a checkpoint whose files were verified.

    Raises:
        MissingInput: it does not exist.
        CheckpointError: it is torn or altered, or not a checkpoint, or of another root.
    """
    manifest = open_checkpoint(folder)
    if problems := verify(manifest, root):
        if (home := root_of(folder)) != root.resolve():
            raise CheckpointError(
                f"{folder}: is a checkpoint of the root {home}, and this run's artifacts are in {root}. Give the "
                f"configuration of its training, with --root {home}"
            )
        raise CheckpointError(f"{folder}: is damaged:\n  " + "\n  ".join(problems) + "\n  Choose another checkpoint.")
    if problems := base_problems(manifest, root):
        raise CheckpointError(f"{folder}: its base is damaged:\n  " + "\n  ".join(problems) + "\n  Restore its files.")
    return manifest


def identity_of(manifest: Manifest) -> CheckpointIdentity:
    """Identity of a checkpoint.

    Raises:
        CheckpointError: another version wrote it.
    """
    try:
        return validate(manifest.config, CheckpointIdentity, manifest.path)
    except ConfigError as error:
        raise CheckpointError(f"{manifest.path}: has another version: {error}") from error


def state_text(state: TrainState) -> str:
    """Text of `state.json`."""
    kept = asdict(state)
    if state.scalars is not None:  # JSON has no form for "inf", "-inf" and "nan"
        kept["scalars"] = {
            parameter: {name: value if math.isfinite(value) else str(value) for name, value in held.items()}
            for parameter, held in state.scalars.items()
        }
    unused = [name for name in ("loss_scale", "expert_bias", "scalars") if kept[name] is None]
    return json_text({name: value for name, value in kept.items() if name not in unused})


def read_state(manifest: Manifest, root: Path) -> TrainState:
    """Training state of a checkpoint."""
    values = json.loads((root / manifest.folder / "state.json").read_bytes())
    if "scalars" in values:
        values["scalars"] = {
            parameter: {name: float(value) for name, value in held.items()}
            for parameter, held in values["scalars"].items()
        }
    return TrainState(**values | {"losses": LossHistory(values["losses"])})


def state_beside(folder: Path) -> Path:
    """Second name of a checkpoint's `state.json` while it is replaced."""
    return folder / "state.json.before"


def weights(manifest: Manifest, root: Path) -> TensorFiles:
    """Master weights of a checkpoint, fp32, by trained parameter's name."""
    return TensorFiles(manifest.files("weights", root))


def whole_weights(manifest: Manifest, root: Path) -> WholeWeights:
    """Weights of the model, frozen ones too, with adapters added."""
    return WholeWeights(manifest, root, identity_of(manifest).recipe.train.adapter)


def moments(manifest: Manifest, root: Path) -> TensorFiles:
    """The optimizer's moments of a checkpoint, fp32, as "<name>.<moment>" (see `optim.parameter_groups`)."""
    return TensorFiles(manifest.files("moments", root))


def require_step(store: CheckpointStore, step: int) -> Manifest:
    """Manifest of the run's checkpoint at `step`.

    Raises:
        MissingInput: it is gone.
        ManifestError: its manifest is torn or altered.
        CheckpointError: it belongs to another run or model.
        StorageError: its manifest cannot be read.
    """
    path = store.folder(step) / FILE_NAME
    try:
        manifest = read_manifest(path)
    except MissingInput as error:
        raise MissingInput(f"{path}: the checkpoint of step {step} is gone. Run the same command again.") from error
    # `require_stated` takes a checkpoint of another `train_key` for another training's, and lets it pass.
    named = (manifest.stage, manifest.key, manifest.config.get("train_key"))
    if named != (STAGE, store.key(step), store.train_key):
        found = f"{manifest.stage} {manifest.key[:16]}, step {manifest.config.get('step')}"
        raise CheckpointError(
            f"{path}: belongs to another run or model ({found}), not the checkpoint of step {step} of this run. Remove "
            f"its folder, or use the configuration that it was trained with."
        )
    return manifest
