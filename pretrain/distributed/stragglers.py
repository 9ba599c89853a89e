"""Straggler detection from each rank's own work time.

Each rank times its own part of a step: reading rows and the forward passes, where (below ZeRO stage 3) it waits for
nobody. Whole steps would not do: the slowest rank's are everybody's. Every `engine.straggler_window_steps` steps the
times go along in a collective that is made anyway, as one whole number a rank, and are recorded: event "ranks" in
metrics.jsonl. A rank whose time is above `RATIO` times the median of the others in `WINDOWS` windows running is told:
an event "stragglers", and a warning. One rank alone records neither.

Limits: at stage 3 a forward pass waits for the parameters of others, so all ranks look equally slow there, and only
slow reading shows. On CUDA the host's time is that of launching the passes; so a pass is timed by events on the device.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from governance.log import get_logger
from pretrain.distributed.process_group import Ranks

if TYPE_CHECKING:
    import torch

RATIO = 1.25
WINDOWS = 3


def spread(seconds: Sequence[float], steps: int) -> dict[str, Any]:
    """Own work a step, of each rank and over all.

    The fields of "ranks".

    Args:
        seconds: of each rank, in all of the window.
        steps: of the window.
    """
    means = [value / steps for value in seconds]
    least, greatest = min(means), max(means)
    figures = {"seconds_least": least, "seconds_median": statistics.median(means), "seconds_greatest": greatest}
    return {"steps": steps, "seconds": means, **figures, "slowest": means.index(greatest)}


def ratios(seconds: Sequence[float]) -> list[float]:
    """Each rank's time over the median of the others'.

    1 where there is nobody else.
    """
    if len(seconds) < 2:
        return [1.0] * len(seconds)
    return [
        value / max(statistics.median([*seconds[:rank], *seconds[rank + 1 :]]), 1e-9)
        for rank, value in enumerate(seconds)
    ]


class Pace:
    """This rank's work time, and slow windows of all ranks."""

    def __init__(self, window_steps: int, ranks: Ranks, device: torch.device, record: Callable[..., None]) -> None:
        self._ranks, self._device, self._record = ranks, device, record
        self._every = window_steps if ranks.world_size > 1 else 0
        self._passes: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._steps = 0
        self._slow: dict[int, int] = {}

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Time what this rank does on its own, on the host."""
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Time a forward pass, on the device that computes it."""
        if self._device.type != "cuda":
            with self.working():
                yield
            return
        if not self._every:
            yield
            return
        begun = _mark()
        yield
        self._passes.append((begun, _mark()))

    def slots(self, step: int) -> list[int]:
        """Summands of `step`: this rank's microseconds at a window's end."""
        if not self._every:
            return []
        self._steps += 1
        if step % self._every:
            return []
        if self._passes:
            self._passes[-1][1].synchronize()  # it belongs to the step before
        seconds = self._seconds + sum(begun.elapsed_time(ended) for begun, ended in self._passes) / 1e3
        self._passes, self._seconds = [], 0.0
        ranks = self._ranks
        return [int(1e6 * seconds) if rank == ranks.rank else 0 for rank in range(ranks.world_size)]

    def tell(self, step: int, microseconds: Sequence[int]) -> None:
        """Record a window, judge it, and report persistent stragglers."""
        if not microseconds:
            return
        seconds = [value / 1e6 for value in microseconds]
        self._record("ranks", step, **spread(seconds, self._steps))
        self._steps = 0
        for rank, ratio in self.judge(ratios(seconds)):
            values = {"rank": rank, "ratio": ratio, "seconds": seconds[rank], "windows": self._slow[rank]}
            self._record("stragglers", step, **values)
            get_logger(__name__).warning(
                "train: rank %d keeps the others waiting: its own work takes %.2f times theirs, for %d steps now. Look "
                "at its node: another job, heat, a slow disk.",
                rank, ratio, self._slow[rank] * self._every,
            )  # fmt: skip

    def judge(self, found: Sequence[float]) -> list[tuple[int, float]]:
        """Count a window.

        The ranks to be told now, with their ratios: each once in `WINDOWS` slow windows running.
        """
        self._slow = {rank: self._slow.get(rank, 0) + 1 for rank, ratio in enumerate(found) if ratio > RATIO}
        return [(rank, found[rank]) for rank, windows in self._slow.items() if windows % WINDOWS == 0]


def _mark() -> Any:
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
