"""A profile of some steps: learning does not change, failures are reported, and other steps cost nothing."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from pretrain import profiler
from pretrain.config.training import ProfileConfig
from tests.pretrain.rank_runs import run_ranks

LENGTH = {"steps": 6, "validate_every_steps": 0, "every_steps": 6, "warmup_steps": 0, "decay_steps": 0}


def record_of(root, name="profile"):
    [path] = root.glob("train/*/metrics.jsonl")
    return [line for line in map(json.loads, path.read_text().splitlines()) if line["event"] == name]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory, run_training):
    root = tmp_path_factory.mktemp("profiled")
    config = ProfileConfig(from_step=3, steps=2, record_shapes=True, memory=True)
    return root, run_training(root, profile=config, **LENGTH)


def test_the_given_steps_are_traced_and_nothing_else(profiled):
    root, manifest = profiled
    [line] = record_of(root)
    assert (line["first"], line["step"], line["attempt"]) == (3, 4, 1)
    path = root / line["path"]
    assert path.name == "step-000003-000004.attempt-000001.rank-00000.trace.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name", "")).startswith("ProfilerStep")}
    assert len(steps) == 2  # after one of warm-up, which is not kept
    assert line["path"].startswith(f"{manifest.folder}/profile/")


def test_the_table_holds_the_products_of_the_model_and_adds_up(profiled):
    root, _ = profiled
    [line] = record_of(root)
    table = json.loads((root / line["path"].replace(".trace.json.gz", ".operators.json")).read_bytes())
    rows = table["operators"]
    assert table["time"] == line["time"] == "operators on the CPU"
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert line["top"] == rows[: profiler.TOP]
    assert line["seconds"] == pytest.approx(sum(row["seconds"] for row in rows) / 2)
    products = [row for row in rows if row["name"] in ("aten::mm", "aten::addmm", "aten::bmm")]
    assert len({row["shapes"] for row in products}) > 1
    assert any(row["bytes"] > 0 for row in rows)
    assert all(row["calls"] % 2 == 0 for row in products)  # of two equal steps


def test_what_is_learned_does_not_change(profiled, tmp_path, run_training, losses_of):
    root, manifest = profiled
    assert losses_of(run_training(tmp_path, **LENGTH), tmp_path) == losses_of(manifest, root)
    assert record_of(tmp_path) == []
    assert not list(tmp_path.glob("train/*/profile"))


def test_on_cuda_kernels_are_listed_and_not_the_operators_that_launched_them():
    def event(key, device, self_cpu, self_device, note=False):
        return SimpleNamespace(
            key=key, device_type=device, count=2, self_cpu_time_total=self_cpu, self_device_time_total=self_device,
            self_cpu_memory_usage=0, self_device_memory_usage=0, is_user_annotation=note, input_shapes=None,
        )  # fmt: skip

    events = [
        event("aten::mm", DeviceType.CPU, 50.0, 3e6),
        event("gemm_kernel", DeviceType.CUDA, 0.0, 3e6),
        event("softmax_kernel", DeviceType.CUDA, 0.0, 1e6),
        event("ProfilerStep#3", DeviceType.CUDA, 0.0, 9e6),
        event("a range of ours", DeviceType.CUDA, 0.0, 9e6, note=True),
    ]
    kind, rows = profiler.operators(events, "cuda")
    assert kind == "kernels of the device"
    assert [(row["name"], row["seconds"], row["share"]) for row in rows] == [
        ("gemm_kernel", 3.0, 0.75), ("softmax_kernel", 1.0, 0.25)
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["_open", "_write"])
def test_a_profiler_that_fails_is_a_warning(tmp_path, run_training, monkeypatch, caplog, place):
    def fail(self):
        raise RuntimeError("no counters here")

    monkeypatch.setattr(profiler.Profile, place, fail)
    with caplog.at_level(logging.WARNING):
        manifest = run_training(tmp_path, profile=ProfileConfig(from_step=2, steps=1), **LENGTH)
    assert manifest.stats["steps"] == LENGTH["steps"]
    assert [output for output in caplog.messages if "no counters here" in output] != []
    assert not torch.autograd._profiler_enabled()


def test_steps_outside_the_window_never_touch_the_profiler(tmp_path, run_training, monkeypatch):
    """Other ranks' profiles, and those of a run that is resumed after the window, too."""
    monkeypatch.setattr(profiler.Profile, "_open", lambda self: pytest.fail("it was opened"))
    for number, config in enumerate((ProfileConfig(), ProfileConfig(from_step=2, ranks=(1,)),
                                     ProfileConfig(from_step=7))):  # fmt: skip
        run_training(tmp_path / str(number), profile=config, **LENGTH)


@pytest.mark.parametrize("fault", [None, "_open", "_write"])
def test_every_rank_makes_the_same_heartbeats(monkeypatch, fault):
    """The number of heartbeats shows which rank caused a hang."""
    session = SimpleNamespace(start=lambda: None, step=lambda: None, stop=lambda: None)
    made = {"_open": lambda self: session, "_write": lambda self: None}
    for name, function in made.items():
        monkeypatch.setattr(profiler.Profile, name, (lambda self: 1 // 0) if name == fault else function)
    beats = []
    for rank in (0, 1):
        context = SimpleNamespace(
            settings=SimpleNamespace(profile=ProfileConfig(from_step=3, steps=2)), ranks=SimpleNamespace(rank=rank),
            recipe=SimpleNamespace(train=SimpleNamespace(steps=6)), device=torch.device("cpu"),
        )  # fmt: skip
        of_rank = []
        with profiler.open_profile(context, 0, lambda phase: contextlib.nullcontext(), of_rank.append) as profile:
            for step in range(1, 7):
                profile.begin(step)
                of_rank.append(f"step {step}")
                profile.end(step)
        beats.append(of_rank)
    assert beats[0] == beats[1]
    assert "profile of step 4" in beats[1]


def test_a_window_that_is_cut_short_is_stopped(tmp_path, run_training, kill_at):
    kill_at(4, tmp_path, profile=ProfileConfig(from_step=3, steps=3), **LENGTH)
    assert not torch.autograd._profiler_enabled()
    assert record_of(tmp_path) == []
    run_training(tmp_path, profile=ProfileConfig(from_step=3, steps=3), **LENGTH)
    assert [(line["first"], line["step"], line["attempt"]) for line in record_of(tmp_path)] == [(3, 5, 2)]


RANKS = """
import pathlib
from pretrain.config.training import ProfileConfig
from tests.pretrain.rank_runs import run_ranks
from tests.pretrain.rank_runs import load_conftest
config = ProfileConfig(from_step=2, steps=2, ranks=(1, 0, 9))
load_conftest()._run_training(pathlib.Path({root!r}), profile=config, zero_stage=2, precision="bf16", **{length!r})
"""


@pytest.mark.slow
def test_each_listed_rank_writes_its_own_and_the_first_one_records(tmp_path):
    root = tmp_path / "root"
    well, output = run_ranks(tmp_path / "logs", ["-c", RANKS.format(root=str(root), length=LENGTH)], 2)
    assert well, output[-4000:]
    names = sorted(path.name for path in root.glob("train/*/profile/*"))
    stem = "step-000002-000003.attempt-000001.rank-0000"
    assert names == [f"{stem}{rank}.{kind}" for rank in (0, 1) for kind in ("operators.json", "trace.json.gz")]
    [line] = record_of(root)
    assert line["path"].endswith(f"{stem}0.trace.json.gz")
