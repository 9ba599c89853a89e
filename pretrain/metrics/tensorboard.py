"""TensorBoard mirror of metrics.jsonl.

A restart hides the earlier attempt's values of steps that are computed again (TensorBoard's "purge step"), so each step
shows its last attempt. Optional: `pip install 'assay-pretrain[tensorboard]'`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.metrics.events import chart_values

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
            self.close()
            self._writer = self._open(self._place, purge_step=step + 1, max_queue=_QUEUE, flush_secs=_FLUSH_SECONDS)
        if self._writer is not None:
            for chart, value in chart_values(line).items():
                self._writer.add_scalar(chart, value, step)

    def close(self) -> None:
        """Write what is queued."""
        if self._writer is not None:
            self._writer.close()
