"""Batch size of each step: constant or a ramp."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pretrain.config.training import TrainConfig, gradient_accumulation_steps

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchSizes:
    """Stages of a batch-size ramp; one stage when there is no ramp."""

    steps: tuple[int, ...]
    """Steps made before each stage."""
    rows: tuple[int, ...]
    """Rows read before each stage."""
    sizes: tuple[int, ...]
    """Rows of a step in each stage."""

    def of(self, step: int) -> int:
        """Rows of optimizer step `step` (from 1)."""
        return self.sizes[self._stage(step)]

    def before(self, step: int) -> int:
        """Rows read before optimizer step `step` (from 1).

        This is the number of the step's first row.
        """
        stage = self._stage(step)
        return self.rows[stage] + (step - 1 - self.steps[stage]) * self.sizes[stage]

    def steps_of(self, places: Integers) -> Integers:
        """Steps (from 1) that read the rows of these numbers."""
        stages = np.searchsorted(self.rows, places, side="right") - 1
        steps, rows, sizes = (
            np.array(values, dtype=np.int64)[stages] for values in (self.steps, self.rows, self.sizes)
        )
        return steps + (places - rows) // sizes + 1

    def _stage(self, step: int) -> int:
        return bisect.bisect_right(self.steps, step - 1) - 1


def batch_sizes(train: TrainConfig) -> BatchSizes:
    """Batch sizes of the ramp, then `train.global_batch_size`."""
    ramp = train.batch_size_ramp
    steps = (0, *(stage.until_step for stage in ramp))
    sizes = (*(stage.global_batch_size for stage in ramp), train.global_batch_size)
    lengths = [after - before for before, after in itertools.pairwise(steps)]
    rows = itertools.accumulate((length * size for length, size in zip(lengths, sizes, strict=False)), initial=0)
    return BatchSizes(steps, tuple(rows), sizes)


def refuse_uneven(train: TrainConfig, micro_batch_size: int, world_size: int) -> None:
    """Raise unless every batch divides over ranks and micro batches.

    Raises:
        ConfigError: names the field and the fix.
    """
    for number, stage in enumerate(train.batch_size_ramp, 1):
        field = f"train.batch_size_ramp[entry {number}].global_batch_size"
        gradient_accumulation_steps(stage.global_batch_size, micro_batch_size, world_size, field)
    gradient_accumulation_steps(train.global_batch_size, micro_batch_size, world_size)
