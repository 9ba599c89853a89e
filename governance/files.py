"""File access: the only code that writes or hashes files.

Promise: a file under its final name is whole. It is written under a temporary name in the same folder, flushed, synced,
and renamed; whatever happens before the rename leaves the old file (or none). A killed process can leave only
a temporary file, which `sweep_temporaries` removes once that process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import mmap
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
import tomllib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from governance.errors import MissingInput, StorageError, storage_errors
from governance.regular_files import NO_FILE, open_at_once

LEAF_BYTES = 64 << 20  # a larger file has a digest for each piece of this size, so that a bad piece can be named
_READ_BYTES = 1 << 20
_LOCK_POLL_SECONDS = 0.2
_LOCKED_ERRNOS = (errno.EACCES, errno.EAGAIN)
_THREADS = threading.RLock()  # a record lock belongs to the process, so threads of one process need a lock of their own
_HELD: dict[str, tuple[int, str]] = {}  # lock files of `held` by their real path: the process and its note
_HELD_GUARD = threading.RLock()
_TEMPORARY = ".tmp~"  # .<name>.tmp~<host>~<pid>~<random>: its writer; a sweep spares those of living processes
_WRITING = re.compile(rf"\..+{re.escape(_TEMPORARY)}[^~]+~[0-9]+~[0-9a-f]{{8}}")


def _temporary(path: Path) -> Path:
    writer = f"{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
    return path.parent / f".{path.name}{_TEMPORARY}{writer}"


def is_temporary(path: Path) -> bool:
    """Return whether a file name is a temporary one."""
    return _WRITING.fullmatch(path.name) is not None


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`.

    On success it is synced and renamed to `path`, else it is removed.

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
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Like `atomic_path`, with the file opened for writing bytes."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file


def _sync_directory(folder: Path) -> None:
    """Make a rename durable.

    POSIX keeps a directory's entries apart from the files' bytes.
    """
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
    """The form of every JSON file that we write: indented, sorted keys.

    NaN and infinity are refused.
    """
    with contextlib.suppress(ValueError):  # its message does not name the value, as the library's own does
        return _indented(value, "\n") + "\n"
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _indented(value: Any, line: str) -> str:
    """JSON as `json.dumps(indent=1)` gives it, in a quarter of its time.

    The library's C encoder cannot indent. It writes containers without containers, with a line end in each separator.
    """
    inner = f"{line} "
    encode = _encoder(inner).encode
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if not any(isinstance(child, (dict, list, tuple)) for child in children):
        flat = encode(value)
        return f"{flat[0]}{inner}{flat[1:-1]}{line}{flat[-1]}" if children else flat
    if isinstance(value, dict):
        items = [f"{encode({key: 0})[1:-2]}{_indented(child, inner)}" for key, child in sorted(value.items())]
        return f"{{{inner}{f',{inner}'.join(items)}{line}}}"
    return f"[{inner}{f',{inner}'.join(_indented(child, inner) for child in children)}{line}]"


@functools.cache
def _encoder(inner: str) -> json.JSONEncoder:
    return json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(f",{inner}", ": "))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, json_text(value))


def write_private(path: Path, data: bytes) -> bool:
    """Write a secret readable by its owner only.

    Return False, with nothing written, when another process was first.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _write_first(path, data, 0o600)


def write_new(path: Path, data: bytes) -> bool:
    """Write `data` under a new name.

    Return False, with nothing written, when another process was first: every shared file system makes a hard link for
    one of many nodes only.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return _write_first(path, data, 0o644)


def _write_first(path: Path, data: bytes, mode: int) -> bool:
    temporary = _temporary(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
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


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock file across threads, processes and nodes.

    A POSIX record lock: network file systems support it, and it ends with its process, however that ends.
    """
    with _THREADS, storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", opener=_open_no_link) as handle:
            fcntl.lockf(handle, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def held(path: Path, note: str = "", wait_seconds: float = 0.0) -> Iterator[str | None]:
    """Hold a lock file, waiting at most `wait_seconds` for it.

    Yields None when it is ours, with `note` written inside; else the note of its holder, who is alive, perhaps in
    another thread or on another node. As with `locked`, the lock ends with its process, however that ends, and a forked
    child has no part in it.

    Raises:
        StorageError: the file cannot be written.
    """
    deadline = time.monotonic() + wait_seconds
    while isinstance(lock := _take_lock(path, note), str) and time.monotonic() < deadline:
        time.sleep(_LOCK_POLL_SECONDS)
    if isinstance(lock, str):
        yield lock
        return
    try:
        yield None
    finally:
        with _HELD_GUARD:
            _HELD.pop(_lock_name(path), None)
            lock.close()


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file, this one included."""
    with _HELD_GUARD:
        if _HELD.get(_lock_name(path), (0, ""))[0] == os.getpid():
            return True
        try:
            with open(path, "rb", opener=open_at_once) as handle:
                fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in _LOCKED_ERRNOS:
                raise
            return True
    return False


def _take_lock(path: Path, note: str) -> BinaryIO | str:
    """The open file of our new lock, or its holder's note."""
    with _HELD_GUARD, storage_errors(path):
        # A process never fails to get a record lock that it has, and loses it when it closes any handle of that file.
        process, its_note = _HELD.get(_lock_name(path), (0, ""))
        if process == os.getpid():
            return its_note
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "ab+", opener=_open_no_link)  # noqa: SIM115
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            handle.truncate(0)
            handle.write(note.encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())  # visible to a reader on another node
        except OSError as error:
            with handle:
                if error.errno not in _LOCKED_ERRNOS:
                    raise
                handle.seek(0)
                return handle.read().decode("utf-8", "replace")
        _HELD[_lock_name(path)] = (os.getpid(), note)
        return handle


def _lock_name(path: Path) -> str:
    return os.path.realpath(path)


def _open_no_link(path: str, flags: int) -> int:
    """Open a regular file to be written, not through a symbolic link."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        kind = NO_FILE
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # ENXIO: a pipe that nobody reads
            raise
        kind = "it is a symbolic link" if error.errno == errno.ELOOP else NO_FILE
    raise StorageError(f"cannot write to {path}: {kind}. Remove it, and find out who can write to its folder")


def append_line(path: Path, line: str, *, durable: bool = False) -> None:
    """Append one line in a single write.

    A kill tears at most the last line.

    A line that a kill tore is closed first, so that it does not take the next one with it. With `durable` the line is
    on the disk when this returns. A symbolic link is not followed: whoever may write to the folder would choose the
    file that is appended to.

    Raises:
        StorageError: the disk is full or refuses, or `path` is a symbolic link.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", opener=_open_no_link) as handle:
            torn = False
            if handle.seek(0, os.SEEK_END):
                handle.seek(-1, os.SEEK_END)
                torn = handle.read(1) != b"\n"
            handle.write(b"\n" * torn + line.encode("utf-8") + b"\n")
            if durable:
                handle.flush()
                os.fsync(handle.fileno())


def read_lines(path: Path, last_bytes: int = 0) -> list[Any]:
    """The JSON values of a file that `append_line` wrote.

    Torn lines (after a kill, or on a full disk) are left out.

    `last_bytes` limits the reading to the whole lines in this many bytes at the file's end; 0 reads all.

    Raises:
        StorageError: it is a pipe or a device.
    """
    if not path.exists():
        return []
    values = []
    with open(path, "rb", opener=open_at_once) as handle:
        state = os.fstat(handle.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise StorageError(f"cannot read {path}: {NO_FILE}. Remove it, and find out who can write to its folder")
        handle.seek(max(0, state.st_size - last_bytes) if last_bytes else 0)
        text = handle.read()
    for line in text.split(b"\n"):
        if not line:
            continue
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):  # also integers of 5,000 digits, and 100,000 brackets
            continue
    return values


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The records of a training's file that have a step."""
    return steps_among(read_lines(path))


def steps_among(values: Iterable[Any]) -> list[dict[str, Any]]:
    """Those of a training's lines that are records with a step.

    Whoever may write to the folder can append lines of any form; those are left out.
    """
    lines = (line for line in values if isinstance(line, dict))
    return [line for line in lines if type(line.get("step")) is int and type(line.get("attempt", 1)) is int]


def place(source: Path, target: Path) -> None:
    """Give the finished file `source` a second name `target`.

    Makes a hard link where the file system can, else a copy.
    """
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


def copy_beginning(source: Path, target: Path, size: int) -> None:
    """Copy the first `size` bytes of a growing file, unsynced."""
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as file, target.open("wb") as copy:
            while size > 0 and (block := file.read(min(size, 1 << 20))):
                size -= copy.write(block)


def put_in_place(source: Path, target: Path) -> None:
    """As `place`, but replace `target` in one step.

    No reader ever finds it missing.
    """
    if target.exists() and target.samefile(source):
        return
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        try:
            place(source, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def touch(path: Path) -> None:
    """Change a file's time to now; make it if missing."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def remove_file(path: Path) -> None:
    """Remove a file if it exists."""
    path.unlink(missing_ok=True)


def move_folder(folder: Path, target: Path) -> None:
    """Move a folder within its file system, with one rename.

    Raises:
        StorageError: the disk refuses.
    """
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this account may enter, if missing.

    Raises:
        StorageError: it is there, and holds files that another account could have left.
    """
    with contextlib.suppress(OSError):  # one that is empty is made again
        folder.rmdir()
    with storage_errors(folder):
        with contextlib.suppress(FileExistsError):  # a file, or a link to nowhere: it is refused below
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise StorageError(
            f"{folder}: is not a folder of this account alone (mode 700), so its content counts for nothing. Remove "
            "it, and find out who can write there"
        )


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it.

    The manifest goes first, so that a kill half-way leaves an unfinished artifact. If it is a symbolic link, only the
    link is removed.
    """
    if folder.is_symlink():  # its target is not ours
        folder.unlink()
        return
    (folder / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def sweep_temporaries(folder: Path) -> int:
    """Remove temporary files of dead writers; return the number."""
    removed = 0
    for temporary, host, process in _writings(folder):
        if host != socket.gethostname() or os.path.exists(f"/proc/{process}"):
            continue
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
            removed += 1
    return removed


def living_writers(folder: Path) -> Iterator[tuple[Path, int]]:
    """Temporary files that other processes of this machine write."""
    for temporary, host, process in _writings(folder):
        if host == socket.gethostname() and process != os.getpid() and os.path.exists(f"/proc/{process}"):
            yield temporary, process


def _writings(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Temporary files with the host and the process of their writer."""
    for temporary in folder.rglob(f".*{_TEMPORARY}*"):
        if is_temporary(temporary):
            host, process, _ = temporary.name.rsplit(_TEMPORARY, 1)[1].rsplit("~", 2)
            yield temporary, host, int(process)


def running_sha256() -> hashlib._Hash:
    """A SHA-256 to be updated piece by piece."""
    return hashlib.sha256()


def sha256_bytes(data: bytes | memoryview) -> str:
    """The SHA-256 of `data` in lower-case hexadecimal (FIPS 180-4)."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in blocks of 1 MiB.

    Reads about 1.5 GB/s where the processor has SHA instructions.

    Raises:
        MissingInput: the file is missing or cannot be read.
    """
    try:
        with open(path, "rb", opener=open_at_once) as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise MissingInput(f"cannot read {path}: {NO_FILE}")
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from error


def piece_digest(path: Path, algorithm: str, begin: int = 0, size: int = -1) -> str:
    """The digest of a file, or of a piece of it.

    The piece has `size` bytes from `begin` on; by default it has all of them.

    Raises:
        MissingInput: the file is missing or cannot be read.
    """
    running, left = hashlib.new(algorithm), size
    try:
        with open(path, "rb", opener=open_at_once) as handle:
            handle.seek(begin)
            while left and (block := handle.read(_READ_BYTES if left < 0 else min(left, _READ_BYTES))):
                running.update(block)
                left -= len(block) if left > 0 else 0
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from error
    return running.hexdigest()


def nameless_memory(folder: Path, size: int) -> mmap.mmap:
    """Memory of `size` bytes backed by an unnamed file in `folder`.

    All of the file is reserved at once: a disk found full while a page is written would kill the process.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
            return mmap.mmap(file.fileno(), max(size, 1))


def sha256_leaves(path: Path, most: int | None = None) -> tuple[str, ...]:
    """The SHA-256 of each `LEAF_BYTES` piece of a file.

    `most` limits the bytes that are read. The result is empty for a file that is not larger than a piece.

    Raises:
        MissingInput: the file is missing or cannot be read.
    """
    leaves = []
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        with open(path, "rb", buffering=0) as handle:
            size = os.fstat(handle.fileno()).st_size
            if size <= LEAF_BYTES:
                return ()
            size = size if most is None else min(size, most)
            while handle.tell() < size:
                leaf, end = hashlib.sha256(), min(handle.tell() + LEAF_BYTES, size)
                while (left := end - handle.tell()) and (count := handle.readinto(buffer[:left])):
                    leaf.update(buffer[:count])
                leaves.append(leaf.hexdigest())
                if handle.tell() < end:
                    break  # it was cut while it was read; the whole file's digest will show it
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from error
    return tuple(leaves)


def sha256_with_leaves(path: Path) -> tuple[str, tuple[str, ...]]:
    """`sha256_file` and `sha256_leaves` at once.

    The leaves of a large file are hashed in a second thread.

    Hashing leaves the interpreter's lock, so on a second core the leaves cost no time, and the file is read from the
    disk once; they do cost the processor as much again.

    Raises:
        MissingInput: the file is missing or cannot be read.
    """
    if not path.is_file() or path.stat().st_size <= LEAF_BYTES:
        return sha256_file(path), ()
    with ThreadPoolExecutor(1) as second:
        leaves = second.submit(sha256_leaves, path)
        return sha256_file(path), leaves.result()


@functools.cache
def shipped_table(package: str, name: str) -> Mapping[str, Any]:
    """The TOML file of this name among a package's modules."""
    return tomllib.loads(resources.files(package).joinpath(name).read_text(encoding="utf-8"))
