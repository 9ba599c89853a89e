"""Compilation time of kernels at their first use on a machine.

Compiled kernels are kept on disk, so this is minutes once and nothing later. Forecasts leave it out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event

_LOGGER = logging.getLogger("assay.governance.first_use")  # `log.py` imports this module
_SECONDS = [0.0]  # seconds of this process and, as wall time, of its workers
_SAID: list[bool] = []  # whether the message was logged
_THEN: list[Callable[[], None]] = []  # called once each, when the first compilation begins
_BEGAN: list[Event] = []  # set in a worker when it begins to compile, so that its parent can report it


def compile_seconds() -> float:
    """Seconds spent on compilation so far."""
    return _SECONDS[0]


def add_compile_seconds(seconds: float) -> None:
    """Count seconds of compilation."""
    _SECONDS[0] += seconds


def announce_to(began: Event) -> None:
    """Make a worker set this event when it begins to compile."""
    _BEGAN.append(began)


@contextlib.contextmanager
def when_compiling(call: Callable[[], None]) -> Iterator[None]:
    """Call this once, when the block begins to compile a kernel."""
    _THEN.append(call)
    try:
        yield
    finally:
        if call in _THEN:
            _THEN.remove(call)


def compilation_begins() -> None:
    """Report that kernels are being compiled, here or through the parent."""
    for began in _BEGAN:
        began.set()
    if not _BEGAN:
        say_compiling()


def say_compiling() -> None:
    """Log the message, once per process, and call what waits for it."""
    if not _SAID:
        _SAID.append(True)
        _LOGGER.info("compiling kernels for this machine, once; this may take minutes, which no time left includes")
    while _THEN:
        _THEN.pop()()
