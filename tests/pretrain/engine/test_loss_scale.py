"""fp16's loss scale is part of the state that a run resumes from.

Computed on CPU, which torch can in fp16 and DeepSpeed permits where the processor has instructions for it: `in_fp16`
permits it everywhere. DeepSpeed's own optimizer and loss scaler do the rest; the search is made lively: a higher first
scale, doubled after every 2 steps without overflow.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from governance.errors import PipelineError
from governance.files import read_lines
from pretrain.engine import deepspeed_config
from pretrain.engine import state as engine_state
from pretrain.engine.engine import translated_errors
from pretrain.preflight import compatibility

LIVELY = {"initial_scale_power": 22, "loss_scale_window": 2, "hysteresis": 2}


@pytest.fixture(scope="module")
def in_fp16():
    """fp16 on any CPU, with a lively search; the settings of such a run."""
    from deepspeed.accelerator import get_accelerator

    rules = tuple(rule for rule in compatibility.RULES if rule is not compatibility.fp16_needs_cuda)
    precision = deepspeed_config._precision

    def lively(name: str) -> dict:
        values = precision(name)
        return {**values, "fp16": {**values["fp16"], **LIVELY}} if name == "fp16" else values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compatibility, "RULES", rules)
        patch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
        patch.setattr(deepspeed_config, "_precision", lively)
        yield {"precision": "fp16", "validate_every_steps": 0}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, in_fp16, run_training):
    """The root and the run of a stage without an interruption."""

    @functools.cache
    def run(stage: int):
        root = tmp_path_factory.mktemp("whole")
        return root, run_training(root, zero_stage=stage, **in_fp16)

    return run


@pytest.fixture
def interrupted(tmp_path_factory, tmp_path, in_fp16, kill_at):
    """A root in which a run of a stage died in step 7, after the checkpoint of step 4."""

    def root(stage: int) -> Path:
        if stage not in _INTERRUPTED:
            _INTERRUPTED[stage] = tmp_path_factory.mktemp("cut")
            kill_at(7, _INTERRUPTED[stage], zero_stage=stage, **in_fp16)
        shutil.copytree(_INTERRUPTED[stage], tmp_path / "cut")
        return tmp_path / "cut"

    return root


_INTERRUPTED: dict[int, Path] = {}


def scale_in(root, step: int) -> dict:
    """Loss scale in the checkpoint of a step."""
    states = [json.loads(path.read_text()) for path in root.glob("checkpoint/*/state.json")]
    return next(state["loss_scale"] for state in states if state["step"] == step)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_interrupted_run_is_the_uninterrupted_one_fp16(in_fp16, run_training, whole_run, interrupted, stage):
    _, whole = whole_run(stage)
    cut = interrupted(stage)
    before = scale_in(cut, 4)
    assert before["step"] == 4
    assert before["last_overflow"] >= 0
    assert before["scale"] < 2 ** LIVELY["initial_scale_power"]
    assert run_training(cut, zero_stage=stage, **in_fp16).digest == whole.digest
    lines = read_lines(cut / whole.folder / "metrics.jsonl")
    skipped = [line for line in lines if line["event"] == "skipped"]
    assert {line["reason"] for line in skipped} == {"overflow"}
    assert any(line["step"] > 4 for line in skipped)  # the search continued after the restart, and counted


def test_without_its_scale_a_run_would_skip_other_steps(in_fp16, run_training, whole_run, interrupted, monkeypatch):
    """The test above can fail."""
    _, whole = whole_run(1)
    monkeypatch.setattr(engine_state, "restore_loss_scale", lambda engine, values: None)
    cut = run_training(interrupted(1), zero_stage=1, **in_fp16)
    assert cut.stats["skipped_steps"] > whole.stats["skipped_steps"]


def test_another_stage_goes_on_with_the_scale(in_fp16, run_training, whole_run, interrupted, losses_of):
    """Stages 2 and 3, which overflow at the same scale; stage 1 sums differently, and does so at half of it."""
    root, whole = whole_run(2)
    cut = interrupted(2)
    resumed = run_training(cut, zero_stage=3, **in_fp16)
    assert losses_of(resumed, cut) == pytest.approx(losses_of(whole, root), rel=1e-3)
    assert scale_in(cut, 10) == scale_in(root, 10)


def test_precisions_that_scale_no_loss_say_nothing_of_it(finished):
    root, _ = finished
    assert all("loss_scale" not in json.loads(path.read_text()) for path in root.glob("checkpoint/*/state.json"))


def test_a_checkpoint_without_a_scale_begins_the_search_anew():
    import torch
    from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler, DynamicLossScaler

    scaler = DynamicLossScaler(1024.0, 1000, 1, 2, False)
    engine = SimpleNamespace(deepspeed=SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler)))
    engine_state.restore_loss_scale(engine, None)
    assert engine_state.loss_scale_of(engine) == {"scale": 1024.0, "step": 0, "last_overflow": -1, "hysteresis": 2}
    engine.deepspeed.optimizer.loss_scaler = CreateLossScaler(torch.bfloat16, 1.0, False, None)
    assert engine_state.loss_scale_of(engine) is None


def test_a_scale_that_can_fall_no_further_ends_the_run_with_a_verdict():
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    with pytest.raises(PipelineError, match="precision = 'bf16'"), translated_errors():
        DynamicLossScaler(1, 1000, 1, 1, False).update_scale(True)
