"""Failures of a long run, and the best interval between checkpoints.

    interval    Young: sqrt(2 stall mtbf); Daly's series corrects it where the stall is not small (doi:10.1016/
                j.future.2004.11.016)
    wall        mtbf exp(restart / mtbf) (exp((interval + stall) / mtbf) - 1) work / interval, for failures that come
                independently at a constant rate (the same paper, equation 20)

A save in the background stalls training only for its copy, but counts once it is durable: a failure before that goes
back one checkpoint more, so the time to write is a part of what a failure costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """Expected failures of a run, at one interval between checkpoints."""

    mtbf: float
    """Seconds between failures of any of the nodes."""
    count: float
    restart: float
    """Seconds from a failure to the state before it was saved, without repeated steps."""
    interval: float
    """Seconds of training between checkpoints."""
    stall: float
    """Seconds that training waits for a checkpoint."""
    best: float
    """The interval that loses least."""
    wall: float
    """Seconds of the whole run."""
    work: float
    """Seconds of its steps alone."""

    @property
    def lost(self) -> float:
        """Share of the wall time not spent on steps of the run."""
        return 1.0 - self.work / self.wall


def best_interval(stall: float, mtbf: float, least: float = 0.0) -> float:
    """Seconds between checkpoints that lose least (Daly).

    `least` is the time that a save takes in the background.
    """
    ratio = stall / (2 * mtbf)
    if ratio >= 1:
        return max(least, mtbf)
    return max(least, math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall)


def wall_seconds(work: float, interval: float, stall: float, restart: float, mtbf: float) -> float:
    """Expected time of `work` seconds of steps.

    Infinite where failures come faster than a checkpoint.
    """
    interval = min(interval, work)
    exponent = (interval + stall) / mtbf
    if max(exponent, restart / mtbf) > 700:
        return math.inf
    return mtbf * math.exp(restart / mtbf) * math.expm1(exponent) * work / interval


def expected(
    work: float, interval: float, stall: float, write: float, restart: float, node_mtbf: float, nodes: int
) -> Failures:
    """Failures of a run of `work` seconds on this many nodes.

    `write` is the time until a save is durable; the next one waits for it.
    """
    mtbf = node_mtbf / nodes
    costs = restart + write
    best = min(work, best_interval(stall, mtbf, write))
    stall += max(0.0, write - min(interval, work))
    wall = wall_seconds(work, interval, stall, costs, mtbf)
    return Failures(mtbf, wall / mtbf, costs, min(interval, work), stall, best, wall, work)
