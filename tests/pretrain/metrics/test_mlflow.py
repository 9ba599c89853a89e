"""MLflow mirror: charts, settings and state of a run in a local store; the record does not depend on it."""

import json
import threading
from types import SimpleNamespace

import pytest

from governance.errors import AlteredFile, BudgetReached, ConfigError, Preempted
from governance.files import append_line, read_lines
from pretrain.config.training import TrackingConfig
from pretrain.distributed import launcher
from pretrain.loss_spikes import Diverged
from pretrain.metrics import metrics_log, wandb
from pretrain.metrics import mirrors as mirror
from pretrain.metrics.metrics_log import open_record
from pretrain.metrics.run_identity import METRICS_FILE, RunIdentity
from pretrain.metrics.tail import Follower
from tests.pretrain.metrics.test_tracking import RECIPE as BASE

RECIPE = BASE.model_copy(update={"train": BASE.train.model_copy(update={"steps": 4})})


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    return mlflow.MlflowClient(tracking_uri=uri(tmp_path))


def uri(tmp_path):
    return (tmp_path / "mlflow").as_uri()


def recorded(tmp_path, *events, error=None, **settings):
    config = TrackingConfig(mode="disabled", project="lab", mlflow=uri(tmp_path), **settings)
    identity = RunIdentity(RECIPE, "0123abcd" * 8, head=lambda: "journal head")
    (tmp_path / "run").mkdir(exist_ok=True)
    with open_record(tmp_path / "run", config, identity, writes=True) as (record, _):
        for event, step, values in events:
            record(event, step, **values)
        if error:
            raise error


def steps(first, last):
    origins = {"web/en (a)": 1.5, "../a//": 2.5, "z" * 300: 3.5}
    return [("step", step, {"loss": 5.0 - step, "by_origin": origins}) for step in range(first, last + 1)]


def test_a_run_its_restart_and_its_end(tmp_path, client):
    with pytest.raises(Preempted):
        recorded(tmp_path, ("start", 0, {}), *steps(1, 2), name="first", tags=("a", "b"), error=Preempted("SIGTERM"))
    [experiment] = [one for one in client.search_experiments() if one.name == "lab"]
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "KILLED")
    assert run.data.params["train.steps"] == "4"
    assert {
        "assay.key": "0123abcd" * 8,
        "assay.journal": "journal head",
        "assay.tags": "a,b",
    }.items() <= run.data.tags.items()
    recorded(tmp_path, ("start", 2, {}), *steps(3, 4))
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    lines = [line for line in read_lines(tmp_path / "run" / METRICS_FILE) if line["event"] == "step"]
    assert [(m.step, m.value) for m in losses] == [(line["step"], line["loss"]) for line in lines]
    assert run.data.metrics["loss/web/en _a_"] == 1.5
    assert run.data.metrics["loss/_/a/_/_"] == 2.5
    assert run.data.metrics[f"loss/{'z' * 245}"] == 3.5
    assert run.data.metrics["attempt"] == 2
    ends = ((Diverged("loss"), "FAILED"), (BudgetReached("joules"), "KILLED"), (AlteredFile("a shard"), "FAILED"))
    for error, status in ends:
        with pytest.raises(type(error)):
            recorded(tmp_path, ("start", 4, {}), error=error)
        assert client.get_run(run.info.run_id).info.status == status


class Killed(BaseException):
    pass


class Server:
    """A tracking server that applies whole requests; after number `last` the process that sent it is gone."""

    def __init__(self):
        self.runs, self.sent, self.last = [], 0, None

    def __call__(self, tracking_uri):
        return self

    def _request(self):
        if self.last is not None and self.sent >= self.last:
            raise Killed
        self.sent += 1

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, experiments, query, max_results):
        return self.runs

    def create_run(self, experiment, tags):
        self._request()
        data = SimpleNamespace(tags={**tags}, params={}, metrics=[])
        self.runs.append(SimpleNamespace(info=SimpleNamespace(run_id="run"), data=data))
        return self.runs[0]

    def update_run(self, run, status):
        self._request()

    def log_batch(self, run, metrics=(), params=(), tags=()):
        assert len(metrics) + len(params) + len(tags) <= 1000
        self._request()
        held = self.runs[0].data
        held.metrics += [(metric.key, metric.step, metric.value) for metric in metrics]
        held.params |= {param.key: param.value for param in params}
        held.tags |= {tag.key: tag.value for tag in tags}

    def set_tag(self, run, key, value):
        self._request()
        self.runs[0].data.tags[key] = value

    def set_terminated(self, run, status):
        self._request()
        self.runs[0].info.status = status


def test_a_kill_between_any_two_requests_sends_no_row_twice(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setattr(mirror, "_MAX_METRICS", 4)
    monkeypatch.setattr(mirror, "_MAX_PARAMETERS", 40)
    identity = RunIdentity(RECIPE, "0123abcd" * 8, head=lambda: "journal head")
    config = TrackingConfig(mode="disabled", mlflow="http://server")
    for number in range(6):
        append_line(tmp_path / METRICS_FILE, json.dumps({"event": "step", "step": number, "attempt": 1, "loss": 0.5}))

    def mirrored(server):
        monkeypatch.setattr(mlflow, "MlflowClient", server)
        follower = Follower(tmp_path / METRICS_FILE)
        follower.end()
        mirror._mirror(config, identity, follower, lambda: 0)
        return server.runs[0]

    whole = Server()
    expected = mirrored(whole)
    assert sorted(expected.data.metrics) == sorted(
        (key, step, value) for step in range(6) for key, value in (("attempt", 1.0), ("train/loss", 0.5))
    )
    for last in range(whole.sent):
        server = Server()
        server.last = last
        with pytest.raises(Killed):
            mirrored(server)
        server.last = None
        assert mirrored(server) == expected, last


def test_a_store_that_does_not_answer_stops_no_run(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow")
    (tmp_path / "mlflow").write_text("not a folder")
    recorded(tmp_path, ("start", 0, {}), *steps(1, 2))
    assert "MLflow failed (" in caplog.text
    assert len(read_lines(tmp_path / "run" / METRICS_FILE)) == 3


@pytest.mark.parametrize("login", ["ann:s3cret", "ann:p@s3cret", "s3cret"])
def test_a_warning_lacks_the_password_of_the_uri(tmp_path, monkeypatch, caplog, login):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("tests.pretrain.metrics.test_mlflow.uri", lambda _: f"http://{login}@127.0.0.1:9")
    recorded(tmp_path, ("start", 0, {}))
    assert "MLflow failed (" in caplog.text
    assert "127.0.0.1" in caplog.text
    assert "s3cret" not in caplog.text


def test_mirrors_close_at_the_same_time_and_within_the_minute_of_a_rank(tmp_path, monkeypatch):
    """Slurm's --wait and the launcher end a rank that needs longer."""
    closing, closed = threading.Barrier(2), []

    class Slow:
        def show(self, number, line):
            pass

        def close(self, exit_code):
            closing.wait(300)  # breaks unless the other is closed meanwhile
            closed.append(self)

    monkeypatch.setattr(metrics_log, "_mirrors", lambda *_: [("one", Slow), ("two", Slow)])
    recorded(tmp_path, ("start", 0, {}))
    assert len(closed) == 2
    for seconds in (mirror._FINISH_SECONDS, wandb._FINISH_SECONDS + wandb._OFFLINE_SECONDS):
        assert seconds < launcher._SAVING_SECONDS


def test_without_the_package_the_setting_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking.mlflow is set, but the package mlflow is not installed"):
        recorded(tmp_path)
