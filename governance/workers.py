"""Concurrent workers of an array: shares and joins in turn.

    made = take_turns(replace(runtime, worker=(1, 4)), work=lambda turn: prepare(config, folder, turn))

Each of the n workers runs this loop on one file system. A worker makes a share of the current step, its own first; when
no share is left, it joins; while another one makes what it needs, it waits. Making a share or joining holds a lock file
of the root, `share-<i>-of-<n>.lock` or `join.lock`, which ends with its process: the work of a worker that was killed,
or that never started, is free for the others at once. Correctness does not depend on the locks: two that make the same
make the same bytes. A worker that fails ends with its own error; the next one to take that turn meets the same error,
or gets past it.

Price: a look at a lock each 0.2 s while waiting; at each join, one reading of the step's shards. The lock of a dead
node ends when the file system's lock manager notices; until then the others wait, and the log names the file to remove.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from governance.files import held, is_held
from governance.log import get_logger
from governance.stage import Runtime, ShareDone

JOIN_LOCK = "join.lock"
_POLL_SECONDS = 0.2
_REMIND_SECONDS = 60.0

Result = TypeVar("Result")


def take_turns(runtime: Runtime, work: Callable[[Runtime], Result]) -> Result:
    """Run `work` as one of several workers until all is made.

    Args:
        runtime: with `worker` = (i, n).
        work: makes or finds the artifacts with the runtime of a share or a join; called often.

    Raises:
        PipelineError: `work` failed here.
    """
    count = runtime.worker[1]
    note = f"process {os.getpid()} on {socket.gethostname()}"
    own = turn = replace(runtime, mode="share")
    planned = joined = ""
    while True:
        shares = turn.mode == "share"
        lock = runtime.root / (f"share-{turn.worker[0]}-of-{count}.lock" if shares else JOIN_LOCK)
        turn_made, turn = turn, own
        with held(lock, note) as holder:
            if holder is not None:
                _wait(lock, holder)
                continue
            try:
                return work(turn_made)
            except ShareDone as left:
                get_logger(__name__).debug("left at %s", left)
                if turn_made.mode == "join":  # not one that found the lock held: its holder may be killed
                    joined = planned
                if left.made:
                    joined = ""
                if not shares or left.made:
                    continue
                if left.missing is not None:  # its own worker makes it, or this one does
                    turn = replace(own, worker=(left.missing, count))
                else:
                    # If a join has left no more for a share to do, no share ever can (a source whose server gives no
                    # version): then one process makes everything.
                    planned = str(left)
                    turn = replace(own, mode="all" if planned == joined else "join")


@contextlib.contextmanager
def turn_alone(lock: Path) -> Iterator[None]:
    """Hold a lock file of a root, once its holder has ended.

    For work whose bytes differ each time, such as a measurement, so that two equal commands do it once.
    """
    note = f"process {os.getpid()} on {socket.gethostname()}"
    while True:
        with held(lock, note) as holder:
            if holder is None:
                yield
                return
        _wait(lock, holder)


def _wait(lock: Path, holder: str) -> None:
    """Return when the lock is free."""
    reminded = time.monotonic()
    while is_held(lock):
        if time.monotonic() - reminded > _REMIND_SECONDS:
            get_logger(__name__).info("waiting for %s; if that node is gone, remove %s", holder, lock)
            reminded = time.monotonic()
        time.sleep(_POLL_SECONDS)
