"""Prometheus mirror: latest values for node_exporter's textfile collector.

    # TYPE assay_train gauge
    assay_train{run="0123abcd",name="loss"} 2.31
    assay_loss{run="0123abcd",name="web/en"} 2.4
    assay_running{run="0123abcd",name=""} 1

The first part of a chart's name (`events.py`) is the metric, the rest its label `name`. The file `assay-<run>.prom` is
replaced at most each `_SECONDS`, and at each event other than a step; `assay_running` becomes 0 when an attempt ends,
and `assay_updated_seconds` (Unix time) shows one that was killed. Format: prometheus.io/docs/instrumenting, "Text-based
format". Price: a synced write each `_SECONDS`, several milliseconds on most disks, in the loop.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from governance.files import write_text
from pretrain.metrics.events import chart_values

_SECONDS = 5.0


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
        if line["event"] != "step" or time.monotonic() - self._written >= _SECONDS:
            self._write()

    def close(self) -> None:
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
