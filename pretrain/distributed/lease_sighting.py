"""A node's last check of the lease, shared by its ranks.

With it a node of any number of ranks lists the lease's folder once a beat (`lease.py`). The file is in /dev/shm,
belongs to this account, and holds 16 bytes: the number of the attempt, and the time of the check by the node's
monotonic clock, which all its processes share. Without /dev/shm, or once the first rank is gone, each rank checks for
itself. A kill leaves the file behind; the next start on the node removes those of this account that were not refreshed
for a day.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import time
from pathlib import Path

from governance.errors import PipelineError
from governance.files import remove_file, sha256_bytes, write_bytes

SHARED_MEMORY = Path("/dev/shm")
_RECORD = struct.Struct("<qd")
_STALE_SECONDS = 86_400.0  # a living run refreshes its file each few seconds


class LeaseSighting:
    """Sighting file of one run on this node."""

    def __init__(self, folder: Path) -> None:
        self._prefix = f"assay-{os.getuid()}-"
        self._path = SHARED_MEMORY / f"{self._prefix}{sha256_bytes(os.fsencode(folder.absolute()))[:32]}"

    def sweep(self) -> None:
        """Remove files of killed runs: this account's, not refreshed for a day."""
        for path in SHARED_MEMORY.glob(f"{self._prefix}*"):
            with contextlib.suppress(OSError):
                found = path.lstat()
                ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
                if ours and time.time() - found.st_mtime > _STALE_SECONDS:
                    remove_file(path)

    def write(self, number: int, moment: float) -> None:
        """Record that attempt `number` was the newest at `moment`, if possible."""
        if SHARED_MEMORY.is_dir():
            with contextlib.suppress(OSError, PipelineError):
                write_bytes(self._path, _RECORD.pack(number, moment))

    def read(self, number: int) -> float | None:
        """Time at which attempt `number` was last the newest, if known."""
        with contextlib.suppress(OSError, struct.error):
            found = self._path.lstat()
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
            if ours:  # in a sticky folder no other account can write or replace it
                of, moment = _RECORD.unpack(self._path.read_bytes())
                return float(moment) if of == number else None
        return None

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            remove_file(self._path)
