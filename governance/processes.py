"""Child processes that end with their parent, SIGKILL included."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent ends


def end_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Get signal `number` when process `parent`, which started this one, ends.

    At once if it has ended already. Linux only; no effect elsewhere.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it ended before this request
        os.kill(os.getpid(), number)
