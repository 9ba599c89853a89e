"""Span corruption of packed rows, the objective of T5 (arXiv:1910.10683, section 3.1.4).

    text      a b c d e f g h           tokens of a piece of a document
    source    a b X e f g Y END         each span is left out, a sentinel in its place
    target    X c d Y h END             the sentinels, each before its span

A piece becomes a pair as `pair_rows.py` reads it. A text of n tokens loses max(1, round(share n)) of them, in
max(1, round(lost / mean_length)) spans; where they lie follows from the row's random number and the piece's place in
the row. So a text is corrupted again in each epoch, and alike on any number of ranks, in any micro batch and after a
restart. Sizes of spans, and of what lies between them, are drawn uniformly from all that add up. As in T5 a text begins
with what is kept and ends with a span, so one that loses a single span loses its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.tokens.vocabulary import SENTINEL
from governance.errors import ConfigError
from governance.splitmix64 import INCREMENT, finalise
from pretrain.config.training import SpanCorruptionConfig

if TYPE_CHECKING:
    from pretrain.model.decoder import Batch

Integers = npt.NDArray[np.int64]
_OWN = np.uint64(0x5350414E)  # else the first piece would have the word of the row's dropout
_IGNORED = -100


@dataclass(frozen=True)
class SpanCorruption:
    """Rows of texts to rows of pairs."""

    config: SpanCorruptionConfig
    sentinels: Integers
    """Ids of the sentinels, in order."""
    end: int
    """Id that ends a document."""

    def __call__(self, batch: Batch, seeds: torch.Tensor) -> Batch:
        """Corrupt rows [B, L], with a random number of each, int64 [B].

        The result is as wide as it must be. Pieces that predict nothing (padding, removed documents) are left out.
        """
        columns = (batch.tokens, batch.targets, batch.segments, batch.origins)
        read = [np.zeros_like(batch.tokens) if column is None else column.numpy() for column in columns]
        rows = [list(self._pieces(row, seed)) for *row, seed in zip(*read, seeds.numpy(), strict=True)]
        width = max(1, *(sum(len(piece[0]) for piece in row) for row in rows))
        empty = (self.end, _IGNORED, 0, 0, -1)
        made = [np.full((len(rows), width), value, np.int64) for value in empty]
        for number, row in enumerate(rows):
            at = 0
            for piece in row:
                for column, values in zip(made, piece, strict=True):
                    column[number, at : at + len(piece[0])] = values
                at += len(piece[0])
            made[2][number, at:] = read[2][number].max() + 1
            made[3][number, at:] = np.arange(width - at)
        tokens, targets, segments, positions, origins = map(torch.from_numpy, made)
        return replace(
            batch, tokens=tokens, targets=targets, segments=segments.int(), positions=positions.int(),
            origins=None if batch.origins is None else origins,
        )  # fmt: skip

    def _pieces(self, row: list[Integers], seed: np.int64) -> Iterator[tuple[Any, ...]]:
        """Tokens, targets, segment, positions and origin of each pair."""
        tokens, targets, segments, origins = row
        edges = np.append(np.append(0, np.flatnonzero(np.diff(segments)) + 1), len(tokens))
        numbers = segments[edges[:-1]]
        words = finalise(finalise(seed.reshape(1).view(np.uint64) ^ _OWN) + numbers.astype(np.uint64) * INCREMENT)
        for first, last, number, word in zip(edges[:-1], edges[1:], numbers, words, strict=True):
            held = first + np.flatnonzero(targets[first:last] >= 0)  # a row may end a document with its end token
            if len(held):
                source, target = self.pair(tokens[held], word)
                aims = np.append(np.full(len(source) - 1, _IGNORED), target)
                text = np.append(source, target)[:-1]
                yield text, aims, number, np.arange(len(text)), origins[held[0]]

    def pair(self, tokens: Integers, word: np.uint64) -> tuple[Integers, Integers]:
        """Source and target of a text, each with its end."""
        lost = lost_tokens(len(tokens), self.config, word)
        first = lost & ~np.append(False, lost[:-1])
        sentinels = self.sentinels[: first.sum()]
        source = tokens.copy()
        source[first] = sentinels
        target = np.insert(tokens[lost], np.flatnonzero(first[lost]), sentinels)
        return np.append(source[first | ~lost], self.end), np.append(target, self.end)


def lost_tokens(length: int, config: SpanCorruptionConfig, word: np.uint64) -> npt.NDArray[np.bool_]:
    """Tokens of a text that spans leave out.

    The last always is, the first only where it is the only one.
    """
    lost, spans = config.sizes(length)
    words = finalise(np.array([word, ~word]))
    sizes = np.stack([_parts(length - lost, spans, words[0]), _parts(lost, spans, words[1])], axis=1)
    return np.repeat(np.tile([False, True], spans), sizes.ravel())


def _parts(total: int, count: int, word: np.uint64) -> Integers:
    """Sizes of `count` parts, drawn uniformly from those that add up.

    Each is 1 or more, if there are several.
    """
    gaps = finalise(np.arange(1, total, dtype=np.uint64) * INCREMENT + word)
    cuts = np.sort(np.argsort(gaps, kind="stable")[: count - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


def sentinels_of(special_tokens: dict[str, int], config: SpanCorruptionConfig, length: int) -> Integers:
    """Ids of a tokenizer's sentinels, for rows of `length` tokens.

    Raises:
        ConfigError: it has too few; names how many a row can need.
    """
    found = []
    while (name := SENTINEL.format(len(found))) in special_tokens:
        found.append(special_tokens[name])
    _, needed = config.sizes(length)
    if len(found) < needed:
        raise ConfigError(
            f"train.span_corruption: the tokenizer has {len(found)} sentinels ({SENTINEL.format(0)} and so on), and a "
            f"text of train.sequence_length = {length} tokens can lose {needed} spans. Set data.tokenizer.sentinels = "
            f"{needed} or more, and prepare again"
        )
    return np.array(found, np.int64)
