"""Source of each row under `[[train.mixture]]`, in closed form.

A *phase* has constant weights. They become integer parts of at most `PARTS` in total (finer weights are rounded, and
the weights in use are recorded), so the sources repeat with a period: the table of one period gives the source of any
row, and how many rows of each source come before it. Within a period the sources are ordered by the method of Tijdeman
("The chairman assignment problem", Discrete Mathematics 32, 1980): of the sources that are behind, the one with the
earliest deadline. So at every row of a phase each source is less than one row away from its weight.

Row k of a source is row `permute(k mod n)` of its n rows in epoch k div n: each epoch shows each of its rows once, and
after a change of weights a source continues where it was.

Price: the table of one period per phase, built at the start (0.1 s where it is long); 8 bytes for each run of rows of
one source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from governance.errors import ConfigError
from pretrain.config.training import TrainConfig
from pretrain.data.batch_size import BatchSizes
from pretrain.data.permutation import permute, places_of

PARTS = 10_000  # weights are exact to a hundredth of a percent

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MixtureSource:
    """Rows of one source, as runs of consecutive row numbers."""

    name: str
    firsts: Integers
    """[runs], the first row of each, ascending."""
    before: Integers
    """[runs + 1], rows of the source before each run, then their total."""

    @property
    def count(self) -> int:
        """Number of its rows."""
        return int(self.before[-1])

    def rows(self, indices: Integers) -> Integers:
        """Row numbers for these indices into the source (from 0, below `count`)."""
        runs = np.searchsorted(self.before, indices, side="right") - 1
        return self.firsts[runs] + indices - self.before[runs]

    def indices(self, rows: Integers) -> Integers:
        """Indices of the given rows that belong to the source."""
        if not self.count:
            return rows[:0]
        runs = np.searchsorted(self.firsts, rows, side="right") - 1
        within = rows - self.firsts[runs]
        own = (runs >= 0) & (within < np.diff(self.before)[runs])
        return (self.before[runs] + within)[own]


def sources_of(names: Sequence[str], numbers: npt.NDArray[np.integer]) -> tuple[MixtureSource, ...]:
    """Sources, given the source number of every row."""
    firsts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
    lengths = np.diff(np.append(firsts, len(numbers)))
    owners = numbers[firsts]
    return tuple(
        MixtureSource(name, firsts[owners == number], np.append(0, np.cumsum(lengths[owners == number])))
        for number, name in enumerate(names)
    )


def whole_parts(weights: Mapping[str, float]) -> dict[str, int]:
    """Integer weights without common divisor, at most `PARTS` in all.

    Exact where such parts exist; else the largest remainders are rounded up.
    """
    shares = {name: Fraction(str(weight)) for name, weight in weights.items() if weight > 0.0}
    total = sum(shares.values())
    shares = {name: share / total for name, share in shares.items()}
    divisor = math.lcm(*(share.denominator for share in shares.values()))
    if divisor <= PARTS:
        return {name: int(share * divisor) for name, share in shares.items()}
    parts = {name: max(1, int(share * PARTS)) for name, share in shares.items()}
    rest = PARTS - sum(parts.values())
    if rest < 0:  # the smallest were raised to one part: the largest gives way
        parts[max(parts, key=lambda name: parts[name])] += rest
    by_remainder = sorted(shares, key=lambda name: (-(shares[name] * PARTS % 1), name))
    for name in by_remainder[: max(rest, 0)]:
        parts[name] += 1
    common = math.gcd(*parts.values())
    return {name: part // common for name, part in parts.items()}


def assign_sources(parts: Integers) -> Integers:
    """Source of each row of one period, by Tijdeman's method.

    The shape is [sum of parts].
    """
    chosen = np.zeros(int(parts.sum()), dtype=np.int64)
    some = np.flatnonzero(parts)
    if len(some) == 1:
        chosen[:] = some[0]
        return chosen
    shares, period, scale = parts[some], len(chosen), 2 * len(some) - 2
    counts = np.zeros(len(some), dtype=np.int64)
    for place in range(period):
        behind = scale * (shares * (place + 1) - counts * period) >= period
        deadlines = np.where(behind, ((counts + 1) * scale - 1) / shares, np.inf)
        best = int(deadlines.argmin())
        chosen[place] = some[best]
        counts[best] += 1
    return chosen


@dataclass(frozen=True)
class Phase:
    """Constant weights from a row of the run on."""

    first_step: int
    first: int
    """Rows of the run before it."""
    parts: Integers
    """[sources], rows of each source in a period."""
    chosen: Integers
    """[period], source of each row."""
    ranks: Integers
    """[period], rows of the same source earlier in the period."""
    places: tuple[Integers, ...]
    """Places of each source in the period, ascending."""
    before: Integers
    """[sources], rows of each source read before the phase."""

    def read(self, rows: int) -> Integers:
        """Rows of each source before row `rows` of the phase."""
        periods, within = divmod(rows, len(self.chosen))
        return self.before + periods * self.parts + np.bincount(self.chosen[:within], minlength=len(self.parts))


@dataclass(frozen=True)
class Mixture:
    """The sources and the phases of a run."""

    sources: tuple[MixtureSource, ...]
    phases: tuple[Phase, ...]
    seed: int

    def rows(self, first: int, stop: int) -> Integers:
        """Row numbers in the corpus of rows [first, stop) of the run."""
        starts = [phase.first for phase in self.phases] + [stop]
        parts = [
            self._rows(phase, max(first, phase.first), min(stop, after))
            for phase, after in zip(self.phases, starts[1:], strict=True)
            if phase.first < stop and after > first
        ]
        return np.concatenate(parts)

    def _rows(self, phase: Phase, first: int, stop: int) -> Integers:
        periods, within = np.divmod(np.arange(first, stop, dtype=np.int64) - phase.first, len(phase.chosen))
        owners = phase.chosen[within]
        indices = phase.before[owners] + periods * phase.parts[owners] + phase.ranks[within]
        numbers = np.empty_like(indices)
        for owner in np.unique(owners).tolist():
            mine, source = owners == owner, self.sources[owner]
            numbers[mine] = source.rows(_shuffled(indices[mine], source, self.seed))
        return numbers

    def places_of(self, rows: Integers, stop: int) -> Integers:
        """Places in the run, below `stop`, that read these rows.

        Unsorted, one per reading.
        """
        last = [phase for phase in self.phases if phase.first <= stop][-1]  # of two that begin alike the first is empty
        read = last.read(stop - last.first)
        found = [np.zeros(0, dtype=np.int64)]
        for owner, source in enumerate(self.sources):
            own = source.indices(rows)
            for epoch in range(-(-int(read[owner]) // max(source.count, 1)) if len(own) else 0):
                within = places_of(own.astype(np.uint64), source.count, self.seed, epoch, source.name)
                indices = epoch * source.count + within.astype(np.int64)
                found.append(self._places(owner, indices[indices < read[owner]]))
        return np.concatenate(found)

    def _places(self, owner: int, indices: Integers) -> Integers:
        """Places in the run of the source's readings of these numbers."""
        starts = np.array([phase.before[owner] for phase in self.phases])
        numbers = np.searchsorted(starts, indices, side="right") - 1
        places = np.empty_like(indices)
        for number in np.unique(numbers).tolist():
            phase, mine = self.phases[number], numbers == number
            periods, ranks = np.divmod(indices[mine] - phase.before[owner], phase.parts[owner])
            places[mine] = phase.first + periods * len(phase.chosen) + phase.places[owner][ranks]
        return places

    def weights(self) -> dict[int, dict[str, float]]:
        """Weights in use: first step of each phase -> source -> share."""
        return {
            phase.first_step: {
                source.name: int(part) / len(phase.chosen)
                for source, part in zip(self.sources, phase.parts, strict=True)
            }
            for phase in self.phases
        }


def _shuffled(indices: Integers, source: MixtureSource, seed: int) -> Integers:
    """Row indices of a source's readings over its epochs."""
    epochs, within = np.divmod(indices, source.count)
    rows = np.empty_like(indices)
    for epoch in np.unique(epochs).tolist():
        mine = epochs == epoch
        rows[mine] = permute(within[mine].astype(np.uint64), source.count, seed, epoch, source.name).astype(np.int64)
    return rows


def mix(train: TrainConfig, sources: Sequence[MixtureSource], sizes: BatchSizes) -> Mixture:
    """Mixture of a training run over the sources of its rows.

    Raises:
        ConfigError: weights name a source that has no row.
    """
    if train.source_share < 1:
        sources = [_thinned(source, train.source_share) for source in sources]
    starts = [(phase.from_step, phase.weights) for phase in train.mixture]
    for number, (_, weights) in enumerate(starts, 1):
        _refuse_unknown(weights, sources, f"train.mixture[entry {number}].weights")
    if starts[0][0] > 1:
        starts.insert(0, (1, {source.name: float(source.count) for source in sources}))
    phases: list[Phase] = []
    for step, weights in starts:
        first = sizes.before(step)
        before = phases[-1].read(first - phases[-1].first) if phases else np.zeros(len(sources), dtype=np.int64)
        phases.append(_phase((step, first), whole_parts(weights), sources, before))
    return Mixture(tuple(sources), tuple(phases), train.seed)


def _thinned(source: MixtureSource, share: float) -> MixtureSource:
    """A share of a source's rows, spread evenly; one row at least."""
    kept = min(source.count, max(1, round(share * source.count)))
    rows = source.rows(np.arange(kept, dtype=np.int64) * source.count // max(kept, 1))
    return MixtureSource(source.name, rows, np.arange(kept + 1, dtype=np.int64))


def read_late(train: TrainConfig, count: int, late: Integers, sizes: BatchSizes) -> Mixture | None:
    """Order that reads some of `count` rows last.

    They are read as often as others: in their share of the run's rows, rounded up. Before them only others are read.
    None: all are late, or none.
    """
    if not 0 < len(late) < count:
        return None
    owners = np.zeros(count, dtype=np.int32)
    owners[late] = 1
    sources = sources_of(("other", "contested"), owners)
    rows = sizes.before(train.steps + 1)
    first = rows + -rows * len(late) // count
    before = np.zeros(2, dtype=np.int64)
    early = _phase((1, 0), {"other": 1}, sources, before)
    step = int(sizes.steps_of(np.array([first]))[0])
    return Mixture(sources, (early, _phase((step, first), {"contested": 1}, sources, early.read(first))), train.seed)


def _phase(
    start: tuple[int, int], weights: Mapping[str, int], sources: Sequence[MixtureSource], before: Integers
) -> Phase:
    parts = np.array([weights.get(source.name, 0) for source in sources], dtype=np.int64)
    chosen = assign_sources(parts)
    places = tuple(np.flatnonzero(chosen == owner) for owner in range(len(sources)))
    ranks = np.empty_like(chosen)
    for own in places:
        ranks[own] = np.arange(len(own))
    return Phase(*start, parts, chosen, ranks, places, before)


def _refuse_unknown(weights: Mapping[str, float], sources: Sequence[MixtureSource], field: str) -> None:
    known = {source.name for source in sources if source.count}
    absent = sorted(name for name, weight in weights.items() if weight > 0.0 and name not in known)
    if absent:
        raise ConfigError(
            f"{field}: no training row begins with a document of {', '.join(map(repr, absent))}; the sources are "
            f"{', '.join(sorted(known))}. Correct the mixture."
        )
