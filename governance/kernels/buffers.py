"""Arrow string columns as bytes and offsets, without copies.

`text i` is `data[offsets[i]:offsets[i + 1]]`. Also the one scan that finds the texts which need no normalisation, and
the table of what a code point is, by the Unicode version of this Python's `unicodedata`.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numba import njit

from governance.errors import ManifestError

if TYPE_CHECKING:
    import pyarrow as pa

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

NEEDS_CONTROL_REPAIR = 1  # a control character, a line end other than LF, or U+FEFF
MAY_NOT_BE_NFC = 2  # the quick check of Unicode annex 15 does not settle it

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
_DECOMPOSED_END = 0x30000  # no character from here on decomposes or combines, but that is not relied on
_JOINING_JAMO = ((0x1161, 0x1175), (0x11A8, 0x11C2))  # the vowels and the last consonants of Hangul
_LOOK = 255  # no combining class is as high
_HIGH_BITS = np.uint64(0x8080808080808080)
_BLANKS = np.uint64(0x2020202020202020)  # taken off, lowers what is below a blank to the high bit
_UNDER_DELETE = np.uint64(0x0101010101010101)  # added, lifts 127 to the high bit


def text_buffers(texts: pa.Array | pa.ChunkedArray) -> tuple[Bytes, Offsets]:
    """UTF-8 bytes and n + 1 int64 offsets of n texts.

    Raises:
        ManifestError: a text is null; the schema of a shard allows none.
    """
    import pyarrow as pa  # the process of pages, which uses this file's tables, has no need of it

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
    """Class bits of each code point (1.1 MB).

    The classes are SPACE, LETTER, UNSPACED, BULLET and PUNCTUATION, for all 0x110000 code points.
    """
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
    """Lower-case form of each code point (4.5 MB).

    Code points whose form has several are left as they are.
    """
    folded = np.arange(0x110000, dtype=np.int32)
    for point in range(0x1F000):  # scripts with case end below
        lowered = chr(point).lower()
        if len(lowered) == 1:
            folded[point] = ord(lowered)
    folded.flags.writeable = False
    return folded


@functools.cache
def canonical_classes() -> Bytes:
    """Canonical combining class of each code point (1.1 MB).

    It is 255 for those that no text in NFC holds, and those that may join a character before them: their property
    NFC_QC (Unicode annex 15, section 9) is "No" or "Maybe". A text without such characters, in which the classes of
    marks in a row do not fall, is in NFC; Python has to normalise any other.
    """
    characters = [chr(point) for point in range(_DECOMPOSED_END)]
    classes = np.full(0x110000, _LOOK, np.uint8)
    classes[:_DECOMPOSED_END] = list(map(unicodedata.combining, characters))
    for character, way in zip(characters, map(unicodedata.decomposition, characters), strict=True):
        if way and way[0] != "<":
            _, *later = (int(part, 16) for part in way.split())
            classes[later] = _LOOK
            if not unicodedata.is_normalized("NFC", character):
                classes[ord(character)] = _LOOK
    for first, last in _JOINING_JAMO:
        classes[first : last + 1] = _LOOK
    classes.flags.writeable = False
    return classes


def scan_texts(data: Bytes, offsets: Offsets) -> npt.NDArray[np.uint8]:
    """Flags per text (NEEDS_CONTROL_REPAIR, MAY_NOT_BE_NFC); 0: normalisation would change nothing."""
    flags = np.zeros(len(offsets) - 1, np.uint8)
    if len(data):
        eights = np.ndarray((max(0, len(data) - 7),), np.dtype("<u8"), data, strides=(1,))  # the word at every byte
        _scan(data, eights, offsets, canonical_classes(), flags)
    return flags


@njit(cache=True, nogil=True)
def _scan(data, eights, offsets, classes, flags):  # type: ignore[no-untyped-def]
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        flag = 0
        before = 0
        while i < end:
            if i + 8 <= end:
                word = eights[i]
                odd = (word | (word + _UNDER_DELETE)) & _HIGH_BITS | (word - _BLANKS) & ~word & _HIGH_BITS
                if odd == 0:  # eight characters of ASCII other than control characters
                    i += 8
                    before = 0
                    continue
            c = np.int64(data[i])
            width = 1
            if c < 0x80:
                if c == 127 or (c < 32 and c != 9 and c != 10):
                    flag |= NEEDS_CONTROL_REPAIR
            elif c < 0xE0:
                c, width = (c & 0x1F) << 6 | (np.int64(data[i + 1]) & 0x3F), 2
                if c < 0xA0:
                    flag |= NEEDS_CONTROL_REPAIR
            elif c < 0xF0:
                c = (c & 0x0F) << 12 | (np.int64(data[i + 1]) & 0x3F) << 6 | (np.int64(data[i + 2]) & 0x3F)
                width = 3
                if c == 0xFEFF:
                    flag |= NEEDS_CONTROL_REPAIR
            else:
                c = (c & 0x07) << 18 | (np.int64(data[i + 1]) & 0x3F) << 12
                c |= (np.int64(data[i + 2]) & 0x3F) << 6 | (np.int64(data[i + 3]) & 0x3F)
                width = 4
            mark = classes[c]
            if mark and (mark == _LOOK or mark < before):
                flag |= MAY_NOT_BE_NFC
            before = mark
            i += width
        flags[d] = flag
