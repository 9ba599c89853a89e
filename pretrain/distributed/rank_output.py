"""Standard error of child processes, with the last lines kept.

A child whose launcher runs in a terminal gets a terminal of its own (a pty), so that it still draws a progress bar.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import re
import sys
import termios
import threading
from collections.abc import Iterator

_LINES = 20
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TRACEBACK = "Traceback (most recent call last)"


class RankOutput:
    """One child's standard error."""

    def __init__(self, reading: int, end: int) -> None:
        self.end = end
        """Descriptor that the child writes to."""
        self.traceback = False
        """Whether it wrote a traceback of Python: an error without an explanation."""
        self._reading = reading
        self._kept: collections.deque[str] = collections.deque(maxlen=_LINES)
        self._thread = threading.Thread(target=self._pass_on, daemon=True)

    @property
    def lines(self) -> list[str]:
        """The last lines, without colours."""
        self._thread.join(1.0)  # the end of the pipe is read once the child is gone
        return list(self._kept)

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
