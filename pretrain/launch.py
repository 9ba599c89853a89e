"""Several training processes on this machine, as one command: what `torchrun --standalone` does, with our exit codes.

torchrun answers 1 whatever a rank's status was, so a job could not tell "preempted, put me back" (75) from a crash; and
it dies of SIGUSR1, which is what Slurm sends. This launcher passes SIGTERM and SIGUSR1 on, waits for the ranks to save,
and gives back their status; when one rank fails, it ends the others, which would wait for it for ever.
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
from collections.abc import Sequence

from governance.errors import PipelineError

_PORTS = range(20_000, 32_768)
_GRACE_SECONDS = 60.0  # between asking the other ranks to leave and killing them
_POLL_SECONDS = 0.1


def launch(processes: int, words: Sequence[str]) -> int:
    """Run `python -m pretrain WORDS` as ranks 0 .. processes-1 of this machine; the status of the first that failed."""
    port = _free_port()
    ranks = [
        subprocess.Popen([sys.executable, "-m", "pretrain", *words], env=_environment(rank, processes, port))
        for rank in range(processes)
    ]

    def pass_on(number: int, frame: object) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        return _wait(ranks)
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    failed, deadline = 0, float("inf")
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        if not failed:
            failed = next((rank.returncode for rank in ranks if rank.returncode), 0)
            if failed:
                deadline = time.monotonic() + _GRACE_SECONDS
        time.sleep(_POLL_SECONDS)
    return failed or next((rank.returncode or 1 for rank in ranks if rank.returncode != 0), 0)


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**os.environ, **{name: str(value) for name, value in ours.items()}, **meeting}


def _free_port() -> int:
    """A port that is free now, of those that Linux gives to nobody by itself (it does so from 32768 on).

    Rank 0 listens there only once torch is loaded. Until then any connection of this machine could have taken a port
    that the system chose.
    """
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise PipelineError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} of 127.0.0.1 is free for the ranks to meet")
