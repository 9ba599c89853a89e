"""A rank that hangs says where, and ends: a thread looks at when the rank last gave a sign of life.

At expiry each rank writes the stacks of all its threads into `<run folder>/hangs/rank-00000.txt` and ends with status
70; the launcher takes the job down and starts it again from the last checkpoint. Every rank has a watchdog of its own,
and ranks wait for each other: so all of them expire at about the same moment, and each waits a while before it ends,
because its end would break the collectives of the others before they have written.

The first step, which compiles, and a save have a long limit; a step after it a short one, but never less than twenty
times the slowest step that was measured. Price: a beat is a store of two values; the thread wakes once a second.

A main thread that never gives back the interpreter's lock (a hang inside a foreign library) stops this thread too. For
that there is the interpreter's own timer in C, armed anew at each look; it writes to standard error and ends with 1.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from governance.files import atomic_file
from governance.log import get_logger
from pretrain.config import EngineConfig
from pretrain.launch import HUNG

FOLDER = "hangs"
_LOOK_SECONDS = 1.0
_SLOWEST_STEPS = 20.0
_STUCK_SECONDS = 60.0  # after the limit: when the timer in C speaks for a thread that cannot


class Heart:
    """The last sign of life of this rank; each is one store, so the watching thread never sees half of one."""

    def __init__(self, first_limit: float, limit: float) -> None:
        self._first, self._limit = first_limit, limit
        self._short = first_limit  # until the first step is done
        self._slowest, self._stepped = 0.0, False
        self._last = (time.monotonic(), "start", first_limit)

    def beat(self, what: str, *, long: bool = False) -> None:
        """Say what begins now; `long`: it may take as long as the first step."""
        self._last = (time.monotonic(), what, self._first if long else self._short)

    def stepped(self, step: int, seconds: float) -> None:
        """Step `step` is done, in `seconds`; what follows has the short limit. The first one compiles: not counted."""
        self._slowest = max(self._slowest, seconds if self._stepped else 0.0)
        self._stepped = True
        self._short = max(self._limit, _SLOWEST_STEPS * self._slowest) if self._limit else 0.0
        self.beat(f"step {step} was done")

    def last(self) -> tuple[float, str, float]:
        """Seconds since the last beat, what began then, and the limit in seconds (0: none)."""
        at, what, limit = self._last
        return time.monotonic() - at, what, limit


@contextlib.contextmanager
def watch_hangs(
    folder: Path, rank: int, config: EngineConfig, hung: Callable[[float], None] = lambda silent: None
) -> Iterator[Heart]:
    """Yield the heart to beat; while the context lasts, a silence beyond the limit ends the process.

    `hung` is told the seconds of that silence first.
    """
    heart = Heart(config.first_step_timeout_seconds, config.step_timeout_seconds)
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(heart, folder, rank, ended, hung), daemon=True, name="watchdog")
    thread.start()
    try:
        yield heart
    finally:
        ended.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def _watch(heart: Heart, folder: Path, rank: int, ended: threading.Event, hung: Callable[[float], None]) -> None:
    while not ended.wait(_LOOK_SECONDS):
        silent, _, limit = heart.last()
        if not limit:
            faulthandler.cancel_dump_traceback_later()
        elif silent < limit:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # no standard error to write to
                faulthandler.dump_traceback_later(limit - silent + _STUCK_SECONDS, exit=True, file=sys.__stderr__)
        else:
            hung(silent)
            _expire(heart, folder, rank, ended)


def _expire(heart: Heart, folder: Path, rank: int, ended: threading.Event) -> None:
    """Write this rank's stacks; end, unless it goes on after all while the others write theirs."""
    silent, what, limit = heart.last()
    path = folder / FOLDER / f"rank-{rank:05d}.txt"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(Exception), atomic_file(path) as file:  # a full disk must not keep the job hanging
        head = f"{stamp} rank {rank} pid {os.getpid()}: no sign of life for {silent:.0f} s since: {what}\n\n"
        file.write(head.encode())
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
    get_logger(__name__).error(
        "rank %d hangs: %.0f s since %r, the limit is %.0f s (engine.step_timeout_seconds, "
        "engine.first_step_timeout_seconds). Its stacks: %s",
        rank, silent, what, limit, path,
    )  # fmt: skip
    if not ended.wait(min(30.0, max(2.0, 0.1 * limit))) and heart.last()[0] > silent:
        os._exit(HUNG)
