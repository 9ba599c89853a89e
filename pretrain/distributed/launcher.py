"""Launcher of several ranks on one machine.

torchrun exits with 1 whatever a rank's status was, so a job could not tell "preempted, requeue me" (75) from a crash;
and it dies of SIGUSR1, which Slurm sends. This launcher passes SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) on, waits for the
ranks to save, and exits with their status; after a second Ctrl-C, a second or more later, it kills them.

When a rank dies, the others wait for it endlessly or fail because of it. So the launcher gives them time to report
their errors, ends them, and names the rank that failed first: its status or signal, and its last lines. A crash or a
hang (70) is restarted from the last checkpoint; an explained error is not, because it would recur. A second crash at
the same step without a newer checkpoint ends the run too. For a hang it names the ranks that the others waited for:
those that are still running when they have ended. Ranks end with their launcher: they get SIGTERM, save and stop.

The last lines of each child's standard error are kept. A child whose launcher runs in a terminal gets a terminal of its
own (a pty), so that it still draws a progress bar.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from governance.errors import BudgetReached, PipelineError, Preempted
from governance.files import read_steps
from governance.log import get_logger
from pretrain.distributed.preemption import ONE_REQUEST_SECONDS

LAUNCHER = "ASSAY_LAUNCHER"
"""Environment variable with the process that a rank ends with, see `cli.main`."""
HUNG = 70
"""Exit status of a rank that hung, see `watchdog.py` (EX_SOFTWARE)."""
_PORTS = range(20_000, 32_768)
_GRACE_SECONDS = 40.0  # between the first end and killing the others
_EXPLAINED_SECONDS = 10.0  # the same after an explained error: the others have it too, or wait for this rank
_SAVING_SECONDS = 60.0  # the same after a stop request: they are saving
_STOP_SECONDS = 5.0  # until ranks have stopped by themselves, after Ctrl-Z
_POLL_SECONDS = 0.1
_STOP_SIGNALS = (-signal.SIGTERM, -signal.SIGHUP, -signal.SIGUSR1)
_INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)
_EXPLAINED = range(64, 79)  # sysexits.h: errors that the user can fix, and 75

Progress = tuple[int, int]
"""The last recorded step and the last saved step."""


class Rank:
    """One rank's process and its output."""

    def __init__(self, number: int, child: subprocess.Popen[bytes], output: RankOutput) -> None:
        self.number, self.child, self.output = number, child, output
        self.ended = 0.0
        """Monotonic seconds at which it ended by itself; 0: it did not."""
        self.stuck = False
        """True where it neither ended nor wrote its stacks while the others hung because of it."""
        self.alike: Sequence[Rank] = ()
        """Ranks that hung in the same way: no evidence shows which of them was the cause."""

    def look(self) -> None:
        """Record the time at which the process ended by itself."""
        if self.child.poll() is not None and not self.ended:
            self.ended = time.monotonic()

    @property
    def blocked(self) -> bool:
        """Return whether the timer in C ended it.

        A foreign library held the interpreter then, so no thread of Python could act.
        """
        return bool(self.ended) and self.child.returncode == 1 and self.output.timed_out

    @property
    def status(self) -> int:
        """Return code, as `Popen.returncode`.

        For a stuck or blocked rank it is that of the ranks that it hung.
        """
        return HUNG if self.stuck or self.blocked else self.child.returncode

    @property
    def failed(self) -> bool:
        """Return whether it failed by itself."""
        return bool(self.ended and self.child.returncode)

    @property
    def crashed(self) -> bool:
        """Return whether a restart may help: a signal, a hang, a traceback."""
        status = self.status
        if status == 1:
            return self.output.traceback  # without one, the error was explained
        return status not in (*_STOP_SIGNALS, *_INTERRUPTED, *_EXPLAINED) or status == HUNG

    def in_words(self) -> str:
        """Description of the rank's end."""
        status = self.status
        if self.stuck:
            how = "is stuck: it neither wrote its stacks nor ended while the others waited for it, and was killed"
        elif self.blocked:
            how = "hung inside a foreign library, which held the interpreter"
        elif status < 0:
            name = signal.Signals(-status).name
            more = " (by the kernel, for lack of memory, or by a kill)" if name == "SIGKILL" else ""
            how = f"was killed by {name}{more}"
        else:
            how = f"ended with status {status}" + (" (it hung)" if status == HUNG else "")
        words = f"rank {self.number} (pid {self.child.pid}) {how}"
        if not self.alike:
            return words
        others = ", ".join(f"rank {rank.number} (pid {rank.child.pid})" for rank in self.alike)
        same = all(rank.stuck == self.stuck for rank in self.alike)
        return f"{words}. {'The same holds for' if same else 'Also silent:'} {others}: any of them may be the cause"


def launch(
    processes: int, argv: Sequence[str], *, restarts: int = 0, progress_of: Callable[[], Progress] = lambda: (0, 0)
) -> int:
    """Launch ranks 0 .. processes-1 of this machine.

    Args:
        processes: number of ranks.
        argv: the arguments of `python -m pretrain`.
        restarts: of crashes; counted again after each newer checkpoint.
        progress_of: reads the run's progress, after a crash.

    Returns:
        0, or the status of the rank that failed first; 128 + n where signal n killed it.
    """
    log, restarts_left, before = get_logger(__name__), restarts, None
    while True:
        culprit, signals = _run_ranks(processes, argv)
        if culprit is None:
            return 0
        status = culprit.status
        if signals.count(signal.SIGINT) > 1 or (signals and status in _INTERRUPTED):
            return 128 + signal.SIGINT
        if status == BudgetReached.exit_code:  # it reported why, and it is not a fault
            return status
        if status == Preempted.exit_code or (signals and status in _STOP_SIGNALS):
            return Preempted.exit_code  # killed by the signal before it handled it: nothing is lost
        log.error(
            "%s. Its last lines:\n%s", culprit.in_words(), "\n".join(f"  {line}" for line in culprit.output.lines)
        )
        progress = progress_of()
        restarts_left = restarts if before and progress[1] > before[1] else restarts_left
        if not culprit.crashed or signals or not restarts_left or progress == before:
            if progress == before:
                log.error("the second crash after step %d without a newer checkpoint; not restarted", progress[0])
            return status if status > 0 else 128 - status
        restarts_left, before = restarts_left - 1, progress
        log.warning("restarting the ranks from the checkpoint of step %d; %d restarts left", progress[1], restarts_left)


def progress_in(folder: Path) -> Progress:
    """Progress of the run in this folder, by its records."""
    from pretrain.metrics.run_identity import METRICS_FILE

    lines = read_steps(folder / METRICS_FILE)
    steps = [line["step"] for line in lines if line.get("event") == "step"]
    durable = [line["step"] for line in lines if line.get("event") == "checkpoint"]
    return (steps[-1] if steps else 0), max(durable, default=0)


def _run_ranks(processes: int, argv: Sequence[str]) -> tuple[Rank | None, list[int]]:
    """The rank that failed first, and the signals that reached the launcher."""
    port = _free_port()
    signals: list[int] = []
    ranks: list[Rank] = []
    interrupts: list[float] = []
    pauses: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            interrupts.append(now)  # first of all: another signal may interrupt this handler
            if interrupts[0] is not now and now - interrupts[0] < ONE_REQUEST_SECONDS:
                return
        signals.append(number)
        # A rank inside a kernel or a collective would not see a second request.
        _send(ranks, signal.SIGKILL if signals.count(signal.SIGINT) > 1 else number)

    def pause(number: int, frame: object) -> None:
        if pauses:  # a second Ctrl-Z while the ranks stop is the same request
            return
        pauses.append(number)
        _pause(ranks)
        pauses.clear()

    with _handled(pass_on, pause), contextlib.ExitStack() as stack:
        for number in range(processes):
            ranks.append(_start(stack, _command(argv), number, _environment(number, processes, port)))
            for request in signals:  # this rank was not yet listed when they came
                _send(ranks[-1:], request)
        _wait(ranks)
    culprit = min((rank for rank in ranks if rank.failed), key=_blame, default=None)
    silent = [rank for rank in ranks if not rank.ended or rank.blocked]
    if culprit is not None and culprit.status == HUNG and silent:
        for rank in silent:
            rank.stuck = not rank.ended
        # Of ranks that hold their interpreters, the one whose timer ran out first was silent first.
        culprit, *others = sorted(silent, key=lambda rank: rank.ended or math.inf)
        culprit.alike = others
    return culprit, signals


def _command(argv: Sequence[str]) -> list[str]:
    """Command of one rank; tests put another in its place."""
    return [sys.executable, "-m", "pretrain", *argv]


def _send(ranks: Sequence[Rank], number: int) -> None:
    for rank in ranks:
        rank.child.send_signal(number)  # nothing to one that has ended


def _pause(ranks: Sequence[Rank]) -> None:
    """Stop the ranks and this process until it is continued."""
    _send(ranks, signal.SIGTSTP)  # a terminal's Ctrl-Z does not reach their groups
    deadline = time.monotonic() + _STOP_SECONDS
    while not all(map(_rests, ranks)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    _send(ranks, signal.SIGSTOP)  # to a rank whose watchdog cannot run
    os.kill(os.getpid(), signal.SIGSTOP)
    _send(ranks, signal.SIGCONT)


def _rests(rank: Rank) -> bool:
    """Return whether a rank is stopped, or has ended."""
    try:
        any_end = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, rank.child.pid, any_end) is not None
    except ChildProcessError:
        return True


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None], pause: Callable[[int, object], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, pause)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _start(stack: contextlib.ExitStack, command: Sequence[str], number: int, environment: dict[str, str]) -> Rank:
    output = stack.enter_context(open_output())
    # A group of its own: else a terminal's Ctrl-C would reach a rank twice, once directly and once passed on.
    # Standard output is for the launcher's own result; what a rank prints goes to standard error.
    child = subprocess.Popen(command, env=environment, stdout=2, stderr=output.end, process_group=0)
    rank = Rank(number, child, output)
    output.follow()
    stack.callback(_end, rank.child)
    return rank


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
        child.wait()


def _wait(ranks: Sequence[Rank]) -> None:
    """Wait for all ranks, or for the grace period."""
    deadline = float("inf")
    while any(rank.child.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        for rank in ranks:
            rank.look()
            if rank.failed and deadline == float("inf"):
                deadline = time.monotonic() + _grace(rank.child.returncode)
    for rank in ranks:
        rank.look()


def _grace(status: int) -> float:
    """Grace period after a rank's end."""
    if status in (Preempted.exit_code, BudgetReached.exit_code):
        return _SAVING_SECONDS
    return _GRACE_SECONDS if status == HUNG or status not in _EXPLAINED else _EXPLAINED_SECONDS


def _blame(rank: Rank) -> tuple[int, float]:
    """Sort key: the lowest failed first.

    Peers of a killed rank fail with a traceback of their collectives, or abort: they come last.
    """
    status = rank.status
    if status == HUNG or (status < 0 and status != -signal.SIGABRT):
        return 0, rank.ended
    return (2 if rank.crashed else 1), rank.ended


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LAUNCHER: str(os.getpid())}
    return {**os.environ, **{name: str(value) for name, value in ours.items()}, **address}


def _free_port() -> int:
    """A free port below Linux's ephemeral range (32768).

    Rank 0 listens there only once torch is loaded; until then any connection of this machine could take a port of that
    range.
    """
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise PipelineError(
        f"no port of 127.0.0.1 from {_PORTS.start} to {_PORTS.stop - 1} is free for the ranks' process group; free one"
    )


_LINES = 20
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TRACEBACK = "Traceback (most recent call last)"
_TIMED_OUT = re.compile(r"Timeout \(\d+:\d\d:\d\d[.\d]*\)!$")
"""First line of faulthandler's timer, see `watchdog.py`."""


class RankOutput:
    """One child's standard error."""

    def __init__(self, reading: int, end: int) -> None:
        self.end = end
        """Descriptor that the child writes to."""
        self.traceback = False
        """True where it wrote a traceback of Python: an error without an explanation."""
        self._timed_out = False
        self._reading = reading
        self._kept: collections.deque[str] = collections.deque(maxlen=_LINES)
        self._thread = threading.Thread(target=self._pass_on, daemon=True)

    @property
    def lines(self) -> list[str]:
        """The last lines, without colours."""
        self._thread.join(1.0)  # the end of the pipe is read once the child is gone
        return list(self._kept)

    @property
    def timed_out(self) -> bool:
        """Return whether the interpreter's timer wrote the stacks.

        It is known once the child has ended.
        """
        self._thread.join(1.0)
        return self._timed_out

    def follow(self) -> None:
        """Begin to read, once the child has its own copy of `end`."""
        os.close(self.end)
        self._thread.start()

    def close(self) -> None:
        """Stop reading, without waiting for grandchildren that hold the pipe open."""
        self._thread.join(1.0)
        if not self._thread.is_alive():
            os.close(self._reading)

    def _pass_on(self) -> None:
        rest = ""
        while chunk := self._read():
            with contextlib.suppress(OSError):
                _write_all(chunk)
            *whole, rest = re.split(r"[\r\n]+", rest + chunk.decode("utf-8", "replace"))
            self._keep(whole)
        self._keep([rest])

    def _read(self) -> bytes:
        try:
            return os.read(self._reading, 1 << 16)
        except OSError:  # how Linux ends a pty
            return b""

    def _keep(self, lines: list[str]) -> None:
        for line in lines:
            if plain := _COLOURS.sub("", line).rstrip():
                self.traceback = self.traceback or _TRACEBACK in plain
                self._timed_out = self._timed_out or _TIMED_OUT.match(plain) is not None
                self._kept.append(plain)


def _write_all(chunk: bytes) -> None:
    while chunk:
        chunk = chunk[os.write(2, chunk) :]


@contextlib.contextmanager
def open_output() -> Iterator[RankOutput]:
    """A pipe, or a pty if standard error is a terminal."""
    if sys.stderr.isatty():
        reading, end = os.openpty()
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(2, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(end, termios.TIOCSWINSZ, size)
    else:
        reading, end = os.pipe()
    output = RankOutput(reading, end)
    try:
        yield output
    finally:
        output.close()
