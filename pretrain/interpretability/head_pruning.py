"""Importance of attention heads, and the loss that their removal costs.

The importance of a head is the mean, over rows, of |dL / dg| for a factor g = 1 of its output (Michel et al. 2019,
arXiv:1905.10650, eq. 2): to first order, by how much the loss changes where the head is removed. L is a row's cross
entropy over the mean number of its targets, so importance is in nats per token. (The paper then divides by the norm of
each layer; here it does not.)

Heads are removed from the least important on, all at once, without training after it. The importance is measured on
every second validation row and the cost on the others: a choice that was fitted to rows looks better on them. The error
of the cost is that of a ratio over rows, of the paired differences (`evaluation/validation.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from governance.errors import PipelineError
from pretrain.data.dataset import Rows, spread
from pretrain.inference.loaded_model import LoadedModel
from pretrain.model.attention import DocumentMask, document_mask
from pretrain.model.attention_rule import Attend
from pretrain.model.decoder import Batch, Decoder
from pretrain.model.loss import cross_entropy

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Advance = Callable[[int], None]


@dataclass(frozen=True)
class PrunedHeads:
    """Importance of each head, and the loss without the least important ones."""

    importance: list[list[float]]
    """[layers][heads], nats per token."""
    order: list[tuple[int, int]]
    """(layer, head), from the least important on."""
    rows: list[dict[str, Any]]
    """For each share of heads: `removed`, `loss`, `cost` and `cost_stderr`, in nats per token."""
    rows_of_importance: int
    rows_of_cost: int


def prune_heads(model: LoadedModel, rows: Rows, most_rows: int, batch_rows: int, advance: Advance) -> PrunedHeads:
    """Measure at most `most_rows` validation rows, evenly spread.

    `advance` is called with the number of rows of each pass (`passed_rows`).

    Raises:
        PipelineError: there are fewer than two rows.
    """
    chosen, costed = _halves(rows, most_rows)
    importance = head_importance(model.decoder, _batches(rows, chosen, batch_rows), advance)
    layers, heads = importance.shape
    order = [divmod(place, heads) for place in importance.flatten().argsort(stable=True).tolist()]
    counts = sorted({round(share * layers * heads) for share in SHARES})
    table: list[dict[str, Any]] = []
    whole = torch.zeros(())
    for count in counts:
        gates = torch.ones(layers, heads)
        for layer, head in order[:count]:
            gates[layer, head] = 0.0
        nats, tokens = _losses(model.decoder, _batches(rows, costed, batch_rows), gates, advance)
        whole = whole if table else nats  # the first count removes no head
        table.append({"removed": count, **_cost(nats, whole, tokens)})
    return PrunedHeads(importance.tolist(), order, table, len(chosen), len(costed))


def passed_rows(model: LoadedModel, rows: Rows, most_rows: int) -> int:
    """Rows that `prune_heads` computes over all passes.

    Raises:
        PipelineError: there are fewer than two rows.
    """
    config = model.decoder.config
    total = config.num_hidden_layers * config.num_attention_heads
    chosen, costed = _halves(rows, most_rows)
    return len(chosen) + len(costed) * len({round(share * total) for share in SHARES})


def _halves(rows: Rows, most_rows: int) -> tuple[list[int], list[int]]:
    numbers = spread(rows.count, most_rows)
    if len(numbers) < 2:
        raise PipelineError(
            f"head pruning: needs 2 validation rows, one to choose heads and one to measure their cost; there is "
            f"{len(numbers)} of {rows.sequence_length} tokens (of {rows.count}, at most {most_rows}: --rows). Raise "
            f"--rows or data.encode.validation_share"
        )
    return numbers[::2], numbers[1::2]


def _batches(rows: Rows, numbers: Sequence[int], size: int) -> Iterator[Batch]:
    for start in range(0, len(numbers), size):
        yield rows.batch(list(numbers[start : start + size]))


def head_importance(model: Decoder, batches: Iterator[Batch], advance: Advance = lambda rows: None) -> torch.Tensor:
    """Importance of each head, fp64 [layers, heads], nats per token."""
    config, tokens = model.config, 0
    shape = (config.num_hidden_layers, config.num_attention_heads)
    total = torch.zeros(shape, dtype=torch.float64)
    for batch in batches:
        gates = torch.ones(shape[0], len(batch.tokens), shape[1], device=model.device, requires_grad=True)
        objective, _ = _passed(model, batch, gates)
        slopes = torch.autograd.grad(objective, gates)[0]
        total += slopes.abs().sum(1).double().cpu()
        tokens += int((batch.targets >= 0).sum())
        advance(len(batch.tokens))
    return total / max(tokens, 1)


def _losses(
    model: Decoder, batches: Iterator[Batch], gates: torch.Tensor, advance: Advance
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and predicted tokens of each row, fp64 [R].

    `gates` [layers, heads] are the factors of the heads' outputs.
    """
    nats, tokens = [], []
    with torch.no_grad():
        for batch in batches:
            _, found = _passed(model, batch, gates.to(model.device)[:, None])
            nats.append(found.double().sum(1).cpu())
            tokens.append((batch.targets >= 0).sum(1).double())
            advance(len(batch.tokens))
    return torch.cat(nats), torch.cat(tokens)


def _passed(model: Decoder, batch: Batch, gates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of cross entropies, and those of each token, fp32 [B, L].

    `gates` [layers, B or 1, heads] are the factors of the heads' outputs.
    """
    rows = batch.to(model.device)
    mask = document_mask(rows.segments, model.config)
    masks = [DocumentMask({window: _gated(attend, gate) for window, attend in mask.kinds.items()}) for gate in gates]
    hidden, _ = model.model.through(rows.tokens, rows.positions, masks)
    rule = replace(model.lm_head.rule, z_loss=0.0)
    objective, nats = cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, rows.targets.flatten(), rule)
    return objective, nats.view(rows.targets.shape)


def _gated(attend: Attend, gate: torch.Tensor) -> Attend:
    return lambda q, k, v: attend(q, k, v) * gate[:, :, None, None]


def _cost(nats: torch.Tensor, whole: torch.Tensor, tokens: torch.Tensor) -> dict[str, float | None]:
    differences, count, targets = nats - whole, len(nats), float(tokens.sum())
    cost, error = float(differences.sum()) / targets, None
    if count > 1:
        squares = float((differences - cost * tokens).square().sum())
        error = math.sqrt(count / (count - 1) * squares) / targets
    return {"loss": float(nats.sum()) / targets, "cost": cost, "cost_stderr": error}
