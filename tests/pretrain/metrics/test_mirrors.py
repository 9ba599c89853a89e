"""The mirrors against the record: the output of W&B and TensorBoard, read back, must equal metrics.jsonl."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
import urllib.request

import pytest

from governance.errors import ManifestError, MissingInput
from governance.files import read_lines
from pretrain import loop
from pretrain.config.training import TrackingConfig
from pretrain.loss_spikes import Diverged
from pretrain.metrics.events import chart_values
from pretrain.metrics.metrics_log import open_record
from pretrain.metrics.wandb import ALERTS
from pretrain.metrics.wandb_reader import read_offline
from tests.pretrain.metrics.test_monitoring_page import differences
from tests.pretrain.metrics.test_tracking import ABOUT


@pytest.fixture(scope="module")
def proxy():
    """A proxy that serves no request: its address, and the requests; wandb's own process uses it, too."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        asked.append(connection.recv(200))

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory, run_training, kill_at, proxy):
    """A run that crashed at step 7 and resumed, mirrored to both; every network request meets the proxy."""
    root = tmp_path_factory.mktemp("mirrored")
    settings = {"mode": "offline", "tensorboard": True}

    def refuse(family, *given):
        raise AssertionError(f"a connection was tried: {given}")

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, "unset")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            patch.setenv(name, proxy[0])
        patch.setattr(socket, "getaddrinfo", refuse)
        kill_at(7, root, **settings)
        time.sleep(1.1)  # W&B names a run's folder by the second in which it starts
        run = run_training(root, **settings)
    return root, run, read_lines(root / run.folder / "metrics.jsonl")


def number(value):
    return float(value) if isinstance(value, str) else value


def test_offline_needs_no_network(mirrored, proxy):
    address, asked = proxy
    assert asked == []
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": address}))
    with contextlib.suppress(OSError):
        opener.open("http://example.invalid", timeout=10)
    assert asked[0].startswith(b"GET http://example.invalid")  # it would have been seen


def test_each_event_has_its_fields(mirrored):
    _, _, lines = mirrored
    assert {line["event"] for line in lines} == {"start", "step", "validation", "save", "checkpoint"}
    assert differences(lines) == []
    assert all("by_origin" in line for line in lines if line["event"] == "step")
    assert {line["attempt"] for line in lines} == {1, 2}


def leaves(value):
    """All values of a line, those of its tables too."""
    if not isinstance(value, dict):
        return [value]
    return [leaf for inner in value.values() for leaf in leaves(inner)]


def test_offline_wandb_is_the_record(mirrored):
    root, run, lines = mirrored
    runs = read_offline(root / run.folder)
    assert [row["_step"] for row in runs.history] == list(range(len(lines)))
    for line, row in zip(lines, runs.history, strict=True):
        drawn = {name: number(value) for name, value in row.items() if not name.startswith("_")}
        expected = {"step": line["step"], "attempt": line["attempt"], **chart_values(line)}
        assert drawn == expected
        numbers = [value for value in leaves(line) if isinstance(value, int | float)]
        assert sorted(drawn.values()) == sorted(numbers)  # none left out, none overwritten
    assert runs.exit_codes == [1, 0], "the crash, and the attempt that finished"


def test_offline_wandb_names_what_it_was_made_from(mirrored):
    root, run, lines = mirrored
    runs = read_offline(root / run.folder)
    assert {name: runs.config[name] for name in run.config} == run.config
    assert runs.config["key"] == run.key
    assert runs.config["inputs"]["encode"]["digest"] == run.inputs[0].digest
    assert runs.config["start"]["gemm_source"] == lines[0]["gemm_source"]
    saved = {line["digest"] for line in lines if line["event"] == "checkpoint"}
    models = [artifact for artifact in runs.artifacts if artifact["type"] == "model"]
    assert {artifact["metadata"]["digest"] for artifact in models} == saved
    assert all(
        reference[1].startswith("assay://") for artifact in runs.artifacts for reference in artifact["references"]
    )
    assert not list((root / run.folder / "wandb").rglob("*.safetensors"))
    assert runs.metrics["train/loss"] == {"step_metric": "step", "summary": ["min"]}
    last = [line["loss"] for line in lines if line["event"] == "step" and line["attempt"] == 2]
    assert runs.summary["train/loss"]["min"] == min(last)


def test_what_a_restart_computes_again_is_reported(mirrored):
    root, run, lines = mirrored
    starts = [line for line in lines if line["event"] == "start"]
    done = [line["step"] for line in lines if line["event"] == "step" and line["attempt"] == 1]
    assert [line["rolled_back"] for line in starts] == [0, max(done) - starts[1]["step"]]
    assert starts[1]["rolled_back"] > 0
    runs = read_offline(root / run.folder)
    drawn = [row["start/rolled_back"] for row in runs.history if "start/rolled_back" in row]
    assert drawn == [0, starts[1]["rolled_back"]]


def test_checkpoints_have_the_names_that_a_team_needs(mirrored):
    """The newest, each step's, and the best of the validated ones; its inputs and outputs."""
    root, run, lines = mirrored
    artifacts = read_offline(root / run.folder).artifacts
    assert {artifact["type"]: artifact["used"] for artifact in artifacts} == {"input": True, "model": False}
    names = {artifact["name"] for artifact in artifacts if artifact["type"] == "input"}
    assert names == {f"encode-{run.inputs[0].path.split('/')[1]}"}  # of the corpus, whatever is trained on it
    losses = {line["step"]: line["loss"] for line in lines if line["event"] == "validation"}
    least = math.inf
    for artifact in (artifact for artifact in artifacts if artifact["type"] == "model"):
        step = artifact["metadata"]["step"]
        assert artifact["metadata"]["validation_loss"] == losses[step]
        best = ["best"] if losses[step] < least else []
        least = min(least, losses[step])
        assert sorted(artifact["aliases"]) == sorted(["latest", f"step-{step}", *best])


def test_tensorboard_shows_each_steps_last_attempt(mirrored):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, run, lines = mirrored
    read = EventAccumulator(str(root / run.folder / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    drawn = {(tag, event.step): event.value for tag in read.Tags()["scalars"] for event in read.Scalars(tag)}
    expected = {(chart, line["step"]): value for line in lines for chart, value in chart_values(line).items()}
    assert set(drawn) == set(expected)
    for place, value in drawn.items():
        assert value == pytest.approx(expected[place], rel=1e-6), place  # its scalars are fp32


def test_a_log_that_was_altered_is_refused(mirrored, tmp_path):
    root, run, _ = mirrored
    [first, *_] = sorted((root / run.folder).rglob("*.wandb"))
    place = tmp_path / "offline-run-1" / "run.wandb"
    place.parent.mkdir()
    data = bytearray(first.read_bytes())
    place.write_bytes(data[:-3])
    assert read_offline(tmp_path).history  # a torn end is omitted
    data[len(data) // 2] ^= 1
    place.write_bytes(data)
    with pytest.raises(ManifestError, match="CRC-32"):
        read_offline(tmp_path)
    place.write_bytes(b"something else")
    with pytest.raises(ManifestError, match="does not begin"):
        read_offline(tmp_path)


def test_no_offline_run_is_missing(tmp_path):
    with pytest.raises(MissingInput):
        read_offline(tmp_path)


def test_alerts_and_system_metrics_are_in_the_run(tmp_path, run_training, monkeypatch):
    """A run that diverges: its alert and samples of this machine; neither where they are turned off."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, "unset")
    diverges = {"learning_rate": 1e30, "weight_decay": 0.0, "gradient_clipping": 0.0, "warmup_steps": 0}
    settings = {"mode": "offline", "tags": ("a", "b"), **diverges}
    starts = loop.window_starts
    for wanted in (True, False):
        for pause in (1, 4, 16, 64) if wanted else (0,):  # W&B takes its first sample in its own time

            def pausing(config, pause=pause):
                time.sleep(pause)
                return starts(config)

            monkeypatch.setattr(loop, "window_starts", pausing)
            root = tmp_path / f"{wanted} {pause}"
            with pytest.raises(Diverged):
                run_training(root, alerts=wanted, system_metrics=wanted, **settings)
            [folder] = (root / "train").glob("*")
            found = read_offline(folder / "wandb")
            if found.system:
                break
        assert [(alert["title"], alert["level"]) for alert in found.alerts] == [("Training diverged", "ERROR")] * wanted
        assert bool(found.system) == wanted
        assert found.exit_codes == [Diverged.exit_code]
        [run] = found.runs
        assert (run["job_type"], run["tags"], run["group"][:7]) == ("train", ["a", "b"], "tokens-")


@pytest.mark.parametrize(
    ("config", "tags", "notes"),
    [
        (TrackingConfig(mode="offline"), ["a", "b"], "longer"),
        (TrackingConfig(mode="offline", tags=("c",), notes="ours", alerts=False), ["c"], "ours"),
    ],
)
def test_every_event_that_alerts_reaches_wandb_and_so_do_its_variables(tmp_path, monkeypatch, config, tags, notes):
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    monkeypatch.setenv("WANDB_NOTES", "longer")
    with open_record(tmp_path, config, ABOUT, writes=True) as (record, _):
        for step, event in enumerate(ALERTS, 1):
            record(event, step, seconds=4.5)
    found = read_offline(tmp_path / "wandb")
    wanted = [(title, level) for title, level in ALERTS.values()] if config.alerts else []
    assert [(alert["title"], alert["level"]) for alert in found.alerts] == wanted
    assert all("seconds 4.5" in alert["text"] for alert in found.alerts)
    [run] = found.runs
    assert (run["tags"], run["notes"]) == (tags, notes)
