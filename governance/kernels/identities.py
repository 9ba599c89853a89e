"""64-bit text hashes for duplicate detection.

FNV-1a over the bytes (Fowler, Noll, Vo; RFC 9923), then the finaliser of MurmurHash3 (Appleby, public domain), because
FNV's high bits mix poorly and hashes are cut into ranges by them. An attacker can make two texts of one hash:
code that must know that texts are equal compares them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from governance.kernels.buffers import text_buffers
from governance.kernels.compiled import kernel


def hash_texts(texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """The hash of each text, [texts].

    Raises:
        ManifestError: a text is null.
    """
    hashes: npt.NDArray[np.uint64] = _hash(*text_buffers(texts))
    return hashes


@kernel
def _hash(data: Any, offsets: Any) -> Any:
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for place in range(len(hashes)):
        value = np.uint64(0xCBF29CE484222325)
        for index in range(offsets[place], offsets[place + 1]):
            value = (value ^ np.uint64(data[index])) * np.uint64(0x100000001B3)
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        hashes[place] = value ^ (value >> np.uint64(33))
    return hashes
