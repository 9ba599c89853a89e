"""Figures of attention heads: entropy, and the keys that they look at.

The induction score is measured on random tokens that repeat: the mean probability with which a token of the second half
sees the token *after* its first occurrence (Olsson et al. 2022, arXiv:2209.11895). A head that copies what followed
last time has a score near 1, a random one near 1 / tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pretrain.inference.loaded_model import LoadedModel
from pretrain.interpretability.recorded_pass import run_with_patterns
from pretrain.model.attention import layer_rules

_ROWS, _LONGEST, _SEED = 8, 50, 0


@dataclass(frozen=True)
class Induction:
    """Induction scores of all heads, and the model's gain from repetition."""

    scores: list[list[float]]
    """[layers][heads], 0 to 1."""
    repeated_tokens: int
    """Length of the sequence that occurs twice."""
    nats_first: float
    """Cross entropy of the tokens of the first half, nats per token."""
    nats_second: float
    """The same of the second half, without its first token, which nothing announces."""


def head_figures(pattern: torch.Tensor, window: int | None) -> dict[str, float | None]:
    """Figures of one head, from its pattern [B, L, L].

    `entropy` is the mean over queries, in nats; `entropy_share` relates it to that of equal attention over the keys
    that a query may see, over queries that may see several. The others are mean probabilities of the first token, of
    the one before the query, and of itself. None: a text is too short for it.
    """
    length = pattern.shape[-1]
    entropies = torch.special.entr(pattern).sum(-1)
    visible = torch.arange(1, length + 1, device=pattern.device).clamp(max=window or length)
    several = visible > 1
    return {
        "entropy": float(entropies.mean()),
        "entropy_share": float((entropies[:, several] / visible[several].log()).mean()) if several.any() else None,
        "to_first": float(pattern[:, 1:, 0].mean()) if length > 1 else None,
        "to_previous": float(pattern.diagonal(-1, dim1=-2, dim2=-1).mean()) if length > 1 else None,
        "to_itself": float(pattern.diagonal(dim1=-2, dim2=-1).mean()),
    }


def induction(model: LoadedModel, special: frozenset[int] = frozenset(), begin: int | None = None) -> Induction | None:
    """Induction scores of a model.

    The repeated sequence is at most half of the context, and short enough for the smallest window to reach back.

    Args:
        model: the model.
        special: ids that no text has; they are not drawn.
        begin: the token before each document; None: none.

    Returns:
        None where two tokens cannot repeat within context and windows.
    """
    rules = layer_rules(model.decoder.config)
    windows = [rule.window for rule in rules if rule.window is not None]
    drawn = torch.tensor([index for index in range(model.vocabulary_size) if index not in special])
    first = int(begin is not None)
    length = min(_LONGEST, (model.context - first) // 2, len(drawn), *windows)
    if length < 2:
        return None
    generator = torch.Generator().manual_seed(_SEED)
    rows = [drawn[torch.randperm(len(drawn), generator=generator)[:length]].repeat(2) for _ in range(_ROWS)]
    tokens = torch.stack(rows)
    if begin is not None:
        tokens = torch.cat([torch.full((_ROWS, 1), begin), tokens], dim=1)
    tokens = tokens.to(model.decoder.device)
    scores = [[0.0] * model.decoder.config.num_attention_heads for _ in rules]

    def see(layer: int, head: int, pattern: torch.Tensor) -> None:
        # Token i of the second half, at first + length + i, sees first + i + 1: length - 1 before it.
        scores[layer][head] = float(pattern.diagonal(1 - length, dim1=-2, dim2=-1)[:, first + 1 :].mean())

    hidden = run_with_patterns(model.decoder, tokens, see)
    with torch.no_grad():
        logits = model.decoder.lm_head(hidden)[:, :-1, : model.vocabulary_size].float()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    nats = nats.view(_ROWS, -1)
    middle = first + length - 1
    return Induction(scores, length, float(nats[:, :middle].mean()), float(nats[:, middle + 1 :].mean()))
