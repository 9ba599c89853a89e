"""Adverse impact: does a filter keep fewer documents that mention a group than of the reference?

    keep_ratio          = (a / n1) / (b / n0)                      raw risk ratio; 1 is equal
    keep_ratio_adjusted = sum(a n0 / N) / sum(b n1 / N)            Mantel-Haenszel over language x length_bin x bucket

a of n1 documents that mention the group were kept, b of n0 of the reference, N = n1 + n0 in a stratum. The reference is
the documents that mention no group of the axis, or ("highest") the group of the axis with the highest keep rate among
those with `min_documents`, as the Uniform Guidelines compare. A stage is judged on the documents that came into it; the
stage "(all)" on those that came into the first.

Intervals on the log scale. Raw: Katz, Baptista, Azen & Pike 1978, Biometrics 34(3), 469-474, var = 1/a - 1/n1 + 1/b -
1/n0. Adjusted: Greenland & Robins 1985, Biometrics 41(1), 55-68, var = sum((n1 n0 m - a b N) / N^2) / (sum(a n0 / N)
sum(b n1 / N)), m = a + b. Both take documents as independent; where the delete-a-group jackknife over the buckets
(Kott 2001) is wider, documents of a domain share their fate, and its interval is given: the note has the design
effect (jackknife variance / model variance). Where nothing was removed, or nothing kept, half a document is put in
(Pettigrew, Gart & Thomas 1986, Biometrika 73(2), 425-435): a rate of 1 in three documents is not certain. Where nothing
of the group was kept the ratio is 0, from 0 to the greatest keep rate that so many clusters may have hidden, 1 -
0.025^(1/G) (Clopper & Pearson 1934, G the effective clusters), over the reference's rate.

A kept document is read as it stays, a removed one as it was when it left. Where `c4_lines` or `paragraphs` cut out the
lines that held the mentions, keep ratios are therefore too low.

The four-fifths rule (29 CFR 1607.4 D, EEOC 1978) sees adverse impact below 0.8: the note says whether the whole
interval lies there. `n` is the group's documents that came in. Languages in which no document mentions the axis (no
term list, or removed before the language was known) are no reference and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from governance.checks.bias.bucket_counts import Counts, by_bucket
from governance.checks.bias.interval_rows import ALL, NO_GROUP, Row, interval_row
from governance.checks.bias.jackknife import BUCKETS, Floats, Integers, effective_clusters, replicates, spread
from governance.checks.bias.student_t import quantile, two_sided_p
from governance.errors import ManifestError

ORDER = ("ingest", "clean", "classify", "dedup", "paragraphs", "decontaminate", "redact", "mix", "encode", "kept")
"""Where a document can end, in the order of a run."""
FOUR_FIFTHS = 0.8
LENGTHS = 16
_NORMAL = 1.959963985  # the 0.975 quantile

Reference = Literal["none", "highest"]


@dataclass(frozen=True)
class Passage:
    """Documents of one kind at one stage, each [languages, length bins, buckets]."""

    entered: Integers
    kept: Integers

    def language(self, place: int) -> Passage:
        """Those of one language."""
        return Passage(self.entered[place : place + 1], self.kept[place : place + 1])


@dataclass(frozen=True)
class Ratio:
    """A ratio of keep rates with its 95 % interval; NaN is unknown."""

    value: float
    lower: float
    upper: float
    p: float
    design_effect: float
    """Jackknife variance / model variance."""
    clustered: bool
    """Whether the interval is the jackknife's."""


def impact_rows(fates: pa.Table, reference: Reference = "none", min_documents: int = 30) -> list[Row]:
    """The rows of the suite `impact`, without q.

    Args:
        fates: the count table.
        reference: "none" (documents that mention no group of the axis) or "highest".
        min_documents: entered documents without which a group is no candidate for the highest rate.

    Raises:
        ManifestError: a document ended at a stage that is not in ORDER.
    """
    counts = by_bucket(fates, ("axis", "group", "language", "length_bin", "stage"), "documents")
    stages = _stages({key[4] for key in counts})
    rows: list[Row] = []
    for axis in sorted({key[0] for key in counts if key[1]}):
        languages = sorted({key[2] for key in counts if key[0] == axis and key[1]})
        ended = _ended(counts, axis, languages, stages)
        for stage in (ALL, *stages[:-1]):
            first = 0 if stage == ALL else stages.index(stage)
            kept_from = len(stages) - 1 if stage == ALL else first + 1
            passed = {
                group: Passage(cells[first:].sum(axis=0), cells[kept_from:].sum(axis=0))
                for group, cells in ended.items()
            }
            for place, language in enumerate((*languages, ALL)):
                of = passed if language == ALL else {name: one.language(place) for name, one in passed.items()}
                rows += _rows_of(axis, language, stage, of, (reference, min_documents))
    return rows


def _stages(found: set[str]) -> list[str]:
    if unknown := sorted(found - set(ORDER)):
        raise ManifestError(f"fates: documents ended at {unknown}, which are not among the stages {list(ORDER)}.")
    return [stage for stage in ORDER if stage in found or stage == "kept"]


def _ended(counts: Counts, axis: str, languages: Sequence[str], stages: Sequence[str]) -> dict[str, Integers]:
    """Group -> [stages, languages, length bins, buckets] documents that ended there; "" is no group of the axis."""
    cells: dict[str, Integers] = {}
    at_language, at_stage = ({name: place for place, name in enumerate(names)} for names in (languages, stages))
    for (of_axis, group, language, length, stage), row in counts.items():
        if of_axis == axis and language in at_language:
            shape = (len(stages), len(languages), LENGTHS, BUCKETS)
            ours = cells.setdefault(group, np.zeros(shape, np.int64))
            ours[at_stage[stage], at_language[language], int(length)] += row
    return dict(sorted(cells.items()))


def _rows_of(
    axis: str, language: str, stage: str, passed: Mapping[str, Passage], by: tuple[Reference, int]
) -> Iterator[Row]:
    groups = {group: passage for group, passage in passed.items() if group and passage.entered.any()}
    against = _highest(groups, by[1]) if by[0] == "highest" else ""
    reference = passed.get(against) if against is not None else None
    for group, passage in groups.items():
        if reference is None or not reference.entered.any() or group == against:
            continue
        names = {"language": language, "axis": axis, "group": group, "against": against or NO_GROUP, "stage": stage}
        for metric, compare in (("keep_ratio", raw_ratio), ("keep_ratio_adjusted", adjusted_ratio)):
            found = compare(passage, reference)
            numbers = {"value": found.value, "lower": found.lower, "upper": found.upper, "p": found.p}
            numbers["n"] = int(passage.entered.sum())
            yield interval_row({"metric": metric, **names}, numbers, _note(found))


def _highest(groups: Mapping[str, Passage], min_documents: int) -> str | None:
    rates = {
        group: passage.kept.sum() / passage.entered.sum()
        for group, passage in groups.items()
        if passage.entered.sum() >= min_documents
    }
    return min(rates, key=lambda group: (-rates[group], group), default=None)


def _note(found: Ratio) -> str:
    notes = [f"clustered, design effect {found.design_effect:.1f}"] if found.clustered else []
    if found.upper < FOUR_FIFTHS:
        notes.append("below four fifths")
    elif found.value < FOUR_FIFTHS:
        notes.append("below four fifths, not certain")
    return "; ".join(notes)


def raw_ratio(group: Passage, reference: Passage) -> Ratio:
    """The ratio of keep rates, with Katz' interval or the wider one of the jackknife."""
    a, n1, b, n0 = (part.sum(axis=(0, 1)) for part in (group.kept, group.entered, reference.kept, reference.entered))
    with np.errstate(all="ignore"):
        parts = [replicates(part) for part in (a, n1, b, n0)]
        ratios = (parts[0] / parts[1]) / (parts[2] / parts[3])
    variance = _katz(int(a.sum()), int(n1.sum())) + _katz(int(b.sum()), int(n0.sum()))
    if not a.any() and b.any():
        return _none_kept(n1, float(b.sum() / n0.sum()))
    return _with_interval(ratios, variance, n1 + n0, n1)


def _katz(kept: int, entered: int) -> float:
    """Variance of the log of a keep rate; half a document stands for none kept, or none removed."""
    some = min(max(float(kept), 0.5), entered - 0.5)
    return 1 / some - 1 / entered


def adjusted_ratio(group: Passage, reference: Passage) -> Ratio:
    """The Mantel-Haenszel ratio over all strata, with Greenland and Robins' interval or the jackknife's wider one."""
    a, n1, b, n0 = (part.astype(np.float64) for part in (group.kept, group.entered, reference.kept, reference.entered))
    whole = np.maximum(n1 + n0, 1.0)
    expected = (a * n0 / whole).sum(axis=(0, 1)), (b * n1 / whole).sum(axis=(0, 1))
    model = float(((n1 * n0 * (a + b) - a * b * whole) / whole**2).sum())
    products = float(expected[0].sum() * expected[1].sum())
    shared = ((n1 > 0) & (n0 > 0)).astype(np.int64)
    in_both = (n1 * shared).sum(axis=(0, 1)).astype(np.int64), ((n1 + n0) * shared).sum(axis=(0, 1)).astype(np.int64)
    if products > 0 and model > 0:
        variance = model / products
    else:
        sums = [int((part * shared).sum()) for part in (a, n1, b, n0)]
        variance = _katz(sums[0], sums[1]) + _katz(sums[2], sums[3]) if sums[1] and sums[3] else math.nan
    if not expected[0].any() and expected[1].any():
        return _none_kept(in_both[0], float(expected[1].sum() / (n1 * n0 / whole).sum()))
    with np.errstate(all="ignore"):
        ratios = replicates(expected[0]) / replicates(expected[1])
    return _with_interval(ratios, variance, in_both[1], in_both[0])


def _none_kept(of_group: Integers, reference_rate: float) -> Ratio:
    """The ratio of a group of which nothing was kept; one cluster alone bounds nothing."""
    if np.count_nonzero(of_group) < 2:
        return Ratio(0.0, math.nan, math.nan, math.nan, math.nan, False)
    hidden = 1.0 - 0.025 ** (1.0 / float(effective_clusters(of_group)))
    return Ratio(0.0, 0.0, hidden / reference_rate, math.nan, math.nan, False)


def _with_interval(ratios: Floats, variance: float, sampled: Integers, of_group: Integers) -> Ratio:
    """Of the ratios with and without each bucket, [1 + buckets], the wider of the two intervals."""
    value = float(ratios[0])
    unknown = Ratio(value, math.nan, math.nan, math.nan, math.nan, False)
    if not math.isfinite(value) or np.count_nonzero(of_group) < 2 or not math.isfinite(variance):
        return unknown
    with np.errstate(all="ignore"):
        logs = np.log(ratios)
        error, degrees = spread(logs[None, :], sampled[None, :])
    if not np.isfinite(logs[1:][sampled > 0]).all():
        return unknown
    model = math.sqrt(variance)
    clustered_margin, margin = float(quantile(degrees)[0] * error[0]), _NORMAL * model
    effect = float(error[0] ** 2 / variance)
    clustered = clustered_margin > margin
    center = math.log(value)
    if clustered:
        p = float(two_sided_p(center / error, degrees)[0])
        margin = clustered_margin
    else:
        p = math.erfc(abs(center) / model / math.sqrt(2))
    return Ratio(value, math.exp(center - margin), math.exp(center + margin), p, effect, clustered)
