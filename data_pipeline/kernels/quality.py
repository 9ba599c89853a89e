"""The quality and repetition features of Gopher (Rae et al. 2021, arXiv:2112.11446, section A.1.1 and table A1).

One pass over the bytes, then one over the words for each length of n-gram. Where the paper leaves room:

- A *word* is a run between white space (`str.split()`), punctuation and all; its length is in code points. For scripts
  without spaces (Chinese, Japanese, Thai ...) that is no word: `unspaced_share` says how much of a text is so written,
  and a caller must not apply word rules to it.
- A *line* ends at LF and is compared without the white space at its ends; blank lines are none. A *paragraph* is a run
  of lines that are not blank.
- Repeated lines and paragraphs are those equal to an earlier one; the first does not count. `..._character_share` is
  of all characters of such lines.
- `top_n_gram_share`: occurrences of the most frequent n-gram (of the longest such) times its length, at most 1; 0 when
  nothing occurs twice. `duplicate_n_gram_share`: words that lie in an n-gram equal to an earlier one, each counted
  once. Both are shares of the characters of all words.
- `stop_words`: how many *different* stop words of the text's language occur, ASCII capitals folded; NaN for a language
  without a list.

Everything is float64: in float32, thresholds such as 0.3 changed verdicts. Words, lines and n-grams are compared by
64-bit hashes, which are taken for equality. Memory: about 60 bytes a word of the longest text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import int64, njit, uint64

from data_pipeline.kernels.buffers import code_point_classes, text_buffers

FEATURES = (
    "words",
    "mean_word_length",
    "hash_ratio",
    "ellipsis_ratio",
    "bullet_line_share",
    "ellipsis_line_share",
    "alphabetic_word_share",
    "stop_words",
    "duplicate_line_share",
    "duplicate_line_character_share",
    "duplicate_paragraph_share",
    "duplicate_paragraph_character_share",
    *(f"top_{n}_gram_share" for n in range(2, 5)),
    *(f"duplicate_{n}_gram_share" for n in range(5, 11)),
    "unspaced_share",
)

STOP_WORDS: dict[str, tuple[str, ...]] = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),  # the paper's own
    "de": ("der", "die", "und", "das", "ist", "nicht", "mit", "von"),
    "es": ("de", "la", "que", "el", "en", "los", "con", "una"),
    "fr": ("de", "la", "le", "et", "les", "des", "que", "une"),
    "it": ("di", "che", "la", "il", "non", "per", "una", "con"),
    "nl": ("de", "het", "een", "van", "en", "dat", "niet", "met"),
    "pt": ("de", "que", "não", "os", "um", "uma", "com", "para"),
    "sv": ("och", "att", "det", "som", "en", "på", "är", "med"),
    "da": ("og", "at", "det", "som", "en", "på", "er", "med"),
    "pl": ("w", "na", "z", "do", "się", "że", "nie", "jest"),
}
"""Eight frequent words a language, each at most 7 bytes of UTF-8, so that one register holds it behind a marker."""


def measure_texts(texts: pa.Array | pa.ChunkedArray, languages: Sequence[str]) -> npt.NDArray[np.float64]:
    """The features of each text, shape (texts, FEATURES); `languages` are ISO 639-1 codes, one a text."""
    data, offsets = text_buffers(texts)
    table, index = stop_word_table()
    rows = np.array([index.get(code, -1) for code in languages], np.int64)
    features = np.zeros((len(offsets) - 1, len(FEATURES)))
    longest = int(np.diff(offsets).max(initial=0))
    _measure(data, offsets, table, rows, code_point_classes(), longest // 2 + 1, features)
    return features


@functools.cache
def stop_word_table() -> tuple[npt.NDArray[np.uint64], dict[str, int]]:
    """Stop words packed into one integer each, shape (languages, 8), and the row of each language."""
    rows = [
        [int.from_bytes(b"\1" + word.encode("utf-8"), "big") for word in STOP_WORDS[code]]
        for code in sorted(STOP_WORDS)
    ]
    return np.array(rows, np.uint64), {code: row for row, code in enumerate(sorted(STOP_WORDS))}


@njit(inline="always")
def _mix(h):  # type: ignore[no-untyped-def]
    """The finaliser of MurmurHash3 (public domain): each bit of `h` reaches each bit of the result."""
    h ^= h >> uint64(33)
    h *= uint64(0xFF51AFD7ED558CCD)
    h ^= h >> uint64(33)
    h *= uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> uint64(33))


@njit(inline="always")
def _decode(data, i, end):  # type: ignore[no-untyped-def]
    """The code point that starts at byte `i`, and its number of bytes; a torn sequence counts byte by byte."""
    c = int64(data[i])
    if c < 0x80:
        return c, 1
    if c < 0xE0 and i + 1 < end:
        return (c & 0x1F) << 6 | (int64(data[i + 1]) & 0x3F), 2
    if c < 0xF0 and i + 2 < end:
        return (c & 0x0F) << 12 | (int64(data[i + 1]) & 0x3F) << 6 | (int64(data[i + 2]) & 0x3F), 3
    if i + 3 < end:
        high = (c & 0x07) << 18 | (int64(data[i + 1]) & 0x3F) << 12
        return high | (int64(data[i + 2]) & 0x3F) << 6 | (int64(data[i + 3]) & 0x3F), 4
    return c, 1


@njit(inline="always")
def _slot(key, keys, stamps, generation, mask):  # type: ignore[no-untyped-def]
    """Where `key` stands in the open-addressing table, and whether it stood there already in this generation."""
    place = int64(key & uint64(mask))
    while stamps[place] == generation:
        if keys[place] == key:
            return place, True
        place = (place + 1) & mask
    stamps[place] = generation
    keys[place] = key
    return place, False


@njit(inline="always")
def _table_mask(entries):  # type: ignore[no-untyped-def]
    size = int64(4)
    while size < 2 * entries:
        size *= 2
    return size - 1


@njit(cache=True, nogil=True)
def _repeated(hashes, lengths, count, keys, stamps, generation):  # type: ignore[no-untyped-def]
    """How many of the first `count` elements equal an earlier one, and their characters."""
    mask = _table_mask(count)
    elements = characters = 0
    for i in range(count):
        _, found = _slot(hashes[i], keys, stamps, generation, mask)
        if found:
            elements += 1
            characters += lengths[i]
    return elements, characters


@njit(cache=True, nogil=True)
def _measure(data, offsets, stop_words, stop_rows, classes, capacity, out):  # type: ignore[no-untyped-def]
    start_hash, prime = uint64(0xCBF29CE484222325), uint64(0x100000001B3)  # FNV-1a, over code points
    step = uint64(0x9E3779B97F4A7C15)
    words, grams = np.empty(capacity, np.uint64), np.empty(capacity, np.uint64)
    ends = np.empty(capacity + 1, np.int64)  # characters of the words before each word
    lines, line_lengths = np.empty(capacity, np.uint64), np.empty(capacity, np.int64)
    paragraphs, paragraph_lengths = np.empty(capacity, np.uint64), np.empty(capacity, np.int64)
    size = _table_mask(capacity) + 1
    keys, counts = np.empty(size, np.uint64), np.empty(size, np.int32)
    stamps, generation = np.zeros(size, np.int32), 0
    ends[0] = 0
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        row = stop_rows[d]
        n_words = n_lines = n_paragraphs = hashes = ellipses = dots = alphabetic = unspaced = 0
        bullet_lines = ellipsis_lines = stops_seen = 0
        word_length = line_length = line_width = paragraph_length = 0
        word_hash, line_hash, line_seen, paragraph_hash = start_hash, start_hash, start_hash, start_hash
        packed, packed_bytes = uint64(1), 0
        has_letter = ends_in_ellipsis = False
        line_dots = 0
        while i <= end:
            if i < end:
                point, width = _decode(data, i, end)
            else:
                point, width = 10, 1  # the end of the text ends its last line
            kind = classes[point] if point < 0x110000 else 0
            if kind & 1:
                dots = line_dots = 0
                if word_length:
                    words[n_words] = _mix(word_hash)
                    ends[n_words + 1] = ends[n_words] + word_length
                    n_words += 1
                    alphabetic += has_letter
                    if row >= 0 and packed_bytes <= 7:
                        for q in range(8):
                            if stop_words[row, q] == packed:
                                stops_seen |= 1 << q
                    word_hash, word_length, has_letter = start_hash, 0, False
                    packed, packed_bytes = uint64(1), 0
                if point != 10:
                    line_hash = (line_hash ^ uint64(point)) * prime
                    line_width += 1
            else:
                word_hash = (word_hash ^ uint64(point)) * prime
                word_length += 1
                if kind & 2:
                    has_letter = True
                if kind & 4:
                    unspaced += 1
                packed_bytes += width
                if packed_bytes <= 7:
                    for j in range(width):
                        c = data[i + j]
                        packed = packed << uint64(8) | uint64(c | 32 if 65 <= c <= 90 else c)
                if line_length == 0:  # the first character of a line that is no white space
                    line_hash, line_width = start_hash, 0
                    if kind & 8:
                        bullet_lines += 1
                line_hash = (line_hash ^ uint64(point)) * prime
                line_width += 1
                line_seen, line_length = line_hash, line_width
                line_dots = line_dots + 1 if point == 46 else 0
                ends_in_ellipsis = point == 0x2026 or line_dots >= 3
                if point == 46:
                    dots += 1
                    if dots == 3:
                        ellipses += 1
                        dots = 0
                else:
                    dots = 0
                    if point == 35:
                        hashes += 1
                    elif point == 0x2026:
                        ellipses += 1
            if point == 10:
                if line_length:
                    lines[n_lines], line_lengths[n_lines] = _mix(line_seen), line_length
                    paragraph_hash = _mix((paragraph_hash ^ lines[n_lines]) * step)
                    paragraph_length += line_length
                    n_lines += 1
                    ellipsis_lines += ends_in_ellipsis
                if paragraph_length and (line_length == 0 or i == end):
                    paragraphs[n_paragraphs], paragraph_lengths[n_paragraphs] = paragraph_hash, paragraph_length
                    n_paragraphs += 1
                    paragraph_hash, paragraph_length = start_hash, 0
                line_hash, line_seen, line_length, line_width = start_hash, start_hash, 0, 0
                ends_in_ellipsis = False
            i += width

        characters = ends[n_words]
        line_characters = 0
        for q in range(n_lines):
            line_characters += line_lengths[q]
        feature = out[d]
        feature[0] = n_words
        feature[1] = characters / max(1, n_words)
        feature[2] = hashes / max(1, n_words)
        feature[3] = ellipses / max(1, n_words)
        feature[4] = bullet_lines / max(1, n_lines)
        feature[5] = ellipsis_lines / max(1, n_lines)
        feature[6] = alphabetic / max(1, n_words)
        feature[7] = np.nan
        if row >= 0:
            feature[7] = 0
            for q in range(8):
                feature[7] += stops_seen >> q & 1
        generation += 1
        repeated, repeated_characters = _repeated(lines, line_lengths, n_lines, keys, stamps, generation)
        feature[8] = repeated / max(1, n_lines)
        feature[9] = repeated_characters / max(1, line_characters)
        generation += 1
        repeated, repeated_characters = _repeated(paragraphs, paragraph_lengths, n_paragraphs, keys, stamps, generation)
        feature[10] = repeated / max(1, n_paragraphs)
        feature[11] = repeated_characters / max(1, line_characters)
        feature[21] = unspaced / max(1, characters)

        mask = _table_mask(n_words)  # a small text uses the head of the table, which stays in the cache
        for q in range(n_words):
            grams[q] = words[q]
        for n in range(2, 11):
            best = best_length = covered = 0
            until = 0  # words before this one are counted already
            generation += 1
            for q in range(n_words - n + 1):
                grams[q] = _mix(grams[q] * step + words[q + n - 1])
                place, found = _slot(grams[q], keys, stamps, generation, mask)
                if n <= 4:
                    counts[place] = counts[place] + 1 if found else 1
                    length = ends[q + n] - ends[q]
                    if counts[place] > best or (counts[place] == best and length > best_length):
                        best, best_length = counts[place], length
                elif found:
                    covered += ends[q + n] - ends[max(q, until)]
                    until = q + n
            if n <= 4:
                feature[10 + n] = min(1.0, best * best_length / max(1, characters)) if best > 1 else 0.0
            else:
                feature[10 + n] = covered / max(1, characters)
