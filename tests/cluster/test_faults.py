"""A training run that a cluster does everything to: it ends by itself, with the losses of an unbroken run."""

import itertools
import os
import signal

import pytest

from tests.cluster.bed import attempts, await_end, change, losses, metrics, status, submit, tails, until
from tests.cluster.test_whole_run import PARITY

pytestmark = pytest.mark.cluster
EVERY = 5
"""Steps from checkpoint to checkpoint."""


class Training:
    """The training job of a run that lasts until it is let go."""

    def __init__(self, bed, folder):
        self.bed, self.folder, self.root = bed, folder, folder / "root"
        (folder / "faults" / "slow").write_text("0.4")
        self.job = submit(bed, folder)["train"]

    def told(self):
        return f"{status(self.bed, self.folder)}\n{tails(self.folder)}"

    def attempt(self):
        """The number of the newest attempt that has computed a step."""
        return max((line["attempt"] for line in metrics(self.root) if line["event"] == "step"), default=0)

    def saved(self, attempt):
        """Wait until this attempt has saved; the moment after, as little as can be is lost."""
        until(
            lambda: any(line["event"] == "checkpoint" and line["attempt"] >= attempt for line in metrics(self.root)),
            150,
            self.told,
            every=0.05,
        )
        return self.attempt()

    def nodes(self):
        return self.bed.slurm("scontrol", "show", "hostnames", self.bed.job(self.job)["NodeList"]).split()

    def causes(self):
        return [line["cause"] for line in attempts(self.folder, self.job)]

    def end(self, seconds=150):
        (self.folder / "faults" / "slow").unlink()
        return await_end(self.bed, self.folder, seconds)


def lost(root):
    """Steps that each attempt after the first computed again."""
    by_attempt = {}
    for line in metrics(root):
        if line["event"] == "step":
            by_attempt.setdefault(line["attempt"], []).append(line["step"])
    ordered = [by_attempt[number] for number in sorted(by_attempt)]
    return [max(before) - after[0] + 1 for before, after in itertools.pairwise(ordered)]


def test_a_run_through_all_that_a_cluster_does(bed, local, prepared):
    change(
        prepared,
        ("retries = 3", "retries = 6"),
        ('time_limit = "20"\ndata', 'time_limit = "20"\nsignal_seconds = 20\ndata'),
    )
    run = Training(bed, prepared)

    # the controller dies: the job goes on, or is begun again
    run.saved(1)
    bed("crash", "slurmctld")
    told = bed.assay("slurm", "status", prepared / "run.toml", "--root", prepared / "root")
    assert told.returncode == 0, told.stderr
    assert "wait until the controller answers" in told.stdout
    bed("start", "slurmctld")
    until(lambda: bed.state(run.job) == "RUNNING", 60, run.told)

    # a rank is killed
    now = run.saved(run.attempt())
    os.kill(bed.ranks(run.job)[1], signal.SIGKILL)

    # a job of more weight takes the nodes
    now = run.saved(now + 1)
    other = bed.slurm(
        "sbatch", "--parsable", "-p", "high", "-N3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"
    ).strip()
    until(lambda: bed.state(other) == "COMPLETED", 90, lambda: bed.slurm("squeue") + run.told())

    # the time limit comes near
    now = run.saved(now + 1)
    bed.slurm("scontrol", "update", f"jobid={run.job}", "TimeLimit=1")
    until(lambda: run.attempt() > now, 150, run.told)
    bed.slurm("scontrol", "update", f"jobid={run.job}", "TimeLimit=20")

    # a node dies
    now = run.saved(now + 1)
    node = run.nodes()[1]
    bed("crash", node)
    now = run.saved(now + 1)
    assert node not in run.nodes()
    bed("start", node)

    # a network is cut: the old start runs on where nobody reaches it, and must do no harm
    node = run.nodes()[0]
    bed("cut", node)
    now = run.saved(now + 1)
    assert node not in run.nodes()
    bed("heal", node)

    rows = run.end()
    assert rows["train"]["State"] == "COMPLETED", run.told()
    assert losses(prepared / "root") == pytest.approx(losses(local / "root"), rel=PARITY)
    assert max(lost(prepared / "root")) <= EVERY, lost(prepared / "root")
    told = status(bed, prepared)
    assert "begun again" in told
