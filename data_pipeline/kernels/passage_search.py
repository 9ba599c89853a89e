"""Passage search: four-word seeds, then verified matches with edits.

A *passage* is a run of words (see `folding.py`) of w words. It is *found* in a text where one of its runs of SEED_WORDS
words occurs in it and, with the passage aligned to the text at those words, one of two holds:

- coverage: at least w - `errors` of its words, in order, are words of the text, none further than `band` words from
  where the alignment places them (a longest common subsequence within a band: Sakoe and Chiba 1978);
- run: at least `run_words` consecutive words of it occur in the text, or at least its own `part` of them.

So a passage that occurs word by word is always found, and so is an edited one, as long as one seed is
whole. The share of words that meet, with gaps, is the measure of Touvron et al. 2023 (Llama 2, A.6: ten-grams with a
"skipgram budget" of four) and of Chowdhery et al. 2022 (PaLM: 70 % of 8-grams); runs of 13 words that of Brown et al.
2020 (GPT-3, appendix C).

A run that occurs in more than COMMON places of the passages ("which of the following") would cost as many
comparisons each time. There only the first COMMON places are compared, and then those where as many words more meet,
again if they are at most that many, and so on: 4, 8, 16 ... words. A passage too short to give this many words is
compared by its beginning, so that a verbatim one is always found.

Words are compared by 64-bit hashes. The index takes some 40 bytes per word of the passages; its bitmap 4 MiB at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import int64, njit, uint64

from data_pipeline.kernels.folding import fold_words, folding, most_words
from governance.kernels.compiled import kernel

SEED_WORDS = 4
COMMON = 8
_FACTOR = 0x9E3779B97F4A7C15
MAX_BAND = 64
_BITMAP_BITS = (16, 25)
_LAST = (1 << 21) - 1  # the packing below: a passage, with its band, has fewer words than this
MAX_PASSAGE_WORDS = _LAST - 2 * MAX_BAND

Integers = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Passages:
    """Passages over one array of words.

    They may share words: a part is within its whole.
    """

    words: Words
    limits: Integers
    """A row per passage: index of its first word, index after its last word, `errors`, `band`, `part`."""
    owners: Integers
    """A row per word: the passages that a seed which begins here belongs to, one that encloses no other, and one that
    encloses others; -1 where there is none."""


@dataclass(frozen=True)
class Index:
    """Passages and the places of their seeds."""

    passages: Passages
    keys: Words
    """The seeds' hashes, distinct, sorted."""
    starts: Integers
    """Begin of each seed's places in `places`; one more than there are seeds."""
    places: Integers
    """Indices of words at which a seed begins."""
    longer: npt.NDArray[np.bool_]
    """For each seed: whether there are places that are looked up by twice as many words."""
    directory: Integers
    """Begin of the keys with these leading bits."""
    bitmap: npt.NDArray[np.uint64]
    """A bit for each key, at the place given by its last bits."""


def _extend(keys: Words, words: Words, at: Integers, count: int) -> Words:
    """The hashes of longer runs.

    Each is extended by `count` words from `at` on, after those that `keys` are of.
    """
    for k in range(count):
        keys = keys * np.uint64(_FACTOR) + words[at + k]
    return keys


def _seeds(passages: Passages) -> tuple[Words, Integers, Words]:
    """Seed keys with places, sorted, and keys with longer forms."""
    words, limits = passages.words, passages.limits
    at = np.arange(max(0, len(words) - SEED_WORDS + 1), dtype=np.int32)
    owner = np.where(passages.owners[:, 0] >= 0, passages.owners[:, 0], passages.owners[:, 1])[: len(at)]
    at, owner = at[owner >= 0], owner[owner >= 0]
    keys = _extend(np.zeros(len(at), np.uint64), words, at, SEED_WORDS)
    found, longer = [(keys[:0], at[:0])], [keys[:0]]
    length = SEED_WORDS
    while len(at):
        order = np.lexsort((at, keys))
        keys, at, owner = keys[order], at[order], owner[order]
        begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        sizes = np.diff(np.append(begins, len(keys)))
        rank = np.arange(len(keys)) - np.repeat(begins, sizes)
        fits = limits[owner, 1] - at >= 2 * length
        beginning = (at == limits[owner, 0]) & ~fits
        here = (rank < COMMON) | beginning
        found.append((keys[here], at[here]))
        further = np.repeat(sizes > COMMON, sizes) & fits
        longer.append(np.unique(keys[further]))
        keys, at, owner = _extend(keys[further], words, at[further] + length, length), at[further], owner[further]
        length *= 2
    keys, at = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(keys, kind="stable")  # merges runs that are sorted already
    return keys[order], at[order], np.unique(np.concatenate(longer))


def build_index(passages: Passages) -> Index:
    """Find the seeds of all passages and sort them."""
    keys, places, longer = _seeds(passages)
    distinct, begins = np.unique(keys, return_index=True)
    bits = max(1, len(distinct).bit_length())
    leading = np.bincount((distinct >> np.uint64(64 - bits)).astype(np.int64), minlength=1 << bits)
    lowest, highest = _BITMAP_BITS
    size = min(highest, max(lowest, bits + 4))
    bitmap = np.zeros(1 << size, bool)
    bitmap[distinct & np.uint64((1 << size) - 1)] = True
    return Index(
        passages=passages,
        keys=distinct,
        starts=np.append(begins, len(keys)).astype(np.int32),
        places=places,
        longer=np.isin(distinct, longer),
        directory=np.append(0, np.cumsum(leading)).astype(np.int32),
        bitmap=np.packbits(bitmap, bitorder="little").view(np.uint64),
    )


@njit(inline="always")
def _number_of(key, keys, directory, shift):  # type: ignore[no-untyped-def]
    """The number of a key, or -1."""
    bucket = key >> shift
    k = int64(directory[bucket])
    stop = int64(directory[bucket + uint64(1)])
    while k < stop and keys[k] < key:
        k += 1
    return k if k < stop and keys[k] == key else int64(-1)


@njit(inline="always")
def _may_match(words, count, passage, start, errors, band, blocks, filled, text):  # type: ignore[no-untyped-def]
    """Return whether at most `errors` words are certainly missing.

    Blocks of 256 words of the text have a set of their words, as 4096 bits, which is made when it is first asked for.
    Most candidates end here, long before the comparison itself.
    """
    missing = 0
    for j in range(len(passage)):
        word = passage[j]
        row = (word >> uint64(6)) & uint64(63)
        bit = uint64(1) << (word & uint64(63))
        there = False
        for block in range(max(0, start + j - band) >> 8, (min(count - 1, start + j + band) >> 8) + 1):
            if filled[block] != text:
                filled[block] = text
                blocks[block] = 0
                for i in range(block << 8, min(count, (block + 1) << 8)):
                    blocks[block, (words[i] >> uint64(6)) & uint64(63)] |= uint64(1) << (words[i] & uint64(63))
            there |= blocks[block, row] & bit != 0
        if not there:
            missing += 1
            if missing > errors:
                return False
    return True


@njit(inline="always")
def _common_words(words, count, passage, start, errors, band, above, below):  # type: ignore[no-untyped-def]
    """Longest common subsequence within a band.

    The result is (words, first and last matched word), or (0, 0, 0) if too short.

    `start` is the word of the text that meets the passage's first one. A cell packs the number of words that meet, the
    first of them (the later, the better) and the last (the earlier, the better), counted from the band's first word.
    """
    base = start - band
    width = 2 * band + 1
    above[: width + 1] = 0
    below[: width + 1] = 0
    best = int64(0)
    for row in range(len(passage)):
        expected = passage[row]
        best = int64(0)
        left = int64(0)
        for k in range(width):
            i = base + row + k
            cell = max(left, above[k + 1])
            if 0 <= i < count and words[i] == expected:
                met = above[k] >> 42
                first = (above[k] >> 21) & _LAST if met else row + k
                cell = max(cell, (met + 1) << 42 | first << 21 | (_LAST - (row + k)))
            below[k] = left = cell
            best = max(best, cell)
        if row + 1 - (best >> 42) > errors:
            return int64(0), int64(0), int64(0)
        above, below = below, above
    return best >> 42, base + ((best >> 21) & _LAST), base + _LAST - (best & _LAST)


@njit(inline="always")
def _lay(words, count, passage, start, p, limits, run_words, mine, scratch):  # type: ignore[no-untyped-def]
    """Compare a passage with the text where its words meet at `p`.

    The result is (words, first, last), or (0, 0, 0) if the passage is not found.

    `mine` keeps what is known of the passage in this text: the word up to which it was found; the place where it was
    laid in vain, and up to where its words meet those of the text there.
    """
    above, below, blocks, filled, text = scratch
    errors, band = int64(limits[2]), int64(limits[3])
    met = from_word = to_word = int64(0)
    if _may_match(words, count, passage, start, errors, band, blocks, filled, text):
        met, from_word, to_word = _common_words(words, count, passage, start, errors, band, above, below)
    low, high = p, p + SEED_WORDS
    while low > 0 and low > start and words[low - 1] == passage[low - 1 - start]:
        low -= 1
    end = min(count, start + len(passage))
    while high < end and words[high] == passage[high - start]:
        high += 1
    if met == 0 and high - low >= min(run_words, limits[4]):
        met, from_word, to_word = high - low, low, high - 1
    if met == 0:
        mine[2], mine[3] = start, high
    else:
        mine[1] = max(high, to_word + 1)
    return met, from_word, to_word


@kernel
def _search(  # type: ignore[no-untyped-def]
    data, offsets, table, several, capacity, run_words,
    sequences, limits, owners, keys, starts, places, longer, directory, bitmap,
):  # fmt: skip
    words = np.empty(capacity, np.uint64)
    spans = np.empty((capacity, 3), np.int32)
    hits = np.empty((64, 5), np.int64)
    found = 0
    above, below = np.zeros(2 * MAX_BAND + 2, np.int64), np.zeros(2 * MAX_BAND + 2, np.int64)
    state = np.full((len(limits), 4), -1, np.int32)  # per passage: a text's number, and see `_lay`
    blocks, filled = np.empty(((capacity >> 8) + 1, 64), np.uint64), np.full((capacity >> 8) + 1, -1, np.int64)
    factor = uint64(_FACTOR)
    leading = factor * factor * factor
    shift = uint64(64 - int(np.log2(len(directory) - 1)))
    mask = uint64(64 * len(bitmap) - 1)
    for text in range(len(offsets) - 1):
        begin = offsets[text]
        count = fold_words(data, begin, offsets[text + 1], table, several, words, spans)
        if count < SEED_WORDS:
            continue
        h = uint64(0)
        for p in range(SEED_WORDS - 1):
            h = h * factor + words[p]
        for p in range(count - SEED_WORDS + 1):
            key = h * factor + words[p + SEED_WORDS - 1]
            h = key - words[p] * leading
            if not bitmap[(key & mask) >> uint64(6)] >> (key & uint64(63)) & uint64(1):
                continue
            k = _number_of(key, keys, directory, shift)
            length = SEED_WORDS
            while k >= 0:
                for place in range(starts[k], starts[k + 1]):
                    q = places[place]
                    for level in range(2):
                        passage = owners[q, level]
                        if passage < 0:
                            continue
                        first, last = int64(limits[passage, 0]), int64(limits[passage, 1])
                        start = p - (q - first)
                        mine = state[passage]
                        if mine[0] != text:
                            mine[0] = text
                            mine[1] = mine[3] = 0
                        if p < mine[1]:
                            continue
                        if p < mine[3] and mine[2] == start:
                            break  # a passage that encloses a part not found here cannot be found here either
                        met, from_word, to_word = _lay(
                            words, count, sequences[first:last], start, p, limits[passage], run_words, mine,
                            (above, below, blocks, filled, text),
                        )  # fmt: skip
                        if met == 0:
                            break
                        if found == len(hits):
                            more = np.empty((2 * found, 5), np.int64)
                            more[:found] = hits
                            hits = more
                        hits[found, 0], hits[found, 1], hits[found, 2] = text, passage, met
                        hits[found, 3], hits[found, 4] = spans[from_word, 0], spans[to_word, 1]
                        found += 1
                if not longer[k] or p + 2 * length > count:
                    break
                for i in range(p + length, p + 2 * length):
                    key = key * factor + words[i]
                length *= 2
                k = _number_of(key, keys, directory, shift)
    return hits[:found].copy()


def search(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], index: Index, run_words: int
) -> npt.NDArray[np.int64]:
    """Matches in n texts: (text, passage, matching words, first byte, end).

    They are in the order of the texts, then of the seeds in them. Bytes are counted from the text's own first one. A
    passage that was found is looked for again after the place.
    """
    passages = index.passages
    capacity = most_words(int(np.diff(offsets).max(initial=0)))
    return np.asarray(
        _search(
            data, offsets, *folding(), capacity, run_words,
            passages.words, passages.limits, passages.owners,
            index.keys, index.starts, index.places, index.longer, index.directory, index.bitmap,
        )
    )  # fmt: skip
