"""Sampler: rows of each step from (seed, step, recipe).

Row `n` of the run (n counts from 0 over all epochs) is row `permute(n mod N)` of the corpus, where the permutation
depends on the seed and the epoch n div N: each epoch shows every row exactly once. With a mixture it is the next row of
the source that is due (`mixture.py`). A step reads the next rows, as many as its batch holds (`batch_size.py`). Ranks,
micro batches and restarts have no influence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pretrain.config.training import TrainConfig
from pretrain.data.batch_size import BatchSizes, batch_sizes
from pretrain.data.mixture import Mixture, mix, read_late
from pretrain.data.permutation import permute, places_of

if TYPE_CHECKING:
    from pretrain.data.dataset import Rows

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowSampler:
    """Rows that a run reads in each step."""

    count: int
    """Rows of the corpus."""
    seed: int
    sizes: BatchSizes
    mixture: Mixture | None = None

    def rows(self, step: int) -> list[int]:
        """Rows of optimizer step `step` (from 1), ordered by micro batch."""
        first = self.sizes.before(step)
        return self.between(first, first + self.sizes.of(step)).tolist()

    def between(self, first: int, stop: int) -> Integers:
        """Row numbers in the corpus of rows [first, stop) of the run."""
        if self.mixture is not None:
            return self.mixture.rows(first, stop)
        parts = []
        while first < stop:
            epoch, begin = divmod(first, self.count)
            end = min(self.count, begin + stop - first)
            parts.append(permute(np.arange(begin, end, dtype=np.uint64), self.count, self.seed, epoch))
            first += end - begin
        return np.concatenate(parts).astype(np.int64)

    def steps_that_read(self, rows: Integers, last_step: int) -> list[int]:
        """Steps up to `last_step` that read one of these rows.

        Counted from 1, with one entry per reading.
        """
        read = self.sizes.before(last_step + 1)
        if self.mixture is not None:
            places = self.mixture.places_of(rows, read)
        else:
            epochs = range(-(-read // self.count) if len(rows) and self.count else 0)
            parts = [
                epoch * self.count + places_of(rows.astype(np.uint64), self.count, self.seed, epoch).astype(np.int64)
                for epoch in epochs
            ]
            places = np.concatenate([np.zeros(0, np.int64), *parts])
        return sorted(self.sizes.steps_of(places[places < read]).tolist())


def sampler_of(rows: Rows, train: TrainConfig) -> RowSampler:
    """Sampler of a run over these rows.

    Raises:
        ConfigError: the mixture names a source that has no row.
    """
    sizes = batch_sizes(train)
    mixture = mix(train, rows.sources(), sizes) if train.mixture else None
    if train.late_sources and mixture is None:
        mixture = read_late(train, rows.count, rows.holding_sources(train.late_sources), sizes)
    return RowSampler(rows.count, train.seed, sizes, mixture)


def weights_in_use(rows: Rows, train: TrainConfig) -> list[dict[str, Any]]:
    """Share of each source in each phase, rounding included."""
    mixture = sampler_of(rows, train).mixture
    weights = mixture.weights() if mixture is not None else {}
    return [{"from_step": step, "weights": shares} for step, shares in weights.items()]
