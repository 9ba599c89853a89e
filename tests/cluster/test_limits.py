"""Exhausted memory, disk and time of a chain's link, and a run that waits for greener hours."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from tests.cluster.bed import Training, attempts, change, losses, lost, status, submit, tails, until
from tests.cluster.test_faults import EVERY
from tests.cluster.test_whole_run import PARITY

pytestmark = pytest.mark.cluster


def test_memory_and_then_a_disk_run_out(bed, local, prepared):
    change(prepared, ("retries = 3", "retries = 20"))
    small = bed.folder / "small" / prepared.parent.name
    shutil.move(prepared / "root", small / "root")
    (prepared / "root").symlink_to(small / "root")
    run = Training(bed, prepared)
    now = run.saved()
    (prepared / "faults" / "memory").write_text("2800")  # a job of two such ranks may have 3,000 on a node
    run.saved(now + 1)
    assert [cause[: len("out of memory")] for cause in run.causes()] == ["out of memory"], run.causes()

    full, left = small / "full", 192 << 10  # room for the records, and for no checkpoint

    def stopped_while_full() -> bool:
        """The disk is filled again at each look: a save that began earlier removes an older checkpoint when it ends."""
        with full.open("ab") as file:
            while (free := shutil.disk_usage(small).free - left) > 0:
                file.write(bytes(min(free, 1 << 20)))
                file.flush()
        return len(run.causes()) >= 3

    until(stopped_while_full, 120, run.summary)  # the disk is still full when the job begins again
    assert "no space left" in run.causes()[1]
    assert "disk: 0 MiB free" in run.causes()[2]
    full.unlink()
    rows = run.end()
    assert rows["train"]["State"] == "COMPLETED", run.summary()
    assert losses(run.root) == pytest.approx(losses(local / "root"), rel=PARITY)
    assert max(lost(run.root).values()) <= EVERY
    assert "begun again: out of memory" in status(bed, prepared)
    shutil.rmtree(small)


def test_a_chain_goes_on_past_a_bad_node_and_a_link_that_is_killed_at_its_limit(bed, local, prepared):
    change(prepared, ("retries = 3", "retries = 3\nchain = 3\nsignal_seconds = 20"))
    (prepared / "faults" / "bad-node").write_text(bed.nodes[0])
    run = Training(bed, prepared)
    first, second, third = (run.jobs[name] for name in ("train", "train-2", "train-3"))
    until(lambda: bed.state(second) == "RUNNING", 90, run.summary)
    assert [line["outcome"] for line in attempts(prepared, first)] == ["failed"]
    assert "2 uncorrected errors" in attempts(prepared, first)[0]["cause"]
    for link in (second, third):
        assert bed.job(link)["ExcNodeList"] == bed.nodes[0]
    run.saved()
    run.slow(600)  # no step ends in time, so no code receives the signal
    bed.slurm("scontrol", "update", f"jobid={second}", "TimeLimit=1")
    until(lambda: bed.state(third) == "RUNNING", 150, run.summary)
    rows = run.end()
    assert (rows["train"]["State"], rows["train-2"]["State"]) == ("FAILED", "TIMEOUT"), run.summary()
    assert rows["train-3"]["State"] == rows["report"]["State"] == "COMPLETED", run.summary()
    assert losses(run.root) == pytest.approx(losses(local / "root"), rel=PARITY)
    assert max(lost(run.root).values()) <= EVERY
    assert "all is done" in status(bed, prepared)


def test_a_run_waits_for_greener_hours(bed, prepared):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    rows = [
        f"{(hour + number * timedelta(hours=1)).isoformat()},{40 if 3 <= number < 6 else 400}" for number in range(48)
    ]
    (prepared / "day.csv").write_text("\n".join(["time,grams_per_kwh", *rows]) + "\n")
    words = ["--carbon-aware", prepared / "day.csv", "--latest", "12", "--expected", "2"]
    jobs = submit(bed, prepared, *words)
    waits = until(
        lambda: bed.job(jobs["data"]).get("Reason") == "BeginTime" and bed.job(jobs["data"]),
        30,
        lambda: status(bed, prepared),
    )
    assert waits["JobState"] == "PENDING"
    begin = datetime.fromisoformat(waits["EligibleTime"]).astimezone(UTC)
    assert abs(begin - (hour + timedelta(hours=3))) <= timedelta(seconds=2)
    assert bed.job(jobs["audit"])["Reason"] == "Dependency"
    assert json.loads((prepared / "root" / "slurm" / "carbon.json").read_text())["grams_per_kwh"] == 40
    assert "BeginTime" in status(bed, prepared)

    # a file edited meanwhile is refused when the job starts, and by a retry without --take-edits
    change(prepared, ("steps = 100", "steps = 50"))
    bed.slurm("scontrol", "update", f"jobid={jobs['data']}", "StartTime=now")
    until(lambda: bed.state(jobs["data"]) == "FAILED", 90, lambda: status(bed, prepared) + tails(prepared))
    assert "run.toml: was edited since" in attempts(prepared, jobs["data"])[-1]["cause"]
    assert "run.toml: was edited since" in status(bed, prepared)
    until(lambda: not bed.queued(), 60, lambda: bed.slurm("squeue"))
    words = ["slurm", "retry", prepared / "run.toml", "--root", prepared / "root"]
    done = bed.assay(*words)
    assert (done.returncode, bed.queued()) == (78, []), done.stderr
    done = bed.assay(*words, "--take-edits")
    assert done.returncode == 0, done.stderr
    assert "edits are taken" in status(bed, prepared)
    done = bed.assay("slurm", "cancel", prepared / "run.toml", "--root", prepared / "root")
    assert done.returncode == 0, done.stderr
    until(lambda: not bed.queued(), 30, lambda: bed.slurm("squeue"))
