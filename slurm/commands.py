"""Slurm's command-line tools: the only code that calls them.

Their output becomes values, their refusals errors. Formats are requested field by field, which all releases since 20.11
understand; `--json` differs between them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from governance.errors import ClusterError

FIRST_LOCAL = 10**9
"""Jobs of a rehearsal (`rehearsal.py`) have numbers from here on, above all that Slurm gives."""
WAITING = frozenset({
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD",
})  # fmt: skip
"""States of a job that is not started yet."""
RUNNING = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT"})
LIVE = WAITING | RUNNING
NOT_ON_PATH = "not on this machine's PATH"
"""Words of the error where Slurm's tools are not installed, or their module is not loaded."""
_SEPARATOR = "\x1f"
_SECONDS = 60.0
_SHOWN = 200
"""Characters of an unknown answer that an error quotes."""
_OF_ASSOCIATION = "account,maxsubmit,grpsubmit,maxwall,partition,defaultqos"
_COUNTER_RESET = 1 << 63  # a node's energy counter that was reset shows as 2^64 - x
_OF_A_JOB_AROUND = re.compile(
    r"(SBATCH|SQUEUE|SACCT|SINFO|SCANCEL|SCONTROL)_"
    r"|SLURM_(JOB|STEP|TASK|NTASKS|NPROCS|CPU|MEM|NODE|NNODES|PROCID|LOCALID|ARRAY|GPU|TRES|RESTART|GTIDS|DIST|SUBMIT|EXPORT)"
)


@dataclass(frozen=True)
class Queued:
    """A job or array task in the queue."""

    job: str
    """Its id; of a task "12_3"."""
    state: str
    reason: str
    elapsed: int
    """Seconds."""
    nodes: str
    starts: str
    """Actual or expected start; "" if unknown."""
    excluded: str = ""
    """Nodes that it does not get."""
    name: str = ""
    """The job's; another job may have had this id before."""


@dataclass(frozen=True)
class Accounted:
    """One start of a job, or of an array task, in accounting."""

    job: str
    state: str
    status: int
    """Exit status."""
    signal: int
    """Signal that ended it; 0: none."""
    elapsed: int
    """Seconds."""
    nodes: str
    core_seconds: int
    joules: int | None
    """Energy of its nodes; None where the cluster does not measure it, or a counter was reset meanwhile."""
    comment: str
    whole_joules: int = 0
    """Energy of the script."""
    step_joules: int = 0
    """Energy of the steps that the script started by `srun`."""
    name: str = ""
    """The job's; another job may have had this id before."""


@dataclass(frozen=True)
class Partition:
    """A partition in `scontrol`."""

    name: str
    limit: str
    """Longest wall time of a job."""
    nodes: int
    """Number of its nodes."""
    most_nodes: int
    """Most nodes of a job."""
    default: bool
    qos: str = ""
    """Its own qos, whose limits precede those of a job's qos; "" if none."""


@dataclass(frozen=True)
class ClusterNode:
    """Resources of a node."""

    name: str
    partitions: tuple[str, ...]
    cpus: int
    memory_mb: int
    gpus: int
    state: str


def submit(script: Path, options: Sequence[str]) -> str:
    """Hand a script to `sbatch`; the job's id.

    A site's wrapper of sbatch may print lines of its own around it.

    Raises:
        ClusterError: sbatch refuses it, or its answer holds no id.
    """
    answer = _run("sbatch", "--parsable", *options, str(script))
    found = re.findall(r"^(\d+)(?:;\S*)?\s*$", answer, re.MULTILINE)
    if not found:
        raise ClusterError(
            f"sbatch: its answer to {script.name} has no job id: {answer.strip()[:_SHOWN]!r}. The job may be queued: "
            "look with squeue --me, and end it with scancel."
        )
    return str(found[-1])


def rehearse(*words: str) -> str:
    """Answer of `sbatch --test-only` to these words; "" if accepted."""
    try:
        _run("sbatch", "--test-only", *words)
    except ClusterError as error:
        return str(error)
    return ""


def queue(jobs: Iterable[str]) -> list[Queued]:
    """Jobs still in the queue, array tasks apart.

    Raises:
        ClusterError: the controller does not answer.
    """
    ids = sorted(set(jobs))
    if not ids:
        return []
    layout = "|".join(("%i", "%T", "%r", "%M", "%N", "%S", "%x", "%j"))
    try:
        output = _run(
            "squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}", f"--format={layout}"
        )
    except ClusterError as error:
        if "Invalid job id" in str(error):  # its answer for a single job that it has forgotten
            return []
        raise
    items = []
    for line in output.splitlines():
        job, state, reason, elapsed, nodes, starts, excluded, name = line.split("|", 7)
        begins = "" if starts in ("N/A", "") else starts
        items.append(Queued(job, state, _none(reason), seconds(elapsed), nodes, begins, _none(excluded), name))
    return items


def accounted(jobs: Iterable[str], *, since: str = "") -> list[Accounted]:
    """Accounting of every start of the jobs.

    `since`, in local time, excludes jobs that had these ids before: the ids start again when they reach MaxJobId.

    Raises:
        ClusterError: there is no accounting, or it does not answer.
    """
    ids = sorted(set(jobs))
    if not ids:
        return []
    fields = "JobID,State,ExitCode,ElapsedRaw,NodeList,CPUTimeRAW,ConsumedEnergyRaw,JobName,Comment"
    output = _run(
        "sacct", "--noheader", "--parsable2", f"--delimiter={_SEPARATOR}", "--array", f"--jobs={','.join(ids)}",
        f"--format={fields}", "--duplicates", *[f"--starttime={since}"] * bool(since),
    )  # fmt: skip
    rows: list[Accounted] = []
    for line in output.splitlines():
        job, state, ended, elapsed, nodes, cores, energy, name, comment = line.split(_SEPARATOR)
        _, _, step = job.partition(".")
        joules = int(energy) if energy.isdecimal() else 0
        if step:
            if rows and 0 < joules < _COUNTER_RESET:
                rows[-1] = _with_step(rows[-1], step, joules)
            continue
        status, _, number = ended.partition(":")
        rows.append(
            Accounted(
                job, state.split(" ")[0], int(status or 0), int(number or 0), int(elapsed or 0), _none(nodes),
                int(cores or 0), None, comment, name=name,
            )
        )  # fmt: skip
    return rows


def partitions() -> dict[str, Partition]:
    """The cluster's partitions that this user sees, by name."""
    limits = {}
    for words in _records("scontrol", "show", "partition", "--oneliner"):
        name, nodes = words["PartitionName"], int(words.get("TotalNodes", "0"))
        most = words.get("MaxNodes", "UNLIMITED")
        limits[name] = Partition(
            name, words.get("MaxTime", ""), nodes, int(most) if most.isdecimal() else nodes,
            words.get("Default") == "YES", words.get("QoS", "N/A").replace("N/A", ""),
        )  # fmt: skip
    return limits


def nodes() -> list[ClusterNode]:
    """The cluster's nodes."""
    states = []
    for words in _records("scontrol", "show", "node", "--oneliner"):
        gpus = [int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", words.get("Gres", ""))]
        partitions = tuple(words.get("Partitions", "").split(","))
        cpus, memory = int(words.get("CPUEfctv") or words.get("CPUTot", "0")), int(words.get("RealMemory", "0"))
        states.append(ClusterNode(words["NodeName"], partitions, cpus, memory, sum(gpus), words.get("State", "")))
    return states


def settings() -> dict[str, str]:
    """The cluster's settings (`scontrol show config`).

    Raises:
        ClusterError: there is no Slurm here, or its controller does not answer.
    """
    lines = (line.partition("=") for line in _run("scontrol", "show", "config").splitlines())
    return {name.strip(): value.strip() for name, equals, value in lines if equals}


def max_array_size() -> int:
    """One more than the greatest number of a task in an array.

    Raises:
        ClusterError: there is no Slurm here, or its controller does not answer.
    """
    return int(settings().get("MaxArraySize", "1001"))


def accounts(user: str) -> list[str]:
    """The accounts that this user may charge on this cluster.

    Returns nothing where accounting does not answer.
    """
    try:
        return list(dict.fromkeys(line for line in _associations(user, "account") if line))
    except ClusterError:
        return []


def _associations(user: str, fields: str, account: str = "") -> list[str]:
    """A line for each association of a user on this cluster.

    A site's accounting may serve several clusters.
    """
    cluster = settings().get("ClusterName", "")
    words = [f"user={user}", *[f"account={account}"] * bool(account), *[f"cluster={cluster}"] * bool(cluster)]
    return _run("sacctmgr", "-nP", "show", "assoc", *words, f"format={fields}").splitlines()


@dataclass(frozen=True)
class SiteLimits:
    """Limits that a site sets on jobs charged in one way."""

    entries: Mapping[str, int]
    """Most entries in the queue, by the limit's name."""
    wall: str = ""
    """Longest wall time of a job, in Slurm's notation; "" without one."""
    wall_name: str = ""
    """Name of that limit."""


def site_limits(user: str, partition: str, account: str, qos: str) -> SiteLimits:
    """Limits on a user's jobs; none where accounting does not answer.

    Without an account it is the user's default that is charged. Of associations for a partition those of other
    partitions do not count. A limit of the qos goes before that of the association.
    """
    entries: dict[str, int] = {}
    wall = wall_name = ""
    try:
        charged = account or "".join(_run("sacctmgr", "-nP", "show", "user", user, "format=defaultaccount").split()[:1])
        rows = [line.split("|") for line in _associations(user, _OF_ASSOCIATION, charged)]
        rows = [row for row in rows if len(row) == 6 and row[4] in ("", *partition.split(","))]
        names = [qos or next((row[5] for row in rows if row[5]), "normal")]
        output = _run("sacctmgr", "-nP", "show", "qos", *names, "format=name,maxsubmitpu,grpsubmit,maxwall")
    except ClusterError:
        return SiteLimits({})
    for kind, found, fields in (
        ("account", rows, ("MaxSubmitJobs", "GrpSubmitJobs")),
        ("qos", [line.split("|") for line in output.splitlines()], ("MaxSubmitJobsPerUser", "GrpSubmitJobs")),
    ):
        for name, *values in found:
            for field, value in zip(fields, values, strict=False):
                if value.isdecimal():
                    entries[f"the {kind} {name} ({field})"] = int(value)
            if values[2:] and values[2]:
                wall, wall_name = values[2], f"the {kind} {name} (MaxWall)"
    return SiteLimits(entries, wall, wall_name)


def jobs_of(script: Path) -> list[str]:
    """This user's queued jobs that run a script.

    An array counts as one job.

    Raises:
        ClusterError: the controller does not answer.
    """
    lines = (line.partition("|") for line in _run("squeue", "--me", "--noheader", "--format=%F|%o").splitlines())
    return sorted({job.strip() for job, _, command in lines if f"{command.strip()} ".startswith(f"{script} ")})


def mine() -> int:
    """Queue entries of this user; 0 without an answer."""
    try:
        return len(_run("squeue", "--me", "--noheader", "--array", "--format=%i").splitlines())
    except ClusterError:
        return 0


def on_a_node(options: Sequence[str], *command: str) -> None:
    """Run a command on a node that is soon free.

    Raises:
        ClusterError: no node is free, or the command fails there.
    """
    _run("srun", "--immediate=10", "--quiet", "--nodes=1", "--ntasks=1", "--time=1", *options, *command)


def release(jobs: Sequence[str]) -> None:
    """Let held jobs go."""
    _run("scontrol", "release", *jobs)


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs; ended and rehearsed ones are skipped."""
    if of_slurm := [job for job in jobs if not is_local(job)]:
        _run("scancel", *of_slurm)


def is_local(job: str) -> bool:
    """Return whether a job or task belongs to a rehearsal."""
    return int(job.partition("_")[0]) >= FIRST_LOCAL


def seconds(elapsed: str) -> int:
    """Seconds of "1-02:03:04", as Slurm writes elapsed times.

    Returns 0 for anything else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", elapsed)
    days, hours, minutes, rest = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def _with_step(job: Accounted, step: str, joules: int) -> Accounted:
    """A job with one more step; their energies are summed here.

    The batch step is measured on the first node while the script runs, the steps of `srun` on all their nodes, one
    after the other. So their sum and the batch step's energy are two lower bounds; the larger one counts.
    """
    if step in ("batch", "extern"):
        whole, steps = max(job.whole_joules, joules), job.step_joules
    else:
        whole, steps = job.whole_joules, job.step_joules + joules
    return replace(job, joules=max(whole, steps), whole_joules=whole, step_joules=steps)


def _none(text: str) -> str:
    return "" if text in ("None", "None assigned", "(null)") else text


def _records(*words: str) -> list[dict[str, str]]:
    """The NAME=VALUE words of each line.

    The first of a name counts: a person's words, as the reason of a drained node, come last and may hold the sign.
    """
    lines = (line for line in _run(*words).splitlines() if "=" in line)
    return [dict(word.split("=", 1) for word in reversed(line.split()) if "=" in word) for line in lines]


def _run(*words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not _OF_A_JOB_AROUND.match(name)}
    try:
        done = subprocess.run(  # comments and reasons hold the bytes that a person's terminal made
            words, capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS, check=False,
            env=environment,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ClusterError(
            f"{words[0]}: {NOT_ON_PATH}. Run this on a login node of a Slurm cluster; perhaps its module "
            "must be loaded first (module load slurm)."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{words[0]}: no answer within {_SECONDS:.0f} s; is slurmctld up?") from error
    if done.returncode != 0:
        message = done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}"
        hint = (
            ". This machine knows no cluster: run this on a login node, or rehearse the run here with --local"
            if "configuration source" in message
            else ""
        )
        raise ClusterError(f"{message if message.startswith(words[0]) else f'{words[0]}: {message}'}{hint}")
    return done.stdout
