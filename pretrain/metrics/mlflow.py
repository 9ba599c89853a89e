"""MLflow mirror of metrics.jsonl.

The run's key, a tag, names the MLflow run: a restart continues it after the last row that it has (tag `assay.rows`).
Charts have the names of `events.py`; the recipe is the run's parameters; digests of inputs and the journal's head are
tags. A thread of its own sends rows together, about every `_SECONDS`, so that a slow server never delays a step.
Optional: `pip install 'assay-pretrain[mlflow]'`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from governance.config import flat
from governance.log import get_logger
from pretrain.config.training import TrackingConfig
from pretrain.metrics.events import chart_values
from pretrain.metrics.run_identity import METRICS_FILE, RunIdentity
from pretrain.metrics.tail import Follower

_SECONDS = 5.0
_FINISH_SECONDS = 30.0  # of the minute that Slurm and the launcher leave to a rank that saves
_KEY, _ROWS = "assay.key", "assay.rows"
_MOST_METRICS, _MOST_PARAMETERS, _MOST_CHARACTERS = 1000, 100, 500  # of a request, and of a parameter's value
_REFUSED = re.compile(r"[^\w./ -]")  # characters that MLflow refuses in names


class MlflowMirror:
    """One attempt's rows, and the thread that sends them to `tracking.mlflow`."""

    def __init__(self, folder: Path, config: TrackingConfig, identity: RunIdentity) -> None:
        self._follower = Follower(folder / METRICS_FILE)
        given = (config, identity, self._follower)
        self._thread = threading.Thread(target=_mirror, args=given, name="mlflow", daemon=True)
        self._thread.start()

    def show(self, number: int, line: Mapping[str, Any]) -> None:
        """Announce a line; it is read from the record."""
        self._follower.more()

    def close(self) -> None:
        """Wait at most `_FINISH_SECONDS` until all rows are sent."""
        self._follower.end()
        self._thread.join(_FINISH_SECONDS)
        if self._thread.is_alive():
            get_logger(__name__).warning("MLflow does not answer; %s is the record in any case", METRICS_FILE)


def _mirror(config: TrackingConfig, identity: RunIdentity, follower: Follower) -> None:
    log = get_logger(__name__)
    try:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=config.mlflow)
        run, first = _open(client, config, identity)
        log.info("MLflow: run %s of experiment %s", run, config.project)
        reached, diverged = 0, False
        rows, sent, pending = first, time.monotonic(), []
        for number, line in follower.lines():
            reached, diverged = max(reached, line["step"]), line["event"] == "diverged"
            if number < first:
                continue
            rows, pending = number + 1, pending + _metrics(line)
            if len(pending) >= _MOST_METRICS or time.monotonic() - sent >= _SECONDS:
                _send(client, run, pending, rows)
                sent, pending = time.monotonic(), []
        _send(client, run, pending, rows)
        client.set_tag(run, "assay.journal", identity.head())
        done = "FINISHED" if reached >= identity.recipe.train.steps else "KILLED"
        client.set_terminated(run, status="FAILED" if diverged else done)
    except Exception as error:
        reason = _without_password((str(error) or repr(error)).splitlines()[0], config.mlflow)
        log.warning("MLflow fails (%s); the run continues without it", reason)


def _without_password(text: str, uri: str) -> str:
    """A text without the user and password of a URI."""
    secret = urlsplit(uri).netloc.rpartition("@")[0]
    return text.replace(f"{secret}@", "") if secret else text


def _open(client: Any, config: TrackingConfig, identity: RunIdentity) -> tuple[str, int]:
    """Id of the run, found or created, and its first missing row."""
    from mlflow.entities import Param

    known = client.get_experiment_by_name(config.project)
    experiment = known.experiment_id if known else client.create_experiment(config.project)
    for found in client.search_runs([experiment], f"tags.`{_KEY}` = '{identity.key}'", max_results=1):
        client.update_run(found.info.run_id, status="RUNNING")
        return found.info.run_id, int(found.data.tags.get(_ROWS, 0))
    tags = {_KEY: identity.key, "mlflow.runName": config.name or f"train-{identity.key[:8]}"}
    tags |= {"assay.tags": ",".join(config.tags), "mlflow.note.content": config.notes or ""}
    tags |= {f"assay.input.{item.stage}": item.digest for item in identity.inputs}
    run: str = client.create_run(experiment, tags={name: value for name, value in tags.items() if value}).info.run_id
    settings = flat(identity.recipe.model_dump(mode="json"))
    held = [Param(_REFUSED.sub("_", name), str(value)[:_MOST_CHARACTERS]) for name, value in settings]
    for at in range(0, len(held), _MOST_PARAMETERS):
        client.log_batch(run, params=held[at : at + _MOST_PARAMETERS])
    return run, 0


def _metrics(line: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = {"attempt": line["attempt"], **chart_values(line)}
    return [Metric(_REFUSED.sub("_", chart), float(value), now, line["step"]) for chart, value in values.items()]


def _send(client: Any, run: str, metrics: list[Any], rows: int) -> None:
    for at in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run, metrics=metrics[at : at + _MOST_METRICS])
    client.set_tag(run, _ROWS, str(rows))
