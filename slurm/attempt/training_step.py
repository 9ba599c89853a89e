"""Training on the job's nodes.

Each node is checked first; a bad one is excluded, and the job requests another. Then `srun` starts one rank per task,
with the command that a person would type. Slurm sends SIGUSR1 to the ranks before the time limit and SIGTERM when it
takes the nodes away: they save, exit with 75, and the job is requeued. A link of a chain ends instead, and the next
link continues; one that finds the run finished ends with 0 at once.

With spare nodes, or where fewer suffice, a failed training starts again in the same allocation, without the nodes at
fault. Its nodes are checked again, and a spare one only then.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import NoReturn

from slurm.attempt.causes import PROGRAM_DIFFERS, cause_in, cause_of, exited
from slurm.attempt.controller import names, query, was_preempted
from slurm.attempt.ending import AllocationRetry, finish, runs_on
from slurm.attempt.job_attempt import JobAttempt, last_saved, moment, nodes_here, note, say
from slurm.attempt.watched_command import WORDS, hear_signals, ignore_signals, watch

_RELEVANT = re.compile(
    r" ERROR [A-Za-z]+: |bad-node=|oom.kill|[Oo]ut [Oo]f [Mm]emory|xceeded .*memory limit|execve|srun: error: "
)
_UNREACHED = re.compile(r"srun: error: Unable to (confirm allocation|contact slurm controller)")
_TRIES, _LINES_READ = 5, 40
_LOST_COMMAND = (2, 13)
"""Statuses of a node that could not start the command: the number of the system's error."""


def run_training(attempt: JobAttempt) -> NoReturn:
    """Train, after a failure again in the allocation where allowed.

    Ends the attempt.
    """
    site = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if os.environ.get(name)}
    if "ASSAY_LOCAL" in os.environ:  # a rehearsal has no nodes to spare
        attempt.node_counts = ()
    if attempt.node_counts:
        attempt.chosen = names(nodes_here())[: attempt.node_counts[0]]
    first = attempt.chosen[:1]
    while True:
        _set_rendezvous(attempt, site if attempt.chosen[:1] == first else {})
        try:
            _train(attempt)
        except AllocationRetry as retry:
            attempt.dropped += attempt.left_out
            attempt.left_out, attempt.needs_time, attempt.chosen = [], False, retry.nodes
        attempt.tries += 1
        attempt.began, attempt.log_start = moment(), os.fstat(1).st_size
        os.environ["ASSAY_RETRY"] = str(attempt.tries)
        note(attempt, "started", progress=attempt.progress)
        hear_signals()


def _train(attempt: JobAttempt) -> NoReturn:
    """Check the nodes, run the ranks, and end this try with them."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    of_rank = [f"--cpus-per-task={cores}"] * bool(cores)  # srun does not inherit it
    _check_nodes(attempt, of_rank)
    before = attempt.progress
    say(f"assay: {shlex.join(attempt.command)}")
    # When the first rank fails, the others have a minute to save or to report; then they are ended.
    words = _placed(attempt, int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))) if attempt.node_counts else []
    words += ["--kill-on-bad-exit=0", "--wait=60", *of_rank, *attempt.rank_options, *_log_of_rank(attempt)]
    status, lines, signalled = _step(attempt, [*words, *attempt.inside, *attempt.command])
    ignore_signals()
    attempt.progress = last_saved(attempt)
    cause = cause_in(lines)
    if status > 128 and any(" ERROR Hang: " in line for line in lines):
        status = 70  # the hung rank was killed last
    if status == 75:
        if attempt.progress == before and not _preempted(signalled):
            finish(attempt, 124, "its time limit was reached before it saved a step; raise slurm.time_limit")
        cause = f"{signalled or 'signalled to stop'}; {attempt.progress} is saved"
    elif status in (137, 143) and signalled and "Node failure" not in cause:
        # where a node failed, Slurm ends the rest of the job, this process included
        cause = f"{signalled}, and ended before the save was complete; {attempt.progress} is saved. "
        cause += "Raise slurm.signal_seconds"
    finish(attempt, status, cause)


def _set_rendezvous(attempt: JobAttempt, site: Mapping[str, str]) -> None:
    """Export the first node and a port, unless the site's script did."""
    first = attempt.chosen or names(os.environ.get("SLURM_JOB_NODELIST", ""))
    # another port for each try: a taken one is not used again
    number = int(os.environ.get("SLURM_JOB_ID", "0")) + 97 * attempt.number + 1009 * attempt.tries
    own = {"MASTER_ADDR": first[0] if first else socket.gethostname(), "MASTER_PORT": str(20000 + number % 12768)}
    os.environ.update(own | dict(site))
    if attempt.interface:  # else gloo uses the interface by which a node reaches the first one, and NCCL chooses itself
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = attempt.interface
    say(f"assay: ranks meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}")


def _count(attempt: JobAttempt) -> int:
    """Number of nodes of this try."""
    given = attempt.node_counts[0] if attempt.node_counts else int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    return len(attempt.chosen) or given


def _placed(attempt: JobAttempt, each: int) -> list[str]:
    """Words for `srun`: this many processes on each node of this try."""
    nodes = _count(attempt)
    words = [f"--nodes={nodes}", f"--ntasks={nodes * each}", f"--ntasks-per-node={each}"]
    return words + [f"--nodelist={','.join(attempt.chosen)}"] * bool(attempt.chosen)


def _check_nodes(attempt: JobAttempt, of_rank: Sequence[str]) -> None:
    """Run the preflight on each node.

    A node that fails is excluded, and the attempt ends.
    """
    # When a node has failed, the others have half a minute: one that waits for another program's port would hang.
    words = [*_placed(attempt, 1), "--kill-on-bad-exit=0", "--wait=30"]
    words += ["--time=15", *of_rank, *attempt.inside, "assay", "slurm", "preflight", *attempt.command[2:]]
    status, lines, signalled = _step(attempt, words)
    if signalled:
        finish(attempt, 75, signalled)
    if status == 0:
        return
    if any("execve" in line for line in lines):
        attempt.left_out += _nodes_exited(lines, *_LOST_COMMAND)
        finish(attempt, 127, f"the command is not on {','.join(attempt.left_out) or 'a node'}")
    if _preempted():
        finish(attempt, 75, "signalled to stop, as another job takes its nodes, during the preflight")
    cause = cause_in(lines)
    if PROGRAM_DIFFERS in cause:  # the first node alone compares the program, so it is not a node's fault
        finish(attempt, 78, cause)
    bad = sorted({name for line in lines for name in re.findall(r"bad-node=([^;]*)", line)})
    if not bad and (blind := _blind_nodes(attempt, lines)):
        attempt.left_out += blind
        finish(attempt, 69, f"preflight: {','.join(blind)} does not see files that the other nodes see: {cause}")
    attempt.left_out += bad
    if status > 128 and any(" ERROR ClusterError: " in line for line in lines):
        status = 69  # the other nodes were ended because of it
    finish(attempt, status, f"preflight: {cause or cause_of(status)}")


def _step(attempt: JobAttempt, words: Sequence[str]) -> tuple[int, list[str], str]:
    """Run a parallel step; its status, relevant output, and signal in words.

    If srun did not reach the controller, starts the step again once the controller answers.
    """
    signalled = ""

    def pass_on(step: subprocess.Popen[bytes], number: int) -> bool:
        # for a signal to this process alone (scancel --batch); ranks that already have it act on the first
        nonlocal signalled
        signalled = WORDS[number]
        step.send_signal(signal.SIGUSR1)
        return True  # the ranks are still saving

    for number in range(1, _TRIES + 1):
        status, lines = watch(["srun", *attempt.srun_options, *words], os.environ, pass_on, _RELEVANT)
        lines = lines[-_LINES_READ:]
        if status == 0 or signalled or not any(map(_UNREACHED.search, lines)) or number == _TRIES:
            break
        if not runs_on(attempt):
            break
        say(f"assay: the controller answers again; srun is started again (try {number + 1})")
    return status, lines, signalled


def _blind_nodes(attempt: JobAttempt, lines: Sequence[str]) -> list[str]:
    """Nodes that do not see a file; none if all do not."""
    found = _nodes_exited(lines, 66, 78)
    return found if len(found) < _count(attempt) else []


def _nodes_exited(lines: Sequence[str], *statuses: int) -> list[str]:
    """Nodes whose tasks exited with one of these statuses."""
    return sorted({name for nodes in exited(lines, *statuses) for name in names(nodes) or [nodes]})


def _preempted(signalled: str = "") -> bool:
    """Return whether another job takes these nodes, as far as known."""
    return "SIGTERM" in signalled or was_preempted(
        query("scontrol", "show", "job", os.environ.get("SLURM_JOB_ID", "0"))[1]
    )


def _log_of_rank(attempt: JobAttempt) -> list[str]:
    """Words that copy a rank's output to a file of its own."""
    name = os.environ.get("SLURM_JOB_NAME", "train")
    folder = attempt.root / "slurm" / "logs" / f"{name}-{attempt.job}.{attempt.number}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        append = "-a " * bool(attempt.tries)
        copy = f'exec "$@" > >(trap "" TERM USR1; exec tee {append}"$0/rank-${{SLURM_PROCID:-0}}.log") 2>&1'
        return ["bash", "-c", copy, str(folder)]
    return []
