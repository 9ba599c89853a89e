"""Election of one meter a node, held again when its holder ends.

The lock is `flock` on a folder of this user in the node's own runtime directory, so that the ranks of one run, and
two runs beside each other, never count the same joules twice. The kernel drops the lock when its owner dies, however
it dies; whoever holds another election then (`Turn.elect`) measures from there on. `holder.json` in that folder names
the owner and its ledger; it is information, never the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from governance.files import write_json

_LOOKS, _LOOK_SECONDS = 50, 0.02  # of the note of whoever has the lock


@dataclass
class Turn:
    """Return whether this process measures the node; if not, who does."""

    ours: bool
    pid: int | None = None
    """The measuring process, where it could be read."""
    ledger: str | None = None
    """Where that process records."""
    stand: Callable[[], bool] = lambda: False
    """Take the lock if nobody has it."""
    note: Callable[[], tuple[int, str] | None] = lambda: None
    """The measuring process and its ledger, as it has noted them."""

    def elect(self) -> bool:
        """Hold the election again.

        Whether this process measures the node from now on; else who does is read anew.
        """
        self.ours = self.ours or self.stand()
        if not self.ours and (noted := self.note()) is not None:
            self.pid, self.ledger = noted
        return self.ours


def runtime_folder(job: str | None = None) -> Path:
    """This user's folder in the node's runtime directory.

    XDG_RUNTIME_DIR, else the temporary directory.

    A job that measures its share of the node has one of its own.
    """
    given = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(given) if given and os.access(given, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return parent / f"assay-{os.getuid()}" / f"meter-{socket.gethostname()}{f'-job-{job}' if job else ''}"


@contextlib.contextmanager
def node_turn(ledger: Path, job: str | None = None) -> Iterator[Turn]:
    """Hold the node's meter lock, or learn who does.

    Raises:
        OSError: the runtime directory cannot be used; the caller then cannot promise that nobody else measures.
    """
    folder = runtime_folder(job)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def stand() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        write_json(folder / "holder.json", {"pid": os.getpid(), "ledger": str(ledger.resolve())})
        return True

    turn = Turn(ours=False, stand=stand, note=partial(_noted, folder))
    try:
        if not turn.elect():
            _wait_for_the_note(turn)
        yield turn
    finally:
        if turn.ours:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may still hold a copy of the descriptor
        os.close(descriptor)


def _wait_for_the_note(turn: Turn) -> None:
    """Wait briefly for the note of a new lock holder."""
    for _ in range(_LOOKS):
        if turn.pid is not None and start_time(turn.pid) is not None:
            return
        time.sleep(_LOOK_SECONDS)
        if turn.elect():
            return


def _noted(folder: Path) -> tuple[int, str] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads((folder / "holder.json").read_bytes())
        return int(values["pid"]), str(values["ledger"])
    return None


def start_time(pid: int) -> int | None:
    """Start time of a local process in clock ticks (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def seconds_alive() -> float:
    """Age of this process in seconds, suspension included; 0 if unknown."""
    started = start_time(os.getpid())
    if started is None:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"))
