"""Early stopping follows its definition, in interrupted runs too."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ConfigError, Preempted
from governance.manifest import verify
from pretrain import loop
from pretrain.checkpoint.format import read_checkpoint, read_state
from pretrain.config.training import EvaluationConfig, TaskConfig
from pretrain.distributed.process_group import gather, read_ranks
from pretrain.early_stopping import has_stalled
from pretrain.evaluation.scores import encode_tasks
from pretrain.evaluation.tasks import Question, Task
from tests.pretrain.rank_runs import load_conftest, run_ranks


def suite():
    """One question of two answers."""
    return encode_tasks(
        [Task("runs", "", (Question("ah", ("ov", "ow"), 0),))],
        lambda text: np.array([ord(letter) for letter in text], np.uint16), 32,
    )  # fmt: skip


LOSSES = st.lists(st.one_of(st.none(), st.integers(0, 4).map(float)), max_size=8)
STALLING = {"steps": 40, "validate_every_steps": 2, "patience": 2, "learning_rate": 3.0, "every_steps": 6}
"""A rate at which the loss soon rises."""
TASK = EvaluationConfig(tasks=(TaskConfig(name="runs", format="choices", path="runs.jsonl"),), every_steps=7)
OFF_THE_BEAT = STALLING | {"every_steps": 7, "evaluation": TASK, "suite": suite}
"""A run whose stopping step is due for a checkpoint and tasks only because it is the last."""


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


def test_an_interrupted_run_stops_where_an_uninterrupted_one_does(stopped, run_training, kill_at, tmp_path):
    _, whole = stopped

    kill_at(8, tmp_path, **STALLING)
    assert run_training(tmp_path, **STALLING).digest == whole.digest


@pytest.fixture(scope="module")
def whole_off_the_beat(tmp_path_factory, run_training):
    return run_training(tmp_path_factory.mktemp("whole"), **OFF_THE_BEAT)


@pytest.mark.parametrize("measured", ["_validate", "_score_tasks"])
def test_a_signal_in_the_last_measurement_leaves_the_checkpoint_of_an_uninterrupted_run(
    whole_off_the_beat, run_training, monkeypatch, tmp_path, measured
):
    """The resumed run learns from that validation that no step follows, so it owes the tasks and the checkpoint."""
    whole = whole_off_the_beat
    own, signals = getattr(loop, measured), [signal.SIGTERM]

    def measure(context, state, *given):
        if state.step == whole.stats["steps"] and signals:
            os.kill(os.getpid(), signals.pop())
        return own(context, state, *given)

    monkeypatch.setattr(loop, measured, measure)
    with pytest.raises(Preempted):
        run_training(tmp_path, **OFF_THE_BEAT)
    assert run_training(tmp_path, **OFF_THE_BEAT).digest == whole.digest


def train_twice(root: Path) -> None:
    """The work of each rank: train, alter the last checkpoint, lose the manifest as after a kill, train again."""
    train = load_conftest()._run_training
    run = train(root, **STALLING)
    if read_ranks().first:
        (root / run.path).unlink()
        altered = root / next(output.path for output in run.outputs if output.path.endswith(".safetensors"))
        content = altered.read_bytes()
        altered.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    gather(None)
    again = train(root, **STALLING)
    assert again.stats["steps"] == run.stats["steps"] < STALLING["steps"]
    assert verify(again, root) == []


def test_a_stopped_run_verifies_the_checkpoint_that_its_manifest_lists(tmp_path):
    """The native shards of two ranks are whole, and the run ends with the canonical files."""
    work = f"from tests.pretrain.test_early_stopping import *; train_twice(Path({str(tmp_path / 'run')!r}))"
    well, messages = run_ranks(tmp_path, ["-c", work], 2)
    assert well, messages[-6000:]
    assert "going back to the one before it" in messages


def test_patience_without_validations_is_refused(tmp_path, run_training, make_tokens):
    with pytest.raises(ValueError, match="patience = 2 counts validations"):
        run_training(tmp_path, patience=2, validate_every_steps=0)
    make_tokens(tmp_path, validation=0)
    with pytest.raises(ConfigError, match=r"train\.patience = 2: .* has no validation documents"):
        run_training(tmp_path, patience=2)
