"""Seconds by phase, for dividing a node's energy.

    data stage      everything before training        checkpoint      the loop waits for a save
    start-up        until the first step              evaluation      validation and questions
    compute         forward, backward, update         idle            the step waits for its data
    communication   waiting for the other ranks       hang            no heartbeat beyond the limit

The meter of a node puts a `PhaseClock` into its dictionary under "clock". The measured program reports the phase that
begins (`begin`) or lasts for a context (`during`); without a clock both do nothing. Times are those of the host:
communication that a GPU overlaps with computing is in compute. Price: two readings of a clock per change.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

CLOCK = "clock"
INTERVAL = "interval"
"""The key of the measurement's name in the ledger."""
DATA_STAGE, START_UP, COMPUTE, COMMUNICATION = "data stage", "start-up", "compute", "communication"
CHECKPOINT, EVALUATION, IDLE, HANG = "checkpoint", "evaluation", "idle", "hang"
UNTOLD = "not told"
"""The phase of an interval that ended before its meter wrote any."""


class PhaseClock:
    """Seconds in each phase since it was made.

    One thread changes the phase, any other may read.
    """

    def __init__(self, first: str, clock: Callable[[], float] = time.monotonic):
        self._clock, self._guard = clock, threading.Lock()
        self._phase, self._since = first, clock()
        self._hangs = False
        self._seconds: dict[str, float] = {}
        self.hung = threading.Event()
        """Set when a hang is reported, so that a meter may write it down before the process ends."""

    @property
    def phase(self) -> str:
        """The current phase."""
        return self._phase

    def enter(self, phase: str) -> None:
        """Change to `phase`; a hang is over."""
        with self._guard:
            self._settle()
            self._phase, self._hangs = phase, False

    def hang(self, silent: float) -> None:
        """Count the last `silent` seconds, and all that follow, as a hang."""
        with self._guard:
            self._settle()
            last = self._seconds.get(self._phase, 0.0)
            moved = min(silent, last) if not self._hangs else 0.0
            self._seconds[self._phase] = last - moved
            self._seconds[HANG] = self._seconds.get(HANG, 0.0) + moved
            self._hangs = True
        self.hung.set()

    def milliseconds(self) -> dict[str, int]:
        """Whole milliseconds of each phase so far."""
        with self._guard:
            self._settle()
            return {phase: int(1000 * seconds) for phase, seconds in self._seconds.items()}

    def _settle(self) -> None:
        now, phase = self._clock(), HANG if self._hangs else self._phase
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now


def begin(energy: Mapping[str, Any], phase: str) -> None:
    """Report to the measurement `energy` that `phase` begins."""
    clock: PhaseClock | None = energy.get(CLOCK)
    if clock is not None:
        clock.enter(phase)


@contextlib.contextmanager
def during(energy: Mapping[str, Any], phase: str) -> Iterator[None]:
    """Set the phase for the time of the context."""
    clock: PhaseClock | None = energy.get(CLOCK)
    if clock is None:
        yield
        return
    before = clock.phase
    clock.enter(phase)
    try:
        yield
    finally:
        clock.enter(before)


def report_hang(energy: Mapping[str, Any], silent: float) -> None:
    """Report to the meter that nothing moved for `silent` seconds."""
    clock: PhaseClock | None = energy.get(CLOCK)
    if clock is not None:
        clock.hang(silent)
