r"""MinHash signatures, LSH bands and exact shingle sets (Broder 1997).

**Words.** Capitals are folded (code points whose lower case is one code point). A word is a run of word characters of
UTS #18: letters and numbers (`str.isalnum`), marks, connector punctuation such as `_`, and the two joiners; every other
character parts words, and one of a script that is written without spaces (Han, kana, Thai ...) is a word by itself.
Without such scripts and marks these are the words of `re.findall(r"\w+", text.lower())`.

**Shingles.** A shingle is a run of `ngram` words; a text of fewer words, but at least one, has one shingle: all of
them. A text without words has none. So texts that differ in case, punctuation or white space alone have similarity 1,
and numbers count as what they are. A shingle is known by 64 bits: two different ones are treated as one with a
probability of 2^-64 per pair.

**Signatures.** One hash of a shingle names one of the `bands * rows` bins and a value in it; a bin keeps its least.
While bins are empty, a further round throws all shingles again, with other hashes; the last rounds throw them into
one bin each, so that every bin is filled (Dahlgaard, Knudsen, Thorup 2017, "Fast Similarity Sketching"). Two bins of
two texts of Jaccard similarity J are equal with probability J, as in plain MinHash, but a text of n shingles costs
about n hashes instead of n * bins. A band of r bins is shared with probability J^r, so any of b bands with 1 - (1 -
J^r)^b: with 20 bands of 6 rows 0.918 at J = 0.7, 0.9977 at 0.8, 0.9999997 at 0.9. No seed but the one below, so
nothing depends on the process, the machine or the order of texts.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import int64, uint64

from data_pipeline.kernels.folding import mix
from governance.kernels.buffers import UNSPACED, code_point_classes, lower_case, text_buffers
from governance.kernels.compiled import inlined, kernel, part

Keys = npt.NDArray[np.int64]
Shingles = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment; it parts the rounds, and the words of a shingle
_EMPTY = 0xFFFFFFFFFFFFFFFF  # a bin into which nothing has fallen
_REPETITIVE = 1024  # a text of as many shingles that leaves a bin empty repeats itself: then each is thrown once
_MARKS_END = 0x1F000  # scripts end below; variation selectors are far above
_SELECTORS = range(0xE0100, 0xE01F0)
_JOINERS = (0x200C, 0x200D)


@functools.cache
def word_characters() -> npt.NDArray[np.int32]:
    """Word table of code points (4.5 MB).

    An entry of 0 separates words, c > 0 belongs to a word as c, and c < 0 is a word by itself.
    """
    characters = np.arange(0x110000, dtype=np.uint32).view("U1")
    belongs = np.strings.isalnum(characters)
    for point in itertools.chain(range(0x80, _MARKS_END), _SELECTORS):
        belongs[point] |= unicodedata.category(chr(point)) in {"Mn", "Mc", "Me", "Pc"}
    belongs[[ord("_"), *_JOINERS]] = True
    alone = (code_point_classes() & UNSPACED) != 0
    table = np.where(alone, -np.arange(0x110000), np.where(belongs, lower_case(), 0)).astype(np.int32)
    table.flags.writeable = False
    return table


def band_keys(texts: pa.Array | pa.ChunkedArray, ngram: int, bands: int, rows: int) -> tuple[Keys, Integers]:
    """63-bit band keys, shape (texts, bands), and word counts.

    The keys of a text without words have no meaning.
    """
    data, offsets = text_buffers(texts)
    keys = np.zeros((len(offsets) - 1, bands), np.int64)
    words = np.zeros(len(offsets) - 1, np.int64)
    _band_keys(data, offsets, word_characters(), ngram, rows, _room(offsets), keys, words)
    return keys, words


def shingle_sets(texts: pa.Array | pa.ChunkedArray, ngram: int) -> tuple[Shingles, Integers]:
    """Sorted distinct shingles of each text, end to end, with offsets."""
    data, offsets = text_buffers(texts)
    shingles = np.empty(int((np.diff(offsets) // 2 + 1).sum()), np.uint64)
    ends = np.zeros(len(offsets), np.int64)
    _shingle_sets(data, offsets, word_characters(), ngram, _room(offsets), shingles, ends)
    return shingles[: ends[-1]].copy(), ends


def _room(offsets: Integers) -> int:
    """The most words that a text may have.

    An ASCII word takes a byte and a gap, and a character that is a word by itself takes three bytes.
    """
    return int(np.diff(offsets).max(initial=0)) // 2 + 1


@part
def _decode(data, i, end):  # type: ignore[no-untyped-def]
    """The code point at `i`, beyond ASCII, and its width in bytes.

    A torn sequence is U+FFFD.
    """
    c = int64(data[i])
    if c < 0xE0 and i + 1 < end:
        return (c & 0x1F) << 6 | (int64(data[i + 1]) & 0x3F), 2
    if c < 0xF0 and i + 2 < end:
        return (c & 0x0F) << 12 | (int64(data[i + 1]) & 0x3F) << 6 | (int64(data[i + 2]) & 0x3F), 3
    if i + 3 < end:
        c = (c & 0x07) << 18 | (int64(data[i + 1]) & 0x3F) << 12
        c |= (int64(data[i + 2]) & 0x3F) << 6 | (int64(data[i + 3]) & 0x3F)
        return min(c, int64(0x10FFFF)), 4
    return int64(0xFFFD), 1


@part
def _word_hashes(data, start, end, table, words):  # type: ignore[no-untyped-def]
    """Hash each word of a text (FNV-1a); return the count."""
    first, prime = uint64(0xCBF29CE484222325), uint64(0x100000001B3)
    count = 0
    i = start
    while i < end:
        h = first
        c = int64(0)
        while i < end:  # one word
            byte = data[i]
            if byte < 0x80:
                c, width = int64(table[byte]), 1
            else:
                c, width = _decode(data, i, end)
                c = int64(table[c])
            i += width
            if c <= 0:
                break
            h = (h ^ uint64(c)) * prime
        if h != first:
            words[count] = mix(h)
            count += 1
        if c < 0:
            words[count] = mix((first ^ uint64(-c)) * prime)
            count += 1
    return count


@part
def _shingles(words, count, ngram):  # type: ignore[no-untyped-def]
    """Turn word hashes into shingle hashes in place; return the count.

    The hash is a polynomial over the words, rolled: the word that leaves is taken off, the one that comes is added.
    """
    step = uint64(_GOLDEN)
    run = min(count, ngram)
    if run == 0:
        return 0
    h, leaving = uint64(0), uint64(1)
    for i in range(run):
        h = h * step + words[i]
        leaving *= step
    total = count - run + 1
    for i in range(total):
        gone = words[i]
        words[i] = h if count >= ngram else h + uint64(count)
        if i + run < count:
            h = h * step + words[i + run] - gone * leaving
    return total


@part
def _distinct(values, count, spare):  # type: ignore[no-untyped-def]
    """Sort the first `count` values in place and keep each once.

    Return how many there are.

    Hashes are spread evenly: by their first bits each falls near its place, and an insertion sort puts it there.
    """
    bits = 1
    while bits < 22 and (1 << bits) < count:
        bits += 1
    starts = np.zeros((1 << bits) + 1, np.int64)
    for i in range(count):
        starts[int64(values[i] >> uint64(64 - bits)) + 1] += 1
    for i in range(1 << bits):
        starts[i + 1] += starts[i]
    for i in range(count):
        bucket = int64(values[i] >> uint64(64 - bits))
        spare[starts[bucket]] = values[i]
        starts[bucket] += 1
    kept = 0
    for i in range(count):
        value = spare[i]
        j = kept
        while j > 0 and values[j - 1] > value:
            j -= 1
        if j > 0 and values[j - 1] == value:
            continue
        for k in range(kept, j, -1):
            values[k] = values[k - 1]
        values[j] = value
        kept += 1
    return kept


@inlined
def _fill_bins(shingles, count, round_, bins):  # type: ignore[no-untyped-def]
    """One round of throwing shingles into bins.

    A bin that an earlier round has filled keeps its value.
    """
    size = uint64(len(bins))
    salt, high = uint64(round_) * uint64(_GOLDEN), uint64(round_) << uint64(32)
    for i in range(count):
        h = mix(shingles[i] + salt)
        index = int64((h >> uint64(32)) * size >> uint64(32))
        if round_ >= len(bins):
            index = round_ - len(bins)
        bins[index] = min(bins[index], high | (h & uint64(0xFFFFFFFF)))


@kernel
def _band_keys(data, offsets, table, ngram, rows, room, keys, counts):  # type: ignore[no-untyped-def]
    words = np.empty(room, np.uint64)
    bins = np.empty(keys.shape[1] * rows, np.uint64)
    for d in range(len(offsets) - 1):
        counts[d] = _word_hashes(data, offsets[d], offsets[d + 1], table, words)
        count = _shingles(words, counts[d], ngram)
        bins[:] = uint64(_EMPTY)
        for round_ in range(2 * len(bins)):
            _fill_bins(words, count, round_, bins)
            if count == 0 or bins.max() != uint64(_EMPTY):
                break
            if round_ == 0 and count >= _REPETITIVE:
                count = _distinct(words, count, np.empty(count, np.uint64))
        for band in range(keys.shape[1]):
            h = uint64(band + 1)
            for j in range(band * rows, (band + 1) * rows):
                h = mix(h * uint64(_GOLDEN) + bins[j])
            keys[d, band] = int64(h >> uint64(1))


@kernel
def _shingle_sets(data, offsets, table, ngram, room, out, ends):  # type: ignore[no-untyped-def]
    words, spare = np.empty(room, np.uint64), np.empty(room, np.uint64)
    filled = 0
    for d in range(len(offsets) - 1):
        count = _word_hashes(data, offsets[d], offsets[d + 1], table, words)
        count = _distinct(words, _shingles(words, count, ngram), spare)
        out[filled : filled + count] = words[:count]
        filled += count
        ends[d + 1] = filled
