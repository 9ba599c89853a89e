"""Linear models over hashed words and word n-grams.

The model: logistic regression on binary features, each the presence of an n-gram of 1 to `ngram` words, hashed into
buckets (Weinberger et al. 2009, "Feature hashing for large scale multitask learning"), with the vector of a text scaled
to length 1. It is trained with AdaGrad (Duchi et al. 2011), one document at a time in a given order: one thread, no
reassociated sums, so the same documents in the same order give the same weights.

A *word* is a run of letters, digits and of bytes above ASCII, capitals of ASCII folded; from U+2E80 on (ideographs,
kana, Hangul) each code point is a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import int64, njit, uint64

Floats = npt.NDArray[np.float32]


def train(
    texts: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]], labels: npt.NDArray[np.float64],
    order: npt.NDArray[np.int64], weights: Floats, ngram: int, learning_rate: float, penalty: float,
) -> None:  # fmt: skip
    """Pass over the documents in `order` and change `weights` in place.

    `weights[0]` is the intercept.

    `texts` are UTF-8 bytes and offsets, `labels` 0 or 1 per document, `penalty` the L2 penalty per document on the
    weights that it touches.
    """
    data, offsets = texts
    found, stamps = _scratch(offsets, weights, ngram)
    squares = np.full(len(weights), 1e-6, np.float32)
    _train(data, offsets, labels, order, weights, squares, ngram, learning_rate, penalty, found, stamps)


def score(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], weights: Floats, ngram: int
) -> npt.NDArray[np.float64]:
    """The probability of label 1 of each text."""
    scores = np.zeros(len(offsets) - 1)
    _score(data, offsets, weights, ngram, *_scratch(offsets, weights, ngram), scores)
    return scores


def _scratch(offsets: npt.NDArray[np.int64], weights: Floats, ngram: int) -> tuple[Any, Any]:
    longest = int(np.diff(offsets).max(initial=0))
    return np.zeros(min(len(weights), longest * ngram + 1), np.int64), np.full(len(weights), -1, np.int64)


@njit(inline="always")
def _hash(h, byte):  # type: ignore[no-untyped-def]
    return (h ^ uint64(byte)) * uint64(0x100000001B3)


@njit(nogil=True, cache=True)
def _features(data, start, end, ngram, mark, found, stamps):  # type: ignore[no-untyped-def]
    """The distinct buckets of a text's n-grams, into `found`; returns how many.

    `mark` is unique to the call.
    """
    count = 0
    buckets = uint64(len(stamps) - 1)
    previous = np.zeros(8, np.uint64)  # hashes of the words before, the last first
    words = 0
    i = start
    while i < end:
        c = data[i]
        plain = 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c >= 0x80
        if not plain:
            i += 1
            continue
        h = uint64(0xCBF29CE484222325)
        if c >= 0xE2 and not (c == 0xE2 and i + 1 < end and data[i + 1] < 0xBA):
            h = _hash(h, c)
            i += 1
            while i < end and data[i] & 0xC0 == 0x80:
                h = _hash(h, data[i])
                i += 1
        else:
            while i < end:
                c = data[i]
                if 65 <= c <= 90:
                    c += 32
                wide = c >= 0xE2 and not (c == 0xE2 and i + 1 < end and data[i + 1] < 0xBA)
                if wide or not (48 <= c <= 57 or 97 <= c <= 122 or c >= 0x80):
                    break
                h = _hash(h, c)
                i += 1
        gram = h
        for n in range(min(ngram, words + 1)):
            if n:
                gram = (gram ^ (previous[n - 1] >> uint64(7))) * uint64(0x9E3779B97F4A7C15)
            mixed = (gram ^ (gram >> uint64(29))) * uint64(0xBF58476D1CE4E5B9)
            bucket = int64((mixed >> uint64(32)) % buckets) + 1
            if stamps[bucket] != mark:
                stamps[bucket] = mark
                if count < len(found):
                    found[count] = bucket
                    count += 1
        for n in range(7, 0, -1):
            previous[n] = previous[n - 1]
        previous[0] = h
        words += 1
    return count


@njit(inline="always")
def _probability(weights, found, count):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(count):
        total += weights[found[k]]
    scale = 1.0 / np.sqrt(max(count, 1))
    return 1.0 / (1.0 + np.exp(-(weights[0] + total * scale))), scale


@njit(nogil=True, cache=True)
def _train(data, offsets, labels, order, weights, squares, ngram, rate, penalty, found, stamps):  # type: ignore[no-untyped-def]
    for step in range(len(order)):
        row = order[step]
        count = _features(data, offsets[row], offsets[row + 1], ngram, step, found, stamps)
        probability, scale = _probability(weights, found, count)
        error = probability - labels[row]
        for k in range(-1, count):
            at = found[k] if k >= 0 else 0
            gradient = error * (scale if k >= 0 else 1.0) + penalty * weights[at]
            squares[at] += gradient * gradient
            weights[at] -= rate * gradient / np.sqrt(squares[at])


@njit(nogil=True, cache=True)
def _score(data, offsets, weights, ngram, found, stamps, scores):  # type: ignore[no-untyped-def]
    for row in range(len(offsets) - 1):
        count = _features(data, offsets[row], offsets[row + 1], ngram, row, found, stamps)
        scores[row] = _probability(weights, found, count)[0]
