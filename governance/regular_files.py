"""Regular files, read whole within bounds.

Whoever may write to a folder can leave a pipe or a device there, which never ends, or a sparse file that no memory
holds.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_BYTES = 512 << 20
"""Largest JSON file that is read whole."""
NO_FILE = "it is a pipe or a device, not a file"


def read_whole(path: Path, most: int = MAX_BYTES, begin: int = 0) -> bytes:
    """The bytes of a regular file, from `begin` on.

    A file has at most `most` bytes.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is not a regular file, or is larger.
    """
    with open(path, "rb", opener=open_at_once) as handle:
        state = os.fstat(handle.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise ValueError(NO_FILE)
        if state.st_size > most:
            raise ValueError(f"it has {state.st_size:,} bytes; at most {most:,} are read")
        handle.seek(begin)
        return handle.read()


def open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
