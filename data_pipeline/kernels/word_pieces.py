r"""FineWeb's text features: words with punctuation apart.

That code (datatrove) cuts English with spaCy and measures Gopher's, C4's and its own rules on the pieces. The cut here
follows spaCy's published rules for English without its list of exceptions: 1 or 2 pieces in 1,000 differ.

A run between white space is cut so:

- each opening or closing mark of `AFFIXES`, each symbol (So) and each currency sign is a piece; a run of full stops is
  one. But = and § do not close, + % and currency signs only after a digit, and + does not open before one. A full stop
  stays before a letter (".com"), with a single letter ("J."), after letters parted by stops ("a.m."), after a lone
  capital ("USA." loses its stop, "Ph.D." does not) and in `TITLES`; 's and its like stay whole;
- what is left is cut at ellipses, at one hyphen or dash, or two or three equal ones, before a letter, at a hyphen
  between digits, at a comma between letters, at one of :<>=/ before a letter, at one of +*^ between digits, at a full
  stop between a small letter and a capital, and before 's 've 'll 're 'm 'd n't at its end.

Features, where they differ from those of the same name in `kernels/quality.py`:

- `words`, `mean_word_length`: of pieces that are not marks alone; every other feature counts all pieces;
- `top_n_gram_share`, `duplicate_n_gram_share`: shares of all characters of the text, white space too. An n-gram counts
  with the blanks between its pieces for the first, the first of equally frequent ones counts; 0 if none occurs twice.
  For the second, the search goes on after a repeated n-gram, so that what is left of a longer repeat does not count;
- `sentences`: pieces that are one terminal end them, and so does each line;
- `line_punctuation_share`: lines whose last character is a terminal: a closing quotation mark is not one.

Price: as `kernels/quality.py`, and a pass over the characters; memory 100 bytes per byte of the longest text.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import int64, uint64

from data_pipeline.kernels.quality import first_of, repeated_words, share, table_mask
from data_pipeline.kernels.words import add_chunk, end_hash
from governance.kernels.buffers import text_buffers
from governance.kernels.code_points import TERMINALS, decode
from governance.kernels.compiled import inlined, kernel, part

PIECE_FEATURES = (
    "words",
    "mean_word_length",
    "alphabetic_word_share",
    *(f"top_{n}_gram_share" for n in range(2, 5)),
    *(f"duplicate_{n}_gram_share" for n in range(5, 11)),
    "sentences",
    "line_punctuation_share",
    "newline_ratio",
)
AFFIXES = ",:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧§%=—–+.…"
"""Marks that spaCy's rules for English cut off the ends of words, beside symbols and currency signs."""
TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Jr")

_SPACE, _LETTER, _DIGIT, _LOWER, _UPPER, _MARK, _AFFIX, _TERMINAL = 1, 2, 4, 8, 16, 32, 64, 128
_STOP, _COMMA, _PLUS, _ELLIPSIS, _APOSTROPHE, _CURLED = 46, 44, 43, 0x2026, 39, 0x2019
_N, _T = 110, 116
_TITLES = np.array([[ord(title[i]) if i < len(title) else 0 for i in range(3)] for title in TITLES], np.int32)


def measure_pieces(
    texts: pa.Array | pa.ChunkedArray, grams: bool = True
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Features (texts, PIECE_FEATURES) and numbers of pieces.

    Features of n-grams are 0 without `grams`.
    """
    data, offsets = text_buffers(texts)
    features = np.zeros((len(offsets) - 1, len(PIECE_FEATURES)))
    pieces = np.zeros(len(offsets) - 1, np.int64)
    _measure_pieces(data, offsets, _classes(), int(np.diff(offsets).max(initial=0)) + 1, grams, features, pieces)
    return features, pieces


@functools.cache
def _classes() -> npt.NDArray[np.uint8]:
    """Class bits of each of the 0x110000 code points."""
    characters = np.arange(0x110000, dtype=np.uint32).view("U1")
    classes = np.zeros(0x110000, np.uint8)
    for bit, has in (
        (_SPACE, np.strings.isspace),
        (_LETTER, np.strings.isalpha),
        (_DIGIT, np.strings.isdecimal),
        (_LOWER, np.strings.islower),
        (_UPPER, np.strings.isupper),
    ):
        classes[has(characters)] |= bit
    for point in range(0x1FB00):  # no punctuation or symbol beyond, but some emoji
        if unicodedata.category(chr(point))[0] in "PS":
            classes[point] |= _MARK | _AFFIX if is_affix(chr(point)) else _MARK
    classes[[ord(character) for character in TERMINALS]] |= _TERMINAL
    classes.flags.writeable = False
    return classes


def is_affix(mark: str) -> bool:
    """Return whether a mark can be cut off a word's end."""
    return mark in AFFIXES or unicodedata.category(mark) in ("So", "Sc")


@inlined
def _closes(points, kinds, first, mark):  # type: ignore[no-untyped-def]
    """Return whether the affix is cut off after what precedes it."""
    if points[mark] in (61, 167):  # = §
        return False
    if points[mark] in (_PLUS, 37, 36, 163, 165, 0x20AC):  # + % $ £ ¥ €
        return mark > first and kinds[mark - 1] & _DIGIT != 0
    return True


@inlined
def _keeps_stop(points, kinds, first, stop):  # type: ignore[no-untyped-def]
    """Return whether the full stop belongs to the letter before it."""
    before = kinds[stop - 1]
    if before & _LETTER and (stop - 1 == first or points[stop - 2] == _STOP):
        return True
    if stop - first in (2, 3):
        third = points[first + 2] if stop - first == 3 else 0
        for t in range(len(_TITLES)):
            if points[first] == _TITLES[t, 0] and points[first + 1] == _TITLES[t, 1] and third == _TITLES[t, 2]:
                return True
    return before & _UPPER != 0 and (stop - 1 == first or not kinds[stop - 2] & _UPPER)  # "Ⅷ" is a capital, no letter


@inlined
def _parts(points, kinds, j, k, end):  # type: ignore[no-untyped-def]
    """Return whether the mark, [j, k), separates its neighbours."""
    mark, before = points[j], kinds[j - 1]
    behind = kinds[k] if k < end else 0
    digits = before & _DIGIT and behind & _DIGIT
    if mark == _ELLIPSIS or (mark == _STOP and k - j > 1):
        return True
    if mark in (45, 0x2013, 0x2014, 126):
        return (before & (_LETTER | _DIGIT) and behind & _LETTER) or (mark == 45 and digits)
    if k - j > 1:
        return False
    if mark == _STOP:
        return before & _LOWER and behind & _UPPER
    if mark == _COMMA:
        return before & _LETTER and behind & _LETTER
    if mark in (58, 60, 61, 62, 47):
        return before & (_LETTER | _DIGIT) and behind & _LETTER
    return mark in (42, 43, 94) and digits


@inlined
def _contraction(points, j, end):  # type: ignore[no-untyped-def]
    """Start of the contraction with apostrophe at `j`, or -1."""
    a, b = (points[j + 1] if j + 1 < end else 0), (points[j + 2] if j + 2 < end else 0)
    if end - j == 2:
        if a == _T:
            return j - 1 if j > 0 and points[j - 1] == _N else -1
        return j if a in (115, 109, 100) else -1  # s m d
    if end - j == 3 and ((a == 118 and b == 101) or (a == 108 and b == 108) or (a == 114 and b == 101)):
        return j  # ve ll re
    return -1


@part
def _cut(points, kinds, first, end, starts, stops, count):  # type: ignore[no-untyped-def]
    """Append the pieces of one run; return the new count."""
    i, last = first, end
    while i < last and kinds[i] & _AFFIX:
        j = i + 1
        while points[i] == _STOP and j < last and points[j] == _STOP:
            j += 1
        if points[i] == _STOP and j == i + 1 and j < last and not kinds[j] & _AFFIX:
            break
        if points[i] in (_APOSTROPHE, _CURLED) and _contraction(points, i, last) == i:
            break
        if points[i] == _PLUS and j < last and kinds[j] & _DIGIT:
            break
        starts[count], stops[count] = i, j
        count += 1
        i = j
    while last > i and kinds[last - 1] & _AFFIX and _closes(points, kinds, i, last - 1):
        j = last - 1
        while points[j] == _STOP and j > i and points[j - 1] == _STOP:
            j -= 1
        if points[j] == _STOP and last - j == 1 and j > i and _keeps_stop(points, kinds, i, j):
            break
        last = j
    j = i
    while j < last:
        k = j + 1
        if kinds[j] & _MARK and j > i:
            while k < last and points[k] == points[j] and points[j] in (45, _STOP, 0x2014):
                k += 1
            if _parts(points, kinds, j, k, last):
                starts[count], stops[count], starts[count + 1], stops[count + 1] = i, j, j, k
                count += 2
                i = k
            elif points[j] in (_APOSTROPHE, _CURLED):
                at = _contraction(points, j, last)
                if at > i:
                    starts[count], stops[count] = i, at
                    count += 1
                    i = at
                    k = last
        j = k
    if i < last:
        starts[count], stops[count] = i, last
        count += 1
    while last < end:
        j = last + 1
        while points[last] == _STOP and j < end and points[j] == _STOP:
            j += 1
        starts[count], stops[count] = last, j
        count += 1
        last = j
    return count


@part
def _repeated_grams(count, ends, size, first, twice, gram, places, table, firsts, counts, seen, feature):  # type: ignore[no-untyped-def]
    """Shares of the most frequent n-gram and of repeated ones.

    As in `kernels/quality.py`, those n-grams alone are looked at whose two parts each occur twice.
    """
    left = 0
    for i in range(count - 1):
        gram[i] = first[i]
        seen[i] = 0
        places[left] = i
        left += twice[i] & twice[i + 1]
    for n in range(2, 11):
        if left == 0:
            return
        room = table[: table_mask(left) + 1]
        room[:] = 0
        for k in range(left):
            i = int64(places[k])
            key = (uint64(gram[i] + 1) << uint64(32)) | uint64(first[i + n - 1] + 1)
            mixed = key * uint64(0x9E3779B97F4A7C15)
            found = first_of(key, int64(mixed ^ (mixed >> uint64(32))), room, firsts, i)
            gram[i] = found
            counts[i] = 0
            counts[found] += 1
        best = int64(1)
        taken = until = int64(0)
        for k in range(left):
            i = int64(places[k])
            if n >= 5 and i >= until:
                if seen[gram[i]] == n:
                    taken += ends[i + n] - ends[i]
                    until = i + n
                seen[gram[i]] = n
            elif n < 5 and counts[i] > best:
                best = int64(counts[i])
                taken = best * (ends[i + n] - ends[i] + n - 1)
        # occurrences of one n-gram may overlap, as in "a a a"
        feature[n - 2] = min(share(taken, size), 1.0)
        kept = 0
        for k in range(left - 1):
            i = int64(places[k])
            after = int64(places[k + 1])
            places[kept] = i
            kept += (after == i + 1) & (counts[gram[i]] > 1) & (counts[gram[after]] > 1)
        left = kept


@kernel
def _measure_pieces(data, offsets, classes, capacity, grams, out, pieces):  # type: ignore[no-untyped-def]
    points, kinds = np.empty(capacity, np.int32), np.empty(capacity, np.uint8)
    starts, stops = np.empty(capacity + 1, np.int32), np.empty(capacity + 1, np.int32)
    hashes, ends = np.empty(capacity, np.uint64), np.empty(capacity + 1, np.int64)  # ends: characters before each piece
    first, gram, places = np.empty(capacity, np.int32), np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    twice, seen, counts = np.empty(capacity, np.uint8), np.empty(capacity, np.uint8), np.empty(capacity, np.int32)
    table, firsts = np.empty(table_mask(capacity) + 1, np.uint64), np.empty(table_mask(capacity) + 1, np.int32)
    ends[0] = 0
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        size = 0
        while i < end:
            point, width = decode(data, i, end)
            points[size], kinds[size] = point, classes[point]
            size += 1
            i += width
        count = sentences = lines = punctuated = line_feeds = line_begins = j = 0
        while j <= size:
            if j < size and not kinds[j] & _SPACE:
                run = j
                while j < size and not kinds[j] & _SPACE:
                    j += 1
                count = _cut(points, kinds, run, j, starts, stops, count)
                continue
            if j == size or points[j] == 10:
                line_feeds += j < size
                if count > line_begins:
                    lines += 1
                    punctuated += kinds[stops[count - 1] - 1] & _TERMINAL != 0
                    sentences += 1
                    closed = False
                    for w in range(line_begins, count):
                        kind = kinds[starts[w]]
                        if stops[w] - starts[w] == 1 and kind & _TERMINAL:
                            closed = True
                        elif closed and not kind & _MARK:
                            sentences += 1
                            closed = False
                line_begins = count
            j += 1
        words = characters = alphabetic = 0
        for w in range(count):
            h, letter, marks = uint64(0), False, True
            for k in range(starts[w], stops[w]):
                h = add_chunk(h, uint64(points[k]))
                letter |= kinds[k] & _LETTER != 0
                marks &= kinds[k] & _MARK != 0
            length = stops[w] - starts[w]
            ends[w + 1] = ends[w] + length
            hashes[w] = end_hash(h, length) | uint64(1)
            alphabetic += letter
            if not marks:
                words += 1
                characters += length
        feature = out[d]
        pieces[d] = count
        feature[0] = words
        feature[1] = share(characters, words)
        feature[2] = share(alphabetic, count)
        if grams:
            repeated_words(hashes, count, table, firsts, first, twice)
            _repeated_grams(count, ends, size, first, twice, gram, places, table, firsts, counts, seen, feature[3:12])
        feature[12] = sentences
        feature[13] = share(punctuated, lines)
        feature[14] = share(line_feeds, count)
