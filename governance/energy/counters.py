"""Energy counters that wrap, fall back to zero and miss readings; and power that was read now and then.

`Counter` follows a counter of microjoules. What it must tell apart, where a reading is below the one before:

    a wrap     the way over the top needs no more power than any device takes: what lies on that way is counted
    a reset    the way over the top would need more: the counter began again (a driver was loaded anew). What stands in
               it now is certain; what was spent before the reset is taken from the mean power so far

A reading that fails leaves a gap, and the next one makes up for it. In a long gap a small counter can wrap several
times: the number that agrees best with the mean power so far is taken. Both are said in the detail of the figure, and
its bounds then reach from what is certain to what `MOST_WATTS` allow. What cannot be told apart: a reset within a gap
so long that the counter may have wrapped in it is taken for a wrap, an error of at most one range of the counter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

MOST_WATTS = 2000
"""More than one package, one bank of memory or one GPU takes; an upper bound, and what tells a reset from a wrap."""

Clock = Callable[[], float]


class GreatestPower:
    """The greatest mean power, in milliwatts, between two readings at least `span` seconds apart; 0: none were."""

    def __init__(self, span: float):
        self.milliwatts = 0
        self._span = span
        self._last: tuple[float, int] | None = None

    def note(self, at: float, millijoules: int | None) -> None:
        """A reading at `at` seconds; None is passed over."""
        if millijoules is None:
            return
        if self._last is None:
            self._last = (at, millijoules)
        elif (seconds := at - self._last[0]) >= self._span:
            self.milliwatts = max(self.milliwatts, math.ceil((millijoules - self._last[1]) / seconds))
            self._last = (at, millijoules)


class Counter:
    """Microjoules since it was opened, of a counter that is read at each `read()`."""

    def __init__(self, counter: Callable[[], int], size: int | None = None, clock: Clock = time.monotonic):
        self._counter, self._size, self._clock = counter, size, clock
        self._last, self._at = counter(), clock()
        self._began = self._at
        self.microjoules = self.low = self.high = 0
        self._told: dict[str, int] = {}

    @property
    def detail(self) -> str:
        """What was not a plain reading, with how often; "" where all were."""
        return ", ".join(f"{what} ({count})" for what, count in self._told.items())

    def read(self) -> None:
        """Count what came since the last reading; whatever the counter raises leaves a gap for the next one."""
        now, at = self._counter(), self._clock()
        most = int(MOST_WATTS * 1e6 * (at - self._at)) + 1
        least, middle, greatest = self._since(now, most, at)
        self.low, self.microjoules, self.high = self.low + least, self.microjoules + middle, self.high + greatest
        self._last, self._at = now, at

    def _since(self, now: int, most: int, at: float) -> tuple[int, int, int]:
        """Microjoules since the last reading: (certain, likely, possible)."""
        step = now - self._last
        over = step if step >= 0 else None if self._size is None else step + self._size
        if over is None or (step < 0 and over > most):
            self._tell("began again from zero")
            return now, max(now, min(self._expected(at), most)), max(now, most)
        if self._size is None or over + self._size > most:
            return over, over, over
        self._tell("may have wrapped several times in a gap")
        times = max(0, round((self._expected(at) - over) / self._size))
        possible = (most - over) // self._size
        return over, over + min(times, possible) * self._size, over + possible * self._size

    def _expected(self, at: float) -> int:
        """What the mean power so far would have taken since the last reading."""
        before = self._at - self._began
        return int(self.microjoules / before * (at - self._at)) if before > 0 else 0

    def _tell(self, what: str) -> None:
        self._told[what] = self._told.get(what, 0) + 1


class Integral:
    """Microjoules since it was opened, of a power in watts that is read at each `read()`: the mean of two neighbours.

    Over a gap of missed readings the mean of its ends is only likely: bounds then reach from nothing to `most_watts`.
    """

    def __init__(self, watts: Callable[[], float], clock: Clock = time.monotonic, most_watts: int = MOST_WATTS):
        self._watts, self._clock, self._most = watts, clock, most_watts
        self._last, self._at = watts(), clock()
        self._missed = self._gaps = 0
        self._middle = self._low = self._high = 0.0

    @property
    def microjoules(self) -> int:
        """What is likely."""
        return int(self._middle)

    @property
    def low(self) -> int:
        """What was read."""
        return int(self._low)

    @property
    def high(self) -> int:
        """What is possible."""
        return int(self._high)

    @property
    def detail(self) -> str:
        """How many gaps were bridged; "" where there was none."""
        return f"bridged a gap between readings ({self._gaps})" if self._gaps else ""

    def read(self) -> None:
        """Count what came since the last reading; whatever the meter raises leaves a gap for the next one."""
        self._missed += 1
        watts, at = self._watts(), self._clock()
        seconds = at - self._at
        likely = (watts + self._last) / 2 * seconds * 1e6
        gap, self._missed = self._missed > 1, 0
        self._gaps += gap
        self._middle += likely
        self._low += 0.0 if gap else likely
        self._high += max(likely, self._most * seconds * 1e6) if gap else likely
        self._last, self._at = watts, at
