"""Ladder of a scaling law: each rung is the run with other settings, and what cannot be a rung is refused."""

from pathlib import Path

import pytest

from assay.config import load_run
from governance.errors import ConfigError
from pretrain.experiments.scaling.ladder import MIN_STEPS, ladder, multiplied, tokens_of

CONFIGS = Path(__file__).parents[4] / "configs"
VOCABULARY = 32_768


def rungs_of(*settings, preset="1b"):
    run = load_run(CONFIGS / f"{preset}.toml", settings, needs="model")
    return run, ladder(run.config.scaling, run.config.recipe, VOCABULARY)


@pytest.mark.parametrize("preset", ["10m", "1b", "7b"])
def test_a_rung_is_the_run_with_its_settings(preset):
    settings = [f"scaling.budgets=[{0.5 if preset == '10m' else 0.01}, 0.7, 0.9]"]
    run, rungs = rungs_of(*settings, preset=preset)
    assert len({(rung.model.hidden_size, rung.budget) for rung in rungs}) == len(rungs) >= 9
    whole = multiplied(run.config.model, VOCABULARY) * tokens_of(run.config.recipe)
    for rung in rungs:
        smaller = load_run(CONFIGS / f"{preset}.toml", rung.settings, needs="model").config
        assert smaller.model == rung.model
        assert tokens_of(smaller.recipe) == rung.tokens
        assert rung.parameters * rung.tokens == pytest.approx(rung.budget * whole, rel=1 / MIN_STEPS)
        before, after = run.config, smaller
        shares = [
            getattr(config.optim, name) / config.train.steps
            for name in ("warmup_steps", "decay_steps")
            for config in (before, after)
        ]
        assert shares[::2] == pytest.approx(shares[1::2], abs=1 / rung.steps)
        same = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
        assert smaller.model.model_dump(exclude=same) == run.config.model.model_dump(exclude=same)


def test_seeds_follow_the_runs():
    _, rungs = rungs_of("scaling.seeds=3", "train.seed=5")
    assert [rung.seed for rung in rungs[:3]] == [5, 6, 7]
    assert len({rung.settings for rung in rungs}) == len(rungs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scaling.hidden_sizes=[256]"], "two sizes show no curve"),
        (["scaling.hidden_sizes=[256, 512, 512]"], "named once"),
        (["scaling.budgets=[0.01]"], "one budget shows no growth"),
        (
            ["scaling.hidden_sizes=[256, 512, 1024]", "scaling.budgets=[0.01, 0.02]"],
            r"3 widths, 2 budgets and 1 seed\(s\) are 6 trainings, and the law has 5 parameters and needs 7",
        ),
        (["scaling.budgets=[0.01, -1]"], "above 0"),
        (["scaling.hidden_sizes=[100, 256, 512]"], "100 is not a multiple of the run's width per head"),
        (["scaling.budgets=[0.0000001, 0.01]"], "a schedule needs 30. Set scaling.budgets = "),
        (
            ["train.steps=6", "optim.warmup_steps=2", "optim.decay_steps=2"],
            "this short run, so rather raise train.steps",
        ),
        (['train.continue_from="checkpoint/a"'], "train.continue_from is set"),
        (["train.batch_size_ramp=[{until_step=5, global_batch_size=8}]"], "the batch or the mixture changes"),
    ],
)
def test_what_is_no_ladder_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        rungs_of(*settings)


@pytest.mark.parametrize("budgets", [[1e-7, 1e-3, 0.01], [1e-8, 1e-7, 1e-6]])
def test_the_budgets_of_the_message_suffice(budgets):
    widths = "scaling.hidden_sizes=[256, 512, 1024]"
    with pytest.raises(ConfigError) as caught:
        rungs_of(f"scaling.budgets={budgets}", widths)
    named = str(caught.value).partition("Set scaling.budgets = ")[2].partition("]")[0]
    _, rungs = rungs_of(f"scaling.budgets={named}]", widths)
    assert min(rung.steps for rung in rungs) >= MIN_STEPS
    assert "leave out this width" not in str(caught.value), "two widths show no curve"
