"""Signals that request a run to save and stop.

Slurm sends SIGTERM before it takes a node away, and SIGUSR1 before the time limit where the job requests it
(`--signal=USR1@120`). While the data opens, the model compiles and the first step runs, everything learned is in the
last checkpoint: a signal ends that phase at once, wherever Python is, because a compilation may last longer than the
scheduler waits. From the first update on the handler only takes note; the loop checks between steps and between
validation batches, agrees with the other ranks, saves a checkpoint and stops. The exit code is 75 in both cases.

Ctrl-C (SIGINT) does the same; a second one ends the process at once, and what the last checkpoint lacks is lost.
SIGINTs less than a second apart are one request: `scancel -s INT` signals the ranks, and the launcher, which passes it
on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from governance.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ONE_REQUEST_SECONDS = 1.0
"""Seconds after a SIGINT within which another one is the same request, delivered twice."""


class StopNow(BaseException):
    """Raised by the handler to stop at once.

    No `except Exception` of a compiler or a reader swallows it.
    """

    exit_code = Preempted.exit_code
    """Status of the `Preempted` that it becomes in `watch_signals`.

    Contexts within, such as the record's mirrors, see this exception.
    """


class StopRequested:
    """Flag that one of `SIGNALS` arrived; call it to read it."""

    def __init__(self) -> None:
        self._arrived = False
        self._at = 0.0
        self._at_once = True
        self._interrupted = 0.0

    def __call__(self) -> bool:
        """Return whether a signal arrived."""
        return self._arrived

    def seconds(self) -> float:
        """Seconds since the first signal to this process; 0 without one."""
        return time.monotonic() - self._at if self._arrived else 0.0

    def defer(self) -> None:
        """Only take note of signals from now on.

        There is something to save.
        """
        self._at_once = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted and now - self._interrupted > ONE_REQUEST_SECONDS:
                signal.signal(number, signal.SIG_DFL)  # an exception would wait for the save that the user gives up
                os.kill(os.getpid(), number)
            self._interrupted = self._interrupted or now
        first = not self._arrived
        if first:
            self._at, self._arrived = time.monotonic(), True
        if first and self._at_once:
            raise StopNow


@contextlib.contextmanager
def watch_signals() -> Iterator[StopRequested]:
    """Handle signals while the context lasts.

    Outside the main thread Python allows no handlers.

    Raises:
        Preempted: a signal came before there was anything to save; also on a rank that only saw another one stop.
    """
    stop_requested = StopRequested()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return
    before = {number: signal.signal(number, stop_requested.note) for number in SIGNALS}
    try:
        yield stop_requested
    except (StopNow, RuntimeError) as error:
        # A rank that waits for one that has stopped gets a RuntimeError from the collective along with its own signal.
        if isinstance(error, RuntimeError) and not (stop_requested() and stop_requested._at_once):
            raise
        raise Preempted("stopped by a signal before the first step; run the same command to resume") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
