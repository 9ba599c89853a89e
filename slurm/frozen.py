"""Frozen run: files, key and program as submitted.

`<root>/slurm/submitted.jsonl` has a line for each submission, the newest last; the files are in `slurm/submitted/N/`:

    {"code": {"sha256": "...", "version": "0.9.0"}, "edits": "refused", "files": {"/shared/run.toml": {"kept":
     "0-run.toml", "sha256": "..."}}, "key": "...", "submission": 1, "time": "2026-11-25T10:00:00Z"}

A job whose files, key or program differ from that line refuses to run, or, with `"edits": "taken"`, warns and appends
what it used to `slurm/taken.jsonl`: {"job": "12", "name": "/shared/run.toml", "sha256": "...", "time": "..."}.

Each line of both is signed as it is written (`governance/signing/signed_lines.py`).
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from governance.errors import ConfigError
from governance.files import append_line, read_lines, sha256_bytes, write_bytes
from governance.hooks import LineSigner, sign_nothing
from governance.log import get_logger
from governance.stage import now
from slurm.attempt.causes import PROGRAM_DIFFERS

VARIABLE = "ASSAY_SUBMITTED"
"""Names the root of the run that a job belongs to; its script sets it."""
_RECORD, _TAKEN = "submitted.jsonl", "taken.jsonl"
_PACKAGES = ("assay", "governance", "data_pipeline", "pretrain", "slurm")


def code_digest() -> str:
    """SHA-256 of the program's own files.

    An installed program and a checkout of the same state are equal. The examples in `assay/configs` are not code:
    runs copy them, and `submit` keeps the copies. A second call reads only files that changed.
    """
    found = []
    above = Path(__file__).parents[1]
    for package in _PACKAGES:
        for path in sorted((above / package).rglob("*")):
            if path.suffix in (".py", ".sh", ".sbatch", ".toml") and path.parent != above / "assay" / "configs":
                state = path.stat()
                digest = _file_digest(path, state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino)
                found.append(f"{path.relative_to(above)}\0{digest}\n")
    return sha256_bytes("".join(found).encode())


@cache
def _file_digest(path: Path, *state: int) -> str:
    """SHA-256 of a file in this state."""
    return sha256_bytes(path.read_bytes())


def freeze(
    root: Path,
    submission: int,
    files: Sequence[Path],
    key: str,
    code: Mapping[str, str],
    *,
    taken: bool,
    signer: LineSigner = sign_nothing,
) -> None:
    """Keep copies of the submitted files, and record their digests.

    `code` is the program's version, with its digest unless jobs run an image. `taken` lets jobs take an edit.
    """
    kept = {}
    for number, path in enumerate(files):
        data, name = path.read_bytes(), f"{number}-{path.name}"
        write_bytes(root / "slurm" / "submitted" / str(submission) / name, data)
        kept[str(path)] = {"kept": name, "sha256": sha256_bytes(data)}
    line = {
        "code": dict(code), "edits": "taken" if taken else "refused", "files": kept, "key": key,
        "submission": submission, "time": now(),
    }  # fmt: skip
    path = root / "slurm" / _RECORD
    append_line(path, json.dumps(signer(path, uuid.uuid4().hex)(line), sort_keys=True), durable=True)


def last_frozen(root: Path) -> dict[str, Any] | None:
    """The newest line; None where nothing was submitted."""
    lines = [line for line in read_lines(root / "slurm" / _RECORD) if isinstance(line, dict)]
    return lines[-1] if lines else None


def edits(record: Mapping[str, Any], key: str | None, *, code: bool = True) -> Iterator[tuple[str, str, str]]:
    """Differences from a record: (name, digest now, words).

    `key` is the signing key's id here; with None it is not compared. `code` states whether the program is compared.
    """
    for name, was in record["files"].items():
        try:
            is_now = sha256_bytes(Path(name).read_bytes())
        except OSError as error:
            yield name, "", f"{name}: cannot be read on {socket.gethostname()} ({error.strerror})"
            continue
        if is_now != was["sha256"]:
            kept = f"slurm/submitted/{record['submission']}/{was['kept']}"
            yield name, is_now, f"{name}: was edited since; the submitted copy is {kept}"
    if key is not None and key != record["key"]:
        yield (
            "signing key", key,
            f"the signing key on {socket.gethostname()} is {key[:12] or 'not there'}, and {record['key'][:12]} where "
            "the run was submitted: each job would sign with a key that the others do not trust. Set "
            "governance.signing_key to a file that all nodes (and the container) see",
        )  # fmt: skip
    submitted = record["code"].get("sha256")
    if code and submitted and (is_now := code_digest()) != submitted:
        here = Path(__file__).parents[1]
        yield "assay", is_now, f"the program at {here} is not the one that submitted: it was edited, or is another one"


def refuse_edits(root: Path, key: str | None, *, first: bool, signer: LineSigner = sign_nothing) -> None:
    """Compare this job's files with the submitted ones.

    `first` marks the rank that compares the program, and logs.

    Raises:
        ConfigError: something differs, and edits are not taken.
    """
    record = last_frozen(root)
    if record is None:
        return
    found = list(edits(record, key, code=first))
    if not found:
        return
    lines = "\n".join(f"  {words}" for _, _, words in found)
    if record["edits"] != "taken" or any(name == "signing key" for name, _, _ in found):
        what = PROGRAM_DIFFERS if any(name == "assay" for name, _, _ in found) else "this differs"
        raise ConfigError(
            f"{what} from what was submitted (submission {record['submission']}, {record['time']}):\n{lines}\n"
            "  Restore it, or accept it on purpose: assay slurm retry CONFIG --take-edits"
        )
    if first:
        get_logger(__name__).warning("edits since the submission are accepted, as requested:\n%s", lines)
        path = root / "slurm" / _TAKEN
        sign = signer(path, uuid.uuid4().hex)
        for name, digest, _ in found:
            line = {"job": os.environ.get("SLURM_JOB_ID", ""), "name": name, "sha256": digest, "time": now()}
            append_line(path, json.dumps(sign(line), sort_keys=True))


def refuse_unasked(root: Path, typed: str) -> None:
    """Refuse a resubmission after edits.

    `typed` are the words after the command.

    Raises:
        ConfigError: something was edited.
    """
    record = last_frozen(root)
    found = list(edits(record, None)) if record is not None else []
    if found:
        raise ConfigError(
            "this differs from what was submitted:\n"
            + "\n".join(f"  {words}" for _, _, words in found)
            + "\n  Restore it, "
            f"or accept it on purpose: assay slurm retry {typed} --take-edits"
        )


def in_words(root: Path) -> list[str]:
    """Submitted files, later edits, and edits that jobs took."""
    record = last_frozen(root)
    if record is None:
        return []
    names = ", ".join(f"{Path(name).name} {was['sha256'][:12]}" for name, was in record["files"].items())
    code = record["code"].get("sha256", "of the image")[:12]
    lines = [f"submitted: {names}; assay {record['code']['version']} {code}; edits are {record['edits']}"]
    lines += [f"! {words}" for _, _, words in edits(record, None)]
    newest = [line for line in reversed(read_lines(root / "slurm" / _TAKEN)) if isinstance(line, dict)]
    taken = {(Path(line["name"]).name, line["sha256"][:12]): line["job"] for line in newest}
    return lines + [f"edit taken: {name} {digest} (since job {job})" for (name, digest), job in taken.items()]
