"""Few units: exact bounds by enumeration, and rows that state "too few" where there is no answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from governance.checks.bias import association
from governance.checks.bias.fates import crowding
from governance.checks.bias.interval_choice import TOO_FEW, design_effects, documents_of, effective_units
from governance.checks.bias.provenance_columns import SMALL_SITES
from governance.checks.bias.sentiment import tone_rows
from governance.checks.bias.small_samples import Scores, mean_bounds, mean_p, rate_bounds, scores_of
from tests.governance.bias_counts import per_bucket, table_of


def chances(n, rate):
    return [math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)]


def mid_p(k, n, rate):
    """Two-sided, by summation."""
    of = chances(n, rate)
    above = sum(of[k + 1 :]) + of[k] / 2
    return min(1.0, 2 * min(above, 1 - above))


@given(st.integers(1, 60), st.data(), st.floats(0.02, 0.98))
def test_p_of_a_rate_is_the_mid_p_of_the_binomial(n, data, null):
    k = data.draw(st.integers(0, n))
    found = rate_bounds(np.array([k / n]), np.array([float(n)]), np.array([null]))
    assert found.p[0] == pytest.approx(mid_p(k, n, null), abs=1e-9)
    assert 0 <= found.lower[0] <= k / n <= found.upper[0] <= 1


@pytest.mark.parametrize("n", [7, 12, 30, 80])
def test_intervals_of_rates_cover_95_of_100_by_enumeration(n):
    found = rate_bounds(np.arange(n + 1) / n, np.full(n + 1, float(n)), np.full(n + 1, 0.5))
    rates = np.linspace(1.5 / n, 1 - 1.5 / n, 200)
    covered = [sum(np.array(chances(n, rate))[(found.lower <= rate) & (rate <= found.upper)]) for rate in rates]
    assert 0.93 <= np.mean(covered) <= 0.97
    assert min(covered) >= 0.88


@given(st.integers(2, 40), st.data(), st.floats(0.05, 0.6))
def test_a_mean_of_scores_of_one_sign_is_a_binomial_rate(n, data, density):
    k = data.draw(st.integers(1, n - 1))
    pool = Scores(minus=0.0, plus=density, step=1.0)
    if n * density > 30:
        return
    lower, upper, p = mean_bounds(k / n, n, density, pool)
    assert p == pytest.approx(mid_p(k, n, density), abs=1e-6)
    assert mid_p(k, n, lower) == pytest.approx(0.05, abs=2e-4)  # 1.2e-4 at most: no score has a chance of 0
    assert mid_p(k, n, upper) == pytest.approx(0.05, abs=2e-4)


def test_scores_keep_the_mean_and_the_spread_of_the_pool():
    pool = scores_of(1000, 60, 300, 150)
    assert pool.mean == pytest.approx(0.06)
    assert (pool.plus + pool.minus) * pool.step**2 == pytest.approx(0.3)
    assert pool.plus + pool.minus == pytest.approx(0.15)
    assert scores_of(10, 0, 0, 0) is None


def test_units_of_a_bucket_that_resemble_each_other_count_as_fewer():
    reference = np.full((1, 64), 100)
    alike = np.where(np.arange(64) % 2, 100, 0)[None, :]
    unlike = np.full((1, 64), 50)
    one_bucket, spread = np.zeros((2, 1, 64), np.int64)
    one_bucket[0, 3], spread[0, :20] = 20, 1
    variance = np.array([0.25])
    assert effective_units(one_bucket, alike, reference, variance)[0] == pytest.approx(1.0, abs=0.05)
    assert effective_units(spread, alike, reference, variance)[0] == pytest.approx(20)
    assert effective_units(one_bucket, unlike, reference, variance)[0] == pytest.approx(20)


def scores(own):
    """A group's (sentences, total, hits) by bucket, a hundred sentences per bucket of others, 6 % of them scored."""
    rows = [("en", "web", bucket, "x", "big", "sentiment", 100, 2, 6, 6) for bucket in range(64)]
    rows += [("en", "web", bucket, "x", "rare", "sentiment", n, total, hits, hits) for bucket, n, total, hits in own]
    found = [row for row in tone_rows(table_of("scores", rows)) if row["group"] == "rare"]
    assert len(found) == 1
    return found[0]


def test_two_sentences_that_score_nothing_are_no_finding():
    found = scores([(1, 1, 0, 0), (2, 1, 0, 0)])
    assert (found["value"], found["lower"], found["p"], found["note"]) == (-0.02, None, None, TOO_FEW)


def test_a_group_without_variance_has_the_exact_interval():
    found = scores([(bucket, 1, 0, 0) for bucket in range(50)])
    assert found["lower"] < -0.05 < 0.05 < found["upper"]
    assert found["p"] > 0.5
    sure = scores([(bucket, 1, -1, 1) for bucket in range(20)])
    assert sure["upper"] < -0.7
    assert sure["p"] < 1e-6


def test_a_few_documents_give_no_surer_p_than_as_many_units():
    """Sentences of a document may all be alike: ten in six documents are not ten observations."""
    own = [(bucket, n, n, n) for bucket, n in enumerate((3, 2, 2, 1, 1, 1))]
    rows = [("en", "web", bucket, "x", "big", "sentiment", 100, 10, 30, 30) for bucket in range(64)]
    rows += [("en", "web", bucket, "x", "rare", "sentiment", n, total, hits, hits) for bucket, n, total, hits in own]
    mentioning = [("en", "web", bucket, "x", "rare", 1, n, n) for bucket, n, _, _ in own]
    apart = [("en", "web", bucket, "x", "rare", n, n, n) for bucket, n, _, _ in own]
    found = {}
    for name, groups in (("unknown", None), ("six", mentioning), ("ten", apart)):
        table = table_of("groups", groups) if groups else None
        [row] = [row for row in tone_rows(table_of("scores", rows), groups=table) if row["group"] == "rare"]
        found[name] = row
    assert found["ten"] == found["unknown"]
    assert found["ten"]["p"] < found["six"]["p"] / 100
    assert found["six"]["p"] < 0.01, "six documents that all praise are still a finding"
    assert found["six"]["lower"] == found["ten"]["lower"], "the interval's own units are those of the sentences"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=12))
def test_documents_of_unequal_lengths_count_as_fewer(buckets):
    """A plain sum over documents, those of a bucket of its mean length; equal lengths count one each."""
    documents = np.array([[count for count, _ in buckets]])
    sentences = documents * [length for _, length in buckets]
    lengths = [length for count, length in buckets for _ in range(count)]
    [found] = documents_of(documents, sentences)
    if not lengths:
        assert np.isnan(found)
        return
    assert found == pytest.approx(sum(lengths) ** 2 / sum(length**2 for length in lengths))
    assert found * (1 + 1e-9) >= 1
    assert found <= len(lengths) * (1 + 1e-9)
    [equal] = documents_of(documents, documents * 3)
    assert equal == pytest.approx(len(lengths))
    assert documents_of(documents[:0], sentences[:0]).shape == (0,)


@given(st.floats(-1, 1), st.integers(1, 60))
def test_p_alone_is_the_one_of_the_bounds(mean, n):
    pool = Scores(0.1, 0.25, 1.0)
    assert mean_p(mean, n, 0.1, pool) == mean_bounds(mean, n, 0.1, pool)[2]


def test_sentences_of_one_site_hold_less_than_those_of_a_bucket_of_several():
    """Group a is on one site, b on ten of its bucket; documents without an address are known by bucket."""

    def kept(site, group, documents, bucket=0):
        return ("kept", "", "w", site, "en", 6, bucket, "x", group, documents)

    rows = [kept("s0", "a", 20), *(kept(f"s{n}", "b", 10) for n in range(10)), kept("", "", 25, 7), kept("", "", 25, 8)]
    rows += [("clean", "short", "w", "s0", "en", 6, 0, "x", "b", 900), kept(SMALL_SITES, "c", 3, 1)]
    rows += [kept(SMALL_SITES, "c", 3, 2)]
    found = crowding(table_of("fates", rows), "en", "x", {"a": 40, "b": 400, "c": 12, "d": 5}, 100)
    assert found.own["a"] == pytest.approx(40)
    assert found.own["b"] == pytest.approx(40)
    assert found.own["c"] == pytest.approx(6)  # two buckets of small sites
    assert math.isnan(found.own["d"])  # no document: unknown
    assert found.unmentioned == pytest.approx(50)
    nameless = crowding(table_of("fates", [kept("", "a", 20), kept("", "", 9)]), "en", "x", {"a": 40}, 100)
    assert math.isnan(nameless.own["a"])
    known = crowding(table_of("fates", rows), "en", "x", {"a": 40, "b": 400}, 100)
    assert known.others == {"a": pytest.approx(40), "b": pytest.approx(40)}
    units = np.eye(1, 64, dtype=np.int64) * 40
    of = np.full((1, 64), 400)
    sums = np.where(np.arange(64) % 2, 60, 20)[None]
    by_bucket = design_effects(units, sums, of, np.array([0.09]))
    by_site = design_effects(units, sums, of, np.array([0.09]), (np.array([40.0]), np.array([40.0])))
    assert by_site > 3 * by_bucket
    unknown = (np.array([np.nan]), np.array([40.0]))
    assert design_effects(units, sums, of, np.array([0.09]), unknown) == by_bucket


def jackknife_p(whole, left):
    """Two-sided p of 0 from a statistic and its values without each bucket, and the degrees of freedom."""
    squares, clusters = (left - whole) ** 2, len(left)
    degrees = min((3.16 - 2.77 / math.sqrt(clusters)) * squares.sum() ** 2 / (squares**2).sum(), clusters - 1)
    return 2 * stats.t.sf(abs(whole) / math.sqrt((clusters - 1) / clusters * squares.sum()), degrees), degrees


@pytest.mark.parametrize("buckets", [64, 12])
def test_p_of_an_npmi_gap_is_the_lesser_of_two_jackknives_where_many_sites_carry_it(buckets, monkeypatch):
    monkeypatch.setattr(association, "chosen_intervals", lambda found, *_, **__: (found, [""] * len(found.value)))
    rng = np.random.default_rng(3)
    used = np.arange(64) < buckets
    one, others = rng.integers(20, 40, (2, 64)) * used
    both, others_both = rng.binomial(one, 0.08), rng.binomial(others, 0.05)
    whole = one + others + 200 * used
    subject = both + others_both + rng.binomial(200, 0.05, 64) * used
    of = {"a": (one, both), "b": (others, others_both)}
    category = ("topic", "crime")
    counts = {
        "documents": table_of("documents", per_bucket("documents", ("en", "web", None), *[whole] * 4)),
        "categories": table_of("categories", per_bucket("categories", ("en", "web", None, *category), subject)),
        "groups": table_of(
            "groups",
            [row for g, (n, _) in of.items() for row in per_bucket("groups", ("en", "web", None, "x", g), n, n, n)],
        ),
        "pairs": table_of(
            "pairs",
            [row for g, (_, k) in of.items() for row in per_bucket("pairs", ("en", "web", None, "x", g, *category), k)],
        ),
    }
    rows = association.association_rows(counts)
    (row,) = (row for row in rows if (row["metric"], row["group"]) == ("npmi_gap", "a"))

    def tests(n, k, m, j, every, some):
        own, others = (association.normalised_pmi(rate * n, n, some, every) for rate in (k / n, j / m))
        return own - others, k / n - j / m

    parts = [part[used] for part in (one, both, others, others_both, whole, subject)]
    left = tests(*(part.sum() - part for part in parts))
    (gap, _), (rates, degrees) = map(jackknife_p, tests(*(part.sum() for part in parts)), left)
    assert (degrees >= association.SURE_DEGREES) == (buckets == 64)
    assert rates < gap
    assert row["p"] == pytest.approx(rates if buckets == 64 else gap, abs=1e-9)


@pytest.mark.parametrize(("seen", "sure"), [(4, False), (40, True)])
def test_a_pair_that_one_side_never_has_is_judged_as_seldom_not_as_impossible(seen, sure):
    """Without a pair npmi is -1, however few the sentences, and no jackknife varies it: 4 of 384 were a finding."""

    def keys(*names):
        return ("en", "web", None, *names)

    a_pair = [seen // 4 * (bucket % 16 == 3) for bucket in range(64)]
    groups = [row for group in "ab" for row in per_bucket("groups", keys("x", group), *[[6] * 64] * 3)]
    counts = {
        "documents": table_of("documents", per_bucket("documents", keys(), *[[150] * 64] * 4)),
        "categories": table_of("categories", per_bucket("categories", keys("topic", "crime"), [6] * 64)),
        "groups": table_of("groups", groups),
        "pairs": table_of("pairs", per_bucket("pairs", keys("x", "a", "topic", "crime"), a_pair)),
    }
    rows = {row["group"]: row for row in association.association_rows(counts) if row["metric"] == "npmi_gap"}
    assert rows["a"]["value"] > 0 > rows["b"]["value"]
    oracle = stats.fisher_exact([[seen, 384 - seen], [0, 384]]).pvalue
    for row in rows.values():
        assert (row["p"] < 0.001) == (oracle < 0.001) == sure
        assert (row["lower"] < 0 < row["upper"]) != sure
        assert row["lower"] <= row["value"] <= row["upper"]
    assert rows["a"]["p"] == pytest.approx(rows["b"]["p"])  # one comparison, from either side
