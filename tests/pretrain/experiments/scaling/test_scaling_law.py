"""Scaling laws: planted ones are found, intervals contain the truth, and a short ladder is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.errors import PipelineError
from pretrain.experiments.scaling.scaling_law import ScalingLaw, Trained, fit_law, parabola_exponent

CHINCHILLA = ScalingLaw(1.69, 406.4, 410.7, 0.34, 0.28)  # arXiv:2203.15556, table A3
BUDGETS = (1e17, 1e18, 1e19)


def curves(law, noise=0.0, seed=0, reach=4.0, centre=1.0, sizes=5):
    """Trainings of `sizes` sizes for each budget, from 1 / reach to reach times `centre` times the best one."""
    chance, found = np.random.default_rng(seed), []
    for budget in BUDGETS:
        best = law.best(budget)[0] * centre
        curve = []
        for parameters in np.geomspace(best / reach, best * reach, sizes):
            tokens = budget / 6 / parameters
            curve.append(Trained(parameters, tokens, law.loss(parameters, tokens) + chance.normal(0, noise)))
        found.append(curve)
    return found


def flat(found):
    return [one for curve in found for one in curve]


@settings(max_examples=12)
@given(
    constant=st.floats(0.5, 3),
    alpha=st.floats(0.15, 0.9),
    beta=st.floats(0.15, 0.9),
    parts=st.tuples(st.floats(0.2, 2), st.floats(0.2, 2)),
)
def test_a_planted_law_is_found(constant, alpha, beta, parts):
    """The parts are what size and text add to the loss at 1e8 parameters and 1e9 tokens."""
    law = ScalingLaw(constant, parts[0] * 1e8**alpha, parts[1] * 1e9**beta, alpha, beta)
    trained = [Trained(n, d, law.loss(n, d)) for n in (1e6, 1e7, 1e8, 1e9) for d in (1e8, 1e9, 1e10)]
    found = fit_law(trained, resamples=0).law
    for name in ("parameter_exponent", "token_exponent", "size_exponent", "constant"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=0.01), name
    assert found.loss(1e11, 1e12) == pytest.approx(law.loss(1e11, 1e12), rel=1e-3)


def test_the_best_size_has_the_lowest_loss():
    parameters, tokens = CHINCHILLA.best(1e21)
    assert 6 * parameters * tokens == pytest.approx(1e21)
    best = CHINCHILLA.loss(parameters, tokens)
    assert best < min(CHINCHILLA.loss(parameters * by, tokens / by) for by in (0.9, 1.1))


@pytest.mark.parametrize("seed", range(3))
def test_intervals_contain_the_truth_and_grow_with_the_noise(seed):
    target = CHINCHILLA.best(1e21)
    widths = []
    for noise in (0.001, 0.004):
        fit = fit_law(flat(curves(CHINCHILLA, noise, seed)), resamples=200, seed=seed)
        low, high = fit.interval(*target, level=0.99)
        assert low <= CHINCHILLA.loss(*target) <= high
        low_exponent, high_exponent = fit.interval_of("size_exponent", 0.99)
        assert low_exponent <= CHINCHILLA.size_exponent <= high_exponent
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_parabolas_are_exact_about_the_best_size_and_biased_beside_it():
    law = dataclasses.replace(CHINCHILLA, parameter_exponent=0.5, token_exponent=0.3)
    centred = parabola_exponent(curves(CHINCHILLA, reach=2))
    assert centred == pytest.approx(CHINCHILLA.size_exponent, abs=1e-6)  # each curve is as wrong as the others
    drifting = [curve[budget:] for budget, curve in enumerate(curves(law, reach=30, sizes=9))]
    assert abs(parabola_exponent(drifting) - law.size_exponent) > 0.01
    assert fit_law(flat(drifting), resamples=0).law.size_exponent == pytest.approx(law.size_exponent, rel=1e-3)
    assert parabola_exponent([[Trained(10, 10, 3.0)] * 2] * 3) is None


@pytest.mark.parametrize(
    "trained",
    [
        flat(curves(CHINCHILLA))[:6],
        [Trained(n, d, CHINCHILLA.loss(n, d)) for n in (1e6, 1e7) for d in (1e8, 1e9, 1e10, 1e11)],
        [Trained(n, d, CHINCHILLA.loss(n, d)) for n in (1e6, 1e7, 1e8, 1e9) for d in (1e8, 1e9)],
    ],
)
def test_a_ladder_that_determines_no_law_is_refused(trained):
    with pytest.raises(PipelineError, match="determine no law"):
        fit_law(trained)


def test_losses_that_do_not_fall_are_refused():
    rising = [dataclasses.replace(one, loss=9 - one.loss) for one in flat(curves(CHINCHILLA))]
    with pytest.raises(PipelineError, match="do not fall"):
        fit_law(rising)
