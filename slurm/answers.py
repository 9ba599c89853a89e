"""The answers of the queue and of accounting about a root's jobs, asked for at most once a minute by all who watch.

`<root>/slurm/answers.json` keeps the last answers, and for good what accounting says of jobs that have ended: those
are never asked for again. A job has ended once the queue has forgotten it and accounting has an end for each unit, so
what somebody puts back within MinJobAge is seen. `assay slurm status` asks anew; with `--watch` answers of any other
process that are younger than a minute do.

    {"accounted": [{"job": "12", "state": "RUNNING", ...}], "asked": 1764151200.0, "jobs": ["11", "12"],
     "over": [{"job": "11", "state": "COMPLETED", ...}], "queued": [{"job": "12", ...}]}

A job of another user or run that once had one of these ids is none of ours: its name differs, or it ended before.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from governance.errors import ClusterError, StorageError
from governance.files import write_json
from slurm import local, tools
from slurm.submit import Submitted

ANSWERS_FILE = "answers.json"
WATCH_SECONDS = 60.0
"""Age up to which an answer does for somebody who watches."""
_LIVE = {
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RUNNING", "SUSPENDED", "STOPPED",
    "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "RESV_DEL_HOLD", "REQUEUE_FED",
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What is known of a root's jobs; None: that part of Slurm does not answer."""

    queued: list[tools.Queued] | None
    accounted: list[tools.Accounted] | None
    silent: tuple[str, ...] = ()
    """Which parts do not answer, in their tools' words."""


def ask(root: Path, lines: Sequence[Submitted], most_seconds: float = 0.0) -> Answers:
    """Answers about the jobs of `lines` that are at most so old."""
    kept, here = _kept(root), {line.job for line in lines if tools.is_local(line.job)}
    rehearsed = list(local.queued(root, here).values())
    jobs = sorted({line.job for line in lines} - here)
    over = [tools.Accounted(**item) for item in kept.get("over", [])]
    if kept.get("jobs") == jobs and 0 <= time.time() - kept["asked"] < most_seconds:
        queued = [tools.Queued(**item) for item in kept["queued"]]
        return Answers(queued + rehearsed, over + [tools.Accounted(**item) for item in kept["accounted"]])
    names = {line.job: line.name for line in lines}
    ended = {item.job.partition("_")[0] for item in over}
    left = [job for job in jobs if job not in ended]
    queued, accounted, silent = _queued(left), _accounted(left, lines), []
    if isinstance(queued, str):
        silent.append(queued)
        queued = None
    if isinstance(accounted, str):
        silent.append(accounted)
        accounted = None
    queued = [item for item in queued if _ours(item.name, names[item.job.partition("_")[0]])] if queued else queued
    if accounted is not None:
        accounted = [item for item in accounted if _ours(item.name, names.get(item.job.partition("_")[0], ""))]
    if queued is not None and accounted is not None:
        _keep(root, jobs, queued, accounted, over)
    accounts = None if accounted is None else over + accounted
    return Answers(None if queued is None else queued + rehearsed, accounts, tuple(silent))


def _queued(jobs: Sequence[str]) -> list[tools.Queued] | str:
    try:
        return tools.queue(jobs)
    except ClusterError as error:
        return str(error)


def _accounted(jobs: Sequence[str], lines: Sequence[Submitted]) -> list[tools.Accounted] | str:
    first = datetime.datetime.fromisoformat(lines[0].submitted.replace("Z", "+00:00"))
    since = first - datetime.timedelta(minutes=5)  # the controller's clock and ours may differ
    try:
        return tools.accounted(jobs, every_start=True, since=f"{since.astimezone():%Y-%m-%dT%H:%M:%S}")
    except ClusterError as error:
        return str(error)


def _ours(told: str, name: str) -> bool:
    """Whether a job of this name is the one that was submitted as `name`; so, too, where Slurm tells none."""
    return not told or not name or told.rpartition(".")[2] == name


def _kept(root: Path) -> dict[str, Any]:
    try:
        found = json.loads((root / "slurm" / ANSWERS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(
    root: Path,
    jobs: Sequence[str],
    queued: Sequence[tools.Queued],
    accounted: Sequence[tools.Accounted],
    over: Sequence[tools.Accounted],
) -> None:
    """Keep the answers for others; those about jobs that have ended for good."""
    known = {item.job.partition("_")[0] for item in queued}
    last = {item.job: item.state for item in accounted}
    live = known | {unit.partition("_")[0] for unit, state in last.items() if state in _LIVE}
    ended = [asdict(item) for item in accounted if item.job.partition("_")[0] not in live]
    values = {
        "accounted": [asdict(item) for item in accounted if item.job.partition("_")[0] in live],
        "asked": time.time(),
        "jobs": list(jobs),
        "over": [asdict(item) for item in over] + ended,
        "queued": [asdict(item) for item in queued],
    }
    with contextlib.suppress(StorageError):  # a full disk, or a root of somebody else
        write_json(root / "slurm" / ANSWERS_FILE, values)
