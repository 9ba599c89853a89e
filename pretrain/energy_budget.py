"""Energy budget of a training, checked at every step.

    payload = budget.payload(saver.seconds)     this rank's summands of a collective: none without a budget
    budget.should_stop(summed)                  whether to save and stop; the same on every rank

The budget must cover the time until the next check and two saves after it, because one may be under way when it is
time to stop. The time between checks is the longest of recent ones; that of a save is the longest until it was
durable, or before the first a high estimate: a second, and this model's bytes at 100 MB/s.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from governance.errors import BudgetReached
from governance.hooks import Watch

_RECENT = 200  # checks; the first step, which compiles, is forgotten
_BYTES_PER_PARAMETER = 16  # weights and AdamW's state, each written once, and read once to be hashed
_BYTES_PER_SECOND = 100e6


class BudgetGuard:
    """Energy budget of one rank.

    Without a watch it never stops a run.
    """

    def __init__(self, watch: Watch | None, clock: Callable[[], float] = time.monotonic):
        self._watch, self._clock = watch, clock
        self._gaps: deque[float] = deque(maxlen=_RECENT)
        self._last: float | None = None
        self.reached = False
        """True once the budget has stopped the run."""

    def payload(self, save_seconds: float) -> list[int]:
        """This rank's summands, given the seconds that a save takes."""
        if self._watch is None:
            return []
        now = self._clock()
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._last = now
        return self._watch.words(max(self._gaps, default=0.0) + 2 * save_seconds)

    def should_stop(self, summed: Sequence[int]) -> bool:
        """Return whether to save and stop, by the summed payloads."""
        self.reached = self._watch is not None and self._watch.over(summed)
        return self.reached

    def start(self, add_up: Callable[[list[int]], list[int]]) -> None:
        """Refuse to start where the energy use is unknown; collective.

        Raises:
            BudgetReached: it is unknown, and the policy refuses that.
        """
        if self._watch is not None:
            self._watch.start(add_up(self._watch.words(0.0)))

    def error(self, step: int) -> BudgetReached:
        """The error to raise once `step` is durable."""
        assert self._watch is not None, "only a budget can be reached"
        saved = f"training stopped after step {step}, which is saved" if step else "no step was computed"
        return self._watch.reached(saved)

    def facts(self) -> dict[str, Any]:
        """Figures of the last check, for the record."""
        return {} if self._watch is None else self._watch.facts()


def first_save_seconds(parameters: int, world_size: int) -> float:
    """Assumed duration of the first save: each rank writes and hashes."""
    return 1.0 + _BYTES_PER_PARAMETER * parameters / world_size / _BYTES_PER_SECOND
