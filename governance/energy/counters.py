"""Energy counters with wraps, resets, glitches and gaps; sampled power.

`Counter` follows a counter of microjoules. A reading that does not follow from the one before is one of three things:

    a wrap     the rise, counted past the top, needs at most `MAX_WATTS`; it is counted
    a reset    the counter fell to less than half, to a value that a device can take in the time: it began again (a
               driver was loaded anew). What it shows now is certain; what was spent before the reset is taken from
               the mean power so far
    a glitch   any other fall, and a rise that no device's power explains. `Glitch` is raised, and a gap is left: the
               next reading is measured against the last good one. If that reading follows from the glitch instead,
               counting continues from the glitch, and the mean power so far fills the time before

A reading that fails leaves a gap as well, and the next one makes up for it. In a long gap a small counter can wrap
several times: the number that agrees best with the mean power so far is taken. `detail` counts each of these cases, and
`low` and `high` reach from what is certain to what `MAX_WATTS` allow. Indistinguishable: a reset
within a gap so long that the counter may have wrapped in it is treated as a wrap, an error of at most one range of the
counter; a glitch that looks like a reset adds at most what `MAX_WATTS` allow in its interval.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

MAX_WATTS = 2000
"""More than one package, one bank of memory or one GPU takes; an upper bound that separates a reset from a wrap."""

LAG_SECONDS = 1.0
"""A counter may publish late: a rise may hold the energy of so much more time than passed between two readings."""

Clock = Callable[[], float]
_Span = tuple[int, int, int]
"""Microjoules of some time: (certain, likely, possible)."""


class Glitch(ValueError):
    """A reading that follows from no earlier one."""


class GreatestPower:
    """Greatest mean power in milliwatts over at least `span` seconds."""

    def __init__(self, span: float):
        self.milliwatts = 0
        self._span = span
        self._last: tuple[float, int] | None = None

    def note(self, at: float, millijoules: int | None) -> None:
        """A reading at `at` seconds; None is skipped.

        A clock that was set back begins a new span.
        """
        if millijoules is None:
            return
        if self._last is None or at < self._last[0]:
            self._last = (at, millijoules)
        elif (seconds := at - self._last[0]) >= self._span:
            self.milliwatts = max(self.milliwatts, math.ceil((millijoules - self._last[1]) / seconds))
            self._last = (at, millijoules)


class Counter:
    """Microjoules of a counter since it was opened."""

    def __init__(self, counter: Callable[[], int], size: int | None, clock: Clock):
        self._counter, self._size, self._clock = counter, size, clock
        self._last = (counter(), clock())
        self._began = self._last[1]
        self._glitch: tuple[int, float] | None = None
        self.microjoules = self.low = self.high = 0
        self._noted: dict[str, int] = {}

    @property
    def detail(self) -> str:
        """Irregular readings with counts; "" if none."""
        return ", ".join(f"{what} ({count})" for what, count in self._noted.items())

    def read(self) -> None:
        """Count what came since the last reading.

        Whatever the counter raises leaves a gap for the next one.

        Raises:
            Glitch: the reading cannot be; the next one makes up for it.
        """
        reading = self._counter(), self._clock()
        span = self._since(self._last, reading) or self._from_glitch(reading) or self._reset(reading)
        if span is None:
            self._glitch = reading
            self._note("skipped a reading that no power explains")
            raise Glitch(f"the counter went from {self._last[0]} to {reading[0]} uJ, which no power explains")
        self._add(span)
        self._last, self._glitch = reading, None

    def _since(self, start: tuple[int, float], reading: tuple[int, float]) -> _Span | None:
        """Increase from one reading to another, wraps included.

        Returns None where no plausible power explains it.
        """
        seconds, step = reading[1] - start[1], reading[0] - start[0]
        most = self._most(seconds)
        over = step if step >= 0 else None if self._size is None else step + self._size
        if over is None or over > (most if step < 0 else self._most(seconds + LAG_SECONDS)):
            return None
        if self._size is None or over + self._size > most:
            return over, over, over
        self._note("may have wrapped several times in a gap")
        times = max(0, round((self._expected(seconds) - over) / self._size))
        possible = (most - over) // self._size
        return over, over + min(times, possible) * self._size, over + possible * self._size

    def _from_glitch(self, reading: tuple[int, float]) -> _Span | None:
        """Energy since the glitch, and as expected before it; None if none."""
        if self._glitch is None or (rise := self._since(self._glitch, reading)) is None:
            return None
        self._note("went on from another value")
        seconds = self._glitch[1] - self._last[1]
        return rise[0], rise[1] + self._expected(seconds), rise[2] + self._most(seconds)

    def _reset(self, reading: tuple[int, float]) -> _Span | None:
        """Energy bounds over a reset; None if impossible."""
        now, seconds = reading[0], reading[1] - self._last[1]
        most = self._most(seconds)
        if now > most or 2 * now >= self._last[0]:
            return None
        self._note("began again from zero")
        return now, max(now, min(self._expected(seconds), most)), max(now, most)

    def _add(self, span: _Span) -> None:
        self.low, self.microjoules, self.high = self.low + span[0], self.microjoules + span[1], self.high + span[2]

    def _most(self, seconds: float) -> int:
        return int(MAX_WATTS * 1e6 * seconds) + 1

    def _expected(self, seconds: float) -> int:
        """Expected energy at the mean power so far."""
        before = self._last[1] - self._began
        return int(self.microjoules / before * seconds) if before > 0 else 0

    def _note(self, what: str) -> None:
        self._noted[what] = self._noted.get(what, 0) + 1


class Integral:
    """Microjoules of sampled power (W), by the trapezoid rule.

    Over a gap of missed readings the mean of its ends is only likely: bounds then reach from nothing to `most_watts`.
    """

    def __init__(self, watts: Callable[[], float], clock: Clock = time.monotonic, most_watts: int = MAX_WATTS):
        self._watts, self._clock, self._most = watts, clock, most_watts
        self._last, self._at = watts(), clock()
        self._missed = self._gaps = 0
        self._middle = self._low = self._high = 0.0

    @property
    def microjoules(self) -> int:
        """Best estimate."""
        return int(self._middle)

    @property
    def low(self) -> int:
        """Lower bound: energy that was read."""
        return int(self._low)

    @property
    def high(self) -> int:
        """Upper bound: energy that is possible."""
        return int(self._high)

    @property
    def detail(self) -> str:
        """Number of bridged gaps; "" if none."""
        return f"bridged a gap between readings ({self._gaps})" if self._gaps else ""

    def read(self) -> None:
        """Count what came since the last reading.

        Whatever the meter raises leaves a gap for the next one.
        """
        self._missed += 1  # it stays if the meter fails
        watts, at = self._watts(), self._clock()
        seconds = at - self._at
        likely = (watts + self._last) / 2 * seconds * 1e6
        gap, self._missed = self._missed > 1, 0
        self._gaps += gap
        self._middle += likely
        self._low += 0.0 if gap else likely
        self._high += max(likely, self._most * seconds * 1e6) if gap else likely
        self._last, self._at = watts, at
