"""Files of supervised fastText models, `.bin` and `.ftz`.

    int32    magic 793712314, version 11 or 12
    int32    dimensions, window, epochs, least count, negatives, word n-gram, loss, model, buckets, shortest and longest
             character n-gram, update rate;   float64  sampling threshold
    int32    entries, words, labels;   int64  tokens, pruned n-grams (-1: not pruned)
    entries  text and 0, int64 count, int8 type;   int32 pairs (bucket, row) of the n-grams that pruning kept
    bool     input quantised;   the input matrix;   bool  output quantised;   the output matrix

A matrix is int64 rows and columns and its float32 values; a quantised one has a product quantiser's codes (Joulin et
al. 2016, arXiv:1612.03651), which are unpacked here. Values that are not quantised are mapped, and read once to see
that each is a finite number.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from governance.errors import ManifestError

HIERARCHICAL, NEGATIVE_SAMPLING, SOFTMAX, ONE_VS_ALL = 1, 2, 3, 4
LABEL = b"__label__"
_MAGIC, _VERSIONS, _SUPERVISED = 793712314, (11, 12), 3
_CENTROIDS = 256
_MAX_BUCKETS, _MAX_GRAM = 1 << 28, 1 << 10  # no model has more; a damaged number may
_MAX_COUNT = 10**15  # largest count of a label, as in the library: from it on no Huffman tree can be built
_CHECKED_ROWS = 1 << 16  # looked at together

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FastTextFile:
    """A parsed file; arrays are read-only."""

    dimensions: int
    word_grams: int
    loss: int
    buckets: int
    shortest: int
    longest: int
    """Characters of an n-gram; 0: there are none."""
    words: list[bytes]
    labels: tuple[str, ...]
    """Without `__label__`."""
    label_counts: list[int]
    kept: npt.NDArray[np.int32] | None
    """[n-grams, 2], bucket and row of the n-grams left by pruning; None: not pruned."""
    rows: Floats
    """[words + n-grams, dimensions]."""
    output: Floats
    """[labels, dimensions]."""
    quantised: bool


def read_file(path: Path) -> FastTextFile:
    """Read a model.

    Raises:
        ManifestError: it is not a supervised fastText model, it is cut short, or its numbers contradict one another.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _parse(_Reader(data), path)
    except (struct.error, ValueError, IndexError, OverflowError, MemoryError, OSError) as error:
        detail = "" if isinstance(error, struct.error) else f" ({error})"
        raise ManifestError(
            f"{path}: is cut short, or not a fastText model{detail}. Fetch it again, or name another file."
        ) from error


class _Reader:
    """A place in bytes that moves on with each value read."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def values(self, kinds: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{kinds}", self._data, self._at)
        self._at += struct.calcsize(f"<{kinds}")
        return found

    def text(self) -> bytes:
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise ValueError("a word has no end")
        found = self._data[self._at : end]
        self._at = end + 1
        return found

    def array(self, kind: str, count: int) -> npt.NDArray[Any]:
        found = np.frombuffer(self._data, kind, count, self._at)
        self._at += found.nbytes
        return found


def _parse(reader: _Reader, path: Path) -> FastTextFile:
    head = reader.values("iiiiiiiiiiiiiid")
    magic, version, dimensions, word_grams, loss, model = head[0], head[1], head[2], head[7], head[8], head[9]
    buckets, shortest, longest = head[10:13]
    if magic != _MAGIC or version not in _VERSIONS:
        raise ManifestError(f"{path}: is not a fastText model of version 11 or 12. Give a .bin or .ftz file.")
    if model != _SUPERVISED or loss not in (HIERARCHICAL, NEGATIVE_SAMPLING, SOFTMAX, ONE_VS_ALL):
        raise ManifestError(f"{path}: holds word vectors, not a classifier. Give a supervised fastText model.")
    if version == 11:
        longest = 0  # supervised models of that version have no character n-grams
    if not (0 <= buckets <= _MAX_BUCKETS and all(0 <= size <= _MAX_GRAM for size in (word_grams, shortest, longest))):
        raise ValueError(f"{buckets} buckets, {word_grams} words and {shortest} to {longest} characters of an n-gram")
    entries, words, labels, _, pruned = reader.values("iiiqq")
    if entries != words + labels or words < 0 or labels < 1 or dimensions < 1 or pruned < -1:
        raise ValueError(f"{entries} entries for {words} words and {labels} labels, {pruned} n-grams kept")
    named = [(reader.text(), *reader.values("qb")) for _ in range(entries)]
    kept = reader.array("<i4", 2 * pruned).reshape(-1, 2) if pruned >= 0 else None
    (quantised,) = reader.values("?")
    rows = _unpack(reader) if quantised else _matrix(reader)
    (output_quantised,) = reader.values("?")
    output = _unpack(reader) if quantised and output_quantised else _matrix(reader)
    counts = [count for _, count, _ in named[words:]]
    has_grams = word_grams > 1 or longest > 0
    if rows.shape[1] != dimensions or output.shape != (labels, dimensions):
        raise ValueError(f"matrices of {rows.shape} and {output.shape} for {dimensions} dimensions, {labels} labels")
    if len(rows) < words + buckets * (has_grams and kept is None) or (has_grams and not buckets):
        raise ValueError(f"{len(rows)} rows for {words} words and {buckets} buckets of n-grams")
    if kept is not None and not _within(kept, (buckets, len(rows) - words)):
        raise ValueError(f"an n-gram that pruning kept is not among {buckets} buckets and {len(rows) - words} rows")
    if not all(0 <= count < _MAX_COUNT for count in counts):
        raise ValueError("the count of a label is negative or too large")
    if not (_is_finite(rows) and _is_finite(output)):
        raise ValueError("a weight is not a finite number")
    return FastTextFile(
        dimensions=dimensions,
        word_grams=word_grams,
        loss=loss,
        buckets=buckets,
        shortest=shortest,
        longest=longest,
        words=[word for word, _, _ in named[:words]],
        labels=tuple(word.removeprefix(LABEL).decode("utf-8") for word, _, _ in named[words:]),
        label_counts=counts,
        kept=kept,
        rows=rows,
        output=output,
        quantised=bool(quantised),
    )


def _within(kept: npt.NDArray[np.int32], bounds: tuple[int, int]) -> bool:
    return bool(((kept >= 0) & (kept < np.array(bounds, np.int64))).all())


def _is_finite(rows: Floats) -> bool:
    parts = (rows[start : start + _CHECKED_ROWS] for start in range(0, len(rows), _CHECKED_ROWS))
    return all(bool(np.isfinite(part).all()) for part in parts)


def _matrix(reader: _Reader) -> Floats:
    count, width = reader.values("qq")
    if count < 0 or width < 0:
        raise ValueError(f"a matrix of {count} rows and {width} columns")
    return reader.array("<f4", count * width).reshape(count, width)


def _unpack(reader: _Reader) -> Floats:
    """Product quantisation undone: each row is a norm times its parts' centroids."""
    (with_norm,) = reader.values("?")
    count, width, size = reader.values("qqi")
    if count < 0 or width < 1 or size < 0:
        raise ValueError(f"a quantised matrix of {count} rows and {width} columns in {size} codes")
    codes, parts = reader.array("u1", size), _centroids(reader)
    widths = [part.shape[1] for part in parts]
    if sum(widths) != width or size != count * len(parts):
        raise ValueError(f"{len(parts)} parts of {sum(widths)} columns in a matrix of {width}, {size} codes")
    places = codes.reshape(count, len(parts))
    rows = np.concatenate([part[places[:, number]] for number, part in enumerate(parts)], axis=1)
    if with_norm:
        norms = reader.array("u1", count)
        (centroids,) = _centroids(reader)
        if centroids.shape[1] != 1:
            raise ValueError(f"norms of {centroids.shape[1]} columns")
        rows = centroids[norms] * rows
    return np.ascontiguousarray(rows, np.float32)


def _centroids(reader: _Reader) -> list[Floats]:
    """[256, width] of each part; the last part may be narrower."""
    dimensions, parts, width, last = reader.values("iiii")
    if min(dimensions, parts, width, last) < 1:
        raise ValueError(f"{parts} parts of {width} and {last} of {dimensions} columns")
    values = reader.array("<f4", dimensions * _CENTROIDS)
    whole = (parts - 1) * _CENTROIDS * width
    found = list(values[:whole].reshape(parts - 1, _CENTROIDS, width))
    return [*found, values[whole:].reshape(_CENTROIDS, last)]
