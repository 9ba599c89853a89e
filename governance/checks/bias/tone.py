"""Tone: in what words are the sentences kept that mention a group?

    sentiment_gap  = mean score of the group's sentences - mean score of the others'      points of the instrument
    toxicity_ratio = share of hits in the group's sentences / share of hits in the others'   a risk ratio; 1 is equal

"The others" are the axis' other groups pooled (a sentence that mentions two of them counts twice), and, in a row of its
own, the sentences that mention nobody. An instrument whose name begins with "sentiment" has a score for
each sentence, "sentiment:NAME" in the points of that scored list; any other is a list of words of abuse, of which hits
are counted (sentences with at least one).

Intervals and p (of 0, of 1; `interval_choice.py`): delete-a-group jackknife (Kott 2001) over 64 buckets of domains, the
ratio on the log scale (Katz et al. 1978, Biometrics 34(3), 469-474, for independent sentences); exact ones where few
sentences are scored. `n` is the group's sentences. The
method, scores of what is said about groups, is that of Dhamala et al. 2021 ("BOLD", FAccT), turned from generated
text to the corpus. A row of an instrument that was found biased says so in its note: it cannot decide a gate.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pyarrow as pa

from governance.checks.bias.association import pooled_others
from governance.checks.bias.bucket_counts import Counts, by_bucket, stacked
from governance.checks.bias.interval_choice import chosen_intervals, effective_units, rate_ratio_bounds, units_against
from governance.checks.bias.interval_rows import NOBODY, OTHERS, Row, interval_rows
from governance.checks.bias.jackknife import IDENTITY, LOG, Estimates, Floats, Integers, jackknife
from governance.checks.bias.lexicons import scale_of
from governance.checks.bias.small_samples import Bounds, mean_bounds, scores_of

_KEYS = ("instrument", "language", "axis", "group")
SENTIMENT = "sentiment"


def _difference(total: Floats, n: Floats, other_total: Floats, other_n: Floats) -> Floats:
    return total / n - other_total / other_n


def _ratio(hits: Floats, n: Floats, other_hits: Floats, other_n: Floats) -> Floats:
    return (hits / n) / (other_hits / other_n)


def tone_rows(scores: pa.Table, biased: Collection[tuple[str, str]] = ()) -> list[Row]:
    """The rows of the suite `tone`, without q.

    Args:
        scores: the count table.
        biased: (instrument, language) that cannot decide.
    """
    sentences = by_bucket(scores, _KEYS, "sentences")
    totals, squares, hits = (by_bucket(scores, _KEYS, name) for name in ("total", "squares", "hits"))
    sums = {True: hits, False: totals}
    rows: list[Row] = []
    for instrument, language in sorted({key[:2] for key in sentences}):
        keys = [key for key in sentences if key[:2] == (instrument, language) and key[3]]
        if not keys:
            continue
        toxic = not instrument.startswith(SENTIMENT)
        note = f"biased instrument: {instrument}" if (instrument, language) in biased else ""
        own = stacked(sums[toxic], keys), stacked(sentences, keys)
        by_axis = [key[1:] for key in keys]
        others = pooled_others(by_axis, own[0]), pooled_others(by_axis, own[1])
        nobody = _nobody(sums[toxic], keys), _nobody(sentences, keys)
        for against, (other_sums, other_n) in ((OTHERS, others), (NOBODY, nobody)):
            pool = tuple(
                stacked(part, keys)
                + (_nobody(part, keys) if against == NOBODY else pooled_others(by_axis, stacked(part, keys)))
                for part in (sentences, totals, squares, hits)
            )
            found, notes = _compared(toxic, (*own, other_sums, other_n), pool)
            found = _in_points(found, scale_of(instrument))
            names = [
                {"metric": "toxicity_ratio" if toxic else "sentiment_gap", "language": language, "axis": key[2],
                 "group": key[3], "against": against, "instrument": instrument}
                for key in keys
            ]  # fmt: skip
            made = interval_rows(
                names, found, own[1].sum(axis=1), ["; ".join(filter(None, (note, own_note))) for own_note in notes]
            )
            rows += [row for row, there in zip(made, other_n.sum(axis=1).tolist(), strict=True) if there]
    return rows


def _nobody(counts: Counts, keys: list[tuple[str, ...]]) -> Integers:
    return stacked(counts, [(*key[:2], "", "") for key in keys])


def _compared(toxic: bool, counts: tuple[Integers, ...], pool: tuple[Integers, ...]) -> tuple[Estimates, list[str]]:
    """Gaps or ratios, and what is said of them; `pool` are both sides' sentences, total, squares, hits together."""
    own_sums, own, other_sums, others = counts
    scale, null = (LOG, 1.0) if toxic else (IDENTITY, 0.0)
    found = jackknife(_ratio if toxic else _difference, counts, np.asarray(own + others), scale, null)
    sums = [part.sum(axis=1).astype(np.float64) for part in pool]
    with np.errstate(all="ignore"):
        mean, other = (hits.sum(axis=1) / n.sum(axis=1) for hits, n in ((own_sums, own), (other_sums, others)))
        density = sums[3] / sums[0]
        variance = density * (1 - density) if toxic else sums[2] / sums[0] - (sums[1] / sums[0]) ** 2
    units = units_against(effective_units(own, other_sums, others, variance), others.sum(axis=1).astype(np.float64))
    exact = rate_ratio_bounds(mean, other, units) if toxic else _mean_gaps(mean, other, units, sums)
    return chosen_intervals(found, exact, units * np.minimum(density, 1 - density if toxic else density), own)


def _in_points(found: Estimates, scale: int) -> Estimates:
    """Estimates of scaled scores in points; all is linear in the scores, so p stays."""
    parts = {name: getattr(found, name) / scale for name in ("value", "lower", "upper", "error")}
    return replace(found, **parts)


def _mean_gaps(mean: Floats, other: Floats, units: Floats, pool: list[Floats]) -> Bounds:
    """Bounds of mean - other, and p of 0."""
    ends = np.full((3, len(mean)), np.nan)
    for row, (own, against, n) in enumerate(zip(mean.tolist(), other.tolist(), units.tolist(), strict=True)):
        scores = scores_of(*(float(part[row]) for part in pool))
        if scores is not None and np.isfinite(own) and np.isfinite(against) and n > 0:
            lower, upper, p = mean_bounds(own, n, against, scores)
            ends[:, row] = lower - against, upper - against, p
    return Bounds(*ends)
