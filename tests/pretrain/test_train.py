from __future__ import annotations

import bisect
import errno
import json
import math
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from governance.errors import CheckpointError, ManifestError, MissingInput, Preempted, StorageError
from governance.files import read_lines, remove_tree
from governance.manifest import verify
from pretrain import loop
from pretrain.config.training import EngineConfig
from pretrain.data.dataset import open_rows
from pretrain.distributed.process_group import Ranks
from pretrain.distributed.stragglers import StragglerMonitor
from pretrain.engine.engine import Engine
from pretrain.loss_spikes import Diverged
from pretrain.train import _arithmetic
from tests.altered_files import flip
from tests.pretrain.planted_faults import start_one


def test_a_validation_that_is_not_finite_is_kept_as_null_and_reported(tmp_path, run_training, monkeypatch, caplog):
    measure = loop.measure
    by_source = {"web": {"loss": math.inf, "tokens": 3}}
    monkeypatch.setattr(loop, "measure", lambda *given: replace(measure(*given), loss=math.nan, by_source=by_source))
    run = run_training(tmp_path, steps=4, decay_steps=2, warmup_steps=1, validate_every_steps=2, every_steps=2)
    assert run.stats["validation_loss"] is None
    kept = json.loads((tmp_path / run.folder / "losses.json").read_text())["validations"]
    assert [(row["step"], row["loss"], row["by_source"]) for row in kept] == [
        (step, None, {"web": {"loss": None, "tokens": 3}}) for step in (2, 4)
    ]
    assert "step 2, validation is not finite, and is stored as null: loss, by_source.web.loss" in caplog.text


def test_it_learns_and_says_what_it_did(finished, losses_of):
    root, run = finished
    losses = losses_of(run, root)
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.3
    assert run.stats["final_loss"] == losses[-1]
    assert run.stats["validation_loss"] > 0
    assert not verify(run, root)
    lines = read_lines(root / run.folder / "metrics.jsonl")
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["loss"] for line in steps] == losses
    assert steps[-1]["tokens"] == run.stats["tokens"]
    assert [line["step"] for line in lines if line["event"] == "validation"] == [4, 8, 10]


def test_a_finished_run_is_found(finished, run_training):
    root, run = finished
    assert run_training(root, make=False) == run
    # Execution enters no key.
    assert run_training(root, micro_batch_size=2, zero_stage=3, keep_last=7, mode="offline") == run


def test_a_look_up_makes_nothing(tmp_path, run_training):
    with pytest.raises(MissingInput):
        run_training(tmp_path, make=False)
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_interrupted_run_is_the_uninterrupted_one_bf16(tmp_path, run_training, kill_at, stage):
    settings = {"precision": "bf16", "zero_stage": stage}
    whole = run_training(tmp_path / "whole", **settings)
    kill_at(7, tmp_path / "cut", **settings)
    assert run_training(tmp_path / "cut", **settings).digest == whole.digest


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_interrupted_run_is_the_uninterrupted_one_fp32(tmp_path, finished, run_training, kill_at, losses_of, stage):
    kill_at(7, tmp_path, zero_stage=stage)
    run = run_training(tmp_path, zero_stage=stage)
    root, whole = finished
    assert losses_of(run, tmp_path) == pytest.approx(losses_of(whole, root), rel=1e-5)
    if stage == 1:
        assert run.digest == whole.digest
    attempts = [line["attempt"] for line in read_lines(tmp_path / run.folder / "metrics.jsonl")]
    assert sorted(set(attempts)) == [1, 2]


@pytest.mark.parametrize("layout", [{"zero_stage": 3}, {"zero_stage": 2, "micro_batch_size": 8}, {"zero_stage": 0}])
def test_another_layout_goes_on(tmp_path, finished, run_training, kill_at, losses_of, layout):
    kill_at(7, tmp_path)
    run = run_training(tmp_path, **layout)
    root, whole = finished
    assert losses_of(run, tmp_path) == pytest.approx(losses_of(whole, root), rel=1e-5)


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_the_split_of_a_batch_changes_nothing_but_rounding(tmp_path, finished, run_training, losses_of, micro):
    run = run_training(tmp_path, micro_batch_size=micro)
    root, whole = finished
    assert losses_of(run, tmp_path) == pytest.approx(losses_of(whole, root), rel=1e-5)


def test_a_removal_that_a_kill_left_half_done_is_ended_where_nothing_is_left_to_train(tmp_path, run_training):
    made = run_training(tmp_path, keep_last=1)
    lines = [json.loads(line) for line in (tmp_path / made.folder / "metrics.jsonl").read_text().splitlines()]
    [first, *_, last] = [tmp_path / Path(line["path"]).parent for line in lines if line["event"] == "checkpoint"]
    assert last.exists()
    assert not first.exists()
    (first / "weights").mkdir(parents=True)
    (first / "weights" / "00000.safetensors").write_bytes(b"left")
    (tmp_path / made.folder / "manifest.json").unlink()
    assert run_training(tmp_path, keep_last=1).digest == made.digest
    assert not first.exists()


def test_a_signal_saves_and_leaves(tmp_path, finished, run_training, at_step):
    at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="step 6") as error:
        run_training(tmp_path)
    assert error.value.exit_code == 75
    run = run_training(tmp_path)
    assert run.digest == finished[1].digest
    steps = [line for line in read_lines(tmp_path / run.folder / "metrics.jsonl") if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 11))  # no step twice, none left out


def test_a_damaged_checkpoint_is_passed_over(tmp_path, finished, run_training, kill_at, caplog):
    kill_at(10, tmp_path)
    newest = max((tmp_path / "checkpoint").glob("*/weights/*"), key=lambda path: path.stat().st_mtime_ns)
    flip(newest, -5)
    assert run_training(tmp_path).digest == finished[1].digest
    assert str(newest.relative_to(tmp_path)) in caplog.text


@pytest.fixture
def crashed(tmp_path, kill_at):
    """A root whose run crashed at its last step: the checkpoints of steps 4 and 8 are durable."""
    kill_at(10, tmp_path)
    assert len(list((tmp_path / "checkpoint").glob("*/manifest.json"))) == 2
    return tmp_path


def test_a_run_whose_checkpoints_are_gone_never_starts_again_by_itself(crashed, finished, run_training):
    remove_tree(crashed / "checkpoint")
    with pytest.raises(MissingInput, match=r"step 8 was durable.*\n.*gone.*\n.*--from-scratch") as error:
        run_training(crashed)
    assert error.value.exit_code == 66
    assert run_training(crashed, from_scratch=True).digest == finished[1].digest


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_again_by_itself(crashed, run_training):
    for state in (crashed / "checkpoint").glob("*/state.json"):
        state.write_text("{}")
    with pytest.raises(CheckpointError, match=r"none of this run is intact(.*\n)*.*step 8: .*state.json") as error:
        run_training(crashed)
    assert error.value.exit_code == 65


def test_a_disk_that_cannot_be_read_is_not_damage(crashed, run_training, monkeypatch, caplog):
    from builtins import open as real

    def failing(path, *args, **kwargs):
        if str(path).endswith("weights/00000.safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", failing)
    with pytest.raises(StorageError, match="Input/output error") as error:
        run_training(crashed)
    assert error.value.exit_code == 74
    assert "damaged" not in caplog.text


def test_old_checkpoints_are_removed(tmp_path, run_training):
    run_training(tmp_path, every_steps=2, keep_last=2)
    assert len(list((tmp_path / "checkpoint").glob("*/manifest.json"))) == 2


def test_a_run_that_is_not_finite_any_more_stops(tmp_path, run_training):
    with pytest.raises(Diverged, match=r"lower\s+optim.learning_rate"):
        run_training(tmp_path, learning_rate=1e30, weight_decay=0.0, gradient_clipping=0.0, warmup_steps=0)
    [metrics] = (tmp_path / "train").glob("*/metrics.jsonl")
    skipped = [line["step"] for line in read_lines(metrics) if line["event"] == "skipped"]
    assert skipped == list(range(skipped[0], skipped[0] + 3))
    assert not list((tmp_path / "train").glob("*/manifest.json"))


@pytest.fixture
def poisoned(monkeypatch):
    """The loss of one step is not a number, whenever that step is computed."""

    def plan(step: int):
        now, forward, slots = [0], Engine.forward, StragglerMonitor.slots

        def begin(pace, number):
            now[0] = number
            return slots(pace, number)

        def passed(engine, batch):
            objective, nats = forward(engine, batch)
            return (objective * math.nan, nats * math.nan) if now[0] == step else (objective, nats)

        monkeypatch.setattr(StragglerMonitor, "slots", begin)
        monkeypatch.setattr(Engine, "forward", passed)

    return plan


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_step_that_is_not_finite_is_left_out_and_its_documents_are_reported(
    tmp_path, run_training, kill_at, poisoned, losses_of, stage
):
    poisoned(6)
    whole = run_training(tmp_path / "whole", zero_stage=stage)
    losses = losses_of(whole, tmp_path / "whole")
    assert [step for step, loss in enumerate(losses, 1) if loss is None] == [6]
    assert losses[-1] < losses[0]
    [message] = json.loads((tmp_path / "whole" / whole.folder / "losses.json").read_bytes())["skipped"]
    assert (message["step"], message["reason"], len(message["rows"])) == (6, "loss", 8)
    lines = read_lines(tmp_path / "whole" / whole.folder / "metrics.jsonl")
    [line] = [line for line in lines if line["event"] == "skipped"]
    assert line["documents"] == message["documents"]
    assert len(message["documents"]) >= 4
    assert whole.stats["skipped_steps"] == 1

    kill_at(7, tmp_path / "cut", zero_stage=stage)
    assert run_training(tmp_path / "cut", zero_stage=stage).digest == whole.digest


def test_documents_of_rows_are_those_whose_tokens_they_hold(tmp_path, make_tokens):
    rows = open_rows(make_tokens(tmp_path), "train", tmp_path, 32)
    for number in range(rows.count):
        place = bisect.bisect_right(rows.starts, number) - 1
        shard, start = rows.shards[place], (number - rows.starts[place]) * 32
        begins = [0, *shard.document_ends[:-1].tolist()]
        held = [
            shard.identities[index].tobytes().hex()
            for index, (begin, end) in enumerate(zip(begins, shard.document_ends.tolist(), strict=True))
            if begin < start + 32 and end > start
        ]
        assert rows.documents_of([number]) == held


def test_an_altered_token_shard_is_named(tmp_path, run_training, make_tokens):
    manifest = make_tokens(tmp_path)
    path = manifest.files("train", tmp_path)[1]
    flip(path, 70)
    with pytest.raises(ManifestError, match=str(path)):
        run_training(tmp_path)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(tmp_path, finished):
    moment = random.Random(0)
    for _ in range(4):
        # Far more steps than the time allows would never end: so each attempt may finish, and often does not.
        process = start_one(tmp_path)
        deadline = time.monotonic() + 600
        while process.exitcode is None and not list((tmp_path / "train").glob("*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moment.uniform(0, 0.8))
        process.kill()
        process.join()
    process = start_one(tmp_path)
    process.join(600)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().split()[-1] == finished[1].digest


@pytest.mark.parametrize(
    ("device", "asked", "fixed"), [("cpu", False, True), ("cuda", False, False), ("cuda", True, True)]
)
def test_the_order_of_sums_is_fixed_on_cpu_and_where_it_is_requested(device, asked, fixed, monkeypatch):
    monkeypatch.setattr("pretrain.train.device_of", lambda ranks, wanted: torch.device(device))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    with _arithmetic(Ranks(), EngineConfig(deterministic=asked, threads=1)):
        assert torch.are_deterministic_algorithms_enabled() == fixed
        assert torch.is_deterministic_algorithms_warn_only_enabled() == (device == "cuda")
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == asked
    assert torch.are_deterministic_algorithms_enabled() == before
