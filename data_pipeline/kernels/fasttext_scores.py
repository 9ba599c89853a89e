"""Probabilities of chosen labels by any supervised fastText model (arXiv:1607.01759).

The library's own arithmetic: words between ASCII white space, character and word n-grams by FNV-1a buckets, rows summed
in float32 in the order of the text, then softmax, one-vs-all, negative sampling (both by its table of the sigmoid) or
hierarchical softmax. As there, a probability p is given as p + 1e-5, and a line end is a blank of the one line that a
text is. `tests/data_pipeline/test_fasttext_scores.py` compares it with the library.

A score that overflows float32 is not a number: the caller refuses it.

Price: the rows of a text's words and n-grams are read once; a matrix that is not quantised is mapped from its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import float32, int32, int64, njit, uint32, uint64

from data_pipeline.kernels.fasttext import huffman
from data_pipeline.kernels.fasttext_file import HIERARCHICAL, LABEL, SOFTMAX, read_file
from governance.kernels.buffers import Bytes, Offsets

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_END_OF_LINE = b"</s>"
_FLOOR = 1e-5  # the library adds this to a probability, and gives none below it
_SIGMOIDS, _END = 512, 8  # entries of the table, and the largest argument in it
_TABLE = (1 / (1 + np.exp(-(np.arange(_SIGMOIDS + 1, dtype=np.float32) * 2 * _END / _SIGMOIDS - _END)))).astype(
    np.float32
)
_LABEL_BYTES = np.frombuffer(LABEL, np.uint8)
_TEXTS = 4096  # texts whose hidden layers are held at a time
_ROWS = 2048  # rows of a text that are gathered before they are added up


@dataclass(frozen=True)
class TextClassifier:
    """A model ready to score; arrays are read-only."""

    labels: tuple[str, ...]
    rows: Floats
    output: Floats
    table: npt.NDArray[np.int32]
    """Open addressing by a word's hash: the word's number, or -1."""
    word_bytes: Bytes
    word_ends: Integers
    grams: npt.NDArray[np.int32]
    """[buckets], the row of each bucket, -1 where pruning dropped it; empty where nothing was pruned."""
    pruned: bool
    buckets: int
    word_grams: int
    shortest: int
    longest: int
    end_of_line: int
    """Number of the word that ends a line, or -1."""
    loss: int
    paths: tuple[Integers, ...]
    """Hierarchical softmax: [steps, 2] a label, row of the output and 1 for its right child."""


def load_classifier(path: Path) -> TextClassifier:
    """Read a model.

    Raises:
        ManifestError: it is not a supervised fastText model, or it is cut short.
    """
    file = read_file(path)
    word_bytes = np.frombuffer(b"".join(file.words), np.uint8)
    ends = np.cumsum([0, *map(len, file.words)])
    table = np.full(1 << (4 * len(file.words)).bit_length(), -1, np.int32)
    _fill(word_bytes, ends, table)
    grams = np.zeros(0, np.int32)
    if file.kept is not None:
        grams = np.full(file.buckets, -1, np.int32)
        grams[file.kept[:, 0]] = len(file.words) + file.kept[:, 1]
    return TextClassifier(
        labels=file.labels,
        rows=file.rows,
        output=np.array(file.output, np.float32),
        table=table,
        word_bytes=word_bytes,
        word_ends=ends,
        grams=grams,
        pruned=file.kept is not None,
        buckets=file.buckets,
        word_grams=file.word_grams,
        shortest=file.shortest,
        longest=file.longest,
        end_of_line=file.words.index(_END_OF_LINE) if _END_OF_LINE in file.words else -1,
        loss=file.loss,
        paths=_paths(file.label_counts) if file.loss == HIERARCHICAL else (),
    )


def _paths(counts: list[int]) -> tuple[Integers, ...]:
    children = huffman(counts)
    leaves = len(counts)
    above = {int(child): (parent, side) for parent in range(leaves, len(children))
             for side, child in enumerate(children[parent])}  # fmt: skip
    found = []
    for leaf in range(leaves):
        steps, node = [], leaf
        while node in above:
            node, side = above[node]
            steps.append((node - leaves, side))
        found.append(np.array(steps[::-1], np.int64).reshape(-1, 2))
    return tuple(found)


def score_labels(data: Bytes, offsets: Offsets, model: TextClassifier, chosen: Sequence[int]) -> Floats:
    """Probability of each chosen label in each text, [texts, chosen].

    It is 0 where no row of the model occurs in a text.
    """
    count = len(offsets) - 1
    data, matrix = _read_only(data), _read_only(model.rows)
    found = np.zeros((count, len(chosen)), np.float32)
    if model.loss == HIERARCHICAL:
        rows_above, nodes, leaves = _tree_of([model.paths[label] for label in chosen])
        weights = np.ascontiguousarray(model.output[rows_above].T)
    for first in range(0, count, _TEXTS):
        part = offsets[first : first + _TEXTS + 1]
        hidden, rows = np.zeros((len(part) - 1, model.rows.shape[1]), np.float32), np.zeros(len(part) - 1, np.int64)
        _hide(
            data, part, matrix, model.table, model.word_bytes, model.word_ends, model.grams, model.pruned,
            max(1, model.buckets), model.word_grams, model.shortest, model.longest, model.end_of_line, _LABEL_BYTES,
            hidden, rows,
        )  # fmt: skip
        scores = found[first : first + len(rows)]
        if model.loss == SOFTMAX:
            with np.errstate(over="ignore", invalid="ignore"):
                values = hidden @ model.output.T
                values = np.exp(values - values.max(axis=1, keepdims=True))
                scores[:] = (values / values.sum(axis=1, keepdims=True))[:, list(chosen)] + np.float32(_FLOOR)
        elif model.loss == HIERARCHICAL:
            _descend(hidden, weights, nodes, leaves, scores)
        else:
            _sigmoids(hidden, model.output, np.array(chosen, np.int64), _TABLE, scores)
        scores[rows == 0] = 0
    return found


def _read_only(array: Any) -> Any:
    """A read-only view, so that one kernel serves memory and files."""
    view = array.view()
    view.flags.writeable = False
    return view


@njit(inline="always")
def _hashed(h, byte):  # type: ignore[no-untyped-def]
    signed = uint32(byte) if byte < 128 else uint32(byte) | uint32(0xFFFFFF00)  # the library hashes signed characters
    return uint32((h ^ signed) * uint32(16777619))


@njit(inline="always")
def _is_blank(c):  # type: ignore[no-untyped-def]
    return c == 32 or 9 <= c <= 13 or c == 0


@njit(cache=True)
def _fill(word_bytes, ends, table):  # type: ignore[no-untyped-def]
    for number in range(len(ends) - 1):
        h = uint32(2166136261)
        for k in range(ends[number], ends[number + 1]):
            h = _hashed(h, word_bytes[k])
        place = int64(h) & (len(table) - 1)
        while table[place] >= 0:
            place = (place + 1) & (len(table) - 1)
        table[place] = number


@njit(inline="always")
def _find(data, first, size, h, table, word_bytes, ends):  # type: ignore[no-untyped-def]
    """The number of a word, or -1."""
    place = int64(h) & (len(table) - 1)
    found = -1
    while table[place] >= 0 and found < 0:
        number = table[place]
        start = ends[number]
        if ends[number + 1] - start == size:
            k = 0
            while k < size and word_bytes[start + k] == data[first + k]:
                k += 1
            if k == size:
                found = number
        place = (place + 1) & (len(table) - 1)
    return found


@njit(inline="always")
def _add_rows(rows, chosen, count, hidden):  # type: ignore[no-untyped-def]
    for k in range(count):
        row = chosen[k]
        for d in range(rows.shape[1]):
            hidden[d] += rows[row, d]


@njit(inline="always")
def _row_of(bucket, words, grams, pruned):  # type: ignore[no-untyped-def]
    """The row of a bucket of n-grams, or -1."""
    return int64(grams[bucket]) if pruned else words + bucket


@njit(nogil=True, cache=True)
def _hide(  # type: ignore[no-untyped-def]
    data, offsets, rows, table, word_bytes, ends, grams, pruned, buckets, word_grams, shortest, longest, end_of_line,
    label, hidden, counts,
):  # fmt: skip
    words = len(ends) - 1
    hashes = np.zeros(1024, np.int32)
    word = np.zeros(64, np.uint8)
    # Rows are added up together, so that those which no cache holds are fetched at the same time.
    chosen = np.zeros(_ROWS + longest + word_grams + 1, np.int64)
    for text in range(len(offsets) - 1):
        i, stop = offsets[text], offsets[text + 1]
        own = hidden[text]
        count = met = waiting = 0
        while i < stop:
            if _is_blank(data[i]):
                i += 1
                continue
            first = i
            h = uint32(2166136261)
            while i < stop and not _is_blank(data[i]):
                h = _hashed(h, data[i])
                i += 1
            size = i - first
            is_label = size >= len(label)
            for k in range(len(label)):
                is_label = is_label and data[first + k] == label[k]
            if is_label:
                continue  # the library treats it as a label of the line
            number = _find(data, first, size, h, table, word_bytes, ends)
            if number == end_of_line and number >= 0:
                break  # a text that spells the end of a line ends there
            if met == len(hashes):
                hashes = np.append(hashes, np.zeros(len(hashes), np.int32))
            hashes[met] = int32(h)
            met += 1
            if waiting >= _ROWS:
                _add_rows(rows, chosen, waiting, own)
                count, waiting = count + waiting, 0
            if number >= 0:
                chosen[waiting] = number
                waiting += 1
            if longest > 0:
                if len(word) < size + 2:
                    word = np.zeros(2 * size + 2, np.uint8)
                word[0], word[size + 1] = 60, 62  # "<" and ">" mark a word's ends
                for k in range(size):
                    word[k + 1] = data[first + k]
                for a in range(size + 2):
                    if word[a] & 0xC0 == 0x80:
                        continue
                    if waiting >= _ROWS:
                        _add_rows(rows, chosen, waiting, own)
                        count, waiting = count + waiting, 0
                    g = uint32(2166136261)
                    j, n = a, 1
                    while j < size + 2 and n <= longest:
                        g = _hashed(g, word[j])
                        j += 1
                        while j < size + 2 and word[j] & 0xC0 == 0x80:
                            g = _hashed(g, word[j])
                            j += 1
                        if n >= shortest and not (n == 1 and (a == 0 or j == size + 2)):
                            row = _row_of(int64(g) % buckets, words, grams, pruned)
                            if row >= 0:
                                chosen[waiting] = row
                                waiting += 1
                        n += 1
        if end_of_line >= 0:
            chosen[waiting] = end_of_line
            waiting += 1
        if met == len(hashes):
            hashes = np.append(hashes, np.zeros(len(hashes), np.int32))
        hashes[met] = int32(uint32(3617362777))  # the hash of "</s>"
        met += 1
        for a in range(met):
            if waiting >= _ROWS:
                _add_rows(rows, chosen, waiting, own)
                count, waiting = count + waiting, 0
            wide = uint64(int64(hashes[a]))
            for b in range(a + 1, min(met, a + word_grams)):
                wide = wide * uint64(116049371) + uint64(int64(hashes[b]))
                row = _row_of(int64(wide % uint64(buckets)), words, grams, pruned)
                if row >= 0:
                    chosen[waiting] = row
                    waiting += 1
        _add_rows(rows, chosen, waiting, own)
        count += waiting
        counts[text] = count
        if count:
            scale = float32(1.0 / count)
            for d in range(len(own)):
                own[d] *= scale


def _tree_of(paths: Sequence[Integers]) -> tuple[Integers, Integers, Integers]:
    """Inner nodes above the leaves of these paths, parents first.

    Returns each node's row of the output, then (place of its parent or -1, 1 for a right child) of nodes and of leaves.
    """
    places: dict[int, int] = {}
    nodes: list[tuple[int, int]] = []
    leaves = []
    for path in paths:
        above = (-1, 0)
        for row, side in path.tolist():
            if row not in places:
                places[row] = len(nodes)
                nodes.append(above)
            above = (places[row], side)
        leaves.append(above)
    rows = np.array([*places], np.int64)
    return rows, np.array(nodes, np.int64).reshape(-1, 2), np.array(leaves, np.int64).reshape(-1, 2)


@njit(nogil=True, cache=True)
def _descend(hidden, weights, nodes, leaves, scores):  # type: ignore[no-untyped-def]
    """Probabilities of leaves; each inner node is computed once.

    One that the library omits is 0.

    `weights` [dimensions, nodes] are added up in the library's order of dimensions, for all nodes side by side.
    """
    count = weights.shape[1]
    dots = np.zeros(count, np.float32)
    below = np.zeros((count, 2), np.float32)  # score of each child
    for text in range(len(hidden)):
        dots[:] = 0
        for d in range(weights.shape[0]):
            value = hidden[text, d]
            for node in range(count):
                dots[node] += weights[d, node] * value
        for node in range(count):
            above = float32(0) if nodes[node, 0] < 0 else below[nodes[node, 0], nodes[node, 1]]
            f = float32(1.0 / (1.0 + np.exp(-dots[node])))
            below[node, 0] = above + float32(np.log((float32(1.0) - f) + _FLOOR))
            below[node, 1] = above + float32(np.log(f + _FLOOR))
        for place in range(len(leaves)):
            score = float32(0) if leaves[place, 0] < 0 else below[leaves[place, 0], leaves[place, 1]]
            scores[text, place] = 0.0 if score < float32(np.log(_FLOOR)) else np.exp(score)  # NaN stays NaN


@njit(nogil=True, cache=True)
def _sigmoids(hidden, output, chosen, table, scores):  # type: ignore[no-untyped-def]
    for text in range(len(hidden)):
        for place in range(len(chosen)):
            dot = float32(0)
            for d in range(output.shape[1]):
                dot += output[chosen[place], d] * hidden[text, d]
            if np.isnan(dot):
                value = dot  # it has no place in the table
            elif dot < -_END:
                value = float32(0)
            elif dot > _END:
                value = float32(1)
            else:
                value = table[int64(float32(dot + float32(_END)) * float32(_SIGMOIDS / _END / 2))]  # rounded as there
            scores[text, place] = value + _FLOOR
