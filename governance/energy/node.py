"""One meter a node: the first to take the node's lock measures, the others say who does.

The lock is `flock` on a folder of this user in the node's own runtime directory, so that the ranks of one run, and
two runs beside each other, never count the same joules twice. The kernel drops the lock when its owner dies, however
it dies. `holder.json` in that folder names the owner and its ledger; it is information, never the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from governance.files import write_json

_LOOKS, _LOOK_SECONDS = 50, 0.02  # of the note of whoever has the lock


@dataclass(frozen=True)
class Turn:
    """Whether this process measures the node; if not, who does."""

    ours: bool
    pid: int | None = None
    """The measuring process, where it could be read."""
    ledger: str | None = None
    """Where that process records."""


def runtime_folder(job: str | None = None) -> Path:
    """This user's folder in the node's runtime directory: XDG_RUNTIME_DIR, else the temporary directory.

    A job that measures its share of the node has one of its own.
    """
    given = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(given) if given and os.access(given, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return parent / f"assay-{os.getuid()}" / f"meter-{socket.gethostname()}{f'-job-{job}' if job else ''}"


@contextlib.contextmanager
def node_turn(ledger: Path, job: str | None = None) -> Iterator[Turn]:
    """Take the node's lock, or that of a job's share, for the time of the context, or learn who has it.

    Raises:
        OSError: the runtime directory cannot be used; the caller then cannot promise that nobody else measures.
    """
    folder = runtime_folder(job)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _holder(folder)
            return
        write_json(folder / "holder.json", {"pid": os.getpid(), "ledger": str(ledger.resolve())})
        try:
            yield Turn(ours=True)
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may still hold a copy of the descriptor
    finally:
        os.close(descriptor)


def _holder(folder: Path) -> Turn:
    """Who measures; waits a moment for the note of one who has only just taken the lock, or whose note is another's."""
    turn = Turn(ours=False)
    for _ in range(_LOOKS):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads((folder / "holder.json").read_bytes())
            turn = Turn(ours=False, pid=int(values["pid"]), ledger=str(values["ledger"]))
        if turn.pid is not None and start_time(turn.pid) is not None:
            break
        time.sleep(_LOOK_SECONDS)
    return turn


def start_time(pid: int) -> int | None:
    """When a process of this host began, in clock ticks since boot (proc(5), field 22); None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
