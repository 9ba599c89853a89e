"""A node's last look at the lease, shared by its ranks.

So that a node of any number of ranks lists the folder once a beat (`lease.py`). The file lies in /dev/shm, belongs to
this account, and holds 16 bytes: the number of the attempt and the moment of the look by the node's monotonic clock,
which all its processes share. Where there is no such folder, or the first rank is gone, each rank looks itself.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from pathlib import Path

from governance.errors import PipelineError
from governance.files import remove_file, sha256_bytes, write_bytes

SHARED_MEMORY = Path("/dev/shm")
_RECORD = struct.Struct("<qd")


class LeaseSighting:
    """The file of one run on this node."""

    def __init__(self, folder: Path) -> None:
        self._path = SHARED_MEMORY / f"assay-{os.getuid()}-{sha256_bytes(os.fsencode(folder.absolute()))[:32]}"

    def write(self, number: int, moment: float) -> None:
        """Leave that attempt `number` was seen to be the newest at `moment`.

        Nothing where that cannot be written.
        """
        if SHARED_MEMORY.is_dir():
            with contextlib.suppress(OSError, PipelineError):
                write_bytes(self._path, _RECORD.pack(number, moment))

    def read(self, number: int) -> float | None:
        """Time at which attempt `number` was last seen as newest.

        None: nobody on this node has said.
        """
        with contextlib.suppress(OSError, struct.error):
            found = self._path.lstat()
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
            if ours:  # nobody else writes it, or replaces it: a sticky folder
                of, moment = _RECORD.unpack(self._path.read_bytes())
                return float(moment) if of == number else None
        return None

    def remove(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            remove_file(self._path)
