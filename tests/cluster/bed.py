"""The cluster as tests see it: start, crash and cut its parts; query Slurm; wait until something holds."""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SCRIPT = HERE / "testbed.sh"
CONF = (
    "AccountingStorageEnforce=associations",
    "EnforcePartLimits=ALL",
    "JobAcctGatherParams=OverMemoryKill",
    "PreemptType=preempt/partition_prio",
    "PreemptMode=REQUEUE",
    "PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=30 MaxTime=60 State=UP",
    "PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=60 State=UP",
)
_BUSY = 3  # how much longer an event may take while other tests run; only a failure takes so long
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


def until(holds, seconds, what, every=0.3):
    """The value of `holds()` once it is true; fails after `seconds` of a quiet machine, with `what`."""
    end = time.monotonic() + _BUSY * seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"after {_BUSY * seconds} s: {what() if callable(what) else what}"
        time.sleep(every)
    return found


@dataclass(frozen=True)
class Bed:
    """A cluster that is up."""

    folder: Path
    nodes: tuple[str, ...]

    def __call__(self, command, *words):
        """One command of testbed.sh."""
        done = subprocess.run(
            ["bash", str(SCRIPT), command, str(self.folder), *words],
            capture_output=True, text=True, check=False, timeout=540,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def environment(self):
        """The environment of a user's shell on the login node."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PYTHONPATH": str(REPOSITORY)}

    def slurm(self, *words, check=True):
        """The output of one of Slurm's commands."""
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment, check=False, timeout=180)
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
        return done.stdout

    def assay(self, *words, timeout=720, **more):
        """A command of the product, as typed on the login node."""
        return subprocess.run(
            [sys.executable, "-m", "pretrain", *map(str, words)],
            capture_output=True, text=True, env={**self.environment, **more}, check=False, timeout=timeout,
        )  # fmt: skip

    def job(self, number):
        """The fields that scontrol shows of a job (or one task of an array: `7_3`)."""
        shown = self.slurm("scontrol", "show", "job", "--oneliner", str(number), check=False)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def state(self, number):
        """A job's state, in one word: "" while the controller is away."""
        return self.job(number).get("JobState", "")

    def accounted(self, *jobs, fields=("JobID", "JobName", "State", "ExitCode", "Restarts", "Comment")):
        """Rows of sacct, one per job or task."""
        output = self.slurm(
            "sacct", "-n", "-X", "-P", "-D", "-j", ",".join(map(str, jobs)), f"--format={','.join(fields)}"
        )
        return [dict(zip(fields, line.split("|"), strict=True)) for line in output.splitlines()]

    def queued(self):
        """Numbers of jobs that wait or run.

        A job that completes is neither: the probe of a submission may still be cleaned up after its answer.
        """
        lines = self.slurm("squeue", "-h", "-r", "-o", "%i %t").splitlines()
        return [number for number, state in map(str.split, lines) if state != "CG"]

    def ranks(self, job):
        """Process numbers of a job's training processes, by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                values = dict(v.split(b"=", 1) for v in (folder / "environ").read_bytes().split(b"\0") if b"=" in v)
            except OSError:
                continue
            python = b"python" in words[0] and b"train" in words
            ours = (
                values.get(b"SLURM_CONF") == str(self.folder / "slurm.conf").encode()
            )  # numbers recur in a cluster beside
            if python and ours and values.get(b"SLURM_JOB_ID") == str(job).encode():
                found[int(values.get(b"SLURM_PROCID", b"-1"))] = int(folder.name)
        return found

    def resume(self):
        """Resume nodes that Slurm drained for a step that outlived its job, as an administrator would.

        A node that was cut off, or that a busy machine gave no time, may have such a step.
        """
        for line in self.slurm("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T %E", check=False).splitlines():
            if "drain" in line.split()[1] and ("Kill task failed" in line or "Duplicate jobid" in line):
                self.slurm("scontrol", "update", f"nodename={line.split()[0]}", "state=resume", check=False)

    def settle(self, seconds=90):
        """Wait until every node may get jobs and none has any."""
        self.resume()
        until(
            lambda: (
                self.slurm("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()
                == ["idle"] * len(self.nodes)
            ),
            seconds,
            lambda: self.slurm("sinfo", "-N", "-l", check=False) + self.slurm("squeue", check=False),
        )


class Training:
    """The training job of a run that lasts until it is released."""

    def __init__(self, bed, folder):
        self.bed, self.folder, self.root = bed, folder, folder / "root"
        self.slow(0.4)
        self.jobs = submit(bed, folder)
        self.job = self.jobs["train"]

    def slow(self, seconds):
        """Let each step take longer from now on."""
        (self.folder / "faults" / "slow").write_text(str(seconds))

    def summary(self):
        """Its state, for the message of a failed test."""
        nodes = self.bed.slurm("sinfo", "-N", "-o", "%N %T %E", check=False)
        return f"{status(self.bed, self.folder)}\n{nodes}\n{tails(self.folder)}"

    def attempt(self):
        """The number of the newest attempt that has computed a step."""
        return max((line["attempt"] for line in metrics(self.root) if line["event"] == "step"), default=0)

    def saved(self, attempt=1, seconds=150):
        """Wait until this attempt, or a later one, has just saved, when least can be lost; return its number."""

        def of_attempt():
            return [line for line in metrics(self.root) if line["event"] == "checkpoint" and line["attempt"] >= attempt]

        def further():
            if next(rounds) % 100 == 0:
                self.bed.resume()
            return len(of_attempt()) > before

        before, rounds = len(of_attempt()), itertools.count()
        until(further, seconds, self.summary, every=0.05)
        return self.attempt()

    def nodes(self):
        """The nodes that the job has."""
        return self.bed.slurm("scontrol", "show", "hostnames", self.bed.job(self.job)["NodeList"]).split()

    def causes(self):
        """The reasons that its attempts gave for their ends."""
        return [line["cause"] for line in attempts(self.folder, self.job)]

    def end(self, seconds=400):  # a node that was cut off may keep the job completing for minutes
        """Release it, and wait until all jobs have ended; name -> its row of sacct."""
        self.slow(0)
        return await_end(self.bed, self.folder, seconds)


def lost(root):
    """Attempt -> how many of its steps the next one computed again."""
    steps = {}
    for line in metrics(root):
        if line["event"] == "step":
            steps.setdefault(line["attempt"], []).append(line["step"])
    pairs = itertools.pairwise(sorted(steps))
    return {before: max(steps[before]) - steps[after][0] + 1 for before, after in pairs}


def digests(root, but=("train", "report", "checkpoint", "checkpoint-native")):
    """Stage -> digest of every artifact of the corpus."""
    from governance.manifest import read_manifest

    found = {path: read_manifest(path) for path in sorted(root.glob("*/*/manifest.json"))}
    return {path.parent.relative_to(root): made.digest for path, made in found.items() if made.stage not in but}


def losses(root):
    """The losses of the one finished run, step by step."""
    [path] = root.glob("train/*/losses.json")
    return json.loads(path.read_bytes())["losses"]


def metrics(root):
    """The lines of metrics.jsonl so far."""
    lines = []
    for path in root.glob("train/*/metrics.jsonl"):
        for line in path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # being written
    return lines


def submit(bed, folder, *words, **environment):
    """Submit the project's run from a shell with these variables; name -> number of each of its jobs."""
    done = bed.assay("slurm", "submit", folder / "run.toml", "--root", folder / "root", *words, **environment)
    assert done.returncode == 0, done.stderr
    return jobs_of(folder / "root")


def status(bed, folder):
    """The product's status of the run's jobs."""
    done = bed.assay("slurm", "status", folder / "run.toml", "--root", folder / "root")
    assert done.returncode == 0, done.stderr
    return done.stdout


def await_end(bed, folder, seconds):
    """Wait until none of the run's jobs waits or runs; name -> its row of sacct."""
    jobs = jobs_of(folder / "root")

    def ended():
        bed.resume()
        rows = {row["JobID"].partition("_")[0]: row for row in bed.accounted(*jobs.values())}
        live = set(number.partition("_")[0] for number in bed.queued()) & set(jobs.values())
        over = set(jobs.values()) <= set(rows) and all(row["State"].split()[0] in ENDED for row in rows.values())
        return not live and over and {name: rows[number] for name, number in jobs.items()}  # accounting comes later

    def found():
        return "\n".join((tails(folder), status(bed, folder), bed.slurm("squeue"), str(bed.accounted(*jobs.values()))))

    return until(ended, seconds, found, every=1)


def tails(folder):
    """The last lines of each log of the run's jobs, which show why a test failed."""
    paths = sorted((folder / "root" / "slurm" / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
    return "\n".join(f"== {path.name}\n" + "\n".join(path.read_text().splitlines()[-25:]) for path in paths[-6:])


def attempts(folder, job):
    """The end that each attempt of a job reported."""
    path = folder / "root" / "slurm" / "attempts" / f"{job}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["event"] == "ended"]


def jobs_of(root):
    """Name -> number of the job that was submitted last under it."""
    rows = [json.loads(line) for line in (root / "slurm" / "jobs.jsonl").read_text().splitlines()]
    return {row["name"]: row["job"] for row in rows}


def change(folder, *pairs):
    """Replace texts of the run's file, each of which is there."""
    text = (folder / "run.toml").read_text()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "run.toml").write_text(text)
