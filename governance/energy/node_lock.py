"""Election of one meter per node, repeated when its holder ends.

The lock is a file in a folder of this user in the node's own runtime directory (`governance.files.held`), so that the
ranks of one run, and two runs at the same time, never count the same joules twice. The kernel drops the lock when its
owner dies, however it dies; the next winner of an election (`Turn.elect`) measures from there on. The file's content
names the owner and its ledger.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from governance.files import held

LOCK_FILE = "meter.lock"
_NOTE_SECONDS, _LOOK_SECONDS = 1.0, 0.02  # how long to wait for the note of a new holder, and between two looks


@dataclass
class Turn:
    """Result of the election of a node's meter."""

    ours: bool
    pid: int | None = None
    """The measuring process, where it could be read."""
    ledger: str | None = None
    """Ledger of that process."""
    stand: Callable[[], str | None] = lambda: ""
    """Take the lock if nobody has it, and return None; else return its holder's note."""

    def elect(self) -> bool:
        """Hold the election again; return whether this process measures from now on."""
        if self.ours or (note := self.stand()) is None:
            self.ours = True
            return True
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the holder has not written its note yet
            values = json.loads(note)
            self.pid, self.ledger = int(values["pid"]), str(values["ledger"])
        return False


def runtime_folder(job: str | None = None) -> Path:
    """This user's folder in the node's runtime directory.

    That is XDG_RUNTIME_DIR, else the temporary directory. A job that measures its share of the node has a folder of its
    own.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(runtime) if runtime and os.access(runtime, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return parent / f"assay-{os.getuid()}" / f"meter-{socket.gethostname()}{f'-job-{job}' if job else ''}"


@contextlib.contextmanager
def node_turn(ledger: Path, job: str | None = None) -> Iterator[Turn]:
    """Hold the node's meter lock, or learn who does.

    Raises:
        OSError, StorageError: the runtime directory cannot be used, so that another process may measure, too.
    """
    folder = runtime_folder(job)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    note = json.dumps({"pid": os.getpid(), "ledger": str(ledger.resolve())})
    with contextlib.ExitStack() as won:

        def stand() -> str | None:
            with contextlib.ExitStack() as attempt:
                holder = attempt.enter_context(held(folder / LOCK_FILE, note))
                if holder is None:
                    won.push(attempt.pop_all())
                return holder

        turn, deadline = Turn(ours=False, stand=stand), time.monotonic() + _NOTE_SECONDS
        while not turn.elect() and time.monotonic() < deadline:
            if turn.pid is not None and start_time(turn.pid) is not None:
                break
            time.sleep(_LOOK_SECONDS)
        yield turn


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
