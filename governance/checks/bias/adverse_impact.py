"""Adverse impact of filters on documents that mention a group.

    keep_ratio_adjusted = sum(a n0 / N) / sum(b n1 / N)      Mantel-Haenszel over source, language, length_bin and site
    keep_ratio          = (a / n1) / (b / n0)                raw risk ratio; mostly reflects differences between sources

In a stratum a of n1 documents that mention the group were kept, b of n0 of the reference, N = n1 + n0. A stratum is a
source, a language, a length bin and a site: the host, the source itself where documents have no URL, and the bucket for
hosts beyond the largest (`counts.py`). The reference is the documents that mention no group of the axis, or ("highest")
the group of the axis with the highest keep rate among those with `min_documents`, as the Uniform Guidelines compare. A
stage is judged on the documents that entered it, the stage "(all)" on those that entered the first. A stage with
several reasons of removal has rows for each ("clean/too_few_words") over all languages: the share of entering documents
that passed this filter. They are listed if there are enough to test.

Intervals (`interval_choice.py`): with fewer than 5 expected removals exact, of effective units; with more the
delete-a-group jackknife's (Kott 2001), on the log scale, since documents of a site share their fate. Where its variance
exceeds that of independent documents (Greenland & Robins 1985, Biometrics 41(1), 55-68: sum((n1 n0 m - a b N) / N^2) /
(sum(a n0 / N) sum(b n1 / N)), m = a + b) the note has the design effect, their quotient. Effective units give the
variance of a - n1 m / N when the margins are fixed, sum(n1 n0 m (N - m) / (N^2 (N - 1))) (Mantel & Haenszel 1959, JNCI
22(4), 719-748). A ratio cannot exceed 1 / the reference's rate, and neither does the exact interval. Raw ratios have an
interval and no p: they are not tested.

A kept document is read in its final form, a removed one as it was when removed. Where `c4_lines`, `paragraphs` or
`substrings` removed lines with mentions, keep ratios are therefore too low.

The four-fifths rule (29 CFR 1607.4 D, EEOC 1978) defines adverse impact as below 0.8: the note states whether the whole
interval is there. `n` is the group's entering documents. Languages in which no document mentions the axis (no term
list, or removed before the language was known) are not a reference and are excluded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from governance.checks.bias.fates import ORDER, axes_of
from governance.checks.bias.interval_choice import chosen_intervals, effective_units, rate_ratio_bounds
from governance.checks.bias.interval_rows import ALL, NO_GROUP, Row, interval_row
from governance.checks.bias.statistics import BUCKETS, Estimates, Floats, Integers, quantile, spread, two_sided_p

FOUR_FIFTHS = 0.8
NOT_COMPARABLE = "no comparable document of the reference"

Reference = Literal["none", "highest"]


@dataclass(frozen=True)
class Passage:
    """Documents of one kind at one filter, each [cells].

    A cell is a stratum in a bucket.
    """

    entered: Integers
    kept: Integers

    def at(self, chosen: npt.NDArray[np.bool_]) -> Passage:
        """Those of some cells."""
        return Passage(self.entered[chosen], self.kept[chosen])

    @property
    def rate(self) -> float:
        """The share kept."""
        return float(self.kept.sum() / max(int(self.entered.sum()), 1))


@dataclass(frozen=True)
class Ratio:
    """A ratio of keep rates with its 95 % interval.

    A number that is unknown is NaN.
    """

    value: float
    lower: float
    upper: float
    p: float
    design_effect: float
    """Jackknife variance / that of independent documents, where the interval is the jackknife's; else NaN."""
    jackknife_error: float
    """Standard error of the logarithm."""
    note: str


def impact_rows(fates: pa.Table, reference: Reference = "none", min_documents: int = 30) -> list[Row]:
    """The rows of the suite `impact`, without q.

    Args:
        fates: the count table.
        reference: "none" (documents that mention no group of the axis) or "highest".
        min_documents: entered documents without which a group is not a candidate for the highest rate.

    Raises:
        ManifestError: a document ended at a stage that is not in ORDER.
    """
    rows: list[Row] = []
    for of_axis in axes_of(fates):
        for name, entered, kept in _filters(of_axis.stages, of_axis.outcomes):
            passed = {
                group: Passage(counts[entered].sum(axis=0), counts[kept].sum(axis=0))
                for group, counts in of_axis.groups.items()
            }
            for language in (*of_axis.languages, ALL) if "/" not in name else (ALL,):
                chosen = np.full(len(of_axis.strata), True) if language == ALL else of_axis.language == language
                passed_of_groups = {group: passage.at(chosen) for group, passage in passed.items()}
                place = of_axis.strata[chosen], of_axis.buckets[chosen]
                rows += _rows_of((of_axis.axis, language, name), passed_of_groups, place, (reference, min_documents))
    return rows


def _filters(stages: Sequence[str], outcomes: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[int], list[int]]]:
    """Name, entering outcomes and passing outcomes of each filter."""
    after = {stage: [n for n, (of, _) in enumerate(outcomes) if ORDER.index(of) >= ORDER.index(stage)]
             for stage in stages}  # fmt: skip
    yield ALL, list(range(len(outcomes))), after["kept"]
    for stage, following in itertools.pairwise(stages):
        yield stage, after[stage], after[following]
        reasons = [n for n, (of, _) in enumerate(outcomes) if of == stage]
        for one in reasons if len(reasons) > 1 else ():
            yield f"{stage}/{outcomes[one][1]}", after[stage], [n for n in after[stage] if n != one]


def _rows_of(
    names: tuple[str, str, str], passed: Mapping[str, Passage], place: tuple[Integers, Integers],
    by: tuple[Reference, int],
) -> Iterator[Row]:  # fmt: skip
    axis, language, stage = names
    groups = {group: passage for group, passage in passed.items() if group and passage.entered.any()}
    against = _highest(groups, by[1]) if by[0] == "highest" else ""
    reference = passed.get(against) if against is not None else None
    if reference is None or not reference.entered.any():
        return
    for group, passage in groups.items():
        if group == against:
            continue
        named = {"language": language, "axis": axis, "group": group, "against": against or NO_GROUP, "stage": stage}
        adjusted = adjusted_ratio(passage, reference, *place)
        if "/" in stage and not math.isfinite(adjusted.p):
            continue
        raw = adjusted_ratio(passage, reference, np.zeros_like(place[0]), place[1])
        for metric, found, p in (("keep_ratio", raw, math.nan), ("keep_ratio_adjusted", adjusted, adjusted.p)):
            if metric == "keep_ratio_adjusted" or "/" not in stage:
                numbers = {"value": found.value, "lower": found.lower, "upper": found.upper, "p": p}
                numbers["n"] = int(passage.entered.sum())
                yield interval_row({"metric": metric, **named}, numbers, _note(found))


def _highest(groups: Mapping[str, Passage], min_documents: int) -> str | None:
    rates = {group: passage.rate for group, passage in groups.items() if passage.entered.sum() >= min_documents}
    return min(rates, key=lambda group: (-rates[group], group), default=None)


def _note(found: Ratio) -> str:
    notes = [found.note] if found.note else []
    if found.design_effect > 1:
        notes.append(f"clustered, design effect {found.design_effect:.1f}")
    if found.upper < FOUR_FIFTHS:
        notes.append("below four fifths")
    elif found.value < FOUR_FIFTHS:
        notes.append("below four fifths, not certain")
    return "; ".join(notes)


def adjusted_ratio(group: Passage, reference: Passage, strata: Integers, buckets: Integers) -> Ratio:
    """The Mantel-Haenszel ratio over strata that hold both.

    One stratum gives the raw ratio.

    Args:
        group: [cells].
        reference: [cells].
        strata: each cell's, [cells].
        buckets: each cell's, [cells]; a stratum has one cell per bucket, or several.
    """
    unknown = Ratio(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, NOT_COMPARABLE)
    _, strata = np.unique(strata, return_inverse=True)
    both = (np.bincount(strata, group.entered) > 0) & (np.bincount(strata, reference.entered) > 0)
    chosen = both[strata]
    if not chosen.any():
        return unknown
    _, strata = np.unique(strata[chosen], return_inverse=True)
    cells = [
        np.asarray(part[chosen], np.float64) for part in (group.kept, group.entered, reference.kept, reference.entered)
    ]
    sums = [np.bincount(strata, part).astype(np.float64) for part in cells]
    return _ratio_of(sums, cells, strata, buckets[chosen])


def _terms(a: Floats, n1: Floats, b: Floats, n0: Floats) -> tuple[Floats, Floats]:
    whole = np.maximum(n1 + n0, 1.0)
    return a * n0 / whole, b * n1 / whole


def _ratio_of(sums: Sequence[Floats], cells: Sequence[Floats], strata: Integers, buckets: Integers) -> Ratio:
    a, n1, b, n0 = sums
    whole, kept = n1 + n0, a + b
    own, others = (float(part.sum()) for part in _terms(a, n1, b, n0))
    shared = float((n1 * n0 / whole).sum())
    rate = others / shared
    given = float((n1 * n0 * kept * (whole - kept) / (whole**2 * np.maximum(whole - 1, 1))).sum())
    by_bucket = [np.bincount(buckets, part, BUCKETS).astype(np.float64) for part in cells]
    units = math.nan
    if given > 0 and 0 < rate < 1:
        resemblance = cells[2] - (b / n0)[strata] * cells[3]
        variance = float((b * (1 - b / n0)).sum() / n0.sum())
        counting = effective_units(
            by_bucket[1][None, :], np.bincount(buckets, resemblance, BUCKETS)[None, :], by_bucket[3][None, :],
            np.array([variance]),
        )  # fmt: skip
        units = (1 - rate) / rate * others**2 / given * float(counting[0]) / n1.sum()
    value = own / others if others > 0 else math.nan
    model = (
        float(((n1 * n0 * kept - a * b * whole) / whole**2).sum()) / (own * others) if own * others > 0 else math.nan
    )
    ratios = np.array([value, *_without_each(sums, cells, strata, buckets, (own, others))])
    found = _log_interval(ratios, by_bucket[1] + by_bucket[3])
    at = np.array([own / shared])
    exact = rate_ratio_bounds(at, np.array([rate]), np.array([units]))
    expected = np.array([units * min(rate, 1 - rate)])
    counted = np.array([n1.sum() * min(rate, 1 - rate)])
    given_, notes = chosen_intervals(found, exact, expected, by_bucket[1][None, :], counted)
    lower, upper, p = (float(part[0]) for part in (given_.lower, given_.upper, given_.p))
    effect = float(found.error[0]) ** 2 / model if model > 0 else math.nan
    jackknifed = effect if given_.lower[0] == found.lower[0] else math.nan
    return Ratio(value, lower, upper, p, jackknifed, float(found.error[0]), notes[0])


def _without_each(
    sums: Sequence[Floats], cells: Sequence[Floats], strata: Integers, buckets: Integers, whole: tuple[float, float]
) -> Floats:
    """[buckets] ratios without each bucket.

    Only the strata that a bucket holds change.
    """
    before = _terms(*(part[strata] for part in sums))
    pairs, pair = np.unique(strata * BUCKETS + buckets, return_inverse=True)
    first = np.full(len(pairs), -1)
    first[pair[::-1]] = np.arange(len(pair))[::-1]
    own = [np.bincount(pair, part) for part in cells]
    after = _terms(*(part[strata[first]] - one for part, one in zip(sums, own, strict=True)))
    changed = [
        total + np.bincount(buckets[first], new - old[first], BUCKETS)
        for total, old, new in zip(whole, before, after, strict=True)
    ]
    with np.errstate(all="ignore"):
        return np.asarray(changed[0] / changed[1])


def _log_interval(ratios: Floats, sampled: Floats) -> Estimates:
    """Jackknife interval of log ratios, one row."""
    with np.errstate(all="ignore"):
        logs = np.log(ratios)
        error, degrees = spread(logs[None, :], sampled[None, :].astype(np.int64))
        center, margin = logs[:1], quantile(degrees) * error
        lower, upper = np.exp(center - margin), np.exp(center + margin)
        return Estimates(ratios[:1], lower, upper, two_sided_p(center / error, degrees), error, degrees)
