"""State of each job, from queue, accounting and records.

The queue knows jobs that wait, run, or ended within the last minutes; accounting knows jobs that ended, if the site
has it and it answers; the run's own records (`<root>/slurm/attempts/`) hold what each attempt reported, whatever is
down. An attempt's record has a line for its start and, where it could still write, one for its end:

    {"attempt": 0, "event": "started", "job": "12_3", "nodes": "node1", "started": "...", "time": "..."}
    {"action": "stop", "attempt": 0, "cause": "the gate is closed", "event": "ended", "job": "12_3", "means": "data",
     "nodes": "node1", "outcome": "explained", "progress": "", "started": "...", "status": 77, "time": "..."}

`means` and `action` are the verdict on a failure (`slurm/attempt/restart_verdict.py`). `outcome` is "done", "left"
(saved, will be resumed), "explained" (a retry would end the same way) or "failed". An attempt without an end was killed
with its script, most often with its node.

Queue and accounting are queried at most once a minute: `<root>/slurm/answers.json` keeps the last answers, and for good
what accounting says of jobs that have ended: those are never queried again. A job has ended once the queue has
forgotten it and accounting has an end for each unit, so a requeue by hand within MinJobAge is seen. `assay slurm
status` queries again; with `--watch` answers of any other process that are younger than a minute do.

    {"accounted": [{"job": "12", "state": "RUNNING", ...}], "asked": 1764151200.0, "jobs": ["11", "12"],
     "over": [{"job": "11", "state": "COMPLETED", ...}], "queued": [{"job": "12", ...}], "silent": []}

A job of another user or run that once had one of these ids is not ours: its name differs, or it ended before.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from governance.errors import ClusterError, StorageError
from governance.files import read_lines, write_json
from slurm import commands
from slurm import rehearsal as local
from slurm.attempt.restart_verdict import tail_of, verdict_of
from slurm.submit import SubmittedJob, submitted

Class = Literal["waiting", "running", "done", "failed", "lost", "unknown"]
_OF_OUTCOMES: dict[str, Class] = {"done": "done", "explained": "failed", "failed": "failed", "left": "failed"}
_NO_LOG = "the node could not start it: does it see the root's folder and this user?"


@dataclass(frozen=True)
class Attempt:
    """One start of a job."""

    number: int
    nodes: str
    started: str
    ended: str
    """"" if it did not record its end."""
    status: int | None
    outcome: str
    cause: str
    means: str = ""
    """Cause by the verdict on its end, "" without one."""
    action: str = ""
    """Action by that verdict."""


@dataclass(frozen=True)
class UnitState:
    """A job, or one task of an array."""

    unit: str
    """Slurm's id of it: "12", or "12_3"."""
    number: int | None
    """Number of the task; None for a single job."""
    kind: Class
    state: str
    """Slurm's state, or ours where Slurm has none: "LOST", "UNKNOWN"."""
    reason: str = ""
    """Slurm's reason for the wait."""
    elapsed: int = 0
    """Seconds."""
    nodes: str = ""
    starts: str = ""
    excluded: str = ""
    """Excluded nodes."""
    status: int | None = None
    """Exit status."""
    cause: str = ""
    """Cause of its end."""
    means: str = ""
    """Cause of the last failure, by the verdict on it."""
    action: str = ""
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class JobRow:
    """State of a job, or of each task of an array."""

    name: str
    kind: str
    after: tuple[str, ...]
    """Names of the jobs that it waits for."""
    parts: tuple[UnitState, ...]
    joules: int | None = None
    """Energy by accounting, over all starts and submissions."""
    core_seconds: int = 0
    submission: int = 0
    """Newest submission that contains it."""
    superseded: bool = False
    """True where its outcome no longer matters, because a later job did, or does, its work."""

    def count(self, *kinds: Class) -> int:
        """Number of its parts in this state."""
        return sum(part.kind in kinds for part in self.parts)

    @property
    def done(self) -> bool:
        """Return whether all parts are done."""
        return self.count("done") == len(self.parts)

    @property
    def live(self) -> bool:
        """Return whether a part waits or runs."""
        return self.count("waiting", "running") > 0

    @property
    def over(self) -> bool:
        """Return whether a part failed for good."""
        return not self.superseded and self.count("failed", "lost") > 0


@dataclass(frozen=True)
class View:
    """All jobs of a run, in order."""

    rows: tuple[JobRow, ...]
    submissions: int
    first: str
    """Time of the first submission."""
    last: str
    """Time of the newest."""
    silent: tuple[str, ...] = field(default=())
    """Error messages of Slurm's tools that did not answer."""
    queue_answers: bool = True

    def row(self, name: str) -> JobRow | None:
        """The job of this name."""
        return next((row for row in self.rows if row.name == name), None)


def gather(root: Path, most_seconds: float = 0.0) -> View | None:
    """States of all jobs submitted for this root; None without any.

    `most_seconds` is the age up to which cached answers are used.
    """
    lines = submitted(root)
    if not lines:
        return None
    answers = ask(root, lines, most_seconds)
    queued = None if answers.queued is None else {item.job: item for item in answers.queued}
    accounts: dict[str, list[commands.Accounted]] | None = None
    if answers.accounted is not None:
        accounts = {}
        for item in answers.accounted:
            accounts.setdefault(item.job, []).append(item)
    names = {line.job: line.name for line in lines}
    used: dict[str, list[commands.Accounted]] = {}  # jobs of every submission: failed attempts used energy too
    for unit, items in (accounts or {}).items():
        used.setdefault(names.get(unit.partition("_")[0], ""), []).extend(items)
    rows = []
    for name, units in _newest(lines).items():
        line = next(line for line in reversed(lines) if line.name == name)
        parts = [_state_of(root, unit, number, queued, accounts) for unit, number in units]
        known = used.get(name, [])
        measured = [item.joules for item in known if item.joules is not None]
        after = tuple(names[job] for _, job in line.after if job in names)
        rows.append(
            JobRow(
                name, line.kind, after, tuple(parts), sum(measured) if measured else None,
                sum(item.core_seconds for item in known), line.submission,
            )
        )  # fmt: skip
    explained = _explained(_superseded(rows))
    return View(
        explained, lines[-1].submission, lines[0].submitted, lines[-1].submitted, answers.silent, queued is not None
    )


def _newest(lines: Sequence[SubmittedJob]) -> dict[str, list[tuple[str, int | None]]]:
    """Newest (id, number) of each job and task, by first submission."""
    newest: dict[str, dict[int | None, str]] = {}
    for line in lines:
        units = newest.setdefault(line.name, {})
        if line.tasks:
            if None in units or any(number is not None and number >= line.tasks for number in units):
                units.clear()  # planned again, with another number of tasks
            units.update({number: f"{line.job}_{number}" for number in line.numbers})
        else:
            units.clear()
            units[None] = line.job
    return {name: [(unit, number) for number, unit in units.items()] for name, units in newest.items()}


def _state_of(
    root: Path,
    unit: str,
    number: int | None,
    queued: Mapping[str, commands.Queued] | None,
    accounts: Mapping[str, Sequence[commands.Accounted]] | None,
) -> UnitState:
    entry = queued.get(unit) if queued is not None else None
    account = accounts[unit][-1] if accounts and unit in accounts else None
    well = class_of(entry.state if entry else account.state if account else "") == "done"
    # An array has thousands of tasks with a file each, so those of finished tasks are not read.
    attempts = () if well and number is not None else attempts_of(root, unit)
    last = attempts[-1] if attempts else None
    base = UnitState(unit, number, "unknown", "UNKNOWN", attempts=attempts)
    if last is not None:
        base = replace(base, nodes=last.nodes, status=last.status, cause=last.cause)
    if account is not None:
        base = replace(base, nodes=account.nodes or base.nodes, elapsed=account.elapsed)
    if entry is not None:
        base = replace(
            base, state=entry.state, reason=entry.reason, elapsed=entry.elapsed, starts=entry.starts,
            nodes=entry.nodes or base.nodes, excluded=entry.excluded,
        )  # fmt: skip
    elif account is not None:
        base = replace(base, state=account.state)
    kind = class_of(base.state)
    if last is not None and last.outcome == "done" and (base.state == "PREEMPTED" or kind == "waiting"):
        kind = "done"  # so Slurm ends or requeues a job that it once signalled to stop
    if entry is None and kind in ("waiting", "running", "unknown"):
        base, kind = _without_the_queue(base, last, queued is not None, account is not None)
    if kind == "failed":
        base = _with_cause(base, account)
    return _judged(root, replace(base, kind=kind))


def _judged(root: Path, base: UnitState) -> UnitState:
    """Part with the verdict on its last failure.

    The verdict on a killed attempt is made from its log.
    """
    last = base.attempts[-1] if base.attempts else None
    if base.kind == "done" or (last is not None and last.outcome == "done"):
        return base
    if base.kind in ("failed", "lost") and not (last is not None and last.means):
        if base.state.startswith("CANCELLED"):
            return base
        number = last.number if last is not None else 0
        log = next((root / "slurm" / "logs").glob(f"*-{base.unit}.{number}.log"), None)
        verdict = verdict_of(tail_of(log) if log else "", base.status, base.state)
        return base if verdict is None else replace(base, means=verdict.cause, action=verdict.action)
    known = next((attempt for attempt in reversed(base.attempts) if attempt.means), None)
    return base if known is None else replace(base, means=known.means, action=known.action)


def _without_the_queue(
    base: UnitState, last: Attempt | None, queue_answers: bool, accounted: bool
) -> tuple[UnitState, Class]:
    """State of a job that the queue does not have.

    Taken from the job's own record; a job without a record is lost.
    """
    if last is not None and last.outcome:
        kind = _OF_OUTCOMES.get(last.outcome, "unknown")
        if kind == "done" or (queue_answers and not accounted):
            return replace(base, state="COMPLETED" if kind == "done" else "FAILED"), kind
    if queue_answers:
        return replace(base, state="LOST", cause="the controller no longer knows it"), "lost"
    return base, class_of(base.state)


def _with_cause(base: UnitState, account: commands.Accounted | None) -> UnitState:
    """A failed job with its status and cause."""
    if account is not None:
        base = replace(base, status=account.status or base.status)
        if not base.cause and account.signal:
            base = replace(base, cause=_NO_LOG if account.signal == 53 else f"ended by signal {account.signal}")
        own = re.search(r"(?:^|; )(assay: .*?)(?:; assay journal |$)", account.comment)
        if not base.cause and own:
            base = replace(base, cause=own[1])
    words = {
        "TIMEOUT": "it reached its time limit",
        "OUT_OF_MEMORY": "it used more memory than it requested",
        "NODE_FAIL": "its node failed",
        "DEADLINE": "its deadline passed",
        "BOOT_FAIL": "its node did not boot",
        "PREEMPTED": "another job took its node",
    }
    if base.state in words:
        base = replace(base, cause=words[base.state] + (f"; {base.cause}" if base.cause else ""))
    if base.attempts and base.attempts[-1].outcome == "done":  # it was requeued, or cancelled, after its end
        base = replace(base, cause=f"it was finished; then Slurm ended it ({base.state})")
    if not base.cause and base.attempts and not base.attempts[-1].ended:
        base = replace(base, cause="killed without a record of its end, most often with its node")
    return base


def _superseded(rows: Sequence[JobRow]) -> list[JobRow]:
    """Mark rows whose outcome no longer matters, because later rows replace them.

    Shares and joins no longer count once the data is made, or planned again without them; nor does a link of a chain
    that a later link continues.
    """
    made = any(row.kind == "data" and row.done for row in rows)
    planned = next((row.submission for row in rows if row.kind == "data"), 0)
    found: list[JobRow] = []
    goes_on = False
    for row in reversed(rows):
        if row.kind in ("share", "join"):
            superseded = made or (row.submission < planned and not row.done and not row.live)
        else:
            superseded = row.kind == "train" and goes_on
        found.append(replace(row, superseded=superseded))
        goes_on = goes_on or (row.kind == "train" and (row.live or row.done))
    return found[::-1]


def _explained(rows: Sequence[JobRow]) -> tuple[JobRow, ...]:
    """Name the failed dependency of each cancelled job."""
    done: dict[str, JobRow] = {}
    for row in rows:
        broken = [name for name in row.after if name in done and done[name].over]
        parts = [
            replace(part, cause=f"because {broken[0]} did not succeed")
            if part.state.startswith("CANCELLED") and not part.attempts and broken
            else part
            for part in row.parts
        ]
        done[row.name] = replace(row, parts=tuple(parts))
    return tuple(done.values())


def class_of(state: str) -> Class:
    """Class of a Slurm state."""
    if state in commands.WAITING:
        return "waiting"
    if state in commands.RUNNING:
        return "running"
    if state in ("UNKNOWN", ""):
        return "unknown"
    return "done" if state == "COMPLETED" else "failed"


def attempts_of(root: Path, unit: str) -> tuple[Attempt, ...]:
    """Records of a job's attempts, oldest first."""
    found: dict[tuple[int, str], Attempt] = {}
    for line in read_lines(root / "slurm" / "attempts" / f"{unit}.jsonl"):
        values: dict[str, Any] = line if isinstance(line, dict) else {}
        mark = (int(values.get("attempt", 0)), str(values.get("started", "")))
        if values.get("event") == "started":
            found.setdefault(mark, Attempt(mark[0], str(values.get("nodes", "")), mark[1], "", None, "", ""))
        elif values.get("event") == "ended":
            found[mark] = Attempt(
                mark[0], str(values.get("nodes", "")), mark[1], str(values.get("time", "")), values.get("status"),
                str(values.get("outcome", "")), str(values.get("cause", "")), str(values.get("means", "")),
                str(values.get("action", "")),
            )  # fmt: skip
    attempts = list(found.values())
    for index, attempt in enumerate(attempts[:-1]):
        if not attempt.ended:
            attempts[index] = replace(
                attempt, outcome="killed", cause="killed without a record of its end, most often with its node"
            )
    return tuple(attempts)


ANSWERS_FILE = "answers.json"
WATCH_SECONDS = 60.0
"""Age up to which an answer does for `--watch`."""
_CLOCKS_DIFFER = datetime.timedelta(minutes=5)
"""The controller's clock and ours, at most."""


@dataclass(frozen=True)
class Answers:
    """Known answers about a root's jobs; None where Slurm is silent."""

    queued: list[commands.Queued] | None
    accounted: list[commands.Accounted] | None
    silent: tuple[str, ...] = ()
    """Error messages of the tools that do not answer."""


@dataclass(frozen=True)
class _Cache:
    """Contents of answers.json."""

    jobs: list[str]
    asked: float
    queued: list[commands.Queued]
    accounted: list[commands.Accounted]
    over: list[commands.Accounted]
    """Accounting of jobs that have ended."""
    silent: list[str]
    """Error messages of accounting, where it did not answer."""


_EMPTY = _Cache([], 0.0, [], [], [], [])


def ask(root: Path, lines: Sequence[SubmittedJob], most_seconds: float) -> Answers:
    """Answers about the jobs of `lines` that are at most so old."""
    cache, here = _read(root), {line.job for line in lines if commands.is_local(line.job)}
    rehearsed = list(local.queued(root, here).values())
    jobs = sorted({line.job for line in lines} - here)
    names = {line.job: line.name for line in lines}
    over = [item for item in cache.over if _ours(item, names)]
    if cache.jobs == jobs and 0 <= time.time() - cache.asked < most_seconds:
        return Answers(cache.queued + rehearsed, over + cache.accounted, tuple(cache.silent))
    ended = {item.job.partition("_")[0] for item in over}
    left = [job for job in jobs if job not in ended]
    first = datetime.datetime.fromisoformat(lines[0].submitted)
    since = f"{first.astimezone() - _CLOCKS_DIFFER:%Y-%m-%dT%H:%M:%S}"
    known: list[commands.Queued] | None = None
    accounted: list[commands.Accounted] | None = None
    silent: list[str] = []
    try:
        known = [item for item in commands.queue(left) if _ours(item, names)]
    except ClusterError as error:
        silent.append(str(error))
    try:
        found = commands.accounted(left, since=since)
        accounted = [item for item in found if _ours(item, names)]
    except ClusterError as error:
        silent.append(str(error))
    if known is not None:  # a site without accounting has the same watchers
        _keep(root, _Cache(jobs, time.time(), known, accounted or [], over, silent))
    accounts = None if accounted is None else over + accounted
    return Answers(None if known is None else known + rehearsed, accounts, tuple(silent))


def _ours(item: commands.Queued | commands.Accounted, names: Mapping[str, str]) -> bool:
    """Return whether a job is the one submitted under its id.

    A job without a name counts as ours.
    """
    name = names.get(item.job.partition("_")[0])
    return name is not None and (not item.name or item.name.rpartition(".")[2] == name)


def _read(root: Path) -> _Cache:
    """The cached answers.

    Returns nothing for a torn file, or one of a release with other fields.
    """
    try:
        found = json.loads((root / "slurm" / ANSWERS_FILE).read_bytes())
        return _Cache(
            jobs=[str(job) for job in found["jobs"]],
            asked=float(found["asked"]),
            queued=[commands.Queued(**item) for item in found["queued"]],
            accounted=[commands.Accounted(**item) for item in found["accounted"]],
            over=[commands.Accounted(**item) for item in found["over"]],
            silent=[str(message) for message in found["silent"]],
        )
    except (OSError, ValueError, TypeError, KeyError):
        return _EMPTY


def _keep(root: Path, new: _Cache) -> None:
    """Keep new answers for others.

    Answers about jobs that have ended are kept for good.
    """
    known = {item.job.partition("_")[0] for item in new.queued}
    last = {item.job: item.state for item in new.accounted}
    live = known | {unit.partition("_")[0] for unit, state in last.items() if state in commands.LIVE}
    ended = [item for item in new.accounted if item.job.partition("_")[0] not in live]
    left = [item for item in new.accounted if item.job.partition("_")[0] in live]
    with contextlib.suppress(StorageError):  # a full disk, or a root of another account
        write_json(root / "slurm" / ANSWERS_FILE, asdict(replace(new, accounted=left, over=new.over + ended)))
