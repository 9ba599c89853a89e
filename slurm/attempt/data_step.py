"""One command of a run as a job.

The command is a share of a data step, a join, the audit, the evaluation or the report. Slurm sends SIGUSR1 to the job's
script before the time limit and SIGTERM when it takes the node away; finished shards are kept, so the job is requeued
and continues.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import NoReturn

from governance.errors import StorageError
from governance.files import touch
from slurm.attempt.causes import cause_of, reason_in
from slurm.attempt.ending import finish
from slurm.attempt.job_attempt import JobAttempt, say, shards_made
from slurm.attempt.watched_command import WORDS, watch


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
    say(f"assay: {' '.join(command)}")
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
