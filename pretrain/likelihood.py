"""How likely a model finds texts: the sum of log probabilities of a continuation, given what stands before it.

Context and continuation are encoded together, and the tokens of the continuation are those behind the longest prefix
that the context's own encoding shares with the whole (a token that spans the border belongs to the continuation). A
document's first token is never predicted, in training neither, so it is never scored: give a context. What is longer
than the model's window loses its beginning.

Rows are sorted by length and padded to the longest of their batch; the padding is a document of its own, which no token
attends to. Price: one forward pass over all tokens, and [batch, length, vocabulary] values in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from governance.errors import PipelineError

if TYPE_CHECKING:
    import torch

Encode = Callable[[str], npt.NDArray[Any]]
"""The ids of one text, without an end of document."""


@dataclass(frozen=True)
class Scored:
    """What the model says of one continuation."""

    nats: float
    """The sum of the natural logarithms of its tokens' probabilities; at most 0."""
    tokens: int
    """Tokens that were scored."""

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens


@dataclass(frozen=True)
class _Row:
    place: int
    ids: list[int]
    first: int
    """The first token that is scored."""


def log_likelihoods(
    model: Any, encode: Encode, texts: Sequence[tuple[str, str]], window: int, batch_tokens: int = 8192
) -> list[Scored]:
    """Score each (context, continuation), in order.

    Args:
        model: a `Decoder`, on the device that it computes on.
        encode: the tokeniser that the model was trained with.
        texts: the pairs; a context may be empty, then the continuation's first token is not scored.
        window: tokens that the model can see at once.
        batch_tokens: tokens of a forward pass, padding included.

    Raises:
        PipelineError: a continuation has no token that can be scored.
    """
    rows = [_row(encode, place, *text, window) for place, text in enumerate(texts)]
    found: list[Scored | None] = [None] * len(rows)
    for batch in _batches(sorted(rows, key=lambda row: (len(row.ids), row.place)), batch_tokens):
        for row, nats in zip(batch, _score(model, batch), strict=True):
            found[row.place] = Scored(nats, len(row.ids) - row.first)
    return [scored for scored in found if scored is not None]


def _row(encode: Encode, place: int, context: str, continuation: str, window: int) -> _Row:
    before, ids = encode(context).tolist(), encode(context + continuation).tolist()
    shared = next((i for i, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1]), None)
    first = max(1, min(len(before), len(ids)) if shared is None else shared)
    if first >= len(ids):
        raise PipelineError(
            f"{context + continuation!r}: no token of it can be scored; give a longer text or a context"
        )
    cut = max(0, len(ids) - window)
    return _Row(place, ids[cut:], max(1, first - cut))


def _batches(rows: list[_Row], batch_tokens: int) -> list[list[_Row]]:
    batches: list[list[_Row]] = []
    for row in rows:  # the longest of a batch is its last
        if not batches or (len(batches[-1]) + 1) * len(row.ids) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _score(model: Any, rows: list[_Row]) -> list[float]:
    import torch

    from pretrain.model.decoder import Batch

    length = len(rows[-1].ids)
    tokens, segments = np.zeros((len(rows), length), np.int64), np.ones((len(rows), length), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row.ids)] = row.ids
        segments[number, : len(row.ids)] = 0
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy()
    columns = (tokens, np.full_like(tokens, -100), segments, positions)
    device = next(model.parameters()).device
    batch = Batch(*(torch.from_numpy(column) for column in columns)).to(device)
    with torch.inference_mode():
        chances = torch.log_softmax(model.logits(batch)[:, :-1].float(), dim=-1)
        picked: torch.Tensor = chances.gather(2, batch.tokens[:, 1:, None])[..., 0].double().cpu()
    return [float(picked[number, row.first - 1 : len(row.ids) - 1].sum()) for number, row in enumerate(rows)]
