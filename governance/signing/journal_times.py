"""Times of journal lines, and statements that void wrong ones.

A check on a machine whose clock is wrong leaves a line that is dated ahead, and a journal's times never fall, so the
root would be closed until that day. Therefore an account that may sign for the root can append a statement of the
kind `clock` (`urn:assay:clock:1`), dated by the clock that is right. It names each line with its number, digest and
wrong time, and gives a reason:

    {"void": [{"line": 23, "sha256": "...64 hex", "time": "2027-01-06T09:00:00Z"}],
     "verdicts": ["verdicts/....json"], "reason": "node7 booted in 2027", "account": "ann"}

Later checks ignore the named times. Promise: no verdict from before such a statement opens anything; each must
be given again. So it brings back neither an older nor an expired verdict; and it is an ordinary line of the journal,
which nobody without a trusted key can write.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

CLOCK = "clock"
PREDICATE_TYPE = "urn:assay:clock:1"
SKEW = datetime.timedelta(minutes=5)
"""How far the clocks of two nodes may differ."""


class Line(Protocol):
    """Fields of a journal line that times depend on."""

    @property
    def index(self) -> int:
        """Its number."""

    @property
    def digest(self) -> str:
        """Its SHA-256."""

    @property
    def kind(self) -> str:
        """Kind of statement."""

    @property
    def time(self) -> str:
        """Time in ISO 8601, UTC."""

    @property
    def statement(self) -> Mapping[str, Any]:
        """The in-toto statement."""


AnyLine = TypeVar("AnyLine", bound=Line)


def stamp(moment: datetime.datetime) -> str:
    """A time in UTC, ISO 8601, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def void(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Reference to lines with void times."""
    return [{"line": line.index, "sha256": line.digest, "time": line.time} for line in lines]


def read_times(lines: Sequence[AnyLine]) -> tuple[list[AnyLine], list[str]]:
    """Lines with valid times, and faults of times, in words."""
    counting: list[AnyLine] = []
    faults = []
    for line in lines:
        if line.kind == CLOCK:
            named = line.statement["predicate"].get("void")
            known = void(counting)
            if not isinstance(named, list) or any(item not in known for item in named):
                faults.append(f"line {line.index}: makes times void that no line before it has")
                named = []
            counting = [kept for kept, item in zip(counting, known, strict=True) if item not in named]
        if counting and line.time < counting[-1].time:
            faults.append(f"line {line.index}: its time falls: {line.time} after {counting[-1].time}")
        counting.append(line)
    return counting, faults


def ahead(lines: Sequence[AnyLine], moment: datetime.datetime) -> list[AnyLine]:
    """The lines whose times count and are ahead of a clock."""
    latest = stamp(moment + SKEW)
    return [line for line in read_times(lines)[0] if line.time > latest]


def ahead_words(lines: Sequence[Line], moment: datetime.datetime) -> list[str]:
    """Each line that is dated ahead, in words."""
    return [
        f"line {line.index} ({line.kind}): is dated {line.time}, ahead of this machine's clock ({stamp(moment)})"
        for line in ahead(lines, moment)
    ]


def since_clock(lines: Sequence[AnyLine]) -> tuple[AnyLine | None, Sequence[AnyLine]]:
    """The last statement that voids times, and the lines after it.

    None and all of them where there is none.
    """
    for place in range(len(lines) - 1, -1, -1):
        if lines[place].kind == CLOCK:
            return lines[place], lines[place + 1 :]
    return None, lines
