"""Text features of Gopher, C4 and FineWeb in one call.

Gopher: Rae et al. 2021 (arXiv:2112.11446), section A.1.1 and table A1. C4: Raffel et al. 2020 (JMLR 21), section 2.2.
FineWeb: Penedo et al. 2024 (arXiv:2406.17557), section 3.6. Where the papers leave room:

- A *word* is what `kernels/words.py` says, punctuation and all; its length is in code points. `unspaced_share` says how
  much of a text is in a script without spaces, where a word is an ideograph or a syllable.
- A *line* ends at LF and is taken without the white space at its ends; blank lines do not count. A *paragraph* is a run
  of lines that are not blank.
- A line begins with a bullet where its first character is one; `-` and `*` are only as words of their own, because in
  Spanish and other languages a hyphen next to the first word begins a line of dialogue.
- Repeated lines and paragraphs are those equal to an earlier one; the first does not count. `..._character_share` is
  of all characters of such lines. FineWeb's share of characters in repeated lines is the same figure.
- `top_n_gram_share`: occurrences of the most frequent n-gram (of the longest such) times its length, at most 1; 0 when
  nothing occurs twice. `duplicate_n_gram_share`: words within an n-gram equal to an earlier one, each counted
  once. Both are shares of the characters of all words.
- `stop_words`: how many *different* stop words of the text's language occur, ASCII capitals folded; NaN for a language
  without a list (`kernels/stop_words.py`).
- `line_punctuation_share`: lines that end in a terminal of any script, an ellipsis or a closing quotation mark.
  `short_line_share`: lines of at most 30 code points. Both of all lines. `newline_ratio`: LF characters per word.
- `sentences`: a sentence has a letter. It ends at a terminal beyond ASCII (。, ؟, ।), whatever follows; at `.`, `!` or
  `?`, with closing marks after it or none, before white space or the line's end, but a full stop not where a small
  letter follows in the line (Unicode annex 29, rule SB8); and with a line that `line_punctuation_share` counts. A
  title without punctuation is not a sentence; an abbreviation before a capital counts as an end.
- `has_lorem_ipsum`, `has_javascript_line`, `has_policy_line`: 1 where the text has the phrase, or one of
  `POLICY_PHRASES`, anywhere, whatever the case of its ASCII letters; `has_curly_bracket`: where it has "{".

Everything is float64: in float32, thresholds such as 0.3 changed verdicts. Words and lines are compared by 64-bit
hashes, which are treated as equality; n-grams exactly, as pairs of a shorter n-gram and a word.

Price: one pass over the bytes, one over the words, then for n = 2, 3 ... over those n-grams alone whose two parts each
occur twice: no other can, and soon none is left. Memory: 70 to 95 bytes per word of the longest text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import int64, uint64

from data_pipeline.kernels.phrases import CURLY, JAVASCRIPT, LOREM, POLICY, ends_in_ellipsis, find_marks
from data_pipeline.kernels.stop_words import STOP_WORDS
from data_pipeline.kernels.words import (
    CLOSER,
    LINE_END,
    LOWER,
    TERMINAL,
    add_chunk,
    any_word,
    end_hash,
    hash_bytes,
    plain_word,
    word_classes,
)
from governance.kernels.buffers import BULLET, SPACE, text_buffers
from governance.kernels.code_points import byte_at, decode
from governance.kernels.compiled import inlined, kernel, part

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
    "sentences",
    "line_punctuation_share",
    "short_line_share",
    "newline_ratio",
    "has_lorem_ipsum",
    "has_curly_bracket",
    "has_javascript_line",
    "has_policy_line",
)
SHORT_LINE = 30  # code points

_FIRST_REPEAT = FEATURES.index("duplicate_line_share")
_FIRST_GRAM = FEATURES.index("top_2_gram_share")


def measure_texts(
    texts: pa.Array | pa.ChunkedArray, languages: Sequence[str], grams: bool = True
) -> npt.NDArray[np.float64]:
    """The features of each text, shape (texts, FEATURES).

    `languages` are ISO 639-1 codes, one per text. Without `grams` the features of n-grams are 0, and those of stop
    words NaN.
    """
    data, offsets = text_buffers(texts)
    index = {code: row for row, code in enumerate(sorted(STOP_WORDS))}
    rows = np.array([index.get(code, -1) for code in languages], np.int64)
    features = np.zeros((len(offsets) - 1, len(FEATURES)))
    longest = int(np.diff(offsets).max(initial=0))
    firsts = np.cumsum([0, *(len(STOP_WORDS[code]) for code in index)])
    _measure(data, offsets, *stop_word_bytes(), firsts, rows, word_classes(), longest // 2 + 2, grams, features)
    return features


@functools.cache
def stop_word_bytes() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Stop words of all languages end to end, with offsets."""
    words = [word.encode() for code in sorted(STOP_WORDS) for word in STOP_WORDS[code]]
    return np.frombuffer(b"".join(words), np.uint8), np.cumsum([0, *map(len, words)])


@inlined
def share(some, whole):  # type: ignore[no-untyped-def]
    """Return `some` as a share of `whole`; 0 of nothing is 0."""
    return some / (whole if whole > 0 else 1)


@inlined
def table_mask(entries):  # type: ignore[no-untyped-def]
    """Largest index of a hash table that stays half empty."""
    size = int64(8)
    while size < 2 * entries:
        size *= 2
    return size - 1


@inlined
def first_of(key, place, table, firsts, i):  # type: ignore[no-untyped-def]
    """First element with this key, or `i` if new."""
    mask = len(table) - 1
    place &= mask
    held = table[place]
    while (held != 0) & (held != key):
        place = (place + 1) & mask
        held = table[place]
    found = i if held == 0 else int64(firsts[place])  # no branch: which of the two comes cannot be foretold
    table[place] = key
    firsts[place] = found
    return found


@part
def _repeats(hashes, lengths, count, table, firsts, feature):  # type: ignore[no-untyped-def]
    """Share of repeated elements, and of their characters."""
    table = table[: table_mask(count) + 1]
    table[:] = 0
    repeated = repeated_characters = characters = 0
    for i in range(count):
        characters += lengths[i]
        if first_of(hashes[i], int64(hashes[i]), table, firsts, i) != i:
            repeated += 1
            repeated_characters += lengths[i]
    feature[0] = share(repeated, count)
    feature[1] = share(repeated_characters, characters)


@part
def repeated_words(words, count, table, firsts, first, twice):  # type: ignore[no-untyped-def]
    """First place of each word, and whether it repeats."""
    table = table[: table_mask(count) + 1]
    table[:] = 0
    for i in range(count):
        found = first_of(words[i], int64(words[i]), table, firsts, i)
        first[i] = found
        twice[i] = found != i
        twice[found] |= found != i


@part
def _repeated_grams(count, ends, first, twice, gram, places, table, firsts, counts, feature):  # type: ignore[no-untyped-def]
    """Shares of repeated n-grams, n = 2 to 10."""
    left = 0
    for i in range(count - 1):
        gram[i] = first[i]
        places[left] = i
        left += twice[i] & twice[i + 1]
    for n in range(2, 11):
        if left == 0:
            return
        # an n-gram is known by the first place of its first n - 1 words, and that of its last word
        room = table[: table_mask(left) + 1]
        room[:] = 0
        best = best_length = covered = until = 0
        for k in range(left):
            i = int64(places[k])
            key = (uint64(gram[i] + 1) << uint64(32)) | uint64(first[i + n - 1] + 1)
            mixed = key * uint64(0x9E3779B97F4A7C15)
            found = first_of(key, int64(mixed ^ (mixed >> uint64(32))), room, firsts, i)
            gram[i] = found
            if found == i:
                counts[i] = 1
            else:
                counts[found] += 1
                length = ends[i + n] - ends[i]
                if counts[found] > best or (counts[found] == best and length > best_length):
                    best, best_length = int64(counts[found]), length
                covered += ends[i + n] - ends[i if i > until else until]
                until = i + n
        if n <= 4:
            feature[n - 2] = min(share(best * best_length, ends[count]), 1.0)
        else:
            feature[n - 2] = share(covered, ends[count])
        kept = 0
        for k in range(left - 1):  # keep the longer n-grams whose two parts both occur twice
            i = int64(places[k])
            after = int64(places[k + 1])
            places[kept] = i
            kept += (after == i + 1) & (counts[gram[i]] > 1) & (counts[gram[after]] > 1)
        left = kept


@part
def _stop_words(data, starts, sizes, first, count, table, longest):  # type: ignore[no-untyped-def]
    """Number of stop words present in the text."""
    seen = 0
    for i in range(count):
        if first[i] == i and sizes[i] <= longest:
            h = hash_bytes(data, starts[i], starts[i] + sizes[i], True)
            for q in range(len(table)):
                seen |= int64(table[q] == h) << q
    found = 0
    for q in range(len(table)):
        found += seen >> q & 1
    return found


@part
def _tail(data, start, end, text_end, kinds):  # type: ignore[no-untyped-def]
    """Sentence ending of a word: 0 none, 1 full stop, 2 other."""
    ending = 0
    i = end
    if end < text_end and not kinds[decode(data, end, text_end)[0]] & SPACE:
        return ending
    while i > start:
        i -= 1
        while i > start and byte_at(data, i) & 0xC0 == 0x80:
            i -= 1
        point, _ = decode(data, i, end)
        if kinds[point] & TERMINAL:
            if ending < 2:
                ending = 1 if point == 46 else 2
        elif not kinds[point] & CLOSER:
            break
    return ending


@kernel
def _measure(data, offsets, stop_data, stop_offsets, stop_firsts, stop_rows, kinds, capacity, grams, out):  # type: ignore[no-untyped-def]
    words, ends = np.empty(capacity, np.uint64), np.empty(capacity + 1, np.int64)  # ends: characters before each word
    starts, sizes = np.empty(capacity, np.int64), np.empty(capacity, np.int32)
    first, gram, places = np.empty(capacity, np.int32), np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    twice, counts = np.empty(capacity, np.uint8), np.empty(capacity, np.int32)
    lines, line_lengths = np.empty(capacity, np.uint64), np.empty(capacity, np.int64)
    paragraphs, paragraph_lengths = np.empty(capacity, np.uint64), np.empty(capacity, np.int64)
    table, firsts = np.empty(table_mask(capacity) + 1, np.uint64), np.empty(table_mask(capacity) + 1, np.int32)
    stop_hashes = np.empty(len(stop_offsets) - 1, np.uint64)
    for q in range(len(stop_hashes)):
        stop_hashes[q] = hash_bytes(stop_data, stop_offsets[q], stop_offsets[q + 1], True)
    ends[0] = 0
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        n_words = n_lines = n_paragraphs = line_feeds = alphabetic = unspaced = 0
        bullet_lines = ellipsis_lines = punctuated_lines = short_lines = sentences = 0
        line_length = gap_length = paragraph_length = 0
        line_hash, gap, paragraph_hash = uint64(0), uint64(1), uint64(0)
        open_sentence = pending = False
        last, last_end = 0, i
        while i <= end:
            c = byte_at(data, i) if i < end else 10  # the end of the text ends its last line
            if c > 32 and c < 128:
                point, width, kind = c, 1, 0
            else:
                point, width = decode(data, i, end) if i < end else (c, 1)
                kind = int64(kinds[point])
            if not kind & SPACE:
                if pending:
                    if not kinds[point] & LOWER:
                        sentences += 1
                        open_sentence = False
                    pending = False
                stop, h, letters = plain_word(data, i, end)
                if stop:
                    size = stop - i
                    last = int64(kinds[byte_at(data, stop - 1)])
                    alphabetic += letters != 0
                    open_sentence |= letters != 0
                else:
                    stop, size, strange, letter, last, sentence_ends, open_sentence = any_word(
                        data, i, end, kinds, open_sentence
                    )
                    h = hash_bytes(data, i, stop, False)
                    alphabetic += letter
                    unspaced += strange
                    sentences += sentence_ends
                if line_length == 0:
                    bullet_lines += kinds[point] & BULLET != 0 and (point > 127 or size == 1)
                    gap, gap_length = uint64(0), 0
                words[n_words] = h if h else uint64(1)
                starts[n_words], sizes[n_words] = i, stop - i
                ends[n_words + 1] = ends[n_words] + size
                n_words += 1
                line_hash = add_chunk(line_hash, h + gap)
                line_length += gap_length + size
                gap, gap_length = uint64(1), 0
                if last & (TERMINAL | CLOSER) and open_sentence:
                    ending = _tail(data, i, stop, end, kinds)
                    if ending == 2:
                        sentences += 1
                        open_sentence = False
                    pending = ending == 1
                i = last_end = stop
                continue
            if point != 10:
                gap = gap * uint64(0x100000001B3) + uint64(point)
                gap_length += 1
                i += width
                continue
            line_feeds += i < end
            if line_length:
                if pending:
                    sentences += 1
                    open_sentence = pending = False
                lines[n_lines], line_lengths[n_lines] = end_hash(line_hash, line_length) | uint64(1), line_length
                n_lines += 1
                short_lines += line_length <= SHORT_LINE
                if last & LINE_END:
                    punctuated_lines += 1
                    sentences += open_sentence
                    open_sentence = False
                    ellipsis_lines += ends_in_ellipsis(data, starts[n_words - 1], last_end)
                paragraph_hash = add_chunk(paragraph_hash, lines[n_lines - 1])
                paragraph_length += line_length
            if paragraph_length and (line_length == 0 or i == end):
                paragraphs[n_paragraphs] = end_hash(paragraph_hash, paragraph_length) | uint64(1)
                paragraph_lengths[n_paragraphs] = paragraph_length
                n_paragraphs += 1
                paragraph_hash, paragraph_length = uint64(0), 0
            line_hash, line_length, gap, gap_length = uint64(0), 0, uint64(1), 0
            i += 1

        marks, hashes, ellipses = find_marks(data, offsets[d], end)
        feature = out[d]
        feature[0] = n_words
        feature[1] = share(ends[n_words], n_words)
        feature[2] = share(hashes, n_words)
        feature[3] = share(ellipses, n_words)
        feature[4] = share(bullet_lines, n_lines)
        feature[5] = share(ellipsis_lines, n_lines)
        feature[6] = share(alphabetic, n_words)
        feature[7] = np.nan
        _repeats(lines, line_lengths, n_lines, table, firsts, feature[8:10])
        _repeats(paragraphs, paragraph_lengths, n_paragraphs, table, firsts, feature[10:12])
        if grams:
            repeated_words(words, n_words, table, firsts, first, twice)
            _repeated_grams(n_words, ends, first, twice, gram, places, table, firsts, counts, feature[12:21])
        if grams and stop_rows[d] >= 0:
            q, q_end = stop_firsts[stop_rows[d]], stop_firsts[stop_rows[d] + 1]
            longest = int64(0)
            for r in range(q, q_end):
                size = stop_offsets[r + 1] - stop_offsets[r]
                longest = size if size > longest else longest
            feature[7] = _stop_words(data, starts, sizes, first, n_words, stop_hashes[q:q_end], longest)
        feature[21] = share(unspaced, ends[n_words])
        feature[22] = sentences
        feature[23] = share(punctuated_lines, n_lines)
        feature[24] = share(short_lines, n_lines)
        feature[25] = share(line_feeds, n_words)
        feature[26] = marks & LOREM != 0
        feature[27] = marks & CURLY != 0
        feature[28] = marks & JAVASCRIPT != 0
        feature[29] = marks & POLICY != 0
