"""`mallopt`: keep freed memory in the process (glibc)."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER = -1
_LARGEST = 32 << 20  # a piece that is larger is always mapped, whatever `piece_bytes` is


def keep_freed_memory(most_bytes: int | None = None, piece_bytes: int = _LARGEST) -> None:
    """Make glibc keep freed memory (`mallopt`).

    Has no effect on other C libraries.

    Args:
        most_bytes: kept at the end of the heap; None: all.
        piece_bytes: pieces from this size on are mapped and handed back each by itself.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    set_option(_M_TRIM_THRESHOLD, _NEVER if most_bytes is None else most_bytes)
    set_option(_M_MMAP_THRESHOLD, piece_bytes)
