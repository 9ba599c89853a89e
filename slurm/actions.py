"""Cancel, retry and logs.

Missing jobs are those that failed, were cancelled, or are no longer known to Slurm: of an array only its failed
tasks, otherwise the whole job. Jobs that depend on a missing one are missing too, because Slurm cancelled them with
it. Finished jobs are kept.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from governance.errors import ClusterError, ConfigError, MissingInput, StorageError
from governance.files import remove_file, touch
from slurm import commands
from slurm.graph import Condition, SlurmJob
from slurm.job_states import JobRow, View
from slurm.submit import JobRequest, cancellation_mark

_POLL_SECONDS = 1.0
_LOOK_SECONDS = 15.0
_ATTEMPT = re.compile(r"\.(\d+)(?:\.log|/rank-\d+\.log)$")


def cancel(view: View, root: Path) -> list[str]:
    """Cancel all pending, running and unknown jobs; return their names.

    A file per job informs their scripts as well: a script that requeues itself while Slurm cancels it would otherwise
    start again.

    Raises:
        ClusterError: the controller does not answer.
    """
    live = [row for row in view.rows if row.count("waiting", "running", "unknown")]
    units = [part.unit for row in live for part in row.parts if part.kind in ("waiting", "running", "unknown")]
    jobs = sorted({unit.split("_")[0] for unit in units})
    for job in jobs:
        with contextlib.suppress(StorageError):  # a full disk must not prevent a cancellation
            touch(cancellation_mark(root, job))
    try:
        commands.cancel(jobs)
    except ClusterError:  # else the marks would end them at a later start, unexpectedly
        for job in jobs:
            remove_file(cancellation_mark(root, job))
        raise
    return [row.name for row in live]


def missing(view: View, jobs: Sequence[SlurmJob]) -> tuple[list[JobRequest], list[str]]:
    """Jobs to submit again, and waiting jobs to cancel first.

    Raises:
        ClusterError: the controller does not answer, so what is missing is unknown.
    """
    if not view.queue_answers:
        raise ClusterError(f"what is missing is unknown now: {'; '.join(view.silent)}. Try again when Slurm answers.")
    orders: dict[str, JobRequest] = {}
    stale: list[str] = []
    for job in jobs:
        row = view.row(job.name)
        behind = [name for _, name in job.after if name in orders]
        if row is not None and not _is_resubmitted(row, job, bool(behind)):
            continue
        numbers = _numbers(row, job, bool(behind))
        if row is not None and behind:  # waiting jobs are submitted again with new dependencies
            stale += [part.unit for part in row.parts if part.kind == "waiting"]
        orders[job.name] = JobRequest(job, numbers, tuple(_still(view, job, orders)))
    return list(orders.values()), stale


def _is_resubmitted(row: JobRow, job: SlurmJob, behind: bool) -> bool:
    """Return whether a job is submitted again.

    `behind` states that it waits for one that is.
    """
    if row.superseded:
        return False
    if row.over or (job.tasks and len(row.parts) != job.tasks and not row.done and not row.live):
        return True
    if behind and row.kind == "report":
        return not row.count("running")
    return behind and not row.done and not row.count("running")


def _numbers(row: JobRow | None, job: SlurmJob, behind: bool) -> tuple[int, ...]:
    """Tasks of an array to submit again; empty: all."""
    if row is None or not job.tasks or len(row.parts) != job.tasks:
        return ()
    kept = ("done", "running") if behind else ("done", "running", "waiting")
    found = [part.number for part in row.parts if part.kind not in kept and part.number is not None]
    return () if len(found) == job.tasks else tuple(sorted(found))


def _still(view: View, job: SlurmJob, orders: dict[str, JobRequest]) -> Iterator[tuple[Condition, str]]:
    """Dependencies of a job on jobs already queued."""
    for condition, name in job.after:
        row = view.row(name)
        if row is None or (name in orders and not orders[name].numbers):
            continue
        yield from ((condition, part.unit) for part in row.parts if part.kind in ("waiting", "running"))


def log_of(
    view: View, requested: str, root: Path, attempt: int | None = None, rank: int | None = None
) -> tuple[JobRow, Path]:
    """Log of a job ("train") or array task ("clean[3]").

    Without a name: the log of the first failed job, else of the last one that runs or has finished. `attempt` None
    takes the newest attempt; `rank` None takes all ranks of a training.

    Raises:
        ConfigError: there is no such job.
        MissingInput: it has no log yet.
    """
    found = re.fullmatch(r"(.*?)(?:[\[_](\d+)\]?)?", requested)
    name, number = (found[1], found[2]) if found else (requested, None)
    row = view.row(requested) or view.row(name) if requested else _most_relevant(view)
    if row is None:
        raise ConfigError(f"there is no job {requested!r}; there are: {', '.join(row.name for row in view.rows)}")
    parts = [part for part in row.parts if number is None or part.number in (None, int(number))]
    parts.sort(key=lambda part: ("failed", "lost", "running", "done", "unknown", "waiting").index(part.kind))
    for part in parts:
        if path := _newest(root / "slurm" / "logs", f"{row.name}-{part.unit}", attempt, rank):
            return row, path
    which = f", attempt {attempt}" * (attempt is not None) + f", rank {rank}" * (rank is not None)
    raise MissingInput(f"{row.name}{which}: has written no log yet. See why with: assay slurm status CONFIG")


def _newest(logs: Path, unit: str, attempt: int | None, rank: int | None) -> Path | None:
    """The log of an attempt, the newest where none is named.

    Without attempts: the log that Slurm opened.
    """
    pattern = f"*.{unit}.{'*' if attempt is None else attempt}" + (".log" if rank is None else f"/rank-{rank}.log")
    of_attempts = {int(number[1]): path for path in logs.glob(pattern) if (number := _ATTEMPT.search(str(path)))}
    if of_attempts:
        return of_attempts[max(of_attempts)]
    return next(logs.glob(f"*.{unit}.log"), None) if attempt is None and rank is None else None


def _most_relevant(view: View) -> JobRow | None:
    """The first failed job, else the last running or done."""
    for rows in (
        [row for row in view.rows if row.over and any(part.attempts for part in row.parts)],
        [row for row in view.rows if row.count("running")][::-1],
        [row for row in view.rows if row.done][::-1],
    ):
        if rows:
            return rows[0]
    return view.rows[0] if view.rows else None


def follow(
    path: Path, live: Callable[[], bool], wait: Callable[[float], None] = time.sleep, target: TextIO | None = None
) -> None:
    """Print a log as it grows, until its job has ended.

    `target` is standard output by default.
    """
    target = target or sys.stdout
    over, looked = False, -math.inf
    with open(path, "rb") as log:
        while True:
            if text := log.read():
                target.write(text.decode("utf-8", "replace"))
                target.flush()
            if over:
                return
            if not text and time.monotonic() - looked > _LOOK_SECONDS:
                over, looked = not live(), time.monotonic()  # then again: lines from before the answer
            else:
                wait(_POLL_SECONDS)
