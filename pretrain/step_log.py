"""Step log: losses, skipped steps, and the end of a diverged run.

The numbers of a step are on the device. On CPU they are read at once. On CUDA they are copied to pinned memory while
the device computes, and read one step later: so the host, which launches the kernels, never waits for the step that it
has just launched, and is at most one step ahead. `settle` reads the rest before a state is saved or validated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from governance.log import get_logger
from pretrain.checkpoint.format import TrainState
from pretrain.context import TrainContext
from pretrain.loss_spikes import Diverged, reason_of, refuse_too_many
from pretrain.step_meter import losses_by_origin

Read = Callable[[], list[float]]


class StepNumbers(NamedTuple):
    """Numbers of a step that the device computes."""

    loss: float
    z: float
    skipped: float
    """1 where the update was skipped."""
    norm: float
    """Norm of the gradient."""
    norms: list[float]
    """Norm of each parameter group's gradient."""
    expert_load: list[float]
    """One number; none without experts."""
    nats: list[float]
    """Loss sum of each origin; none where there is one origin."""
    targets: list[float]
    """Tokens predicted of each origin."""


def read_later(values: torch.Tensor) -> Read:
    """A function that reads the tensor.

    On CUDA it waits for this tensor's computation alone.
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


def read_numbers_later(
    loss: torch.Tensor,
    z: torch.Tensor,
    skipped: torch.Tensor,
    norms: torch.Tensor,
    expert_load: torch.Tensor,
    origins: torch.Tensor,
) -> Callable[[], StepNumbers]:
    """A function that reads all numbers of a step, in one copy.

    `norms` are the gradient's norm and that of each group, `origins` the nats and then the tokens of each origin.
    """
    scalars = torch.stack([loss, z, skipped.double()])
    read = read_later(torch.cat([scalars, norms.double(), expert_load.double(), origins]))
    load = 3 + len(norms)
    nats = load + len(expert_load)
    targets = nats + len(origins) // 2

    def named() -> StepNumbers:
        values = read()
        loss, z, skipped, norm = values[:4]
        parts = values[4:load], values[load:nats], values[nats:targets], values[targets:]
        return StepNumbers(loss, z, skipped, norm, *parts)

    return named


@dataclass(frozen=True)
class StepEntry:
    """A computed step whose numbers may still be on the device."""

    step: int
    rows: Sequence[int]
    """Row numbers of its global batch."""
    read: Callable[[], StepNumbers]
    values: dict[str, Any]
    """Fields of the record that the host knows already."""


class StepLog:
    """Entries that are not read yet; writes them to record and state."""

    def __init__(self, context: TrainContext, groups: Sequence[str]) -> None:
        self._context, self._groups = context, groups
        self._late = context.device.type == "cuda"
        self._open: list[StepEntry] = []
        self.latest: dict[str, Any] = {"loss": math.nan}
        """Fields of the step that was read last."""

    def add(self, state: TrainState, entry: StepEntry) -> TrainState:
        """Take a step, after `settle`.

        It returns the state with all losses read so far.

        Raises:
            Diverged: too many steps were skipped.
        """
        self._open.append(entry)
        return state if self._late else self.settle(state)

    def settle(self, state: TrainState) -> TrainState:
        """Read every entry; on CUDA this waits for the device."""
        for entry in self._open:
            state = self._write(state, entry)
        self._open = []
        return state

    def _write(self, state: TrainState, entry: StepEntry) -> TrainState:
        numbers = entry.read()
        loss = numbers.loss
        self.latest = {"loss": loss, "grad_norm": numbers.norm, **entry.values}
        self.latest["gradient_norms"] = dict(zip(self._groups, numbers.norms, strict=True))
        if numbers.expert_load:
            [self.latest["expert_load"]] = numbers.expert_load
        if numbers.nats:
            self.latest["by_origin"] = losses_by_origin(self._context.train_rows.origins, numbers.nats, numbers.targets)
        self._context.record("step", entry.step, **self.latest)
        state = replace(state, losses=state.losses.plus(loss if math.isfinite(loss) else None))
        return self._skip(state, entry, numbers) if numbers.skipped else state

    def _skip(self, state: TrainState, entry: StepEntry, numbers: StepNumbers) -> TrainState:
        loss, z, norm = numbers.loss, numbers.z, numbers.norm
        reason = reason_of(loss, norm, self._context.recipe.train.precision)
        documents = self._context.train_rows.documents_of(entry.rows)
        facts = {"reason": reason, "z": z, "rows": list(entry.rows), "documents": documents}
        self._context.record("skipped", entry.step, **facts, loss=loss, grad_norm=norm)
        get_logger(__name__).warning(
            "train: step %d is skipped: %s (loss %.4g, z %.1f, gradient norm %.4g); the weights are unchanged. Its %d "
            "documents are listed in metrics.jsonl",
            entry.step, reason, loss, z, norm, len(documents),
        )  # fmt: skip
        state = replace(state, skipped=[*state.skipped, {"step": entry.step, **facts}])
        try:
            refuse_too_many(state.skipped, entry.step, self._context.recipe.train.skip)
        except Diverged as error:
            self._context.record("diverged", entry.step, **error.facts)
            raise
        return state
