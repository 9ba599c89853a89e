"""Child processes that end with their parent; Ctrl-C; time limits; uncollected imports."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

_PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent ends


def end_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Get signal `number` when process `parent`, which started this one, ends.

    The signal comes at once if the parent has ended already. Linux only; no effect elsewhere.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it ended before this request
        os.kill(os.getpid(), number)


_interrupts: list[float] = []  # when this process got SIGINTs
_ONE_INTERRUPT_SECONDS = 1.0  # one Ctrl-C may come twice, from the terminal and from a parent


def count_interrupts() -> None:
    """Note each SIGINT, and raise KeyboardInterrupt as Python does.

    One that comes a second or more after the first ends the process at once, and its workers with it. A process that
    ignores SIGINT, as one in the background of a script does, keeps to that.
    """
    _interrupts.clear()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if _interrupts and now - _interrupts[0] >= _ONE_INTERRUPT_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        _interrupts.append(now)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def pass_on_interrupt() -> None:
    """Raise KeyboardInterrupt if one was raised before, and lost.

    Python drops an exception in a callback from C, a finalizer or a compiler's thread, and goes on.
    """
    if _interrupts:
        raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold SIGINT back, also from processes that are started meanwhile.

    Those never get the signal and inherit no handler; this process gets it at the end.
    """
    held: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    swaps = callable(handler) and threading.current_thread() is threading.main_thread()
    if swaps:  # the mask is a thread's: one that reaches another thread is handled in this one
        signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if swaps:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in code that runs longer.

    Where the code swallows the error, raises it again each second and at the end. Only Python
    code is interrupted; code that swallows every error in an endless loop never ends, and outside the main thread there
    is no limit. With 0 there is no limit.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    expired = []

    def expire(number: int, frame: object) -> None:
        expired.append(number)
        raise TimeoutError(f"no answer after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # libraries retry what raised, and own code may swallow it
    try:
        yield
        if expired:  # too late, whatever the code made of the error
            raise TimeoutError(f"no answer after {seconds:g} seconds")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import modules without collecting garbage.

    What they make stays, so later collections do not examine it either, until `gc.unfreeze`. Where nothing was imported
    nothing is frozen: what died before, such as a first engine, would never be freed.
    """
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if enabled:
            gc.enable()
