"""Association of groups with categories in sentences, against chance.

    npmi(g, c)     = ln(p(g,c) / (p(g) p(c))) / -ln p(g,c)             in -1 .. 1; 0 is independence
    npmi_gap(g, c) = npmi(g, c | own rate) - npmi(g, c | others' rate)      in -2 .. 2; 0 is the same rate

p(g,c), p(g), p(c) are shares of the language's sentences. Bouma 2009, "Normalized (Pointwise) Mutual Information in
Collocation Extraction", Proceedings of GSCL, defines it. Never together is -1, by Bouma's limit. npmi describes the
whole corpus: it has an interval and no p, because sources and sentences without a mention enter into it.

The gap compares within sources (`within_source.py`): both rates, and the category's, are taken as if the group and the
axis' other groups occurred in the same sources, and the others' rate replaces the group's own. The gap is therefore 0
where both co-occur with the category equally often, however often other sentences do; two npmi of groups of unlike size
would differ. The other groups are pooled: a sentence that mentions two of them counts twice.

Intervals and p (`interval_choice.py`): delete-a-group jackknife (Kott 2001) over 64 buckets of domains with Student's
t, npmi on Fisher's atanh scale, where chance alone would have the pair in 5 sentences or more (Cochran 1954, Biometrics
10(4), 417-451, draws the same line); from 1 to 5 exact ones of the group's rate, with the category's as known; with
fewer none. Observed counts are not used for this choice: they would select the extremes. The gap is 0 where the two
rates are equal, so a jackknife of their difference tests it too, with more power for large groups and less for small
ones. From `SURE_DEGREES` degrees of freedom on the jackknife's p is the lesser of both. It still counts only above the
exact p, so alarms stay as rare. Where one side never has the pair, its npmi is -1 in each replicate, however few its
sentences: interval and p are exact then, of the rate of the side that never has it. q: Benjamini & Hochberg 1995 over
the suite. `n` is the group's sentences. A pair has a row when it was seen or when chance would have it in
`MIN_EXPECTED` sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from governance.checks.bias.count_tables import by_bucket
from governance.checks.bias.interval_choice import chosen_intervals, documents_of, effective_units, units_against
from governance.checks.bias.interval_rows import OTHERS, Row, interval_rows
from governance.checks.bias.small_samples import Bounds, rate_bounds
from governance.checks.bias.statistics import FISHER, IDENTITY, Estimates, Floats, Integers, jackknife
from governance.checks.bias.within_source import (
    by_source,
    comparable,
    notes_of,
    sources_of,
    standardised,
    units_within,
    weights,
)

MIN_EXPECTED = 5.0
SURE_DEGREES = 20.0
_GAP_ONE_SIDED = 0.03  # with .04 gaps of rare groups (one expected, on few sites) cover .927


def normalised_pmi(both: Floats, one: Floats, other: Floats, everything: Floats) -> Floats:
    """Bouma's npmi of counts.

    It is -1 where the two never co-occur, and NaN where one of them does not occur.
    """
    with np.errstate(all="ignore"):
        value = np.log(both * everything / (one * other)) / -np.log(both / everything)
    return np.where(both > 0, value, np.where((one > 0) & (other > 0), -1.0, np.nan))


def _gap(*counts: Floats) -> Floats:
    """[rows, replicates] of counts [rows, sources, replicates]."""
    sums = _within(*counts)
    return _npmi_of(sums.rate, sums) - _npmi_of(sums.others_rate, sums)


def _difference(*counts: Floats) -> Floats:
    """Difference of the two rates, [rows, replicates]."""
    sums = _within(*counts)
    return sums.rate - sums.others_rate


def association_rows(counts: Mapping[str, pa.Table]) -> list[Row]:
    """The rows of the suite `association`, without q.

    `against` is the category as "family/category".

    Args:
        counts: the tables documents, groups, categories, pairs.
    """
    everything = by_bucket(counts["documents"], ("language", "source"), "sentences")
    groups, of_documents = (
        by_bucket(counts["groups"], ("language", "axis", "group", "source"), name)
        for name in ("sentences", "documents")
    )
    categories = by_bucket(counts["categories"], ("language", "family", "category", "source"), "sentences")
    pairs = by_bucket(counts["pairs"], ("language", "axis", "group", "family", "category", "source"), "sentences")
    rows: list[Row] = []
    for language in dict.fromkeys(key[0] for key in everything):
        sources = sources_of([key for key in everything if key[0] == language])
        keys = list(dict.fromkeys(key[:-1] for key in groups if key[0] == language))
        one = by_source(groups, keys, sources)
        documents = documents_of(by_source(of_documents, keys, sources), one)
        whole = np.broadcast_to(by_source(everything, [(language,)], sources), one.shape)
        for family, category in dict.fromkeys(key[1:-1] for key in categories if key[0] == language):
            together = by_source(pairs, [(*key, family, category) for key in keys], sources)
            subject = np.broadcast_to(by_source(categories, [(language, family, category)], sources), one.shape)
            rows += _rows_of_category(keys, f"{family}/{category}", (together, one, subject, whole), documents)
    return rows


def _rows_of_category(
    keys: list[tuple[str, ...]], against: str, counts: tuple[Integers, ...], documents: Floats
) -> list[Row]:
    if not keys:
        return []
    together, one = counts[:2]
    names = [{"language": key[0], "axis": key[1], "group": key[2], "against": against} for key in keys]
    others_together, others = pooled_others(keys, together), pooled_others(keys, one)
    rows = _npmi_rows(names, [part.sum(axis=1) for part in counts])
    return rows + _gap_rows(names, (together, one, others_together, others, *counts[2:]), documents)


def _npmi_rows(names: list[dict[str, str]], counts: list[Integers]) -> list[Row]:
    """The rows of a category, from counts [rows, buckets]."""
    together, one, subject, whole = counts
    sums = _Sums(*(part.sum(axis=1).astype(np.float64) for part in counts))
    with np.errstate(all="ignore"):
        rate = sums.subject / sums.whole
        expected = sums.one * rate
        units = effective_units(one, subject - together, whole - one, rate * (1 - rate))
        exact = _npmi_bounds(sums, units_against(units, sums.whole - sums.one))
    found, notes = chosen_intervals(jackknife(normalised_pmi, tuple(counts), whole, FISHER), exact, expected, one)
    never = [
        "" if seen else f"never together; chance would have it in {by_chance:.1f} sentences"
        for seen, by_chance in zip(np.any(together, axis=1).tolist(), expected.tolist(), strict=True)
    ]
    shown = together.any(axis=1) | (expected >= MIN_EXPECTED)
    return _chosen(
        "npmi", names, found, shown, one.sum(axis=1), [_joined(*both) for both in zip(never, notes, strict=True)]
    )


def _gap_rows(names: list[dict[str, str]], counts: tuple[Integers, ...], documents: Floats) -> list[Row]:
    """Rows of a category, from counts [rows, sources, buckets].

    `documents` are those of the groups, [rows].
    """
    _, one, _, others, _, _ = counts
    there = comparable(one, others)
    mine = [np.asarray(part * there) for part in counts]
    sums = _within(*(part.sum(axis=2).astype(np.float64) for part in mine))
    with np.errstate(all="ignore"):
        pooled = _gap(*(part.sum(axis=(1, 2))[:, None, None].astype(np.float64) for part in counts))[:, 0]
        units = units_within(mine[1], mine[3], mine[4] - mine[0], mine[5] - mine[1], sums.variance)
        exact = rate_bounds(sums.rate, units, sums.others_rate, _GAP_ONE_SIDED)
        of_documents = rate_bounds(sums.rate, np.fmin(units, documents), sums.others_rate).p
        baseline = _npmi_of(sums.others_rate, sums)
        unseen = sums.others_rate == 0
        turned = rate_bounds(
            sums.others_rate,
            units_within(mine[3], mine[1], mine[4] - mine[2], mine[5] - mine[3], sums.variance),
            sums.rate,
        )
        highest = np.where(unseen, _npmi_of(turned.upper, sums), baseline)
        exact = Bounds(
            _npmi_of(exact.lower, sums) - highest,
            _npmi_of(exact.upper, sums) - baseline,
            np.where(unseen, turned.p, exact.p),
        )
        expected = np.minimum(sums.one, mine[3].sum(axis=(1, 2))) * sums.subject_rate
    gaps, rates = (
        jackknife(statistic, tuple(mine), mine[5].sum(axis=1), IDENTITY, 0.0) for statistic in (_gap, _difference)
    )
    lower = np.where(unseen | (sums.rate == 0), np.nan, gaps.lower)  # npmi is -1 in each replicate: no interval
    gaps = replace(gaps, lower=lower, p=np.where(rates.degrees >= SURE_DEGREES, np.fmin(gaps.p, rates.p), gaps.p))
    found, notes = chosen_intervals(gaps, exact, expected, mine[1].sum(axis=1), of_documents=of_documents)
    seen = (counts[0].any(axis=(1, 2)) & counts[2].any(axis=(1, 2))) | (expected >= MIN_EXPECTED)
    of_sources = notes_of(found.value, pooled, one, others)
    unlike = [_joined(f"against {OTHERS}", *both) for both in zip(notes, of_sources, strict=True)]
    return _chosen("npmi_gap", names, found, seen & others.any(axis=(1, 2)), one.sum(axis=(1, 2)), unlike)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


@dataclass(frozen=True)
class _Sums:
    """Sentences of each row, [rows]."""

    together: Floats
    one: Floats
    subject: Floats
    whole: Floats


@dataclass(frozen=True)
class _Within:
    """Parts of the gap, standardised over sources.

    Each is an array [rows] or [rows, replicates].
    """

    rate: Floats
    others_rate: Floats
    subject_rate: Floats
    """The category's, among all sentences."""
    variance: Floats
    """Variance of one sentence, within its source."""
    one: Floats
    whole: Floats


def _within(
    together: Floats, one: Floats, others_together: Floats, others: Floats, subject: Floats, whole: Floats
) -> _Within:
    """Standardise counts [rows, sources, ...] over sources."""
    weight = weights(one, others)
    with np.errstate(all="ignore"):
        rates = subject / whole
    return _Within(
        standardised(together, one, weight), standardised(others_together, others, weight),
        standardised(subject, whole, weight), standardised(rates * (1 - rates), np.ones_like(rates), weight),
        one.sum(axis=1), whole.sum(axis=1),
    )  # fmt: skip


def _npmi_of(rate: Floats, sums: _Within) -> Floats:
    """Association npmi at a given rate of the group's sentences."""
    return normalised_pmi(rate * sums.one, sums.one, sums.subject_rate * sums.whole, sums.whole)


def _npmi_bounds(sums: _Sums, units: Floats) -> Bounds:
    """Bounds of npmi, derived from bounds of the group's rate."""
    with np.errstate(all="ignore"):
        found = rate_bounds(sums.together / sums.one, units, np.full_like(units, np.nan))
        lower, upper = (
            normalised_pmi(end * sums.one, sums.one, sums.subject - sums.together + end * sums.one, sums.whole)
            for end in (found.lower, found.upper)
        )
        return Bounds(lower, upper, found.p)


def _chosen(
    metric: str,
    names: list[dict[str, str]],
    found: Estimates,
    shown: npt.NDArray[np.bool_],
    n: Integers,
    notes: list[str],
) -> list[Row]:
    rows = interval_rows([{"metric": metric, **name} for name in names], found, n, notes)
    return [row for row, chosen in zip(rows, shown.tolist(), strict=True) if chosen]


def pooled_others(keys: list[tuple[str, ...]], counts: Integers) -> Integers:
    """Pooled counts of the other groups, for each key.

    A key is (language, axis, group); the counts of the other groups of its language and axis are added.
    """
    sums: dict[tuple[str, ...], Integers] = {}
    for key, part in zip(keys, counts, strict=True):
        sums[key[:2]] = sums.get(key[:2], np.zeros_like(part)) + part
    return np.array([sums[key[:2]] - part for key, part in zip(keys, counts, strict=True)], np.int64).reshape(
        counts.shape
    )
