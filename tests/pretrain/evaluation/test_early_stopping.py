"""Early stopping follows its definition, in interrupted runs too."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ConfigError
from pretrain.checkpoint.format import read_checkpoint, read_state
from pretrain.evaluation.early_stopping import has_stalled

LOSSES = st.lists(st.one_of(st.none(), st.integers(0, 4).map(float)), max_size=8)
STALLING = {"steps": 40, "validate_every_steps": 2, "patience": 2, "learning_rate": 3.0, "every_steps": 6}
"""A rate at which the loss soon rises."""


@given(LOSSES, st.integers(0, 4))
def test_a_run_has_stalled_if_none_of_the_last_validations_is_below_the_best_before_them(losses, patience):
    finite = [float("inf") if loss is None else loss for loss in losses]
    before, last = finite[: len(finite) - patience], finite[len(finite) - patience :]
    expected = 0 < patience < len(finite) and min(before) <= min(last)
    assert has_stalled([{"loss": loss} for loss in losses], patience) == expected


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, run_training):
    root = tmp_path_factory.mktemp("stopped")
    return root, run_training(root, **STALLING)


def test_a_run_ends_at_the_validation_that_uses_up_its_patience(stopped, run_training):
    root, run = stopped
    held = json.loads((root / run.folder / "losses.json").read_bytes())
    losses = [row["loss"] for row in held["validations"]]
    step = held["validations"][-1]["step"]
    assert step == len(held["losses"]) < STALLING["steps"]
    best = losses.index(min(losses))
    assert len(losses) - 1 - best == STALLING["patience"]
    lines = [json.loads(line) for line in (root / run.folder / "metrics.jsonl").read_text().splitlines()]
    [event] = [line for line in lines if line["event"] == "early_stop"]
    assert (event["step"], event["best_step"]) == (step, held["validations"][best]["step"])
    [last] = [
        folder for folder in root.glob("checkpoint/*/") if read_state(read_checkpoint(folder, root), root).step == step
    ]
    assert {output.path.split("/")[0] for output in run.outputs} == {"train", "checkpoint"}
    assert any(output.path.startswith(f"checkpoint/{last.name}/") for output in run.outputs)
    assert run_training(root, **STALLING) == run  # found, not trained again


def test_an_interrupted_run_stops_where_an_uninterrupted_one_does(stopped, run_training, at_step, tmp_path):
    _, whole = stopped

    class Killed(Exception):
        pass

    def kill():
        raise Killed

    at_step(8, kill)
    with pytest.raises(Killed):
        run_training(tmp_path, **STALLING)
    assert run_training(tmp_path, **STALLING).digest == whole.digest


def test_patience_without_validations_is_refused(tmp_path, run_training, make_tokens):
    with pytest.raises(ValueError, match="patience = 2 counts validations"):
        run_training(tmp_path, patience=2, validate_every_steps=0)
    make_tokens(tmp_path, validation=0)
    with pytest.raises(ConfigError, match=r"train\.patience = 2: .* has no validation documents"):
        run_training(tmp_path, patience=2)
