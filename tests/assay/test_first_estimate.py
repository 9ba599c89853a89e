"""The rough time of a first run: it grows with the work, and what was measured replaces it."""

import re

import pytest

from assay.config import load_run
from assay.planning import first_estimate
from assay.planning.first_estimate import expected_seconds
from governance.manifest import Manifest, write_manifest
from governance.stage import Runtime
from pretrain.distributed.process_group import Ranks

STEPS = ("ingest", "clean", "tokenizer", "audit", "train", "report")


@pytest.fixture
def expected(project, caplog, monkeypatch):
    """`expected(*overrides)`: seconds of each step in an empty root, on cores that nobody else uses."""
    monkeypatch.setattr(first_estimate.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(first_estimate, "may_have_gpu", lambda: False)
    caplog.set_level("INFO", logger="assay")
    monkeypatch.setattr(first_estimate.get_logger(""), "propagate", True)

    def seconds(*overrides):
        run = load_run(project / "run.toml", [*overrides])
        return expected_seconds(run, Runtime(project / "root"), STEPS, Ranks())

    return seconds


def test_every_step_of_a_first_run_has_a_time_that_grows_with_its_work(expected, project, caplog):
    few, many = expected("train.steps=100"), expected("train.steps=1000000")
    assert set(few) == set(STEPS)
    assert all(value > 0 for value in few.values())
    started = first_estimate._TRAINING_START
    assert (many["train"] - started) / (few["train"] - started) == pytest.approx(10_000)
    for file in project.rglob("*.jsonl"):
        file.write_bytes(file.read_bytes() * 500)
    more = expected("train.steps=100")
    assert more["clean"] > few["clean"]
    assert more["train"] == few["train"]
    assert re.search(r"first run: roughly \d+:\d\d:\d\d in all, \d", caplog.text)


def test_the_steps_of_a_parent_take_no_time(expected, project):
    """The parent made a quarter of the steps, so three quarters of the training's time remain."""
    values = {"inputs": (), "outputs": (), "stats": {}, "run": {}}
    parent = Manifest(stage="checkpoint", version=1, key="c" * 64, config={"step": 25}, **values)
    write_manifest(parent, project / "root")
    whole = expected("train.steps=100")["train"] - first_estimate._TRAINING_START
    continued = expected("train.steps=100", f"train.continue_from='{parent.folder}'")["train"]
    assert continued - first_estimate._TRAINING_START == pytest.approx(0.75 * whole)


def test_others_on_the_cores_make_a_step_longer(expected, monkeypatch):
    alone = expected()
    monkeypatch.setattr(first_estimate.os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert all(value > alone[step] for step, value in expected().items())


def test_a_gpu_has_the_forecast_of_the_dry_run(expected, monkeypatch):
    monkeypatch.setattr(first_estimate, "may_have_gpu", lambda: True)
    assert expected("train.steps=100")["train"] < expected("train.steps=100", "engine.device='cpu'")["train"]


def test_measured_steps_replace_the_estimate_and_missing_sources_end_it(expected, project, monkeypatch, caplog):
    monkeypatch.setattr(first_estimate, "earlier_seconds", lambda root, steps: {"clean": 123.0})
    assert expected()["clean"] == 123.0
    assert "first run" not in caplog.text
    for file in project.rglob("*.jsonl"):
        file.unlink()
    assert expected() == {"clean": 123.0}
