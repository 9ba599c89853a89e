"""Cached answers of queue and accounting, at most one a minute.

`<root>/slurm/answers.json` keeps the last answers, and for good what accounting says of jobs that have ended: those
are never queried again. A job has ended once the queue has forgotten it and accounting has an end for each unit, so
a requeue by hand within MinJobAge is seen. `assay slurm status` queries anew; with `--watch` answers of any other
process that are younger than a minute do.

    {"accounted": [{"job": "12", "state": "RUNNING", ...}], "asked": 1764151200.0, "jobs": ["11", "12"],
     "over": [{"job": "11", "state": "COMPLETED", ...}], "queued": [{"job": "12", ...}]}

A job of another user or run that once had one of these ids is not ours: its name differs, or it ended before.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from governance.errors import ClusterError, StorageError
from governance.files import write_json
from slurm import commands as tools
from slurm import rehearsal as local
from slurm.submit import SubmittedJob

ANSWERS_FILE = "answers.json"
WATCH_SECONDS = 60.0
"""Age up to which an answer does for `--watch`."""
_CLOCKS_DIFFER = datetime.timedelta(minutes=5)
"""The controller's clock and ours, at most."""


@dataclass(frozen=True)
class Answers:
    """Known answers about a root's jobs; None where Slurm is silent."""

    queued: list[tools.Queued] | None
    accounted: list[tools.Accounted] | None
    silent: tuple[str, ...] = ()
    """Error messages of the tools that do not answer."""


@dataclass(frozen=True)
class _Cache:
    """Contents of answers.json."""

    jobs: list[str]
    asked: float
    queued: list[tools.Queued]
    accounted: list[tools.Accounted]
    over: list[tools.Accounted]
    """Accounting of jobs that have ended."""


_EMPTY = _Cache([], 0.0, [], [], [])


def ask(root: Path, lines: Sequence[SubmittedJob], most_seconds: float = 0.0) -> Answers:
    """Answers about the jobs of `lines` that are at most so old."""
    cache, here = _read(root), {line.job for line in lines if tools.is_local(line.job)}
    rehearsed = list(local.queued(root, here).values())
    jobs = sorted({line.job for line in lines} - here)
    names = {line.job: line.name for line in lines}
    over = [item for item in cache.over if _ours(item, names)]
    if cache.jobs == jobs and 0 <= time.time() - cache.asked < most_seconds:
        return Answers(cache.queued + rehearsed, over + cache.accounted)
    ended = {item.job.partition("_")[0] for item in over}
    left = [job for job in jobs if job not in ended]
    first = datetime.datetime.fromisoformat(lines[0].submitted)
    since = f"{first.astimezone() - _CLOCKS_DIFFER:%Y-%m-%dT%H:%M:%S}"
    known: list[tools.Queued] | None = None
    accounted: list[tools.Accounted] | None = None
    silent: list[str] = []
    try:
        known = [item for item in tools.queue(left) if _ours(item, names)]
    except ClusterError as error:
        silent.append(str(error))
    try:
        found = tools.accounted(left, every_start=True, since=since)
        accounted = [item for item in found if _ours(item, names)]
    except ClusterError as error:
        silent.append(str(error))
    if known is not None and accounted is not None:
        _keep(root, jobs, known, accounted, over)
    accounts = None if accounted is None else over + accounted
    return Answers(None if known is None else known + rehearsed, accounts, tuple(silent))


def _ours(item: tools.Queued | tools.Accounted, names: Mapping[str, str]) -> bool:
    """Return whether a job is the one submitted under its id.

    A job without a name counts as ours.
    """
    name = names.get(item.job.partition("_")[0])
    return name is not None and (not item.name or item.name.rpartition(".")[2] == name)


def _read(root: Path) -> _Cache:
    """The cached answers.

    The result is empty for a torn file, and for one of a release with other fields.
    """
    try:
        found = json.loads((root / "slurm" / ANSWERS_FILE).read_bytes())
        return _Cache(
            jobs=[str(job) for job in found["jobs"]],
            asked=float(found["asked"]),
            queued=[tools.Queued(**item) for item in found["queued"]],
            accounted=[tools.Accounted(**item) for item in found["accounted"]],
            over=[tools.Accounted(**item) for item in found["over"]],
        )
    except (OSError, ValueError, TypeError, KeyError):
        return _EMPTY


def _keep(
    root: Path,
    jobs: Sequence[str],
    queued: Sequence[tools.Queued],
    accounted: Sequence[tools.Accounted],
    over: Sequence[tools.Accounted],
) -> None:
    """Keep the answers for others.

    Answers about jobs that have ended are kept for good.
    """
    known = {item.job.partition("_")[0] for item in queued}
    last = {item.job: item.state for item in accounted}
    live = known | {unit.partition("_")[0] for unit, state in last.items() if state in tools.LIVE}
    ended = [asdict(item) for item in accounted if item.job.partition("_")[0] not in live]
    values = {
        "accounted": [asdict(item) for item in accounted if item.job.partition("_")[0] in live],
        "asked": time.time(),
        "jobs": list(jobs),
        "over": [asdict(item) for item in over] + ended,
        "queued": [asdict(item) for item in queued],
    }
    with contextlib.suppress(StorageError):  # a full disk, or a root of another account
        write_json(root / "slurm" / ANSWERS_FILE, values)
