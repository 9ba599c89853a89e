"""Texts that hold one of a set of characters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import uint64

from data_pipeline.kernels.words import load_8
from governance.kernels.buffers import text_buffers
from governance.kernels.code_points import decode
from governance.kernels.compiled import kernel

_HIGH = 0x8080808080808080


def holding(texts: pa.Array | pa.ChunkedArray, marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Find the texts that hold a marked character.

    `marked` has an entry for each of the 0x110000 code points; those of ASCII count as not marked.
    """
    data, offsets = text_buffers(texts)
    found = np.zeros(len(offsets) - 1, np.bool_)
    _holding(data, offsets, marked, found)
    return found


@kernel
def _holding(data, offsets, marked, found):  # type: ignore[no-untyped-def]
    for text in range(len(found)):
        i, end = offsets[text], offsets[text + 1]
        while i < end:
            if i + 8 <= end and not load_8(data, i) & uint64(_HIGH):
                i += 8
                continue
            point, width = decode(data, i, end)
            if point >= 0x80 and marked[point]:
                found[text] = True
                break
            i += width
