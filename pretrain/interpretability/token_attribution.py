"""Attribution of a prediction to the text's tokens.

The prediction is the log probability, in nats, of one token after the text. *Gradient x input* multiplies its gradient
by the embedding of each token. *Integrated gradients* (arXiv:1703.01365) integrate the gradient along the straight line
from a baseline: its contributions add up to the difference of the prediction between text and baseline (completeness).
The baseline has the embedding of the end-of-document token at each position: the model has not learned an embedding of
zeros, and the norms change abruptly near it.

The integral is by Gauss-Legendre quadrature. Its steps are doubled until the contributions add up to `TOLERANCE`, or
`MAX_STEPS` are reached; the error that is left is part of the result. Routers of experts jump along the line, where no
gradient sees it: with experts there are no integrated gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pretrain.inference.loaded_model import LoadedModel
from pretrain.model.attention import DocumentMask, explicit_attention, layer_rules, masked_attention
from pretrain.model.decoder import single_documents

TOLERANCE = 1e-3
FIRST_STEPS, MAX_STEPS = 16, 1024


@dataclass(frozen=True)
class Attribution:
    """Contributions of each token to one prediction, in nats."""

    target: int
    """Token whose log probability is explained."""
    log_probability: float
    gradient_x_input: list[float]
    integrated_gradients: list[float] | None
    """None with experts."""
    baseline_log_probability: float
    """The prediction where each token is the baseline."""
    steps: int
    """Points of the quadrature; 0 with experts."""
    completeness_error: float | None
    """By how much the contributions miss the difference of both predictions."""


Explained = Callable[[torch.Tensor], torch.Tensor]
"""Log probability [B] of the target from embeddings [B, L, hidden]."""


def attribute(
    model: LoadedModel,
    ids: Sequence[int],
    baseline: int,
    target: int,
    rows: int = 8,
    advance: Callable[[int], None] = lambda steps: None,
) -> Attribution:
    """Attribution of one prediction.

    Args:
        model: the model.
        ids: the text's tokens.
        baseline: the token of the baseline.
        target: the token after the text that is explained.
        rows: points of the quadrature in one pass.
        advance: called with the number of points of each pass.
    """
    explained = explained_by_embeddings(model, ids, target)
    table = model.decoder.model.embed_tokens.weight.detach()
    text = table[torch.tensor(list(ids), device=table.device)]
    start = table[baseline].expand(text.shape)
    with torch.no_grad():
        low, high = (float(explained(one[None])) for one in (start, text))
    plain = (_gradient(explained, text[None])[0] * text).sum(-1)
    found = Attribution(target, high, plain.tolist(), None, low, 0, None)
    if model.decoder.config.moe is not None:
        return found
    steps = FIRST_STEPS
    while True:
        parts = integrated_gradients(explained, text, start, steps, rows, advance)
        error = abs(float(parts.sum()) - (high - low))
        if error <= TOLERANCE or steps >= MAX_STEPS:
            return Attribution(target, high, plain.tolist(), parts.tolist(), low, steps, error)
        steps *= 2


def explained_by_embeddings(model: LoadedModel, ids: Sequence[int], target: int) -> Explained:
    """The explained prediction as a function of the embeddings of `ids`."""
    decoder = model.decoder
    tokens = torch.tensor([list(ids)], device=decoder.device)
    segments, positions = single_documents(tokens)
    rules = layer_rules(decoder.config)
    attention = masked_attention if rules[0].softcap is None else explicit_attention
    mask = DocumentMask({rule.window: attention(segments, rule) for rule in set(rules)})
    masks = [mask] * len(rules)

    def explained(embeddings: torch.Tensor) -> torch.Tensor:
        rows = len(embeddings)
        with _embedded(decoder.model.embed_tokens, embeddings):
            hidden, _ = decoder.model.through(tokens.expand(rows, -1), positions.expand(rows, -1), masks)
        logits: torch.Tensor = decoder.lm_head(hidden[:, -1:])[:, 0, : model.vocabulary_size]
        return logits.float().log_softmax(-1)[:, target]

    return explained


@contextlib.contextmanager
def _embedded(embedding: torch.nn.Module, values: torch.Tensor) -> Iterator[None]:
    """Give `values` in place of the embeddings of tokens."""
    handle = embedding.register_forward_hook(lambda *_: values)
    try:
        yield
    finally:
        handle.remove()


def _gradient(explained: Explained, embeddings: torch.Tensor) -> torch.Tensor:
    inputs = embeddings.detach().clone().requires_grad_(True)
    return torch.autograd.grad(explained(inputs).sum(), inputs)[0]


def integrated_gradients(
    explained: Explained,
    text: torch.Tensor,
    start: torch.Tensor,
    steps: int,
    rows: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> torch.Tensor:
    """Contributions of tokens, fp64 [L].

    `text` and `start` are embeddings [L, hidden] of text and baseline.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros(text.shape, dtype=torch.float64, device=text.device)
    for first in range(0, steps, rows):
        part = slice(first, first + rows)
        points = torch.tensor((nodes[part] + 1) / 2, dtype=text.dtype, device=text.device)[:, None, None]
        factors = torch.tensor(weights[part] / 2, device=text.device)[:, None, None]
        total += (_gradient(explained, start + points * (text - start)).double() * factors).sum(0)
        advance(len(points))
    return (total * (text - start).double()).sum(-1)
