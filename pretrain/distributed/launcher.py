"""Launcher of several ranks on one machine.

torchrun answers 1 whatever a rank's status was, so a job could not tell "preempted, put me back" (75) from a crash; and
it dies of SIGUSR1, which is what Slurm sends. This launcher passes SIGTERM and SIGUSR1 on, waits for the ranks to save,
and gives back their status.

When a rank dies, the others wait for it for ever or fail because of it. So the launcher gives them some time to
say what they have to say, ends them, and names the rank that began it: its status or signal, and its last lines. A
crash or a hang (70) is started again from the last checkpoint; an error that was explained is not, for it would be the
same again. A second crash at the same step without a newer checkpoint ends it too. Of a hang the rank is named that
the others waited for: one that still stands when they have ended. Ranks end with their launcher, however that ends:
they get SIGTERM, save and leave.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from governance.errors import BudgetReached, PipelineError, Preempted
from governance.files import read_lines
from governance.log import get_logger
from pretrain.distributed.rank_output import Output, open_output

LAUNCHER = "ASSAY_LAUNCHER"
"""Tells a rank the process that it ends with, see `cli.main`."""
HUNG = 70
"""Exit status of a rank that hung, see `watchdog.py` (EX_SOFTWARE)."""
_PORTS = range(20_000, 32_768)
_GRACE_SECONDS = 40.0  # between the first end and killing the others
_EXPLAINED_SECONDS = 10.0  # the same where the first one explained why: the others have it too, or wait in vain
_SAVING_SECONDS = 60.0  # the same where the first one was told to leave: they are saving
_POLL_SECONDS = 0.1
_TOLD_TO_END = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGUSR1)
_EXPLAINED = range(64, 79)  # sysexits.h: the user's to mend, and 75

Standing = tuple[int, int]
"""The last step that was recorded, and the last that was saved."""


class Rank:
    """A process, and what it says."""

    def __init__(self, number: int, child: subprocess.Popen[bytes], output: Output) -> None:
        self.number, self.child, self.output = number, child, output
        self.ended = 0.0
        """When it ended by itself (monotonic seconds); 0: it did not."""
        self.stands = False
        """Whether it neither ended nor wrote its stacks while the others hung because of it."""

    def look(self) -> None:
        """Note an end."""
        if self.child.poll() is not None and not self.ended:
            self.ended = time.monotonic()

    @property
    def status(self) -> int:
        """Return code of the rank, as `Popen.returncode`.

        Of a rank that stands still it is the others' status.
        """
        return HUNG if self.stands else self.child.returncode

    @property
    def failed(self) -> bool:
        """Return whether it ended by itself, and badly."""
        return bool(self.ended and self.child.returncode)

    @property
    def crashed(self) -> bool:
        """Return whether another try may help: a signal, a hang, a traceback."""
        status = self.status
        if status == 1:
            return self.output.traceback  # without one, the error was explained
        return status not in _TOLD_TO_END and (status == HUNG or status not in (*_EXPLAINED, 130))

    def in_words(self) -> str:
        """The end of a rank, in words."""
        status = self.status
        if self.stands:
            how = "stands still: it neither wrote its stacks nor ended while the others waited for it, and was killed"
        elif status < 0:
            name = signal.Signals(-status).name
            more = " (the kernel, for want of memory, or somebody's kill)" if name == "SIGKILL" else ""
            how = f"was killed by {name}{more}"
        else:
            how = f"ended with status {status}" + (" (it hung)" if status == HUNG else "")
        return f"rank {self.number} (pid {self.child.pid}) {how}"


def launch(
    processes: int,
    words: Sequence[str],
    *,
    restarts: int = 0,
    standing: Callable[[], Standing] = lambda: (0, 0),
) -> int:
    """Launch ranks 0 .. processes-1 of this machine.

    Args:
        processes: how many ranks.
        words: the command line after `python -m pretrain`.
        restarts: how often a crash is tried again; counted from the last time that a newer checkpoint stood.
        standing: how far the run is; asked after a crash.

    Returns:
        0, or the status of the rank that began the end; 128 + n where signal n killed it.
    """
    log, left, before = get_logger(__name__), restarts, None
    while True:
        culprit, told = _once(processes, words)
        if culprit is None:
            return 0
        status = culprit.status
        if status == BudgetReached.exit_code:  # it said why, and it is no fault
            return status
        if status == Preempted.exit_code or (
            told and status in _TOLD_TO_END
        ):  # before it could listen: nothing is lost
            return Preempted.exit_code
        log.error(
            "%s. Its last lines:\n%s", culprit.in_words(), "\n".join(f"  {line}" for line in culprit.output.lines)
        )
        now = standing()
        left = restarts if before and now[1] > before[1] else left
        if not culprit.crashed or told or not left or now == before:
            if now == before:
                log.error("the second crash after step %d without a newer checkpoint; not started again", now[0])
            return status if status > 0 else 128 - status
        left, before = left - 1, now
        log.warning("starting the ranks again from the checkpoint of step %d; %d restarts left", now[1], left)


def standing_of(folder: Path) -> Standing:
    """Progress of the run in this folder, by its records."""
    from pretrain.metrics.run_identity import METRICS_FILE

    lines = list(read_lines(folder / METRICS_FILE))
    steps = [line["step"] for line in lines if line.get("event") == "step"]
    durable = [line["step"] for line in lines if line.get("event") == "checkpoint"]
    return (steps[-1] if steps else 0), max(durable, default=0)


def _once(processes: int, words: Sequence[str]) -> tuple[Rank | None, bool]:
    """Rank whose failure came first, and whether a signal ended it."""
    port = _free_port()
    told: list[int] = []
    ranks: list[Rank] = []

    def pass_on(number: int, frame: object) -> None:
        told.append(number)
        for rank in ranks:
            if rank.child.poll() is None:
                rank.child.send_signal(number)

    with _handled(pass_on), contextlib.ExitStack() as stack:
        for number in range(processes):
            ranks.append(_start(stack, _command(words), number, _environment(number, processes, port)))
        _wait(ranks)
    culprit = min((rank for rank in ranks if rank.failed), key=_blame, default=None)
    silent = [rank for rank in ranks if not rank.ended]
    if culprit is not None and culprit.status == HUNG and silent:
        culprit = silent[0]
        culprit.stands = True
    return culprit, bool(told)


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pretrain", *words]


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _start(stack: contextlib.ExitStack, command: Sequence[str], number: int, environment: dict[str, str]) -> Rank:
    output = stack.enter_context(open_output())
    rank = Rank(number, subprocess.Popen(command, env=environment, stderr=output.end), output)
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
    """The lowest began it.

    The peers of a killed rank fail with a traceback of their collectives, or abort: last.
    """
    status = rank.child.returncode
    if status == HUNG or (status < 0 and status != -signal.SIGABRT):
        return 0, rank.ended
    return (2 if rank.crashed else 1), rank.ended


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LAUNCHER: str(os.getpid())}
    return {**os.environ, **{name: str(value) for name, value in ours.items()}, **meeting}


def _free_port() -> int:
    """A free port below Linux's ephemeral range (32768).

    Rank 0 listens there only once torch is loaded. Until then any connection of this machine could have taken a port
    that the system chose.
    """
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise PipelineError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} of 127.0.0.1 is free for the ranks to meet")
