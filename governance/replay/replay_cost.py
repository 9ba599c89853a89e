"""Time and energy of a training's steps, by its own ledger.

A replay makes the same steps again, so they are its forecast. Work that was lost to kills is not in it, nor is a second
start-up; on other machines it costs otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from governance.energy.attribution import EnergyPiece, add, settle
from governance.energy.band import UNKNOWN, Band
from governance.energy.ledger import FILE_NAME, read_ledger

_MILLIJOULES_PER_KWH = 3.6e9


@dataclass(frozen=True)
class ReplayCost:
    """Cost of some steps, as their training measured it."""

    hours: float | None
    """Wall time; None: the ledger has none of these steps."""
    nodes: int
    kwh: Band
    """Bounds as measured; None is unknown."""
    methods: tuple[str, ...]
    """Meters."""


def spent_on(root: Path, training: str, after: int, until: int | None) -> Iterator[EnergyPiece]:
    """Surviving work of a training ("train/<key>") on its steps after one.

    A sample of the meter that spans the boundary is divided by its steps.

    Raises:
        ManifestError: the ledger is of another schema.
    """
    for piece in settle(read_ledger(root / FILE_NAME)):
        step = piece.checkpoint if piece.artifact == training and piece.outcome == "surviving" else None
        if step is not None and step > after and (until is None or step <= until):
            yield _after(piece, after)


def _after(piece: EnergyPiece, step: int) -> EnergyPiece:
    """The share of a piece that belongs to steps after one."""
    begin, end = piece.steps or (step, step)
    if begin >= step or end <= begin:
        return piece
    share = Fraction(end - min(step, end), end - begin)
    scaled = (None if value is None else round(value * share) for value in (piece.millijoules, piece.low, piece.high))
    measured, low, high = scaled
    return replace(piece, millijoules=measured, low=low, high=high, seconds=float(piece.seconds * share))


def replay_cost(pieces: Iterable[EnergyPiece]) -> ReplayCost:
    """Wall time and energy of pieces of work."""
    pieces = list(pieces)
    if not pieces:
        return ReplayCost(None, 0, UNKNOWN, ())
    seconds: dict[str, float] = defaultdict(float)
    for piece in pieces:
        seconds[piece.host] += piece.seconds
    total = add(pieces)
    kwh = Band(total.low, total.measured, total.high).each(_MILLIJOULES_PER_KWH, "/")
    return ReplayCost(max(seconds.values()) / 3600, len(seconds), kwh, total.methods)
