"""Best label of a text by a quantised fastText model.

A port of prediction (arXiv:1607.01759, 1612.03651) for models with a hierarchical softmax, quantised input and pruned
character n-grams: `lid.176.ftz` is one. It is apart from `fasttext_scores.py`, which scores by any model, because every
document passes through it: its dimensions and buckets are constants, and rows of known words are kept. The table of
inputs is unpacked once (50,000 rows of 16 floats: 3 MB); a text is then a walk over its bytes that adds up rows. Sums
are made in the order and in the precision of the original, so that labels and probabilities are its own
(`tests/data_pipeline/test_language.py` compares them).

A word is a run between white space of any kind; the original sees ASCII white space only, and is given texts whose
other blanks were made ASCII before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import float32, int64, njit, types, uint32, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from data_pipeline.kernels.fasttext_file import HIERARCHICAL, read_file
from data_pipeline.kernels.words import below_mask, load_8
from governance.errors import ManifestError
from governance.kernels.compiled import kernel, part

_BUCKETS = 2_000_000  # a constant, because dividing by a variable costs more than all else here
_DIMENSIONS = 16  # a constant too, so that a sum is a few vector instructions
_CACHE_BITS = 11
_CACHED = 1 << _CACHE_BITS  # words whose rows are kept within a call; a quarter of a megabyte
_GOLDEN = 0x9E3779B97F4A7C15
_FNV_START, _FNV_PRIME = 2166136261, 16777619  # FNV-1a, 32 bits (Fowler, Noll and Vo)


@dataclass(frozen=True)
class FastTextModel:
    """A model, unpacked; arrays are read-only."""

    labels: tuple[str, ...]
    rows: npt.NDArray[np.float32]
    """[words + n-grams, dimensions]."""
    output: npt.NDArray[np.float32]
    """[labels, dimensions]."""
    word_table: npt.NDArray[np.int32]
    """Open addressing by a word's hash: the word's number, or -1."""
    word_bytes: npt.NDArray[np.uint8]
    word_ends: npt.NDArray[np.int64]
    """End of each word in `word_bytes`."""
    kept: npt.NDArray[np.uint64]
    """A bit for each bucket of n-grams: whether it was kept when the model was pruned. It fits a core's cache."""
    grams_before: npt.NDArray[np.int32]
    """The row of the first kept bucket at or after each 64th: rows of n-grams are in the order of their buckets."""
    children: npt.NDArray[np.int64]
    """[2 x labels - 1, 2], the Huffman tree; -1 for a leaf."""
    shortest: int
    longest: int
    """Characters of an n-gram."""


def load_model(path: Path) -> FastTextModel:
    """Read a model.

    Raises:
        ManifestError: it is not a model of this kind, or it is cut short.
    """
    file = read_file(path)
    if (file.dimensions, file.word_grams, file.loss, file.buckets) != (_DIMENSIONS, 1, HIERARCHICAL, _BUCKETS):
        raise ManifestError(
            f"{path}: is not a fastText model with 16 dimensions, a hierarchical softmax and 2e6 buckets."
        )
    if file.kept is None or not file.quantised:
        raise ManifestError(f"{path}: is not quantised.")
    if not file.words or not file.shortest <= file.longest:
        raise ManifestError(f"{path}: has no words, or no character n-grams.")
    grams = np.full(file.buckets, -1, np.int32)
    grams[file.kept[:, 0]] = file.kept[:, 1]
    bits = np.packbits(grams >= 0, bitorder="little")
    kept = np.pad(bits, (0, -len(bits) % 8)).view("<u8")
    count = len(file.words)
    return FastTextModel(
        labels=file.labels,
        rows=np.concatenate([file.rows[:count], file.rows[count + grams[grams >= 0]]]),
        output=file.output,
        word_table=_hash_words(file.words),
        word_bytes=np.frombuffer(b"".join(file.words), np.uint8),
        word_ends=np.cumsum([len(word) for word in file.words]),
        kept=kept,
        grams_before=(count + np.cumsum(np.bitwise_count(kept)) - np.bitwise_count(kept)).astype(np.int32),
        children=huffman(file.label_counts),
        shortest=file.shortest,
        longest=file.longest,
    )


def _fnv(data: bytes) -> int:
    value = _FNV_START
    for byte in data:
        signed = byte if byte < 128 else byte | 0xFFFFFF00  # the original hashes signed characters
        value = (value ^ signed) * _FNV_PRIME & 0xFFFFFFFF
    return value


def _hash_words(words: list[bytes]) -> npt.NDArray[np.int32]:
    size = 1 << (4 * len(words)).bit_length()
    table = np.full(size, -1, np.int32)
    for number, word in enumerate(words):
        place = _fnv(word) & (size - 1)
        while table[place] >= 0:
            place = (place + 1) & (size - 1)
        table[place] = number
    return table


def huffman(counts: list[int]) -> npt.NDArray[np.int64]:
    """The tree over labels that fall in count.

    It holds the children of each node, and -1 for the leaves 0 .. n-1.
    """
    leaves = len(counts)
    weights = [*counts, *[10**15] * (leaves - 1)]
    children = np.full((2 * leaves - 1, 2), -1, np.int64)
    leaf, node = leaves - 1, leaves
    for parent in range(leaves, 2 * leaves - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                children[parent, side], leaf = leaf, leaf - 1
            else:
                children[parent, side], node = node, node + 1
        weights[parent] = weights[children[parent, 0]] + weights[children[parent, 1]]
    return children


def classify(
    data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], model: FastTextModel
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Best label and probability of each range; -1 and 0 without words."""
    count = len(starts)
    longest = int((ends - starts).max(initial=0))
    labels, probabilities = np.full(count, -1, np.int64), np.zeros(count, np.float32)
    _classify(
        data, starts, ends, model.rows, model.output, model.word_table, model.word_bytes, model.word_ends,
        model.kept, model.grams_before, model.children, model.shortest, model.longest, longest, labels, probabilities,
    )  # fmt: skip
    return labels, probabilities


@njit(inline="always")
def _space_bytes(data, i, end):  # type: ignore[no-untyped-def]
    """Length of the white space character at byte `i`, or 0."""
    c = data[i]
    if c == 32 or 9 <= c <= 13 or 28 <= c <= 31 or c == 0:
        return 1
    if c == 0xC2 and i + 1 < end and (data[i + 1] == 0x85 or data[i + 1] == 0xA0):
        return 2
    if i + 2 >= end or c < 0xE1 or c > 0xE3:
        return 0
    d, e = data[i + 1], data[i + 2]
    if c == 0xE1 and d == 0x9A and e == 0x80:
        return 3
    if c == 0xE2 and d == 0x80 and (0x80 <= e <= 0x8A or e == 0xA8 or e == 0xA9 or e == 0xAF):
        return 3
    if (c == 0xE2 and d == 0x81 and e == 0x9F) or (c == 0xE3 and d == 0x80 and e == 0x80):
        return 3
    return 0


@njit(inline="always")
def _hashed(h, byte):  # type: ignore[no-untyped-def]
    signed = uint32(byte) if byte < 128 else uint32(byte) | uint32(0xFFFFFF00)
    return uint32((h ^ signed) * uint32(16777619))


@intrinsic
def _ones(typingctx, bits):  # type: ignore[no-untyped-def]
    """Number of bits that are 1."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def _add_rows(typingctx, chosen, first, count, rows, hidden):  # type: ignore[no-untyped-def]
    """Add the rows `chosen[first:first + count]` to `hidden`, in order.

    The sum stays in registers, where a loop over the arrays would write it back after each row.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(ir.FloatType(), _DIMENSIONS).as_pointer()
        numbers, table, total = (
            context.make_array(signature.args[place])(context, builder, arguments[place]).data for place in (0, 3, 4)
        )
        into = builder.bitcast(total, vector)
        held = cgutils.alloca_once_value(builder, builder.load(into, align=4))
        with cgutils.for_range(builder, arguments[2]) as loop:
            number = builder.load(builder.gep(numbers, [builder.add(arguments[1], loop.index)]))
            place = builder.mul(builder.sext(number, ir.IntType(64)), ir.Constant(ir.IntType(64), _DIMENSIONS))
            row = builder.load(builder.bitcast(builder.gep(table, [place]), vector), align=4)
            builder.store(builder.fadd(builder.load(held), row), held)
        builder.store(builder.load(held), into, align=4)
        return context.get_dummy_value()

    return types.void(chosen, types.int64, types.int64, rows, hidden), generate


@kernel
def _classify(  # type: ignore[no-untyped-def]
    data, starts, ends, rows, output, word_table, word_bytes, word_ends, kept, grams_before, children,
    shortest, longest, size_bytes, labels, probabilities,
):  # fmt: skip
    hidden = np.zeros(_DIMENSIONS, np.float32)
    word = np.zeros(size_bytes + 2, np.uint8)  # made once: an array that grew would cost each word a count of its users
    # A word of n characters has n + 2 with its marks; there are no more words or characters than bytes.
    chosen = np.zeros((longest - shortest + 1) * 3 * size_bytes + size_bytes + 2, np.int32)
    # Rows of words of up to eight bytes, which are their own keys: a word has no byte 0.
    room = (longest - shortest + 1) * 10 + 1
    keys, sizes = np.zeros(_CACHED, np.uint64), np.zeros(_CACHED, np.int32)
    cached = np.zeros(_CACHED * room, np.int32)
    stack = np.zeros(2 * len(labels) + 2 * len(output), np.int64)
    scores = np.zeros(len(stack), np.float32)
    for text in range(len(starts)):
        i, stop = starts[text], ends[text]
        count = 0
        any_word = False
        hidden[:] = float32(0)
        while i < stop:
            blank = _space_bytes(data, i, stop)
            if blank:
                i += blank
                continue
            first = i
            while i < stop and not _space_bytes(data, i, stop):
                i += 1
            size = i - first
            any_word = True
            if size > 8 or first + 8 > len(data):
                found = _rows_of(
                    data, first, size, word, word_table, word_bytes, word_ends, shortest, longest, kept, grams_before,
                    chosen, 0,
                )  # fmt: skip
                _add_rows(chosen, 0, found, rows, hidden)
                count += found
                continue
            key = load_8(data, first)
            if size < 8:
                key &= below_mask(size)
            slot = int64((key * uint64(_GOLDEN)) >> uint64(64 - _CACHE_BITS))
            if keys[slot] != key:
                keys[slot] = key
                sizes[slot] = _rows_of(
                    data, first, size, word, word_table, word_bytes, word_ends, shortest, longest, kept, grams_before,
                    cached, slot * room,
                )  # fmt: skip
            found = int64(sizes[slot])
            _add_rows(cached, slot * room, found, rows, hidden)
            count += found
        if not any_word:
            continue
        count += 1
        for d in range(_DIMENSIONS):
            hidden[d] += rows[0, d]  # the line's end is a word of its own, the first of the dictionary
        scale = float32(1.0 / count)
        for d in range(_DIMENSIONS):
            hidden[d] *= scale
        label, score = _best_leaf(hidden, output, children, stack, scores)
        labels[text] = label
        probabilities[text] = np.exp(score)


@part
def _rows_of(  # type: ignore[no-untyped-def]
    data, first, size, word, word_table, word_bytes, word_ends, shortest, longest, kept, grams_before, chosen, start
):  # fmt: skip
    """Write the rows of a word and its n-grams from `start` on.

    Return how many there are.
    """
    h = uint32(2166136261)
    for k in range(size):
        h = _hashed(h, data[first + k])
        word[k + 1] = data[first + k]
    word[0] = 60  # "<" and ">" mark a word's ends
    word[size + 1] = 62
    number = _find_word(word, size, h, word_table, word_bytes, word_ends)
    count = start
    if number >= 0:
        chosen[count] = number
        count += 1
    after = _choose_grams(word, size + 2, shortest, longest, kept, chosen, count)
    for k in range(count, after):
        bucket = int64(chosen[k])  # its row is found by counting: a table of all buckets would not fit a core's cache
        below = kept[bucket >> 6] & ((uint64(1) << uint64(bucket & 63)) - uint64(1))
        chosen[k] = grams_before[bucket >> 6] + int64(_ones(below))
    return after - start


@njit(inline="always")
def _find_word(word, size, h, word_table, word_bytes, word_ends):  # type: ignore[no-untyped-def]
    place = int64(h) & (len(word_table) - 1)
    while word_table[place] >= 0:
        number = word_table[place]
        start = word_ends[number - 1] if number else 0
        if word_ends[number] - start == size:
            same = True
            for k in range(size):
                if word_bytes[start + k] != word[k + 1]:
                    same = False
                    break
            if same:
                return number
        place = (place + 1) & (len(word_table) - 1)
    return -1


@njit(inline="always")
def _choose_grams(word, size, shortest, longest, kept, chosen, count):  # type: ignore[no-untyped-def]
    """Append the buckets of a word's character n-grams; return the count."""
    for i in range(size):
        if word[i] & 0xC0 == 0x80:
            continue
        h = uint32(2166136261)
        j, n = i, 1
        while j < size and n <= longest:
            h = _hashed(h, word[j])
            j += 1
            while j < size and word[j] & 0xC0 == 0x80:
                h = _hashed(h, word[j])
                j += 1
            if n >= shortest and not (n == 1 and (i == 0 or j == size)):
                bucket = int64(h % uint32(_BUCKETS))
                chosen[count] = bucket  # counts only if it was kept; without a branch, which could not be predicted
                count += int64(kept[bucket >> 6] >> uint64(bucket & 63) & uint64(1))
            n += 1
    return count


@njit(inline="always")
def _best_leaf(hidden, output, children, stack, scores):  # type: ignore[no-untyped-def]
    """Most probable leaf, depth first, with branches below 0.00001 pruned."""
    leaves = len(output)
    best, label = float32(-np.inf), -1
    floor = float32(math.log(1e-5))
    stack[0], scores[0] = len(children) - 1, float32(0)
    depth = 1
    while depth:
        depth -= 1
        node, score = stack[depth], scores[depth]
        if score < floor or score < best:
            continue
        if node < leaves:
            if score > best:
                best, label = score, node
            continue
        dot = float32(0)
        for d in range(_DIMENSIONS):
            dot += output[node - leaves, d] * hidden[d]
        f = float32(1.0 / (1.0 + math.exp(-dot)))
        stack[depth], scores[depth] = children[node, 1], float32(score + float32(math.log(f + 1e-5)))
        stack[depth + 1] = children[node, 0]
        scores[depth + 1] = float32(score + float32(math.log(1.0 - f + 1e-5)))
        depth += 2
    return label, best
