"""The W&B mirror against a failing server on this machine: nothing waits for it, and nothing is lost."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from governance.files import read_lines
from governance.manifest import Input
from pretrain.config.training import TrackingConfig
from pretrain.metrics import wandb as wandb_mirror
from pretrain.metrics.events import chart_values
from pretrain.metrics.metrics_log import open_record
from pretrain.metrics.run_identity import METRICS_FILE, MirrorTable, RunIdentity
from pretrain.metrics.wandb_reader import read_offline
from tests.pretrain.metrics.test_tracking import RECIPE
from tests.pretrain.wandb_server import AWAY, BROKEN, SILENT, WELL, stand_in

KEY = itertools.count()
INPUTS = (Input(stage="encode", digest="d" * 64, path="encode/0123/manifest.json"),)
TABLE = MirrorTable(("stage", "documents"), (("ingest", 10), ("clean", None)))


@pytest.fixture
def server(monkeypatch):
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "false")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    for name in ("_INIT_SECONDS", "_FINISH_SECONDS", "_OFFLINE_SECONDS"):
        monkeypatch.setattr(wandb_mirror, name, 300.0)  # this machine may be slow
    with stand_in() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        import wandb

        wandb_mirror._tear_down(wandb)  # its process keeps the address that it was started with
        yield found
        wandb_mirror._tear_down(wandb)


@pytest.fixture
def about():
    """A run with its own name: wandb's process belongs to this one, and remains between tests."""
    return RunIdentity(
        RECIPE, f"{next(KEY):04d}{os.getpid():012d}" * 4, INPUTS, lambda: "7:head", lambda: {"data/funnel": TABLE}
    )


def train(folder, about, steps, start=0, halfway=lambda: None, mode="online"):
    """An attempt that does steps `start` + 1 to `steps`, and saves the steps that it validates."""
    with open_record(folder, TrackingConfig(mode=mode), about, writes=True) as (record, _):
        record("start", start, device="a processor")
        for step in range(start + 1, steps + 1):
            if step == (start + steps) // 2 + 1:
                halfway()
            record("step", step, loss=1.0 / step, by_origin={"a/en": 2.0 / step}, joules_per_token=0.5 * step)
            if step % 4 == 0:
                record("validation", step, loss=3.0 / step)
                record("checkpoint", step, path=f"checkpoint/{step}/manifest.json", digest=f"{step:064d}")
    return read_lines(folder / METRICS_FILE)


def same(rows, lines):
    """The rows are the record's lines: each once, in order, with every number."""
    assert [row["_step"] for row in rows] == list(range(len(lines)))
    for row, line in zip(rows, lines, strict=True):
        drawn = {name: value for name, value in row.items() if not name.startswith("_")}
        assert drawn == {"step": line["step"], "attempt": line["attempt"], **chart_values(line)}


def id_of(about):
    return about.key[:16]


def test_online_the_server_has_the_record_its_tables_and_its_graph(server, about, tmp_path):
    lines = train(tmp_path, about, 12)
    same(server.history(id_of(about)), lines)
    run = server.run(id_of(about))
    assert run["exit"] == 0
    assert run["summary"]["journal_head"] == "7:head"
    assert (run["summary"]["data/funnel"]["nrows"], run["summary"]["data/funnel"]["ncols"]) == (2, 2)
    tables = [json.loads(data) for name, data in server.files.items() if "media/table/data/funnel" in name]
    assert tables[0] == {"columns": ["stage", "documents"], "data": [["ingest", 10], ["clean", None]]}
    graph(server, about, (4, 8, 12))


def graph(server, about, steps):
    """Inputs and outputs, by digest."""
    used = {held["collection"] for held in server.artifacts if (id_of(about), held["id"]) in server.used}
    assert used == {"encode-0123"}
    made = {held["metadata"]["step"]: held for held in server.artifacts if held["type"] == "model"}
    assert sorted(made) == sorted(steps)
    for step, held in made.items():
        assert held["committed"]
        assert held["metadata"]["digest"] == f"{step:064d}"
        [entry] = server.manifests[held["id"]]["contents"].values()
        assert entry["ref"] == f"assay://checkpoint/{step}/manifest.json#{step:064d}"
        # Aliases move on: the losses fall, so the last one is the best.
        assert held["aliases"] == {f"step-{step}", *({"latest", "best"} if step == max(steps) else ())}


def test_a_restart_goes_on_with_the_same_run(server, about, tmp_path):
    train(tmp_path, about, 6)
    rows = len(server.history(id_of(about)))
    lines = train(tmp_path, about, 12, start=4)
    same(server.history(id_of(about)), lines)
    assert len(server.runs) == 1
    starts = [line for line in lines if line["event"] == "start"]
    assert [line["rolled_back"] for line in starts] == [0, 2]
    assert server.history(id_of(about))[rows]["start/rolled_back"] == 2
    graph(server, about, (4, 8, 12))


def test_a_restart_sends_what_a_kill_kept_from_the_server(server, about, tmp_path):
    train(tmp_path, about, 6)
    history = server.run(id_of(about))["history"]
    for line in sorted(history)[-3:]:
        del history[line]
    server.run(id_of(about))["summary"]["_step"] = max(history)
    lines = train(tmp_path, about, 12, start=4)
    same(server.history(id_of(about)), lines)


def waits(monkeypatch, start, end):
    monkeypatch.setattr(wandb_mirror, "_INIT_SECONDS", start)
    monkeypatch.setattr(wandb_mirror, "_FINISH_SECONDS", end)


@pytest.mark.parametrize("illness", ["refuses", SILENT, BROKEN])
def test_no_answer_at_the_start_is_reported_and_all_is_written_offline(
    server, about, tmp_path, monkeypatch, caplog, illness
):
    waits(monkeypatch, 2.0, 30.0)
    server.health = illness
    if illness == "refuses":
        server.server_close()
    lines = train(tmp_path, about, 8)
    assert server.history(id_of(about)) == []
    assert "W&B does not answer" in caplog.text
    assert "wandb sync" in caplog.text
    found = read_offline(tmp_path)
    same(found.history, lines)
    assert {artifact["used"] for artifact in found.artifacts if artifact["type"] == "input"} == {True}


@pytest.mark.slow
@pytest.mark.parametrize("illness", [AWAY, SILENT, BROKEN])
def test_what_a_server_that_dies_midway_lacks_is_written_offline(server, about, tmp_path, monkeypatch, caplog, illness):
    waits(monkeypatch, 30.0, 4.0)

    def fall_ill():
        deadline = time.monotonic() + 300
        while not server.run(id_of(about))["upserts"] and time.monotonic() < deadline:
            time.sleep(0.01)
        server.health = illness

    lines = train(tmp_path, about, 8, halfway=fall_ill)
    assert server.run(id_of(about))["upserts"]
    assert "W&B has not accepted all rows" in caplog.text
    same(read_offline(tmp_path).history, lines)
    waits(monkeypatch, 300.0, 300.0)
    server.health = WELL  # and the next attempt continues online, with all rows that the server lacks
    lines = train(tmp_path, about, 12, start=8)
    same(server.history(id_of(about)), lines)


def test_no_step_waits_for_wandb(about, tmp_path, monkeypatch):
    """The service's own calls never return; every line is written meanwhile, and closing gives up in time."""
    waits(monkeypatch, 0.5, 0.5)
    monkeypatch.setattr(wandb_mirror, "_OFFLINE_SECONDS", 0.5)
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "false")
    asked, release = threading.Event(), threading.Event()

    class Hung:
        Settings = dict

        @staticmethod
        def init(**options):
            asked.set()
            release.wait()

        @staticmethod
        def teardown():
            pass

    monkeypatch.setitem(sys.modules, "wandb", Hung)
    written = []
    with open_record(tmp_path, TrackingConfig(mode="online"), about, writes=True) as (record, _):
        assert asked.wait(300)
        for step in range(100):
            record("step", step, loss=1.0)
        written = read_lines(tmp_path / METRICS_FILE)
        assert not release.is_set()
    assert len(written) == 100
    release.set()


@pytest.mark.slow
@pytest.mark.parametrize("start", [2.0, 30.0])
def test_a_process_whose_server_is_silent_ends_by_itself_and_well(server, tmp_path, start):
    """After giving up at the start or at the end, no exit hook of wandb keeps the process or changes its status."""
    server.health = SILENT
    code = (
        "from pathlib import Path\n"
        "from pretrain.metrics import wandb as wandb_mirror\n"
        "from pretrain.metrics.run_identity import RunIdentity\n"
        "from tests.pretrain.metrics.test_tracking import RECIPE\n"
        "from tests.pretrain.metrics.test_wandb_server import train\n"
        f"wandb_mirror._INIT_SECONDS, wandb_mirror._FINISH_SECONDS = {start}, 5.0\n"
        f"train(Path({str(tmp_path)!r}), RunIdentity(RECIPE, '9' * 64), 8)\n"
        "print('trained')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    same(read_offline(tmp_path).history, read_lines(tmp_path / METRICS_FILE))


def sync(server, *folders):
    """The real `wandb sync`, as a user types it."""
    place = folders[0].parent.parent / "sync"
    place.mkdir(exist_ok=True)
    names = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")
    environment = {**os.environ, **dict.fromkeys(names, str(place)), "WANDB_BASE_URL": server.url}
    environment.pop("WANDB_SILENT", None)  # a mirror sets it
    program = Path(sys.executable).parent / "wandb"
    done = subprocess.run(
        [program, "sync", *folders], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("between", [False, True])
def test_sync_brings_everything_later(server, about, tmp_path, between):
    """Two offline attempts, uploaded in one command, or each after it ended."""
    train(tmp_path, about, 6, mode="offline")
    folders = list((tmp_path / "wandb").rglob("offline-run-*"))
    if between:
        sync(server, *folders)
        assert len(server.history(id_of(about))) == 9
    else:
        time.sleep(1.1)  # W&B names a run's folder by the second in which it starts
    asked = server.asked
    lines = train(tmp_path, about, 12, start=4, mode="offline")
    assert server.asked == asked
    output = sync(server, folders[0].parent)  # all runs that are not uploaded yet
    assert output.count("Finished syncing") == (1 if between else 2)
    same(server.history(id_of(about)), lines)
    local = read_offline(tmp_path)
    assert [row["_step"] for row in local.history] == [row["_step"] for row in server.history(id_of(about))]
    run = server.run(id_of(about))
    assert run["config"]["key"]["value"] == about.key
    assert run["config"]["start"]["value"] == {"device": "a processor"}
    assert run["summary"]["train/loss"]["min"] == min(line["loss"] for line in lines if line["event"] == "step")
    assert run["summary"]["journal_head"] == "7:head"
    graph(server, about, (4, 8, 12))


def test_a_run_that_ends_before_the_server_answered_is_written_offline_with_one_warning(
    server, about, tmp_path, monkeypatch, caplog
):
    waits(monkeypatch, 30.0, 3.0)
    server.health = SILENT
    lines = train(tmp_path, about, 2)
    same(read_offline(tmp_path).history, lines)
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING and "W&B" in record.message]
    assert len(warned) == 1
