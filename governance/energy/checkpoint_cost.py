"""Cost of a checkpoint with its ancestors and failures, in millijoules.

    marginal      the surviving work of its training since the checkpoint before (`attribution.by_checkpoint`)
    cumulative    the surviving work of its training up to it; of each model that the training was started or distilled
                  from, up to the checkpoint that was taken, and so on; and of the data work behind the tokens of all
                  these trainings
    fully loaded  everything that was measured, of all attempts: wasted and running work too

Data work is shared out by tokens used: a training that was shown u of the h tokens that its corpus holds takes u / h of
what the corpus and everything behind it took, at most the whole; several trainings of one line add their shares up, at
most to the whole. "whole" is the other method: a training answers for all of its corpus.

Nothing is counted twice: a training or an artifact that is reached in two ways counts once. `missing` names ancestors
without a record or without a known share, and shards that were linked from an earlier artifact, whose work is that
one's; the sum is then marked "at least" and has no upper bound. Cumulative + what it leaves out = fully loaded,
exactly, where the ledger names every artifact: a share is rounded down to the millijoule, and the rest stays with what
is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Literal

from governance.energy.attribution import EnergyPiece, Sum, add

Method = Literal["by tokens used", "whole"]
BY_TOKENS: Method = "by tokens used"
WHOLE: Method = "whole"


@dataclass(frozen=True)
class ParentModel:
    """A model that another one was started, fine-tuned or distilled from."""

    artifact: str
    """Its training."""
    step: int | None
    """The step of the checkpoint that was taken; None: the training's end."""


@dataclass(frozen=True)
class Training:
    """Inputs of a training; artifacts are named "stage/key"."""

    data: tuple[str, ...] = ()
    """The artifact that holds its tokens, and every artifact that this was made from."""
    held: int | None = None
    """Tokens that its corpus holds to train on."""
    used: Mapping[int, int] = field(default_factory=dict)
    """Step -> tokens that it was shown up to there, counted on from `before`."""
    starts: tuple[ParentModel, ...] = ()
    gaps: tuple[str, ...] = ()
    """Ancestors whose manifest is gone; their own ancestors are unknown."""
    linked: tuple[str, ...] = ()
    """Earlier artifacts that shards of these were linked from: which part of their work that is, is unknown."""
    before: int = 0
    """Tokens in `used` that were shown before, to the checkpoint that it continues."""

    @property
    def unknown(self) -> list[str]:
        """Ancestors with unknown energy, in words."""
        return [
            *(f"what is behind {gap}" for gap in self.gaps),
            *(f"the shards that were linked from {name}" for name in self.linked),
        ]

    def share(self, step: int | None, method: Method) -> Fraction | None:
        """Share of its corpus used up to a step, at most 1."""
        if method == WHOLE:
            return Fraction(1)
        used = self.used.get(max(self.used, default=0) if step is None else step)
        return None if used is None or not self.held else min(Fraction(1), Fraction(used - self.before, self.held))


@dataclass(frozen=True)
class CostPart:
    """Energy that one ancestor adds to a checkpoint."""

    artifact: str
    kind: Literal["training", "data"]
    share: Fraction
    """Share of a data artifact's surviving work; 1 for a training, up to `step`."""
    step: int | None
    sum: Sum
    """Its share, rounded down to the millijoule; the upper bound is rounded up."""


@dataclass(frozen=True)
class Cumulative:
    """A checkpoint with its ancestors.

    `sum` is that of `parts`, its own training first.
    """

    sum: Sum
    parts: tuple[CostPart, ...]
    missing: tuple[str, ...]
    """Ancestors without a record, without a known share, or gone, and shards of earlier artifacts: nothing of these is
    in `sum`."""


def surviving(pieces: Iterable[EnergyPiece]) -> dict[str, list[EnergyPiece]]:
    """The pieces that survived, by the artifact that they went into."""
    found: dict[str, list[EnergyPiece]] = {}
    for piece in pieces:
        if piece.outcome == "surviving" and piece.artifact is not None:
            found.setdefault(piece.artifact, []).append(piece)
    return found


def cumulative_by_step(
    survived: Mapping[str, Sequence[EnergyPiece]],
    trainings: Mapping[str, Training],
    artifact: str,
    steps: Sequence[int],
    method: Method = BY_TOKENS,
    recorded: Mapping[str, Sum] | None = None,
) -> list[Cumulative]:
    """Energy of checkpoints with their ancestors, by step.

    The checkpoints are of one training; every piece is added up once.

    Args:
        survived: the whole ledger's (`surviving`).
        trainings: by artifact; a missing one is `missing`, and so are its ancestors.
        artifact: the checkpoints' training.
        steps: rising.
        method: division of data work.
        recorded: records of the artifacts' manifests, for those that no piece of the ledger names.
    """
    ancestors, data = _sums_of_trainings(survived), _sums_of_data(survived, recorded or {})
    own = sorted(
        (piece for piece in survived.get(artifact, []) if piece.checkpoint is not None),
        key=lambda piece: piece.checkpoint or 0,
    )
    lines: list[Cumulative] = []
    so_far: Sum | None = None
    begun = 0
    for step in steps:
        end = bisect_right(own, step, begun, key=lambda piece: piece.checkpoint or 0)
        if end > begun:
            since = add(own[begun:end])
            so_far, begun = (since if so_far is None else combine([so_far, since])), end
        line = _line(trainings, artifact, step)
        parts: list[CostPart] = []
        missing: list[str] = []
        for name, until in line.items():
            known = so_far if name == artifact else ancestors(name, until)
            if known is not None:
                parts.append(CostPart(name, "training", Fraction(1), until, known))
            if known is None or name not in trainings:
                missing.append(name)
            missing += [text for text in trainings.get(name, Training()).unknown if text not in missing]
        used, unrecorded = _data_parts(data, _shares(trainings, line, method))
        lines.append(_summed([*parts, *used], [*missing, *unrecorded]))
    return lines


def _summed(parts: Sequence[CostPart], missing: Sequence[str]) -> Cumulative:
    return Cumulative(combine([part.sum for part in parts], whole=not missing), tuple(parts), tuple(missing))


_OfTraining = Callable[[str, int | None], Sum | None]
"""Energy of a training up to a step (None: its end); None without a record."""
_DataCost = Callable[[str], Sum | None]
"""Energy of an artifact; None without a record."""


def _sums_of_trainings(survived: Mapping[str, Sequence[EnergyPiece]]) -> _OfTraining:
    @cache
    def took(name: str, until: int | None) -> Sum | None:
        own = [piece for piece in survived.get(name, []) if _within(piece, until)]
        return add(own) if own else None

    return took


def _sums_of_data(survived: Mapping[str, Sequence[EnergyPiece]], recorded: Mapping[str, Sum]) -> _DataCost:
    @cache
    def took(name: str) -> Sum | None:
        return add(survived[name]) if name in survived else recorded.get(name)

    return took


def data_work(
    survived: Mapping[str, Sequence[EnergyPiece]], corpus: Training, recorded: Mapping[str, Sum] | None = None
) -> Cumulative:
    """Energy of a corpus with its ancestors, without models."""
    parts, missing = _data_parts(_sums_of_data(survived, recorded or {}), dict.fromkeys(corpus.data, Fraction(1)))
    return _summed(parts, [*missing, *corpus.unknown])


def _data_parts(data_cost: _DataCost, shares: Mapping[str, Fraction | None]) -> tuple[list[CostPart], list[str]]:
    parts: list[CostPart] = []
    missing: list[str] = []
    for name, share in shares.items():
        made = data_cost(name)
        if share is None or made is None:
            missing.append(name)
        else:
            parts.append(CostPart(name, "data", share, None, _scaled(made, share)))
    return parts, missing


def up_to(pieces: Iterable[EnergyPiece], step: int) -> list[EnergyPiece]:
    """Energy of one training up to a step's checkpoint."""
    return [piece for piece in pieces if _within(piece, step)]


def _within(piece: EnergyPiece, step: int | None) -> bool:
    return piece.checkpoint is not None and (step is None or piece.checkpoint <= step)


def _line(trainings: Mapping[str, Training], artifact: str, step: int | None) -> dict[str, int | None]:
    """Trainings of the line, nearest first, with the last step needed."""
    line: dict[str, int | None] = {artifact: step}
    waiting = [artifact]
    for name in waiting:
        for start in trainings[name].starts if name in trainings else ():
            if start.artifact not in line:
                waiting.append(start.artifact)
                line[start.artifact] = start.step
            elif start.artifact != artifact:
                known = line[start.artifact]
                line[start.artifact] = None if None in (known, start.step) else max(known or 0, start.step or 0)
    return line


def _shares(
    trainings: Mapping[str, Training], line: Mapping[str, int | None], method: Method
) -> dict[str, Fraction | None]:
    """The share of each data artifact that the line used.

    A share is None where any part of it is unknown.
    """
    shares: dict[str, Fraction | None] = {}
    for name, step in line.items():
        training = trainings.get(name, Training())
        share = training.share(step, method)
        for artifact in dict.fromkeys(training.data):
            before = shares.get(artifact, Fraction(0))
            shares[artifact] = None if share is None or before is None else min(Fraction(1), before + share)
    return shares


def _scaled(whole: Sum, share: Fraction) -> Sum:
    def part(value: int | None) -> int | None:
        return None if value is None else value * share.numerator // share.denominator

    measured = part(whole.surviving)
    high = None if whole.high is None else -(-whole.high * share.numerator // share.denominator)
    seconds = float(whole.unmeasured_seconds * share)
    return Sum(measured, measured, 0, 0, part(whole.low), high, seconds, 0.0, whole.methods)


def combine(sums: Iterable[Sum], whole: bool = True) -> Sum:
    """The sum of sums, which must not overlap.

    Without an upper bound where something is left out (`whole` is False).
    """
    sums = list(sums)

    def known(name: str) -> int | None:
        values = [getattr(one, name) for one in sums]
        known = [value for value in values if value is not None]
        return sum(known) if known or (whole and not values) else None

    highs = [one.high for one in sums]
    bounded = whole and None not in highs
    return Sum(
        measured=known("measured"),
        surviving=known("surviving"),
        wasted=known("wasted"),
        unknown=known("unknown"),
        low=known("low"),
        high=sum(value for value in highs if value is not None) if bounded else None,
        unmeasured_seconds=sum(one.unmeasured_seconds for one in sums),
        unseen_seconds=sum(one.unseen_seconds for one in sums),
        methods=tuple(sorted({method for one in sums for method in one.methods})),
    )


@dataclass(frozen=True)
class Rate:
    """Joules for each unit of work; None is unknown."""

    joules: float | None
    low: float | None
    high: float | None


def rate(energy: Sum, units: float | None) -> Rate:
    """Energy for each unit.

    Unknown where there are no units or their number is unknown: a loss that did not fall has no price.
    """
    if energy.measured is None or units is None or units <= 0:
        return Rate(None, None, None)
    rates = [None if value is None else value / 1000 / units for value in (energy.measured, energy.low, energy.high)]
    return Rate(*rates)
