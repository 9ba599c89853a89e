"""Requests of a job to the controller about itself and the nodes."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime

from slurm.attempt.job_attempt import JobAttempt, events, say

_CONTROLLER_WAIT_SECONDS = 3600
"""Seconds that a job waits for a controller that is down."""
_COMMENT_CHARACTERS = 240
_OWN_COMMENT = r"(?:^|; )assay[: ]"  # where the program's part of a comment begins


def query(*words: str, messages: int = subprocess.STDOUT) -> tuple[int, str]:
    """Exit status and output of a command; 127 if not installed.

    `messages` is the destination of its standard error; it is DEVNULL where the output is parsed as names.
    """
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages, check=False)
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout.decode("utf-8", "ignore").strip()


def requested(*words: str) -> bool:
    """Run a command of Slurm; a refusal goes to the log."""
    status, output = query(*words)
    if status and output:
        say(output)
    return status == 0


def value(name: str, shown: str) -> str:
    """A field of `scontrol show job`, '' without one."""
    found = re.search(rf"(?:^|\s){name}=(\S*)", shown)
    return found[1] if found and found[1] != "(null)" else ""


def show(attempt: JobAttempt, job: str) -> str | None:
    """The controller's description of a job; None: unknown to it.

    A controller that is down is waited for.
    """
    waited, pause = 0, 1  # every second at first: a forgotten job starts again within three, see `stand_aside`
    while True:
        status, shown = query("scontrol", "show", "job", job)
        if status == 0:
            return shown
        if "Invalid job id" in shown or waited >= _CONTROLLER_WAIT_SECONDS:
            return None
        if waited == 0:
            say(f"assay: the controller does not answer; job {attempt.job} waits for it: {shown}")
        pause = 1 if waited < 300 else 10
        waited += pause
        time.sleep(pause)


def was_preempted(shown: str) -> bool:
    """Return whether Slurm preempted the job, by its description."""
    return value("PreemptTime", shown) not in ("", "None")


def is_cancelled(shown: str) -> bool:
    """Return whether the job was cancelled; a requeue would undo that."""
    if value("JobState", shown) not in ("CANCELLED", "COMPLETING"):
        return False
    # Slurm ends it: for its time limit, a preemption, or a cancellation or a failed dependency
    return value("Reason", shown) != "TimeLimit" and not was_preempted(shown)


def remark(attempt: JobAttempt, text: str) -> None:
    """Set the job's comment (`squeue -o %k`, `sacct -o comment`).

    The site's own text and the journal's head are kept.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return
    was = re.findall(r"^ *Comment=(.*)$", query("scontrol", "show", "job", attempt.job)[1], re.MULTILINE)
    site = re.split(_OWN_COMMENT, was[-1])[0].rstrip() if was else ""
    head = re.findall(r"assay journal \d*:[0-9a-f]*", was[-1]) if was else []
    text = "".join(sign if sign.isprintable() else " " for sign in text)[:_COMMENT_CHARACTERS]
    query(
        "scontrol", "update", f"jobid={attempt.job}", f"comment={'; '.join([*[site] * bool(site), text, *head[-1:]])}"
    )


def names(nodes: str) -> list[str]:
    """Node names of a list as Slurm writes it; [] on failure."""
    status, output = query("scontrol", "show", "hostnames", nodes, messages=subprocess.DEVNULL)
    return [] if status else output.split()


def seconds_left(shown: str) -> float:
    """Seconds until a job's time limit, by its description.

    0 if the notation of the time is unknown.
    """
    end = value("EndTime", shown)
    if end in ("", "Unknown"):
        return float("inf")
    try:
        return datetime.fromisoformat(end).timestamp() - time.time()
    except ValueError:
        return 0.0


def healthy(nodes: Sequence[str]) -> list[str]:
    """Nodes that answer and are neither down nor drained; all if unknown."""
    status, output = query(
        "sinfo", "--noheader", "--Node", "--format=%N %T", f"--nodes={','.join(nodes)}", messages=subprocess.DEVNULL
    )
    states = dict(line.split(" ", 1) for line in output.splitlines() if " " in line) if status == 0 else {}
    return [node for node in nodes if not re.search(r"\*$|down|drain|fail", states.get(node, ""))]


def enough_without(nodes: Sequence[str], partition: str, features: str) -> bool:
    """Return whether enough other nodes run jobs there; True if unknown.

    A feature expression is not evaluated here: every node counts.
    """
    status, output = query(
        "sinfo", "--noheader", "--Node", "--format=%N %b", f"--partition={partition}", "--responding",
        "--states=idle,allocated,mixed,completing,planned,reserved", messages=subprocess.DEVNULL,
    )  # fmt: skip
    if status or not output:
        return True
    if re.search(r"[^A-Za-z0-9_.-]", features):
        features = ""
    found = {
        name
        for name, _, has in (line.partition(" ") for line in output.splitlines())
        if not features or features in has.strip().split(",")
    }
    return len(found - set(names(",".join(nodes)))) >= int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)


def exclude(attempt: JobAttempt, job: str, shown: str) -> None:
    """Exclude nodes from a waiting job with this description."""
    partition, features = value("Partition", shown), value("Features", shown)
    before, nodes = value("ExcNodeList", shown), attempt.left_out
    if not enough_without([*filter(None, [before]), *nodes], partition, features):  # it would never start
        # Of two nodes whose clocks differ, either may be wrong; excluding one at a time lets a third decide.
        before, all_of_them = attempt.excluded, ",".join(nodes)
        nodes = attempt.left_out = [most_blamed(attempt)]
        if not enough_without([*filter(None, [before]), *nodes], partition, features):
            say(f"assay: without {nodes[0]} too few nodes are left in {partition}; job {job} may get them again")
            return
        if all_of_them != nodes[0]:
            say(f"assay: without {all_of_them} too few nodes are left in {partition}: only the most blamed is excluded")
    say(f"assay: job {job} excludes {','.join(nodes)} from now on")
    for _ in range(10):
        status, output = query(
            "scontrol", "update", f"jobid={job}", f"ExcNodeList={','.join(filter(None, [before, *nodes]))}"
        )
        if status == 0:
            return
        time.sleep(0.2)
    say(f"assay: Slurm did not accept that: {output}")


def most_blamed(attempt: JobAttempt) -> str:
    """The node to exclude that this job's attempts blamed most often."""
    blamed = [line.get("blamed", "") for line in events(attempt)]
    return max(attempt.left_out, key=lambda node: sum(f",{node}," in nodes for nodes in blamed))
