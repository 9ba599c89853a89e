"""Count tables of one language's sentences, by kernel and by classifiers.

A classifier scores each sentence that mentions a group, once, in thousandths of a point, so that sums stay integers.
Sentences without a mention are not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from governance.checks.bias.count_tables import table_of
from governance.checks.bias.statistics import BUCKETS, Integers
from governance.checks.bias.word_lists.lexicons import Lexicon, Lexicons, Name, scale_of
from governance.checks.bias.word_lists.tabbed_lists import MAX_SCORE
from governance.errors import PipelineError

if TYPE_CHECKING:
    from governance.kernels.buffers import Bytes
    from governance.kernels.mentions import MentionSums, Packed

Scorer = Callable[[list[str]], list[float]]
"""Texts to scores, one each, in order."""

KEPT = "kept"
BELOW, ABOVE = "below", "above"
"""The sides of an instrument: sentences whose score is below 0, and above."""
CHARACTERS = 4096
"""Characters of a sentence that a classifier reads."""
CLEAR = 0.5
"""Points from which a classifier's score is a hit: clear praise or blame."""


@dataclass(frozen=True)
class SentenceScorer:
    """A classifier that scores the tone of sentences."""

    instrument: str
    languages: tuple[str, ...]
    score: Scorer


class ScoredSentences(NamedTuple):
    """A classifier's scores of the sentences that mention a group."""

    instrument: str
    spans: Integers
    """[sentences, 4]: text, group, first byte, end (`TextMentions.spans`)."""
    scores: Integers


def sentence_scores(scorer: SentenceScorer, spans: Integers, data: Bytes) -> Integers:
    """Scores of the sentences `spans` (`TextMentions`) of a column, as integers.

    Raises:
        PipelineError: a score is not a number from -1000 to 1000.
    """
    places, of = np.unique(spans[:, 2:], axis=0, return_inverse=True)
    cut = [bytes(data[start : min(end, start + 4 * CHARACTERS)]) for start, end in places.tolist()]
    texts = [" ".join(text.decode("utf-8", "ignore").split())[:CHARACTERS] for text in cut]
    scores = np.asarray(scorer.score(texts) if texts else [], np.float64)
    if scores.shape != (len(texts),):
        raise ValueError(f"{scorer.instrument} returned {scores.shape} scores for {len(texts)} sentences")
    if len(wrong := scores[~(np.abs(scores) <= MAX_SCORE)]):
        raise PipelineError(
            f"{scorer.instrument}: {len(wrong)} of {len(scores)} sentences have a score that is not a number from "
            f"-{MAX_SCORE} to {MAX_SCORE}, such as {wrong[0]:g}. Name another model in audit.bias.classifiers."
        )
    whole: Integers = np.rint(scores * scale_of(scorer.instrument)).astype(np.int64)
    return whole[of.reshape(-1)]


def score_table(code: str, source: str, groups: Sequence[Name], scored: ScoredSentences, buckets: Integers) -> pa.Table:
    """The rows of `scores` of a classifier.

    Args:
        code: the language.
        source: name of the texts' source.
        groups: names of the groups, then of the intersections.
        scored: the classifier's sentences.
        buckets: of each text.
    """
    instrument, spans, scores = scored
    hits = np.abs(scores) >= CLEAR * scale_of(instrument)
    sums = np.zeros((BUCKETS, len(groups), 4), np.int64)
    counts = np.stack([np.ones_like(scores), scores, scores**2, hits], axis=1)
    np.add.at(sums, (buckets[spans[:, 0]], spans[:, 1]), counts)
    bucket, group = np.nonzero(sums[:, :, 0])
    mentioned = np.array(groups, object).reshape(-1, 2)[group]
    sentences, total, squares, clear = sums[bucket, group].T
    return table_of(
        "scores", language=code, source=source, bucket=bucket, axis=mentioned[:, 0], group=mentioned[:, 1],
        instrument=instrument, sentences=sentences, total=total, squares=squares, hits=clear,
    )  # fmt: skip


def sentence_tables(
    code: str, source: str, lexicons: Lexicons, packed: Packed, sums: MentionSums
) -> Iterator[tuple[str, pa.Table]]:
    """Count tables of the sentences of one language and source."""
    lexicon = lexicons.languages[code]
    groups = np.array([*lexicon.everyone, ("", "")], object).reshape(-1, 2)
    categories = np.array(lexicon.categories, object).reshape(-1, 2)
    bucket, category = np.nonzero(sums.categories)
    named = categories[category]
    yield "categories", table_of(
        "categories", language=code, source=source, bucket=bucket, family=named[:, 0],
        category=named[:, 1], sentences=sums.categories[bucket, category],
    )  # fmt: skip
    bucket, group, category = np.nonzero(sums.pairs)
    mentioned, named = groups[group], categories[category]
    yield "pairs", table_of(
        "pairs", language=code, source=source, bucket=bucket, axis=mentioned[:, 0], group=mentioned[:, 1],
        family=named[:, 0], category=named[:, 1], sentences=sums.pairs[bucket, group, category],
    )  # fmt: skip
    scored = np.array([code in lexicons.scored[name] for name in lexicons.instruments], bool)
    bucket, group, instrument = np.nonzero(sums.scores[:, :, :, 0] * scored)
    mentioned = groups[group]
    sentences, total, squares, hits = sums.scores[bucket, group, instrument].T
    yield "scores", table_of(
        "scores", language=code, source=source, bucket=bucket, axis=mentioned[:, 0], group=mentioned[:, 1],
        instrument=np.array(lexicons.instruments, object)[instrument], sentences=sentences, total=total,
        squares=squares, hits=hits,
    )  # fmt: skip
    yield "terms", _terms(KEPT, code, packed, sums, cells_of(lexicon, lexicons.instruments))
    group, term = np.nonzero(sums.beside[:, :, 0])
    mentioned, words = groups[group], np.array([" ".join(words) for words in packed.terms[1]], object)
    yield "beside", table_of(
        "beside", language=code, source=source, axis=mentioned[:, 0], group=mentioned[:, 1], term=words[term],
        words=sums.beside[group, term, 0], scored=sums.beside[group, term, 1],
    )  # fmt: skip


def removed_tables(stage: str, code: str, packed: Packed, sums: MentionSums) -> Iterator[tuple[str, pa.Table]]:
    """Tables of the groups that removed documents of one language mention."""
    yield "terms", _terms(stage, code, packed, sums, [])


def cells_of(lexicon: Lexicon, instruments: Sequence[str]) -> list[Name]:
    """The (family, category) of each cell of the kernel's.

    Categories come first, then the two sides of each instrument.
    """
    return [*lexicon.categories, *((name, side) for name in instruments for side in (BELOW, ABOVE))]


def _terms(stage: str, code: str, packed: Packed, sums: MentionSums, cells: Sequence[Name]) -> pa.Table:
    term, cell = np.nonzero(sums.named)
    named = np.array([("", ""), *cells], object).reshape(-1, 2)[cell]
    words = np.array([" ".join(words) for words in packed.terms[0]], object)
    return table_of(
        "terms", stage=stage, language=code, term=words[term], family=named[:, 0], category=named[:, 1],
        mentions=sums.named[term, cell],
    )  # fmt: skip
