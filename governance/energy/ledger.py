"""Energy ledger: append-only record of every joule read.

A whole example (`<root>/energy.jsonl`; a second host writes `<root>/energy.<host>.jsonl` beside it):

    {"kind": "ledger", "schema": 1, "host": "node1"}
    {"kind": "begin", "interval": "5f0c.1", "attempt": "5f0c", "stage": "train", "host": "node1",
     "process": [4711, 123456], "every": 5.0, "method": "RAPL", "at": "2026-01-01T00:00:00.000Z", "millijoules": 0,
     "low": 0, "high": 0, "marks": {}, "before": 2.113}
    {"kind": "beat", ..., "at": "2026-01-01T00:00:05.000Z", "millijoules": 612345, "low": 551110, "high": 673580,
     "marks": {"artifact": "train/0123456789abcdef", "resumed_from": 0, "step": 40, "phases": {"compute": 4990}}}
    {"kind": "end", ..., "outcome": "surviving", "cause": ""}

An *attempt* is one process, an *interval* is one measured context of it. Energies are integers and count from the
interval's begin, so a lost line loses no energy before it; `null` is unknown, never zero. A kill leaves an interval
without an end: what its last line states was spent and is wasted. At most one sample interval before the kill (`every`,
in seconds) is not known; `Interval.unseen_seconds` is its length. `before` is how long its process had run without a
meter (imports, or since its last interval): no figure holds that energy (`governance.energy.attribution`). An interval
without an end whose process still lives is `unknown` until it ends.

Where the run has a journal, each line is signed as it is written (`signing/signed_lines.py`).

The law, a test: surviving + wasted (+ unknown, while something runs) = measured, exactly, in millijoules.
A reader skips a torn line, an unknown kind and a line without an interval's fields, and refuses an unknown schema.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from governance.config import canonical_json
from governance.energy.node_lock import start_time
from governance.errors import ManifestError
from governance.files import append_line, place, write_text
from governance.hooks import SignLine
from governance.phases import HANG
from governance.signing.signed_lines import KINDS

SCHEMA = 1
FILE_NAME = "energy.jsonl"
MILLIJOULES_PER_KWH = 3_600_000_000
NEEDS = "needs"
"""The mark of a budget: millijoules that a start of this would use before it had gone one step further."""
MARKS = ("artifact", "resumed_from", "step", "checkpoint", NEEDS)
"""Marks that a trainer may write into its measurement while it runs; see `governance.energy.attribution`."""
PHASES = "phases"
"""The mark that the meter adds: milliseconds of each phase since the interval's begin."""

MAX_SAMPLE_SECONDS = 60.0
"""The longest sample interval that can be configured, and that of a line without `every`."""
KILLED = "killed"

Outcome = Literal["surviving", "wasted", "unknown"]

Announce = Callable[[Path], bool]
"""States in the journal that a file of the ledger will be begun; False for one that is there unannounced."""


@dataclass(frozen=True)
class EnergySample:
    """Millijoules since the interval began, with marks."""

    at: str
    millijoules: int | None
    low: int | None
    high: int | None
    marks: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Interval:
    """One measured context: a stage that was made, or tried."""

    id: str
    attempt: str
    stage: str
    host: str
    method: str
    outcome: Outcome
    cause: str
    samples: tuple[EnergySample, ...]
    unseen_seconds: float = 0.0
    """A kill lost at most the energy of this many seconds."""
    before_seconds: float = 0.0
    """So long its process had run without a meter when it began."""

    @property
    def started(self) -> str:
        """The time of its first line."""
        return self.samples[0].at

    @property
    def finished(self) -> str:
        """The time of its last line."""
        return self.samples[-1].at

    @property
    def millijoules(self) -> int | None:
        """Millijoules read; None if unknown."""
        return self.samples[-1].millijoules

    @property
    def seconds(self) -> float:
        """From the first to the last line, in seconds.

        Where the host's clock was set back between two of them, as the meter's own clock counted its phases.
        """
        times = [moment(sample.at) for sample in self.samples]
        if all(one <= other for one, other in itertools.pairwise(times)):
            return (times[-1] - times[0]).total_seconds()
        first, last = (sum(sample.marks.get(PHASES, {}).values()) for sample in (self.samples[0], self.samples[-1]))
        return float(max(0, last - first)) / 1000

    @property
    def span(self) -> tuple[datetime.datetime, datetime.datetime]:
        """Begin and end."""
        begin = moment(self.started)
        return begin, begin + datetime.timedelta(seconds=self.seconds)


def joules_of(millijoules: int | None) -> float | None:
    """Joules; None is unknown."""
    return None if millijoules is None else millijoules / 1000


def moment(text: str) -> datetime.datetime:
    """The moment that `time_text` wrote."""
    return datetime.datetime.fromisoformat(text)


def seconds_covered(spans: Sequence[tuple[datetime.datetime, datetime.datetime]]) -> float:
    """Seconds of the union of spans."""
    total, reached = 0.0, None
    for begin, end in sorted(spans):
        begin = begin if reached is None else max(begin, reached)
        total += max(0.0, (end - begin).total_seconds())
        reached = end if reached is None else max(end, reached)
    return total


def time_text() -> str:
    """The time in UTC, ISO 8601, to the millisecond.

    All texts are of equal length, so that text order is time order.
    """
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def announce_nothing(path: Path) -> bool:
    """Begin a file without a journal."""
    return True


def host_ledger(ledger: Path, host: str | None = None, announce: Announce = announce_nothing) -> Path:
    """The file that this host appends to.

    It is `ledger` for the host that made it, else one of its own beside it. `announce` is called before it is begun; a
    file that was never announced is left alone, because nobody may sign its lines, and a further one is begun.

    Appends from two hosts to one file can overwrite each other on NFS (open(2), O_APPEND), so no two hosts share
    one; a file is claimed by a hard link, which is atomic there too.
    """
    host = host or socket.gethostname()
    return next(path for path in _paths_for(ledger, host) if announce(path) and _claim(path, host) == host)


def _paths_for(ledger: Path, host: str) -> Iterator[Path]:
    """Files of the ledger that may be this host's, without end."""
    yield ledger
    yield ledger.with_name(f"{ledger.stem}.{host}{ledger.suffix}")
    for number in itertools.count(2):
        yield ledger.with_name(f"{ledger.stem}.{host}.{number}{ledger.suffix}")


def _claim(path: Path, host: str) -> str | None:
    """Make the ledger `path` for `host` unless it exists.

    Return the host whose file it is.
    """
    if not path.exists():
        claim = path.with_name(f".{path.name}.{host}.{os.getpid()}")
        write_text(claim, _line({"kind": "ledger", "schema": SCHEMA, "host": host}) + "\n")
        place(claim, path)
        claim.unlink(missing_ok=True)
    return _head(path).get("host")


def _head(path: Path) -> dict[str, Any]:
    """The first line of a ledger file.

    Raises:
        ManifestError: it is not a ledger, or has another schema.
    """
    with path.open("rb") as lines:
        first = lines.readline()
    try:
        head = json.loads(first)
    except ValueError:
        head = None
    if not isinstance(head, dict) or head.get("kind") != "ledger" or head.get("schema") != SCHEMA:
        raise ManifestError(
            f"{path}: does not begin as an energy ledger of schema {SCHEMA} ({first[:80]!r}). Move the file away; "
            "the next run begins a new one."
        )
    return head


def _line(values: Mapping[str, Any]) -> str:
    return canonical_json(values).decode("utf-8")


def append(path: Path, kind: str, about: Mapping[str, Any], sign: SignLine = dict, **values: Any) -> None:
    """Append one line.

    `about` identifies its origin: interval, attempt, stage, host, process, every, method. `sign` signs it.
    """
    append_line(path, _line(sign({"kind": kind, **about, "at": time_text(), **values})))


def read_ledger(ledger: Path, alive: Callable[[Mapping[str, Any]], bool] | None = None) -> list[Interval]:
    """Intervals of the ledgers of all hosts, by begin.

    Those of one host are in the order of their lines, whatever its clock shows.

    `alive(line)` is whether the process that wrote a line still runs; by default this host's processes are looked
    up, and another host's counts as alive while its last line is younger than a minute.

    Raises:
        ManifestError: a file is not a ledger of this schema.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in files_of(ledger):
        for line in counted_lines(path.read_bytes(), ("interval", "attempt", "stage", "host", "method")):
            if line["kind"] != "end" or {"outcome", "cause"} <= line.keys():
                found.setdefault(line["interval"], []).append(line)
    intervals = [_interval(lines, alive or still_runs) for lines in found.values()]
    latest: dict[str, str] = {}
    ranks: dict[str, tuple[str, int, str]] = {}
    for number, one in enumerate(intervals, 1):
        latest[one.host] = max(one.started, latest.get(one.host, ""))  # its clock may have been set back
        ranks[one.id] = latest[one.host], number if one.started < latest[one.host] else 0, one.id
    return sorted(intervals, key=lambda interval: ranks[interval.id])


def counted_lines(data: bytes, names: Sequence[str] = ("interval", "stage", "host")) -> Iterator[dict[str, Any]]:
    """The lines of intervals in a ledger's bytes.

    `names` are the texts that each needs.

    A torn line, one of another kind, and one without the fields of an interval are left out.
    """
    for text in data.split(b"\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            line = json.loads(text)
            figures = (line["millijoules"], line["low"], line["high"])
            pid, _ = line.get("process", (0, 0))
            known = line["kind"] in KINDS and isinstance(pid, int) and moment(line["at"]).tzinfo is not None
            known = known and all(isinstance(line[name], str) for name in names)
            known = known and all(figure is None or isinstance(figure, int) for figure in figures)
            known = known and all(isinstance(value, dict) for value in (line.get("marks", {}), line))
            if known:
                yield line


def files_of(ledger: Path) -> list[Path]:
    """The existing files of a ledger.

    The first host's own file, and those of other hosts beside it.

    Raises:
        ManifestError: one is not a ledger of this schema.
    """
    paths = [ledger, *sorted(ledger.parent.glob(f"{ledger.stem}.*{ledger.suffix}"))]
    there = [path for path in paths if path.exists()]
    for path in there:
        _head(path)
    return there


def _interval(lines: list[dict[str, Any]], alive: Callable[[Mapping[str, Any]], bool]) -> Interval:
    last = lines[-1]
    if last["kind"] == "end":
        outcome, cause = last["outcome"], last["cause"]
    elif alive(last):
        outcome, cause = "unknown", "still running"
    else:
        outcome, cause = "wasted", HANG if _hung(lines) else KILLED
    samples = tuple(EnergySample(s["at"], s["millijoules"], s["low"], s["high"], s.get("marks", {})) for s in lines)
    return Interval(
        id=last["interval"],
        attempt=last["attempt"],
        stage=last["stage"],
        host=last["host"],
        method=last["method"],
        outcome=outcome,
        cause=cause,
        samples=samples,
        unseen_seconds=float(last.get("every", MAX_SAMPLE_SECONDS)) if cause in (KILLED, HANG) else 0.0,
        before_seconds=float(lines[0].get("before", 0.0)),
    )


def _hung(lines: list[dict[str, Any]]) -> bool:
    """Return whether an interval's last lines record a hang."""
    seen = [line.get("marks", {}).get(PHASES, {}).get(HANG, 0) for line in lines[-2:]]
    return bool(seen[-1] > (seen[0] if len(seen) > 1 else 0))


def still_runs(line: Mapping[str, Any]) -> bool:
    """Return whether the process that wrote a line still runs.

    On this host the process is looked up; one of another host counts as running while the line is younger than a
    minute.
    """
    if line["host"] == socket.gethostname():
        pid, started = line["process"]
        return started is not None and start_time(pid) == int(started)
    age = datetime.datetime.now(datetime.UTC) - moment(line["at"])
    return age.total_seconds() < 60
