"""Intervals of rare groups on very few sites, and the rule of five buckets, by simulation.

As `bias_null.py`, without planted effects; but each of 28 rare groups occurs on 2, 3, 4, 5, 8, 12, 20 or 28 sites of
different buckets, in some 20 sentences per site. Sentences of a site resemble each other (intra-class correlation
0.05), and a bucket of 400 sites holds six of them: the reference's buckets show less resemblance than a group
on one of the sites has. The rule of five buckets is switched off for the measurement, so that the lines below it say
what it keeps away.
"""

from __future__ import annotations

from collections.abc import Mapping
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.governance import bias_null
from benchmarks.measures.governance.bias_null import NULLS, Shape

Integers = npt.NDArray[np.int64]

SITES = (2, 3, 4, 5, 8, 12, 20, 28)
_SHAPE = Shape(documents=20, rare=28, common=False, density=0.06, named=True)
_A_SITE = 12  # documents on average, of 1.5 sentences each
_METRICS = ("npmi_gap", "sentiment_gap", "toxicity_ratio")


def sites_of(group: str) -> int:
    """Number of sites on which a group "n07" occurs."""
    return SITES[int(group[1:]) % len(SITES)]


def _on_few_sites(d: bias_null._Drawn) -> dict[tuple[str, str], Integers]:
    """Documents of each group, [sites]: on the first sites of a random order that lie in different buckets."""
    found = {}
    for group in bias_null.rates_of(d.shape):
        order = d.rng.permutation(np.flatnonzero(d.sizes >= 4))
        _, first = np.unique(d.buckets[order], return_index=True)
        counts = np.zeros(d.shape.sites, np.int64)
        for site in order[np.sort(first)][: sites_of(group)]:
            counts[site] = min(d.sizes[site], 1 + d.rng.poisson(_A_SITE))
        found["nationality", group] = counts
    return found


def measured(seeds: range) -> Mapping[tuple[str, int], list[int]]:
    """Metric and sites of the group -> intervals that held the truth, intervals, p below .05."""
    found: dict[tuple[str, int], list[int]] = {}
    with (
        patch("benchmarks.measures.governance.bias_null._documents", _on_few_sites),
        patch("governance.checks.bias.interval_choice.MIN_BUCKETS", 2),
    ):
        for seed in seeds:
            tables = bias_null.tables(seed, _SHAPE)
            for row in (*tables["tone"], *tables["association"]):
                if row["metric"] in _METRICS and row["against"] != "nobody" and row["lower"] is not None:
                    of = found.setdefault((row["metric"], sites_of(row["group"])), [0, 0, 0])
                    of[0] += row["lower"] <= NULLS[row["metric"]] <= row["upper"]
                    of[1] += 1
                    of[2] += row["p"] < bias_null.LEVEL
    return found


def few_sites(quick: bool) -> list[Goal]:
    """Coverage by the number of sites over 300 corpora (20 when quick); p below .05 in at most 5 % of five and more."""
    from governance.checks.bias.interval_choice import MIN_BUCKETS

    goals = []
    for (metric, sites), (held, rows, low) in sorted(measured(range(20 if quick else 300)).items()):
        name, note = f"bias_few_sites.{metric}.{sites}", f"{rows:,} intervals"
        if sites < MIN_BUCKETS or rows < bias_null.MIN_INTERVALS:
            why = "the rule of five buckets gives these none" if sites < MIN_BUCKETS else "few"
            goals.append(figure(f"{name}.coverage", held / rows, f"{note}; {why}"))
        else:
            goals.append(Goal(f"{name}.coverage_at_least", held / rows, 0.93, note=note))
        goals.append(figure(f"{name}.p_below_level", low / rows, note))
    return goals
