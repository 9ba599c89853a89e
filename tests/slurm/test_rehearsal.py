"""A rehearsal: the jobs' own scripts, in order, with dependencies, retries and cancellation."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from governance.errors import ConfigError
from slurm.actions import missing
from slurm.commands import FIRST_LOCAL
from slurm.config import SlurmConfig
from slurm.graph import PlannedRun, plan
from slurm.job_states import gather
from slurm.rehearsal import record, refuse_here, rehearse
from slurm.render import keep_program
from slurm.submit import JobRequest, cancellation_mark, keep_scripts

CONFIG = SlurmConfig(nodes=2, retries=2, signal_seconds=10)


class Rehearsal:
    """A root, and a stand-in for `assay` that records its calls and ends as the test requires."""

    def __init__(self, folder, monkeypatch):
        self.root, self.calls = folder / "root", folder / "calls"
        self.program = folder / "bin" / "assay"
        self.program.parent.mkdir()
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PATH", f"{self.program.parent}:{os.environ['PATH']}")
        self.ends("exit 0")

    def ends(self, body):
        call = "$1 ${2##/*} ${SLURM_PROCID:-x} ${SLURM_RESTART_COUNT:-x}"
        self.program.write_text(f'#!/bin/bash\necho "{call}" >> {self.calls}\n{body}\n')
        self.program.chmod(0o755)

    def run(self, orders=None, shards=1, config=CONFIG):
        words = (str(self.root.parent / "run.toml"), "--root", str(self.root))
        jobs = plan(PlannedRun("run", ("ingest",), shards, words), config, 1001)
        orders = [JobRequest(job) for job in jobs] if orders is None else orders
        keep_scripts(jobs, self.root.parent / "run.toml", self.root, config)
        keep_program(self.root)
        self.jobs = {job.name: job for job in jobs}
        return rehearse(record(orders, self.root), self.jobs, self.root, config)

    def states(self):
        return {row.name: [part.state for part in row.parts] for row in gather(self.root).rows}

    def called(self):
        """Each call: the command's first word, its second where that is not a path, the rank, the restart."""
        return [tuple(line.split()) for line in self.calls.read_text().splitlines()]


@pytest.fixture
def rehearsal(tmp_path, monkeypatch):
    return Rehearsal(tmp_path, monkeypatch)


def test_the_whole_graph_runs_in_order_with_a_process_for_each_rank(rehearsal):
    assert rehearsal.run(shards=2) == 0
    done = ["COMPLETED"]
    assert rehearsal.states() == {
        "sources": done, "ingest": done * 2, "ingest-join": done, "data": done, "audit": done, "train": done,
        "evaluate": done, "report": done,
    }  # fmt: skip
    calls = [call[:-1] for call in rehearsal.called()]
    assert calls[:5] == [("data", "prepare", "x")] * 5
    assert calls[5:7] == [("governance", "check", "x"), ("slurm", "preflight", "0")]
    assert sorted(calls[7:9]) == [("train", "0"), ("train", "1")]
    assert calls[9:] == [("evaluate", "x"), ("report", "x")]
    lines = [json.loads(line) for line in (rehearsal.root / "slurm" / "jobs.jsonl").read_text().splitlines()]
    assert min(int(line["job"]) for line in lines) > FIRST_LOCAL
    ranks = rehearsal.root.glob("slurm/logs/run.train-*.0/rank-*.log")
    assert sorted(path.name for path in ranks) == ["rank-0.log", "rank-1.log"]
    left = subprocess.run(["pgrep", "-f", str(rehearsal.root)], capture_output=True, text=True, check=False).stdout
    assert left == "", "a job left a process behind"


def test_a_closed_gate_cancels_the_training_and_not_the_report(rehearsal):
    rehearsal.ends('[ "$1" != governance ] || exit 77')
    assert rehearsal.run() == 77
    cancelled = {name: ["CANCELLED"] for name in ("train", "evaluate")}
    assert rehearsal.states() == {"data": ["COMPLETED"], "audit": ["FAILED"], **cancelled, "report": ["COMPLETED"]}


def test_a_failure_is_tried_again_and_what_is_left_is_made_by_a_retry(rehearsal):
    rehearsal.ends('[ "$1" != train ] || exit 1')
    assert rehearsal.run() == 1
    assert [call[-1] for call in rehearsal.called() if call[:2] == ("train", "0")] == ["0", "1", "2"]
    assert rehearsal.states()["train"] == ["FAILED"]
    orders, stale = missing(gather(rehearsal.root), list(rehearsal.jobs.values()))
    assert ([order.job.name for order in orders], stale) == (["train", "evaluate", "report"], [])
    rehearsal.ends('[ "$1" != evaluate ] || [ "$SLURM_RESTART_COUNT" -ge 2 ] || exit 75')  # signalled: started again
    assert rehearsal.run(orders) == 0
    assert all(states == ["COMPLETED"] for states in rehearsal.states().values())


def test_a_cancellation_ends_what_runs_and_what_waits(rehearsal):
    rehearsal.ends('[ "$1" != governance ] || exec sleep 60')

    def cancel():
        while not rehearsal.calls.exists() or "governance" not in rehearsal.calls.read_text():
            time.sleep(0.05)
        for number in range(1, 6):
            path = cancellation_mark(rehearsal.root, str(FIRST_LOCAL + number))
            path.parent.mkdir(exist_ok=True)
            path.touch()

    thread = threading.Thread(target=cancel)
    thread.start()
    assert rehearsal.run() != 0
    thread.join()
    states = rehearsal.states()
    assert states.pop("data") == ["COMPLETED"]
    assert all(state == ["CANCELLED"] for state in states.values())


def test_a_second_rehearsal_of_a_root_is_refused(rehearsal):
    path = rehearsal.root / "slurm" / "rehearsing"
    hold = "import sys, pathlib; from governance.files import held\nwith held(pathlib.Path(sys.argv[1]), 'me'): input()"
    with subprocess.Popen([sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE) as other:
        while not path.exists() or not path.read_text():
            time.sleep(0.05)
        with pytest.raises(ConfigError, match="another rehearsal is alive: me"):
            refuse_here(CONFIG, rehearsal.root)
        other.communicate(b"\n")
    refuse_here(CONFIG, rehearsal.root)


def test_a_status_that_looks_at_the_lock_does_not_refuse_a_rehearsal(rehearsal):
    path = rehearsal.root / "slurm" / "rehearsing"
    hold = (
        "import sys, pathlib, time; from governance.files import held\n"
        "with held(pathlib.Path(sys.argv[1]), 'status'): time.sleep(1)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(path)]):
        while not path.exists() or not path.read_text():
            time.sleep(0.01)
        refuse_here(CONFIG, rehearsal.root)


def test_a_time_limit_of_zero_is_none_as_in_slurm(rehearsal):
    unlimited = CONFIG.model_copy(update={"time_limit": "0", "data_time_limit": "0"})
    assert rehearsal.run(config=unlimited) == 0
    assert all(state == ["COMPLETED"] for state in rehearsal.states().values())


def test_an_allocation_that_is_too_small_is_refused(rehearsal, monkeypatch):
    refuse_here(CONFIG, rehearsal.root)
    pyxis = CONFIG.model_copy(update={"container": "img", "container_runtime": "pyxis"})
    with pytest.raises(ConfigError, match="needs srun"):
        refuse_here(pyxis, rehearsal.root)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    refuse_here(pyxis, rehearsal.root)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    with pytest.raises(ConfigError, match=r"slurm.nodes = 2: the allocation has 1"):
        refuse_here(CONFIG, rehearsal.root)
