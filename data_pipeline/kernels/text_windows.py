"""Windows spread over whole texts, for kernels that read samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Integers = npt.NDArray[np.int64]

_NEAR = 40  # bytes; scripts without blanks have none so near


def spread_windows(
    data: npt.NDArray[np.uint8], offsets: Integers, whole: int, windows: int, characters: int
) -> tuple[Integers, Integers, Integers]:
    """Start, end and text of evenly spread windows, in order.

    A text of up to `whole` characters is one window. A longer one is cut into `windows` stretches of equal bytes, each
    with a window of up to `characters` characters at its start, or after the first blank near it.
    """
    count = len(offsets) - 1
    starts, ends, texts = (np.zeros(windows * count, np.int64) for _ in range(3))
    made = _spread(data, offsets, whole, windows, characters, starts, ends, texts)
    return starts[:made], ends[:made], texts[:made]


@njit(nogil=True, cache=True)
def _spread(data, offsets, whole, windows, characters, starts, ends, texts):  # type: ignore[no-untyped-def]
    made = 0
    for text in range(len(offsets) - 1):
        first, last = offsets[text], offsets[text + 1]
        short = _after(data, first, last, whole) == last
        stretches = 1 if short else windows
        for stretch in range(stretches):
            start = _aligned(data, first + (last - first) * stretch // stretches, last)
            stop = _aligned(data, first + (last - first) * (stretch + 1) // stretches, last)
            blank = start
            while stretch and blank < min(start + _NEAR, stop) and data[blank] > 32:
                blank += 1
            if blank < min(start + _NEAR, stop):
                start = blank
            starts[made] = start
            ends[made] = stop if short else _after(data, start, stop, characters)
            texts[made] = text
            made += 1
    return made


@njit(inline="always")
def _aligned(data, i, last):  # type: ignore[no-untyped-def]
    """Start of the first character at or after byte `i`."""
    while i < last and data[i] & 0xC0 == 0x80:
        i += 1
    return i


@njit(inline="always")
def _after(data, start, end, characters):  # type: ignore[no-untyped-def]
    """End of the first `characters` characters."""
    i, left = start, characters
    while i < end and left > 0:
        i += 1
        while i < end and data[i] & 0xC0 == 0x80:
            i += 1
        left -= 1
    return i
