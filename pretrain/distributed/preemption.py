"""Signals that ask a run to save and stop.

Slurm sends SIGTERM before it takes a node away, and SIGUSR1 before the time limit where the job asks for it
(`--signal=USR1@120`). While the data opens, the model compiles and the first step runs, all that was learned stands in
the last checkpoint: the signal ends that at once, wherever Python is, because a compilation may last longer than the
scheduler waits. From the first update on the handler only notes it; the loop asks between steps and between validation
batches, agrees with the other ranks, saves a checkpoint and leaves. The exit code is 75 in both cases.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from governance.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Left(BaseException):
    """Raised by the handler itself.

    No `except Exception` of a compiler or a reader swallows it.
    """


class Leave:
    """`leave()` is true once one of `SIGNALS` arrived."""

    def __init__(self) -> None:
        self._arrived = False
        self._at = 0.0
        self._at_once = True

    def __call__(self) -> bool:
        """Return whether a signal arrived."""
        return self._arrived

    def seconds(self) -> float:
        """Since the first signal came to this process; 0: none did."""
        return time.monotonic() - self._at if self._arrived else 0.0

    def gently(self) -> None:
        """From now on there is something to save.

        A signal is only noted.
        """
        self._at_once = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        first = not self._arrived
        if first:
            self._at, self._arrived = time.monotonic(), True
        if first and self._at_once:
            raise Left


@contextlib.contextmanager
def watch_signals() -> Iterator[Leave]:
    """Yield `leave`; the earlier handlers return at the end.

    Outside the main thread, where Python allows no handlers, it never turns true.

    Raises:
        Preempted: a signal came before there was anything to save; also on a rank that only saw another one leave.
    """
    leave = Leave()
    if threading.current_thread() is not threading.main_thread():
        yield leave
        return
    before = {number: signal.signal(number, leave.note) for number in SIGNALS}
    try:
        yield leave
    except (Left, RuntimeError) as error:
        # A rank that waits for one that has left gets a RuntimeError of the collective, and its own signal with it.
        if isinstance(error, RuntimeError) and not (leave() and leave._at_once):
            raise
        raise Preempted("told to leave before the first step; the same command goes on from where it began") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
