"""Association: do sentences that mention a group speak of a category more often than chance would have it?

    npmi(g, c)     = ln(p(g,c) / (p(g) p(c))) / -ln p(g,c)             in -1 .. 1; 0 is independence
    npmi_gap(g, c) = npmi(g, c) - npmi(the axis' other groups, c)      in -2 .. 2

p(g,c), p(g), p(c) are shares of the language's sentences. Bouma 2009, "Normalized (Pointwise) Mutual Information in
Collocation Extraction", Proceedings of GSCL, defines it. The other groups are pooled: their sentences are added, so a
sentence that mentions two of them counts twice. Never together is -1, by Bouma's limit.

Intervals and p: delete-a-group jackknife (Kott 2001) over 64 buckets of domains with Student's t, npmi on Fisher's
atanh scale; q: Benjamini & Hochberg 1995 over the suite. `n` is the group's sentences. A pair has a row when it was
seen or when chance alone would have it in `least_expected` sentences; it has a p only in the second case, whatever
was seen: with fewer the ratio is too skewed for Student's t (Cochran 1954, Biometrics 10(4), 417-451, draws the same
line), and a line drawn through what was seen would choose the extremes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from governance.checks.bias.bucket_counts import by_bucket, stacked
from governance.checks.bias.interval_rows import OTHERS, Row, interval_rows
from governance.checks.bias.jackknife import FISHER, IDENTITY, Estimates, Floats, Integers, jackknife

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
        least_expected: sentences that chance alone would give a pair, for its p.
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
    expected = one.sum(axis=1) * subject.sum(axis=1) / np.maximum(whole.sum(axis=1), 1)
    shown = (together.sum(axis=1) > 0) | (expected >= least_expected)
    names = [{"language": key[0], "axis": key[1], "group": key[2], "against": against} for key in keys]
    found = jackknife(normalised_pmi, counts, whole, FISHER, 0.0)
    notes = [
        "" if seen else f"never together; chance would have it in {by_chance:.1f} sentences"
        for seen, by_chance in zip(together.sum(axis=1).tolist(), expected.tolist(), strict=True)
    ]
    rows = _chosen("npmi", names, _tested(found, expected >= least_expected), shown, one, notes)
    gap = jackknife(_gap, (together, one, others_together, others, subject, whole), whole, IDENTITY, 0.0)
    by_others = others.sum(axis=1) * subject.sum(axis=1) / np.maximum(whole.sum(axis=1), 1)
    both = np.minimum(expected, by_others) >= least_expected
    seen = (together.any(axis=1) & others_together.any(axis=1)) | both
    unlike = [f"against {OTHERS}" for _ in keys]
    return rows + _chosen("npmi_gap", names, _tested(gap, both), seen & others.any(axis=1), one, unlike)


def _tested(found: Estimates, fit: npt.NDArray[np.bool_]) -> Estimates:
    p = np.where(fit, found.p, np.nan)
    return Estimates(found.value, found.lower, found.upper, p, found.error, found.degrees)


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
