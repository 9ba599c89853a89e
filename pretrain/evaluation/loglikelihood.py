"""Log-likelihood of a continuation given its context.

Context and continuation are encoded together, and the tokens of the continuation are those behind the longest prefix
that the context's own encoding shares with the whole (a token that spans the border belongs to the continuation). A
document's first token is never predicted, in training neither, so it is never scored: give a context, unless a token
of their own begins documents (`data.tokenizer.bos`): behind it all of a text is scored. What is longer than the model's
window loses its beginning.

Texts are packed into rows as documents are in training, each a document of its own that sees no other, so that hardly
a position is padding. Rows have one of two lengths (`SHORT` tokens, or the window): a compiled model meets few shapes.
Price: one forward pass over all tokens; nothing of the size of the vocabulary is kept.
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
from pretrain.config.evaluation_config import SHORT

if TYPE_CHECKING:
    import torch

    from pretrain.model.decoder import Batch

LEAD = "\n"
"""A context of nothing, so that the first word of a sentence is predicted; left out where a token begins documents."""
Encode = Callable[[str], npt.NDArray[Any]]
"""The ids of a document that begins with the text, the token that begins documents included; without its end."""

NatsOf = Callable[["Batch"], "torch.Tensor"]
"""Each token's cross entropy [B, L] in nats, 0 where nothing is predicted; collective where the model is spread."""


@dataclass(frozen=True)
class Scored:
    """Score of one continuation."""

    nats: float
    """The sum of the natural logarithms of its tokens' probabilities; at most 0."""
    tokens: int
    """Tokens that were scored."""

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens


@dataclass(frozen=True)
class Text:
    """A text as the model takes it.

    The ids, of which those from `first` on are scored.
    """

    ids: npt.NDArray[np.int64]
    first: int


@dataclass(frozen=True)
class Passes:
    """Batching of forward passes; changes only last bits."""

    batch_tokens: int = 8192
    """The most tokens of one pass, padding included; at least one row is passed."""
    rank: int = 0
    world_size: int = 1
    add_up: Callable[[list[float]], list[Any]] = lambda values: values
    """Sums each value over all ranks."""
    alike: bool = False
    """Pad each pass to the most rows: what compiles for shapes then meets one of each length."""


def log_likelihoods(
    nats_of: NatsOf, encode: Encode, texts: Sequence[tuple[str, str]], window: int, passes: Passes | None = None
) -> list[Scored]:
    """Score each (context, continuation), in order.

    Args:
        nats_of: the model.
        encode: the tokeniser that the model was trained with.
        texts: the pairs; a context may be empty, then the continuation's first token is not scored.
        window: tokens that the model can see at once.
        passes: how forward passes are made.

    Raises:
        PipelineError: a continuation has no token that can be scored.
    """
    return score(nats_of, encode_texts(encode, texts, window), window, passes)


def encode_texts(encode: Encode, texts: Sequence[tuple[str, str]], window: int) -> list[Text]:
    """The pairs as the model takes them.

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
        raise PipelineError(f"{whole!r}: no token of it can be scored; give a longer text or a context")
    cut = max(0, len(ids) - window)
    return Text(ids[cut:].astype(np.int64), max(1, first - cut))


def score(nats_of: NatsOf, texts: Sequence[Text], window: int, passes: Passes | None = None) -> list[Scored]:
    """Score texts, in order.

    Every rank gets all of them, and makes the same number of forward passes.
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
                continue  # for nothing: a model that is spread over ranks computes only together
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
    """(length of a row, the texts of each row), a batch each.

    A text lies in exactly one row.
    """
    batches = []
    short = min(SHORT, window)
    for length, low in ((window, short), (short, 0)):
        rows = _pack([(size, number) for number, size in enumerate(lengths) if low < size <= length], length)
        most = max(1, batch_tokens // length)
        batches += [(length, rows[start : start + most]) for start in range(0, len(rows), most)]
    return batches


def _pack(items: list[tuple[int, int]], room: int) -> list[list[int]]:
    """Texts (size, number) in rows of `room` tokens.

    The longest that is left, then the longest that still fits.
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
    """The rows as the model takes them.

    What is padding is a document of its own.
    """
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
