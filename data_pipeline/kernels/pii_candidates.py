"""Candidate positions of personal data, in one pass over the bytes.

Promises: every finding of `data_pipeline.pii.redact` begins from a candidate; the pass is linear in the bytes whatever
they are (each byte is read a bounded number of times); candidates are counted in characters of their own text, so the
rules read a decoded text without counting again.

The kinds, and the stretch that a candidate covers:

    AT       the `@` between two bytes other than blanks
    SPELT    the bracket of "(at)", "[at]", "<at>", "{at}", also with a blank inside; the bare words "AT" and "dot"
    DIGITS   a run: groups of digits with one to three separators between two of them; at most 101 groups
    WORD     a word of ASCII letters and digits that has the length and the digits of an identifier
    ACCOUNT  a word that begins with two letters and two digits of an account number
    HEX      a run of hexadecimal digits and colons with five colons, or with "::" and two
    MAC      the first of six pairs of hexadecimal digits with hyphens between, or of three fours with dots
    KEY      a word with the first bytes of a known key or token
    ASSIGNED a value after `=` or `:` whose name ends like "key", "token", "secret", "password"
    PEM      "-----BEGIN"
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from numba import int64, njit, uint64

from data_pipeline.kernels.words import below_mask, load_8, lowest_byte
from governance.kernels.buffers import Bytes, Offsets
from governance.kernels.code_points import byte_at
from governance.kernels.compiled import inlined, kernel

AT, SPELT, DIGITS, WORD, ACCOUNT, HEX, MAC, KEY, ASSIGNED, PEM = range(10)
Candidates = npt.NDArray[np.int64]
"""Rows of (text, kind, first character, character after the last), by text; n x 4."""

_DIGIT, _UPPER, _LOWER, _SEPARATOR, _HEXADECIMAL, _SIGN, _HEAD = 1, 2, 4, 8, 16, 32, 64
_HEADS = (
    "AKIA", "ASIA", "ABIA", "ACCA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "xoxa", "xoxb", "xoxp", "xoxr", "xoxs",
    "xoxe", "xapp", "AIza", "sk_l", "sk_t", "rk_l", "rk_t", "whse", "eyJ", "glpa", "npm_", "pypi", "sk-",
    "hf_", "SG.", "github_p", "GOCS", "ya29", "AGE-", "ATAT", "ATCT", "ATBB", "dapi", "doo_", "dop_", "dor_", "dckr",
    "dp.", "sl.", "glsa", "glc_", "glpt", "gldt", "glrt", "glso", "glag", "lin_", "key-", "NRAK", "NRII", "PMAK",
    "rubygems", "shpa", "shpc", "shpp", "shps", "sq0", "EAAA", "SK", "hvs.", "hvb.", "hvr.", "hooks.s", "discord.",
    "discorda", "pscale_", "pul-", "ntn_", "sntr", "sbp_", "gsk_", "pplx", "xkey", "EZAK", "EZTK", "AA", "atlasv1.",
    "MD", "MT", "Mj", "Mz", "ND", "NT", "Nj", "Nz", "OD", "OT",
)  # fmt: skip
_ONES, _HIGH = 0x0101010101010101, 0x8080808080808080
_SECRET_ENDS = ("key", "ken", "ret", "ord", "swd", "pwd", "ass", "ial", "uth", "ion")


@functools.cache
def _tables() -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Byte classes, marks, their first two bytes, name suffixes."""
    classes = np.zeros(256, np.uint8)
    for first, last, bit in (("0", "9", _DIGIT), ("A", "Z", _UPPER), ("a", "z", _LOWER)):
        classes[ord(first) : ord(last) + 1] |= bit
    for letter in "0123456789abcdefABCDEF":
        classes[ord(letter)] |= _HEXADECIMAL
    for letter in " ()./-":
        classes[ord(letter)] |= _SEPARATOR
    for letter in "@:=-([<{":
        classes[ord(letter)] |= _SIGN
    for letter in {text[0] for text in _HEADS}:
        classes[ord(letter)] |= _HEAD
    heads = np.zeros((len(_HEADS), 8), np.uint8)
    pairs = np.zeros(1 << 16, np.uint8)
    for row, text in enumerate(_HEADS):
        heads[row, : len(text)] = np.frombuffer(text.encode(), np.uint8)
        pairs[ord(text[0]) << 8 | ord(text[1])] = 1
    ends = np.array([list(text.encode()) for text in _SECRET_ENDS], np.uint8)
    return classes, heads, pairs, ends


@njit(cache=True, nogil=True)
def _separator_bytes(data, i, end, classes):  # type: ignore[no-untyped-def]
    """Length of the separator at `i` in bytes, or 0."""
    c = data[i]
    if c < 128:
        return 1 if classes[c] & 8 else 0
    if c == 0xC2 and i + 1 < end and data[i + 1] == 0xA0:
        return 2
    if c == 0xE2 and i + 2 < end:
        b, a = data[i + 1], data[i + 2]
        if b == 0x80 and a in (0x87, 0x89, 0x90, 0x91, 0x92, 0x93, 0xAF):  # thin blanks, hyphens, figure dash, en dash
            return 3
        if b == 0x88 and a == 0x92:  # the minus sign
            return 3
    return 0


@njit(cache=True, nogil=True)
def _put(out, total, text, kind, first, last):  # type: ignore[no-untyped-def]
    """Write a candidate if there is room; the new count."""
    if total < len(out):
        out[total, 0], out[total, 1], out[total, 2], out[total, 3] = text, kind, first, last
    return total + 1


@njit(cache=True, nogil=True)
def _colons(data, i, end, classes):  # type: ignore[no-untyped-def]
    """End of a run of hex digits and colons, with colon counts."""
    j, colons, double = i, 0, False
    while j < end and (classes[data[j]] & 16 or data[j] == 58):
        if data[j] == 58:
            colons += 1
            double = double or (j > i and data[j - 1] == 58)
        j += 1
    return j, colons, double


@njit(cache=True, nogil=True)
def _are_hyphens(data, j):  # type: ignore[no-untyped-def]
    """Return whether five hyphens occur three bytes apart, from `j`."""
    return data[j] == data[j + 3] == data[j + 6] == data[j + 9] == data[j + 12] == 45


@njit(cache=True, nogil=True)
def _is_secret_name(data, begin, i, ends):  # type: ignore[no-untyped-def]
    """Return whether the name before `i` ends like a secret's."""
    j = i
    while j > begin and i - j < 3 and data[j - 1] in (32, 34, 39, 93, 96):
        j -= 1
    if j - begin < 3:
        return False
    for row in range(len(ends)):
        if ends[row, 2] == data[j - 1] | 32 and ends[row, 1] == data[j - 2] | 32 and ends[row, 0] == data[j - 3] | 32:
            return True
    return False


@njit(cache=True, nogil=True)
def _has_head(data, i, end, heads):  # type: ignore[no-untyped-def]
    """Return whether one of the heads begins at `i`."""
    for row in range(len(heads)):
        k = 0
        while k < 8 and heads[row, k] and i + k < end and heads[row, k] == data[i + k]:
            k += 1
        if k == 8 or not heads[row, k]:
            return True
    return False


@njit(cache=True, nogil=True)
def _run(data, k, end, classes):  # type: ignore[no-untyped-def]
    """The run of digits at `k`.

    It is its end in bytes, its characters, its digits, and the single dots between its groups.
    """
    place, found, groups, dots = 0, 0, 1, 0
    while True:
        while k < end and classes[data[k]] & 1:
            k, place, found = k + 1, place + 1, found + 1
        if groups == 101:
            break
        m, gap = k, 0
        while m < end and gap < 3:
            width = _separator_bytes(data, m, end, classes)
            if not width:
                break
            m, gap = m + width, gap + 1
        if not gap or m >= end or not classes[data[m]] & 1:
            break
        dots += gap == 1 and data[k] == 46
        k, place, groups = m, place + gap, groups + 1
    return k, place, found, dots


@inlined
def _word(data, i, end):  # type: ignore[no-untyped-def]
    """End of a run of ASCII letters and digits, with its digits."""
    j, digits = i, 0
    while j + 8 <= end:
        chunk = load_8(data, j)
        low = chunk & ~uint64(_HIGH)
        small = low | uint64(0x20 * _ONES)
        numbers = (low + uint64(0x50 * _ONES)) & ~(low + uint64(0x46 * _ONES)) & ~chunk & uint64(_HIGH)
        letters = (small + uint64(0x1F * _ONES)) & ~(small + uint64(0x05 * _ONES)) & ~chunk & uint64(_HIGH)
        others = (letters | numbers) ^ uint64(_HIGH)
        if others:
            count = lowest_byte(others)
            return j + count, digits + _bytes_in(numbers & below_mask(count))
        digits += _bytes_in(numbers)
        j += 8
    while j < end:
        c = byte_at(data, j)
        number, letter = 48 <= c <= 57, 97 <= c | 32 <= 122
        if not number | letter:
            break
        digits += number
        j += 1
    return j, digits


@inlined
def _bytes_in(bits):  # type: ignore[no-untyped-def]
    """Number of bytes whose highest bit is set; no other bit is."""
    return int64((bits >> uint64(7)) * uint64(_ONES) >> uint64(56))


@kernel
def _scan(data, offsets, classes, heads, pairs, ends, out):  # type: ignore[no-untyped-def]
    """Write the candidates to `out` as far as it has room.

    Return how many there are.
    """
    total = 0
    for text in range(len(offsets) - 1):
        begin, end = offsets[text], offsets[text + 1]
        i, chars, run_until, hex_until = begin, 0, begin, begin
        while i < end:
            c = byte_at(data, i)
            kind = classes[c]
            if not kind & 7:
                if kind & 32:
                    if c == 64:
                        if begin < i < end - 1 and data[i - 1] > 32 and data[i + 1] > 32:
                            total = _put(out, total, text, 0, chars, chars + 1)
                    elif c == 58 or c == 61:  # : =
                        opens = i == begin or not classes[data[i - 1]] & 7
                        if c == 58 and opens and i >= hex_until and i + 2 < end and data[i + 1] == 58:
                            hex_until, colons, double = _colons(data, i, end, classes)
                            if hex_until - i > 2:
                                total = _put(out, total, text, 5, chars, chars + (hex_until - i))
                        if _is_secret_name(data, begin, i, ends):
                            j = i + 1
                            while j < end and j < i + 5 and data[j] in (32, 34, 39, 61, 62, 96):
                                j += 1
                            if j < end and (classes[data[j]] & 7 or data[j] in (43, 47)):  # Base64 has + and /
                                total = _put(out, total, text, 8, chars + (j - i), chars + (j - i))
                    elif c == 45:
                        if i + 9 < end and data[i + 4] == 45 and data[i + 5] == 66 and data[i + 9] == 78:
                            total = _put(out, total, text, 9, chars, chars + 5)
                    else:  # an opening bracket
                        j = i + 1
                        if j < end and data[j] == 32:
                            j += 1
                        if j < end and (data[j] | 32) == 97:
                            j += 1
                            if j + 1 < end and (data[j] | 32) == 116 and data[j + 1] in (32, 41, 93, 62, 125):
                                total = _put(out, total, text, 1, chars, chars + 1)
                        elif j + 1 < end and data[j] == 64 and data[j + 1] in (32, 41, 93, 62, 125):
                            total = _put(out, total, text, 1, chars, chars + 1)
                chars += (c & 0xC0) != 0x80
                i += 1
                continue
            # A word: ASCII letters and digits. It never begins inside another.
            j, digits = _word(data, i, end)
            length = j - i
            # No branch within a condition: each would be foretold wrongly for many words.
            after, second = byte_at(data, min(j, end - 1)), byte_at(data, min(i + 1, end - 1))
            signed = (after == 58) | (after == 45) & (length == 2) | (after == 46) & (length == 4)
            if (j < end) & (kind & 16 != 0) & (i >= hex_until) & (length <= 4) & signed:
                if after == 58:
                    hex_until, colons, double = _colons(data, i, end, classes)
                    if colons >= 5 or (double and colons >= 2):
                        total = _put(out, total, text, 5, chars, chars + (hex_until - i))
                elif after == 46:
                    if j + 10 <= end and data[j + 5] == 46:
                        total = _put(out, total, text, 6, chars, chars + 14)
                elif j + 15 <= end and _are_hyphens(data, j):
                    total = _put(out, total, text, 6, chars, chars + 17)
            at = (length == 2) & (c == 65) & (second == 84)
            dot = (length == 3) & (c | 32 == 100) & (second | 32 == 111) and data[i + 2] | 32 == 116
            if (at | dot) & (begin < i) & (j < end) and data[i - 1] == after == 32:  # AT, dot, DOT
                total = _put(out, total, text, 1, chars, chars + length)
            if digits and digits < length:
                letters = length >= 4 and not (classes[data[i]] | classes[data[i + 1]]) & 1
                if letters and classes[data[i + 2]] & classes[data[i + 3]] & 1:
                    total = _put(out, total, text, 4, chars, chars + length)
                if (digits >= 4 and 7 <= length <= 18) or length == 16 or 25 <= length <= 74:
                    total = _put(out, total, text, 3, chars, chars + length)
            is_key = (length >= 8) | (j < end) & ((after == 45) | (after == 46) | (after == 95))
            if is_key & (kind & 64 != 0) & (pairs[c << 8 | second] != 0) and _has_head(data, i, end, heads):
                total = _put(out, total, text, 7, chars, chars + length)
            # Runs of digits begin anywhere, also inside a word; their end may be beyond this word's.
            if digits and j > run_until:
                k = max(i, run_until)
                while k < j:
                    if not classes[data[k]] & 1:
                        k += 1
                        continue
                    stop, wide, found, dots = _run(data, k, end, classes)
                    letter = False
                    if found == 6 and stop + 1 < end:
                        letter = 65 <= (data[stop + (data[stop] in (32, 45))] & 0xDF) <= 68
                    if found >= 7 or dots >= 3 or letter:
                        first = chars + (k - i)
                        total = _put(out, total, text, 2, first, first + wide)
                    k = stop
                run_until = k
            i, chars = j, chars + length
    return total


def scan(data: Bytes, offsets: Offsets) -> Candidates:
    """The candidates of the texts `data[offsets[i]:offsets[i + 1]]`, by text.

    Within a text they are about in its order.
    """
    classes, heads, pairs, ends = _tables()
    length = int(offsets[-1] - offsets[0])
    out = np.empty((length // 64 + 256, 4), np.int64)
    total = int(_scan(data, offsets, classes, heads, pairs, ends, out))
    if total > len(out):  # a text made to have many: count first, then read again with the room it takes
        out = np.empty((total, 4), np.int64)
        _scan(data, offsets, classes, heads, pairs, ends, out)
    return out[:total]
