"""Hang watchdog: dump stacks, name the culprit rank, exit 70.

At expiry each rank writes the stacks of all its threads to `<run folder>/hangs/<attempt>/rank-00000.txt` and ends with
status 70; the launcher ends the job and restarts it from the last checkpoint. Every rank has its own watchdog, and
ranks wait for each other: so all of them expire at about the same moment, and each waits a while before it ends,
because its end would break the collectives of the others before they have written.

Heartbeats are the same on all ranks, in the same order: so their number shows the progress of a rank, and no clocks are
compared. After the wait, the lowest rank that wrote names the culprit from the files of all: the ranks that wrote none
(their process is stuck), else those with the fewest beats. Where all numbers are equal, all ranks wait in the same
place, and only the stacks show why.

On CUDA the ranks also write torch's flight recorder (the last collectives) to `rank-00000.fr`, a pickle that
`torch.distributed.flight_recorder.fr_trace` reads; elsewhere they do so if `TORCH_FR_BUFFER_SIZE` is set.

The first step, which compiles, and a save have a long limit; later steps have a short one, but never less than twenty
times the slowest measured step. Both include the time that callbacks may take, because the other ranks wait for the
first one meanwhile. Price: a beat is one assignment; the thread wakes once a second.

A main thread that never releases the interpreter's lock (a hang inside a foreign library) stops this thread too. For
that case the interpreter's own timer in C is set again at each check; it writes to standard error and ends with 1.

A pause (Ctrl-Z, SIGTSTP) is not a silence. The timer's clock runs on in a stopped process, so the thread cancels the
timer, stops the process by SIGSTOP, and leaves the pause out of the silence. It is the thread that does so, because a
main thread in a collective handles no signal until the other ranks, which may have stopped, have come.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import select
import signal
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
_MAX_NAMED = 8
_HEAD = re.compile(r"since beat (\d+): (.*)")
RECORDER = "TORCH_FR_BUFFER_SIZE"
"""Environment variable: how many collectives torch's flight recorder keeps."""
_STUCK_SECONDS = 60.0  # after the limit: until the timer in C acts for a thread that cannot


class Heartbeat:
    """The last heartbeat of this rank.

    A beat is one assignment, so the watching thread never reads half of one.
    """

    def __init__(self, first_limit: float, limit: float, more: float) -> None:
        self._first, self._limit, self._more = first_limit and first_limit + more, limit, more
        self._short = self._first  # until the first step is done
        self._slowest, self._stepped = 0.0, False
        self._paused, self._paused_before = 0.0, 0.0  # seconds in all, and until the last step
        self._last = (self._now(), "start", self._first, 0)

    def beat(self, what: str, *, long: bool = False) -> None:
        """Record the activity that begins now; every rank makes the same beats.

        `long` states that it may take as long as the first step.
        """
        self._last = (self._now(), what, self._first if long else self._short, self._last[3] + 1)

    def stepped(self, step: int, seconds: float) -> None:
        """Record a finished step; from now on the short limit holds.

        The first step compiles, and is not counted among the slowest.
        """
        seconds, self._paused_before = seconds - (self._paused - self._paused_before), self._paused
        self._slowest = max(self._slowest, seconds if self._stepped else 0.0)
        self._stepped = True
        self._short = max(self._limit, _SLOWEST_STEPS * self._slowest) + self._more if self._limit else 0.0
        self.beat(f"step {step} was done")

    def last(self) -> tuple[float, str, float]:
        """Seconds since the last beat, its label, and the limit."""
        at, what, limit, _ = self._last
        return self._now() - at, what, limit

    def paused(self, seconds: float) -> None:
        """Leave a pause out of the silence and of the step."""
        self._paused += seconds

    def _now(self) -> float:
        return time.monotonic() - self._paused

    @property
    def beats(self) -> int:
        """Number of beats so far."""
        return self._last[3]


@dataclass(frozen=True)
class HangReports:
    """Files of a run's hang reports, one per rank."""

    folder: Path
    rank: int = 0
    ranks: int = 1
    attempt: int = 1

    def file(self, rank: int, ending: str = "txt") -> Path:
        """Report of a rank."""
        return self.folder / FOLDER / f"{self.attempt:06d}" / f"rank-{rank:05d}.{ending}"


@contextlib.contextmanager
def watch_hangs(
    reports: HangReports,
    config: EngineConfig,
    hung: Callable[[float], None] = lambda silent: None,
    callback_seconds: float = 0.0,
) -> Iterator[Heartbeat]:
    """Yield a heartbeat; a silence beyond its limit ends the process.

    `hung` is called first, with the seconds of that silence. `callback_seconds` are those that the first rank's
    callbacks may take after a step.
    """
    heartbeat = Heartbeat(config.first_step_timeout_seconds, config.step_timeout_seconds, callback_seconds)
    ended = threading.Event()
    with _received() as (signals, wake):
        arguments = (heartbeat, reports, ended, hung, signals)
        thread = threading.Thread(target=_watch, args=arguments, daemon=True, name="watchdog")
        thread.start()
        try:
            yield heartbeat
        finally:
            ended.set()
            os.write(wake, b"\0")
            thread.join()
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _received() -> Iterator[tuple[int, int]]:
    """Ends of a pipe on which this process' signals arrive.

    Each is a byte, its number; a byte of 0 wakes the reader. Outside the main thread Python allows no handlers, and
    SIGTSTP stops the process as it does by default.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    main = threading.current_thread() is threading.main_thread()
    if main:
        numbers = (signal.SIGTSTP, signal.SIGCONT)
        handlers = [signal.signal(number, lambda number, frame: None) for number in numbers]
        earlier = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read, write
    finally:
        if main:
            signal.set_wakeup_fd(earlier)
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _watch(
    heartbeat: Heartbeat, reports: HangReports, ended: threading.Event, hung: Callable[[float], None], signals: int
) -> None:
    waiting = select.poll()
    waiting.register(signals, select.POLLIN)
    while not ended.is_set():
        if waiting.poll(1000 * _LOOK_SECONDS):
            arrived = os.read(signals, 4096)
            # A SIGTSTP from before a SIGCONT is over: this thread could not run, and another stopped the process.
            if arrived.rfind(signal.SIGTSTP) > arrived.rfind(signal.SIGCONT):
                _pause(heartbeat)
            continue
        silent, _, limit = heartbeat.last()
        if not limit:
            faulthandler.cancel_dump_traceback_later()
        elif silent < limit:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # no standard error to write to
                faulthandler.dump_traceback_later(limit - silent + _STUCK_SECONDS, exit=True, file=sys.__stderr__)
        else:
            hung(silent)
            _expire(heartbeat, reports, ended)


def _pause(heartbeat: Heartbeat) -> None:
    """Stop this process until it is continued."""
    faulthandler.cancel_dump_traceback_later()
    began = time.monotonic()
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # to this thread: it goes no further before the stop
    heartbeat.paused(time.monotonic() - began)


def _expire(heartbeat: Heartbeat, reports: HangReports, ended: threading.Event) -> None:
    """Write this rank's stacks; name the culprit and end.

    A rank that makes progress after all, while the others write theirs, does not end.
    """
    silent, what, limit = heartbeat.last()
    path = reports.file(reports.rank)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(Exception), atomic_file(path) as file:  # a full disk must not keep the job hanging
        head = (
            f"{stamp} rank {reports.rank} pid {os.getpid()}: no heartbeat for {silent:.0f} s "
            f"since beat {heartbeat.beats}: {what}\n\n"
        )
        file.write(head.encode())
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
    recorded = _write_flight_recorder(reports.file(reports.rank, "fr"))
    get_logger(__name__).error(
        "rank %d makes no progress: %.0f s since %r, the limit is %.0f s (engine.step_timeout_seconds, "
        "engine.first_step_timeout_seconds). Its stacks: %s%s",
        reports.rank, silent, what, limit, path, f"; its last collectives: {recorded}" if recorded else "",
    )  # fmt: skip
    if not ended.wait(min(30.0, max(2.0, 0.1 * limit))) and heartbeat.last()[0] > silent:
        if _names_culprit(reports):
            get_logger(__name__).error("Hang: %s", culprit(reports))
        os._exit(HUNG)


def _write_flight_recorder(path: Path) -> Path | None:
    """Write torch's record of the last collectives, if it keeps one."""
    if not int(os.environ.get(RECORDER, "0") or 0):
        return None
    with contextlib.suppress(Exception):  # as above: a full disk must not keep the job hanging
        from torch._C._distributed_c10d import _dump_fr_trace

        with atomic_file(path) as file:
            file.write(_dump_fr_trace())
        return path
    return None


def _names_culprit(reports: HangReports) -> bool:
    """Return whether this is the lowest rank that wrote a report.

    It alone names the culprit, so that N ranks do not read N x N files.
    """
    try:
        return not any(reports.file(rank).exists() for rank in range(reports.rank))  # the first file mostly decides
    except OSError:
        return True  # nothing can be read: better reported by every rank than by none


def culprit(reports: HangReports) -> str:
    """Ranks that the others wait for, in words."""
    beats, doing = {}, {}
    for rank in range(reports.ranks):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if found := _HEAD.search(reports.file(rank).read_text(encoding="utf-8")):
                beats[rank], doing[rank] = int(found[1]), found[2]
    silent = [rank for rank in range(reports.ranks) if rank not in beats]
    if silent:
        return f"{_named(silent)} wrote no stacks: the process is stuck, and the others wait for it"
    last = [rank for rank, count in beats.items() if count == min(beats.values())]
    if len(last) == reports.ranks:
        return f"all {reports.ranks} rank(s) wait in the same place, after {doing[last[0]]!r}: see their stacks"
    return f"{_named(last)} is stuck after {doing[last[0]]!r}, and the others are further: see its stacks"


def _named(ranks: list[int]) -> str:
    more = f" and {len(ranks) - _MAX_NAMED} more" if len(ranks) > _MAX_NAMED else ""
    return f"rank {', '.join(map(str, ranks[:_MAX_NAMED]))}{more}"
