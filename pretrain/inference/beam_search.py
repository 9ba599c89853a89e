"""Translations by beam search with a length penalty.

They are those of arXiv:1706.03762, section 6.1, and arXiv:1609.08144, eq. 14. A hypothesis of n tokens, the end
included, scores log P / ((5 + n) / 6)^alpha. The best unfinished hypotheses of a source, as many as the beam is wide,
go on. One ends where its end is among the best continuations of all, twice as many as the beam is wide, as in the
paper's own code: an end of any rank would let a weak model stop at once. The search ends once none of them can beat the
best finished one, or at the most tokens (length of the source + 50, within the context). Of two equally probable
continuations that of the hypothesis that was better so far goes first, then the lower id.

Sources of like length are searched together: one pass of the decoder reads the last token of every live hypothesis.
Keys and values of a source are computed once, and its hypotheses attend over them as queries of one row. Those of the
target are kept in a cache (`kv_cache.py`) whose rows follow the hypotheses; a source that is done leaves. All take

    2 x hidden_size x layers x bytes per element x sources x (longest source + beam x most tokens)

bytes, and `Limits.tokens` bounds the product of the last two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from governance.manifest import Manifest
from pretrain.checkpoint.format import identity_of
from pretrain.config.training import EngineConfig
from pretrain.distributed.process_group import lone_device
from pretrain.encoder_decoder.model_of_pairs import EncoderDecoder
from pretrain.encoder_decoder.pair_rows import attention_of, attention_within
from pretrain.evaluation.validation import load_decoder
from pretrain.inference.generation import refuse_full, refuse_no_numbers
from pretrain.inference.kv_cache import LayerCache, open_caches
from pretrain.model.attention import DocumentMask
from pretrain.model.attention_rule import Attend

Ids = Sequence[int]
MORE_TOKENS = 50
_WINDOW = 1_024  # sources that are sorted by length: this many are translated before the first is yielded


@dataclass(frozen=True)
class Beam:
    """Width and length penalty of the search."""

    width: int = 4
    alpha: float = 0.6

    def penalty(self, tokens: int) -> float:
        """Divisor of the log probability of a number of tokens."""
        return float(((5 + tokens) / 6) ** self.alpha)


@dataclass(frozen=True)
class Limits:
    """Sizes of a model, and of a batch of its search."""

    context: int
    """Most tokens of source and target together."""
    size: int
    """Ids that may be written; not those of padding rows."""
    tokens: int = 32_768
    """Most tokens of a batch, of sources and of hypotheses: 0.8 GB of keys and values of the paper's base model."""

    def most(self, source: Ids) -> int:
        """Most tokens of the target of a source."""
        return min(len(source) + MORE_TOKENS, self.context - len(source))


@dataclass(frozen=True)
class Hypothesis:
    """A translation and its score."""

    ids: tuple[int, ...]
    """Without the end."""
    score: float


Translate = Callable[[Sequence[Ids], int, Beam, Callable[[int], None]], Iterator[Hypothesis]]
"""(sources, end, beam, advance) -> their best hypotheses (`translate`)."""


def open_translator(checkpoints: Sequence[Manifest], engine: EngineConfig, root: Path) -> Translate:
    """Translator of sources by verified checkpoints, whose weights are averaged.

    Raises:
        ConfigError: the device that `engine` requests does not exist.
        CheckpointError: the files belong to another model.
    """
    identity = identity_of(checkpoints[0])
    model = load_decoder(checkpoints[0], root, checkpoints[1:]).to(lone_device(engine)).eval()
    limits = Limits(identity.recipe.train.sequence_length, identity.vocabulary_size)
    return lambda sources, end, beam, advance: translate(model, sources, end, limits, beam, advance)


def translate(
    model: EncoderDecoder,
    sources: Sequence[Ids],
    end: int,
    limits: Limits,
    beam: Beam,
    advance: Callable[[int], None] = lambda sources: None,
) -> Iterator[Hypothesis]:
    """Best hypotheses of sources, in their order.

    Args:
        model: on any device.
        sources: ids of each; the last token, which ends the mark between source and target, begins the target.
        end: the token that ends a target.
        limits: of the model and of a batch.
        beam: the search.
        advance: called with the number of sources that are done.

    Raises:
        PipelineError: a source leaves no room in the context, or the model computes no numbers.
    """
    refuse_full("source", sources, limits.context)
    for start in range(0, len(sources), _WINDOW):
        window, found = sources[start : start + _WINDOW], dict[int, Hypothesis]()
        for batch in _batches(window, limits, beam):
            group = [window[number] for number in batch]
            most = [limits.most(source) for source in group]
            with torch.no_grad():
                best = _search(_Memory(model, group), most, end, limits.size, beam, advance)
            found |= dict(zip(batch, best, strict=True))
        yield from (found[number] for number in range(len(window)))


def _batches(sources: Sequence[Ids], limits: Limits, beam: Beam) -> Iterator[list[int]]:
    """Numbers of sources that are searched together, the longest first."""
    batch: list[int] = []
    for number in sorted(range(len(sources)), key=lambda number: -len(sources[number])):
        longest = len(sources[batch[0] if batch else number])
        most = max(limits.most(sources[one]) for one in (*batch, number))
        if batch and (len(batch) + 1) * (longest + beam.width * most) > limits.tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


class _Memory:
    """Sources as the decoder reads them."""

    def __init__(self, model: EncoderDecoder, sources: Sequence[Ids]) -> None:
        self.model, stack = model, model.model
        self.device = stack.embed_tokens.weight.device
        self.first = torch.tensor([source[-1] for source in sources], device=self.device)
        lengths = torch.tensor([len(source) for source in sources], device=self.device)
        rows = [torch.tensor(list(source)) for source in sources]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        places = torch.arange(tokens.shape[1], device=self.device)
        self.seen = places < lengths[:, None]
        segments = torch.where(self.seen, 0, -1)
        attend = attention_within(segments, segments, model.config.attention_scale)
        embedded = stack.placed(stack.embed_tokens(tokens), places.expand(tokens.shape))
        memory = stack.encoder(embedded, attend, lambda x, site: x)
        self.held = [layer.cross_attn.keys_and_values(memory) for layer in stack.layers]

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all sources but these, and padding after the longest."""
        self.seen = self.seen[rows]
        longest = int(self.seen.sum(1).max())
        self.seen = self.seen[:, :longest]
        self.held = [(k[rows, :, :longest], v[rows, :, :longest]) for k, v in self.held]

    def attend(self, owners: torch.Tensor) -> Attend:
        """Attention of hypotheses over their sources, whose rows `owners`, ascending, name."""
        counts = torch.bincount(owners)
        places = torch.arange(len(owners), device=self.device) - (counts.cumsum(0) - counts)[owners]
        width, seen = int(counts.max()), attention_of(self.seen[:, None, None], self.model.config.attention_scale)

        def through(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            queries = q.new_zeros(len(k), q.shape[1], width, q.shape[3])
            queries[owners, :, places] = q[:, :, 0]
            return seen(queries, k, v)[owners, :, places][:, :, None]

        return through

    def logits(self, last: torch.Tensor, owners: torch.Tensor, time: int, caches: list[LayerCache]) -> torch.Tensor:
        """Logits [hypotheses, rows of the table] after the token `last` of each."""
        stack, every = self.model.model, attention_of(None, self.model.config.attention_scale)
        padding, attend = torch.zeros_like(last), self.attend(owners)
        x = stack.placed(stack.embed_tokens(last[:, None]), torch.full_like(last, time)[:, None])
        for layer, cache, held in zip(stack.layers, caches, self.held, strict=True):
            seen = cache.next(time, padding, 0) if time else cache.first(every)
            x = layer.after(x, held, (DocumentMask({None: seen}), attend))
        found: torch.Tensor = self.model.lm_head(x)[:, 0]
        return found


class _Live(NamedTuple):
    """A continuation: log probability, row of its hypothesis, source, ids."""

    log_prob: float
    row: int
    source: int
    ids: tuple[int, ...]


def _search(
    memory: _Memory, most: Sequence[int], end: int, size: int, beam: Beam, advance: Callable[[int], None]
) -> list[Hypothesis]:
    """Finished hypothesis of the best score of each source.

    One has at most `most` tokens. Where none ends by then, the best is cut.
    """
    found, caches = [Hypothesis((), -math.inf)] * len(most), open_caches(memory.model.config, max(most))
    live, last = [_Live(0.0, source, source, ()) for source in range(len(most))], memory.first
    owners, scores = torch.arange(len(most), device=memory.device), torch.zeros(len(most), dtype=torch.float64)
    for time in range(max(most)):
        logits, grown = memory.logits(last, owners, time, caches)[:, :size], list[_Live]()
        ranked = _continuations(logits, scores.to(memory.device), owners, 2 * beam.width)
        for source, group in itertools.groupby(ranked, key=lambda one: live[one[1]].source):
            best = [_Live(log_prob, row, source, (*live[row].ids, token)) for log_prob, row, token in group]
            going = [one for one in best if one.ids[-1] != end][: beam.width]
            ended = next((one for one in best if one.ids[-1] == end), None)
            if ended and (score := ended.log_prob / beam.penalty(time + 1)) > found[source].score:
                found[source] = Hypothesis(ended.ids[:-1], score)
            # A log probability only falls, and no penalty exceeds that of the most tokens.
            reached, last_token = going[0].log_prob / beam.penalty(most[source]), time + 1 == most[source]
            if last_token and found[source].score == -math.inf:
                found[source] = Hypothesis(going[0].ids, reached)  # cut
            if last_token or reached <= found[source].score:
                advance(1)
            else:
                grown += going
        if not grown:
            break
        rows = torch.tensor([one.row for one in grown], device=memory.device)
        left, owners = owners[rows].unique_consecutive(return_inverse=True)
        if len(left) < len(memory.seen):
            memory.keep(left)
        for cache in caches:
            cache.keep_rows(rows)
        live, scores = grown, torch.tensor([one.log_prob for one in grown], dtype=torch.float64)
        last = torch.tensor([one.ids[-1] for one in grown], device=memory.device)
    return found


def _continuations(
    logits: torch.Tensor, scores: torch.Tensor, owners: torch.Tensor, count: int
) -> Iterator[tuple[float, int, int]]:
    """Best `count` (log probability, row, id) of each source, best first.

    Args:
        logits: [R, V], of hypotheses, those of a source side by side.
        scores: fp64 [R], log probabilities so far.
        owners: [R], numbers of the sources, ascending.
        count: of continuations.
    """
    least = logits.topk(min(count, logits.shape[1])).values[:, -1:]
    rows, ids = (logits >= least).nonzero(as_tuple=True)  # with all equals, in the order of rows and ids
    totals = logits.double().logsumexp(-1)
    refuse_no_numbers(totals, "translated")
    log_probs = scores[rows] + (logits[rows, ids].double() - totals[rows])
    order = log_probs.argsort(descending=True, stable=True)
    order = order[owners[rows[order]].argsort(stable=True)]
    sizes = torch.bincount(owners[rows])
    ranks = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[owners[rows[order]]]
    order = order[ranks < count]
    return zip(log_probs[order].tolist(), rows[order].tolist(), ids[order].tolist(), strict=True)
