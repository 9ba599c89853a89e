from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from governance.files import read_lines
from pretrain.config import TrackingConfig, TrainConfig, TrainRecipe
from pretrain.model_config import ModelConfig
from pretrain.optim_config import OptimConfig
from pretrain.tracking import METRICS_FILE, open_record, peak

RECIPE = TrainRecipe(
    model=ModelConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    ),
    optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(sequence_length=32, global_batch_size=8, steps=3),
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_lines_are_the_record_and_attempts_count(tmp_path):
    config = TrackingConfig(mode="disabled")
    for expected in (1, 2):
        with open_record(tmp_path, config, RECIPE, "k" * 64, writes=True) as (record, attempt):
            assert attempt == expected
            record("step", 1, loss=0.5, grad_norm=float("nan"), mfu=None)
    lines = read_lines(tmp_path / METRICS_FILE)
    assert [line["attempt"] for line in lines] == [1, 2]
    assert lines[0] == {"attempt": 1, "event": "step", "step": 1, "loss": 0.5, "grad_norm": "nan", "mfu": None}


def test_other_ranks_write_nothing(tmp_path):
    with open_record(tmp_path, TrackingConfig(), RECIPE, "k" * 64, writes=False) as (record, _):
        record("step", 1, loss=0.5)
    assert not (tmp_path / METRICS_FILE).exists()


def fake_wandb(monkeypatch, log, started: list):
    def init(**options):
        started.append(options)
        return SimpleNamespace(log=log, finish=lambda quiet: None, summary=started[-1])

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **options: options))


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("secret", "online")])
def test_the_mirror_sees_the_same_numbers(tmp_path, monkeypatch, key, mode):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    seen, started = [], []
    fake_wandb(monkeypatch, lambda values, step: seen.append((step, values)), started)
    heads = iter(["at the end"])
    kept = {"writes": True, "head": lambda: next(heads)}
    with open_record(tmp_path, TrackingConfig(), RECIPE, "k" * 64, **kept) as (record, _):
        record("step", 1, loss=0.5, source="text is no metric")
    assert started[0]["journal_head"] == "at the end"
    assert seen == [(1, {"step/loss": 0.5})]
    assert started[0]["mode"] == mode
    assert started[0]["config"] == RECIPE.model_dump(mode="json")
    assert os.environ["WANDB_DATA_DIR"].startswith(str(tmp_path))
    assert key is None or key not in (tmp_path / METRICS_FILE).read_text()


def test_a_broken_mirror_never_stops_the_run(tmp_path, monkeypatch, caplog):
    calls = []

    def fail(values, step):
        calls.append(step)
        raise ConnectionError("gone")

    fake_wandb(monkeypatch, fail, [])
    with open_record(tmp_path, TrackingConfig(), RECIPE, "k" * 64, writes=True) as (record, _):
        record("step", 1, loss=0.5)
        record("step", 2, loss=0.4)
    assert calls == [1]
    assert "gone" in caplog.text
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    with open_record(tmp_path, TrackingConfig(), RECIPE, "k" * 64, writes=True) as (record, _):
        record("step", 3, loss=0.3)
    assert [line["step"] for line in read_lines(tmp_path / METRICS_FILE)] == [1, 2, 3]


@pytest.mark.slow
def test_an_offline_run_of_the_true_service_stays_in_the_folder(tmp_path):
    with open_record(tmp_path, TrackingConfig(mode="offline"), RECIPE, "k" * 64, writes=True) as (record, _):
        record("step", 1, loss=0.5)
    assert list((tmp_path / "wandb").rglob("*.wandb"))


def test_the_peak_of_a_cpu_is_measured_and_said_so():
    found = peak(torch.device("cpu"), "fp32")
    assert found.flops_per_second > 0
    assert "measured" in found.source


@pytest.mark.parametrize(
    ("name", "flops"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12)],
)
def test_the_peak_of_a_known_card_is_its_data_sheet(monkeypatch, name, flops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak(torch.device("cuda", 0), "bf16").flops_per_second == flops


def test_the_peak_of_an_unknown_card_is_unknown(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
    assert peak(torch.device("cuda", 0), "bf16").flops_per_second is None
