"""Unmetered time of a run's processes: imports and gaps between stages.

No figure holds its energy. Only its length is known, and a bound: the greatest mean power that the node's meters read
between two lines. Time in which another process measured the node is in that process's lines and does not count.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass

from governance.energy.counters import GreatestPower
from governance.energy.ledger import Interval, moment, seconds_covered

_LEAST_SPAN_SECONDS = 1.0  # of the readings that a greatest power is taken from; shorter ones are noise


@dataclass(frozen=True)
class Unmetered:
    """Node-seconds without a meter, and an upper bound of their energy."""

    seconds: float
    millijoules: int | None
    """None: no power of that node is known."""


def unmetered(intervals: Sequence[Interval]) -> Unmetered:
    """Unmetered time before meters opened, by node."""
    total, most = 0.0, 0
    known = True
    for host in sorted({interval.host for interval in intervals}):
        mine = [interval for interval in intervals if interval.host == host]
        seconds = _uncovered(mine)
        power = _greatest(mine)
        total += seconds
        known = known and (power > 0 or not seconds)
        most += math.ceil(power * seconds)
    return Unmetered(round(total, 3), most if known else None)


def _uncovered(intervals: Sequence[Interval]) -> float:
    """Seconds of one node before intervals that no measured interval covers.

    Spans that overlap count once.
    """
    measured = [(moment(one.started), moment(one.finished)) for one in intervals if one.millijoules is not None]
    before = [(moment(one.started) - datetime.timedelta(seconds=one.before_seconds), moment(one.started))
              for one in intervals]  # fmt: skip
    return seconds_covered([*measured, *before]) - seconds_covered(measured)


def _greatest(intervals: Sequence[Interval]) -> int:
    """The greatest mean power that a node's meters allow, in milliwatts.

    Upper bounds count where there are any.
    """
    greatest = 0
    for interval in intervals:
        power = GreatestPower(_LEAST_SPAN_SECONDS)
        for sample in interval.samples:
            value = sample.millijoules if sample.high is None else sample.high
            power.note(moment(sample.at).timestamp(), value)
        greatest = max(greatest, power.milliwatts)
    return greatest
