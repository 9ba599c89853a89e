r"""Words, sentences and list matches of a text, in one pass.

A *word* is that of `words.py`: a run of letters, digits, underscores and marks after Unicode NFC and full case folding,
one character in a script without spaces. The walk needs NFC; `buffers.scan_texts` names the few texts that may not be
in it. Two words of such a script are adjacent unless a mark of punctuation is between them.

A *sentence* has a word, and ends

- at a blank line (LF, blanks, LF);
- at a terminal beyond ASCII (。 ؟ । ...), whatever follows;
- at `.`, `!`, `?` or `…`, with more of them and closing marks behind, before white space or the end of the text; but at
  full stops and ellipses not where a small letter follows (Unicode annex 29, rule SB8), and not at a single full stop
  after a word of one letter ("J. Doe", "U.S. law"; Latin, Greek, Cyrillic, Armenian) or one of `ABBREVIATIONS`.

So "She took plan B. He left." is treated as one sentence, a German "3. Mai" for two. A heading without punctuation ends
at its blank line; a single line end parts nothing, since many texts break their lines within sentences.

A word is known by a 64-bit hash of its folded code points, and equal hashes count as equal words: with 10^4 listed
words the chance that a given other word is mistaken for one is below 10^-15.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from numba import uint64

from governance.kernels.buffers import SPACE as IS_SPACE
from governance.kernels.buffers import UNSPACED, code_point_classes
from governance.kernels.code_points import CLOSERS, TERMINALS, byte_at, decode
from governance.kernels.compiled import inlined, kernel, part
from governance.kernels.word_lookup import KATAKANA_RANGES, PASSED_RANGES, READ_AS, combining_marks

SPACE, SOFT, STRONG, CLOSER, LOWER = 1, 2, 4, 8, 16
ALONE, KATAKANA, MARK = 32, 64, 128
_NO_INITIALS = 0x0590  # scripts from here on write no initials with a full stop
ABBREVIATIONS = (
    "bzw", "ca", "capt", "cf", "col", "dhr", "dott", "dr", "dra", "eg", "fig", "gen", "gov", "hon", "hr", "ie", "jr",
    "lt", "mevr", "mlle", "mme", "mr", "mrs", "ms", "nr", "prof", "rep", "rev", "sen", "sgt", "sig", "sr", "sra",
    "srta", "st", "ste", "vgl", "vol", "vs",
)  # fmt: skip
_FOLDING_END = 0x1F000  # scripts with case end below
_SEED = 0x9E3779B97F4A7C15
_STEP = 0xFF51AFD7ED558CCD
_LAST = 0xC4CEB9FE1A85EC53

Tables = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int32], npt.NDArray[np.uint64]]


@functools.cache
def word_tables() -> Tables:
    """Look-up tables of the scan (5.6 MB).

    Returns:
        `points`: of each code point its folded form where that is one character of a word, 0 where it is none or
        is in a script without spaces, and the negative row in `several` where it folds to more, or to nothing (row
        1). `signs`: bits of each. `several`: up to three of a row, -1 for anything outside words. The hashes of
        `ABBREVIATIONS`.
    """
    characters = np.arange(0x110000, dtype=np.uint32).view("U1")
    in_word = np.strings.isalnum(characters)
    in_word[[ord("_"), *combining_marks()]] = True
    points = np.where(in_word, np.arange(0x110000), 0).astype(np.int32)
    several = [[0, 0, 0], [0, 0, 0]]
    for first, last in PASSED_RANGES:
        points[first : last + 1] = -1
    points[list(READ_AS)] = list(READ_AS.values())
    for point in range(_FOLDING_END):
        if points[point] == -1 or point in READ_AS:
            continue
        folded = chr(point).casefold()
        if len(folded) == 1:
            points[point] = ord(folded) if in_word[ord(folded)] else 0
        else:
            points[point] = -len(several)
            row = [ord(one) if in_word[ord(one)] else -1 for one in folded]
            several.append(row + [0] * (3 - len(row)))
    signs = _signs(characters)
    points[signs & (ALONE | KATAKANA) > 0] = 0
    points.flags.writeable = False
    names = tuple(hash_word(np.frombuffer(name.encode(), np.uint8).astype(np.int64)) for name in ABBREVIATIONS)
    return points, signs, np.array(several, np.int32), np.array(names, np.uint64)


def _signs(characters: npt.NDArray[np.str_]) -> npt.NDArray[np.uint8]:
    signs = (code_point_classes() & IS_SPACE).astype(np.uint8)
    signs[np.strings.islower(characters)] |= LOWER
    signs[list(combining_marks())] |= MARK
    for first, last in KATAKANA_RANGES:
        signs[first : last + 1] |= KATAKANA
    alone = (code_point_classes() & UNSPACED > 0) & np.strings.isalnum(characters) & (signs & (KATAKANA | MARK) == 0)
    signs[alone] |= ALONE
    for text, bit in ((TERMINALS[3:], STRONG), (TERMINALS[:3] + "…", SOFT), (CLOSERS, CLOSER)):
        for character in text:
            signs[ord(character)] |= bit
    signs.flags.writeable = False
    return signs


@inlined
def _add(h, point):  # type: ignore[no-untyped-def]
    h = (h ^ uint64(point)) * uint64(_STEP)
    return h ^ (h >> uint64(32))


@inlined
def _finished(h):  # type: ignore[no-untyped-def]
    """The hash of a word, never 0."""
    h *= uint64(_LAST)
    h ^= h >> uint64(29)
    return h | uint64(h == 0)


@kernel
def hash_word(points):  # type: ignore[no-untyped-def]
    """The hash of a word's folded code points (int64)."""
    h = uint64(_SEED)
    for point in points:
        h = _add(h, point)
    return _finished(h)


@inlined
def _look_up(h, keys, numbers):  # type: ignore[no-untyped-def]
    """The number of a listed word, or -1."""
    mask = len(keys) - 1
    at = int(h) & mask
    while keys[at] != 0:
        if keys[at] == h:
            return numbers[at]
        at = (at + 1) & mask
    return -1


@inlined
def _noted(h, words, sentences, hits, count, listed):  # type: ignore[no-untyped-def]
    """Write a listed word; return the number of hits."""
    number = _look_up(h, listed[0], listed[1])
    if number < 0:
        return count
    word, place, sentence = hits
    if count < len(word):
        word[count], place[count], sentence[count] = number, words, sentences
    return count + 1


@part
def _run_of_ends(data, i, end, signs, short):  # type: ignore[no-untyped-def]
    """Position after closing marks from `i`, and whether a sentence ends.

    `short` states that the word before is an abbreviation or one letter.
    """
    j, marks, strong, soft = i, 0, False, True
    while j < end:
        point, width = decode(data, j, end)
        sign = signs[point]
        if sign & 6:
            marks += 1
            strong |= (sign & 4) != 0
            soft &= point == 46 or point == 0x2026
        elif not sign & 8:
            break
        j += width
    if strong or j >= end:
        return j, True
    point, width = decode(data, j, end)
    if not signs[point] & 1 or (soft and short and marks == 1):
        return j, False
    k = j
    while soft and k < end:
        point, width = decode(data, k, end)
        if not signs[point] & 1:
            return j, (signs[point] & 16) == 0
        k += width
    return j, True


@inlined
def _is_short(h, size, last, abbreviations):  # type: ignore[no-untyped-def]
    """Return whether a full stop after this word may be an abbreviation."""
    if size == 1:
        return last < _NO_INITIALS and not 48 <= last <= 57
    found = False
    for place in range(len(abbreviations)):
        found |= abbreviations[place] == h
    return found


@inlined
def _behind_blanks(data, i, end):  # type: ignore[no-untyped-def]
    """Behind the blanks that follow the line end at `i`."""
    i += 1
    while i < end and (byte_at(data, i) == 32 or byte_at(data, i) == 9 or byte_at(data, i) == 13):
        i += 1
    return i


@part
def _unspaced(data, span, tables, listed, hits, counts):  # type: ignore[no-untyped-def]
    """The words in a row of scripts without spaces.

    Args:
        data: as `scan` has them.
        span: the first byte of the first, and the text's end.
        tables: as `scan` has them.
        listed: as `scan` has them.
        hits: as `scan` has them.
        counts: hits, place of the first word, sentence.

    Returns:
        The number of hits, the place after the last word, the byte after it, and whether a mark of punctuation
        follows.
    """
    points, signs, several, _ = tables
    (i, end), (count, place, sentence) = span, counts
    point, width = decode(data, i, end)
    kind = signs[point] & 96
    while kind:
        h, own = uint64(_SEED), kind
        while kind:
            h, i = _add(h, point), i + width
            kind = 0
            while i < end:
                point, width = decode(data, i, end)
                kind = signs[point] & 96
                if not signs[point] & 128 and points[point] != -1:
                    break
                if points[point] > 0:
                    h = _add(h, points[point])
                i, kind = i + width, 0
            if own == 32 or kind != own:
                break
        count = _noted(_finished(h), place, sentence, hits, count, listed)
        place += 1
    if i >= end or signs[point] & 1:
        return count, place, i, False
    folded = points[point]
    return count, place, i, folded == 0 or (folded < 0 and several[-folded, 0] < 0)


@part
def scan(data, start, end, tables, listed, hits, ends):  # type: ignore[no-untyped-def]
    """The listed words of one text, in order.

    Args:
        data: UTF-8 bytes in NFC; the text is `data[start:end]`.
        start: its first byte.
        end: after its last.
        tables: of `word_tables`.
        listed: an open-addressing table: the hashes of words (0: empty), and their numbers.
        hits: three arrays to write to: number of the word, its place, and which sentence of the text it is in. Words
            that may form one phrase have places in succession.
        ends: to write to: the byte after each sentence.

    Returns:
        The hits, words and sentences of the text. Those beyond the end of the arrays are counted and not
        written; the caller scans again with more room. An array that grew here would be a variable of the loop, and
        numba would count its references at every word, which takes twice as long as the scan.
    """
    points, signs, several, abbreviations = tables
    words = sentences = count = size = last = gaps = 0  # `words` counts the gaps too: it is the next word's place
    in_sentence = False
    h = uint64(_SEED)
    i = start
    while i < end:
        point, width = decode(data, i, end)
        folded = points[point]
        if folded > 0:
            h, size, last, i = _add(h, folded), size + 1, folded, i + width
            continue
        short = False
        if folded < 0:
            for place in range(3):
                one = several[-folded, place]
                if one > 0:
                    h, size, last = _add(h, one), size + 1, one
                elif one < 0 and size:
                    count = _noted(_finished(h), words, sentences, hits, count, listed)
                    words, in_sentence, size, h = words + 1, True, 0, uint64(_SEED)
            i += width
            continue
        if size:
            whole = _finished(h)
            count = _noted(whole, words, sentences, hits, count, listed)
            if point == 46:
                short = _is_short(whole, size, last, abbreviations)
            words, in_sentence, size, h = words + 1, True, 0, uint64(_SEED)
        ended = False
        if signs[point] & 6:
            i, ended = _run_of_ends(data, i, end, signs, short)
        elif signs[point] & 96:
            count, words, i, parted = _unspaced(data, (i, end), tables, listed, hits, (count, words, sentences))
            words, gaps, in_sentence = words + parted, gaps + parted, True
        elif point == 10:
            i = _behind_blanks(data, i, end)
            ended = i < end and byte_at(data, i) == 10
        else:
            i += width
        if ended and in_sentence:
            if sentences < len(ends):
                ends[sentences] = i
            sentences, in_sentence = sentences + 1, False
    if size:
        count = _noted(_finished(h), words, sentences, hits, count, listed)
        words, in_sentence = words + 1, True
    if in_sentence and sentences < len(ends):
        ends[sentences] = end
    return count, words - gaps, sentences + in_sentence
