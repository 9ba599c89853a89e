"""Data as an array: 40 shards, 8 tasks at a time, some of which fail; exactly what is missing is made again."""

import re

import pytest

from tests.cluster.bed import attempts, change, status, submit, tails, until
from tests.cluster.conftest import write_project

pytestmark = pytest.mark.cluster
SHARDS, EACH, AT_ONCE = 40, 2, 8
TASKS = SHARDS // EACH
ONCE = (7, 38)
"""Shards whose first try fails: the first by SIGKILL, the second by an exception."""
ALWAYS = (13, 24)
"""Shards that fail until their fault is removed."""


def made(folder):
    """(index, job, task) of each shard of ingest that was made, in order."""
    lines = [line.split() for line in (folder / "faults" / "made").read_text().splitlines()]
    return [(int(index), job, int(task)) for stage, index, job, task in lines if stage == "ingest"]


def test_only_what_is_missing_is_made_again(bed, tmp_path):
    folder = write_project(tmp_path / "project", files=SHARDS, documents=2 * SHARDS)
    change(
        folder,
        ("shards_per_task = 3", f"shards_per_task = {EACH}\nthrottle = {AT_ONCE}"),
        ("retries = 3", "retries = 1"),
    )
    for when, shards in (("once", ONCE), ("always", ALWAYS)):
        (folder / "faults" / f"fail-{when}").mkdir()
        for index in shards:
            (folder / "faults" / f"fail-{when}" / f"ingest.{index}").touch()
    jobs, most = submit(bed, folder), 0
    assert bed.job(f"{jobs['ingest']}_0")["ArrayTaskThrottle"] == str(AT_ONCE)

    def ended():
        nonlocal most
        tasks = bed.slurm("squeue", "-h", "-r", "-t", "R", "-j", jobs["ingest"], "-o", "%i", check=False).split()
        most = max(most, len(tasks))
        return jobs["ingest"] not in {number.partition("_")[0] for number in bed.queued()}

    until(ended, 500, lambda: f"{status(bed, folder)}\n{tails(folder)}")
    assert 1 < most <= AT_ONCE
    lost = {index % TASKS for index in ALWAYS}  # a task makes the shards index, index + TASKS, ...
    retried = {index % TASKS for index in ONCE}
    rows = [row for row in bed.accounted(jobs["ingest"]) if "_" in row["JobID"]]
    last = {int(row["JobID"].partition("_")[2]): row for row in rows}
    assert len(last) == TASKS
    assert {number for number, row in last.items() if row["State"] != "COMPLETED"} == lost
    assert {number for number, row in last.items() if row["Restarts"] == "1"} == lost | retried
    assert all(row["Restarts"] == "0" for number, row in last.items() if number not in lost | retried)
    for number in range(TASKS):
        outcomes = [line["outcome"] for line in attempts(folder, f"{jobs['ingest']}_{number}")]
        first = ["failed"] if number in lost | retried else []
        # The second time, the verdict on the log may call the fault one that no retry can help.
        assert outcomes[:-1] == first, number
        assert outcomes[-1] in ({"failed", "explained"} if number in lost else {"done"}), number
    before, records = made(folder), folder / "root" / "ingest" / "records"
    assert len(before) == len({index for index, *_ in before})
    missing = set(range(SHARDS)) - {index for index, *_ in before}
    assert set(ALWAYS) <= missing <= {index for index in range(SHARDS) if index % TASKS in lost}
    until(lambda: bed.state(jobs["ingest-join"]) == "CANCELLED", 30, lambda: status(bed, folder))
    output = status(bed, folder)
    assert "assay slurm retry" in output
    assert re.search(rf"^ingest .* {TASKS - len(lost)}/{TASKS} ", output, re.MULTILINE), output

    for index in ALWAYS:
        (folder / "faults" / "fail-always" / f"ingest.{index}").unlink()
    done = bed.assay("slurm", "retry", folder / "run.toml", "--root", folder / "root")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"ingest \({len(lost)} of {TASKS} tasks\)", done.stdout), done.stdout
    until(
        lambda: list((folder / "root").glob("ingest/*/manifest.json")),
        90,
        lambda: f"{status(bed, folder)}\n{tails(folder)}",
    )
    again = made(folder)[len(before) :]
    assert {index for index, *_ in again} == missing
    assert len(again) == len(missing)
    assert {task for *_, task in again} == lost
    assert sum(re.fullmatch("[0-9a-f]{64}.json", path.name) is not None for path in records.iterdir()) == SHARDS
    done = bed.assay("slurm", "cancel", folder / "run.toml", "--root", folder / "root")
    assert done.returncode == 0, done.stderr
    until(lambda: not bed.queued(), 60, lambda: bed.slurm("squeue"))
