"""Ends of an attempt: their record, and the reaction to them.

`_correct_state` corrects what Slurm does to a job that runs or has ended: a start that the controller forgot, a launch
that it takes for failed and holds, an end that it takes for a preemption.

A training with spare nodes, or that may run on fewer, starts again in its allocation, without the nodes at fault; the
job is given back only where too few nodes are left, or where time has to pass.

Where the exit status is not one of ours, the end of the log decides (`restart_verdict.py`): code, data or memory that
fails twice at the same step would fail again; a node at fault is excluded; a network, a disk or a quota needs time.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from functools import partial
from typing import Any, NoReturn

from slurm.attempt import controller
from slurm.attempt.causes import cause_of
from slurm.attempt.controller import query, requested, value
from slurm.attempt.job_attempt import (
    STORAGE_WAIT_SECONDS,
    JobAttempt,
    events,
    failures,
    jobs,
    links,
    note,
    say,
    this_node,
)
from slurm.attempt.restart_verdict import OF_STATUS, Verdict, tail_of, verdict_of
from slurm.attempt.watched_command import ignore_signals

_EXPLAINED = tuple(status for status, (_, action) in OF_STATUS.items() if action == "stop")
"""Statuses whose retry would end alike."""
_UNSEEN = (66, 78)  # a file is missing, perhaps on this node alone
_NEED_TIME = (73, *(status for status, (_, action) in OF_STATUS.items() if action == "later"))
"""Statuses after which waiting may help; 73 is a run that another process holds."""
_POLL_SECONDS = 5
_EMPTY_START_SECONDS = 180
_MAX_RELEASES, _MAX_REQUEUES, _MAX_DOUBLINGS = 10, 8, 6
_LINE_CHARACTERS = 400
_LONGEST_WORD = 100_000
"""An argument has at most 128 KiB."""
_KILLED = re.compile(r"(\S+): task.*: (Killed|Aborted|Segm|Bus)")
"""Cause of an end: srun's words on a rank that a signal ended."""
_ENDED = threading.Event()


class AllocationRetry(Exception):
    """The training starts again in its allocation, on `nodes`."""

    def __init__(self, nodes: list[str]) -> None:
        super().__init__(nodes)
        self.nodes = nodes


def finish(attempt: JobAttempt, status: int, cause: str = "") -> NoReturn:
    """Record the end of this attempt, react to it, and exit.

    Raises:
        AllocationRetry: the training starts again in its allocation.
    """
    _ENDED.set()
    ignore_signals()
    verdict = verdict_of(tail_of(attempt.log, start=attempt.log_start), status) if status else None
    explained = f": {verdict.line[:_LINE_CHARACTERS]}" if verdict is not None and verdict.line else ""
    cause = cause or f"{cause_of(status)}{explained}"
    outcome = "done" if status == 0 else "left" if status == 75 else "failed"
    # A missing file may be this node's fault: the node is left out once and the job tried again elsewhere.
    if status in _UNSEEN and not attempt.left_out and (unseen := _unseen(attempt)):
        attempt.left_out.append(this_node())  # if other nodes see the file, another node can run the job
        cause = f"{this_node()} does not see {unseen}; {cause}"
    elif _would_fail_again(attempt, status, verdict):
        outcome = "explained"
    nodes = _nodes_for_retry(attempt, status, cause) if outcome == "failed" and attempt.node_counts else []
    if nodes:
        without = f" without {','.join(attempt.left_out)}" if attempt.left_out else ""
        cause = f"{cause}; tried again in the allocation{without}, on {','.join(nodes)}"
    # `most_blamed` searches the record for ",node,".
    more: dict[str, Any] = {"blamed": f",{','.join(attempt.left_out)},"} if attempt.left_out else {}
    more |= {"status": status, "outcome": outcome, "progress": attempt.progress, "cause": cause}
    if verdict is not None:
        at_once = verdict.action == "stop" or (verdict.action == "later" and nodes)
        otherwise = "go on" if at_once else verdict.action
        more |= {"means": verdict.cause, "action": "stop" if outcome == "explained" else otherwise}
    known = note(attempt, "ended", **more)
    # Without its record, Slurm's count of all starts bounds the failures; a file system that refuses for a while is
    # waited for. An attempt that leaves has no time.
    for _ in range(0, STORAGE_WAIT_SECONDS if outcome == "failed" else 0, _POLL_SECONDS):
        if known:
            break
        time.sleep(_POLL_SECONDS)
        known = note(attempt, "ended", **more)
    say(f"assay: job {attempt.job}, attempt {attempt.number}: {cause} (status {status})")
    if nodes and known:
        controller.remark(attempt, f"assay: {cause}")
        raise AllocationRetry(nodes)
    _end(attempt, status, cause, outcome, failures(attempt) if known else attempt.number + 1)


def _end(attempt: JobAttempt, status: int, cause: str, outcome: str, failed: int) -> NoReturn:
    """React to the end of the job's start, and exit."""
    attempt.left_out = [*dict.fromkeys([*attempt.dropped, *attempt.left_out])]
    if outcome == "explained":
        controller.remark(attempt, f"assay: {cause}")
        _end_chain(attempt)
    elif outcome == "left":
        if attempt.requeues:
            _requeue(attempt, status, 0)
        controller.remark(attempt, f"assay: {cause}")  # the next link continues
    elif outcome == "failed":
        _after_failure(attempt, status, cause, failed)
    _correct_state(attempt, status)
    sys.exit(status)


def _nodes_for_retry(attempt: JobAttempt, status: int, cause: str) -> list[str]:
    """Nodes of the allocation for another try.

    [] where the job has to be given back: no retry or too few nodes are left, time has to pass, or Slurm ends it.
    """
    if status == 124 or failures(attempt) >= attempt.retries or attempt.is_cancelled:
        return []
    shown = controller.show(attempt, attempt.job)
    if shown is None or value("JobState", shown) != "RUNNING" or controller.was_preempted(shown):
        return []
    if controller.seconds_left(shown) < attempt.leave_seconds:  # no second signal to leave would come
        return []
    has = controller.names(value("NodeList", shown))  # without nodes that died: Slurm takes them out of the job
    answering = controller.healthy(has)
    attempt.left_out += [node for node in attempt.chosen if node not in {*answering, *attempt.left_out}]
    killed = _KILLED.match(cause)  # messages of other ranks, as on a network, are a consequence
    attempt.suspected += controller.names(killed[1]) or [killed[1]] if killed else []
    if not attempt.left_out and not killed and (attempt.needs_time or status in (126, 127)):
        return []
    gone = {*attempt.left_out, *attempt.dropped}
    left = sorted((node for node in answering if node not in gone), key=attempt.suspected.count)
    count = next((count for count in attempt.node_counts if count <= len(left)), 0)
    return sorted(left[:count], key=has.index)


def _would_fail_again(attempt: JobAttempt, status: int, verdict: Verdict | None) -> bool:
    """Return whether a retry would end alike; else prepare it."""
    attempt.needs_time |= status in _NEED_TIME
    if verdict is None or not verdict.line:  # a status of our own
        return status in _EXPLAINED and not (status in _UNSEEN and attempt.left_out)
    if verdict.action == "elsewhere" and not attempt.left_out:
        alone = os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1" and not verdict.by_words
        attempt.left_out += [verdict.node or this_node()] if verdict.node or alone else []
    attempt.needs_time |= verdict.action == "later"
    # A verdict on a log may be wrong: one retry confirms it, where retries may help at all.
    ends = [line for line in events(attempt) if line.get("event") == "ended"][-1:]
    again = any((line.get("means"), line.get("progress")) == (verdict.cause, attempt.progress) for line in ends)
    return again and (verdict.action == "stop" or (verdict.cause, verdict.action) == ("out of memory", "go on"))


def _after_failure(attempt: JobAttempt, status: int, cause: str, failed: int) -> None:
    if status in (126, 127) and not attempt.left_out:
        attempt.left_out.append(this_node())
    if failed > attempt.retries:
        controller.remark(attempt, f"assay: {cause}; none of {attempt.retries} tries is left")
        _end_chain(attempt)
        return
    controller.remark(attempt, f"assay: {cause}; try {failed} of {attempt.retries} more")
    if attempt.requeues:
        _requeue(attempt, status, failed)
    for link in links(attempt, later=True) if attempt.left_out else ():  # they exclude these nodes, too
        if (shown := controller.show(attempt, link)) is not None:
            controller.exclude(attempt, link, shown)


def _unseen(attempt: JobAttempt) -> str:
    """A file of the command that this node does not see.

    It existed at submission.
    """
    return next((word for word in attempt.command if word.startswith("/") and not os.path.exists(word)), "")


def _requeue(attempt: JobAttempt, status: int, failed: int) -> NoReturn:
    """Requeue this job, and exit."""
    # A job that ended while slurmctld is down would not come back, and jobs that depend on it would be cancelled.
    for refused in range(1, _MAX_REQUEUES + 1):
        shown = controller.show(attempt, attempt.job)
        if shown is None:
            break
        if _release_if_held(attempt, shown) or controller.is_cancelled(shown) or attempt.is_cancelled:
            sys.exit(status)
        stand_aside(attempt, shown)
        # Slurm itself requeues a job that it preempts, or whose node it lost: the start that follows is left alone.
        if value("Restarts", shown) not in ("", str(attempt.number)):
            say(f"assay: Slurm has requeued job {attempt.job} itself; this attempt only ends")
            sys.exit(status)
        if requested("scontrol", "requeue", attempt.job):
            if attempt.is_cancelled:  # it was cancelled between the two
                requested("scancel", attempt.job)
            if attempt.left_out:
                controller.exclude(attempt, attempt.job, shown)
            elif attempt.needs_time and "ASSAY_LOCAL" not in os.environ:
                _delay_retry(attempt, failed)
            sys.exit(status)
        time.sleep(5 * refused)
    say(f"assay: job {attempt.job} could not be requeued; continue with: assay slurm retry")
    sys.exit(status)


def _delay_retry(attempt: JobAttempt, failed: int) -> None:
    """Delay a retry that needs time, not another node.

    The delay is 60 s x 2^n, spread for the tasks of an array.
    """
    unit = int(os.environ.get("ASSAY_PAUSE_SECONDS") or 60)  # tests have less time
    seconds = unit << min(_MAX_DOUBLINGS, max(0, failed - 1))
    if attempt.is_task:
        seconds += random.randint(0, seconds)
    say(f"assay: job {attempt.job} starts again in {seconds} s, or later")
    query("scontrol", "update", f"jobid={attempt.job}", f"StartTime=now+{seconds}")


def _end_chain(attempt: JobAttempt) -> None:
    """Cancel the later links, which would end as this one."""
    if cancelled := links(attempt, later=True):
        controller.show(attempt, attempt.job)  # wait for a controller that is down
        say(f"assay: the later links are cancelled: {' '.join(cancelled)}")
        requested("scancel", *cancelled)


def is_forgotten(attempt: JobAttempt, shown: str) -> bool:
    """Return whether the controller forgot this start.

    That is so if the controller was killed before it saved the start; it then shows the job as waiting.
    """
    return (value("JobState", shown), value("Restarts", shown)) == ("PENDING", str(attempt.number))


def stand_aside(attempt: JobAttempt, shown: str) -> None:
    """Let a forgotten job start later, and wait for its end.

    The controller starts it again while the nodes, which register with it, end this process: a race that one start in
    two loses ("Job credential revoked"), and the job with it. If this attempt ended by itself, Slurm would take the
    waiting job for ended.
    """
    if is_forgotten(attempt, shown):
        _postpone(attempt)
        ignore_signals()
        time.sleep(900)  # Slurm ends this process long before


def _postpone(attempt: JobAttempt) -> None:
    say(f"assay: the controller was down and forgot that job {attempt.job} runs; it starts again in 30 s")
    requested("scontrol", "update", f"jobid={attempt.job}", "StartTime=now+30")


def watch_start(attempt: JobAttempt) -> None:
    """Query the controller after the seconds in which it forgets starts."""

    def look() -> None:
        time.sleep(8)
        shown = None if _ENDED.is_set() else controller.show(attempt, attempt.job)
        if shown is not None and not _ENDED.is_set() and is_forgotten(attempt, shown):
            _postpone(attempt)

    threading.Thread(target=look, daemon=True).start()


def runs_on(attempt: JobAttempt) -> bool:
    """Return whether the controller, after a wait, has this job running."""
    shown = controller.show(attempt, attempt.job)
    if shown is None:
        return False
    stand_aside(attempt, shown)
    return value("JobState", shown) == "RUNNING"


def _release_if_held(attempt: JobAttempt, shown: str) -> bool:
    """Release a job whose launch Slurm took for failed.

    A late reply of a busy node, or a launch sent twice, causes this for jobs that run or ended well.
    """
    if not value("Reason", shown).startswith("launch_failed"):
        return False
    if sum(line.get("event") == "released" for line in events(attempt)) >= _MAX_RELEASES:
        held = f"was released {_MAX_RELEASES} times (launch failed requeued held) and is not released again"
        say(f"assay: job {attempt.job} {held}")
        return False
    note(attempt, "released")
    say(f"assay: Slurm holds job {attempt.job} as if its launch had failed; releasing it")
    return requested("scontrol", "release", attempt.job)


def _correct_state(attempt: JobAttempt, status: int) -> None:
    """Correct the job's state before its last end.

    Nothing would correct it afterwards.
    """
    shown = controller.show(attempt, attempt.job)
    if shown is None or _release_if_held(attempt, shown):
        return
    stand_aside(attempt, shown)
    if status or attempt.is_task:
        return
    # Slurm takes a job that it once signalled to stop within a grace time for preempted when it ends, however much
    # later, and requeues it for a start with nothing left to do. Jobs that depend on this one need not wait for that.
    if (value("Restarts", shown), value("PreemptTime", shown)) != ("0", "None"):
        _drop_dependencies(attempt)
    _await_empty_starts(attempt)


def _await_empty_starts(attempt: JobAttempt) -> None:
    """Release done jobs of this run that Slurm holds.

    The launch of a start with nothing left to do may fail, on a busy node or on one that was cut off, and Slurm then
    holds the job. Each end releases them, and the run's last job waits for them: nothing would release them later.
    Only jobs submitted before this one are waited for, or the two would wait for each other.
    """
    own = {line["job"] for line in jobs(attempt)} - {attempt.job}
    releases: Counter[str] = Counter()
    pause = int(os.environ.get("ASSAY_PAUSE_SECONDS") or 10)  # tests have less time
    for seconds in range(0, _EMPTY_START_SECONDS, pause):
        _, queue = query("squeue", "--me", "--noheader", "--format=%i %r")
        reasons = dict(line.split(" ", 1) for line in queue.splitlines() if line.partition(" ")[0] in own)
        for job, reason in reasons.items():
            releases[job] += reason == "launch failed requeued held"
            if reason == "launch failed requeued held" and releases[job] <= _MAX_RELEASES:
                requested("scontrol", "release", job)
        earlier = [job for job in reasons if int(job) < int(attempt.job)]
        if not earlier or not all(map(partial(_is_done, attempt), reasons)):
            return
        if not seconds:
            say(f"assay: waiting for the empty start of {' '.join(earlier)}, which is done")
        time.sleep(pause)


def _is_done(attempt: JobAttempt, job: str) -> bool:
    """Return whether the last end that a job recorded is a success."""
    ends = [line for line in events(attempt, job) if line.get("event") == "ended"]
    return bool(ends) and ends[-1].get("outcome") == "done"


def _drop_dependencies(attempt: JobAttempt) -> None:
    """Remove the dependency on this successful job from waiting jobs."""
    done = ["afterok", attempt.job]
    for line in jobs(attempt):
        if done in line["after"]:
            rest = ",".join(":".join(condition) for condition in line["after"] if condition != done)
            with contextlib.suppress(OSError):
                if len(rest) < _LONGEST_WORD:  # else the job waits for the empty start
                    query("scontrol", "update", f"jobid={line['job']}", f"Dependency={rest}")
