"""Log-likelihood of a continuation given its context.

Context and continuation are encoded together, and the tokens of the continuation are those after the longest prefix
that the context's own encoding shares with the whole (a token that spans the boundary belongs to the continuation). A
document's first token is never predicted, nor is it in training, so it is never scored: give a context, unless
documents begin with a token of their own (`data.tokenizer.bos`), after which the whole text is scored. A text longer
than the model's window loses its beginning.

Texts are packed into rows as documents are in training, each a separate document, so that few positions are padding.
Rows have one of two lengths (`SHORT` tokens, or the window), so that a compiled model sees few shapes.
Price: one forward pass over all tokens; nothing the size of the vocabulary is kept.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from governance.errors import PipelineError
from pretrain.config.training import SHORT

if TYPE_CHECKING:
    import torch

    from pretrain.model.decoder import Batch

LEAD = "\n"
"""Empty context, so that a sentence's first word is predicted; omitted where a token begins documents."""
Encode = Callable[[str], npt.NDArray[Any]]
"""Ids of a document that starts with the text, with the token that begins documents but without an end token."""

NatsOf = Callable[["Batch"], "torch.Tensor"]
"""Cross entropy [B, L] of each token in nats, 0 where nothing is predicted; collective for a partitioned model."""


@dataclass(frozen=True)
class Scored:
    """Score of one continuation."""

    nats: float
    """Sum of the natural logarithms of its tokens' probabilities; at most 0."""
    tokens: int
    """Tokens that were scored."""

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens


@dataclass(frozen=True)
class Text:
    """Encoded text, whose ids from `first` on are scored."""

    ids: npt.NDArray[np.int64]
    first: int


@dataclass(frozen=True)
class Passes:
    """Batching of forward passes; changes only last bits."""

    batch_tokens: int = 8192
    """Most tokens of one pass, padding included; a pass has at least one row."""
    rank: int = 0
    world_size: int = 1
    add_up: Callable[[list[float]], list[Any]] = lambda values: values
    """Sums each value over all ranks."""
    alike: bool = False
    """Pad each pass to the maximum number of rows, so that a compiler sees one shape per length."""


def log_likelihoods(
    nats_of: NatsOf, encode: Encode, texts: Sequence[tuple[str, str]], window: int, passes: Passes | None = None
) -> list[Scored]:
    """Score each (context, continuation), in order.

    Args:
        nats_of: the model.
        encode: the tokenizer that the model was trained with.
        texts: the pairs; a context may be empty, then the continuation's first token is not scored.
        window: tokens that the model can see at once.
        passes: batching of the forward passes.

    Raises:
        PipelineError: a continuation has no token that can be scored.
    """
    return score(nats_of, encode_texts(encode, texts, window), window, passes)


def encode_texts(encode: Encode, texts: Sequence[tuple[str, str]], window: int) -> list[Text]:
    """Encoded pairs.

    Raises:
        PipelineError: a continuation has no token that can be scored.
    """
    if len(encode("")):
        texts = [(context.removeprefix(LEAD), continuation) for context, continuation in texts]
    contexts: dict[str, list[int]] = {}
    for context, _ in texts:
        if context not in contexts:
            contexts[context] = encode(context).tolist()
    return [_text(encode, contexts[context], context + continuation, window) for context, continuation in texts]


def _text(encode: Encode, before: list[int], whole: str, window: int) -> Text:
    ids = encode(whole)
    pairs = enumerate(zip(before, ids.tolist(), strict=False))
    shared = next((place for place, pair in pairs if pair[0] != pair[1]), None)
    first = max(1, min(len(before), len(ids)) if shared is None else shared)
    if first >= len(ids):
        raise PipelineError(f"{whole!r}: has no token that can be scored; give a longer text or a context")
    cut = max(0, len(ids) - window)
    return Text(ids[cut:].astype(np.int64), max(1, first - cut))


def score(nats_of: NatsOf, texts: Sequence[Text], window: int, passes: Passes | None = None) -> list[Scored]:
    """Score texts, in order.

    Every rank receives all texts, and makes the same number of forward passes.
    """
    import torch

    passes = passes or Passes()
    batches = _batches([len(text.ids) for text in texts], window, passes.batch_tokens)
    least = passes.batch_tokens if passes.alike else 0
    nats = [0.0] * len(texts)
    with torch.no_grad():
        for turn in range(0, len(batches), passes.world_size):
            place = turn + passes.rank
            length, rows = batches[min(place, len(batches) - 1)]
            padding: list[list[int]] = [[]] * (least // length - len(rows))
            found = nats_of(_stack(texts, length, [*rows, *padding]))[: len(rows)]
            if place >= len(batches):
                continue  # discarded: a partitioned model computes only on all ranks together
            values = found.double().cpu().numpy()
            for line, row in zip(values, rows, strict=True):
                start = 0
                for number in row:
                    text = texts[number]
                    nats[number] = -float(line[start + text.first - 1 : start + len(text.ids) - 1].sum())
                    start += len(text.ids)
    summed = passes.add_up(nats) if nats else []
    return [Scored(value, len(text.ids) - text.first) for value, text in zip(summed, texts, strict=True)]


def _batches(lengths: list[int], window: int, batch_tokens: int) -> list[tuple[int, list[list[int]]]]:
    """Batches (row length, texts of each row).

    Each text is in exactly one row.
    """
    batches = []
    short = min(SHORT, window)
    for length, low in ((window, short), (short, 0)):
        rows = _pack([(size, number) for number, size in enumerate(lengths) if low < size <= length], length)
        most = max(1, batch_tokens // length)
        batches += [(length, rows[start : start + most]) for start in range(0, len(rows), most)]
    return batches


def _pack(items: list[tuple[int, int]], room: int) -> list[list[int]]:
    """Texts (size, number) packed into rows of `room` tokens.

    A row takes the longest text left, then the longest that fits, and so on.
    """
    left = sorted(items)
    rows = []
    while left:
        size, number = left.pop()
        row, free = [number], room - size
        while place := bisect.bisect_right(left, (free, math.inf)):
            size, number = left.pop(place - 1)
            row.append(number)
            free -= size
        rows.append(row)
    return rows


def _stack(texts: Sequence[Text], length: int, rows: list[list[int]]) -> Batch:
    """Batch of these rows; padding is a document of its own."""
    import torch

    from pretrain.model.decoder import Batch

    tokens, targets = np.zeros((len(rows), length), np.int64), np.full((len(rows), length), -100, np.int64)
    segments, positions = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.int32)
    for line, row in enumerate(rows):
        start = 0
        for segment, number in enumerate(row):
            text = texts[number]
            stop = start + len(text.ids)
            tokens[line, start:stop], segments[line, start:stop] = text.ids, segment
            positions[line, start:stop] = np.arange(len(text.ids))
            targets[line, start + text.first - 1 : stop - 1] = text.ids[text.first :]
            start = stop
        segments[line, start:], positions[line, start:] = len(row), np.arange(length - start)
    return Batch(*(torch.from_numpy(column) for column in (tokens, targets, segments, positions)))
