"""The Weights & Biases door: metrics.jsonl as charts, artifacts by their digests.

Line `n` of metrics.jsonl is row `n` of the run's history, over all attempts: so a restart never writes over a row, and
`wandb_log.py` can compare the two. The x-axis is "step". Artifacts are references with our digest in their metadata:
no weights, no text and no file of the run is uploaded. Offline nothing leaves the machine.

Price: a millisecond of processor time a line, with the process that wandb starts beside ours; 2 ms a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.charts import chart_values, summary_of
from pretrain.config import TrackingConfig
from pretrain.tracking import About

FOLDER = "wandb"
_INIT_SECONDS = 60.0
_FINISH_SECONDS = 300.0  # without a limit, a run that has lost its network waits for ever and is never committed
_SHORT = 16


def open_wandb(folder: Path, config: TrackingConfig, about: About) -> WandbMirror:
    """Start the run's mirror in `folder`; its configuration is the recipe, and the digests of what it is made from.

    Raises:
        Exception: whatever wandb raises.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    # Read at import, and the only way to keep its staged files inside the artifact's folder.
    for variable in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        os.environ[variable] = str(place)
    os.environ.setdefault("WANDB_SILENT", "true")
    mode = config.mode
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    if mode != "online":  # read at import, too: it looks up the address of its error reports even when it is offline
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    run = wandb.init(
        project=config.project,
        name=config.name or f"train-{about.key[:8]}",
        id=about.key[:_SHORT],
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=place,
        config={
            **about.recipe.model_dump(mode="json"),
            "key": about.key,
            "inputs": {item.stage: {"digest": item.digest, "path": item.path} for item in about.inputs},
        },
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            x_disable_stats=True,  # memory, energy and speed are in our own record, with their sources
            x_save_requirements=False,
            disable_git=True,
        ),
    )
    return WandbMirror(wandb, run, about)


class WandbMirror:
    """One attempt's run at W&B."""

    def __init__(self, wandb: Any, run: Any, about: About) -> None:
        self._wandb, self._run, self._about = wandb, run, about
        self._charts: set[str] = set()
        run.define_metric("step", hidden=True)
        for item in about.inputs:
            self._refer(item.stage, "input", item.path, item.digest, {})

    def show(self, number: int, line: Mapping[str, Any]) -> None:
        """Log a line as row `number`; a checkpoint becomes an artifact, too, and a start's texts configuration."""
        values = chart_values(line)
        for chart in values.keys() - self._charts:
            # A star (in a pattern that names a group of parameters) is a wildcard to W&B, and stands at the end alone.
            name = f"{chart.partition('/')[0]}/*" if "*" in chart else chart
            self._run.define_metric(name, step_metric="step", step_sync=False, summary=summary_of(chart))
            self._charts.add(chart)
        place = {"step": line["step"], "attempt": line["attempt"]}
        self._run.log({**place, **values}, step=number, commit=True)
        if line["event"] == "checkpoint":
            self._refer("checkpoint", "model", line["path"], line["digest"], {"step": line["step"]})
        elif line["event"] == "start":
            texts = {name: value for name, value in line.items() if isinstance(value, str) and name != "event"}
            self._run.config.update({"start": texts}, allow_val_change=True)

    def _refer(self, name: str, kind: str, path: str, digest: str, about: Mapping[str, Any]) -> None:
        artifact = self._wandb.Artifact(
            f"{name}-{self._about.key[:_SHORT]}", type=kind, metadata={"digest": digest, "path": path, **about}
        )
        artifact.add_reference(f"assay://{path}#{digest}", name="manifest.json", checksum=False)
        self._run.log_artifact(artifact)

    def close(self) -> None:
        """Leave the journal's head in the summary, and end the run."""
        with contextlib.suppress(Exception):  # a broken run still has to be ended
            self._run.summary["journal_head"] = self._about.head()
        self._run.finish()
        if self._run.settings.mode == "offline":
            self._wandb.teardown()  # `finish` answers before its process has written all; this waits for that process
