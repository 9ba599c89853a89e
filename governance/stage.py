"""Stages: find or make an artifact by the key of its recipe.

A stage is a function `(manifests, its own section, Runtime) -> Manifest` whose body is one call of `run_stage`.
The section and the input digests decide the bytes; the `Runtime` decides only where and how. The laws, each a test
in `tests/governance/test_stage.py`:

1. a stage sees no configuration but its own section, so nothing unhashed can influence its bytes;
2. `Runtime` never enters a hash;
3. `key` identifies what should be made and names the directory, `digest` identifies what was made;
4. the manifest is the commit: written last, atomically; no lock, no staging directory (the hook `Hooks.attest` states
   the artifact just before, so none exists without its statement);
5. running again resumes: finished work is found;
6. with `make=False` the same call only looks up, and names the command that would make it;
7. bytes change only with VERSION;
8. any number of workers gives the same digest;
9. what was removed is an output, and the counts add up.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from governance.config import Section, canonical_json, flat
from governance.errors import ManifestError, MissingInput, PipelineError
from governance.files import locked, sha256_bytes, sweep_temporaries
from governance.hooks import ELSEWHERE, UNMEASURED, Attest, Hooks, no_attest
from governance.log import get_logger, rest_of_run, step_label
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
    resized,
    write_manifest,
)
from governance.processes import pass_on_interrupt
from governance.provenance import provenance
from governance.stage_order import STAGES

_SHOWN = 3
"""Artifacts, and settings of each, that a failed look-up names."""
_SAME_SETTINGS = " with these settings, but its inputs, its files or the version of Assay differ"
_SECTIONS = {row.name: row.settings for row in STAGES if row.settings is not None}
"""Stage -> prefix, in a run's file, of the settings in its recipe."""
_NO_SETTINGS = {
    "tokenizer": ("path",), "redact": ("key_fingerprint", "stdnum"), "bias": ("lists", "templates"),
    "audit": ("policy", "reference_sha256", "token_shards", "own_sources"),
}  # fmt: skip
"""Stage -> entries of its recipe that a run's file does not have, or not with this value."""
COMMIT_LOCK = "commit.lock"
"""Lock of a root: one process at a time states and writes artifacts."""


class ShareDone(Exception):
    """End of an array task's turn (`Runtime.mode`); exit code 0.

    Args:
        stage: the stage at which the task ended.
        reason: a clause for the message.
        made: number of shards that it made there.
        missing: another task, whose shards this one needs first. None: a join comes next.
    """

    def __init__(self, stage: str, reason: str, made: int = 0, missing: int | None = None) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.made = made
        self.missing = missing


@dataclass
class RunNotes:
    """Notes of `map_shards` and `once` for a manifest's `run` block."""

    linked: dict[str, set[str]] = field(default_factory=dict)
    """Artifact -> earlier artifacts from which its shards were linked; they account for the energy of those shards."""
    beside: dict[str, dict[str, Output]] = field(default_factory=dict)
    """Stage -> path -> file that was written for the unfinished artifact without being one of its outputs."""
    elsewhere: dict[str, set[str]] = field(default_factory=dict)
    """Artifact -> nodes of a Ray cluster that made shards of it, which no meter of this run measures."""


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
    """Command that makes an artifact, for the error of a look-up that does not find it."""
    worker: tuple[int, int] = (0, 1)
    """(i, n): this process is worker i, from 0, of n that run the same command on one file system (a Slurm array)."""
    mode: Literal["all", "share", "join"] = "all"
    """The part of the work that this process does. "all": everything. "share": worker i's shards of the first step that
    is not complete; it waits for nobody, commits nothing and compares no bytes. "join": what comes between two
    steps. `governance/workers.py` runs both in turn."""
    engine: Literal["duckdb", "daft", "ray"] = "duckdb"
    """Engine of the global joins: DuckDB on this node, or Daft, on Ray where a cluster's address is set. "ray": shards
    are made on a Ray cluster too."""
    hooks: Hooks = field(default_factory=Hooks)
    """Energy, budget, attestation and signatures."""
    notes: RunNotes = field(default_factory=RunNotes, repr=False, compare=False)
    """For the manifests of unfinished artifacts."""


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
    """The root that holds an artifact's folder or manifest.

    Folders are `<root>/<stage>/<key>`.
    """
    folder = artifact.parent if artifact.name == FILE_NAME else artifact
    return folder.resolve().parents[1] if (folder / FILE_NAME).exists() else folder.resolve()


def read_artifact(artifact: Path) -> Manifest:
    """The manifest of an artifact, given its folder or its manifest file.

    Raises:
        MissingInput: there is none.
    """
    path = artifact if artifact.name == FILE_NAME else artifact / FILE_NAME
    if artifact.is_dir() and not path.exists():
        raise MissingInput(
            f"{artifact}: is not a finished artifact: it has no {FILE_NAME}. Give one as ROOT/<stage>/<key>."
        )
    return read_manifest(path)


def find(stage: str, key: str, root: Path) -> Manifest | None:
    """The finished artifact of this key, or None.

    An artifact with missing files, or files of another size, counts as unfinished.
    """
    path = artifact_folder(stage, key, root) / FILE_NAME
    if not path.exists():
        return None
    manifest = read_manifest(path)
    if manifest.key != key or manifest.stage != stage:
        raise ManifestError(f"{path}: is of key {manifest.stage}/{manifest.key}, not {stage}/{key}. Remove its folder.")
    return manifest if present(manifest, root) else None


def run_stage(
    recipe: Recipe, inputs: Sequence[Input], runtime: Runtime, make: Callable[[Path], Made], *, alone: bool = False
) -> Manifest:
    """Find the artifact of a recipe, or make and commit it.

    A task of an array (`share`) makes its shards, then raises `ShareDone`; the next `join` commits. A stage without
    shards (`alone`) is made by the join.

    Raises:
        ShareDone: this is a share, and a join comes next.
        MissingInput: the artifact is missing and `runtime.make` is False.
        ManifestError: one of its files has another size and `runtime.make` is False; or another process committed
            other bytes under the same key, so the stage is not deterministic.
        BudgetReached: the policy's energy budget does not suffice for it; finished shards are kept.
    """
    stage, key = recipe.stage, recipe.key([item.digest for item in inputs])
    found = find(stage, key, runtime.root)
    if found is not None:
        return found
    folder = artifact_folder(stage, key, runtime.root)
    artifact = f"{stage}/{folder.name}"
    if not runtime.make:
        raise _look_up_error(recipe, folder, runtime)
    if (folder / FILE_NAME).exists():
        get_logger(__name__).warning("%s: files are missing or altered; it is made again", folder)
    if alone and runtime.mode == "share":
        raise ShareDone(stage, "a join makes it")
    pass_on_interrupt()
    runtime.hooks.budget.check(stage, artifact)
    get_logger(__name__).info("%s: making %s%s", step_label(stage), folder, rest_of_run(stage))
    started = now()
    runtime.notes.beside[stage] = {}
    made, energy = _make_metered(stage, folder, make, runtime)
    if runtime.mode == "share":
        raise ShareDone(stage, "all its shards are made; a join commits it")
    earlier = sorted(runtime.notes.linked.get(artifact, ()))
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
    committed = commit(manifest, runtime.root, runtime.hooks.attest, runtime.notes.beside.pop(stage).values())
    runtime.hooks.tally(f"{stage} {folder.name}")
    return committed


def _make_metered(
    stage: str, folder: Path, make: Callable[[Path], Made], runtime: Runtime
) -> tuple[Made, dict[str, Any]]:
    """Make a stage's files within the energy budget; return their energy, too."""
    hooks, artifact = runtime.hooks, f"{stage}/{folder.name}"
    with hooks.meter(stage) as energy, hooks.budget.watching(stage, artifact, energy):
        energy["artifact"] = artifact
        try:
            made = make(folder)
        finally:  # an attempt that ends early has no upper bound of energy either
            if hosts := sorted(runtime.notes.elsewhere.pop(artifact, ())):
                energy[UNMEASURED] = [f"{ELSEWHERE} {host}: no meter runs there" for host in hosts]
    for mark in ("artifact", UNMEASURED):  # marks for the meter, not figures
        energy.pop(mark, None)
    return made, energy


def _look_up_error(recipe: Recipe, folder: Path, runtime: Runtime) -> PipelineError:
    """Error of a look-up: the artifact is damaged, or not made yet."""
    path = folder / FILE_NAME
    if path.exists() and (altered := resized(read_manifest(path), runtime.root)):
        return ManifestError(
            f"{runtime.root / altered}: was altered or cut since it was made. Make it again with: {runtime.command}"
        )
    return not_made(recipe.stage, recipe.section.model_dump(mode="json"), runtime)


def not_made(stage: str, section: Mapping[str, Any], runtime: Runtime) -> MissingInput:
    """Error of a look-up that found no artifact.

    It names the newest artifacts of the stage, each with the settings that differ.
    """
    ours, found = dict(flat(json.loads(canonical_json(section)))), []
    paths = sorted(runtime.root.glob(f"{stage}/*/{FILE_NAME}"), key=lambda path: -path.stat().st_mtime)
    for path in paths[:_SHOWN]:
        with contextlib.suppress(ManifestError):
            theirs = dict(flat(read_manifest(path).config))
            other = [name for name in theirs if name in ours and theirs[name] != ours[name]]
            other = [name for name in other if _can_be_set(stage, name, theirs[name])]
            pairs = [f"{_SECTIONS[stage]}{name}={json.dumps(theirs[name], ensure_ascii=False)}" for name in other]
            words = [f"--set {shlex.quote(pair)}" for pair in pairs[:_SHOWN]]
            words += [f"and {len(other) - _SHOWN} more"] if len(other) > _SHOWN else []
            why = f" with {' '.join(words)}" if words else _SAME_SETTINGS if theirs == ours else ""
            found.append(f"\n  found: {path.parent.relative_to(runtime.root)}{why}")
    line = f"{stage}: not made yet for this configuration. Make it with: {runtime.command}"
    error = MissingInput(line + "".join(found))
    error.stage = stage
    return error


def _can_be_set(stage: str, name: str, value: Any) -> bool:
    """Return whether `--set` accepts a value of a recipe.

    It does not accept null, which TOML lacks; a list of tables is too long for a hint.
    """
    tables = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    own = name.partition(".")[0] in _NO_SETTINGS.get(stage, ())
    return stage in _SECTIONS and not own and not tables and value is not None


def commit(
    manifest: Manifest, root: Path, attest: Attest = no_attest, beside: Iterable[Output] = (), *, replaces: bool = False
) -> Manifest:
    """Attest and write the manifest.

    If another process committed first, both must have made the same bytes; their `run` blocks differ, and the one that
    was attested last counts. It lists the files of `beside` that are not outputs. With `replaces` an existing manifest
    is not compared.
    """
    path = root / manifest.path
    outputs = {output.path for output in manifest.outputs}
    listed = [item for item in sorted(beside, key=lambda item: item.path) if item.path not in outputs]
    run = {**manifest.run, BESIDE: [item.model_dump(mode="json") for item in listed]}
    manifest = manifest.model_copy(update={"run": run})
    if not replaces and path.exists():
        other = read_manifest(path)
        if present(other, root) and (lines := differences(other, manifest)):
            raise ManifestError(f"{path}: the same recipe gave other bytes:\n  " + "\n  ".join(lines[:10]))
    with contextlib.nullcontext() if attest is no_attest else locked(root / COMMIT_LOCK):
        attest(manifest)
        write_manifest(manifest, root)
    sweep_temporaries(path.parent)
    at = f", step {step} in {manifest.folder}" if (step := manifest.config.get("step")) is not None else ""
    get_logger(__name__).info("%s: made%s, digest %s", manifest.stage, at, manifest.digest[:16])
    return manifest


def earlier_seconds(root: Path, stages: Iterable[str]) -> dict[str, float]:
    """Seconds that the newest artifact of each stage took."""
    found = {}
    for stage in stages:
        paths = sorted(root.glob(f"{stage}/*/{FILE_NAME}"), key=lambda path: path.stat().st_mtime)
        with contextlib.suppress(PipelineError, KeyError, ValueError, IndexError):  # none, or one that is altered
            run = read_manifest(paths[-1]).run
            begun, ended = (datetime.datetime.fromisoformat(run[name]) for name in ("started", "finished"))
            found[stage] = (ended - begun).total_seconds()
    return found


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
