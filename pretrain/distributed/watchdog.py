"""Hang watchdog: dump stacks, name the culprit rank, exit 70.

At expiry each rank writes the stacks of all its threads to `<run folder>/hangs/<attempt>/rank-00000.txt` and ends with
status 70; the launcher takes the job down and starts it again from the last checkpoint. Every rank has a watchdog of
its own, and ranks wait for each other: so all of them expire at about the same moment, and each waits a while before it
ends, because its end would break the collectives of the others before they have written.

Ranks beat in step: each makes the same beats in the same order, so the number of its beats says how far a rank is, and
no clocks are compared. When the wait is over the lowest rank that wrote names the culprit from the files of all: the
ranks that wrote none (their process stands still), else those with the fewest beats; where all have the same number
they wait in the same place, and the stacks must tell.

On CUDA the ranks also write torch's flight recorder (the last collectives) to `rank-00000.fr`, a pickle that
`torch.distributed.flight_recorder.fr_trace` reads; elsewhere they do where `TORCH_FR_BUFFER_SIZE` is set.

The first step, which compiles, and a save have a long limit; a step after it a short one, but never less than twenty
times the slowest step that was measured. Price: a beat is one store; the thread wakes once a second.

A main thread that never gives back the interpreter's lock (a hang inside a foreign library) stops this thread too. For
that there is the interpreter's own timer in C, armed anew at each look; it writes to standard error and ends with 1.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from governance.files import atomic_file
from governance.log import get_logger
from pretrain.config.training import EngineConfig
from pretrain.distributed.launcher import HUNG

FOLDER = "hangs"
_LOOK_SECONDS = 1.0
_SLOWEST_STEPS = 20.0
_MOST_NAMED = 8
_HEAD = re.compile(r"since beat (\d+): (.*)")
RECORDER = "TORCH_FR_BUFFER_SIZE"
"""The environment's name for how many collectives torch's flight recorder keeps."""
_STUCK_SECONDS = 60.0  # after the limit: when the timer in C speaks for a thread that cannot


class Heartbeat:
    """The last sign of life of this rank.

    Each is one store, so the watching thread never sees half of one.
    """

    def __init__(self, first_limit: float, limit: float) -> None:
        self._first, self._limit = first_limit, limit
        self._short = first_limit  # until the first step is done
        self._slowest, self._stepped = 0.0, False
        self._last = (time.monotonic(), "start", first_limit, 0)

    def beat(self, what: str, *, long: bool = False) -> None:
        """Say what begins now.

        `long`: it may take as long as the first step. Every rank makes the same beats.
        """
        self._last = (time.monotonic(), what, self._first if long else self._short, self._last[3] + 1)

    def stepped(self, step: int, seconds: float) -> None:
        """Step `step` is done, in `seconds`; what follows has the short limit.

        The first one compiles: not counted.
        """
        self._slowest = max(self._slowest, seconds if self._stepped else 0.0)
        self._stepped = True
        self._short = max(self._limit, _SLOWEST_STEPS * self._slowest) if self._limit else 0.0
        self.beat(f"step {step} was done")

    def last(self) -> tuple[float, str, float]:
        """Seconds since the last beat, its label, and the limit."""
        at, what, limit, _ = self._last
        return time.monotonic() - at, what, limit

    @property
    def beats(self) -> int:
        """The number of beats so far."""
        return self._last[3]


@dataclass(frozen=True)
class HangReports:
    """Folder for hang reports, and the other ranks."""

    folder: Path
    """Of the run."""
    rank: int = 0
    ranks: int = 1
    attempt: int = 1
    """The same on all ranks."""

    def file(self, rank: int, ending: str = "txt") -> Path:
        """The file of a rank."""
        return self.folder / FOLDER / f"{self.attempt:06d}" / f"rank-{rank:05d}.{ending}"


@contextlib.contextmanager
def watch_hangs(
    place: HangReports, config: EngineConfig, hung: Callable[[float], None] = lambda silent: None
) -> Iterator[Heartbeat]:
    """Yield the heart to beat.

    While the context lasts, a silence beyond the limit ends the process.

    `hung` is told the seconds of that silence first.
    """
    heart = Heartbeat(config.first_step_timeout_seconds, config.step_timeout_seconds)
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(heart, place, ended, hung), daemon=True, name="watchdog")
    thread.start()
    try:
        yield heart
    finally:
        ended.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def _watch(heart: Heartbeat, place: HangReports, ended: threading.Event, hung: Callable[[float], None]) -> None:
    while not ended.wait(_LOOK_SECONDS):
        silent, _, limit = heart.last()
        if not limit:
            faulthandler.cancel_dump_traceback_later()
        elif silent < limit:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # no standard error to write to
                faulthandler.dump_traceback_later(limit - silent + _STUCK_SECONDS, exit=True, file=sys.__stderr__)
        else:
            hung(silent)
            _expire(heart, place, ended)


def _expire(heart: Heartbeat, place: HangReports, ended: threading.Event) -> None:
    """Write this rank's stacks.

    Name the culprit and end, unless it goes on after all while the others write theirs.
    """
    silent, what, limit = heart.last()
    path = place.file(place.rank)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(Exception), atomic_file(path) as file:  # a full disk must not keep the job hanging
        head = (
            f"{stamp} rank {place.rank} pid {os.getpid()}: no sign of life for {silent:.0f} s "
            f"since beat {heart.beats}: {what}\n\n"
        )
        file.write(head.encode())
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
    recorded = _write_flight_recorder(place.file(place.rank, "fr"))
    get_logger(__name__).error(
        "rank %d makes no progress: %.0f s since %r, the limit is %.0f s (engine.step_timeout_seconds, "
        "engine.first_step_timeout_seconds). Its stacks: %s%s",
        place.rank, silent, what, limit, path, f"; its last collectives: {recorded}" if recorded else "",
    )  # fmt: skip
    if not ended.wait(min(30.0, max(2.0, 0.1 * limit))) and heart.last()[0] > silent:
        if _speaks(place):
            get_logger(__name__).error("Hang: %s", culprit(place))
        os._exit(HUNG)


def _write_flight_recorder(path: Path) -> Path | None:
    """Write torch's record of the last collectives, where it keeps one."""
    if not int(os.environ.get(RECORDER, "0") or 0):
        return None
    with contextlib.suppress(Exception):  # as above: evidence, never a reason to stay
        from torch._C._distributed_c10d import _dump_fr_trace

        with atomic_file(path) as file:
            file.write(_dump_fr_trace())
        return path
    return None


def _speaks(place: HangReports) -> bool:
    """Return whether this rank names the culprit.

    The lowest that wrote, so that N ranks do not read N x N files.
    """
    try:
        return not any(place.file(rank).exists() for rank in range(place.rank))  # the first file mostly ends it
    except OSError:
        return True  # nothing can be read there: better said by each than by none


def culprit(place: HangReports) -> str:
    """Ranks that the others wait for, in words."""
    beats, doing = {}, {}
    for rank in range(place.ranks):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if found := _HEAD.search(place.file(rank).read_text(encoding="utf-8")):
                beats[rank], doing[rank] = int(found[1]), found[2]
    silent = [rank for rank in range(place.ranks) if rank not in beats]
    if silent:
        return f"{_named(silent)} wrote no stacks: the process stands still, and the others wait for it"
    last = [rank for rank, count in beats.items() if count == min(beats.values())]
    if len(last) == place.ranks:
        return f"all {place.ranks} rank(s) stand in the same place, after {doing[last[0]]!r}: see their stacks"
    return f"{_named(last)} stands after {doing[last[0]]!r}, which the others have left behind: see its stacks"


def _named(ranks: list[int]) -> str:
    more = f" and {len(ranks) - _MOST_NAMED} more" if len(ranks) > _MOST_NAMED else ""
    return f"rank {', '.join(map(str, ranks[:_MOST_NAMED]))}{more}"
