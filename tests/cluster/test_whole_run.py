"""One file and one command: a real cluster makes the same as one machine."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.cluster.bed import REPOSITORY, await_end, change, digests, losses, metrics, status, submit, tails, until
from tests.cluster.conftest import CONFIG, SLURM, write_project

pytestmark = pytest.mark.cluster
PARITY = 5e-5
"""Relative difference of two losses of the same step in fp32, between two ways to share the work out."""
BF16_PARITY = 1e-2
"""The same in bf16, whose numbers have 8 bits."""


LEAKS = {"MASTER_ADDR": "localhost", "RANK": "3", "WORLD_SIZE": "9", "LOCAL_RANK": "3", "SLURM_EXPORT_ENV": "NONE"}
"""Variables of a shell from a training by hand, or of one inside a job."""


def test_two_nodes_make_what_one_process_makes(bed, local, fresh):
    change(fresh, ("cpus_per_task = 1", 'cpus_per_task = 0\noptions = ["--nice=1", "--comment=grant 12"]'))
    jobs = submit(bed, fresh, **LEAKS)

    # The controller dies as it starts the tasks of an array, before it has saved that it did. Not of the first one: it
    # would not have saved the submission yet, and would forget all jobs.
    until(lambda: bed.state(f"{jobs['clean']}_0") == "RUNNING", 180, lambda: status(bed, fresh), every=0.05)
    bed("crash", "slurmctld")
    time.sleep(5)
    bed("start", "slurmctld")

    rows = await_end(bed, fresh, 540)
    assert rows["train"]["Comment"].startswith("grant 12; assay"), rows["train"]
    assert bed.accounted(jobs["train"], fields=("JobID", "NCPUS"))[-1]["NCPUS"] == "32"
    ranks = fresh / "root" / "slurm" / "logs" / f"run.train-{jobs['train']}.0"
    assert sorted(path.name for path in ranks.iterdir()) == ["rank-0.log", "rank-1.log"]
    assert {name: row["State"] for name, row in rows.items()} == dict.fromkeys(jobs, "COMPLETED"), tails(fresh)
    assert digests(fresh / "root") == digests(local / "root")
    assert losses(fresh / "root") == pytest.approx(losses(local / "root"), rel=PARITY)
    assert list((fresh / "root").glob("report/*/report.html"))
    output = status(bed, fresh)
    assert "all is done" in output
    made = [line.split() for line in (fresh / "faults" / "made").read_text().splitlines()]
    for stage in ("ingest", "clean", "redact", "encode"):  # each shard once, and not all in one task
        of_stage = [line for line in made if line[0] == stage]
        assert len({line[1] for line in of_stage}) == len(of_stage)
        assert len({line[3] for line in of_stage}) > 1
    accounting = json.loads((fresh / "root" / "slurm" / "accounting.jsonl").read_text().splitlines()[-1])
    assert accounting["slurm"] > accounting["jobs"]["train"]["joules"] > 0
    assert "energy by Slurm" in output


def test_the_quick_start_without_the_network(bed, tmp_path):
    """Its own file (bf16, ZeRO-1, its model), except for the sources, which no node reaches, and fewer steps."""
    folder = write_project(tmp_path / "project", documents=600)
    _, own = (REPOSITORY / "configs" / "quickstart.toml").read_text().split("[data.clean]")
    tales = CONFIG.partition("[data.ingest]")[0]
    (folder / "run.toml").write_text(f"{tales}[data.clean]{own}{SLURM}")
    change(
        folder,
        ('languages = ["de", "en", "es", "nl"]\n', ""),
        ("decay_steps = 50", "decay_steps = 10"),
        ("steps = 200", "steps = 20"),
        ("every_steps = 50\nkeep", "every_steps = 10\nkeep"),
        ("validate_every_steps = 50", "validate_every_steps = 10"),
        ("micro_batch_size = 16", "micro_batch_size = 8\nthreads = 1"),
        ("shards_per_task = 3", "shards_per_task = 100"),
        ("[engine]", '[tracking]\nmode = "disabled"\n\n[engine]'),
    )
    words = [sys.executable, "-m", "pretrain", "run", str(folder / "run.toml"), "--root", str(tmp_path / "local")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    jobs = submit(bed, folder)
    rows = await_end(bed, folder, 420)
    assert {name: row["State"] for name, row in rows.items()} == dict.fromkeys(jobs, "COMPLETED"), tails(folder)
    assert digests(folder / "root") == digests(tmp_path / "local")
    ours, theirs = losses(folder / "root"), losses(tmp_path / "local")
    assert len(ours) == 20
    assert ours == pytest.approx(theirs, rel=BF16_PARITY)
    assert sum(ours[-5:]) < 0.9 * sum(ours[:5])


def test_a_resubmission_with_more_nodes_in_an_allocation_continues_the_run(bed, local, prepared):
    change(prepared, ("zero_stage = 1", "zero_stage = 3"))
    root = prepared / "root"
    (prepared / "faults" / "slow").write_text("0.4")
    first = submit(bed, prepared)
    until(
        lambda: any(line["event"] == "checkpoint" for line in metrics(root)),
        180,
        lambda: f"{status(bed, prepared)}\n{tails(prepared)}",
    )
    done = bed.assay("slurm", "cancel", prepared / "run.toml", "--root", root)
    assert done.returncode == 0, done.stderr
    until(lambda: not bed.queued(), 60, lambda: bed.slurm("squeue"))
    assert bed.accounted(first["train"])[-1]["State"].startswith("CANCELLED")
    (prepared / "faults" / "slow").unlink()
    change(prepared, ("nodes = 2", "nodes = 3"))
    words = ["salloc", "-p", "low", "-N3", "--ntasks-per-node=1", sys.executable, "-m", "pretrain", "slurm", "submit"]
    words += [str(prepared / "run.toml"), "--root", str(root), "--local"]  # the same jobs, in one allocation
    done = subprocess.run(words, capture_output=True, text=True, env=bed.environment, check=False, timeout=1200)
    assert done.returncode == 0, f"{done.stderr}\n{tails(prepared)}"
    assert "all is done" in status(bed, prepared)
    assert "over 3 ranks" in next((root / "slurm" / "logs").glob("run.train-1*.0.log")).read_text()
    assert losses(root) == pytest.approx(losses(local / "root"), rel=PARITY)
    second = [line["step"] for line in metrics(root) if line["event"] == "step" and line["attempt"] == 2]
    assert second[0] > 1, "it began anew"


def test_a_closed_gate_lets_nothing_through(bed, prepared):
    policy = prepared / "policy.toml"
    policy.write_text(policy.read_text().replace('  "CC0-1.0",\n', ""))
    submit(bed, prepared)
    rows = await_end(bed, prepared, 180)
    assert rows["audit"]["State"] == "FAILED"
    assert rows["audit"]["ExitCode"] == "77:0"
    assert "licences.allowed" in rows["audit"]["Comment"]
    assert rows["train"]["State"] == rows["evaluate"]["State"] == "CANCELLED"
    assert rows["report"]["State"] == "COMPLETED", tails(prepared)
    assert rows["audit"]["Restarts"] == "0"
    assert not list((prepared / "root").glob("train/*/metrics.jsonl"))
    assert not list((prepared / "root").glob("checkpoint/*"))
    output = status(bed, prepared)
    assert "exit 77" in output
    assert "licences.allowed" in output
    assert "assay governance review" in output
