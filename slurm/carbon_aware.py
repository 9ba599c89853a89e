"""Carbon-aware start: the hours with the least grams per kWh.

The run is assumed to draw constant power, so the mean intensity over its duration decides. Between two starts at which
an end of the run meets a step of the forecast, that mean is linear in the start. So the minimum over these starts and
the two ends of the allowed interval is the global one. Among equal starts the earliest wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate

from governance.errors import ConfigError


@dataclass(frozen=True)
class GreenStart:
    """The start that was chosen."""

    begin: datetime
    grams_per_kwh: float
    """Mean over the run, CO2e, by the forecast."""
    at_once_grams_per_kwh: float
    """The same of a run that begins now."""
    last: datetime
    """The latest start that could be looked at."""

    @property
    def saved(self) -> float:
        """Carbon saved against an immediate start, 0 to 1."""
        return 1 - self.grams_per_kwh / self.at_once_grams_per_kwh if self.at_once_grams_per_kwh else 0.0


def greenest(
    first: datetime, step: timedelta, grams_per_kwh: Sequence[float], now: datetime, latest: datetime, lasts: timedelta
) -> GreenStart:
    """Start with the least carbon between `now` and `latest`.

    Args:
        first: when the forecast's first step begins.
        step: how long each of its figures holds.
        grams_per_kwh: the figures, one per step.
        now: the earliest start.
        latest: the latest; where the forecast ends before such a run would, the last one that it covers.
        lasts: how long the run is expected to last.

    Raises:
        ConfigError: the forecast does not cover a run that begins now, so nothing can be compared.
    """
    end = first + len(grams_per_kwh) * step
    if now < first or now + lasts > end:
        raise ConfigError(
            f"the forecast covers {_stamp(first)} to {_stamp(end)}, and not a run from {_stamp(now)} to "
            f"{_stamp(now + lasts)}. Give one that does, or --expected HOURS if the run is shorter."
        )
    last = min(latest, end - lasts)
    until = [0.0, *accumulate(grams * step.total_seconds() for grams in grams_per_kwh)]

    def integral(moment: datetime) -> float:
        index, rest = divmod(moment - first, step)
        return until[index] + (grams_per_kwh[index] * rest.total_seconds() if rest else 0.0)

    def mean(start: datetime) -> float:
        return (integral(start + lasts) - integral(start)) / lasts.total_seconds()

    edges = [first + number * step for number in range(len(grams_per_kwh) + 1)]
    starts = sorted({now, last, *edges, *(edge - lasts for edge in edges)})
    begin = min((start for start in starts if now <= start <= last), key=lambda start: (round(mean(start), 9), start))
    return GreenStart(begin, mean(begin), mean(now), last)


def in_words(start: GreenStart, now: datetime) -> str:
    """The chosen start and its saving, in words."""
    if start.begin == now:
        return f"begins at once: no start until {_stamp(start.last)} is greener ({start.grams_per_kwh:.0f} g CO2e/kWh)"
    return (
        f"begins not before {_stamp(start.begin)}: {start.grams_per_kwh:.0f} g CO2e/kWh by the forecast, "
        f"{start.at_once_grams_per_kwh:.0f} if it began now ({start.saved:.0%} less)"
    )


def _stamp(moment: datetime) -> str:
    return moment.astimezone().isoformat(sep=" ", timespec="minutes")
