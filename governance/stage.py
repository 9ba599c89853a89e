"""Stages: find or make an artifact by the key of its recipe.

A stage is a function `(manifests, its own section, Runtime) -> Manifest` whose body is one call of `run_stage`.
The section and the input digests decide the bytes; the `Runtime` decides only where and how. The laws, each a test
in `tests/governance/test_stage.py`:

1. a stage sees no configuration but its own section, so nothing unhashed can influence its bytes;
2. `Runtime` never enters a hash;
3. `key` says what should be made and names the directory, `digest` says what was made;
4. the manifest is the commit: written last, atomically; no lock, no staging directory (what is attested of it, by
   the hook `Runtime.attest`, is written just before, so no artifact stands without its statement);
5. running again resumes: what stands finished is found;
6. with `make=False` the same call only looks up, and names the command that would make it;
7. bytes change only with VERSION;
8. any number of workers gives the same digest;
9. what was removed is an output, and the counts add up.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from governance.config import Section, canonical_json
from governance.errors import BudgetReached, ManifestError, MissingInput
from governance.files import append_line, locked, sha256_bytes, sweep_temporaries
from governance.leader import make_alone
from governance.log import get_logger
from governance.manifest import (
    BESIDE,
    FILE_NAME,
    KEY_LENGTH,
    LINKED_FROM,
    Input,
    Manifest,
    Output,
    differences,
    present,
    read_manifest,
    write_manifest,
)
from governance.provenance import provenance
from governance.signed_notes import NoSigner, Signer

_LOCK = "commit.lock"  # of a root: an artifact is attested and committed by one process at a time
UNKNOWN_ENERGY: dict[str, Any] = {"joules": None, "low": None, "high": None, "method": "unknown"}

Meter = Callable[[str], AbstractContextManager[dict[str, Any]]]
"""Given a stage's name, measure the node while the context lasts; the dictionary is filled at its end."""


@contextlib.contextmanager
def no_meter(stage: str) -> Iterator[dict[str, Any]]:
    """The meter of a run that measures nothing.

    Its energy is unknown, which is not zero.
    """
    yield dict(UNKNOWN_ENERGY)


@dataclass(frozen=True)
class Watched:
    """Scope of one rank's energy budget."""

    energy: dict[str, Any]
    """What the meter of this rank's node yields."""
    artifact: str
    """Of the training, or of the stage."""
    own: frozenset[str] = frozenset()
    """The ledger's names of what the ranks of this start measure; this one's need not be among them."""
    measures: bool = True
    """Whether this rank measures its node."""
    first: bool = True
    """Whether it adds what the ledger says of all others."""


class Watch(Protocol):
    """The budget of a training.

    `over(sum over the ranks of words(...))` is alike on every rank.
    """

    def words(self, ahead_seconds: float) -> list[int]:
        """Budget words of this rank for the next look."""

    def start(self, words: Sequence[int]) -> None:
        """Raise `BudgetReached` where nobody knows what is used."""

    def over(self, words: Sequence[int]) -> bool:
        """Return whether it is time to save and leave."""

    def reached(self, what: str) -> BudgetReached:
        """The error that says so."""

    def facts(self) -> dict[str, Any]:
        """The figures of the last look, for the record."""


class Budget(Protocol):
    """The energy budget of a policy, as stages meet it.

    `governance.energy.budget` keeps it.
    """

    def check(self, stage: str, artifact: str) -> None:
        """Before anything is opened.

        Raise `BudgetReached` where there is no room for it.
        """

    def watching(self, stage: str, artifact: str, energy: dict[str, Any]) -> AbstractContextManager[None]:
        """While the context lasts, `energy` is what the meter yields.

        Raise `BudgetReached` where it says nothing.
        """

    def look(self, ahead_seconds: float) -> None:
        """Between two shards.

        Raise `BudgetReached` if so many seconds more would exceed it.
        """

    def watch(self, watched: Watched) -> Watch | None:
        """Budget watcher of a rank; None without a bound."""


class NoBudget:
    """Budget of a policy without one."""

    def check(self, stage: str, artifact: str) -> None:
        """There is room."""

    def watching(self, stage: str, artifact: str, energy: dict[str, Any]) -> AbstractContextManager[None]:
        """Nothing is watched."""
        return contextlib.nullcontext()

    def look(self, ahead_seconds: float) -> None:
        """There is room."""

    def watch(self, watched: Watched) -> Watch | None:
        """Nothing is asked."""
        return None


Attest = Callable[[Manifest], None]
"""Write down, signed, that this artifact is about to be committed; saying it again adds nothing."""


def no_attest(manifest: Manifest) -> None:
    """The hook of a run that signs nothing."""


def no_head() -> str:
    """Journal head of a run without a journal: always empty."""
    return ""


class Leave(Exception):
    """End of an array task's turn (`Runtime.mode`); exit code 0.

    Args:
        stage: where it left.
        reason: why, in words.
        made: how many shards it made there.
    """

    def __init__(self, stage: str, reason: str, made: int = 0) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.made = made


@dataclass(frozen=True)
class Runtime:
    """Execution context of stages; changes no byte of the result."""

    root: Path
    """The folder of all artifacts."""
    workers: int = 1
    """Processes that share the shards of a stage."""
    make: bool = True
    """False: look artifacts up, never make them."""
    command: str = "assay run CONFIG"
    """What a user types to make what a look-up did not find."""
    meter: Meter = field(default=no_meter)
    """Energy of the node while a stage is made."""
    budget: Budget = field(default_factory=NoBudget)
    """The most energy that may be used."""
    worker: tuple[int, int] = (0, 1)
    """(i, n): this process is worker i, from 0, of n that run the same command on one file system (a Slurm array)."""
    mode: Literal["all", "share", "join"] = "all"
    """What this process does before it leaves. "all": everything. "share": worker i's shards of the first step that is
    not complete; it waits for nobody, commits nothing and compares no bytes. "join": what lies between two steps."""
    engine: Literal["duckdb", "daft"] = "duckdb"
    """What runs the global joins: DuckDB on this node, or Daft, on Ray where a cluster's address is set."""
    attest: Attest = field(default=no_attest)
    """Called with each artifact before its manifest is written."""
    head: Callable[[], str] = field(default=no_head)
    """The journal's last line, "index:sha256"; "" where there is none."""
    signer: Signer = field(default=NoSigner())
    """Who signs the notes that are left for the next run (`signed_notes.py`), and whose notes of others are
    believed."""
    tally: Path | None = None
    """A file that gets a line for each shard and artifact that this process finishes, for a job to see that it gets
    further; None: nobody looks."""
    linked: dict[str, set[str]] = field(default_factory=dict, repr=False, compare=False)
    """Artifact -> the earlier ones that shards of it were linked from, noted by `map_shards` and told in `run`: their
    energy is the earlier one's."""
    beside: dict[str, dict[str, Output]] = field(default_factory=dict, repr=False, compare=False)
    """Stage -> by path what was written for the artifact in the making and may go into no output, noted by
    `map_shards` and `once`: it is listed in `run`."""


@dataclass(frozen=True)
class Made:
    """Result of a stage's body: final files and counts."""

    outputs: Sequence[Output]
    stats: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Recipe of an artifact: stage, VERSION and section."""

    stage: str
    version: int
    section: Section

    def key(self, inputs: Sequence[str]) -> str:
        """Key of the artifact made from inputs of these digests."""
        values = {"stage": self.stage, "version": self.version, "config": self.section, "inputs": list(inputs)}
        return sha256_bytes(canonical_json(values))


def artifact_folder(stage: str, key: str, root: Path) -> Path:
    """The directory of an artifact."""
    return root / stage / key[:KEY_LENGTH]


def root_of(artifact: Path) -> Path:
    """The root that an artifact's folder, or its manifest, lies in.

    Folders are `<root>/<stage>/<key>`.
    """
    folder = artifact.parent if artifact.name == FILE_NAME else artifact
    return folder.resolve().parents[1] if (folder / FILE_NAME).exists() else folder.resolve()


def read_artifact(artifact: Path) -> Manifest:
    """The manifest of an artifact, given its folder or its manifest file.

    Raises:
        MissingInput: there is none.
    """
    return read_manifest(artifact if artifact.name == FILE_NAME else artifact / FILE_NAME)


def find(stage: str, key: str, root: Path) -> Manifest | None:
    """The finished artifact of this key, or None.

    One whose files are gone or cut short counts as unfinished.
    """
    path = artifact_folder(stage, key, root) / FILE_NAME
    if not path.exists():
        return None
    manifest = read_manifest(path)
    if manifest.key != key or manifest.stage != stage:
        raise ManifestError(f"{path}: is of key {manifest.stage}/{manifest.key}, not {stage}/{key}. Remove its folder.")
    if not present(manifest, root):
        get_logger(__name__).warning("%s: files are missing or cut short; it is made again", path.parent)
        return None
    return manifest


def run_stage(
    recipe: Recipe, inputs: Sequence[Input], runtime: Runtime, make: Callable[[Path], Made], *, alone: bool = False
) -> Manifest:
    """Find the artifact of a recipe, or make and commit it.

    Every worker of an array runs `make` and shares its shards; of a stage that is made `alone`, and so has none to
    share, the first worker makes it and the others wait for it (`governance/leader.py`). A share of an array makes
    shards and leaves; a join commits.

    Raises:
        Leave: this is a share, and what is next is not a share's.
        MissingInput: it is not there and `runtime.make` is False.
        ManifestError: another process committed other bytes under the same key: the stage is not deterministic.
        PipelineError: the worker that makes it alone has failed; its message is in this one's.
        BudgetReached: the policy's energy budget leaves no room for it; finished shards are kept.
    """
    stage, key = recipe.stage, recipe.key([item.digest for item in inputs])
    found = find(stage, key, runtime.root)
    if found is not None:
        return found
    if not runtime.make:
        raise MissingInput(f"{stage}: not made yet for this configuration. Make it with: {runtime.command}")
    if alone and runtime.mode == "share":
        raise Leave(stage, "a join makes it")
    folder = artifact_folder(stage, key, runtime.root)

    def make_and_commit() -> Manifest:
        artifact = f"{stage}/{folder.name}"
        runtime.budget.check(stage, artifact)
        get_logger(__name__).info("%s: making %s", stage, folder)
        started = now()
        runtime.beside[stage] = {}
        with runtime.meter(stage) as energy, runtime.budget.watching(stage, artifact, energy):
            energy["artifact"] = artifact
            made = make(folder)
        energy.pop("artifact", None)  # a mark for the meter, no figure
        if runtime.mode == "share":
            raise Leave(stage, "all its shards are made; a join commits it")
        earlier = sorted(runtime.linked.get(artifact, ()))
        linked = {LINKED_FROM: earlier} if earlier else {}
        manifest = Manifest(
            stage=stage,
            version=recipe.version,
            key=key,
            config=recipe.section.model_dump(mode="json"),
            inputs=tuple(inputs),
            outputs=tuple(sorted(made.outputs, key=lambda output: output.path)),
            stats=made.stats,
            run={**provenance(), "started": started, "finished": now(), "energy": energy, **linked},
        )
        beside = runtime.beside.pop(stage).values()
        committed = commit(manifest, runtime.root, runtime.attest, beside)
        note_progress(runtime, f"{stage} {folder.name}")
        return committed

    if not alone:
        return make_and_commit()
    sign = folder.parent / "records" / folder.name
    return make_alone(sign, runtime.worker, lambda: _committed(folder, runtime.root), make_and_commit)


def note_progress(runtime: Runtime, what: str) -> None:
    """Say that `what` was finished here, where somebody counts."""
    if runtime.tally is not None:
        append_line(runtime.tally, what)


def _committed(folder: Path, root: Path) -> Manifest | None:
    """The manifest in this folder, or None.

    An older one whose files are gone counts as none.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    manifest = read_manifest(path)
    return manifest if present(manifest, root) else None


def commit(manifest: Manifest, root: Path, attest: Attest = no_attest, beside: Iterable[Output] = ()) -> Manifest:
    """Attest and write the manifest, unless another process did so first.

    Then both must have made the same bytes.

    What is attested last is what stands: two workers of an array commit the same bytes with a `run` block each. Of what
    was written `beside`, that which is no output is listed in that block.
    """
    path = root / manifest.path
    outputs = {output.path for output in manifest.outputs}
    listed = [item for item in sorted(beside, key=lambda item: item.path) if item.path not in outputs]
    run = {**manifest.run, BESIDE: [item.model_dump(mode="json") for item in listed]}
    manifest = manifest.model_copy(update={"run": run})
    if path.exists():
        other = read_manifest(path)
        if present(other, root) and (lines := differences(other, manifest)):
            raise ManifestError(f"{path}: the same recipe gave other bytes:\n  " + "\n  ".join(lines[:10]))
    with contextlib.nullcontext() if attest is no_attest else locked(root / _LOCK):
        attest(manifest)
        write_manifest(manifest, root)
    sweep_temporaries(path.parent)
    get_logger(__name__).info("%s: made, digest %s", manifest.stage, manifest.digest[:16])
    return manifest


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
