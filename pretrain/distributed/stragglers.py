"""Straggler detection from each rank's own work time.

Each rank times its own part of a step: reading rows and the forward passes, where (below ZeRO stage 3) it waits for no
other rank. Whole steps would not do: all ranks take as long as the slowest. Every `engine.straggler_window_steps` steps
the times travel in a collective that runs anyway, as one integer per rank, and are recorded: event "ranks" in
metrics.jsonl. A rank whose time is above `RATIO` times the median of the others in `WINDOWS` consecutive windows is
reported: an event "stragglers", and a warning. A single rank records neither.

Limits: at stage 3 a forward pass waits for the parameters of other ranks, so all ranks look equally slow and only slow
reading shows. Where ranks divide experts, a pass waits for their tokens, and only reading is timed. On CUDA the host
only launches the passes; so events on the device time them.
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
    """Work a step of each rank, and its spread.

    The fields of the event "ranks".

    Args:
        seconds: of each rank, over the whole window.
        steps: of the window.
    """
    means = [value / steps for value in seconds]
    least, greatest = min(means), max(means)
    figures = {"seconds_least": least, "seconds_median": statistics.median(means), "seconds_greatest": greatest}
    return {"steps": steps, "seconds": means, **figures, "slowest": means.index(greatest)}


def ratios(seconds: Sequence[float]) -> list[float]:
    """Each rank's time over the median of the others'.

    The ratio is 1 for a single rank.
    """
    if len(seconds) < 2:
        return [1.0] * len(seconds)
    return [
        value / max(statistics.median([*seconds[:rank], *seconds[rank + 1 :]]), 1e-9)
        for rank, value in enumerate(seconds)
    ]


class StragglerMonitor:
    """Work time of this rank, and slow windows of all ranks."""

    def __init__(
        self,
        window_steps: int,
        ranks: Ranks,
        device: torch.device,
        record: Callable[..., None],
        times_passes: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._ranks, self._device, self._record, self._times_passes = ranks, device, record, times_passes
        self._every = window_steps if ranks.world_size > 1 else 0
        self._passes: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._steps = -1  # of this window; the first call of `slots` begins the first one
        self._slow: dict[int, int] = {}

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Time this rank's own work on the host."""
        began = self._clock()
        yield
        self._seconds += self._clock() - began

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Time a forward pass, on the device that computes it."""
        if not self._every or not self._times_passes:
            yield
            return
        if self._device.type != "cuda":
            with self.working():
                yield
            return
        begun = _mark()
        yield
        self._passes.append((begun, _mark()))

    def slots(self, step: int) -> list[int]:
        """Summands of `step`: this rank's microseconds at a window's end.

        It is called once the rows of `step` are read. The first call begins the first window: what was read until then
        belongs to a step without a pass before it.
        """
        if not self._every:
            return []
        self._steps += 1
        if self._steps == 0:
            self._seconds = 0.0
            return []
        if step % self._every:
            return []
        if self._passes:
            self._passes[-1][1].synchronize()  # it belongs to the step before
        seconds = self._seconds + sum(begun.elapsed_time(ended) for begun, ended in self._passes) / 1e3
        self._passes, self._seconds = [], 0.0
        ranks = self._ranks
        return [int(1e6 * seconds) if rank == ranks.rank else 0 for rank in range(ranks.world_size)]

    def report(self, step: int, microseconds: Sequence[int]) -> None:
        """Record a window, and report persistent stragglers."""
        if not microseconds:
            return
        seconds = [value / 1e6 for value in microseconds]
        self._record("ranks", step, **spread(seconds, self._steps))
        self._steps = 0
        for rank, ratio in self.judge(ratios(seconds)):
            values = {"rank": rank, "ratio": ratio, "seconds": seconds[rank], "windows": self._slow[rank]}
            self._record("stragglers", step, **values)
            get_logger(__name__).warning(
                "train: rank %d keeps the others waiting: its own work has taken more than %.2f times theirs in %d "
                "windows of %d steps, last %.2f times. Check its node: another job, heat, a slow disk.",
                rank, RATIO, self._slow[rank], self._every, ratio,
            )  # fmt: skip

    def judge(self, found: Sequence[float]) -> list[tuple[int, float]]:
        """Count a window; return the ranks to report now, with their ratios.

        Each is reported once in `WINDOWS` consecutive slow windows.
        """
        self._slow = {rank: self._slow.get(rank, 0) + 1 for rank, ratio in enumerate(found) if ratio > RATIO}
        return [(rank, found[rank]) for rank, windows in self._slow.items() if windows % WINDOWS == 0]


def _mark() -> Any:
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
