"""Line filters of C4: removed lines, citations, counts of listed words.

Raffel et al. 2020 (JMLR 21), section 2.2, and the code that made the corpus. A line, without the white space at its
ends, is tested in this order, and goes with the first reason that holds:

    too_long_word            a word of more than `max_word_length` code points
                             (then citations go: "[1]", "[]", "[edit]", "[citation needed]")
    no_terminal_punctuation  its end is neither a terminal of any script nor a closing quotation mark, or is an
    ellipsis;
                             Thai and Lao end no sentence with a mark, so a line of which they are at least half the
                             characters other than ASCII spaces may end with any character but an ellipsis
    too_few_words            fewer than `min_words`
    javascript               it has the word, whatever the case
    policy                   it has a phrase of `POLICY_PHRASES`

The lines that stay are joined by LF; blank lines go and are not counted. Words are those of `kernels/words.py`, so the
rules hold in every script: a paragraph of Chinese is not one word. What C4 decides on pages ("lorem ipsum", "{",
sentences) is measured on the text that is left.

Words of a list are looked for as whole words, or rows of them, after case folding; punctuation and white space part
words. In a script without spaces each character is a word, but a run of Katakana is one: so an entry is found wherever
its characters occur, as in C4, but not within a longer Katakana word. An emoji is a word.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import int64, uint64

from data_pipeline.kernels.phrases import JAVASCRIPT, OF_LINES, POLICY, ends_in_ellipsis, find_phrases, suspects
from data_pipeline.kernels.words import (
    KATAKANA_RANGES,
    LINE_END,
    add_chunk,
    any_word,
    end_hash,
    plain_word,
    word_classes,
)
from governance.kernels.buffers import SPACE, UNSPACED, code_point_classes, lower_case, text_buffers
from governance.kernels.code_points import byte_at, decode
from governance.kernels.compiled import kernel, part

LINE_REASONS = ("too_long_word", "no_terminal_punctuation", "too_few_words", "javascript", "policy")

_CITATIONS = (b"edit]", b"citation needed]")
_EDIT, _NEEDED = (np.frombuffer(citation, np.uint8) for citation in _CITATIONS)
_ALONE, _KATAKANA = 1 << 24, 1 << 25
_POINT = (1 << 24) - 1


def c4_lines(
    texts: pa.Array | pa.ChunkedArray, min_words: int = 5, max_word_length: int = 1000, punctuated: bool = True
) -> tuple[pa.LargeStringArray, dict[str, int]]:
    """Texts without the lines that C4 drops, with counts by reason.

    The paper keeps lines of five words or more, later code those of three. Without `punctuated` any end will do.
    """
    data, offsets = text_buffers(texts)
    edited = np.empty(int(offsets[-1] - offsets[0]), np.uint8)
    ends, removed = np.zeros(len(offsets), np.int64), np.zeros(len(LINE_REASONS), np.int64)
    _edit(data, offsets, word_classes(), min_words, max_word_length, punctuated, edited, ends, removed)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(edited[: ends[-1]].copy())]
    made = pa.Array.from_buffers(pa.large_string(), len(ends) - 1, buffers)
    return made, dict(zip(LINE_REASONS, removed.tolist(), strict=True))


def count_listed_words(
    texts: pa.Array | pa.ChunkedArray, languages: Sequence[str], lists: Mapping[str, Sequence[str]]
) -> npt.NDArray[np.float64]:
    """Occurrences of listed words in each text, by its language's list.

    `lists` has the entries by language code; those of "*" hold for a language without a list of its own. The count is
    NaN where neither is there.
    """
    codes = sorted(lists)
    index = {code: row for row, code in enumerate(codes)}
    rows = np.array([index.get(code, index.get("*", -1)) for code in languages], np.int64)
    entries = [entry for code in codes for entry in lists[code]]
    owners = np.repeat(np.arange(len(codes)), [len(lists[code]) for code in codes])
    words, ends = _hashes(pa.array(entries, pa.large_string()))
    found = np.full(len(rows), np.nan)
    _count(*_hashes(texts), rows, words, ends, owners, found)
    return found


@functools.cache
def folded_words() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Word table of code points (4.5 MB) and forms of several characters.

    An entry of 0 separates words, one above 0 is the folded form. It has _ALONE where the character is a word by
    itself, and _KATAKANA within Katakana. One of -1 - k is for a character that folds to several ("ß", "և", "İ"): then
    `several[k]` characters follow at `k + 1`.
    """
    table = lower_case().copy()
    several: list[int] = []
    kinds = code_point_classes()
    for point in range(0x1FB00):
        character = chr(point)
        category = unicodedata.category(character)
        if category[0] not in "LNM" and (category != "So" or point < 0x80):
            table[point] = 0
            continue
        folded = character.casefold()
        if len(folded) > 1:
            table[point] = -1 - len(several)
            several += [len(folded), *map(ord, folded)]
        else:
            table[point] = ord(folded) | (_ALONE if category == "So" else 0)
    unspaced = (kinds & UNSPACED).astype(bool) & (table != 0)
    table[unspaced] |= _ALONE
    for first, last in (*KATAKANA_RANGES, (0x30FC, 0x30FC)):
        span = table[first : last + 1]
        table[first : last + 1] = np.where(span == 0, 0, span & ~_ALONE | _KATAKANA)
    table[0x1FB00:0x20000] = table[0xE0000:] = 0
    table.flags.writeable = False
    return table, np.array(several, np.int32)


def _hashes(texts: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Hashes of the folded words of n texts, with offsets."""
    data, offsets = text_buffers(texts)
    words, ends = np.empty(int(offsets[-1] - offsets[0]), np.uint64), np.zeros(len(offsets), np.int64)
    _fold(data, offsets, *folded_words(), words, ends)
    return words[: ends[-1]], ends


@part
def _citation_end(data, i, end):  # type: ignore[no-untyped-def]
    """The place after the citation that begins at `i`, or `i`."""
    j = i + 1
    while j < end and 48 <= byte_at(data, j) <= 57:
        j += 1
    if j < end and byte_at(data, j) == 93:
        return j + 1
    for mark in (_EDIT, _NEEDED):
        if i + 1 + len(mark) <= end:
            j = 0
            while j < len(mark) and byte_at(data, i + 1 + j) == mark[j]:
                j += 1
            if j == len(mark):
                return i + 1 + j
    return i


@part
def _stripped(data, start, end, kinds):  # type: ignore[no-untyped-def]
    """The span without outer white space, and its last character's kind."""
    while start < end:
        point, width = decode(data, start, end)
        if not kinds[point] & SPACE:
            break
        start += width
    while start < end:
        i = end - 1
        while i > start and byte_at(data, i) & 0xC0 == 0x80:
            i -= 1
        kind = int64(kinds[decode(data, i, end)[0]])
        if not kind & SPACE:
            return start, end, kind
        end = i
    return start, end, 0


@part
def _words(data, start, end, kinds, enough, longest):  # type: ignore[no-untyped-def]
    """Number of words up to `enough`; -1 for one over `longest`."""
    count, i = 0, start
    search = end - start > longest
    while i < end and (search or count < enough):
        point, width = decode(data, i, end)
        if kinds[point] & SPACE:
            i += width
            continue
        stop, _, _ = plain_word(data, i, end)
        size = stop - i
        if stop == 0:
            stop, size, _, _, _, _, _ = any_word(data, i, end, kinds, False)
        if search and size > longest:
            return -1
        count += 1
        i = stop
    return count


@part
def _ends_without_mark(data, start, end):  # type: ignore[no-untyped-def]
    """Return whether Thai or Lao makes up half of the text.

    They are U+0E00 to U+0EFF, in bytes E0 B8 .. E0 BB; ASCII spaces are not counted.
    """
    characters = marked = 0
    for i in range(start, end):
        c = byte_at(data, i)
        characters += c & 0xC0 != 0x80 and c != 32
        marked += c == 0xE0 and i + 1 < end and 0xB8 <= byte_at(data, i + 1) <= 0xBB
    return marked > 0 and 2 * marked >= characters


@kernel
def _edit(data, offsets, kinds, min_words, max_word_length, punctuated, out, ends, removed):  # type: ignore[no-untyped-def]
    filled = 0
    for d in range(len(offsets) - 1):
        first, end = filled, offsets[d + 1]
        suspected = suspects(data, offsets[d], end) & OF_LINES
        line = offsets[d]
        while line < end:
            after = line
            while after < end and byte_at(data, after) != 10:
                after += 1
            start, stop, _ = _stripped(data, line, after, kinds)
            line = after + 1
            if start == stop:
                continue
            count = _words(data, start, stop, kinds, min_words, max_word_length)
            if count < 0:
                removed[0] += 1
                continue
            o = begin = filled + (filled > first)
            i = start
            while i < stop:
                c = byte_at(data, i)
                behind = _citation_end(data, i, stop) if c == 91 else i
                if behind > i:
                    i = behind
                    count = -1  # they have to be counted again
                else:
                    out[o] = c
                    o += 1
                    i += 1
            found_at, o, kind = _stripped(out, begin, o, kinds)
            if found_at > begin:  # a citation came first
                for i in range(o - found_at):
                    out[begin + i] = out[found_at + i]
                o -= found_at - begin
            if count < 0:
                count = _words(out, begin, o, kinds, min_words, o - begin)
            ended = kind & LINE_END or _ends_without_mark(out, begin, o)
            if punctuated and (not ended or ends_in_ellipsis(out, begin, o)):
                removed[1] += 1
                continue
            if count < min_words:
                removed[2] += 1
                continue
            phrases = find_phrases(out, begin, o, suspected) if suspected else 0
            if phrases & JAVASCRIPT:
                removed[3] += 1
                continue
            if phrases & POLICY:
                removed[4] += 1
                continue
            if begin > first:
                out[begin - 1] = 10
            filled = o
        ends[d + 1] = filled


@kernel
def _fold(data, offsets, table, several, words, ends):  # type: ignore[no-untyped-def]
    filled = 0
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        h, size, before = uint64(0), 0, 0
        while i <= end:
            entry, width = int64(0), 1
            if i < end:
                point, width = decode(data, i, end)
                entry = int64(table[point])
            inside = 0 if entry == 0 else _KATAKANA if entry > 0 and entry & _KATAKANA else 1
            if size and (inside != before or (entry >= _ALONE and not entry & _KATAKANA)):
                words[filled] = end_hash(h, size)
                filled += 1
                h, size = uint64(0), 0
            before = inside
            if entry < 0:
                first = -1 - entry
                for k in range(first + 1, first + 1 + several[first]):
                    h = add_chunk(h, uint64(several[k]))
                size += several[first]
            elif entry:
                h = add_chunk(h, uint64(entry & _POINT))
                size += 1
                if entry >= _ALONE and not entry & _KATAKANA:
                    words[filled] = end_hash(h, size)
                    filled += 1
                    h, size, before = uint64(0), 0, 0
            i += width
        ends[d + 1] = filled


@kernel
def _count(words, ends, rows, listed, listed_ends, owners, found):  # type: ignore[no-untyped-def]
    size, longest = 64, 0
    while size < 4 * len(owners):
        size *= 2
    table = np.zeros(size, np.uint64)
    heads = np.zeros(1 << 16, np.uint8)
    for e in range(len(owners)):
        length = listed_ends[e + 1] - listed_ends[e]
        if length == 0:  # nothing but punctuation
            continue
        longest = max(longest, length)
        heads[int64(listed[listed_ends[e]] & uint64(0xFFFF))] = 1
        h = uint64(owners[e] + 1)
        for k in range(listed_ends[e], listed_ends[e + 1]):
            h = add_chunk(h, listed[k])
        h = end_hash(h, length) | uint64(1)
        place = int64(h >> uint64(1)) & (size - 1)
        while table[place] != 0 and table[place] != h:
            place = (place + 1) & (size - 1)
        table[place] = h
    for d in range(len(rows)):
        if rows[d] < 0:
            continue
        count = 0
        for i in range(ends[d], ends[d + 1]):
            if heads[int64(words[i] & uint64(0xFFFF))] == 0:
                continue
            h = uint64(rows[d] + 1)
            for k in range(i, min(i + longest, ends[d + 1])):
                h = add_chunk(h, words[k])
                key = end_hash(h, k - i + 1) | uint64(1)
                place = int64(key >> uint64(1)) & (size - 1)
                while table[place] != 0 and table[place] != key:
                    place = (place + 1) & (size - 1)
                count += table[place] == key
        found[d] = count
