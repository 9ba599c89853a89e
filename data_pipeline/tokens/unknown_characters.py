"""Characters as the library sees them, and those younger than its Unicode.

`tokenizers` (Unicode 16) takes the younger for no letters, gigatoken (17) for what they are, so words and ids can
differ. Texts with one go through the library. A test compares the two on all other characters.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt


def all_characters() -> str:
    """Every code point of planes 0 to 3 and 14, but surrogates.

    The other planes are unassigned or for private use, so of one class.
    """
    points = np.arange(4 << 16, dtype="<u4")
    parts = points[:0xD800], points[0xE000:], (14 << 16) + points[: 1 << 16]
    return np.concatenate(parts).tobytes().decode("utf-32-le")


@functools.cache
def unknown_characters() -> npt.NDArray[np.bool_]:
    """Marks of the code points that the library does not know.

    There is one for each of the 0x110000. Those of planes 4 to 13, which are unassigned, count as unknown; those for
    private use as known.
    """
    unknown = np.zeros(0x110000, np.bool_)
    unknown[4 << 16 : 14 << 16] = True
    unknown[_points(_without(r"\P{Cn}+"))] = True
    unknown.flags.writeable = False
    return unknown


def known_characters() -> str:
    """Those of `all_characters` that the library knows, in their order."""
    return _without(r"\p{Cn}+")


@functools.cache
def library_classes() -> npt.NDArray[np.uint8]:
    """Class bits, as the library sees them, of all 0x110000 code points."""
    from data_pipeline.kernels.gpt2_words import LETTER, NUMBER, SPACE

    classes = np.zeros(0x110000, np.uint8)
    for bit, others in ((SPACE, r"\S+"), (LETTER, r"\P{L}+"), (NUMBER, r"\P{N}+")):
        classes[_points(_without(others))] |= bit
    classes.flags.writeable = False
    return classes


def _without(expression: str) -> str:
    """Leave the matches of the library's expression out of `all_characters`."""
    from tokenizers import Regex, normalizers

    return str(normalizers.Replace(Regex(expression), "").normalize_str(all_characters()))


def _points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
