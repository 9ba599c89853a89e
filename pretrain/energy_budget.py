"""Energy budget of a training, checked at every step.

    words = allowance.words(saver.seconds)      what this rank adds to that collective: nothing where there is no budget
    allowance.heed(summed)                      whether to save and leave; alike on every rank

What must fit until the next look and behind it: the longest time between two looks of late, and two saves, since one
may be under way when it is time to leave. How long a save lasts is what the longest took until it was durable; before
the first it is a guess on the slow side: a second, and this model's bytes at 100 MB/s.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from governance.errors import BudgetReached
from governance.hooks import Watch

_LATE = 200  # looks; so the first step, which compiles, is forgotten
_BYTES_PER_PARAMETER = 16  # weights and AdamW's state, each written once, and read once to be hashed
_BYTES_PER_SECOND = 100e6


class Allowance:
    """The watch of one rank, or of a run without a budget.

    State: when it looked.
    """

    def __init__(self, watch: Watch | None = None, clock: Callable[[], float] = time.monotonic):
        self._watch, self._clock = watch, clock
        self._gaps: deque[float] = deque(maxlen=_LATE)
        self._last: float | None = None
        self.reached = False
        """Whether it was time to leave."""

    def words(self, save_seconds: float) -> list[int]:
        """This rank's summands, given the time that a save takes."""
        if self._watch is None:
            return []
        now = self._clock()
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._last = now
        return self._watch.words(max(self._gaps, default=0.0) + 2 * save_seconds)

    def heed(self, summed: Sequence[int]) -> bool:
        """Return whether to save and stop, by the summed words."""
        self.reached = self._watch is not None and self._watch.over(summed)
        return self.reached

    def start(self, add_up: Callable[[list[int]], list[int]]) -> None:
        """Refuse to start where nobody knows what is used; collective.

        Raises:
            BudgetReached: nobody does, and the policy refuses that.
        """
        if self._watch is not None:
            self._watch.start(add_up(self._watch.words(0.0)))

    def error(self, step: int) -> BudgetReached:
        """Error to raise once step `step` is durable."""
        assert self._watch is not None, "only a budget is ever reached"
        saved = f"training left after step {step}, which is saved" if step else "no step was computed"
        return self._watch.reached(saved)

    def facts(self) -> dict[str, Any]:
        """The figures of the last look, for the record."""
        return {} if self._watch is None else self._watch.facts()


def first_save_seconds(parameters: int, world_size: int) -> float:
    """Assumed duration of the first save: each rank writes and hashes."""
    return 1.0 + _BYTES_PER_PARAMETER * parameters / world_size / _BYTES_PER_SECOND
