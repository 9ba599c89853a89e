"""Start of an attempt: log, record, the site's script, the command.

The site's script is sourced by bash, which then becomes this program again: exported variables, limits and the umask
stay, and nothing else of it.

A command other than training is a share of a data step, a join, the audit, the evaluation or the report. Slurm sends
SIGUSR1 to the job's script before the time limit and SIGTERM when it takes the node away; finished shards are kept, so
the job is requeued and continues.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from governance.errors import StorageError
from governance.files import touch
from slurm.attempt.causes import cause_of, reason_in
from slurm.attempt.controller import remark, requested
from slurm.attempt.ending import finish, watch_start
from slurm.attempt.job_attempt import (
    REFUSALS,
    STORAGE_WAIT_SECONDS,
    JobAttempt,
    job_here,
    killed_in_a_row,
    last_saved,
    moment,
    nodes_here,
    note,
    say,
    shards_made,
    this_node,
)
from slurm.attempt.training_step import run_training
from slurm.attempt.watched_command import WORDS, hear_signals, watch

_ENTERED, _UNSOURCED = "ASSAY_ENTERED", "ASSAY_UNSOURCED"
"""Job, attempt and time of a begun attempt; why the site's script did not end well."""
_LEAKS = (
    "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
    "SLURM_EXPORT_ENV", "SRUN_EXPORT_ENV", "ASSAY_RETRY",
)  # fmt: skip
"""Variables of the submitting shell: the rendezvous of other ranks, and options that srun would obey."""
_MAX_KILLS = 10
_POLL_SECONDS = 5


def main(words: Sequence[str]) -> NoReturn:
    """Run one attempt of a job, and exit with its status."""
    attempt = _parsed(words)
    job, number, began = [*os.environ.pop(_ENTERED, "").split(), "", "", ""][:3]
    entered = (job, number) == (attempt.job, str(attempt.number))
    attempt.began = began if entered else moment()
    attempt.progress = last_saved(attempt) if attempt.kind == "train" else shards_made(attempt)
    if not entered:
        for name in _LEAKS:
            os.environ.pop(name, None)
        _open_log(attempt)
        _begin(attempt)
        if attempt.environment:
            os.environ[_ENTERED] = f"{attempt.job} {attempt.number} {attempt.began}"
            os.execvp("bash", ["bash", "-c", _sourcing(attempt.environment)])
    hear_signals()
    if folder := os.environ.get("ASSAY_LOCAL"):  # in a rehearsal, before the commands of the site's script
        os.environ["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
    _refuse_unsourced(attempt)
    watch_start(attempt)
    if shutil.which("assay") is None:
        os.environ["PATH"] += f":{attempt.programs}"
    if attempt.kind == "train":
        run_training(attempt)
    run_data_step(attempt)


def _parsed(words: Sequence[str]) -> JobAttempt:
    parser = argparse.ArgumentParser(prog="attempt", allow_abbrev=False)
    parser.add_argument("--root", type=Path, required=True)
    for name in ("kind", "environment", "programs", "interface", "excluded"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--shares", type=int, default=0)
    parser.add_argument("--node-count", dest="node_counts", type=int, action="append", default=[])
    parser.add_argument("--leave-seconds", type=int, default=0)
    parser.add_argument("--chained", dest="requeues", action="store_false")
    for option, name in (("--srun", "srun_options"), ("--rank", "rank_options"), ("--inside", "inside")):
        parser.add_argument(option, dest=name, action="append", default=[])
    parser.add_argument("command", nargs="+")
    job, number = job_here(os.environ)
    return JobAttempt(job=job, number=number, **vars(parser.parse_args(words)))


def _open_log(attempt: JobAttempt) -> None:
    """Write to a log of this attempt.

    A file system that refuses it for a while is waited for.
    """
    for waited in range(0, STORAGE_WAIT_SECONDS, _POLL_SECONDS):
        try:
            opened = os.open(attempt.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno not in REFUSALS:
                return
            if not waited:
                remark(attempt, f"assay: waits for {attempt.root} on {this_node()}: {error.strerror}")
            time.sleep(_POLL_SECONDS)
            continue
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        os.close(opened)
        if waited:
            say(f"assay: waited {waited} s for {attempt.root}")
        return


def _begin(attempt: JobAttempt) -> None:
    """Record the start, if the job may start here."""
    say(f"assay: job {attempt.job}, attempt {attempt.number}, on {nodes_here()}, at {attempt.began}")
    # It existed at submission, so this node's mount is dead. `Path.exists` would raise there (ESTALE, EIO).
    if not os.path.exists(attempt.root / "slurm" / "jobs.jsonl"):
        attempt.left_out.append(this_node())
        finish(attempt, 66, f"{this_node()} does not see {attempt.root}; put it on a file system that all nodes share")
    if attempt.is_cancelled:  # it was requeued during its cancellation
        say(f"assay: job {attempt.job} is cancelled")
        requested("scancel", attempt.job)
        sys.exit(75)
    if killed_in_a_row(attempt) >= _MAX_KILLS:
        attempt.retries = 0
        finish(
            attempt, 69, "its last ten starts were killed without a record of their end, most often with their nodes"
        )
    if not note(attempt, "started", progress=attempt.progress):
        say(f"assay: cannot write {attempt.record}; this attempt is recorded only in this log")
    # An update makes slurmctld save the job; without it, slurmctld forgets a job that has just started if it is killed.
    if not attempt.is_task:
        remark(attempt, f"assay: attempt {attempt.number} on {os.environ.get('SLURM_JOB_NODELIST', '')}")


def _sourcing(script: str) -> str:
    """Words for bash: source the site's script, and become this program again.

    A signal of Slurm ends the sourcing and is not the site's fault: 75 is the status of SIGTERM, 124 that of the time
    limit. The words are complete before the site's script can change a variable.
    """
    again = f"exec {shlex.join([sys.executable, *sys.orig_argv[1:]])}"
    traps = {
        "EXIT": f"{_UNSOURCED}=127 {again}",  # it called `exit`
        "TERM": f"trap - EXIT; {_UNSOURCED}=75 {again}",
        "USR1": f"trap - EXIT; {_UNSOURCED}=124 {again}",
    }
    lines = ["set -eo pipefail", *(f"trap {shlex.quote(words)} {name}" for name, words in traps.items())]
    lines += [f"source {shlex.quote(script)} || export {_UNSOURCED}=127", "trap - EXIT TERM USR1", again]
    return "\n".join(lines)


def _refuse_unsourced(attempt: JobAttempt) -> None:
    """End the attempt if the site's script did not end well."""
    reason = os.environ.pop(_UNSOURCED, "")
    if reason == "127":
        finish(attempt, 127, f"the environment {attempt.environment} cannot be sourced on {socket.gethostname()}")
    if reason == "75":
        finish(attempt, 75, f"signalled to stop (SIGTERM) while {attempt.environment} was sourced")
    if reason:
        finish(attempt, int(reason), f"its time limit was reached while {attempt.environment} was sourced")


def run_data_step(attempt: JobAttempt) -> NoReturn:
    """Run the command on this node, and end the attempt with it."""
    before = attempt.progress
    try:  # its commands record what they finish, where the disk allows it
        touch(attempt.tally)
        os.environ["ASSAY_TALLY"] = str(attempt.tally)
    except (OSError, StorageError):
        os.environ.pop("ASSAY_TALLY", None)
    cores = os.environ.get("SLURM_CPUS_ON_NODE", "1")
    command = [*attempt.command, "--data-workers", cores]
    if attempt.shares:
        command += ["--task", f"{os.environ['SLURM_ARRAY_TASK_ID']}/{attempt.shares}"]
    launcher = ["srun", "--ntasks=1", f"--cpus-per-task={cores}", *attempt.srun_options] if attempt.srun_options else []
    say(f"assay: {shlex.join(command)}")
    signalled: list[int] = []

    def leave(running: subprocess.Popen[bytes], number: int) -> bool:
        signalled.append(number)
        attempt.progress = shards_made(attempt)
        running.terminate()
        return False

    status, lines = watch([*launcher, *attempt.inside, *command], os.environ, leave)
    if signalled:
        limit = signalled[0] == signal.SIGUSR1
        if limit and attempt.progress == before:
            finish(attempt, 124, "its time limit was reached before it finished a shard")
        finish(attempt, 75, WORDS[signalled[0]])
    attempt.progress = shards_made(attempt)
    reason = reason_in(lines) if status else ""
    finish(attempt, status, f"{cause_of(status)}: {reason}" if reason else "")
