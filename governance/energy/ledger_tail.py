"""Incremental reader of a growing ledger.

    spending = Spending(ledger)
    spending.read()
    use = spending.use("upper", counts, without)     millijoules, the power of what still runs, what is unknown

A figure is a bound on what was used *until now*: where the last line of an interval is not its end, the time since is
counted at the interval's greatest power. So is what a kill kept from the ledger (at most `every` seconds), and what a
failed reading did. An interval without a figure, or without one for `MAX_UNSEEN_SECONDS`, is unknown.
"""

from __future__ import annotations

import datetime
import math
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from governance.energy.counters import GreatestPower
from governance.energy.ledger import MARKS, MAX_SAMPLE_SECONDS, NEEDS, counted_lines, files_of, moment, still_runs

Bound = Literal["upper", "central"]
FIELD_OF: dict[Bound, str] = {"upper": "high", "central": "millijoules"}
MAX_UNSEEN_SECONDS = 300.0
"""A longer silence of a meter is not estimated any more."""
HEADROOM = 1.1
"""Factor on the greatest mean power so far, at which time without a reading is counted."""
_MIN_SPAN_SECONDS = 0.05
_SHOWN = 3

Counts = Callable[[Mapping[str, Any]], bool]
"""True for an interval that counts, by its last line."""


def projected(milliwatts: int, seconds: float) -> int:
    """Millijoules to set aside for time without a reading, rounded up."""
    return math.ceil(HEADROOM * milliwatts * seconds)


@dataclass(frozen=True)
class Use:
    """Energy of several intervals together."""

    millijoules: int = 0
    milliwatts: int = 0
    """Sum of the greatest powers of intervals that have not ended."""
    unknown: tuple[str, ...] = ()
    """Intervals without a figure, as text."""
    needs: int = 0
    """Millijoules that a start would use before its next step, by the newest of them."""


@dataclass
class _SeenInterval:
    """Running state of one interval."""

    line: Mapping[str, Any] = field(default_factory=dict)
    known: dict[str, tuple[datetime.datetime, int]] = field(default_factory=dict)
    power: dict[str, GreatestPower] = field(
        default_factory=lambda: {name: GreatestPower(_MIN_SPAN_SECONDS) for name in FIELD_OF.values()}
    )

    def add(self, line: Mapping[str, Any]) -> None:
        self.line, at = line, moment(line["at"])
        for name in FIELD_OF.values():
            if line[name] is not None:
                self.known[name] = (at, line[name])
                self.power[name].note(at.timestamp(), line[name])


class Spending:
    """Intervals of all hosts' ledgers, read incrementally."""

    def __init__(
        self, ledger: Path, now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)
    ):
        self._ledger, self._now = ledger, now
        self._read: dict[Path, int] = {}
        self._seen: dict[str, _SeenInterval] = {}

    def read(self) -> None:
        """Read the lines appended since the last call.

        Raises:
            ManifestError: a file is not a ledger of this schema.
        """
        for path in files_of(self._ledger):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]
            self._read[path] = self._read.get(path, 0) + len(whole) + bool(whole)
            for line in counted_lines(whole):
                self._seen.setdefault(line["interval"], _SeenInterval()).add(line)

    def max_power(self, bound: Bound) -> int:
        """Greatest power of any interval in milliwatts; 0 if unknown."""
        return max((seen.power[FIELD_OF[bound]].milliwatts for seen in self._seen.values()), default=0)

    def runs_here(self, counts: Counts) -> bool:
        """Return whether an interval that counts still runs on this host."""
        host = socket.gethostname()
        lines = (seen.line for seen in self._seen.values())
        return any(
            line["host"] == host and line["kind"] != "end" and counts(line) and still_runs(line) for line in lines
        )

    def use(self, bound: Bound, counts: Counts, without: frozenset[str] = frozenset()) -> Use:
        """Energy of counting intervals, except `without`."""
        joules, watts, unknown = 0, 0, []
        greatest = self.max_power(bound)
        newest, needs = "", 0
        for name, seen in self._seen.items():
            if name in without or not counts(seen.line):
                continue
            used = self._of(seen, bound, greatest)
            if used is None:
                unknown.append(f"{seen.line['stage']} on {seen.line['host']} at {seen.line['at']}")
            else:
                joules, watts = joules + used[0], watts + used[1]
            if seen.line["at"] > newest and NEEDS in (marks := seen.line.get("marks", {})):
                newest, needs = seen.line["at"], int(marks[NEEDS])
        more = [f"and {len(unknown) - _SHOWN} more"] if len(unknown) > _SHOWN else []
        return Use(joules, watts, (*unknown[:_SHOWN], *more), needs)

    def _of(self, seen: _SeenInterval, bound: Bound, greatest: int) -> tuple[int, int] | None:
        """Millijoules until now, and the power of an interval that still runs.

        A figure that is unknown is None.

        `greatest` is the power of an interval without one of its own.
        """
        found, line = seen.known.get(FIELD_OF[bound]), seen.line
        if found is None:
            return None
        at, value = found
        milliwatts = seen.power[FIELD_OF[bound]].milliwatts or greatest
        runs = line["kind"] != "end" and still_runs(line)
        unseen = ((self._now() if runs else moment(line["at"])) - at).total_seconds()
        if not runs and line["kind"] != "end":
            unseen += float(line.get("every", MAX_SAMPLE_SECONDS))
        if unseen > MAX_UNSEEN_SECONDS:
            return None
        return value + projected(milliwatts, max(0.0, unseen)), milliwatts if runs else 0


def training_counts(artifact: str) -> Counts:
    """The attempts of one training.

    One that was killed before it named its artifact counts too.
    """
    return lambda line: line["stage"] == "train" and line.get("marks", {}).get(MARKS[0], artifact) == artifact
