"""Submission of a run's graph, all or nothing.

`<root>/slurm/jobs.jsonl` has one line for each job that was submitted:

    {"after": [["afterok", "11"]], "job": "12", "kind": "share", "name": "clean", "numbers": [0, 1, 2],
     "submission": 1, "submitted": "2026-11-25T10:00:00Z", "tasks": 3}

Each line is signed as it is written (`governance/signing/signed_lines.py`).

The jobs that wait for nothing are held until all are queued. If a submission fails half-way, the queued jobs are
cancelled before any of them has run, also one whose sbatch gave no answer: it is found in the queue by its script.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from governance.errors import ClusterError, ConfigError, ManifestError, Occupied, storage_errors
from governance.files import append_line, held, read_lines, remove_file, touch, write_text
from governance.hooks import LineSigner, sign_nothing
from governance.log import get_logger
from governance.signing.signed_lines import without_signature
from governance.stage import now
from slurm import commands
from slurm.config import SlurmConfig
from slurm.graph import Condition, SlurmJob, throttled
from slurm.render import NO_MOUNTS, ContainerMounts, keep_program, render, script_of

JOBS_FILE = "jobs.jsonl"


@dataclass(frozen=True)
class SubmittedJob:
    """A line of jobs.jsonl."""

    name: str
    kind: str
    job: str
    """Slurm's id; of all tasks together where it is an array."""
    submission: int
    submitted: str
    after: tuple[tuple[str, str], ...] = ()
    """(condition, id), as passed to sbatch."""
    tasks: int = 0
    """Tasks of the whole array; 0 for a single job."""
    numbers: tuple[int, ...] = ()
    """Its tasks that were submitted."""


@dataclass(frozen=True)
class JobRequest:
    """A job to submit.

    All of the job, or some tasks of its array, with dependencies on jobs that are queued already.
    """

    job: SlurmJob
    numbers: tuple[int, ...] = ()
    """Tasks of an array; empty: all."""
    after: tuple[tuple[Condition, str], ...] = ()
    """(condition, id) of jobs that are queued already."""


def submitted(root: Path) -> list[SubmittedJob]:
    """Every job that was submitted for this root, in order.

    Raises:
        ManifestError: a line is not one of a submission.
    """
    found = []
    for line in read_lines(root / "slurm" / JOBS_FILE):
        try:
            after = tuple((str(condition), str(job)) for condition, job in line["after"])
            values = without_signature(line)
            datetime.fromisoformat(values["submitted"])
            found.append(SubmittedJob(**{**values, "after": after, "numbers": tuple(line["numbers"])}))
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(
                f"{root / 'slurm' / JOBS_FILE}: no submission wrote the line {str(line)[:120]}. Remove it, and find "
                "out who can write to this folder"
            ) from error
    return found


def keep_scripts(
    jobs: Iterable[SlurmJob], config_file: Path, root: Path, config: SlurmConfig, seen: ContainerMounts = NO_MOUNTS
) -> None:
    """Write the scripts and the log folder below the root."""
    touch(root / "slurm" / "logs" / ".keep")
    keep_program(root)
    for job in jobs:
        write_text(script_of(root, job.name), render(job, config_file, root, config, seen))
    _take_write_permission(root)


def _take_write_permission(root: Path) -> None:
    """Remove other accounts' write permission from files that the jobs execute.

    These are the jobs' scripts, the program that runs them, and the records that they compare with.

    Raises:
        ConfigError: one of them belongs to another account.
    """
    folder = root / "slurm"
    named = [folder, *folder.glob("*.sbatch"), folder / JOBS_FILE, folder / "submitted.jsonl"]
    for path in [*named, *(folder / "machinery").rglob("*"), folder / "machinery"]:
        if not path.exists():
            continue
        found = path.stat()
        if found.st_uid not in (os.getuid(), 0):
            raise ConfigError(
                f"{path}: belongs to the account {found.st_uid}, and jobs of this run would execute what that account "
                f"writes there. Choose another --root, or remove {folder}."
            )
        if found.st_mode & 0o022:
            with storage_errors(path):
                path.chmod(found.st_mode & 0o7755)


@contextlib.contextmanager
def submission_lock(root: Path, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold the right to submit or cancel jobs of this root.

    `patience_seconds` limits the wait for another process.

    Raises:
        Occupied: another process still holds it.
    """
    with held(root / "slurm" / "submitting", "a submission", wait_seconds=patience_seconds) as holder:
        if holder is not None:
            raise Occupied(
                f"{root}: another process submits or cancels jobs for this root. Wait for it, then look with status."
            )
        yield


def cancellation_mark(root: Path, job: str) -> Path:
    """File that marks a job as cancelled, for its script.

    A script that requeues itself at that moment ends at its next start.
    """
    return root / "slurm" / "cancelled" / job


def next_submission(root: Path) -> int:
    """The number of the submission that comes next."""
    return 1 + max((line.submission for line in submitted(root)), default=0)


def submit(
    requests: Sequence[JobRequest],
    root: Path,
    config: SlurmConfig,
    begin: datetime | None = None,
    signer: LineSigner = sign_nothing,
) -> list[SubmittedJob]:
    """Queue jobs whose scripts are already written; the recorded lines.

    `begin` is the earliest start of jobs without dependencies; None means at once.

    Raises:
        ClusterError: Slurm refuses one; then none of this submission is queued.
    """
    number = next_submission(root)
    done: dict[str, SubmittedJob] = {}
    record = root / "slurm" / JOBS_FILE
    sign = signer(record, uuid.uuid4().hex)
    try:
        for request in requests:
            line = _submit(request, done, number, root, config, begin)
            done[request.job.name] = line
            remove_file(cancellation_mark(root, line.job))  # left by an earlier job with this number
            append_line(record, json.dumps(sign(asdict(line)), sort_keys=True), durable=True)
        commands.release([line.job for line in done.values() if not line.after])
    except BaseException as error:  # an interrupt, too, must leave no job behind
        state = f"{len(done)} of {len(requests)} jobs were queued"
        try:
            commands.cancel([line.job for line in done.values()])
            state += "; they are cancelled" if done else ""
        except ClusterError as refusal:
            state += f", and could not be cancelled ({refusal}): assay slurm cancel CONFIG"
        try:
            if lost := _unrecorded(requests[: len(done) + 1], root, done):
                commands.cancel(lost)
                state += f"; sbatch had queued {', '.join(lost)} without an answer, and this is cancelled, too"
        except ClusterError:
            state += "; whether sbatch queued one more without an answer is unknown: look with squeue --me"
        if isinstance(error, ClusterError):
            raise ClusterError(f"{error}\n{state}") from error
        get_logger(__name__).error("%s", state)
        raise
    return list(done.values())


def _unrecorded(requests: Sequence[JobRequest], root: Path, done: Mapping[str, SubmittedJob]) -> list[str]:
    """Queued jobs of the last request that no line records.

    Their sbatch was cut off before its answer.
    """
    known = {line.job for line in (*submitted(root), *done.values())}
    return [job for job in commands.jobs_of(script_of(root, requests[-1].job.name)) if job not in known]


def _submit(
    request: JobRequest,
    done: Mapping[str, SubmittedJob],
    number: int,
    root: Path,
    config: SlurmConfig,
    begin: datetime | None,
) -> SubmittedJob:
    job = request.job
    after = [(condition, done[name].job) for condition, name in job.after if name in done] + list(request.after)
    options = (
        [f"--dependency={','.join(f'{condition}:{ident}' for condition, ident in after)}"] if after else ["--hold"]
    )
    if begin is not None and not after:  # as seconds from now: a local time is ambiguous when summer time ends
        options.append(f"--begin=now+{max(0, int((begin - datetime.now(UTC)).total_seconds()))}")
    if request.numbers:
        options.append(f"--array={ranges(request.numbers)}{throttled(config)}")
    return SubmittedJob(
        name=job.name,
        kind=job.kind,
        job=commands.submit(script_of(root, job.name), options),
        submission=number,
        submitted=now(),
        after=tuple(after),
        tasks=job.tasks,
        numbers=request.numbers or tuple(range(job.tasks)),
    )


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as Slurm writes them: 1,2,3,7 as "1-3,7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
