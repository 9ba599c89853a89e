"""The benchmark for a GPU, run on a CPU at toy size, so that it works as soon as there is a card."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from benchmarks.measures.training import training_gpu
from benchmarks.measures.training.training_gpu import Setting, bare, difference, measured, refuse, settings
from governance.errors import PipelineError
from pretrain.config.model import ModelConfig
from pretrain.distributed.process_group import Ranks
from pretrain.model.flops import parameter_count
from pretrain.preflight.hardware import Hardware

GIB = 1 << 30
# An empty card of 80 GB after the driver, and a usual host.
H100 = Hardware(Ranks(), "cuda", (9, 0), 1, device_bytes=int(78.5 * GIB), host_bytes=100 * GIB)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODEL = ModelConfig(**SIZES, num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=True)
TOY = Setting(MODEL, length=64, rows=8, micro_rows=4, steps=6, vocabulary=200)


@pytest.fixture(scope="module")
def timed():
    """Both stages and the bare loop, each once, on the CPU."""
    return {1: measured(TOY, 1, "cpu"), 3: measured(TOY, 3, "cpu"), "bare": bare(TOY, "cpu")}


@pytest.mark.parametrize("stage", [1, 3])
def test_the_bare_loop_computes_what_the_run_computes(timed, stage):
    run, loop = timed[stage], timed["bare"]
    assert len(run.losses) == len(loop.losses) == 6
    assert run.losses[0] == pytest.approx(loop.losses[0], abs=1e-6)
    assert difference(run, loop) < 1e-3
    assert difference(run, replace(loop, losses=loop.losses[::-1])) > 1e-3  # losses that differ are seen
    for found in (run, loop):
        assert found.tokens_per_second == pytest.approx(8 * 64 / found.seconds)
    assert run.mfu is None  # no data sheet lists a CPU


def test_the_bare_loop_says_what_it_cannot_compare():
    from benchmarks.measures.training.bare_loop import bare_steps

    train = TOY.recipe.train.model_copy(update={"precision": "fp32"})
    with pytest.raises(ValueError, match="knows bf16 and adamw, not fp32"):
        next(bare_steps(TOY.recipe.model_copy(update={"train": train}), None, 4, "cpu"))


def test_both_sizes_fit_a_card_of_80_gb_by_the_estimate():
    sizes = settings(quick=True)
    for setting in sizes.values():
        for stage in (1, 3):
            refuse(setting, stage, H100)
    with pytest.raises(PipelineError, match=r"needs about 8\d\.\d GiB on the device .* may use 78\.5 GiB"):
        refuse(replace(sizes["1_3b"], micro_rows=16), 1, H100)
    with pytest.raises(PipelineError, match="of the host"):
        refuse(sizes["1_3b"], 1, replace(H100, host_bytes=8 * GIB))


def test_the_sizes_are_those_of_the_goals():
    counts = {name: parameter_count(s.model, s.vocabulary) for name, s in settings(quick=False).items()}
    assert counts == {"124m": 123_587_328, "1_3b": 1_317_373_952}


def test_each_figure_has_a_process_of_its_own():
    assert training_gpu._alone(os.getpid) != os.getpid()


def test_a_card_would_report_these(timed, monkeypatch):
    """Every line of the report, with the CPU's figures and the answers of a card that a data sheet lists."""

    def alone(work, *given):
        if work is bare:
            return timed["bare"]
        return H100 if work is training_gpu._free else replace(timed[(*given[1:2], 1)[0]], mfu=0.5)

    monkeypatch.setattr(training_gpu, "_alone", alone)
    goals = training_gpu._on_card(settings(quick=True), "a card")
    assert [goal.name.removeprefix("training_gpu_") for goal in goals] == [
        "mfu_124m", "tokens_per_second_124m", "mfu_1_3b", "tokens_per_second_1_3b", "engine_tax_zero_1",
        "engine_tax_zero_3", "loss_difference_zero_1", "loss_difference_zero_3", "bare_noise",
    ]  # fmt: skip
    messages = {goal.name.removeprefix("training_gpu_"): goal for goal in goals}
    assert [goal.bound for goal in goals if goal.kind != "info"] == [0.48, 0.50, 0.02, 0.05]
    assert messages["engine_tax_zero_3"].value == pytest.approx(timed[3].seconds / timed["bare"].seconds - 1)
    assert messages["mfu_124m"].holds
    assert messages["bare_noise"].value == 0.0
