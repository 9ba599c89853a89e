from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import sys
import threading
from types import SimpleNamespace

import pytest

from assay import pipeline as run_module
from governance.errors import AlteredFile, BudgetReached, ConfigError, Preempted
from governance.files import read_lines
from governance.manifest import Input
from pretrain.config.optim import OptimConfig
from pretrain.config.training import Settings, TrackingConfig, TrainConfig, TrainRecipe
from pretrain.distributed.preemption import StopNow
from pretrain.distributed.stragglers import spread
from pretrain.loss_spikes import Diverged
from pretrain.metrics import metrics_log
from pretrain.metrics.events import chart_values, summary_of
from pretrain.metrics.metrics_log import open_record
from pretrain.metrics.run_identity import METRICS_FILE, RunIdentity
from pretrain.metrics.wandb_reader import read_offline
from tests.pretrain.small_models import TINY

RECIPE = TrainRecipe(
    model=TINY,
    optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(sequence_length=32, global_batch_size=8, steps=3),
)
INPUTS = (
    Input(stage="encode", digest="d" * 64, path="encode/0123/manifest.json"),
    Input(stage="verdict", digest="e" * 64, path="verdicts/0123.json"),
)
ABOUT = RunIdentity(RECIPE, "k" * 64, INPUTS, lambda: "7:head")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_steps_that_are_computed_again_are_counted_once(tmp_path):
    """Also after an attempt that hung before its start, or that computed nothing after it."""
    attempts = [["start 0", "step 1", "step 2", "step 3"], ["hang 0"], ["start 1"], ["start 1", "step 2"], ["start 2"]]
    for lines in attempts:
        with open_record(tmp_path, TrackingConfig(mode="disabled"), ABOUT, writes=True) as (record, _):
            for event, _, step in (line.partition(" ") for line in lines):
                record(event, int(step))
    starts = [line for line in read_lines(tmp_path / METRICS_FILE) if line["event"] == "start"]
    assert [(line["attempt"], line["rolled_back"]) for line in starts] == [(1, 0), (3, 2), (4, 0), (5, 0)]


def test_lines_are_the_record_and_attempts_count(tmp_path):
    config = TrackingConfig(mode="disabled")
    for expected in (1, 2):
        with open_record(tmp_path, config, ABOUT, writes=True) as (record, attempt):
            assert attempt == expected
            record("step", 1, loss=0.5, grad_norm=float("nan"), mfu=None, by_origin={"a/en": float("inf")})
    lines = read_lines(tmp_path / METRICS_FILE)
    assert [line["attempt"] for line in lines] == [1, 2]
    assert lines[0] == {
        "attempt": 1, "event": "step", "step": 1, "loss": 0.5, "grad_norm": "nan", "mfu": None,
        "by_origin": {"a/en": "inf"},
    }  # fmt: skip
    assert "NaN" not in (tmp_path / METRICS_FILE).read_text()  # strict readers take each line


def test_other_ranks_write_nothing_and_do_not_read_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log, "read_lines", lambda path: pytest.fail("it was read"))
    with open_record(tmp_path, TrackingConfig(), ABOUT, writes=False) as (record, _):
        record("step", 1, loss=0.5)
    assert not (tmp_path / METRICS_FILE).exists()


class FakeRun:
    def __init__(self, log=None):
        self.rows, self.metrics, self.artifacts, self.summary, self.started = [], {}, [], {}, {}
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.started.update(values))
        self.ended = self.preempted = 0
        self.exit_codes = []
        self.settings = SimpleNamespace(mode="online")
        self._interface = SimpleNamespace(publish_artifact=self._publish)
        self.log = log or (lambda values, step, commit: self.rows.append((step, values)))

    def define_metric(self, name, **options):
        self.metrics[name] = options

    @property
    def starting_step(self):
        return len(self.rows)

    def _prepare_artifact(self, artifact, name, type, aliases):
        return artifact, aliases or ["latest"]

    def _publish(self, run, artifact, aliases, tags, **how):
        artifact.aliases, artifact.used = aliases, how["use_after_commit"]
        self.artifacts.append(artifact)

    def log_artifact(self, artifact, aliases=None):
        self._log_artifact(artifact, aliases=aliases)

    def mark_preempting(self):
        self.preempted += 1

    def finish(self, exit_code):
        self.ended += 1
        self.exit_codes.append(exit_code)


class FakeArtifact:
    def __init__(self, name, type, metadata):
        self.name, self.type, self.metadata, self.references = name, type, metadata, []

    def add_reference(self, address, name, checksum):
        assert not checksum  # no line is read
        self.references.append(address)


@pytest.fixture
def fake_wandb(monkeypatch):
    def install(run):
        started = []
        module = SimpleNamespace(
            init=lambda **options: started.append(options) or run,
            Settings=lambda **options: options,
            Artifact=FakeArtifact,
            Table=lambda columns, data, allow_mixed_types: (columns, data),
            teardown=lambda: started.append("torn down"),
        )
        monkeypatch.setitem(sys.modules, "wandb", module)
        return started

    return install


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("secret", "online")])
def test_the_mirror_sees_the_same_numbers_under_the_lines_number(tmp_path, monkeypatch, fake_wandb, key, mode):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    run = FakeRun()
    started = fake_wandb(run)
    for _ in range(2):  # a restart: rows continue, so nothing is overwritten
        with open_record(tmp_path, TrackingConfig(), ABOUT, writes=True) as (record, _):
            record("step", 1, loss=0.5, text="is not a metric", mfu=None)
    # Offline this stand-in keeps no file, so the second attempt writes the first one's row as well.
    assert run.rows[-2:] == [
        (0, {"step": 1, "attempt": 1, "train/loss": 0.5}),
        (1, {"step": 1, "attempt": 2, "train/loss": 0.5}),
    ]
    assert run.metrics["train/loss"] == {"step_metric": "step", "step_sync": False, "summary": "min"}
    assert run.summary["journal_head"] == "7:head"
    assert run.ended == 2
    assert started[0]["mode"] == mode
    assert started[0]["config"] == {
        **RECIPE.model_dump(mode="json"),
        "key": "k" * 64,
        "inputs": {item.stage: {"digest": item.digest, "path": item.path} for item in INPUTS},
    }
    assert os.environ["WANDB_DATA_DIR"].startswith(str(tmp_path))
    assert key is None or key not in (tmp_path / METRICS_FILE).read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AlteredFile("a shard"), 65), (Diverged("loss"), 76), (BudgetReached("joules"), 71), (Preempted("SIGTERM"), 75),
        (RuntimeError("a defect"), 1), (KeyboardInterrupt(), 130), (SystemExit(3), 3), (SystemExit("words"), 1),
        (StopNow(), 75),  # a signal before the first step
    ],
)  # fmt: skip
def test_a_run_ends_at_wandb_with_the_exit_code_of_its_training(tmp_path, fake_wandb, error, code):
    run = FakeRun()
    fake_wandb(run)
    for end in (error, None):

        def train(end=end):
            with open_record(tmp_path, TrackingConfig(mode="offline"), ABOUT, writes=True) as (record, _):
                record("start", 0)
                if end is not None:
                    raise end

        with pytest.raises(type(error)) if end is not None else contextlib.nullcontext():
            train()
    assert run.exit_codes == [code, 0]
    assert run.preempted == (code == Preempted.exit_code)


def test_artifacts_are_references_with_our_digests(tmp_path, fake_wandb):
    run = FakeRun()
    fake_wandb(run)
    with open_record(tmp_path, TrackingConfig(), ABOUT, writes=True) as (record, _):
        record("start", 0, device="a card", world_size=1)
        record("checkpoint", 4, path="checkpoint/ab/manifest.json", digest="c" * 64, seconds=0.1)
    assert [(artifact.type, artifact.metadata["digest"]) for artifact in run.artifacts] == [
        ("input", "d" * 64), ("input", "e" * 64), ("model", "c" * 64),
    ]  # fmt: skip
    assert run.artifacts[2].metadata["step"] == 4
    assert run.artifacts[2].references == [f"assay://checkpoint/ab/manifest.json#{'c' * 64}"]
    assert run.started == {"start": {"device": "a card"}}


def test_a_broken_mirror_never_stops_the_run(tmp_path, monkeypatch, fake_wandb, caplog):
    calls = []

    def fail(values, step, commit):
        calls.append(step)
        raise ConnectionError("gone")

    run = FakeRun(fail)
    run.finish = lambda exit_code: fail({}, -1, True)
    fake_wandb(run)
    with open_record(tmp_path, TrackingConfig(), ABOUT, writes=True) as (record, _):
        record("step", 1, loss=0.5)
        record("step", 2, loss=0.4)
    assert calls == [0, -1]  # once, and at the end
    assert caplog.text.count("gone") == 2
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    with open_record(tmp_path, TrackingConfig(), ABOUT, writes=True) as (record, _):
        record("step", 3, loss=0.3)
    assert [line["step"] for line in read_lines(tmp_path / METRICS_FILE)] == [1, 2, 3]


def test_tensorboard_that_is_not_there_is_reported_with_the_fix(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    config = TrackingConfig(mode="disabled", tensorboard=True)
    for writes in (True, False):  # every rank raises, so none waits for the first
        with (
            pytest.raises(ConfigError, match=r"pip install 'assay-pretrain\[tensorboard\]'"),
            open_record(tmp_path, config, ABOUT, writes=writes),
        ):
            pass


def test_every_number_has_a_chart_of_its_own():
    step = {
        "event": "step", "step": 9, "attempt": 1, "loss": 1.0, "lr": 2.0, "grad_norm": float("nan"), "tokens": 4,
        "mfu": None, "memory": 5, "joules": 6.0, "gradient_norms": {"embedding": 7.0, "matrices": 8.0},
        "by_origin": {"tales/en": 9.0, "tales/loss": 10.0}, "seconds": 11.0, "new_field": 12, "text": "x",
        "skipped": True, "documents": ["a"],
    }  # fmt: skip
    charts = chart_values(step)
    assert json.dumps(charts.pop("train/grad_norm")) == "NaN"
    assert charts == {
        "train/loss": 1.0, "train/lr": 2.0, "data/tokens": 4, "memory/used": 5, "energy/joules": 6.0,
        "gradient/embedding": 7.0, "gradient/matrices": 8.0, "loss/tales/en": 9.0, "loss/tales/loss": 10.0,
        "speed/seconds": 11.0, "train/new_field": 12,
    }  # fmt: skip
    validation = {
        "event": "validation", "step": 9, "attempt": 1, "loss": 1.0, "by_source": {"a": {"loss": 2.0}},
        "by_origin": {"a/en": {"loss": 3.0}},
    }  # fmt: skip
    charts = {"validation/loss": 1.0, "validation/a/loss": 2.0, "validation/a/en/loss": 3.0}
    assert chart_values(validation) == charts
    task = {"event": "task", "step": 9, "attempt": 1, "task": "blimp", "acc": 0.5, "acc_stderr": None}
    assert chart_values(task) == {"task/blimp/acc": 0.5}


def test_each_rank_has_a_line_of_its_own_as_far_as_a_chart_has_room():
    ranks = {"event": "ranks", "step": 50, "attempt": 1, "steps": 50, **spread([5.0 * n for n in range(3)], 50)}
    assert chart_values(ranks) == {
        "ranks/steps": 50, "ranks/seconds/0": 0.0, "ranks/seconds/1": 0.1, "ranks/seconds/2": 0.2,
        "ranks/seconds_least": 0.0, "ranks/seconds_median": 0.1, "ranks/seconds_greatest": 0.2, "ranks/slowest": 2,
    }  # fmt: skip
    many = chart_values({**ranks, **spread([5.0 * n for n in range(2000)], 50)})
    assert len(many) == 64 + 5
    assert many["ranks/seconds_greatest"] == 1999 / 10


@pytest.mark.parametrize(
    ("chart", "summary"),
    [
        ("train/loss", "min"),
        ("loss/tales/en", "min"),
        ("validation/a/en/loss", "min"),
        ("validation/bits_per_byte", "min"),
        ("validation/tokens", "last"),
        ("memory/peak", "max"),
        ("speed/mfu", "mean"),
        ("ranks/seconds/3", "mean"),
        ("ranks/slowest", "last"),
        ("train/lr", "last"),
    ],
)
def test_summaries(chart, summary):
    assert summary_of(chart) == summary


def test_numbers_that_are_not_finite_reach_wandb(tmp_path):
    with open_record(tmp_path, TrackingConfig(mode="offline"), ABOUT, writes=True) as (record, _):
        record("step", 1, loss=math.nan, grad_norm=math.inf, lr=-math.inf, mfu=None, by_origin={"a/en": math.nan},
               gradient_norms={r".*norm\.weight|.*\.bias": 0.25})  # fmt: skip
    [line] = read_lines(tmp_path / METRICS_FILE)
    [row] = read_offline(tmp_path).history
    assert "speed/mfu" not in row
    assert [line[name] for name in ("loss", "grad_norm", "lr")] == ["nan", "inf", "-inf"]
    assert math.isnan(float(row["train/loss"]))
    assert math.isnan(float(row["loss/a/en"]))
    assert row[r"gradient/.*norm\.weight|.*\.bias"] == 0.25
    assert (float(row["train/grad_norm"]), float(row["train/lr"])) == (math.inf, -math.inf)


def test_lines_of_two_threads_keep_their_numbers(tmp_path, fake_wandb):
    run = FakeRun()
    fake_wandb(run)
    with open_record(tmp_path, TrackingConfig(), ABOUT, writes=True) as (record, _):
        threads = [
            threading.Thread(target=lambda place=place: [record("step", place * 100 + n, loss=1.0) for n in range(50)])
            for place in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = read_lines(tmp_path / METRICS_FILE)
    assert [(number, values["step"]) for number, values in run.rows] == [
        (number, line["step"]) for number, line in enumerate(lines)
    ]
    assert len(lines) == 200


def test_training_names_the_verdict_that_let_it_through(tmp_path, monkeypatch):
    """The file may be another one by the time that the training begins."""
    given, judged = {}, hashlib.sha256(b"a signed verdict").hexdigest()
    monkeypatch.setattr(run_module, "require_verdict", lambda run, artifacts, runtime: {"file_sha256": judged})
    monkeypatch.setattr("assay.pipeline.train", lambda *arguments, **options: given.update(options))
    path = tmp_path / "verdicts" / f"{'d' * 16}-{'p' * 16}.json"
    path.parent.mkdir()
    path.write_bytes(b"what was put in its place")
    config = SimpleNamespace(recipe=RECIPE, evaluation=RECIPE.evaluation, train=RECIPE.train, optim=RECIPE.optim)
    run = SimpleNamespace(config=config, policy=SimpleNamespace(digest="p" * 64), folder=tmp_path, settings=Settings())
    tokens = SimpleNamespace(digest="d" * 64, stage="encode")
    run_module.training(run, {"encode": tokens}, SimpleNamespace(root=tmp_path, make=False))
    [verdict] = given["evidence"]
    assert (verdict.stage, verdict.path) == ("verdict", f"verdicts/{path.name}")
    assert verdict.digest == judged
