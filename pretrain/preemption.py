"""A signal becomes a flag.

Slurm sends SIGTERM before it takes a node away, and SIGUSR1 before the time limit where the job asks for it
(`--signal=USR1@120`). The handler only notes it; the training loop asks between steps, agrees with the other ranks,
saves a checkpoint and leaves with exit code 75.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def watch_signals() -> Iterator[Callable[[], bool]]:
    """Yield `leave()`, true once one of `SIGNALS` arrived; the earlier handlers return at the end.

    Outside the main thread, where Python allows no handlers, it never turns true.
    """
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
