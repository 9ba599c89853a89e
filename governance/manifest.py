"""Manifests: outputs, inputs and recipe of an artifact; written last.

The file is written last, so it is the commit of an artifact.

A whole example (`<root>/clean/0123456789abcdef/manifest.json`):

    {"schema": 1, "stage": "clean", "version": 1, "key": "0123456789abcdef...64 hex",
     "config": {"min_words": 50},
     "inputs": [{"stage": "ingest", "digest": "...64 hex", "path": "ingest/89ab.../manifest.json"}],
     "outputs": [{"path": "clean/0123456789abcdef/documents/00000.parquet", "bytes": 812, "sha256": "...64 hex"}],
     "stats": {"documents_in": 10, "documents_kept": 9},
     "run": {"started": "2026-01-01T00:00:00Z", "finished": "...", "command": [], "git": null, "packages": {},
             "host": {}, "slurm_job_id": null, "energy": {"joules": null, "method": "unknown"}},
     "seal": "...64 hex"}

`key` identifies what *should* be made (stage, version, config, input digests); `digest` is the hash of everything but
`run`, and identifies what *was* made. Paths are relative to the root, so a root can be moved. A reader refuses an
unknown schema and an unknown key: it never guesses. `seal` is the hash of all the rest, `run` included. It detects
accidental damage to the manifest, as the digests in `outputs` detect damage to files. Deliberate changes are detected
by the journal, whose signed lines state digest and seal (`chain.py`). An output of more than 64 MiB also has `leaves`,
the SHA-256 of each 64 MiB piece, so that an altered piece can be named.
`run.origin.exports` names the checkpoints behind folders of weights that Assay exported, by the digest of the folder
that `inputs` lists as a file. `run.linked_from` names the earlier artifacts that shards were linked from, where there
are any. `run.beside` lists, as `outputs` does, files written for the artifact that are not outputs: records of its
shards, a training's record.
"""

from __future__ import annotations

import json
from operator import not_
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from governance.config import Section, canonical_json
from governance.errors import ManifestError, MissingInput, StorageError
from governance.files import (
    LEAF_BYTES,
    is_temporary,
    json_text,
    sha256_bytes,
    sha256_file,
    sha256_leaves,
    sha256_with_leaves,
    write_text,
)
from governance.regular_files import read_whole

SCHEMA = 1
FILE_NAME = "manifest.json"
KEY_LENGTH = 16  # characters of the key that name the directory
LINKED_FROM = "linked_from"
BESIDE = "beside"
ORIGIN, EXPORTS = "origin", "exports"
SOURCES = ("file", "hub")
"""Stages of an input that is not an artifact."""


class Input(Section):
    """Artifact or source file from which an artifact was made."""

    stage: str
    """The stage that made it, or "file" for a source file."""
    digest: str
    """The input manifest's digest, or the source file's SHA-256."""
    path: str
    """Its manifest, relative to the root; for a source file its name within the source."""


_EXPORTED = TypeAdapter(dict[str, tuple[Input, ...]])


class Output(Section):
    """One file of an artifact."""

    path: str
    """Relative to the root, with forward slashes."""
    bytes: int = Field(ge=0)
    sha256: str
    leaves: tuple[str, ...] = Field(default=(), exclude_if=not_)
    """SHA-256 of each 64 MiB piece of a larger file; none, and left out of the JSON, for a smaller one."""


class Manifest(Section):
    """The manifest of an artifact; see the module's example."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    stage: str
    version: int
    key: str
    config: dict[str, Any]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    stats: dict[str, Any]
    run: dict[str, Any]

    @property
    def digest(self) -> str:
        """The hash of everything but the `run` block."""
        return sha256_bytes(canonical_json(self.content()))

    @property
    def seal(self) -> str:
        """The hash of the whole manifest, the `run` block included.

        The manifest's file and its statement hold it.
        """
        return _seal(self.plain())

    @property
    def folder(self) -> str:
        """The artifact's directory, relative to the root."""
        return f"{self.stage}/{self.key[:KEY_LENGTH]}"

    @property
    def path(self) -> str:
        """The manifest's own path, relative to the root."""
        return f"{self.folder}/{FILE_NAME}"

    def content(self) -> dict[str, Any]:
        """Everything that the digest covers, as plain values."""
        return {name: value for name, value in self.plain().items() if name != "run"}

    def plain(self) -> dict[str, Any]:
        """The whole manifest as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    def as_input(self) -> Input:
        """This artifact as an input of the next."""
        return Input(stage=self.stage, digest=self.digest, path=self.path)

    @property
    def beside(self) -> tuple[Output, ...]:
        """Companion files that are not outputs."""
        return tuple(Output.model_validate(item) for item in self.run.get(BESIDE, ()))

    @property
    def exported(self) -> dict[str, tuple[Input, ...]]:
        """Checkpoints behind the inputs that are exports, by digest."""
        origin = self.run.get(ORIGIN)
        listed = origin.get(EXPORTS, {}) if isinstance(origin, dict) else {}
        return _EXPORTED.validate_python(listed)

    @model_validator(mode="after")
    def _readable(self) -> Manifest:
        _ = self.exported  # a `run` block of another form is refused here, not where it is used
        return self

    @property
    def made_from(self) -> tuple[Input, ...]:
        """Inputs, and the checkpoints behind exported ones."""
        behind = (item for exports in self.exported.values() for item in exports if item not in self.inputs)
        return (*self.inputs, *dict.fromkeys(behind))

    def files(self, role: str, root: Path) -> list[Path]:
        """The output files below `<folder>/<role>/`, in name order."""
        return [root / output.path for output in self.listed(role)]

    def named(self, name: str) -> Output:
        """Output of this name in the artifact.

        Raises:
            ManifestError: it lists none.
        """
        for output in self.outputs:
            if output.path == f"{self.folder}/{name}":
                return output
        raise ManifestError(f"{self.path}: lists no {name}. Remove its folder and make it again.")

    def listed(self, role: str) -> list[Output]:
        """Outputs of these names, sorted."""
        prefix = f"{self.folder}/{role}/"
        return [output for output in self.outputs if output.path.startswith(prefix)]


def describe(path: Path, root: Path) -> Output:
    """Hash one finished file below `root`, a large one with its leaves."""
    digest, leaves = sha256_with_leaves(path)
    return Output(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=digest, leaves=leaves)


def describe_folder(folder: Path, root: Path) -> list[Output]:
    """All files of a folder except manifests, temporaries and links.

    Links are left out: they are second names, which some copies lack.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return [describe(path, root) for path in files if path != folder / FILE_NAME and not is_temporary(path)]


def write_manifest(manifest: Manifest, root: Path) -> None:
    """Commit an artifact: the last file written, atomically."""
    write_text(root / manifest.path, manifest_text(manifest))


def manifest_text(manifest: Manifest) -> str:
    """Text of the manifest's file."""
    values = manifest.plain()  # once: of 10^6 files it takes a gigabyte
    return json_text({**values, "seal": _seal(values)})


def _seal(values: dict[str, Any]) -> str:
    return sha256_bytes(canonical_json(values))


def read_manifest(path: Path) -> Manifest:
    """Read and validate a manifest file.

    Raises:
        MissingInput: there is none.
        ManifestError: it is torn or altered, of an unknown schema, or has unknown or missing keys.
        StorageError: the file system does not let it be read, so it may be whole or torn.
    """
    try:
        values = json.loads(read_whole(path))
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: no such manifest") from error
    except (IsADirectoryError, NotADirectoryError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: is not JSON ({error}). Remove its folder and make it again.") from error
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror}. Make its disk readable, then run the same command again."
        ) from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise ManifestError(
            f"{path}: has schema {schema!r}; this version reads {SCHEMA}. Read it with the version that wrote it."
        )
    seal = values.pop("seal", None)
    try:
        sealed = seal == _seal(values)
    except (TypeError, ValueError, RecursionError):  # no value of ours: a NaN, a lone surrogate, nested too deep
        sealed = False
    if not sealed:
        raise ManifestError(
            f"{path}: was altered since it was written: its seal does not match. Remove its folder and make it again."
        )
    try:
        return Manifest.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors(include_url=False))
        raise ManifestError(f"{path}: is not a schema-{SCHEMA} manifest: {faults}") from None


def present(manifest: Manifest, root: Path) -> bool:
    """Return whether each output exists with its size.

    This is the cheap check of every look-up (`verify` reads the bytes).
    """
    for output in manifest.outputs:
        try:
            if (root / output.path).stat().st_size != output.bytes:
                return False
        except OSError:
            return False
    return True


def resized(manifest: Manifest, root: Path) -> str:
    """Path of the first output with another size, or ""."""
    for output in manifest.outputs:
        path = root / output.path
        if path.exists() and path.stat().st_size != output.bytes:
            return output.path
    return ""


def verify(manifest: Manifest, root: Path, *, deep: bool = False) -> list[str]:
    """Read each output and return the differences, one line per file.

    No line means that the artifact is intact. The line of a large file that differs names the altered pieces; `deep`
    also compares the leaves of the other files.
    """
    return [
        f"{output.path}: {problem}"
        for output in manifest.outputs
        if (problem := output_fault(output, root, deep=deep)) is not None
    ]


def output_fault(output: Output, root: Path, *, deep: bool = False) -> str | None:
    """Difference of a file from its listing; None if whole."""
    path = root / output.path
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != output.bytes:
        pieces = _pieces(output, sha256_leaves(path, output.bytes), size)  # a sparse file of any size ends at once
        return f"has {size} bytes, the manifest states {output.bytes}{pieces}"
    found, leaves = sha256_with_leaves(path) if deep else (sha256_file(path), None)
    if found != output.sha256:
        pieces = _pieces(output, sha256_leaves(path) if leaves is None else leaves, size)
        return f"has sha256 {found[:16]}…, the manifest states {output.sha256[:16]}…{pieces}"
    if leaves is not None and leaves != output.leaves:
        return f"is whole, but its manifest has other leaves{_pieces(output, leaves, size)}"
    return None


def _pieces(output: Output, found: tuple[str, ...], size: int) -> str:
    """Byte ranges of a large file that differ, merged."""
    ranges: list[list[int]] = []
    for number, (ours, theirs) in enumerate(zip(found, output.leaves, strict=False)):
        first, last = number * LEAF_BYTES, min((number + 1) * LEAF_BYTES, size) - 1
        if ours != theirs:
            if ranges and ranges[-1][1] == first - 1:
                ranges[-1][1] = last
            else:
                ranges.append([first, last])
    listed = ", ".join(f"{first} to {last}" for first, last in ranges)
    return f"; bytes {listed} differ" if listed else ""


def differences(ours: Manifest, theirs: Manifest) -> list[str]:
    """Differences of two manifests in the content that the digest covers.

    Files are compared by name.
    """
    a, b = ours.content(), theirs.content()
    # Files are named within their artifact; those of another artifact go by their whole path.
    files = [
        {output.path.removeprefix(f"{manifest.folder}/"): output for output in manifest.outputs}
        for manifest in (ours, theirs)
    ]
    plain = _differences({**a, "outputs": None}, {**b, "outputs": None}, "")
    lines = plain + _file_differences(*files)
    return lines or ["outputs: listed otherwise"] * (ours.digest != theirs.digest)


def _file_differences(ours: dict[str, Output], theirs: dict[str, Output]) -> list[str]:
    lines = []
    for name in sorted(set(ours) | set(theirs)):
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None:
            lines.append(f"outputs: {name} is only in the {'first' if b is None else 'second'}")
        elif a.sha256 != b.sha256:
            size = f"{a.bytes} bytes against {b.bytes}" if a.bytes != b.bytes else f"both of {a.bytes} bytes"
            pieces = _pieces(b, a.leaves, a.bytes) if a.leaves else ""
            lines.append(f"outputs: {name} differs, {size}{pieces}")
    same = sum(name in theirs and theirs[name].sha256 == output.sha256 for name, output in ours.items())
    return [*lines, f"outputs: {same} file(s) are the same"] if lines else []


def _differences(ours: Any, theirs: Any, where: str) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lines = []
        for name in sorted(set(ours) | set(theirs)):
            place = f"{where}.{name}" if where else name
            if name in ours and name in theirs:
                lines += _differences(ours[name], theirs[name], place)
            else:
                side, value = ("first", ours[name]) if name in ours else ("second", theirs[name])
                lines.append(f"{place}: only in the {side}, {value!r}")
        return lines
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for index, (a, b) in pairs for line in _differences(a, b, f"{where}[{index}]")]
    return [] if ours == theirs else [f"{where}: {ours!r} against {theirs!r}"]
