"""Association: do sentences that mention a group speak of a category more often than chance would have it?

    npmi(g, c)     = ln(p(g,c) / (p(g) p(c))) / -ln p(g,c)             in -1 .. 1; 0 is independence
    npmi_gap(g, c) = npmi(g, c) - npmi(the axis' other groups, c)      in -2 .. 2

p(g,c), p(g), p(c) are shares of the language's sentences. Bouma 2009, "Normalized (Pointwise) Mutual Information in
Collocation Extraction", Proceedings of GSCL, defines it. The other groups are pooled: their sentences are added, so a
sentence that mentions two of them counts twice. Never together is -1, by Bouma's limit.

Intervals and p (`interval_choice.py`): delete-a-group jackknife (Kott 2001) over 64 buckets of domains with Student's
t, npmi on Fisher's atanh scale, where chance alone would have the pair in 5 sentences or more (Cochran 1954, Biometrics
10(4), 417-451, draws the same line); from 1 to 5 exact ones of the group's rate, with the category's as known; with
fewer none. What was seen draws no line: it would choose the extremes. q: Benjamini & Hochberg 1995 over the suite. `n`
is the group's sentences. A pair has a row when it was seen or when chance would have it in `least_expected` sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from governance.checks.bias.bucket_counts import by_bucket, stacked
from governance.checks.bias.interval_choice import chosen_intervals, effective_units, units_against
from governance.checks.bias.interval_rows import OTHERS, Row, interval_rows
from governance.checks.bias.jackknife import FISHER, IDENTITY, Estimates, Floats, Integers, jackknife
from governance.checks.bias.small_samples import Bounds, rate_bounds

LEAST_EXPECTED = 5.0


def normalised_pmi(both: Floats, one: Floats, other: Floats, everything: Floats) -> Floats:
    """Bouma's npmi of counts; -1 where the two are never together, NaN where one of them is not there."""
    with np.errstate(all="ignore"):
        value = np.log(both * everything / (one * other)) / -np.log(both / everything)
    return np.where(both > 0, value, np.where((one > 0) & (other > 0), -1.0, np.nan))


def _gap(*counts: Floats) -> Floats:
    both, one, both_others, others, category, everything = counts
    return normalised_pmi(both, one, category, everything) - normalised_pmi(both_others, others, category, everything)


def association_rows(counts: Mapping[str, pa.Table], least_expected: float = LEAST_EXPECTED) -> list[Row]:
    """The rows of the suite `association`, without q; `against` is the category as "family/category".

    Args:
        counts: the tables documents, groups, categories, pairs.
        least_expected: sentences that chance alone would give a pair that was never seen, for its row.
    """
    everything = by_bucket(counts["documents"], ("language",), "sentences")
    groups = by_bucket(counts["groups"], ("language", "axis", "group"), "sentences")
    categories = by_bucket(counts["categories"], ("language", "family", "category"), "sentences")
    pairs = by_bucket(counts["pairs"], ("language", "axis", "group", "family", "category"), "sentences")
    rows: list[Row] = []
    for (language,), sentences in everything.items():
        keys = [key for key in groups if key[0] == language]
        for _, family, category in [key for key in categories if key[0] == language]:
            together = stacked(pairs, [(*key, family, category) for key in keys])
            one = stacked(groups, keys)
            subject = np.broadcast_to(categories[language, family, category], one.shape)
            whole = np.broadcast_to(sentences, one.shape)
            rows += _rows_of_category(keys, f"{family}/{category}", (together, one, subject, whole), least_expected)
    return rows


def _rows_of_category(
    keys: list[tuple[str, ...]], against: str, counts: tuple[Integers, ...], least_expected: float
) -> list[Row]:
    together, one, subject, whole = counts
    if not keys:
        return []
    others_together, others = pooled_others(keys, together), pooled_others(keys, one)
    sums = _Sums(
        *(part.sum(axis=1).astype(np.float64) for part in (together, one, others_together, others, subject, whole))
    )
    with np.errstate(all="ignore"):
        rate = sums.subject / sums.whole
    expected, by_others = sums.one * rate, sums.others * rate
    names = [{"language": key[0], "axis": key[1], "group": key[2], "against": against} for key in keys]
    rest = subject - together, whole - one
    units = effective_units(one, rest[0], rest[1], rate * (1 - rate))
    found, notes = chosen_intervals(
        jackknife(normalised_pmi, counts, whole, FISHER, 0.0),
        _npmi_bounds(sums, units_against(units, sums.whole - sums.one)), expected, one,
    )  # fmt: skip
    never = [
        "" if seen else f"never together; chance would have it in {by_chance:.1f} sentences"
        for seen, by_chance in zip(np.any(together, axis=1).tolist(), expected.tolist(), strict=True)
    ]
    shown = together.any(axis=1) | (expected >= least_expected)
    rows = _chosen("npmi", names, found, shown, one, [_joined(*both) for both in zip(never, notes, strict=True)])
    gap, notes = chosen_intervals(
        jackknife(_gap, (together, one, others_together, others, subject, whole), whole, IDENTITY, 0.0),
        _gap_bounds(sums, units_against(units, sums.others)), np.minimum(expected, by_others), one,
    )  # fmt: skip
    seen = (together.any(axis=1) & others_together.any(axis=1)) | (np.minimum(expected, by_others) >= least_expected)
    unlike = [_joined(f"against {OTHERS}", note) for note in notes]
    return rows + _chosen("npmi_gap", names, gap, seen & others.any(axis=1), one, unlike)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


@dataclass(frozen=True)
class _Sums:
    """Sentences of each row, [rows]."""

    together: Floats
    one: Floats
    others_together: Floats
    others: Floats
    subject: Floats
    whole: Floats


def _npmi_of(rate: Floats, sums: _Sums) -> Floats:
    """npmi, were `rate` of the group's sentences of the category."""
    return normalised_pmi(rate * sums.one, sums.one, sums.subject, sums.whole)


def _npmi_bounds(sums: _Sums, units: Floats) -> Bounds:
    """Bounds of npmi, and p of 0: of the group's rate, against the category's among the other sentences."""
    with np.errstate(all="ignore"):
        null = (sums.subject - sums.together) / (sums.whole - sums.one)
        found = rate_bounds(sums.together / sums.one, units, null)
        # the category's rate has the group's sentences in it: npmi is 0 where both are the others' rate
        grown = [
            _Sums(sums.together, sums.one, sums.others_together, sums.others,
                  sums.subject - sums.together + end * sums.one, sums.whole)
            for end in (found.lower, found.upper)
        ]  # fmt: skip
        return Bounds(_npmi_of(found.lower, grown[0]), _npmi_of(found.upper, grown[1]), found.p)


def _gap_bounds(sums: _Sums, units: Floats) -> Bounds:
    """Bounds of the gap, and p of 0: of the group's rate, against the rate that would give it the others' npmi."""
    with np.errstate(all="ignore"):
        beside = normalised_pmi(sums.others_together, sums.others, sums.subject, sums.whole)
        one, category = np.log(sums.one / sums.whole), np.log(sums.subject / sums.whole)
        null = np.exp((category - beside * one) / (1 + beside))
        found = rate_bounds(sums.together / sums.one, units, null)
        return Bounds(_npmi_of(found.lower, sums) - beside, _npmi_of(found.upper, sums) - beside, found.p)


def _chosen(
    metric: str,
    names: list[dict[str, str]],
    found: Estimates,
    shown: npt.NDArray[np.bool_],
    one: Integers,
    notes: list[str],
) -> list[Row]:
    rows = interval_rows([{"metric": metric, **name} for name in names], found, one.sum(axis=1), notes)
    return [row for row, chosen in zip(rows, shown.tolist(), strict=True) if chosen]


def pooled_others(keys: list[tuple[str, ...]], counts: Integers) -> Integers:
    """For each key (language, axis, group): the counts of the other groups of its language and axis, added."""
    sums: dict[tuple[str, ...], Integers] = {}
    for key, part in zip(keys, counts, strict=True):
        sums[key[:2]] = sums.get(key[:2], np.zeros_like(part)) + part
    return np.array([sums[key[:2]] - part for key, part in zip(keys, counts, strict=True)], np.int64).reshape(
        counts.shape
    )
