"""Few units: exact bounds by enumeration, and rows that say "too few" where nothing can be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.checks.bias.interval_choice import TOO_FEW, effective_units
from governance.checks.bias.sentiment import tone_rows
from governance.checks.bias.small_samples import Scores, mean_bounds, rate_bounds, scores_of
from tests.governance.bias_counts import table_of


def chances(n, rate):
    return [math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)]


def mid_p(k, n, rate):
    """Two-sided, by adding up."""
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
    assert 0.94 <= np.mean(covered) <= 0.97
    assert min(covered) >= 0.88


@given(st.integers(2, 40), st.data(), st.floats(0.05, 0.6))
def test_a_mean_of_scores_of_one_sign_is_a_binomial_rate(n, data, density):
    k = data.draw(st.integers(1, n - 1))
    pool = Scores(minus=0.0, plus=density, step=1.0)
    if n * density > 30:
        return
    lower, upper, p = mean_bounds(k / n, n, density, pool)
    assert p == pytest.approx(mid_p(k, n, density), abs=1e-6)
    assert mid_p(k, n, lower) == pytest.approx(0.05, abs=1e-4)
    assert mid_p(k, n, upper) == pytest.approx(0.05, abs=1e-4)


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
    """A group's (sentences, total, hits) by bucket, and a hundred sentences a bucket of others, 6 % of them scored."""
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
