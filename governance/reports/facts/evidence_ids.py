"""Evidence of a report: files with digests and ids.

An entry of report.json's `evidence.entries`:

    {"id": "E7", "kind": "manifest", "path": "clean/0123.../manifest.json", "bytes": 812, "sha256": "...64 hex",
     "digest": "...64 hex"}

`digest` is an artifact's own (it covers all but the `run` block), `sha256` that of the file's first `bytes` bytes. A
manifest never changes; a training's record, the energy ledger and a cluster's job files grow after a report was
written. A report is therefore read from, and verified against, their first `bytes` bytes, which `as_of` copies to a
temporary folder. The entry of a ledger lists the measurements that were still running, as the files do not.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from governance.config import canonical_json
from governance.energy.ancestry import RECORD, read_behind
from governance.energy.ledger import FILE_NAME as LEDGER
from governance.energy.ledger import files_of, read_ledger, still_runs
from governance.errors import ManifestError
from governance.files import copy_beginning, sha256_bytes
from governance.manifest import FILE_NAME, KEY_LENGTH, Manifest, read_manifest

_TABLES = ("results.json", "licences.json", "representation.json", "tables.json", "findings.json")
_LAID_OUT = ("record", "checkpoint", "ancestor", "ledger", "cluster")
_CHECKPOINT = re.compile(rf"checkpoint/[0-9a-f]{{{KEY_LENGTH}}}/{re.escape(FILE_NAME)}")
_CLUSTER = ("slurm/jobs.jsonl", "slurm/accounting.jsonl", "slurm/submitted.jsonl", "slurm/taken.jsonl")

Entry = dict[str, Any]


def collect_entries(
    manifests: Sequence[Manifest], verdict: Mapping[str, Any], root: Path, stated: Sequence[Entry] | None, begun: str
) -> list[Entry]:
    """The entries, in the order of a run.

    Args:
        manifests: the reported artifacts, in order.
        verdict: as passed to the report.
        root: the artifacts' root.
        stated: entries of an existing report; only its files are then read, and growing ones up to its byte counts.
        begun: folder of an unfinished training, whose record is read.

    Raises:
        ManifestError: a stated path cannot be a checkpoint's, or a manifest is torn or altered.
    """
    known = None if stated is None else {str(entry.get("path")): entry for entry in stated}
    # Each ledger file is read up to its current length.
    sizes = {path.name: {"bytes": path.stat().st_size} for path in files_of(root / LEDGER)}
    read_first = sizes if known is None else known
    running = _running(root, read_first) if stated is None else sorted(running_of(stated))
    found: dict[str, Entry] = {}
    for kind, path, values in _pieces(manifests, verdict, root, known, begun):
        if path in found or (path not in read_first and (known is not None or kind == "ledger")):
            continue  # a checkpoint of this training may be behind its data, too
        added = {"running": running} if kind == "ledger" else {}
        read = _sum(root / path, read_first.get(path))
        found[path] = {"id": f"E{len(found) + 1}", "kind": kind, "path": path, **read, **values, **added}
    return list(found.values())


_Piece = tuple[str, str, dict[str, Any]]
"""Kind, path below the root, further fields."""


def _pieces(
    manifests: Sequence[Manifest], verdict: Mapping[str, Any], root: Path, known: Mapping[str, Entry] | None, begun: str
) -> Iterator[_Piece]:
    if verdict:
        yield "verdict", verdict_name(verdict), {"digest": sha256_bytes(canonical_json(verdict))}
    for manifest in manifests:
        yield "manifest", manifest.path, {"digest": manifest.digest}
        for output in manifest.outputs:
            if manifest.stage in ("audit", "bias") and output.path.rpartition("/")[2] in _TABLES:
                yield "table", output.path, {}
        if manifest.stage == "train":
            yield from _training_pieces(manifest, root, known)
    if begun:
        yield "record", f"{begun}/{RECORD}", {}
    for path in read_behind(manifests, root):
        if path.endswith(f"/{RECORD}"):
            yield "record", path, {}
        else:
            yield "ancestor", path, {"digest": read_manifest(root / path).digest}
    yield from _growing_files(root)


def _growing_files(root: Path) -> Iterator[_Piece]:
    """Files to which every run under this root appends."""
    ledger = Path(LEDGER)
    for file in [root / ledger, *sorted(root.glob(f"{ledger.stem}.*{ledger.suffix}"))]:
        if file.exists():
            yield "ledger", file.name, {}
    for file in [*map(root.joinpath, _CLUSTER), *sorted((root / "slurm" / "attempts").glob("*.jsonl"))]:
        if file.exists():
            yield "cluster", file.relative_to(root).as_posix(), {}


def verdict_name(verdict: Mapping[str, Any]) -> str:
    """Path of the verdict below the root."""
    parts = [str((verdict.get(name) or {}).get("digest", ""))[:16] for name in ("corpus", "policy")]
    return f"verdicts/{'-'.join(parts)}.json"


def read_stated_verdict(path: Path) -> dict[str, Any]:
    """Content of a verdict's envelope, signature unchecked.

    Raises:
        ManifestError: it is missing or not an envelope.
    """
    try:
        envelope = json.loads(path.read_bytes())
        content = json.loads(base64.b64decode(envelope["payload"], validate=True))
        subjects = {item["name"]: item["digest"]["sha256"] for item in content["subject"]}
        return {**content["predicate"], "key_id": envelope["signatures"][0]["keyid"], "subjects": subjects}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ManifestError(f"{path}: cannot be read as a verdict ({type(error).__name__}: {error})") from error


def running_of(entries: Sequence[Entry]) -> frozenset[str]:
    """Ledger intervals that were open when the report was made."""
    lists = [entry["running"] for entry in entries if isinstance(entry.get("running"), list)]
    return frozenset(name for names in lists for name in names if isinstance(name, str))


@contextlib.contextmanager
def as_of(root: Path, entries: Sequence[Entry]) -> Iterator[Path]:
    """A copy of growing files and removable manifests, as they were.

    Raises:
        ManifestError: a path points outside the root.
    """
    with tempfile.TemporaryDirectory(prefix="assay-report-") as name:
        view = Path(name)
        for entry in entries:
            path = PurePosixPath(entry["path"])
            if path.is_absolute() or ".." in path.parts:
                raise ManifestError(f"evidence {entry['path']!r}: points outside the root. Write the report again.")
            source = root / path
            if entry["kind"] in _LAID_OUT and source.is_file():
                copy_beginning(source, view / path, entry["bytes"])
        yield view


def _sum(path: Path, stated: Entry | None) -> Entry:
    """Size and SHA-256 of a file or its stated beginning."""
    try:
        with path.open("rb") as file:
            length = None if stated is None else stated.get("bytes")
            grows = path.suffix == ".jsonl" and stated is not None
            data = file.read(length if isinstance(length, int) and length >= 0 else 0) if grows else file.read()
    except OSError:
        return {"bytes": None, "sha256": None}
    return {"bytes": len(data), "sha256": sha256_bytes(data)}


def _training_pieces(train: Manifest, root: Path, known: Mapping[str, Entry] | None) -> Iterator[_Piece]:
    """Record and checkpoints of the training, as of the report."""
    record = f"{train.folder}/{RECORD}"
    if known is not None or (root / record).exists():
        yield "record", record, {}
    if known is not None:
        for path, entry in known.items():
            if entry.get("kind") == "checkpoint":
                if not _CHECKPOINT.fullmatch(path):  # report.json is untrusted input
                    raise ManifestError(f"evidence {path!r}: is not a checkpoint's manifest. Write the report again.")
                there = (root / path).exists()
                yield "checkpoint", path, {"digest": read_manifest(root / path).digest if there else None}
        return
    for file in sorted(root.glob(f"checkpoint/*/{FILE_NAME}")):
        manifest = read_manifest(file)
        if manifest.config.get("train_key") == train.key:
            yield "checkpoint", manifest.path, {"digest": manifest.digest}


def _running(root: Path, sizes: Mapping[str, Entry]) -> list[str]:
    """Open intervals of the ledger with a living or ended process.

    Liveness is checked first, so an interval that ends in between is found ended by the second read.
    """
    opened: dict[str, bool] = {}
    still_open: set[str] = set()

    def alive(line: Mapping[str, Any]) -> bool:
        opened[line["interval"]] = still_runs(line)
        return True

    def open_now(line: Mapping[str, Any]) -> bool:
        still_open.add(line["interval"])
        return True

    entries = [{"path": name, "kind": "ledger", **size} for name, size in sizes.items()]
    with as_of(root, entries) as then:
        read_ledger(then / LEDGER, alive)
    read_ledger(root / LEDGER, open_now)
    return sorted(name for name, lives in opened.items() if lives or name not in still_open)
