"""Intervals over many corpora: how often they cover the truth, and how often a corpus without bias raises an alarm.

The long versions are of 100 corpora of domains with log-normal sizes whose documents resemble each other; the short
ones of 40 have bounds that a method of 95 % crosses in one of 10,000 runs, and one of 80 % nearly always.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.measures.governance import bias_null
from governance.checks.bias.adverse_impact import impact_rows
from governance.checks.bias.interval_rows import ALL, NOBODY, OTHERS
from governance.checks.bias.representation import share_rows
from governance.checks.bias.statistics import LOGIT, jackknife
from governance.checks.bias.tables import bias_tables
from tests.governance.bias_corpora import CATEGORY_RATE, GROUPS, RATES, Planted, corpus, simpson
from tests.governance.bias_counts import Domains, per_bucket, table_of

PLANTED = Planted(association={("a", "crime"): 1.6}, tone={"b": -0.2}, abuse={"c": 2.0}, keep={"a": 0.85})
SHAPES = {
    "many domains": {"number": 600, "sigma": 1.0, "mean": 20},
    "few domains": {"number": 60, "sigma": 1.0, "mean": 100},
    "unequal domains": {"number": 400, "sigma": 1.5, "mean": 30},
}


def truths():
    """(suite, metric, group, against, stage) -> the value that the intervals should cover."""
    spoken = {group: 3 * rate / 8 for group, rate in RATES.items()}
    found = {("representation", "share", group, None, None): rate for group, rate in RATES.items()}
    both = spoken["a"] * CATEGORY_RATE * 1.6
    every = CATEGORY_RATE * (1 + spoken["a"] * 0.6)
    npmi = math.log(both / (spoken["a"] * every)) / -math.log(both)
    gap = npmi - math.log(CATEGORY_RATE / every) / -math.log(spoken["a"] * CATEGORY_RATE)
    found["association", "npmi", "a", "topic/crime", None] = npmi
    found["association", "npmi_gap", "a", "topic/crime", None] = gap
    for against in (OTHERS, NOBODY):
        found["tone", "sentiment_gap", "b", against, None] = -0.2
        found["tone", "toxicity_ratio", "c", against, None] = 2.0
    for metric in ("keep_ratio", "keep_ratio_adjusted"):
        for group in GROUPS:
            found["impact", metric, group, "no group of the axis", "dedup"] = 0.85 if group == "a" else 1.0
    return found


TRUTHS = truths()


def covered(seeds, shape):
    """Key of the truth -> number of intervals that held it, and of all intervals."""
    hits = {key: [0, 0] for key in TRUTHS}
    for seed in seeds:
        tables = bias_tables(corpus(seed, PLANTED, **shape))
        index = {
            (suite, row["metric"], row["group"], row["against"], row["stage"]): row
            for suite, rows in tables.items()
            for row in rows
            if row["language"] in ("en", None)
        }
        for key, truth in TRUTHS.items():
            row = index[key]
            if row["lower"] is not None:
                hits[key][0] += row["lower"] <= truth <= row["upper"]
                hits[key][1] += 1
    return hits


def by_metric(hits):
    """metric -> share covered, its groups and references together."""
    sums = {}
    for (_, metric, *_), (held, number) in hits.items():
        entry = sums.setdefault(metric, [0, 0])
        entry[0] += held
        entry[1] += number
    return {metric: held / number for metric, (held, number) in sums.items()}


def test_intervals_cover_the_truth():
    hits = covered(range(1000, 1040), SHAPES["many domains"])
    assert all(number == 40 for _, number in hits.values())
    assert min(held for held, _ in hits.values()) >= 32, hits
    assert min(by_metric(hits).values()) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_cover_the_truth_in_90_to_98_of_100(shape):
    hits = covered(range(100), SHAPES[shape])
    assert min(number for _, number in hits.values()) >= 99
    rates = by_metric(hits)
    assert all(0.90 <= rate <= 0.98 for rate in rates.values()), rates


def shares_covered(seeds):
    """The number of intervals of shares and of the index that held the truth."""
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    held = dict.fromkeys(("share", "hhi"), 0)
    for seed in seeds:
        d = Domains(seed, number=800)
        own = d.rng.dirichlet(weights * 6, len(d.sizes))  # domains differ much in their composition
        drawn = d.rng.multinomial(d.sizes, own)
        rows = []
        for place in range(4):
            part = d.into(drawn[:, place])
            rows += per_bucket("shares", ("source", f"s{place}", None), part, part, part)
        found = share_rows(table_of("shares", rows))
        for row in found:
            if row["metric"] == "hhi":
                held["hhi"] += row["lower"] <= float((weights**2).sum()) <= row["upper"]
            elif row["metric"] == "share":
                held["share"] += row["lower"] <= weights[int(row["group"][1:])] <= row["upper"]
    return held["share"] / len(seeds) / 4, held["hhi"] / len(seeds)


def test_intervals_of_shares_and_of_the_index_cover_the_truth():
    assert min(shares_covered(range(1000, 1040))) >= 0.85


@pytest.mark.slow
def test_intervals_of_shares_and_of_the_index_in_90_to_98_of_100():
    rates = shares_covered(range(200))
    assert all(0.90 <= rate <= 0.98 for rate in rates), rates


@pytest.mark.parametrize("shape", bias_null.SHAPES)
def test_corpora_without_bias_seldom_raise_an_alarm_and_are_covered(shape):
    """Bounds that a method of 95 % crosses in one of 1,000 runs; the benchmark holds the goals over 300 corpora."""
    drawn = bias_null.SHAPES[shape]
    held, alarms = bias_null.measured(range(8 if drawn.rare else 20), drawn)  # 28 groups cost more than three
    assert max(alarms.values()) <= 3, alarms
    sums = {metric: rows.sum(axis=0) for metric, rows in held.items()}  # over all corpora
    rates = {metric: inside / rows for metric, (inside, rows) in sums.items() if rows >= 100}
    assert min(rates.values()) >= 0.86, rates


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_corpus_without_bias_raises_an_alarm_in_5_of_100_at_most(shape):
    """Scores of a simulator other than the benchmark's are normal, not counted words."""
    found = alarms_of(range(100), SHAPES[shape])
    allowed = 100 * 0.05 + 1.645 * math.sqrt(100 * 0.05 * 0.95)  # 5 % within the error of 100 corpora
    assert max(found.values()) <= allowed, found


def alarms_of(seeds, shape):
    """suite -> corpora without bias in which a row has q < 0.05."""
    found = dict.fromkeys(("association", "tone", "impact"), 0)
    for seed in seeds:
        tables = bias_tables(corpus(seed, **shape))
        for suite in found:
            found[suite] += any(row["q"] is not None and row["q"] < 0.05 for row in tables[suite])
    return found


def test_simpson_corpora_are_fair_once_adjusted():
    for seed in range(20):
        rows = {
            row["metric"]: row for row in impact_rows(simpson(seed)) if (row["stage"], row["language"]) == (ALL, ALL)
        }
        assert rows["keep_ratio"]["value"] < 0.8
        assert 0.95 <= rows["keep_ratio_adjusted"]["value"] <= 1.05


def test_documents_that_resemble_each_other_widen_the_interval():
    """An interval that treated documents as independent would be too narrow here: domains are what was drawn."""
    held = {"clustered": 0, "independent": 0}
    for seed in range(60):
        d = Domains(seed, number=300, mean=60)
        hits, n = d.into(d.draw(d.sizes, 0.2, 0.3))[None], d.into(d.sizes)[None]
        found = jackknife(lambda a, b: a / b, (hits, n), n, LOGIT)
        held["clustered"] += int(found.lower[0] <= 0.2 <= found.upper[0])
        share = hits.sum() / n.sum()
        held["independent"] += abs(share - 0.2) <= 1.96 * math.sqrt(share * (1 - share) / n.sum())
    assert held["clustered"] >= 53
    assert held["independent"] <= 40
