"""Interpretation of one text: every measure, as values for JSON.

    tokens        id and text of each token
    heads         figures of each attention head (`attention_heads.py`)
    patterns      [layers][heads][query][0..query], probabilities; None above `MAX_PATTERN_NUMBERS`
    lens          the logit lens (`logit_lens.py`), by number of blocks passed and by position
    activations   figures of each block (`activation_figures.py`)
    attribution   contributions to the likeliest next token (`token_attribution.py`)
    not_measured  sentences: measures that this model or text does not have, and why

Layers and heads count from 0, as in the names of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from governance.errors import PipelineError
from pretrain.inference.loaded_model import LoadedModel
from pretrain.interpretability.activation_figures import activation_figures
from pretrain.interpretability.attention_heads import head_figures, induction
from pretrain.interpretability.logit_lens import Lens, logit_lens
from pretrain.interpretability.recorded_pass import record
from pretrain.interpretability.token_attribution import TOLERANCE, attribute

MAX_PATTERN_NUMBERS = 1 << 21
"""Probabilities of all heads, the future ones left out, above which a text's patterns are not kept."""
_DIGITS = 6

Name = Callable[[int], str]
"""Text of a token."""


def refuse_texts(ids: Sequence[Sequence[int]], context: int) -> None:
    """Raise unless each text has a token and fits the context.

    Raises:
        PipelineError: names the text, from 1.
    """
    for number, found in enumerate(ids, 1):
        if not len(found):
            raise PipelineError(f"text {number}: has no token, so there is nothing to explain; give another text")
        if len(found) > context:
            raise PipelineError(
                f"text {number}: has {len(found)} tokens; the model's context is {context} (train.sequence_length). "
                f"Shorten it by {len(found) - context} or more"
            )


def interpret(
    model: LoadedModel, ids: Sequence[int], name: Name, baseline: int, rows: int, advance: Callable[[int], None]
) -> dict[str, Any]:
    """All measures of one text.

    Args:
        model: the model.
        ids: the text's tokens.
        name: the text of a token.
        baseline: token of the attribution's baseline.
        rows: points of the attribution's quadrature in one pass.
        advance: called with the number of points of each pass.

    Raises:
        PipelineError: the model's values are not finite.
    """
    config, heads = model.decoder.config, []
    kept = config.num_hidden_layers * config.num_attention_heads * len(ids) * (len(ids) + 1) // 2
    patterns: list[list[Any]] | None = [[] for _ in range(config.num_hidden_layers)]
    if kept > MAX_PATTERN_NUMBERS:
        patterns = None

    def see(layer: int, head: int, pattern: torch.Tensor) -> None:
        heads.append({"layer": layer, "head": head, **head_figures(pattern, config.window(layer))})
        if patterns is not None:
            patterns[layer].append([row[: place + 1] for place, row in enumerate(pattern[0].tolist())])

    streams = record(model.decoder, ids, see)
    _refuse_infinite(streams.residual)
    lens = logit_lens(model, streams.residual, ids)
    explained = attribute(model, ids, baseline, int(lens.likeliest[-1, -1, 0]), rows, advance)
    found = {
        "tokens": [{"id": int(one), "text": name(int(one))} for one in ids],
        "heads": heads,
        "patterns": patterns,
        "lens": _lens(lens, len(ids), name),
        "activations": activation_figures(model.decoder, streams),
        "attribution": {**asdict(explained), "target": {"id": explained.target, "text": name(explained.target)}},
        "not_measured": list(_missing(model, len(ids), patterns is None, explained.completeness_error)),
    }
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def _refuse_infinite(residual: Sequence[torch.Tensor]) -> None:
    for blocks, stream in enumerate(residual):
        if not stream.isfinite().all():
            raise PipelineError(
                f"the stream after {blocks} blocks is not finite, so nothing can be read from it; the weights have "
                f"diverged: give an earlier checkpoint"
            )


def _lens(lens: Lens, length: int, name: Name) -> dict[str, Any]:
    columns = zip(lens.nats, lens.divergence, lens.agreement, strict=True)
    layers = [
        {"blocks": blocks, "nats": nats, "divergence": divergence, "agreement": agreement}
        for blocks, (nats, divergence, agreement) in enumerate(columns)
    ]
    tokens, probs = lens.likeliest.tolist(), lens.probabilities.tolist()
    positions = [
        {
            "settled": lens.settled(place),
            "likeliest": [
                [
                    {"id": one, "text": name(one), "probability": prob}
                    for one, prob in zip(tokens[blocks][place], probs[blocks][place], strict=True)
                ]
                for blocks in range(len(tokens))
            ],
        }
        for place in range(length)
    ]
    return {"layers": layers, "positions": positions}


def _missing(model: LoadedModel, length: int, no_patterns: bool, error: float | None) -> list[str]:
    config, found = model.decoder.config, []
    if no_patterns:
        found.append(
            f"patterns: {length} tokens in {config.num_hidden_layers} layers of {config.num_attention_heads} heads "
            f"give more than {MAX_PATTERN_NUMBERS:,} probabilities; give a shorter text for them"
        )
    if length == 1:
        found.append("a text of one token has no next token to predict, and attention has one key")
    if config.moe is not None:
        found.append(
            "integrated gradients: routers of experts jump between the baseline and the text, so contributions would "
            "not add up"
        )
        found.append("inner activations: the products of experts are grouped; the shares of the experts are there")
    elif error is not None and error > TOLERANCE:
        found.append(f"integrated gradients: contributions miss the prediction's difference by {error:.2g} nats")
    return found


def induction_figures(model: LoadedModel, special: frozenset[int], begin: int | None) -> dict[str, Any] | None:
    """Induction scores as values for JSON.

    None where the context or a window is too short for a repetition.
    """
    found = induction(model, special, begin)
    values: dict[str, Any] | None = None if found is None else _rounded(asdict(found))
    return values


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
