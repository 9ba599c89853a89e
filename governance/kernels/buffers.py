"""An Arrow string column as the kernels see it: its bytes and its offsets, without a copy where there is one chunk.

`text i` is `data[offsets[i]:offsets[i + 1]]`. Also the one scan that tells which texts need no normalisation, and
the table of what a code point is, by the Unicode version of this Python's `unicodedata`.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from governance.errors import ManifestError

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

NEEDS_CONTROL_REPAIR = 1  # a control character, a line end other than LF, or U+FEFF
MAY_NOT_BE_NFC = 2  # a code point at or above U+0300, below which every text is in NFC

SPACE = 1  # str.isspace()
LETTER = 2  # str.isalpha()
UNSPACED = 4  # a script written without spaces between words
BULLET = 8  # opens an item of a list
PUNCTUATION = 16  # beyond ASCII, parts words when duplicates are compared
UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
PUNCTUATION_RANGES = (
    (0x0080, 0x00A9),  # Latin-1 signs; ª and º are letters
    (0x00AB, 0x00B4),
    (0x00B6, 0x00B9),
    (0x00BB, 0x00BF),
    (0x1680, 0x1680),  # ogham space
    (0x2000, 0x206F),  # general punctuation: curly quotes, dashes, the ellipsis, spaces
    (0x3000, 0x303F),  # ideographic punctuation
    (0xFF00, 0xFF0F),  # full-width punctuation
    (0xFF1A, 0xFF20),
    (0xFEFF, 0xFEFF),
)
BULLETS = "-*•‣◦▪"


def text_buffers(texts: pa.Array | pa.ChunkedArray) -> tuple[Bytes, Offsets]:
    """The UTF-8 bytes and the n + 1 offsets (int64) of n texts; a slice keeps its own window.

    Raises:
        ManifestError: a text is null; the schema of a shard allows none.
    """
    if texts.null_count:
        raise ManifestError(f"{texts.null_count} text(s) are null; a document's text may be empty, not null")
    if isinstance(texts, pa.ChunkedArray):
        texts = (
            texts.chunk(0)
            if texts.num_chunks == 1
            else pa.concat_arrays(texts.chunks or [pa.array([], pa.large_string())])
        )
    texts = texts.cast(pa.large_string())
    if len(texts) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = texts.buffers()
    window = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), window


@functools.cache
def code_point_classes() -> Bytes:
    """What each of the 0x110000 code points is, as bits (SPACE, LETTER, UNSPACED, BULLET, PUNCTUATION); 1.1 MB."""
    characters = np.arange(0x110000, dtype=np.uint32).view("U1")
    classes = (SPACE * np.strings.isspace(characters) | LETTER * np.strings.isalpha(characters)).astype(np.uint8)
    for bit, ranges in ((UNSPACED, UNSPACED_RANGES), (PUNCTUATION, PUNCTUATION_RANGES)):
        for first, last in ranges:
            classes[first : last + 1] |= bit
    for character in BULLETS:
        classes[ord(character)] |= BULLET
    classes.flags.writeable = False
    return classes


@functools.cache
def lower_case() -> npt.NDArray[np.int32]:
    """Each code point's lower-case form, where that is one code point, else itself; 4.5 MB."""
    folded = np.arange(0x110000, dtype=np.int32)
    for point in range(0x1F000):  # scripts with case end below
        lowered = chr(point).lower()
        if len(lowered) == 1:
            folded[point] = ord(lowered)
    folded.flags.writeable = False
    return folded


@njit(cache=True, nogil=True)
def scan_texts(data, offsets):  # type: ignore[no-untyped-def]
    """Flags a text (NEEDS_CONTROL_REPAIR, MAY_NOT_BE_NFC); 0 says that normalisation would change nothing."""
    flags = np.zeros(len(offsets) - 1, np.uint8)
    for d in range(len(offsets) - 1):
        end = offsets[d + 1]
        flag = 0
        for i in range(offsets[d], end):
            c = data[i]
            if c >= 0xCC:
                flag |= 2
                if c == 0xEF and i + 2 < end and data[i + 1] == 0xBB and data[i + 2] == 0xBF:
                    flag |= 1
            elif c < 32:
                if c not in (9, 10):
                    flag |= 1
            elif c == 127 or (c == 0xC2 and i + 1 < end and data[i + 1] < 0xA0):
                flag |= 1
        flags[d] = flag
    return flags
