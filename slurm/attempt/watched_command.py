"""A command of an attempt, its output, and signals meanwhile.

Slurm signals every process of the job: this one survives, to read the command's last messages and to record its end.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from types import FrameType

from slurm.attempt.job_attempt import say

_LINES_KEPT = 1000
_LINE_BYTES = 1 << 16
_PIPE_DRAIN_SECONDS = 5
"""Seconds that the output is read after the end: an orphan may keep the pipe open."""
_LOOK_SECONDS = 0.5
_EVENTS: SimpleQueue[int | None] = SimpleQueue()
"""Signals, and None for the end of the command; a queue that a signal handler may write to."""
WORDS: dict[int, str] = {
    signal.SIGUSR1: "signalled to stop before the time limit",
    signal.SIGTERM: "signalled to stop (SIGTERM)",
}


def hear_signals() -> None:
    """Queue SIGUSR1 and SIGTERM from now on."""
    for number in WORDS:
        signal.signal(number, _hear)


def ignore_signals() -> None:
    """Ignore signals in this process and in the commands that it starts.

    The commands that read the outcome must finish, so that the end is recorded.
    """
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)


def _hear(number: int, frame: FrameType | None) -> None:
    _EVENTS.put(number)


def watch(
    words: Sequence[str],
    environment: Mapping[str, str],
    on_signal: Callable[[subprocess.Popen[bytes], int], bool],
    relevant: re.Pattern[str] | None = None,
) -> tuple[int, list[str]]:
    """Run a command; return its exit status and last output.

    With `relevant`, only the lines that match it are kept. `on_signal` gets each signal, and returns whether to go on
    waiting for the command's end.
    """
    try:
        command = subprocess.Popen(
            words, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        say(f"assay: {words[0]}: {error.strerror}")
        return (127 if isinstance(error, FileNotFoundError) else 126), [f"{words[0]}: {error.strerror}"]
    kept: deque[str] = deque(maxlen=_LINES_KEPT)
    reader = threading.Thread(target=_read, args=(command, kept, relevant), daemon=True)
    reader.start()
    threading.Thread(target=_await_end, args=(command,), daemon=True).start()
    while (event := _next_event()) is not None:
        if not on_signal(command, event):
            return 128 + event, list(kept)
    reader.join(_PIPE_DRAIN_SECONDS)
    status = command.returncode
    return (status if status >= 0 else 128 - status), list(kept)


def _next_event() -> int | None:
    """Wait for the next event.

    Python runs a handler between two of its instructions: that of a signal which comes just before the wait runs when
    the wait ends. So no wait is long.
    """
    while True:
        with contextlib.suppress(Empty):
            return _EVENTS.get(timeout=_LOOK_SECONDS)


def _await_end(command: subprocess.Popen[bytes]) -> None:
    command.wait()
    _EVENTS.put(None)


def _read(command: subprocess.Popen[bytes], kept: deque[str], relevant: re.Pattern[str] | None) -> None:
    assert command.stdout is not None
    rest = b""
    while piece := os.read(command.stdout.fileno(), _LINE_BYTES):
        with contextlib.suppress(OSError):  # a disk that refuses the log must not stop the command
            os.write(1, piece)
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[-_LINE_BYTES:]
        for line in lines:
            _keep(line, kept, relevant)
    _keep(rest, kept, relevant)


def _keep(line: bytes, kept: deque[str], relevant: re.Pattern[str] | None) -> None:
    text = line.decode("utf-8", "ignore")
    if text and (relevant is None or relevant.search(text)):
        kept.append(text)
