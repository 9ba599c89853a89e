"""The only code that puts bytes on disk or hashes them.

Promise: a file under its final name is whole. It is written under a temporary name beside it, flushed, synced,
and renamed; whatever happens before the rename leaves the old file (or none). A killed process can leave only
a temporary file, which `sweep_temporaries` removes once that process is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from governance.errors import MissingInput, storage_errors

_TEMPORARY = ".tmp~"  # .<name>.tmp~<host>~<pid>~<random>: who writes it, so that a sweep knows whether it still lives


def _temporary(path: Path) -> Path:
    writer = f"{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
    return path.parent / f".{path.name}{_TEMPORARY}{writer}"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it to `path`, else remove it.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        _sync_directory(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Like `atomic_path`, with the file opened for writing bytes."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file


def _sync_directory(folder: Path) -> None:
    """Make a rename durable: POSIX keeps a directory's entries apart from the files' bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` under `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 under `path`, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def json_text(value: Any) -> str:
    """The form of every JSON file that we write: indented, sorted keys; NaN and infinity are refused."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, json_text(value))


def write_private(path: Path, data: bytes) -> bool:
    """Write a secret readable by its owner only; False, and nothing written, when another process was first."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = _temporary(path)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True


def append_line(path: Path, line: str) -> None:
    """Append one line (without its line end) in a single write, so that a kill tears at most the last line.

    A line that a kill tore is closed first, so that it does not take the next one with it.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as handle:
            torn = False
            if handle.seek(0, os.SEEK_END):
                handle.seek(-1, os.SEEK_END)
                torn = handle.read(1) != b"\n"
            handle.write(b"\n" * torn + line.encode("utf-8") + b"\n")


def read_lines(path: Path) -> list[Any]:
    """The JSON values of a file that `append_line` wrote; a torn line (a kill, or a full disk) is left out."""
    if not path.exists():
        return []
    values = []
    for line in path.read_bytes().split(b"\n"):
        if not line:
            continue
        try:
            values.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
    return values


def place(source: Path, target: Path) -> None:
    """Give the finished file `source` a second name `target`: a hard link where the file system can, else a copy."""
    if target.exists():
        return
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileExistsError:
            return
        except OSError:
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)


def put_in_place(source: Path, target: Path) -> None:
    """As `place`, but whatever stands under `target` gives way, in one step: no reader ever finds it missing."""
    if target.exists() and target.samefile(source):
        return
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        try:
            place(source, temporary)
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def touch(path: Path) -> None:
    """Change a file's time to now; an empty one is made where there is none."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it; the manifest first, so that a kill half-way leaves an unfinished artifact."""
    with contextlib.suppress(FileNotFoundError):
        (folder / "manifest.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)


def sweep_temporaries(folder: Path) -> int:
    """Remove temporary files below `folder` whose writer, a process of this host, is gone; return how many."""
    removed = 0
    for temporary in folder.rglob(f".*{_TEMPORARY}*"):
        host, pid, _ = temporary.name.rsplit(_TEMPORARY, 1)[1].rsplit("~", 2)
        if host != socket.gethostname() or os.path.exists(f"/proc/{pid}"):
            continue
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
            removed += 1
    return removed


def sha256_bytes(data: bytes | memoryview) -> str:
    """The SHA-256 of `data` in lower-case hexadecimal (FIPS 180-4)."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in blocks of 1 MiB (about 1.5 GB/s where the processor has SHA instructions).

    Raises:
        MissingInput: the file is not there or cannot be read.
    """
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from error
