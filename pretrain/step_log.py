"""Step log: losses, skipped steps, verdict on divergence.

The numbers of a step are on the device. On CPU they are read at once. On CUDA they are copied to pinned memory beside
the computation and read one step later, so that the host, which launches a step's kernels, never waits for the step
that it has just launched; it is one step ahead of the device at most. `settle` reads what is left, before a state is
saved, validated or given back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from governance.log import get_logger
from pretrain.checkpoint.format import TrainState
from pretrain.context import Job
from pretrain.loss_spikes import Diverged, reason_of, refuse_too_many
from pretrain.step_meter import losses_by_origin

Read = Callable[[], list[float]]


def read_later(values: torch.Tensor) -> Read:
    """A function that gives the tensor's numbers.

    On CUDA it waits for no more than this tensor's own computation.
    """
    if values.device.type != "cuda":
        return values.tolist
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return pinned.tolist()

    return read


@dataclass(frozen=True)
class Entry:
    """A step that was computed."""

    step: int
    rows: Sequence[int]
    """Numbers of the rows of its global batch."""
    read: Read
    """loss, z, skipped (1), the gradient's norm, that of each group, then nats and tokens of each origin."""
    values: dict[str, Any]
    """What the host knows: goes into the record as it is."""


class Ledger:
    """The entries that are not read yet, and where they go."""

    def __init__(self, job: Job, groups: Sequence[str]) -> None:
        self._job, self._groups = job, groups
        self._late = job.device.type == "cuda"
        self._open: list[Entry] = []
        self.told: dict[str, Any] = {"loss": math.nan}
        """The values of the step that was read last."""

    def add(self, state: TrainState, entry: Entry) -> TrainState:
        """Take a step; `settle` the one before first.

        Returns the state with all losses read so far.

        Raises:
            Diverged: too much was skipped.
        """
        self._open.append(entry)
        return state if self._late else self.settle(state)

    def settle(self, state: TrainState) -> TrainState:
        """Read every entry; on CUDA this waits for the device."""
        for entry in self._open:
            state = self._write(state, entry)
        self._open = []
        return state

    def _write(self, state: TrainState, entry: Entry) -> TrainState:
        loss, z, skipped, norm, *rest = entry.read()
        norms, divided = rest[: len(self._groups)], rest[len(self._groups) :]
        self.told = {"loss": loss, "grad_norm": norm, **entry.values}
        self.told["gradient_norms"] = dict(zip(self._groups, norms, strict=True))
        if divided:
            half = len(divided) // 2
            self.told["by_origin"] = losses_by_origin(self._job.train_rows.origins, divided[:half], divided[half:])
        self._job.record("step", entry.step, **self.told)
        state = replace(state, losses=state.losses.plus(loss if math.isfinite(loss) else None))
        return self._skip(state, entry, loss, z, norm) if skipped else state

    def _skip(self, state: TrainState, entry: Entry, loss: float, z: float, norm: float) -> TrainState:
        reason = reason_of(loss, norm, self._job.recipe.train.precision)
        documents = self._job.train_rows.documents_of(entry.rows)
        told = {"reason": reason, "z": z, "rows": list(entry.rows), "documents": documents}
        self._job.record("skipped", entry.step, **told, loss=loss, grad_norm=norm)
        get_logger(__name__).warning(
            "train: step %d is left out: %s (loss %.4g, z %.1f, gradient norm %.4g); weights stay as they were. Its %d "
            "documents stand in metrics.jsonl",
            entry.step, reason, loss, z, norm, len(documents),
        )  # fmt: skip
        state = replace(state, skipped=[*state.skipped, {"step": entry.step, **told}])
        try:
            refuse_too_many(state.skipped, entry.step, self._job.recipe.train.skip)
        except Diverged as verdict:
            self._job.record("diverged", entry.step, **verdict.facts)
            raise
        return state
