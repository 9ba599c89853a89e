"""Tone of sentences that mention a group: sentiment and insults.

    sentiment_gap  = mean score of the group's sentences - mean score of the others'      points of the instrument
    toxicity_ratio = share of hits in the group's sentences / share of hits in the others'   a risk ratio; 1 is equal

Means and shares are compared within sources (`within_source.py`): where several differ, the note has the value that
pooling them would give. "The others" are the axis' other groups pooled (a sentence that mentions two of them counts
twice), and, in a row of its own, the sentences without a mention. An instrument whose name begins with "sentiment" has
a score for each sentence, "sentiment:NAME" in the points of that scored list; any other is a list of words of abuse, of
which hits are counted (sentences with at least one).

Intervals and p (of 0, of 1; `interval_choice.py`): delete-a-group jackknife (Kott 2001) over 64 buckets of domains, the
ratio on the log scale (Katz et al. 1978, Biometrics 34(3), 469-474, for independent sentences); exact ones where few
sentences are scored. `n` is the group's sentences. The method is that of Dhamala et al. 2021 ("BOLD", FAccT), applied
to the corpus instead of generated text. The note of a row names a biased instrument, which cannot decide a gate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from governance.checks.bias.association import pooled_others
from governance.checks.bias.count_tables import by_bucket, stacked
from governance.checks.bias.fates import crowding
from governance.checks.bias.interval_choice import chosen_intervals, documents_of, rate_ratio_bounds
from governance.checks.bias.interval_rows import NOBODY, OTHERS, Row, interval_rows
from governance.checks.bias.small_samples import Bounds, mean_bounds, mean_p, scores_of
from governance.checks.bias.statistics import IDENTITY, LOG, Estimates, Floats, Integers, jackknife
from governance.checks.bias.within_source import (
    by_source,
    comparable,
    notes_of,
    sources_of,
    standardised,
    units_within,
    weights,
)
from governance.checks.bias.word_lists.lexicons import scale_of

_KEYS = ("instrument", "language", "axis", "group")
SENTIMENT = "sentiment"


def _difference(total: Floats, n: Floats, other_total: Floats, other_n: Floats) -> Floats:
    """[rows, replicates] of sums [rows, sources, replicates], as the ratio."""
    weight = weights(n, other_n)
    return standardised(total, n, weight) - standardised(other_total, other_n, weight)


def _ratio(hits: Floats, n: Floats, other_hits: Floats, other_n: Floats) -> Floats:
    weight = weights(n, other_n)
    return standardised(hits, n, weight) / standardised(other_hits, other_n, weight)


def tone_rows(
    scores: pa.Table,
    biased: Collection[tuple[str, str]] = (),
    fates: pa.Table | None = None,
    groups: pa.Table | None = None,
) -> list[Row]:
    """The rows of the suite `tone`, without q.

    Args:
        scores: the count table.
        biased: (instrument, language) that cannot decide.
        fates: the count table that has sites; without it sentences are only known by bucket.
        groups: the count table that has documents.
    """
    parts = [by_bucket(scores, (*_KEYS, "source"), name) for name in ("sentences", "total", "squares", "hits")]
    mentioning = _documents_by_group(groups)
    rows: list[Row] = []
    for instrument, language in sorted({key[:2] for key in parts[0]}):
        note = f"biased instrument: {instrument}" if (instrument, language) in biased else ""
        rows += _rows_of(instrument, language, parts, fates, mentioning, note)
    return rows


def _rows_of(
    instrument: str,
    language: str,
    parts: Sequence[Mapping[tuple[Any, ...], Integers]],
    fates: pa.Table | None,
    mentioning: Mapping[tuple[str, ...], float],
    note: str,
) -> Iterator[Row]:
    """Rows of one instrument in one language.

    Each group is compared with the others, then with nobody.

    `parts` are sentences, totals, squares and hits by bucket; `mentioning` has the groups' effective documents.
    """
    matching = [key for key in parts[0] if key[:2] == (instrument, language)]
    # An empty group is that of sentences without a mention: the reference, not a row.
    keys, sources = list(dict.fromkeys(key[:-1] for key in matching if key[3])), sources_of(matching)
    if not keys:
        return
    toxic = not instrument.startswith(SENTIMENT)
    by_axis = [key[1:] for key in keys]
    own = [by_source(part, keys, sources) for part in parts]
    others = [pooled_others(by_axis, part) for part in own]
    unmentioned = [
        np.broadcast_to(by_source(part, [(instrument, language, "", "")], sources), own[0].shape) for part in parts
    ]
    names = [{"language": language, "axis": key[2], "group": key[3], "instrument": instrument} for key in keys]
    sites = _by_site(fates, by_axis, own[0], unmentioned[0]) if toxic and fates is not None else {}
    documents = np.array([mentioning.get(key, np.nan) for key in by_axis], np.float64)
    for against, reference in ((OTHERS, others), (NOBODY, unmentioned)):
        estimates, notes = _compared(toxic, own, reference, scale_of(instrument), sites.get(against), documents)
        metric = {"metric": "toxicity_ratio" if toxic else "sentiment_gap", "against": against}
        rows = interval_rows(
            [{**metric, **name} for name in names], estimates, own[0].sum(axis=(1, 2)),
            ["; ".join(filter(None, (note, own_note))) for own_note in notes],
        )  # fmt: skip
        sentences_of_reference = reference[0].sum(axis=(1, 2)).tolist()
        yield from (row for row, sentences in zip(rows, sentences_of_reference, strict=True) if sentences)


def _documents_by_group(groups: pa.Table | None) -> dict[tuple[str, ...], float]:
    """Effective documents by language, axis and group."""
    if groups is None:
        return {}
    keys = ("language", "axis", "group")
    documents, sentences = (by_bucket(groups, keys, name) for name in ("documents", "sentences"))
    effective = documents_of(stacked(documents, documents), stacked(sentences, documents))
    return dict(zip(documents, effective.tolist(), strict=True))


def _by_site(
    fates: pa.Table, keys: Sequence[tuple[str, str, str]], own: Integers, unmentioned: Integers
) -> dict[str, tuple[Floats, Floats]]:
    """Sentences per site of the group and of each reference, [rows].

    `keys` are language, axis and group of the rows.
    """
    sizes, without = own.sum(axis=(1, 2)).tolist(), unmentioned.sum(axis=(1, 2)).tolist()
    by_axis: dict[tuple[str, str], dict[str, int]] = {}
    for (language, axis, group), size in zip(keys, sizes, strict=True):
        by_axis.setdefault((language, axis), {})[group] = size
    found = {key: crowding(fates, *key, units, without[0]) for key, units in by_axis.items()}
    mine = np.array([found[key[:2]].own[key[2]] for key in keys])
    theirs = np.array([found[key[:2]].others[key[2]] for key in keys])
    nobody = np.array([found[key[:2]].unmentioned for key in keys])
    return {OTHERS: (mine, theirs), NOBODY: (mine, nobody)}


def _compared(
    toxic: bool,
    own: Sequence[Integers],
    others: Sequence[Integers],
    scale: int,
    by_site: tuple[Floats, Floats] | None,
    documents: Floats,
) -> tuple[Estimates, list[str]]:
    """Gaps or ratios in points, with notes.

    `documents` are the groups', NaN where unknown.
    """
    statistic, form, null = (_ratio, LOG, 1.0) if toxic else (_difference, IDENTITY, 0.0)
    there = comparable(own[0], others[0])
    sides = [[np.asarray(part * there) for part in side] for side in (own, others)]
    (n1, *own_sums), (n0, *other_sums) = sides
    place = 2 if toxic else 0
    found = jackknife(statistic, (own_sums[place], n1, other_sums[place], n0), (n1 + n0).sum(axis=1), form, null)
    first, second = ([part.sum(axis=-1).astype(np.float64) for part in side] for side in sides)
    weight = weights(first[0], second[0])
    mean, other = (standardised(side[1 + place], side[0], weight) for side in (first, second))
    size = first[0] + second[0]
    with np.errstate(all="ignore"):
        total, squares, hits = ((one + two) / size for one, two in zip(first[1:], second[1:], strict=True))
        spread = hits * (1 - hits) if toxic else squares - total**2
    ones = np.ones_like(size)
    variance, *pool = (standardised(part, ones, weight) for part in (spread, total, squares, hits))
    units = units_within(n1, n0, other_sums[place], n0, variance, by_site)
    exact = rate_ratio_bounds(mean, other, units) if toxic else _mean_gaps(mean, other, units, pool)
    rarer = np.minimum(pool[2], 1 - pool[2]) if toxic else _rarer(pool)
    counted = np.minimum(first[0], second[0]).sum(axis=1) * rarer
    fewer = np.fmin(units, documents)
    of_documents = rate_ratio_bounds(mean, other, fewer).p if toxic else _mean_gap_p(mean, other, fewer, pool)
    chosen, notes = chosen_intervals(found, exact, units * rarer, n1.sum(axis=1), counted, of_documents)
    chosen = _in_points(chosen, scale)
    with np.errstate(all="ignore"):
        pooled = statistic(
            *(side[part].sum(axis=(1, 2))[:, None, None].astype(np.float64)
              for side in (own, others) for part in (1 + place, 0))
        )[:, 0]  # fmt: skip
    of_sources = notes_of(chosen.value, pooled / scale, own[0], others[0])
    return chosen, ["; ".join(filter(None, both)) for both in zip(notes, of_sources, strict=True)]


def _in_points(found: Estimates, scale: int) -> Estimates:
    """Convert estimates of scaled scores to points; p does not change."""
    parts = {name: getattr(found, name) / scale for name in ("value", "lower", "upper", "error")}
    return replace(found, **parts)


def _rarer(pool: list[Floats]) -> Floats:
    """Share of sentences with another score than the most common one.

    Scores are -c, 0 and +c (`small_samples.py`); `pool` is total, squares and hits per sentence. Where most sentences
    are hits, as under a classifier that praises nearly all of them, the few others decide how far a group may differ.
    """
    shares = np.full(len(pool[0]), np.nan)
    for row, one in enumerate(zip(*(part.tolist() for part in pool), strict=True)):
        scores = scores_of(1.0, *one) if np.isfinite(one).all() else None
        if scores is not None:
            shares[row] = scores.rarer
    return shares


def _mean_gap_p(mean: Floats, other: Floats, units: Floats, pool: list[Floats]) -> Floats:
    """Two-sided p of mean - other = 0, [rows].

    `pool` is as in `_mean_gaps`.
    """
    found = np.full(len(mean), np.nan)
    for row, (own, against, n) in enumerate(zip(mean.tolist(), other.tolist(), units.tolist(), strict=True)):
        scores = scores_of(1.0, *(float(part[row]) for part in pool))
        if scores is not None and np.isfinite(own) and np.isfinite(against) and n > 0:
            found[row] = mean_p(own, n, against, scores)
    return found


def _mean_gaps(mean: Floats, other: Floats, units: Floats, pool: list[Floats]) -> Bounds:
    """Bounds of mean - other, and p of 0.

    `pool` is total, squares and hits per sentence.
    """
    ends = np.full((3, len(mean)), np.nan)
    for row, (own, against, n) in enumerate(zip(mean.tolist(), other.tolist(), units.tolist(), strict=True)):
        scores = scores_of(1.0, *(float(part[row]) for part in pool))
        if scores is not None and np.isfinite(own) and np.isfinite(against) and n > 0:
            lower, upper, p = mean_bounds(own, n, against, scores)
            ends[:, row] = lower - against, upper - against, p
    return Bounds(*ends)
