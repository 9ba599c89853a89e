"""Quality buckets of a mixture: more copies of documents with higher scores.

A *group* is one (source, language, topic), and x is the rank of a document in its group by score, as a share of the
group's bytes: near 0 for the lowest score, 1 for the highest. The number of copies grows with x:

    r(x) = 0                                             x <= drop
           h * ((x - drop) / (1 - top - drop)) ^ p       between
           h                                             x >= 1 - top

The integral of r is T, the bytes that the mixture gives to the group (`mixture_sizes.py`) over the group's bytes. h is
`max_epochs`, or less if the best `top` would fill more than half of the mixture, and then p follows from T. (Dolma 3,
Olmo team 2025, mixes by a curve of such a form: the lowest 40 % dropped, the highest 5 % up to 7 times.)

The stage does not evaluate r for each document. It divides a group into buckets at every twentieth of x and at both
bends of the curve. A bucket gets the bytes under its part of the curve; its documents get whole epochs, and those with
the smallest hashes one copy more, as the cells of a mixture without quality. So copies depend on scores and ids alone.
Documents of equal score are never in two buckets: if many have one score, their bucket is wider, and its documents
share the mean of the curve over it.

The planned bytes per byte do not fall from a bucket to the next. The copies of whole documents may: a bucket is filled
to within one document, so in a group of a few hundred documents a higher bucket can have fewer copies than a lower one.

The bytes of a group are its target less one document at most: what whole documents leave over in its other buckets is
added to the highest bucket below `max_epochs`. (In a group of few documents that bucket may become full; the rest is
then missing.)

Numbers are exact, but for powers, which have 28 decimal digits by rules that do not depend on the machine.
"""

from __future__ import annotations

import decimal
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from data_pipeline.documents import KEPT_COLUMNS, number_of, read_table
from governance.config import Section
from governance.errors import ConfigError, ManifestError

_STEPS = 20
_MAX_TOPICS = 1000

Group = tuple[str, ...]
"""(source, language, topic)."""
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class QualityConfig(Section):
    """The score and the curve by which documents are repeated."""

    score: str = Field(min_length=1)
    """Number by which documents are ranked: the name of a classifier, or of a value that every source keeps in
    `columns`."""
    topic: str | tuple[str, ...] = ""
    """Documents are ranked within their topic. A name: of a value in `columns`; a list of classifiers: the one with the
    highest score names the topic. Empty: all documents of a source and language have one topic."""
    drop: float = Field(default=0.4, ge=0, lt=1)
    """Share of the bytes, from the lowest score on, that gets no copy."""
    top: float = Field(default=0.05, gt=0, lt=1)
    """Share of the bytes, up to the highest score, that gets the most copies: `max_epochs`, or fewer."""

    @model_validator(mode="after")
    def _leaves_a_curve(self) -> QualityConfig:
        if _exact(self.drop) + _exact(self.top) >= 1:
            raise ValueError(
                f"drop = {self.drop:g} and top = {self.top:g} leave nothing between them; their sum must be below 1"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """All classifiers and columns that are read."""
        topics = (self.topic,) if isinstance(self.topic, str) else self.topic
        return tuple(dict.fromkeys(filter(None, (self.score, *topics))))


def _exact(share: float) -> Fraction:
    return Fraction(str(share))


def edges(config: QualityConfig) -> list[Fraction]:
    """Ranks at which buckets begin and end, 0 and 1 included."""
    steps = {Fraction(step, _STEPS) for step in range(_STEPS + 1)}
    return sorted(steps | {_exact(config.drop), 1 - _exact(config.top)})


def labels(config: QualityConfig) -> list[str]:
    """Names of the buckets, as percentages: "40.0-45.0"."""
    ends = [f"{float(100 * edge):04.1f}" for edge in edges(config)]
    return [f"{low}-{high}" for low, high in itertools.pairwise(ends)]


def read_values(config: QualityConfig, documents: Path, scores: Path | None) -> tuple[list[str], Floats]:
    """Topic and score of each document of a shard.

    Args:
        config: which values.
        documents: the shard.
        scores: those of `classify` for the shard of the same name; None: it did not run.

    Raises:
        ConfigError: a document has no such number.
        ManifestError: the scores are of other documents.
    """
    ids = read_table(documents, columns=["id"])["id"].to_pylist()
    scored = pq.read_schema(scores).names if scores is not None else []
    columns: dict[str, list[Any]] = {}
    if scores is not None and (models := [name for name in config.names if name in scored]):
        columns |= _read_scores(scores, models, ids)
    if rest := [name for name in config.names if name not in scored]:
        columns |= read_kept(documents, rest)
    ranked = [config.score, *(config.topic if isinstance(config.topic, tuple) else ())]
    for name in ranked:
        given, columns[name] = columns[name], [number_of(value) for value in columns[name]]
        wrong = [place for place, value in enumerate(columns[name]) if value is None]
        if wrong:
            raise ConfigError(
                f"mix: the document {ids[wrong[0]]} has {given[wrong[0]]!r:.80} as {name!r}, which is not a number "
                f"({len(wrong):,} such of {len(ids):,} documents in {documents.name}). data.mix.quality needs one of "
                "every document: correct the values, filter these documents out, or use the score of a classifier."
            )
    if isinstance(config.topic, str):
        topics = [named_value(value) for value in columns[config.topic]] if config.topic else [""] * len(ids)
    else:
        rows_of_scores = zip(*(columns[name] for name in config.topic), strict=True)
        topics = [config.topic[max(range(len(row)), key=lambda place: row[place])] for row in rows_of_scores]
    return topics, np.array(columns[config.score], np.float64)


def _read_scores(path: Path, models: Sequence[str], ids: Sequence[str]) -> dict[str, list[Any]]:
    """Scores of these documents, in their order.

    Raises:
        ManifestError: a document has none.
    """
    table = pq.read_table(path, columns=["id", *models], partitioning=None)
    place_of = {name: place for place, name in enumerate(table["id"].to_pylist())}
    if lost := [name for name in ids if name not in place_of]:
        raise ManifestError(f"{path}: has no scores of the document {lost[0]}; make it again")
    places = pa.array([place_of[name] for name in ids], pa.int64())
    return {name: table[name].take(places).to_pylist() for name in models}


def read_kept(documents: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Kept values of a shard's documents; None where one has none."""
    has = KEPT_COLUMNS.name in pq.read_schema(documents).names
    column = KEPT_COLUMNS.name if has else "id"
    kept = pq.read_table(documents, columns=[column], partitioning=None)[column].to_pylist()
    rows = [json.loads(row or "{}") if has else {} for row in kept]
    return {name: [row.get(name) for row in rows] for name in names}


def named_value(value: Any) -> str:
    """Name of a value that groups documents.

    It is the text itself, "" for none, or else JSON.
    """
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def bytes_by_score(
    tables: Iterable[pa.Table], rows_by_group: Callable[[pa.Table], Iterator[tuple[Group, Integers]]]
) -> dict[Group, tuple[Floats, Integers]]:
    """The distinct scores of each group, ascending, and the bytes at each.

    Raises:
        ConfigError: there are more than 1,000 topics.
    """
    found: dict[Group, tuple[Floats, Integers]] = {}
    nothing = (np.zeros(0), np.zeros(0, np.int64))
    for table in tables:
        scores, lengths = table["score"].to_numpy(), table["bytes"].to_numpy()
        for group, rows in rows_by_group(table):
            before = found.get(group, nothing)
            values, places = np.unique(np.concatenate([before[0], scores[rows]]), return_inverse=True)
            sums = np.zeros(len(values), np.int64)
            np.add.at(sums, places, np.concatenate([before[1], lengths[rows]]))
            found[group] = values, sums
        topics = {group[2] for group in found}
        if len(topics) > _MAX_TOPICS:
            raise ConfigError(
                f"mix: data.mix.quality.topic has more than {_MAX_TOPICS:,} different values, such as "
                f"{min(topics)[:80]!r}. Use a value that groups documents."
            )
    return found


def divide(
    scores: Floats, sizes: Integers, got: int, epochs: int, config: QualityConfig
) -> tuple[list[float], list[tuple[int, int]]]:
    """Bounds of a group's buckets, and the bytes of each.

    The bytes are those of its documents, and those in the mixture. The number of bounds below a
    score is its bucket.

    Args:
        scores: distinct and ascending.
        sizes: bytes at each of them.
        got: bytes that the group has in the mixture, at most bytes * epochs * (1 - drop).
        epochs: the most copies of a document.
        config: the curve.
    """
    sums = np.cumsum(sizes)
    size = int(sums[-1])
    if not size:
        return [], [(0, 0)]
    inner = edges(config)[1:-1]
    ends = [int(np.searchsorted(sums, math.ceil(edge * size))) for edge in inner]
    bounds = [float(scores[end]) for end in ends]
    upto = [*(int(sums[end]) for end in ends), size]
    given = [curve(Fraction(end, size), Fraction(got, size), epochs, config) for end in upto]
    totals = [*(min(got, int(value * size)) for value in given[:-1]), got]
    buckets = []
    before = total_before = 0
    for end, total in zip(upto, totals, strict=True):
        buckets.append((end - before, min(total - total_before, (end - before) * epochs)))
        before, total_before = end, total
    return bounds, buckets


def curve(x: Fraction, mean: Fraction, epochs: int, config: QualityConfig) -> Fraction:
    """Integral of the copies from rank 0 to x.

    `mean` is its value at 1, at most epochs * (1 - drop).
    """
    drop, top = _exact(config.drop), _exact(config.top)
    width = 1 - top - drop
    if x <= drop or not mean:
        return Fraction(0)
    height = max(mean / (1 - drop), min(Fraction(epochs), mean / (2 * top)))
    below_top = mean - height * top  # the integral between the bends: height * width / (p + 1)
    if x >= 1 - top:
        return below_top + height * (x - (1 - top))
    power = width * height / below_top
    with decimal.localcontext(decimal.Context(prec=28)):
        base, exponent = (
            decimal.Decimal(value.numerator) / decimal.Decimal(value.denominator)
            for value in ((x - drop) / width, power)
        )
        return below_top * Fraction(base**exponent)


def bucketed(
    table: pa.Table,
    bounds: Mapping[Group, Sequence[float]],
    config: QualityConfig,
    rows_by_group: Callable[[pa.Table], Iterator[tuple[Group, Integers]]],
) -> pa.Table:
    """A sizes table with the bucket of each document."""
    scores, names = table["score"].to_numpy(), labels(config)
    buckets = np.zeros(table.num_rows, np.int64)
    for group, rows in rows_by_group(table):
        buckets[rows] = np.searchsorted(np.array(bounds[group]), scores[rows], side="left")
    column = pa.DictionaryArray.from_arrays(pa.array(buckets), pa.array(names)).cast(pa.string())
    return table.append_column(pa.field("bucket", pa.string(), nullable=False), column)
