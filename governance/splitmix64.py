"""SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): its increment and its finaliser."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def finalise(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64-bit words: every bit of the input reaches every bit out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def finalise_word(value: int) -> int:
    """Mix one 64-bit word, the lowest bits of a number."""
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
