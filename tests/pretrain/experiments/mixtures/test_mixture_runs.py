"""Trainings of the mixture experiment: the run with other weights, each source as often repeated, and refusals."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.config import load_run
from governance.errors import ConfigError
from pretrain.data.mixture import sources_of
from pretrain.data.sampler import sampler_of
from pretrain.experiments.mixtures.mixture_runs import MIN_ROWS, mixture_plan
from pretrain.experiments.scaling.ladder import MIN_STEPS, tokens_of

CONFIGS = Path(__file__).parents[4] / "configs"
SOURCES = ", ".join(f'{{type="jsonl", name="{name}", licence="MIT", paths=["x"]}}' for name in ("books", "web"))
SMALL = (
    f"data.sources=[{SOURCES}]",
    "train.steps=2000",
    "train.global_batch_size=8",
    "optim.warmup_steps=20",
    "optim.decay_steps=200",
)
ROWS = {"books": 400, "web": 30_000}


def plan_of(*words, rows=ROWS):
    run = load_run(CONFIGS / "10m.toml", [*SMALL, "mixture.budget=0.2", *words], needs="model").config
    return run, mixture_plan(run.mixture, run.recipe, 32_768, rows)


def test_a_training_is_the_run_with_its_settings():
    run, plan = plan_of()
    assert len(plan.rungs) == 9
    assert plan.own == pytest.approx((400 / 30_400, 30_000 / 30_400), abs=1e-4)
    assert len({rung.weights for rung in plan.rungs}) == 9
    assert sum(rung.budget for rung in plan.rungs) == pytest.approx(0.2, rel=0.02)
    for rung in plan.rungs:
        smaller = load_run(CONFIGS / "10m.toml", [*SMALL, *rung.settings], needs="model").config
        assert smaller.model == run.model
        assert tokens_of(smaller.recipe) == rung.tokens
        assert tuple(smaller.train.mixture[0].weights.values()) == rung.weights
        assert smaller.train.source_share == pytest.approx(rung.steps / 2000, rel=1e-5)
        assert rung.weights[0] <= plan.caps[0] + 1e-4
    assert plan.caps == (16 * 400 / 16_000, 1.0)
    assert plan.epochs((0.4, 0.6)) == (16.0, 0.32)


@settings(max_examples=20)
@given(st.integers(400, 800), st.integers(2000, 9000), st.floats(0.02, 0.98))
def test_each_source_is_repeated_as_often_as_in_the_run(few, many, weight):
    run, plan = plan_of(rows={"books": few, "web": many})
    rung = plan.rungs[-1]
    share = rung.steps / run.train.steps
    mixture = [f"train.mixture=[{{from_step=1, weights={{books={weight:.3f}, web={1 - weight:.3f}}}}}]"]
    owners = np.array([0] * few + [1] * many)
    rows = SimpleNamespace(count=few + many, sources=lambda: sources_of(("books", "web"), owners))

    def readings(*words):
        train = load_run(CONFIGS / "10m.toml", [*SMALL, *words, *mixture], needs="model").config.train
        read = np.array(sampler_of(rows, train).between(0, train.steps * train.global_batch_size))
        return [np.bincount(read[owners[read] == owner] - (owner and few)) for owner in (0, 1)]

    whole, small = readings(), readings(f"train.steps={rung.steps}", f"train.source_share={share:.6g}",
                                        "optim.warmup_steps=1", "optim.decay_steps=1")  # fmt: skip
    for large, little in zip(whole, small, strict=True):
        assert (little > 0).sum() <= max(1, round(share * len(large))) + 1
        means = [counts[counts > 0].mean() for counts in (large, little)]
        if min(means) > 1.5:  # read whole, more than once
            assert means[1] == pytest.approx(means[0], rel=1 / MIN_ROWS)


@pytest.mark.parametrize(
    ("words", "rows", "message"),
    [
        ([], {"web": 30_000}, "the rows are of web alone, and one source has no weights"),
        (["mixture.max_epochs_of.books=0"], ROWS, "the rows are of web alone"),
        (
            ["mixture.max_epochs_of.boks=2"],
            ROWS,
            "max_epochs_of names 'boks'; the sources with training rows are books",
        ),
        (["mixture.budget=0.01"], ROWS, f"a training needs {MIN_STEPS} steps and .* Set mixture.budget = "),
        ([], {"books": 100, "web": 30_000}, "rows of 'books'; .* Set mixture.budget = "),
        ([], {"books": 2, "web": 30_000}, "No budget suffices: 5 trainings, .* need 40 rows of 'books', and it has 2"),
        (["train.steps=149"], ROWS, "No budget suffices: 5 trainings, .* need a run of 150 steps"),
        (["mixture.trainings=4"], ROWS, "2 sources have 4 coefficients; name at least 5, or leave it out for 9"),
        (["mixture.max_epochs=0.1"], ROWS, r"0\.1 readings of every source are .* Raise it to 0\."),
        (['train.continue_from="checkpoint/a"'], ROWS, "mixture: train.continue_from is set"),
        (["train.mixture=[{from_step=9, weights={web=1}}]"], ROWS, "begins after the first step"),
        (["mixture.hidden_size=100"], ROWS, "mixture.hidden_size: 100 is not a multiple"),
    ],
)
def test_what_is_no_experiment_is_refused(words, rows, message):
    run = load_run(CONFIGS / "10m.toml", SMALL, needs="model")
    assert run.config.mixture.budget == 1 / 16
    with pytest.raises(ConfigError, match=message):
        plan_of(*words, rows=rows)


@pytest.mark.parametrize("words", [["mixture.budget=0.01"], ["train.steps=200"], ["train.steps=271"]])
def test_the_settings_of_the_message_suffice(words):
    with pytest.raises(ConfigError) as caught:
        plan_of(*words)
    named = re.findall(r"(mixture\.\w+) = (\d+(?:\.\d+)?)", str(caught.value).partition(" Set ")[2])
    assert named
    _, plan = plan_of(*words, *(f"{name}={value}" for name, value in named))
    assert plan.rungs[0].steps >= MIN_STEPS


def test_narrower_models_and_the_runs_own_mixture():
    own = "train.mixture=[{from_step=1, weights={web=3, books=1}}]"
    _, plan = plan_of(own, "mixture.hidden_size=128", "mixture.trainings=6")
    assert plan.own == (0.25, 0.75)
    assert {rung.model.hidden_size for rung in plan.rungs} == {128}
