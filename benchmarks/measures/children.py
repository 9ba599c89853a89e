"""Processes that a benchmark starts: they end when it ends, however that comes (Ctrl-C, a timeout, a kill)."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from governance.processes import end_with_parent

HERE = Path(__file__).resolve().parents[2]


def ending_with_this() -> Callable[[], None]:
    """Prepare a child of this process before its program starts (`preexec_fn`)."""
    return functools.partial(end_with_parent, os.getpid())


def environment() -> Mapping[str, str]:
    """Environment with the settings that `assay` makes for itself: no rival's waiting threads spin."""
    return {**os.environ, "GOMP_SPINCOUNT": "10000", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Ended:
    """A process that ended well."""

    seconds: float
    """Wall, from before it is started until it has ended."""
    cpu_seconds: float
    """CPU-seconds of all threads and of awaited child processes."""
    printed: str


def whole(command: Sequence[str]) -> Ended:
    """Run a process from start to end.

    Raises:
        RuntimeError: it failed; with its last lines.
    """
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryFile("w+") as out:
        started = time.perf_counter()
        child = subprocess.Popen(
            list(command), cwd=HERE, stdout=out, stderr=log, env=environment(), preexec_fn=ending_with_this()
        )
        try:
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        log.seek(0)
        if child.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}: {log.read()[-3000:]}")
        return Ended(seconds, used.ru_utime + used.ru_stime, out.read())
