"""Rehearsal of a run's jobs without a queue.

The scripts are those of the cluster. Slurm's tools are found under their names in a folder that is first on PATH
(`standin.sh`): a requeue starts the job again, a cancellation ends it, ranks are processes here, or, in an allocation,
steps of its own srun. Dependencies, exit codes, retries and signals before a time limit are the cluster's too.

A job of a rehearsal has a number from `FIRST_LOCAL` on, which no cluster gives. `<root>/slurm/local.jsonl` has a line
for each change ("at" in seconds of the epoch):

    {"at": 1764066000.0, "job": "1000000001_3", "reason": "", "restarts": 0, "state": "RUNNING", "status": 0}
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from governance.errors import ConfigError
from governance.files import append_line, held, read_lines, remove_file, write_text
from governance.hooks import LineSigner, sign_nothing
from governance.log import get_logger
from governance.stage import now
from slurm.commands import FIRST_LOCAL, Queued
from slurm.config import SlurmConfig, minutes
from slurm.graph import SlurmJob
from slurm.render import script_of
from slurm.submit import JOBS_FILE, JobRequest, SubmittedJob, cancellation_mark, next_submission, submitted

_RECORD, _LOCK = "local.jsonl", "rehearsing"
_TOOLS = ("scontrol", "scancel", "sinfo", "srun")
_LIVE = ("PENDING", "RUNNING")
_LOOKING = "status"
"""Note in the lock while a status, which holds it for a moment, looks for a live rehearsal."""
_POLL_SECONDS = 0.2
_LOCK_WAIT_SECONDS = 10.0
"""Seconds that a rehearsal waits for a status to leave the lock."""
_KILL_SECONDS = 60.0
"""From the signal that ends a job to its kill."""


def queued(root: Path, jobs: Iterable[str]) -> dict[str, Queued]:
    """States of rehearsed jobs by id; dead rehearsals are left out."""
    ids = set(jobs)
    if not ids:
        return {}
    with held(root / "slurm" / _LOCK, _LOOKING) as holder:
        alive = holder is not None
    found: dict[str, Queued] = {}
    begun: dict[str, float] = {}
    for line in read_lines(root / "slurm" / _RECORD):
        job, state = str(line["job"]), str(line["state"])
        if job.partition("_")[0] not in ids:
            continue
        at = float(line["at"])
        begun.setdefault(job, at)
        if state == "RUNNING":
            begun[job] = at
        elapsed = int((time.time() if state == "RUNNING" else at) - begun[job])
        found[job] = Queued(job, state, str(line["reason"]), elapsed, "localhost" if state != "PENDING" else "", "")
    return {job: item for job, item in found.items() if alive or item.state not in _LIVE}


def record(orders: Sequence[JobRequest], root: Path, signer: LineSigner = sign_nothing) -> list[SubmittedJob]:
    """Record the requested jobs as a rehearsal."""
    before = submitted(root)
    number = max([FIRST_LOCAL, *(int(line.job) for line in before if int(line.job) >= FIRST_LOCAL)])
    submission = next_submission(root)
    path = root / "slurm" / JOBS_FILE
    sign = signer(path, uuid.uuid4().hex)
    done: dict[str, SubmittedJob] = {}
    for place, order in enumerate(orders, 1):
        job = order.job
        after = [(condition, done[name].job) for condition, name in job.after if name in done] + list(order.after)
        line = SubmittedJob(
            job.name, job.kind, str(number + place), submission, now(), tuple(after), job.tasks,
            order.numbers or tuple(range(job.tasks)),
        )  # fmt: skip
        done[job.name] = line
        remove_file(cancellation_mark(root, line.job))
        append_line(path, json.dumps(sign(asdict(line)), sort_keys=True))
        for unit in _units(line):
            _note(root, unit, "PENDING", reason="Dependency" if after else "Priority")
    return list(done.values())


def rehearse(lines: Sequence[SubmittedJob], jobs: Mapping[str, SlurmJob], root: Path, config: SlurmConfig) -> int:
    """Run the recorded jobs one after the other.

    Returns the status of the first failed job, 0 if none failed.

    Raises:
        ConfigError: another rehearsal of this root is alive.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run_in_order(lines, jobs, root, config)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End running jobs with this process."""
    raise KeyboardInterrupt


def _run_in_order(lines: Sequence[SubmittedJob], jobs: Mapping[str, SlurmJob], root: Path, config: SlurmConfig) -> int:
    states: dict[str, str] = {}
    first = 0
    with _rehearsal_lock(root), _tools() as tools:
        for line in lines:
            # A dependency of an earlier submission, which has no state here, is done, or was run again.
            needed = [states.get(job, "COMPLETED") for condition, job in line.after if condition == "afterok"]
            hindered = any(state != "COMPLETED" for state in needed)
            ended = []
            for unit in _units(line):
                if hindered or cancellation_mark(root, line.job).exists():
                    _note(root, unit, "CANCELLED", reason="DependencyNeverSatisfied" if hindered else "")
                    ended.append("CANCELLED")
                    continue
                status, state = _run(unit, line, jobs[line.name], root, config, tools)
                get_logger(__name__).info("%s (%s): %s, status %d", line.name, unit, state, status)
                first = first or status
                ended.append(state)
            states[line.job] = next((state for state in ended if state != "COMPLETED"), "COMPLETED")
    return first


def _units(line: SubmittedJob) -> list[str]:
    return [f"{line.job}_{number}" for number in line.numbers] if line.tasks else [line.job]


def _note(root: Path, unit: str, state: str, *, reason: str = "", restarts: int = 0, status: int = 0) -> None:
    line = {"at": time.time(), "job": unit, "reason": reason, "restarts": restarts, "state": state, "status": status}
    append_line(root / "slurm" / _RECORD, json.dumps(line, sort_keys=True))


@contextlib.contextmanager
def _tools() -> Iterator[Path]:
    """A folder in which Slurm's tools are ours."""
    with tempfile.TemporaryDirectory(prefix="assay-local-") as folder:
        (Path(folder) / "bin").mkdir()
        tool = Path(folder) / "standin.sh"
        write_text(tool, Path(__file__).with_name(tool.name).read_text(encoding="utf-8"))
        tool.chmod(0o755)  # however this program was installed
        for name in _TOOLS:
            (Path(folder) / "bin" / name).symlink_to(tool)
        yield Path(folder)


def _run(unit: str, line: SubmittedJob, job: SlurmJob, root: Path, config: SlurmConfig, tools: Path) -> tuple[int, str]:
    """Start a job until it is not requeued; its last state."""
    restarts = 0
    while True:
        _note(root, unit, "RUNNING", restarts=restarts)
        shown = tools / unit
        write_text(
            shown,
            f"JobId={unit} JobName={_name(job)}\n   JobState=RUNNING Reason=None Restarts={restarts} PreemptTime=None\n"
            "   ExcNodeList=(null)\n   Partition=local\n   Comment=\n",
        )
        status, timed_out = _start(unit, line, job, root, config, tools, restarts)
        again = (tools / f"{unit}.requeue").exists()
        cancelled = (tools / f"{unit}.cancel").exists() or cancellation_mark(root, line.job).exists()
        for path in (shown, tools / f"{unit}.requeue", tools / f"{unit}.cancel"):
            remove_file(path)
        if cancelled:
            state = "CANCELLED"
        elif again:
            restarts += 1
            _note(root, unit, "PENDING", reason="BeginTime", restarts=restarts, status=status)
            continue
        else:
            state = "COMPLETED" if status == 0 else "TIMEOUT" if timed_out else "FAILED"
        _note(root, unit, state, restarts=restarts, status=status)
        return status, state


def _start(
    unit: str, line: SubmittedJob, job: SlurmJob, root: Path, config: SlurmConfig, tools: Path, restarts: int
) -> tuple[int, bool]:
    """One start of a job's script.

    Returns its exit status, and whether its time limit ended it.
    """
    limit = minutes(config.time_limit if job.kind in ("train", "evaluate") else config.data_time_limit) * 60
    end, warned = time.monotonic() + limit, False
    log = root / "slurm" / "logs" / f"{_name(job)}-{unit}.log"
    environment = _environment(unit, line, job, config, tools, restarts)
    words = ["bash", "-c", 'exec bash "$0" >>"$1" 2>&1', str(script_of(root, job.name)), str(log)]
    with subprocess.Popen(words, env=environment, start_new_session=True) as process:
        try:
            while process.poll() is None:
                left = end - time.monotonic()
                if not warned and left < config.signal_seconds:
                    warned = True
                    _signal(process, signal.SIGUSR1, to_all=job.kind == "train")
                if left < 0 or cancellation_mark(root, line.job).exists() or (tools / f"{unit}.cancel").exists():
                    _end(process)
                time.sleep(_POLL_SECONDS)
        except BaseException:  # an interrupt must end the started job
            _end(process)
            raise
    return process.returncode if process.returncode >= 0 else 128 - process.returncode, time.monotonic() > end


def _signal(process: subprocess.Popen[bytes], number: signal.Signals, *, to_all: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        if to_all:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a job as Slurm does.

    All its processes get SIGTERM, and later SIGKILL.
    """
    _signal(process, signal.SIGTERM, to_all=True)
    try:
        process.wait(_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL, to_all=True)


def _name(job: SlurmJob) -> str:
    return next(option.partition("=")[2] for option in job.options if option.startswith("--job-name="))


def _environment(
    unit: str, line: SubmittedJob, job: SlurmJob, config: SlurmConfig, tools: Path, restarts: int
) -> dict[str, str]:
    """Environment of a job's script, as Slurm sets it."""
    values = dict(os.environ)
    allocation = values.get("SLURM_JOB_ID", "")
    if not allocation:
        values |= {"SLURM_JOB_NODELIST": "localhost", "SLURMD_NODENAME": "localhost", "SLURM_JOB_NUM_NODES": "1"}
        values.pop("SLURM_CPUS_PER_TASK", None)
    cores = values.get("SLURM_JOB_CPUS_PER_NODE", "").partition("(")[0].partition(",")[0]
    values |= {
        "ASSAY_ALLOCATION": allocation,
        "ASSAY_LOCAL": str(tools),
        "PATH": f"{tools / 'bin'}:{values.get('PATH', '')}",
        "SLURM_CPUS_ON_NODE": cores or str(len(os.sched_getaffinity(0))),
        "SLURM_JOB_ID": line.job,
        "SLURM_JOB_NAME": _name(job),
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_NTASKS": str(config.nodes * config.tasks_per_node if job.kind == "train" else 1),
    }
    if line.tasks:
        values |= {"SLURM_ARRAY_JOB_ID": line.job, "SLURM_ARRAY_TASK_ID": unit.partition("_")[2]}
    return values


def refuse_here(config: SlurmConfig, root: Path) -> None:
    """Refuse a rehearsal that cannot run in this process's place.

    Raises:
        ConfigError: another rehearsal is alive, the allocation is too small, or pyxis has none.
    """
    with _rehearsal_lock(root):
        pass
    if nodes := os.environ.get("SLURM_JOB_NUM_NODES") if os.environ.get("SLURM_JOB_ID") else None:
        if int(nodes) < config.nodes:
            raise ConfigError(f"slurm.nodes = {config.nodes}: the allocation has {nodes}. Request as many from salloc.")
    elif config.container_runtime == "pyxis":
        raise ConfigError('slurm.container_runtime = "pyxis" needs srun: rehearse it in an allocation (salloc)')


@contextlib.contextmanager
def _rehearsal_lock(root: Path) -> Iterator[None]:
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        with held(root / "slurm" / _LOCK, f"process {os.getpid()} on {socket.gethostname()}") as holder:
            if holder is None:
                yield
                return
        if holder not in (_LOOKING, "") or time.monotonic() > deadline:  # "": its note is not written yet
            raise ConfigError(f"{root}: another rehearsal is alive: {holder}. Wait for it, or end it with cancel.")
        time.sleep(_POLL_SECONDS)
