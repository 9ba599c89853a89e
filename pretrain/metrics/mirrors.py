"""Mirrors of metrics.jsonl: MLflow, Prometheus, TensorBoard.

MLflow: the run's key, a tag, names the MLflow run: a restart continues it after the last row that it has (tag
`assay.rows`, in one request with the rows). Charts have the names of `events.py`; the recipe is the run's parameters;
digests of inputs and the journal's head are tags. A thread of its own sends rows together, about every `_SECONDS`, so
that a slow server never delays a step. Optional: `pip install 'assay-pretrain[mlflow]'`.

Prometheus: the latest values, for node_exporter's textfile collector.

    # TYPE assay_train gauge
    assay_train{run="0123abcd",name="loss"} 2.31
    assay_loss{run="0123abcd",name="web/en"} 2.4
    assay_running{run="0123abcd",name=""} 1

The first part of a chart's name (`events.py`) is the metric, the rest its label `name`. The file `assay-<run>.prom` is
replaced at most each `_WRITE_SECONDS`, and at each event other than a step; `assay_running` becomes 0 when an attempt
ends, and `assay_updated_seconds` (Unix time) shows one that was killed. Format: prometheus.io/docs/instrumenting,
"Text-based format". Price: a synced write each `_WRITE_SECONDS`, several milliseconds on most disks, in the loop.

TensorBoard: a restart hides the earlier attempt's values of steps that are computed again (TensorBoard's "purge step"),
so each step shows its last attempt. Optional: `pip install 'assay-pretrain[tensorboard]'`.
"""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from governance.config import flat
from governance.errors import BudgetReached, Preempted
from governance.files import write_text
from governance.log import get_logger
from pretrain.config.training import TrackingConfig
from pretrain.metrics.events import chart_values
from pretrain.metrics.run_identity import METRICS_FILE, RunIdentity
from pretrain.metrics.tail import Follower

_SECONDS = 5.0
_FINISH_SECONDS = 30.0  # half of the minute that Slurm and the launcher leave to a rank that saves
_KEY, _ROWS = "assay.key", "assay.rows"
# Exit status -> state of the run; after one of "KILLED" the same command continues.
_STATES = {0: "FINISHED"} | dict.fromkeys((Preempted.exit_code, BudgetReached.exit_code, 128 + signal.SIGINT), "KILLED")
# Limits of a request, which may hold 1,000 items and has a tag besides the metrics, and of a parameter's value.
_MAX_METRICS, _MAX_PARAMETERS, _MAX_CHARACTERS = 999, 100, 500
_MAX_NAME = 250
_REFUSED = re.compile(r"[^\w./ -]")  # characters that MLflow refuses in names


class MlflowMirror:
    """One attempt's rows, and the thread that sends them to `tracking.mlflow`."""

    def __init__(self, folder: Path, config: TrackingConfig, identity: RunIdentity) -> None:
        self._follower = Follower(folder / METRICS_FILE)
        self._exit_code = 0
        given = (config, identity, self._follower, lambda: self._exit_code)
        self._thread = threading.Thread(target=_mirror, args=given, name="mlflow", daemon=True)
        self._thread.start()

    def show(self, number: int, line: Mapping[str, Any]) -> None:
        """Announce a line; it is read from the record."""
        self._follower.more()

    def close(self, exit_code: int) -> None:
        """Wait at most `_FINISH_SECONDS` until all rows are sent."""
        self._exit_code = exit_code
        self._follower.end()
        self._thread.join(_FINISH_SECONDS)
        if self._thread.is_alive():
            get_logger(__name__).warning("MLflow does not answer; %s has the whole record", METRICS_FILE)


def _mirror(config: TrackingConfig, identity: RunIdentity, follower: Follower, exit_code: Callable[[], int]) -> None:
    log = get_logger(__name__)
    try:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=config.mlflow)
        run, first = _open(client, config, identity)
        log.info("MLflow: run %s of experiment %s", run, config.project)
        rows, sent = first, time.monotonic()
        pending: list[Any] = []
        for number, line in follower.lines():
            if number < first:
                continue
            found = _metrics(line)
            if len(pending) + len(found) > _MAX_METRICS or time.monotonic() - sent >= _SECONDS:
                _send(client, run, pending, rows)
                sent, pending = time.monotonic(), []
            rows, pending = number + 1, pending + found
        _send(client, run, pending, rows)
        client.set_tag(run, "assay.journal", identity.head())
        client.set_terminated(run, status=_STATES.get(exit_code(), "FAILED"))
    except Exception as error:
        reason = _without_password((str(error) or repr(error)).splitlines()[0], config.mlflow)
        log.warning("MLflow failed (%s); the run continues without it", reason)


def _without_password(text: str, uri: str) -> str:
    """A text without the user and password of a URI."""
    secret = urlsplit(uri).netloc.rpartition("@")[0]
    return text.replace(f"{secret}@", "") if secret else text


def _open(client: Any, config: TrackingConfig, identity: RunIdentity) -> tuple[str, int]:
    """Id of the run, found or created, and its first missing row."""
    from mlflow.entities import Param

    settings = flat(identity.recipe.model_dump(mode="json"))
    held = [Param(_accepted(name), str(value)[:_MAX_CHARACTERS]) for name, value in settings]
    known = client.get_experiment_by_name(config.project)
    experiment = known.experiment_id if known else client.create_experiment(config.project)
    rows = 0
    for found in client.search_runs([experiment], f"tags.`{_KEY}` = '{identity.key}'", max_results=1):
        run: str = found.info.run_id
        client.update_run(run, status="RUNNING")
        rows = int(found.data.tags.get(_ROWS, 0))
        held = [one for one in held if one.key not in found.data.params]  # a kill may have left some of them out
        break
    else:
        tags = {_KEY: identity.key, "mlflow.runName": config.name or f"train-{identity.key[:8]}"}
        tags |= {"assay.tags": ",".join(config.tags), "mlflow.note.content": config.notes or ""}
        tags |= {f"assay.input.{item.stage}": item.digest for item in identity.inputs}
        run = client.create_run(experiment, tags={name: value for name, value in tags.items() if value}).info.run_id
    for at in range(0, len(held), _MAX_PARAMETERS):
        client.log_batch(run, params=held[at : at + _MAX_PARAMETERS])
    return run, rows


def _metrics(line: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = {"attempt": line["attempt"], **chart_values(line)}
    return [Metric(_accepted(chart), float(value), now, line["step"]) for chart, value in values.items()]


def _accepted(name: str) -> str:
    """A name that MLflow accepts.

    It would refuse a whole request for one that is not a plain path.
    """
    parts = ("_" if part in ("", ".", "..") else part for part in _REFUSED.sub("_", name).split("/"))
    whole = "/".join(parts)
    return whole if len(whole) <= _MAX_NAME else whole[:_MAX_NAME].rstrip("/.")


def _send(client: Any, run: str, metrics: list[Any], rows: int) -> None:
    """Send rows with their number: a kill between requests repeats none."""
    from mlflow.entities import RunTag

    *first, last = range(0, len(metrics), _MAX_METRICS) or [0]
    for at in first:  # of one row that has more metrics than a request may
        client.log_batch(run, metrics=metrics[at : at + _MAX_METRICS])
    client.log_batch(run, metrics=metrics[last:], tags=[RunTag(_ROWS, str(rows))])


_WRITE_SECONDS = 5.0


def open_prometheus(folder: Path, run: str) -> PrometheusMirror:
    """Mirror the run named `run` into a file of an existing folder.

    Raises:
        NotADirectoryError: the folder does not exist.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"tracking.prometheus = {str(folder)!r} is not a folder")
    return PrometheusMirror(folder / f"assay-{run}.prom", run)


class PrometheusMirror:
    """Latest value of each chart of one run."""

    def __init__(self, path: Path, run: str) -> None:
        self._path, self._run = path, run
        self._values: dict[str, float] = {"running": 1.0}
        self._written = -math.inf

    def show(self, number: int, line: Mapping[str, Any]) -> None:
        """Take a line's numbers; write the file when it is due."""
        self._values |= {"step": line["step"], "attempt": line["attempt"], **chart_values(line)}
        if line["event"] != "step" or time.monotonic() - self._written >= _WRITE_SECONDS:
            self._write()

    def close(self, exit_code: int) -> None:
        """Write the last values, with `assay_running` 0."""
        self._values["running"] = 0.0
        self._write()

    def _write(self) -> None:
        self._values["updated_seconds"] = time.time()
        write_text(self._path, exposition(self._values, self._run))
        self._written = time.monotonic()


def exposition(values: Mapping[str, float], run: str) -> str:
    """Values by chart as gauges in text format, one family a section."""
    families: dict[str, list[str]] = {}
    for chart, value in values.items():
        section, _, name = chart.partition("/")
        metric = f"assay_{re.sub(r'[^a-zA-Z0-9_]', '_', section)}"
        label = name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        families.setdefault(metric, []).append(f'{metric}{{run="{run}",name="{label}"}} {_number(value)}')
    lines = [line for metric, samples in families.items() for line in (f"# TYPE {metric} gauge", *samples)]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")


FOLDER = "tensorboard"
_QUEUE, _FLUSH_SECONDS = 4096, 30


class TensorboardMirror:
    """Scalars of one attempt.

    The event "start", which has the step that the run resumes from, opens the file.
    """

    def __init__(self, place: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._place = str(place)
        self._writer: Any = None

    def show(self, number: int, line: Mapping[str, Any]) -> None:
        """Write a line's numbers at its step.

        Lines before the first start are not drawn.
        """
        step = line["step"]
        if line["event"] == "start":
            self.close(0)
            self._writer = self._open(self._place, purge_step=step + 1, max_queue=_QUEUE, flush_secs=_FLUSH_SECONDS)
        if self._writer is not None:
            for chart, value in chart_values(line).items():
                self._writer.add_scalar(chart, value, step)

    def close(self, exit_code: int) -> None:
        """Write queued events."""
        if self._writer is not None:
            self._writer.close()
