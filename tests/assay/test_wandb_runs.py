"""W&B offline, as its users know it: data and gate as separate runs, alerts, variables, and a sweep's agent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from assay import wandb_runs
from assay.cli.main import main
from assay.cli.run_commands import load, sweep_overrides
from assay.config import load_run
from governance.errors import ConfigError
from governance.gate.verdict import Keyring
from governance.stage import Runtime
from governance.verification import verify_root
from pretrain.config.training import TrackingConfig
from pretrain.metrics.wandb import FinishedRun, _options, mode_of, show_finished
from pretrain.metrics.wandb_reader import read_offline
from tests.altered_files import flip
from tests.governance.attacked import FAILS, demand, only, prepare, words_of
from tests.pretrain.wandb_server import stand_in


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_run_that_the_gate_stopped_appears_and_alerts(tmp_path):
    folder = prepare(tmp_path / "project", checked=False)
    demand(folder, FAILS)
    offline = ("--set", 'tracking.mode="offline"', "--set", 'tracking.entity="lab"', "--set", 'tracking.tags=["first"]')
    check = ["governance", "check", *words_of(folder), *offline]
    assert main(check) == 77
    root = folder / "root"
    found = read_offline(root / "wandb")
    runs = {run["job_type"]: run for run in found.runs}
    assert set(runs) == {"data", "gate"}
    assert runs["data"]["group"] == runs["gate"]["group"] == runs["data"]["name"].replace("data-", "tokens-")
    assert all((run["entity"], run["project"], run["tags"]) == ("lab", "assay", ["first"]) for run in runs.values())
    assert found.summary["gate/verdict"] == "BLOCK"
    assert found.summary["gate/open"] == 0.0
    assert found.summary["data/funnel"]["nrows"] > 3
    [alert] = found.alerts
    assert (alert["title"], alert["level"]) == ("Gate closed", "ERROR")
    assert "sources.few failed (owner: " in alert["text"]
    assert main(check) == 77
    assert len(read_offline(root / "wandb").runs) == 2  # the same decision is shown once
    loaded = load_run(folder / "run.toml", [])
    assert [
        line for line in verify_root(root, Keyring(loaded.config.governance, folder)).problems if "wandb" in line
    ] == []


def test_files_that_were_altered_after_the_verdict_alert(tmp_path):
    """The gate was open when it was checked; the start of training finds what was altered."""
    folder = prepare(tmp_path / "project")
    results, shard = only(folder, "audit/*/results.json"), only(folder, "encode/*/train/000000-tales.tokens")
    train = ["train", *words_of(folder), "--set", 'tracking.mode="offline"']
    for altered, status in ((results, 77), (shard, 65)):
        flip(altered)
        assert main(train) == status
        assert main(train) == status  # the same cause is shown once
        flip(altered)
    found = read_offline(folder / "root" / "wandb")
    assert [run["job_type"] for run in found.runs] == ["gate", "gate"]
    assert (found.summary["gate/verdict"], found.summary["gate/open"]) == ("CLOSED", 0.0)
    assert [(alert["title"], alert["level"]) for alert in found.alerts] == [("Gate closed", "ERROR")] * 2
    named = sorted(alert["text"] for alert in found.alerts)
    assert any(results.name in text for text in named)
    assert any(shard.name in text for text in named)
    loaded = load_run(folder / "run.toml", [])
    problems = verify_root(folder / "root", Keyring(loaded.config.governance, folder)).problems
    assert [line for line in problems if "/wandb/" in line] == []


def test_reasons_are_words_and_the_alert_has_those_that_close(monkeypatch, tmp_path):
    reason = {
        "gate": "pii.rate", "subject": "encode", "status": "fail", "severity": "critical", "owner": "privacy",
        "detail": "0.2 > 0.1", "waived": False, "closes": True,
    }  # fmt: skip
    shown = {**reason, "gate": "bias.gap", "severity": "warning", "closes": False}
    verdict = {"verdict": "BLOCK", "policy": {}, "audit": {}, "reasons": [reason, shown]}
    finished = []
    monkeypatch.setattr(wandb_runs, "mirror_tables", lambda *given: {})
    monkeypatch.setattr(wandb_runs, "show_finished", lambda *given: bool(finished.extend(given[-1])))
    run = SimpleNamespace(config=SimpleNamespace(tracking=TrackingConfig()))
    tokens = SimpleNamespace(digest="c" * 64, path="encode/c")
    wandb_runs.show_data_and_gate(run, {"encode": tokens}, verdict, Runtime(tmp_path), None)
    words = "pii.rate failed (owner: privacy): 0.2 > 0.1 [encode]"
    _, gate = finished
    assert gate.alert == f"BLOCK: {words}"
    table = gate.summary["gate/reasons"]
    assert table.rows == [(words,), ("bias.gap failed (cannot block, owner: privacy): 0.2 > 0.1 [encode]",)]


@pytest.mark.parametrize("torn", [b"", b'["a', b"3", b"\xff"])
def test_a_torn_list_of_shown_runs_is_a_warning(tmp_path, caplog, torn):
    (tmp_path / "shown.json").write_bytes(torn)
    new = FinishedRun("data", "data-1", "a" * 64, {}, {})
    assert not show_finished(tmp_path, TrackingConfig(mode="offline"), "tokens-1", [new])
    assert re.search(rf"{tmp_path}/shown\.json cannot be read \(.*\); remove it", caplog.text)


def test_what_the_file_leaves_open_is_w_and_bs_variable(monkeypatch):
    ours = {"job_type": "train", "name": "train-1", "id": "abc", "group": "tokens-1", "project": "assay"}
    options = ("train", "train-1", "abc", "tokens-1")
    assert _options(TrackingConfig(), *options) == {"reinit": "create_new", **ours}
    for name in ("PROJECT", "NAME", "RUN_GROUP", "JOB_TYPE", "ENTITY"):
        monkeypatch.setenv(f"WANDB_{name}", "theirs")
    assert _options(TrackingConfig(), *options) == {"reinit": "create_new", "id": "abc"}
    fixed = _options(TrackingConfig(project="p", group="g", entity="e", notes="n"), *options)
    assert fixed == {"reinit": "create_new", "id": "abc", "project": "p", "group": "g", "entity": "e", "notes": "n"}
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert "id" not in _options(TrackingConfig(), *options)  # the agent has chosen it


def test_the_mode_is_the_files_then_the_variables_then_the_logins(monkeypatch, tmp_path):
    assert mode_of(TrackingConfig()) == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert mode_of(TrackingConfig()) == "online"  # after `wandb login`
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.example")
    assert mode_of(TrackingConfig()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert mode_of(TrackingConfig()) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode_of(TrackingConfig()) == "disabled"
    assert mode_of(TrackingConfig(mode="offline")) == "offline"


@pytest.mark.slow
def test_the_sweep_of_the_page_trains_under_wandbs_own_agent(tmp_path):
    """Two trials that a server hands out; each is a run of its own, in which --set overrides the agent's parameter."""
    folder = prepare(tmp_path / "project")
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(# sweep\.yaml.*?)```", page, re.S)
    sweep = yaml.safe_load(text)
    sweep["command"] += ["--root", "root", "--set", "train.steps=4", "--set", "train.validate_every_steps=2"]
    sweep["command"] += ["--set", 'tracking.mode="online"']
    environment = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    with stand_in() as server:
        server.sweep = yaml.safe_dump(sweep)
        rates = {"first": 0.004, "second": 0.002}
        for run, rate in rates.items():
            given = {"optim.learning_rate": rate, "optim.weight_decay": 0.0, "train.steps": 9}
            args = {name: {"value": value} for name, value in given.items()}
            assert set(sweep["parameters"]) < set(args)
            server.trials.append({"type": "run", "run_id": run, "program": "assay", "args": args})
        bins = str(Path(sys.executable).parent)
        environment |= {
            "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "PATH": f"{bins}{os.pathsep}{environment['PATH']}",
            "WANDB_DIR": str(tmp_path), "WANDB_ERROR_REPORTING": "false",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "agent", "team/assay/sweep"],
            capture_output=True, text=True, cwd=folder, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert set(server.runs) == set(rates), done.stdout + done.stderr
        for run, rate in rates.items():
            found = server.runs[run]
            assert found["exit"] == 0, done.stderr
            assert found["config"]["optim"]["value"]["learning_rate"] == rate
            assert found["config"]["train"]["value"]["steps"] == 4
            assert [row["step"] for row in server.history(run) if "train/loss" in row] == [1, 2, 3, 4]
            assert sum(sweep["metric"]["name"] in row for row in server.history(run)) == 2
    assert len(list((folder / "root" / "train").iterdir())) == 2


def test_a_sweeps_parameters_are_settings_below_those_of_set(monkeypatch, tmp_path, project):
    path = tmp_path / "parameters.yaml"
    path.write_text("wandb_version: 1\noptim.learning_rate: {value: 0.004}\noptim.schedule: {value: wsd}\n"
                    "train.skip.most_skips: {value: 3}\n")  # fmt: skip
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
    own = ["train.skip.most_skips=5"]
    given = SimpleNamespace(config=project / "run.toml", root=Path("root"), overrides=own, data_workers=1)
    config = load(given, "train")[0].config
    found = (config.optim.learning_rate, config.optim.schedule, config.train.skip.most_skips)
    assert found == (0.004, "wsd", 5)


def test_a_sweeps_file_that_is_none_is_refused(monkeypatch, tmp_path):
    assert sweep_overrides() == []
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"none\.yaml: is not a sweep's parameter file"):
        sweep_overrides()
