"""Training runs under every fault of a cluster: they end by themselves, with the losses of an unbroken run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cluster.bed import SCRIPT, Training, change, losses, lost, status, until
from tests.cluster.test_whole_run import PARITY

pytestmark = pytest.mark.cluster
EVERY = 5
"""Steps from checkpoint to checkpoint."""


def test_a_run_through_all_that_a_cluster_does(bed, local, prepared):
    change(prepared, ("retries = 3", "retries = 6\nsignal_seconds = 20"))
    run = Training(bed, prepared)

    # the controller dies as it starts the training, before it has saved that it did
    until(lambda: bed.state(run.job) == "RUNNING", 150, run.summary, every=0.05)
    bed("crash", "slurmctld")
    time.sleep(5)
    bed("start", "slurmctld")

    # the controller dies: the job goes on
    now = run.saved(seconds=400)  # it forgot the audit's end as well, and notices after a minute or two
    bed("crash", "slurmctld")
    output = bed.assay("slurm", "status", prepared / "run.toml", "--root", prepared / "root")
    assert output.returncode == 0, output.stderr
    assert "wait until the controller answers" in output.stdout
    bed("start", "slurmctld")
    until(lambda: bed.state(run.job) == "RUNNING", 60, run.summary)
    assert run.saved() == now, run.summary()

    # a rank is killed
    os.kill(bed.ranks(run.job)[1], signal.SIGKILL)
    preempted = run.saved(now + 1)

    # a job of higher priority takes the nodes
    words = ["-p", "high", "-N3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"]
    other = bed.slurm("sbatch", "--parsable", *words).strip()
    until(lambda: bed.state(other) == "COMPLETED", 90, lambda: bed.slurm("squeue") + run.summary())
    limited = run.saved(preempted + 1)

    # the time limit comes near, within 40 seconds
    run.slow(2)
    bed.slurm("scontrol", "update", f"jobid={run.job}", "TimeLimit=1")
    until(lambda: bed.state(run.job) == "PENDING", 120, run.summary)
    bed.slurm("scontrol", "update", f"jobid={run.job}", "TimeLimit=20")
    run.slow(0.4)
    now = run.saved(limited + 1)

    # a node dies
    node = run.nodes()[1]
    bed("crash", node)
    now = run.saved(now + 1)
    assert node not in run.nodes()
    bed("start", node)

    # a network is cut: the old start runs on out of reach, and must do no harm
    node = run.nodes()[0]
    bed("cut", node)
    run.saved(now + 1)
    assert node not in run.nodes()
    bed("heal", node)

    rows = run.end()
    assert rows["train"]["State"] == "COMPLETED", run.summary()
    assert rows["evaluate"]["State"] == rows["report"]["State"] == "COMPLETED", run.summary()
    assert "all is done" in status(bed, prepared)
    logs = (prepared / "root" / "slurm" / "logs").glob("*.log")
    assert [log.name for log in logs if "does not continue" in log.read_text()] == [], "a false alarm of the journal"
    assert losses(prepared / "root") == pytest.approx(losses(local / "root"), rel=PARITY)
    again = lost(prepared / "root")
    assert len(again) == 5, again
    assert max(again.values()) <= EVERY, again
    assert again[preempted] == again[limited] == 0, again
    assert sum("Node failure" in cause for cause in run.causes()) == 1, run.causes()  # a cut node records nothing
    assert "begun again: Node failure" in status(bed, prepared)
    [report] = (prepared / "root").glob("report/*/report.json")
    energy = json.loads(report.read_bytes())["energy"]
    assert energy["total"]["wasted"] > 0, energy
    assert energy["wasted_by_cause"]["killed"] > 0, energy


LISTENER = "import socket, sys, time; kept = socket.create_server(('', int(sys.argv[1]))); time.sleep(600)"


def test_a_run_past_a_taken_port_and_a_wrong_clock(bed, local, prepared):
    change(prepared, ("retries = 3", "retries = 6"))
    first, wrong, third = bed.nodes
    (prepared / "faults" / "clock").write_text(wrong)
    run = Training(bed, prepared)

    # the port of the first attempt is taken on each node; of the two nodes that get the job, one has a wrong clock
    port = str(20000 + int(run.job) % 12768)
    words = [[str(SCRIPT), "in", str(bed.folder), node, sys.executable, "-c", LISTENER, port] for node in bed.nodes]
    listeners = [subprocess.Popen(["bash", *each]) for each in words]
    try:
        run.saved(seconds=400)  # three attempts end before
    finally:
        for listener in listeners:
            listener.kill()
            listener.wait()
    taken, *blamed = run.causes()
    assert f"cannot reach {first}:{port}" in taken, run.causes()
    assert len(blamed) == 2, run.causes()  # the fault is known only after each other node was tried with it
    assert all(": clock: " in cause for cause in blamed), run.causes()
    assert sorted(run.nodes()) == [first, third]
    rows = run.end()
    assert rows["train"]["State"] == rows["report"]["State"] == "COMPLETED", run.summary()
    assert losses(run.root) == pytest.approx(losses(local / "root"), rel=PARITY)


def unmount(bed, node, path):
    """Killed by the system call: the command would look for itself in the /proc of the node's processes."""
    call = "import ctypes, sys; sys.exit(-ctypes.CDLL(None).umount2(sys.argv[1].encode(), 2))"
    bed("in", node, sys.executable, "-c", call, str(path))


def test_a_run_past_a_read_only_root_and_a_dead_mount(bed, local, prepared):
    run = Training(bed, prepared)
    now = run.saved()
    third = run.nodes()[1]

    # the root is read-only for 30 seconds: the attempt ends, and the next one waits for it
    for node in bed.nodes:
        bed("in", node, "sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"', str(run.root))
    time.sleep(30)
    for node in bed.nodes:
        unmount(bed, node, run.root)
    now = run.saved(now + 1, seconds=300)
    assert run.causes()[0].startswith(("cannot write", "preflight: cannot write")), run.causes()

    # a node no longer sees the project: it is excluded, by its name
    bed("in", third, "mount", "-t", "tmpfs", "-o", "ro", "none", str(prepared))
    bed.slurm("scontrol", "requeue", run.job)
    try:
        run.saved(now + 1, seconds=300)
    finally:
        unmount(bed, third, prepared)
    assert third not in run.nodes()
    assert f"{third} does not see" in run.causes()[-1], run.causes()
    output = status(bed, prepared)
    assert third in output

    rows = run.end()
    assert rows["train"]["State"] == rows["report"]["State"] == "COMPLETED", run.summary()
    assert losses(run.root) == pytest.approx(losses(local / "root"), rel=PARITY)
    assert max(lost(run.root).values()) <= EVERY


def test_a_run_goes_on_in_its_allocation_on_a_spare_node_and_then_on_fewer(bed, local, prepared):
    change(prepared, ("retries = 3", "retries = 3\nspare_nodes = 1\nmin_nodes = 1"))
    run = Training(bed, prepared)
    now = run.saved(seconds=400)
    first, second, third = bed.nodes
    (prepared / "faults" / "bad-node").write_text(third)  # the spare node is bad, too
    bed("crash", second)
    run.saved(now + 1)
    rows = run.end()
    assert (rows["train"]["State"], rows["train"]["Restarts"]) == ("COMPLETED", "0"), run.summary()
    assert losses(run.root) == pytest.approx(losses(local / "root"), rel=PARITY)
    assert max(lost(run.root).values()) <= EVERY
    said = [cause.partition("; tried again in the allocation ")[2] for cause in run.causes()]
    assert said == [f"without {second}, on {first},{third}", f"without {third}, on {first}", ""], run.causes()
    assert f"begun again: Node failure on {second}; tried again" in status(bed, prepared)
