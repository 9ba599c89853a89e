"""Where the energy went: per stage, per checkpoint, and what was wasted by which cause.

`settle` cuts each interval at its samples and gives every piece an outcome; `sum` over pieces then keeps the ledger's
law whatever happened. Without marks an interval is one fate: it ended well (surviving) or it did not (wasted). A
trainer that writes marks into its measurement gets finer answers:

    energy["artifact"] = "train/0123456789abcdef"   which training this is; attempts of one training share it
    energy["resumed_from"] = 100                     the step of the checkpoint that it started from; 0: from nothing
    energy["step"] = 137                             steps done
    energy["checkpoint"] = 120                       step of the last checkpoint that is durable

The work up to a durable checkpoint survives a kill; the work behind it is lost. When a later attempt resumes from an
earlier checkpoint, everything behind that one was rolled back, and is wasted too. Boundaries are those of the
samples, so each is late by at most one sample interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from governance.energy.ledger import Interval, Outcome

ROLLED_BACK = "rolled back"


@dataclass(frozen=True)
class Piece:
    """Part of an interval with one fate; energies in millijoules, None is unknown."""

    interval: str
    stage: str
    host: str
    method: str
    artifact: str | None
    millijoules: int | None
    low: int | None
    high: int | None
    seconds: float
    checkpoint: int | None
    """The step of the checkpoint that this work went into; None where no checkpoint is known."""
    outcome: Outcome
    cause: str


@dataclass(frozen=True)
class Sum:
    """Energies of several pieces in millijoules; the law: surviving + wasted + unknown = measured."""

    measured: int
    surviving: int
    wasted: int
    unknown: int
    """Spent by what still runs."""
    low: int | None
    high: int | None
    """Bounds of `measured`; None where something that used energy had no meter."""
    unmeasured_seconds: float
    """Time in which another run's meter had the node, so that nothing is known here."""
    methods: tuple[str, ...]


def settle(intervals: Sequence[Interval]) -> list[Piece]:
    """Every interval in pieces with their outcomes, in the order of the intervals."""
    cut = [_cut(interval) for interval in intervals]
    rollbacks = [
        (interval.started, interval.samples[-1].marks.get("artifact"), interval.samples[-1].marks["resumed_from"])
        for interval in intervals
        if "resumed_from" in interval.samples[-1].marks
    ]
    return [_rolled_back(piece, at, rollbacks) for pieces in cut for piece, at in pieces]


def _rolled_back(piece: Piece, at: str, rollbacks: list[tuple[str, Any, int]]) -> Piece:
    """Work behind the checkpoint that a later attempt of the same training started from did not survive."""
    if piece.outcome == "wasted" or piece.artifact is None or piece.checkpoint is None:
        return piece
    lost = any(
        artifact == piece.artifact and piece.checkpoint > step and at <= when for when, artifact, step in rollbacks
    )
    return replace(piece, outcome="wasted", cause=ROLLED_BACK) if lost else piece


def _cut(interval: Interval) -> list[tuple[Piece, str]]:
    """The interval's pieces, each with the time of its last sample: one a durable checkpoint, and the rest."""
    known = interval.samples[-1].marks.get("resumed_from")
    last = len(interval.samples) - 1
    pieces: list[tuple[Piece, str]] = []
    start = -1  # before the first sample: energies count from the begin
    secured: Outcome = "unknown" if interval.outcome == "unknown" else "surviving"
    for index, sample in enumerate(interval.samples):
        mark = sample.marks.get("checkpoint")
        if mark is not None and mark != known:
            pieces.append((_piece(interval, start, index, mark, secured, ""), sample.at))
            start, known = index, mark
    final = interval.samples[last].marks.get("step") if interval.outcome == "surviving" else None
    rest = _piece(interval, start, last, final, interval.outcome, interval.cause)
    return [*pieces, (rest, interval.samples[last].at)]


def _piece(interval: Interval, start: int, end: int, checkpoint: int | None, outcome: Outcome, cause: str) -> Piece:
    first, last = interval.samples[max(start, 0)], interval.samples[end]

    def difference(name: str) -> int | None:
        later, earlier = getattr(last, name), getattr(first, name)
        return None if later is None else later - (earlier if start >= 0 and earlier else 0)

    seconds = replace(interval, samples=(first, last)).seconds
    return Piece(
        interval=interval.id,
        stage=interval.stage,
        host=interval.host,
        method=interval.method,
        artifact=interval.samples[-1].marks.get("artifact"),
        millijoules=difference("millijoules"),
        low=difference("low"),
        high=difference("high"),
        seconds=seconds,
        checkpoint=checkpoint,
        outcome=outcome,
        cause=cause,
    )


def add(pieces: Iterable[Piece]) -> Sum:
    """Add pieces up; nothing is left out and nothing counts twice."""
    pieces = list(pieces)
    metered = [piece for piece in pieces if piece.millijoules is not None]

    def of(outcome: str) -> int:
        return sum(piece.millijoules or 0 for piece in metered if piece.outcome == outcome)

    def bound(name: str) -> int | None:
        values = [getattr(piece, name) for piece in metered]
        return None if None in values else sum(values)

    return Sum(
        measured=sum(piece.millijoules or 0 for piece in metered),
        surviving=of("surviving"),
        wasted=of("wasted"),
        unknown=of("unknown"),
        low=bound("low"),
        high=bound("high"),
        unmeasured_seconds=sum(piece.seconds for piece in pieces if piece.millijoules is None),
        methods=tuple(sorted({piece.method for piece in pieces})),
    )


def by_stage(pieces: Iterable[Piece]) -> dict[str, Sum]:
    """What each stage took, all its attempts together, in order of first use."""
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.stage, []).append(piece)
    return {stage: add(members) for stage, members in groups.items()}


def wasted_by_cause(pieces: Iterable[Piece]) -> dict[str, int]:
    """Wasted millijoules by cause: "killed", "rolled back", or the name of the error that ended the attempt."""
    total: dict[str, int] = {}
    for piece in pieces:
        if piece.outcome == "wasted" and piece.millijoules is not None:
            total[piece.cause] = total.get(piece.cause, 0) + piece.millijoules
    return dict(sorted(total.items()))


def by_checkpoint(pieces: Iterable[Piece], artifact: str) -> list[dict[str, int]]:
    """Energy of one training's checkpoints: step, marginal and cumulative millijoules, by step.

    Marginal is the surviving work since the checkpoint before; cumulative is the sum up to here. A checkpoint that was
    rolled back is not listed. Energy of the corpus and of a parent model is not in these figures.
    """
    marginal: dict[int, int] = {}
    for piece in pieces:
        mine = piece.artifact == artifact and piece.outcome == "surviving" and piece.millijoules is not None
        if mine and piece.checkpoint is not None:
            marginal[piece.checkpoint] = marginal.get(piece.checkpoint, 0) + (piece.millijoules or 0)
    rows, total = [], 0
    for step in sorted(marginal):
        total += marginal[step]
        rows.append({"step": step, "marginal_millijoules": marginal[step], "cumulative_millijoules": total})
    return rows
