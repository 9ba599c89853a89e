"""Phrases and characters by which C4 rejects a page or line.

Raffel et al. 2020 (JMLR 21), section 2.2, name "lorem ipsum", the curly bracket and JavaScript; the policy phrases are
those of the code that made the corpus. The case of ASCII letters does not count, and a phrase may occur within a word.

One vectorised scan checks whether rare bytes of each phrase occur; a text where they do is searched fully.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import uint64

from data_pipeline.kernels.words import has_zero_byte, load_8
from governance.kernels.code_points import byte_at
from governance.kernels.compiled import inlined, part

POLICY_PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
PHRASES = ("lorem ipsum", "javascript", *POLICY_PHRASES)  # each of 8 bytes or more
LOREM, JAVASCRIPT, POLICY, CURLY = 1, 2, 4, 8

_TERMS, _PRIVACY, _COOKIES, _HASH, _DOTS, _ALL = 16, 32, 64, 128, 256, 511
OF_LINES = JAVASCRIPT | _TERMS | _PRIVACY | _COOKIES  # phrases that condemn their line, not the page
_MARKS = np.array([LOREM, JAVASCRIPT, _TERMS, _PRIVACY, _COOKIES, _COOKIES, _COOKIES, _COOKIES])
_BYTES = np.frombuffer("".join(PHRASES).encode(), np.uint8)
_STARTS = np.cumsum([0, *map(len, PHRASES)])
_HEADS = np.array([int.from_bytes(phrase.encode()[:8], "little") for phrase in PHRASES], np.uint64)
_ONES = 0x0101010101010101


def _spread(text: bytes) -> npt.NDArray[np.uint64]:
    """Each byte, eight times."""
    return np.array([byte * _ONES for byte in text], np.uint64)


_ELLIPSIS, _M_IP, _VASC, _OOKIE = _spread("…".encode()), _spread(b"m ip"), _spread(b"vasc"), _spread(b"ookie")
_MS_OF_U, _CY_PO = _spread(b"ms of u"), _spread(b"cy po")
_SPACES = 0x20 * _ONES
_DOT, _BRACE, _SIGN = 0x2E * _ONES, 0x7B * _ONES, 0x23 * _ONES
_REACH = 14  # bytes that one step of the scan reads


@inlined
def _lacks(w0, w1, w2, w3, pattern):  # type: ignore[no-untyped-def]
    """Per byte, 0 where the four pattern bytes start."""
    return (w0 ^ pattern[0]) | (w1 ^ pattern[1]) | (w2 ^ pattern[2]) | (w3 ^ pattern[3])


@inlined
def _dots(w0, w1, w2):  # type: ignore[no-untyped-def]
    """Not 0 if an ellipsis begins in the eight bytes."""
    three = has_zero_byte((w0 ^ uint64(_DOT)) | (w1 ^ uint64(_DOT)) | (w2 ^ uint64(_DOT)))
    return three | has_zero_byte((w0 ^ _ELLIPSIS[0]) | (w1 ^ _ELLIPSIS[1]) | (w2 ^ _ELLIPSIS[2]))


@part
def suspects(data, start, end):  # type: ignore[no-untyped-def]
    """Marks that may be present, without false negatives."""
    lorem = script = terms = privacy = cookies = curly = hashes = dots = uint64(0)
    space = uint64(_SPACES)
    last = len(data) - _REACH
    for i in range(start, last if last < end else end, 8):
        w0, w1, w2, w3 = load_8(data, i), load_8(data, i + 1), load_8(data, i + 2), load_8(data, i + 3)
        curly |= has_zero_byte(w0 ^ uint64(_BRACE))
        hashes |= has_zero_byte(w0 ^ uint64(_SIGN))
        dots |= _dots(w0, w1, w2)
        w0, w1, w2, w3 = w0 | space, w1 | space, w2 | space, w3 | space  # capitals become small, and much else changes
        w4, w6 = load_8(data, i + 4) | space, load_8(data, i + 6) | space
        lorem |= has_zero_byte(_lacks(w0, w1, w2, w3, _M_IP))
        script |= has_zero_byte(_lacks(w0, w1, w2, w3, _VASC))
        terms |= has_zero_byte(_lacks(w0, w1, w2, w3, _MS_OF_U) | (w4 ^ _MS_OF_U[4]) | (w6 ^ _MS_OF_U[6]))
        privacy |= has_zero_byte(_lacks(w0, w1, w2, w3, _CY_PO) | (w4 ^ _CY_PO[4]))
        cookies |= has_zero_byte(_lacks(w0, w1, w2, w3, _OOKIE) | (w4 ^ _OOKIE[4]))
    marks = LOREM * (lorem != 0) | JAVASCRIPT * (script != 0) | _TERMS * (terms != 0) | _PRIVACY * (privacy != 0)
    marks |= _COOKIES * (cookies != 0) | CURLY * (curly != 0) | _HASH * (hashes != 0) | _DOTS * (dots != 0)
    return _ALL if end > last else marks  # the last bytes of all are not scanned eight at a time


@part
def find_phrases(data, start, end, suspected):  # type: ignore[no-untyped-def]
    """LOREM, JAVASCRIPT and POLICY flags of a text, among `suspected`."""
    found = 0
    for p in range(len(_HEADS)):
        if not suspected & _MARKS[p]:
            continue
        size, head, first = _STARTS[p + 1] - _STARTS[p], _HEADS[p], _STARTS[p]
        for i in range(start, end - size + 1):
            if load_8(data, i) | uint64(_SPACES) == head:
                j = 0
                while j < size:
                    c = byte_at(data, i + j)
                    if (c | 32 if 65 <= c <= 90 else c) != _BYTES[first + j]:
                        break
                    j += 1
                if j == size:
                    found |= LOREM if p == 0 else JAVASCRIPT if p == 1 else POLICY
                    break
    return found


@part
def find_marks(data, start, end):  # type: ignore[no-untyped-def]
    """Marks, hash signs and ellipses of a text."""
    marks = suspects(data, start, end)
    found = find_phrases(data, start, end, marks) if marks & ~(CURLY | _HASH | _DOTS) else 0
    hashes = ellipses = 0
    if marks & (CURLY | _HASH):
        for i in range(start, end):
            hashes += byte_at(data, i) == 0x23
        for i in range(start, end):
            found |= CURLY * (byte_at(data, i) == 0x7B)
    if marks & _DOTS:
        i = start
        while i + 2 < end:
            if i + 10 < len(data) and not _dots(load_8(data, i), load_8(data, i + 1), load_8(data, i + 2)):
                i += 8
                continue
            a, b, c = byte_at(data, i), byte_at(data, i + 1), byte_at(data, i + 2)
            found_one = (a == 0x2E and b == 0x2E and c == 0x2E) or (a == 0xE2 and b == 0x80 and c == 0xA6)
            ellipses += found_one
            i += 3 if found_one else 1
    return found, hashes, ellipses


@inlined
def ends_in_ellipsis(data, start, end):  # type: ignore[no-untyped-def]
    """Return whether the bytes end in "..." or "…"."""
    if end - start < 3:
        return False
    a, b, c = byte_at(data, end - 3), byte_at(data, end - 2), byte_at(data, end - 1)
    return (a == 46 and b == 46 and c == 46) or (a == 0xE2 and b == 0x80 and c == 0xA6)
