"""Mixture law: a planted one is found, its best weights are the least, and repetition-matched trainings find a best
mixture that unmatched ones miss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.errors import PipelineError
from pretrain.experiments.mixtures.mixture_law import MIN_CURVE, MixtureLaw, fit_mixtures
from pretrain.experiments.mixtures.mixture_runs import spread_mixtures, within

LAWS = st.integers(2, 5).flatmap(
    lambda count: st.builds(
        MixtureLaw, st.tuples(*[st.floats(2, 4)] * count), st.tuples(*[st.floats(0.05, 1.5)] * count)
    )
)


@settings(max_examples=40)
@given(LAWS, st.floats(0.4, 1), st.integers(0, 9))
def test_the_best_weights_are_the_least_of_all_below_the_caps(law, cap, seed):
    caps = np.full(len(law.levels), max(cap, 1.05 / len(law.levels)))
    best = law.best(caps.tolist())
    assert sum(best) == pytest.approx(1)
    assert (np.array(best) <= caps + 1e-9).all()
    others = within(np.random.default_rng(seed).dirichlet(np.ones(len(caps)), 300), caps)
    assert (others <= caps + 1e-9).all()
    assert law.loss(best) <= min(law.loss(other) for other in others.tolist()) + 1e-9


@settings(max_examples=20)
@given(LAWS)
def test_a_planted_law_is_found(law):
    sources = len(law.levels)
    caps = [1.0] * sources
    mixtures = spread_mixtures([1.0] * sources, caps, 3 * sources + 3)
    fit = fit_mixtures(mixtures, [law.loss(one) for one in mixtures], caps, resamples=0)
    assert fit.law.levels == pytest.approx(law.levels, abs=1e-6)
    assert fit.law.curves == pytest.approx(law.curves, abs=1e-6)
    assert fit.best == pytest.approx(law.best(caps), abs=1e-4)


def loss_after(weights, texts, tokens):
    """Loss on the first of two sources, whose text is short.

    Repeated tokens teach less (arXiv:2305.16264), and those of the other source a fifth as much.
    """
    reads = np.array(weights) * tokens / texts
    worth = texts * np.where(reads <= 1, reads, 1 + 5 * (1 - np.exp(-(np.maximum(reads, 1) - 1) / 5)))
    return 1.8 + 40 * (worth[0] + 0.2 * worth[1]) ** -0.2


@pytest.mark.parametrize("scarce", [0.02, 0.05, 0.08])
def test_matched_repetition_finds_the_best_mixture_with_a_sixteenth_of_the_tokens(scarce):
    run, caps = 1e9, [min(1.0, 16 * scarce), 1.0]
    texts = np.array([scarce, 4.0]) * run
    mixtures = spread_mixtures([scarce, 4.0], caps, 9)
    grid = np.linspace(0, caps[0], 2001)
    truth = grid[np.argmin([loss_after((one, 1 - one), texts, run) for one in grid])]

    def found(texts_read):
        share = 1 / 16 / len(mixtures)
        chance = np.random.default_rng(1)
        losses = [loss_after(one, texts_read(share), share * run) + chance.normal(0, 0.001) for one in mixtures]
        return fit_mixtures(mixtures, losses, caps, resamples=100)

    matched, unmatched = found(lambda share: share * texts), found(lambda share: texts)
    low, high = matched.intervals()[0]
    assert abs(matched.best[0] - truth) <= 0.05
    assert abs(unmatched.best[0] - truth) > 2 * abs(matched.best[0] - truth)
    assert low <= matched.best[0] <= high
    gain, least, most = matched.gain(mixtures[0])
    assert least <= gain <= most
    assert gain > 0


def test_what_determines_no_law_is_refused():
    mixtures = spread_mixtures([1.0, 1.0], [1.0, 1.0], 5)
    with pytest.raises(PipelineError, match=r"4 trainings determine no law of 2 sources.*Raise mixture\.trainings"):
        fit_mixtures(mixtures[:4], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0], 0)
    with pytest.raises(PipelineError, match=r"the same loss.*Raise mixture\.budget"):
        fit_mixtures(mixtures, [2.0] * 5, [1.0, 1.0], 0)


def test_a_straight_law_goes_to_the_caps():
    best = MixtureLaw((1.0, 2.0, 3.0), (MIN_CURVE,) * 3).best([0.5, 0.3, 1.0])
    assert best == pytest.approx((0.5, 0.3, 0.2), abs=1e-4)
