"""Counts of the words that GPT-2's pre-tokenizer finds in texts.

A kernel counts them (`kernels/gpt2_words.py`), with letters, numbers and spaces as `tokenizers` knows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.tokens.unknown_characters import library_classes

_BATCH_BYTES = 16 << 20


class WordCounts(NamedTuple):
    """Distinct words, in the order in which they first occur."""

    letters: bytes
    """All words, joined."""
    sizes: npt.NDArray[np.int64]
    """Bytes of each."""
    counts: npt.NDArray[np.int64]


def count_words(texts: Iterable[bytes]) -> WordCounts:
    """Occurrences of each word in the texts, which are UTF-8."""
    from data_pipeline.kernels.gpt2_words import add_words, counted_words, no_words

    words, classes = no_words(), library_classes()
    for batch in _batches(texts):
        ends = np.fromiter(accumulate(map(len, batch), initial=0), np.int64, len(batch) + 1)
        words = add_words(np.frombuffer(b"".join([*batch, bytes(8)]), np.uint8), ends, classes, words)
    return WordCounts(*counted_words(words))


def _batches(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    held: list[bytes] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= _BATCH_BYTES:
            yield held
            held, size = [], 0
    yield held
