"""Energy by stage and checkpoint, waste by cause, unmetered time.

`settle` cuts each interval at its samples and by what the node did, and gives every piece an outcome; `add` over
pieces then keeps the ledger's law whatever happened. Without marks an interval is one fate: it ended well (surviving)
or it did not (wasted). A trainer that writes marks into its measurement gets finer answers:

    energy["artifact"] = "train/0123456789abcdef"   which training this is; attempts of one training share it
    energy["resumed_from"] = 100                     the step of the checkpoint that it started from; 0: from nothing
    energy["step"] = 137                             steps done
    energy["checkpoint"] = 120                       step of the last checkpoint that is durable

The work up to a durable checkpoint survives a kill; the work after it is lost. When a later attempt resumes from an
earlier checkpoint, everything after that one was rolled back, and is wasted too. Boundaries are those of the
samples, so each is late by at most one sample interval.

A training needs one start-up. An attempt that goes on from a checkpoint needs another one, until its first step, and
that is wasted by the "restart", whatever ended the attempt before it.

`unmetered` is the time of a run's processes without a meter: imports and gaps between stages. No figure holds its
energy. Only its length is known, and a bound: the greatest mean power that the node's meters read between two lines.
Time in which another process measured the node is in that process's lines and does not count.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from governance.energy.counters import GreatestPower
from governance.energy.ledger import PHASES, Interval, Outcome, moment, seconds_covered
from governance.phases import START_UP, UNTOLD

ROLLED_BACK = "rolled back"
RESTART = "restart"


@dataclass(frozen=True)
class EnergyPiece:
    """Part of an interval with one fate and one phase.

    Energies in millijoules, None is unknown.
    """

    interval: str
    attempt: str
    stage: str
    phase: str
    """Activity of the node (`governance.phases`)."""
    steps: tuple[int, int] | None
    """Steps done before and after it; None where no step was reported."""
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
    unseen_seconds: float = 0.0
    """At its end a kill lost at most the energy of this many seconds."""


@dataclass(frozen=True)
class Sum:
    """Energies of several pieces in millijoules.

    The law: surviving + wasted + unknown = measured.

    A figure is None where there are pieces of its kind and none of them was measured, and 0 where there are none.
    """

    measured: int | None
    surviving: int | None
    wasted: int | None
    unknown: int | None
    """Energy of intervals that have not ended."""
    low: int | None
    high: int | None
    """Bounds of `measured`; None where something that used energy had no meter."""
    unmeasured_seconds: float
    """Time in which another run's meter had the node, so that nothing is known here."""
    unseen_seconds: float
    """Kills lost at most the energy of this many seconds; it is in no figure."""
    methods: tuple[str, ...]


def settle(intervals: Sequence[Interval]) -> list[EnergyPiece]:
    """Intervals as pieces with outcomes, in the order of `read_ledger`.

    On one host the order says which attempt came later, since its clock may be set back; between hosts clocks do.
    """
    restarts = _restarts(intervals)
    cut = [_cut(interval, restart) for interval, restart in zip(intervals, restarts, strict=True)]
    rollbacks = [(number, one) for number, one in enumerate(intervals) if "resumed_from" in one.samples[-1].marks]
    return [_rolled_back(piece, (number, at), rollbacks) for number, pieces in enumerate(cut) for piece, at in pieces]


def _restarts(intervals: Sequence[Interval]) -> list[bool]:
    """Return for each interval whether it resumes an ended attempt."""
    base: dict[Any, int] = {}
    for interval in intervals:
        marks = interval.samples[-1].marks
        if (step := marks.get("resumed_from")) is not None:
            base[marks.get("artifact")] = min(base.get(marks.get("artifact"), step), step)
    hosts: dict[Any, set[str]] = {}
    ended: dict[Any, str] = {}
    found = []
    for interval in intervals:
        marks = interval.samples[-1].marks
        artifact, step = marks.get("artifact"), marks.get("resumed_from")
        later = interval.host in hosts.get(artifact, ()) or (artifact in ended and ended[artifact] <= interval.started)
        found.append(artifact is not None and step is not None and step > base[artifact] and later)
        hosts.setdefault(artifact, set()).add(interval.host)
        ended[artifact] = min(ended.get(artifact, interval.finished), interval.finished)
    return found


def _rolled_back(piece: EnergyPiece, place: tuple[int, str], rollbacks: list[tuple[int, Interval]]) -> EnergyPiece:
    """Work after the checkpoint from which a later attempt resumed.

    `place` is the number of its interval, and the time of its last sample.
    """
    if piece.outcome == "wasted" or piece.artifact is None or piece.checkpoint is None:
        return piece
    number, at = place
    for other, resumed in rollbacks:
        marks = resumed.samples[-1].marks
        later = number < other if resumed.host == piece.host else at <= resumed.started
        if later and marks.get("artifact") == piece.artifact and piece.checkpoint > marks["resumed_from"]:
            return replace(piece, outcome="wasted", cause=ROLLED_BACK)
    return piece


def _cut(interval: Interval, restart: bool) -> list[tuple[EnergyPiece, str]]:
    """The interval's pieces, each with the time of its last sample.

    Each durable checkpoint has a group of pieces, and the rest has one.
    """
    known = interval.samples[-1].marks.get("resumed_from")
    last = len(interval.samples) - 1
    pieces: list[tuple[EnergyPiece, str]] = []
    start = -1  # before the first sample: energies count from the begin
    secured: Outcome = "unknown" if interval.outcome == "unknown" else "surviving"
    for index, sample in enumerate(interval.samples):
        mark = sample.marks.get("checkpoint")
        if mark is not None and mark != known:
            fate = _Fate(mark, secured, "")
            pieces += [(piece, sample.at) for piece in _metered(interval, start, index, fate)]
            start, known = index, mark
    final = interval.samples[last].marks.get("step") if interval.outcome == "surviving" else None
    rest = _metered(interval, start, last, _Fate(final, interval.outcome, interval.cause))
    rest[-1] = replace(rest[-1], unseen_seconds=interval.unseen_seconds)
    pieces += [(piece, interval.samples[last].at) for piece in rest]
    return [(_restart_as_waste(piece), at) for piece, at in pieces] if restart else pieces


def _restart_as_waste(piece: EnergyPiece) -> EnergyPiece:
    lost = piece.phase == START_UP and piece.outcome == "surviving"
    return replace(piece, outcome="wasted", cause=RESTART) if lost else piece


class _Fate(NamedTuple):
    checkpoint: int | None
    outcome: Outcome
    cause: str


def _metered(interval: Interval, start: int, end: int, fate: _Fate) -> list[EnergyPiece]:
    """Pieces of an interval; unmetered time comes first, without energy."""
    for index in range(max(start, 0), end):
        now, then = (interval.samples[place].millijoules for place in (index, index + 1))
        if now is None and then is not None and index > start:
            return [*_pieces(interval, start, index, fate), *_pieces(interval, index, end, fate)]
    return _pieces(interval, start, end, fate)


def _pieces(interval: Interval, start: int, end: int, fate: _Fate) -> list[EnergyPiece]:
    """Pieces between two samples, one a phase; they sum up exactly."""
    first, last = interval.samples[max(start, 0)], interval.samples[end]

    def parts(name: str) -> dict[str, int] | None:
        later, earlier = getattr(last, name), getattr(first, name)
        whole = None if later is None else later - (earlier if start >= 0 and earlier else 0)
        return None if whole is None else share_out(whole, weights)

    weights = _weights(interval, start, end)
    energies = parts("millijoules"), parts("low"), parts("high")
    whole = replace(interval, samples=interval.samples[max(start, 0) : end + 1]).seconds
    milliseconds = share_out(round(1000 * whole), _milliseconds(interval, start, end))
    step = last.marks.get("step")
    return [
        EnergyPiece(
            interval=interval.id,
            attempt=interval.attempt,
            stage=interval.stage,
            phase=phase,
            steps=None if step is None else (first.marks.get("step", last.marks.get("resumed_from", 0)), step),
            host=interval.host,
            method=interval.method,
            artifact=interval.samples[-1].marks.get("artifact"),
            seconds=milliseconds.get(phase, 0) / 1000,
            checkpoint=fate.checkpoint,
            outcome=fate.outcome,
            cause=fate.cause,
            millijoules=energies[0][phase] if energies[0] else None,
            low=energies[1][phase] if energies[1] else None,
            high=energies[2][phase] if energies[2] else None,
        )
        for phase in weights
    ]


def _milliseconds(interval: Interval, start: int, end: int) -> dict[str, int]:
    """Milliseconds of each phase between two samples."""
    before = interval.samples[max(start, 0)].marks.get(PHASES, {}) if end > 0 else {}
    after = interval.samples[end].marks.get(PHASES, {})
    spent = {phase: max(0, count - before.get(phase, 0)) for phase, count in after.items()}
    lasted = {phase: count for phase, count in spent.items() if count}
    return lasted or {next(iter(after), UNTOLD): 0}


def _weights(interval: Interval, start: int, end: int) -> dict[str, int]:
    """Shares of the phases in the energy between two samples.

    Each sample interval's energy is divided by its own times.
    """
    weights = dict.fromkeys(_milliseconds(interval, start, end), 0)
    for index in range(start + 1, end + 1):
        now, before = interval.samples[index].millijoules, interval.samples[index - 1].millijoules if index else 0
        if now is None or before is None or now < before:
            return _milliseconds(interval, start, end)
        if now == before:
            continue
        for phase, part in share_out(now - before, _milliseconds(interval, index - 1, index)).items():
            weights[phase] = weights.get(phase, 0) + part
    return weights


def share_out(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Integer parts of `total` proportional to `weights`, exact in sum."""
    whole = sum(weights.values())
    if not whole:
        return {name: total if index == 0 else 0 for index, name in enumerate(weights)}
    parts, passed, shared = {}, 0, 0
    for name, weight in weights.items():
        passed += weight
        until = total * passed // whole
        parts[name], shared = until - shared, until
    return parts


def add(pieces: Iterable[EnergyPiece]) -> Sum:
    """Add pieces up; nothing is left out and nothing counts twice."""
    pieces = list(pieces)
    metered = [piece for piece in pieces if piece.millijoules is not None]
    whole = all(piece.millijoules is not None or not piece.seconds for piece in pieces)
    return Sum(
        measured=_sum_of_known(piece.millijoules for piece in pieces),
        surviving=_sum_of_known(piece.millijoules for piece in pieces if piece.outcome == "surviving"),
        wasted=_sum_of_known(piece.millijoules for piece in pieces if piece.outcome == "wasted"),
        unknown=_sum_of_known(piece.millijoules for piece in pieces if piece.outcome == "unknown"),
        low=_all(piece.low for piece in metered),
        high=_all(piece.high for piece in metered) if whole else None,
        unmeasured_seconds=sum(piece.seconds for piece in pieces if piece.millijoules is None),
        unseen_seconds=sum(piece.unseen_seconds for piece in pieces),
        methods=tuple(sorted({piece.method for piece in pieces})),
    )


def _sum_of_known(values: Iterable[int | None]) -> int | None:
    """The sum of the known values.

    Returns None where there are parts and all are unknown.
    """
    values = list(values)
    known = [value for value in values if value is not None]
    return sum(known) if known or not values else None


def _all(values: Iterable[int | None]) -> int | None:
    """The sum; None where a value is not known."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def added_by(field: Literal["stage", "phase"], pieces: Iterable[EnergyPiece]) -> dict[str, Sum]:
    """Energy of each stage or phase over all attempts, by first use."""
    groups: dict[str, list[EnergyPiece]] = {}
    for piece in pieces:
        groups.setdefault(getattr(piece, field), []).append(piece)
    return {name: add(members) for name, members in groups.items()}


def wasted_by_cause(pieces: Iterable[EnergyPiece]) -> dict[str, int | None]:
    """Wasted millijoules by cause.

    A cause is "killed", "rolled back", "preempted" (by a signal before there was anything to save), or the name of the
    error that ended the attempt. Its figure is None where it wasted something and no meter saw it.
    """
    wasted: dict[str, list[int | None]] = {}
    for piece in pieces:
        if piece.outcome == "wasted":
            wasted.setdefault(piece.cause, []).append(piece.millijoules)
    return {cause: _sum_of_known(wasted[cause]) for cause in sorted(wasted)}


def by_checkpoint(pieces: Iterable[EnergyPiece], artifact: str) -> list[dict[str, int | None]]:
    """Energy of one training's checkpoints in millijoules, by step.

    Each has its step and its marginal and cumulative energy. Marginal is the surviving work since the checkpoint
    before; cumulative is the sum up to here. A figure is None where part of it had no meter. A checkpoint that was
    rolled back is not listed. Energy of the corpus and of a parent model is not in these figures.
    """
    marginal: dict[int, list[int | None]] = {}
    for piece in pieces:
        if piece.artifact == artifact and piece.outcome == "surviving" and piece.checkpoint is not None:
            marginal.setdefault(piece.checkpoint, []).append(piece.millijoules)
    rows: list[dict[str, int | None]] = []
    total: int | None = 0
    for step in sorted(marginal):
        here = _all(marginal[step])
        total = None if here is None or total is None else total + here
        rows.append({"step": step, "marginal_millijoules": here, "cumulative_millijoules": total})
    return rows


_MIN_SPAN_SECONDS = 1.0  # least span of readings from which a maximum power is taken; shorter ones are noise


@dataclass(frozen=True)
class Unmetered:
    """Node-seconds without a meter, and an upper bound of their energy."""

    seconds: float
    millijoules: int | None
    """None: no power of that node is known."""


def unmetered(intervals: Sequence[Interval]) -> Unmetered:
    """Unmetered time before meters opened, by node."""
    total, most = 0.0, 0
    known = True
    for host in sorted({interval.host for interval in intervals}):
        mine = [interval for interval in intervals if interval.host == host]
        seconds = _uncovered(mine)
        power = _greatest(mine)
        total += seconds
        known = known and (power > 0 or not seconds)
        most += math.ceil(power * seconds)
    return Unmetered(round(total, 3), most if known else None)


def _uncovered(intervals: Sequence[Interval]) -> float:
    """Seconds of one node before intervals that no measured interval covers.

    Spans that overlap count once.
    """
    measured = [one.span for one in intervals if one.millijoules is not None]
    before = [(moment(one.started) - datetime.timedelta(seconds=one.before_seconds), moment(one.started))
              for one in intervals]  # fmt: skip
    return seconds_covered([*measured, *before]) - seconds_covered(measured)


def _greatest(intervals: Sequence[Interval]) -> int:
    """The greatest mean power that a node's meters allow, in milliwatts.

    Upper bounds count where there are any.
    """
    greatest = 0
    for interval in intervals:
        power = GreatestPower(_MIN_SPAN_SECONDS)
        for sample in interval.samples:
            value = sample.millijoules if sample.high is None else sample.high
            power.note(moment(sample.at).timestamp(), value)
        greatest = max(greatest, power.milliwatts)
    return greatest
