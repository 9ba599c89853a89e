"""Translations by beam search with a length penalty.

They are those of arXiv:1706.03762, section 6.1, and arXiv:1609.08144, eq. 14. A hypothesis of n tokens, the end
included, scores log P / ((5 + n) / 6)^alpha. The best unfinished hypotheses of a source, as many as the beam is wide,
go on. One ends where its end is among the best continuations of all, twice as many as the beam is wide, as in the
paper's own code: an end of any rank would let a weak model stop at once. The search ends once none of them can beat the
best finished one, or at the most tokens (length of the source + 50, within the context). Keys and values of the source
are computed once, those of the target are kept in a cache (`kv_cache.py`) whose rows follow the hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from governance.errors import PipelineError
from governance.manifest import Manifest
from pretrain.checkpoint.format import identity_of
from pretrain.config.training import EngineConfig
from pretrain.distributed.process_group import Ranks, device_of, threads_of
from pretrain.encoder_decoder.model_of_pairs import EncoderDecoder
from pretrain.encoder_decoder.pair_rows import attention_of
from pretrain.evaluation.validation import load_decoder
from pretrain.inference.kv_cache import LayerCache, open_caches
from pretrain.model.attention import DocumentMask

Ids = Sequence[int]
MORE_TOKENS = 50


@dataclass(frozen=True)
class Beam:
    """Width and length penalty of the search."""

    width: int = 4
    alpha: float = 0.6

    def penalty(self, tokens: int) -> float:
        """Divisor of a log probability of so many tokens."""
        return float(((5 + tokens) / 6) ** self.alpha)


@dataclass(frozen=True)
class Hypothesis:
    """A translation and its score."""

    ids: tuple[int, ...]
    """Without the end."""
    score: float


def open_translator(
    checkpoints: Sequence[Manifest], engine: EngineConfig, root: Path
) -> Callable[[Ids, int, Beam], Hypothesis]:
    """Translator of sources by verified checkpoints, whose weights are averaged.

    Raises:
        ConfigError: the device that `engine` requests does not exist.
        CheckpointError: the files belong to another model.
    """
    identity, device = identity_of(checkpoints[0]), device_of(Ranks(), engine.device)
    torch.set_num_threads(threads_of(Ranks(), engine.threads))
    model = load_decoder(checkpoints[0], root, checkpoints[1:]).to(device).eval()
    context, size = identity.recipe.train.sequence_length, identity.vocabulary_size
    return lambda source, end, beam: translate(model, source, end, context, size, beam)


def refuse_sources(sources: Sequence[Ids], context: int) -> None:
    """Raise unless a token fits after each source.

    Raises:
        PipelineError: names the source, from 1.
    """
    for number, source in enumerate(sources, 1):
        if len(source) >= context:
            raise PipelineError(
                f"source {number}: has {len(source)} tokens; the model's context is {context} (train.sequence_length), "
                f"and one token must fit after it. Shorten it by {len(source) - context + 1} or more"
            )


def translate(model: EncoderDecoder, source: Ids, end: int, context: int, size: int, beam: Beam) -> Hypothesis:
    """Best hypothesis for a source, whose last token begins the target.

    Args:
        model: on any device.
        source: ids, the mark between source and target included.
        end: the token that ends a target.
        context: most tokens of source and target together.
        size: ids that may be written; the rows of padding are none.
        beam: the search.

    Raises:
        PipelineError: the source leaves no room in the context.
    """
    refuse_sources([source], context)
    most = min(len(source) + MORE_TOKENS, context - len(source))
    with torch.no_grad():
        return _Search(model, source, size, beam).best(end, most)


class _Search:
    """Hypotheses of one source."""

    def __init__(self, model: EncoderDecoder, source: Ids, size: int, beam: Beam) -> None:
        self.model, self.beam, self.size, stack = model, beam, size, model.model
        self.device = stack.embed_tokens.weight.device
        tokens = torch.tensor([list(source)], device=self.device)
        places = torch.arange(len(source), device=self.device)[None]
        self.all = attention_of(None, model.config.attention_scale)
        memory = stack.encoder(stack.placed(stack.embed_tokens(tokens), places), self.all, lambda x, site: x)
        self.held = [layer.cross_attn.keys_and_values(memory) for layer in stack.layers]
        self.first = int(source[-1])

    def best(self, end: int, most: int) -> Hypothesis:
        """The finished hypothesis of the best score, of at most `most` tokens.

        Where none ends by then, the best is cut.
        """
        beam, caches = self.beam, open_caches(self.model.config, most + 1)
        live, scores = [()], torch.zeros(1, dtype=torch.float64)
        last, found = torch.tensor([self.first], device=self.device), Hypothesis((), -math.inf)
        for time in range(most):
            chances = scores[:, None] + self._next(last, time, caches)
            values, places = chances.flatten().topk(min(2 * beam.width, chances.numel()))
            rows, ids = places // self.size, places % self.size
            ended = ids == end
            if ended.any():
                first = int(ended.nonzero()[0])  # the best: they are in order
                if (score := float(values[first]) / beam.penalty(time + 1)) > found.score:
                    found = Hypothesis(tuple(live[int(rows[first])]), score)
            values, rows, ids = (column[~ended][: beam.width] for column in (values, rows, ids))
            live = [(*live[row], token) for row, token in zip(rows.tolist(), ids.tolist(), strict=True)]
            scores, last = values, ids.to(self.device)
            # A log probability only falls, and no penalty exceeds that of the most tokens.
            reached = float(scores[0]) / beam.penalty(most)
            if time + 1 == most and found.score == -math.inf:
                return Hypothesis(live[0], reached)  # cut
            if time + 1 == most or reached <= found.score:
                return found
            for cache in caches:
                cache.keep_rows(rows.to(self.device))
        return found

    def _next(self, last: torch.Tensor, time: int, caches: list[LayerCache]) -> torch.Tensor:
        """Log probabilities [hypotheses, size] of the next token, fp64 on the host."""
        stack, count = self.model.model, len(last)
        positions = torch.full((count, 1), time, device=self.device)
        padding = torch.zeros(count, dtype=torch.int64, device=self.device)
        x = stack.placed(stack.embed_tokens(last[:, None]), positions)
        for layer, cache, held in zip(stack.layers, caches, self.held, strict=True):
            seen = cache.first(self.all) if time == 0 else cache.next(time, padding, 0)
            both = held[0].expand(count, -1, -1, -1), held[1].expand(count, -1, -1, -1)
            x = layer.after(x, both, (DocumentMask({None: seen}), self.all))
        logits: torch.Tensor = self.model.lm_head(x)[:, 0, : self.size]
        return logits.double().log_softmax(-1).cpu()
