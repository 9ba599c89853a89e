"""The attempt that this process is, and its record.

`<root>/slurm/attempts/JOB.jsonl` has a line for each event:

    {"attempt": 0, "event": "started", "job": "7", "nodes": "n[1-2]", "progress": "step 40", "started": "...", "time":
     "..."}
    {..., "event": "ended", "cause": "the gate is closed", "outcome": "explained", "status": 77}

A task of an array is named by the array and its number: the id of its last task is the array's own, and to requeue that
would requeue all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Any

from governance.errors import StorageError
from governance.files import append_line, read_lines

REFUSALS = (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.ENODEV)
"""Errors of a file system that may accept the same a minute later."""
STORAGE_WAIT_SECONDS = 300
"""Seconds that an attempt waits for such a file system, at its start and at its end."""


@dataclass
class JobAttempt:
    """One start of a job.

    Holds the values of the script and of Slurm, and what has happened so far.
    """

    root: Path
    kind: str
    """"train"; anything else runs one command."""
    command: Sequence[str]
    """The command that a person would type."""
    environment: str = ""
    """A script to source, or ''."""
    programs: str = ""
    """Folder of the submitter's `assay`."""
    retries: int = 0
    requeues: bool = True
    """False for a link of a chain."""
    shares: int = 0
    interface: str = ""
    excluded: str = ""
    """Nodes that the script itself excludes."""
    srun_options: Sequence[str] = ()
    rank_options: Sequence[str] = ()
    inside: Sequence[str] = ()
    """Words before a command that put it into a container."""
    node_counts: Sequence[int] = ()
    """Numbers of nodes on which the training may run, the wanted one first; empty: on all, and a failure gives the job
    back."""
    job: str = "0"
    number: int = 0
    began: str = ""
    progress: str = ""
    """A text that changes when the job advances; failures are counted again after each change."""
    left_out: list[str] = field(default_factory=list)
    """Nodes to exclude, from the next try in the allocation, or once the job is back in the queue."""
    leave_seconds: int = 0
    """Seconds before the time limit from which on a failure gives the job back."""
    dropped: list[str] = field(default_factory=list)
    """Nodes that earlier tries in this allocation left out."""
    suspected: list[str] = field(default_factory=list)
    """Nodes whose rank failed first, once for each try: others are preferred."""
    chosen: Sequence[str] = ()
    """Nodes of this try; empty: all of the job's."""
    tries: int = 0
    """Earlier tries in this allocation."""
    log_start: int = 0
    """Size of the log when this try began."""
    needs_time: bool = False
    """True where a retry succeeds only after a while."""

    @property
    def record(self) -> Path:
        """Its file of events."""
        return self.root / "slurm" / "attempts" / f"{self.job}.jsonl"

    @property
    def log(self) -> Path:
        """File of its output."""
        name = os.environ.get("SLURM_JOB_NAME", "assay")
        return self.root / "slurm" / "logs" / f"{name}-{self.job}.{self.number}.log"

    @property
    def tally(self) -> Path:
        """File with a line for each finished shard and artifact."""
        return self.record.with_suffix(".made")

    @property
    def is_cancelled(self) -> bool:
        """True if the job is marked as cancelled; False on stale mounts."""
        return os.path.exists(self.root / "slurm" / "cancelled" / self.job.partition("_")[0])

    @property
    def is_task(self) -> bool:
        """True for a task of an array."""
        return "_" in self.job


def job_here(environment: Mapping[str, str]) -> tuple[str, int]:
    """The job's id (a task: `7_3`) and the number of this start."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{environment.get('SLURM_ARRAY_TASK_ID', '0')}" if array else environment.get("SLURM_JOB_ID", "0")
    return job, int(environment.get("SLURM_RESTART_COUNT") or 0)


def say(text: str) -> None:
    """A line of the log; a disk that refuses it ends nothing."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def moment() -> str:
    """Now, in UTC to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def nodes_here() -> str:
    """The job's nodes, as Slurm writes them."""
    return os.environ.get("SLURM_JOB_NODELIST") or socket.gethostname()


def this_node() -> str:
    """Slurm's name of this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def note(attempt: JobAttempt, event: str, **more: Any) -> bool:
    """Record an event; False where the disk refuses."""
    nodes = ",".join(attempt.chosen) or nodes_here()
    line = {"attempt": attempt.number, "event": event, "job": attempt.job, "nodes": nodes}
    line |= {"started": attempt.began, "time": moment(), **more}
    if not os.path.isdir(attempt.root / "slurm"):
        return False
    try:
        append_line(attempt.record, dumps(line, sort_keys=True))
    except (OSError, StorageError):
        return False
    return True


def events(attempt: JobAttempt, job: str = "") -> list[dict[str, Any]]:
    """Recorded events of this job, or of another one."""
    path = attempt.record.with_name(f"{job}.jsonl") if job else attempt.record
    try:
        return [line for line in read_lines(path) if isinstance(line, dict)]
    except (OSError, StorageError):
        return []


def killed_in_a_row(attempt: JobAttempt) -> int:
    """Number of the last starts that recorded no end and saved nothing."""
    count = 0
    for line in events(attempt):
        if line.get("event") == "ended":
            count = 0
        elif line.get("event") == "started":
            count = count + 1 if line.get("progress") == attempt.progress else 0
    return count


def failures(attempt: JobAttempt) -> int:
    """Number of failed attempts since the last progress.

    Attempts of this job and of the links before it count.
    """
    lines = [line for job in ["", *links(attempt, later=False)] for line in events(attempt, job)]
    return sum(line.get("outcome") == "failed" and line.get("progress") == attempt.progress for line in lines)


def jobs(attempt: JobAttempt) -> list[dict[str, Any]]:
    """The lines of jobs.jsonl."""
    try:
        return [line for line in read_lines(attempt.root / "slurm" / "jobs.jsonl") if isinstance(line, dict)]
    except (OSError, StorageError):
        return []


def links(attempt: JobAttempt, *, later: bool) -> list[str]:
    """Later links of this chain, or earlier ones of its submission."""
    if attempt.requeues:
        return []
    trainings = [line for line in jobs(attempt) if line["kind"] == "train"]
    at = next((place for place, line in enumerate(trainings) if line["job"] == attempt.job), None)
    if at is None:
        return []
    if later:
        return [line["job"] for line in trainings[at + 1 :]]
    return [line["job"] for line in trainings[:at] if line["submission"] == trainings[at]["submission"]]


def shards_made(attempt: JobAttempt) -> str:
    """Progress of a data step, in all attempts of the job."""
    try:
        count = attempt.tally.read_bytes().count(b"\n")
    except OSError:
        count = 0
    return f"{count} made"


def last_saved(attempt: JobAttempt) -> str:
    """Progress of a training: the newest run's last saved step."""
    step = 0
    with contextlib.suppress(OSError):
        newest = max(attempt.root.glob("train/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime, default=None)
        for line in newest.open("rb") if newest else ():
            if b'"event": "checkpoint"' in line and (found := re.search(rb'"step": (\d+)', line)):
                step = max(step, int(found[1]))
    return f"step {step}"
