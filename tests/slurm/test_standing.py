"""States of jobs while parts of Slurm are down, jobs that are submitted again, and the status of both."""

import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ClusterError, ConfigError, MissingInput
from governance.files import append_line, write_text
from slurm import commands
from slurm.actions import follow, log_of, missing
from slurm.config import SlurmConfig
from slurm.graph import PlannedRun, plan
from slurm.job_states import ANSWERS_FILE, attempts_of, gather
from slurm.status import Progress, describe, next_command, settled
from slurm.submit import JobRequest, keep_scripts, ranges, submit, submitted

CONFIG = SlurmConfig(throttle=2)
JOBS = ["sources", "ingest", "ingest-join", "clean", "clean-join", "data", "audit", "train", "evaluate", "report"]


class Cluster:
    """Slurm as its tools show it: ids are handed out, and states are set by a test."""

    def __init__(self, monkeypatch, root):
        self.root, self.next, self.calls = root, 100, []
        self.queued, self.accounts = {}, {}
        self.controller = self.database = True
        monkeypatch.setattr(commands, "submit", self.submit)
        monkeypatch.setattr(commands, "release", lambda jobs: self.calls.append(("release", *jobs)))
        monkeypatch.setattr(commands, "cancel", lambda jobs: self.calls.append(("cancel", *jobs)))
        monkeypatch.setattr(commands, "queue", self.queue)
        monkeypatch.setattr(commands, "accounted", self.accounted)
        self.refused = ""

    def submit(self, script, options):
        if script.stem == self.refused:
            raise ClusterError("sbatch: error: Batch job submission failed: Invalid qos specification")
        self.next += 1
        self.calls.append(("submit", script.stem, *options))
        return str(self.next)

    def queue(self, jobs):
        self.calls.append(("queue", *jobs))
        if not self.controller:
            raise ClusterError("squeue: slurm_load_jobs error: Unable to contact slurm controller")
        found = []
        for unit, (state, reason) in self.queued.items():
            if unit.split("_")[0] in jobs:
                found.append(commands.Queued(unit, state, reason, 60, "node1", ""))
        return found

    def accounted(self, jobs, *, since=""):
        self.calls.append(("accounted", *jobs))
        if not self.database:
            raise ClusterError("sacct: error: Problem talking to the database: Connection refused")
        return [item for items in self.accounts.values() for item in items if item.job.split("_")[0] in jobs]

    def put(self, jobs):
        """Submit jobs, all of which wait."""
        for line in submit([JobRequest(job) for job in jobs], self.root, CONFIG):
            for unit in self.units(line.name):
                self.queued[unit] = ("PENDING", "Dependency" if line.after else "Resources")

    def ended(self, unit, state="COMPLETED", status=0, joules=None, comment=""):
        self.queued.pop(unit, None)
        self.accounts[unit] = [commands.Accounted(unit, state, status, 0, 60, "node1", 120, joules, comment)]

    def said(self, unit, outcome, status, cause="", attempt=0):
        about = {"job": unit, "attempt": attempt, "nodes": "node1", "started": f"2026-11-25T10:00:0{attempt}Z"}
        path = self.root / "slurm" / "attempts" / f"{unit}.jsonl"
        append_line(path, json.dumps({"event": "started", **about, "time": "2026-11-25T10:00:00Z"}))
        if outcome:
            last = {"event": "ended", "time": "2026-11-25T10:01:00Z", "status": status, "outcome": outcome}
            append_line(path, json.dumps({**about, **last, "progress": "", "cause": cause}))

    def units(self, name):
        """The ids of the newest jobs of this name."""
        line = [line for line in submitted(self.root) if line.name == name][-1]
        return [f"{line.job}_{number}" for number in line.numbers] if line.tasks else [line.job]


def jobs_of(root, shards=6, config=CONFIG):
    return plan(PlannedRun("run", ("ingest", "clean"), shards, ("run.toml",)), config, 1001)


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    return Cluster(monkeypatch, tmp_path)


@pytest.fixture
def queued(cluster):
    """A submitted run, all of it waiting."""
    cluster.put(jobs_of(cluster.root))
    return cluster


def finish(cluster, *names):
    for name in names:
        for unit in cluster.units(name):
            cluster.ended(unit)


def progress(cluster):
    return Progress("run.toml", cluster.root)


def test_a_submission_is_held_until_it_is_complete(queued):
    lines = {line.name: line for line in submitted(queued.root)}
    assert list(lines) == JOBS
    assert lines["ingest"].numbers == tuple(range(6))
    words = {call[1]: call[2:] for call in queued.calls if call[0] == "submit"}
    assert words["sources"] == ("--hold",)
    assert words["ingest"] == (f"--dependency=afterok:{lines['sources'].job}",)
    assert words["clean"] == (f"--dependency=afterok:{lines['ingest-join'].job}",)
    assert words["report"] == (f"--dependency=afterok:{lines['data'].job},afterany:{lines['evaluate'].job}",)
    assert queued.calls[-1] == ("release", lines["sources"].job)


def test_half_a_submission_is_cancelled(cluster):
    cluster.refused = "audit"
    with pytest.raises(ClusterError, match="Invalid qos specification\n6 of 10 jobs were queued; they are cancelled"):
        submit([JobRequest(job) for job in jobs_of(cluster.root)], cluster.root, CONFIG)
    assert cluster.calls[-1] == ("cancel", *[line.job for line in submitted(cluster.root)])
    assert not [call for call in cluster.calls if call[0] == "release"]


def test_nothing_submitted_is_nothing_to_report(cluster):
    assert gather(cluster.root) is None


def test_only_failed_tasks_are_submitted_again_and_what_hangs_on_them(queued):
    finish(queued, "sources")
    units = queued.units("ingest")
    for unit in units:
        queued.ended(unit, *(("FAILED", 1) if unit in (units[1], units[4]) else ()))
    for name in ("ingest-join", "clean", "clean-join", "data", "audit", "train", "evaluate", "report"):
        for unit in queued.units(name):
            queued.ended(unit, "CANCELLED")
    orders, stale = missing(gather(queued.root), jobs_of(queued.root))
    assert [(order.job.name, order.numbers, order.after) for order in orders] == [
        ("ingest", (1, 4), ()), ("ingest-join", (), ()), ("clean", (), ()), ("clean-join", (), ()), ("data", (), ()),
        ("audit", (), ()), ("train", (), ()), ("evaluate", (), ()), ("report", (), ()),
    ]  # fmt: skip
    assert stale == []
    submit(orders, queued.root, CONFIG)
    words = {call[1]: call[2:] for call in queued.calls if call[0] == "submit"}
    assert words["ingest"] == ("--hold", "--array=1,4%2")
    view = gather(queued.root)
    assert [part.unit for part in view.row("ingest").parts][1:3] == [queued.units("ingest")[0], units[2]]
    assert view.submissions == 2


def test_tasks_that_still_run_are_waited_for_and_not_repeated(queued):
    finish(queued, "sources")
    units = queued.units("ingest")
    queued.ended(units[0])
    queued.ended(units[1], "FAILED", 1)
    queued.queued[units[2]] = ("RUNNING", "None")
    join = queued.units("ingest-join")[0]
    orders, stale = missing(gather(queued.root), jobs_of(queued.root))
    named = {order.job.name: order for order in orders}
    assert named["ingest"].numbers == (1,)
    assert named["ingest-join"].after == tuple(("afterok", unit) for unit in units[2:])
    assert join in stale
    assert not set(stale) & set(units)


def test_what_is_done_stays_done(queued):
    finish(queued, "sources", "ingest", "ingest-join", "clean", "clean-join", "data", "audit")
    queued.ended(queued.units("train")[0], "FAILED", 70)
    queued.ended(queued.units("evaluate")[0], "CANCELLED")
    queued.ended(queued.units("report")[0])
    orders, _ = missing(gather(queued.root), jobs_of(queued.root))
    assert [order.job.name for order in orders] == ["train", "evaluate", "report"]


def test_a_share_that_failed_is_forgotten_once_the_data_is_made(queued):
    finish(queued, "data", "audit", "train", "evaluate", "report")
    for unit in queued.units("ingest"):
        queued.ended(unit, "FAILED", 1)
    finish(queued, "sources", "ingest-join", "clean", "clean-join")
    assert missing(gather(queued.root), jobs_of(queued.root)) == ([], [])


def test_a_job_that_the_controller_forgot_is_lost_and_comes_again(queued):
    finish(queued, "sources", "ingest", "ingest-join", "clean", "clean-join", "data", "audit")
    [train] = queued.units("train")
    queued.ended(train, "RUNNING")  # accounting heard of its start, and of no end
    view = gather(queued.root)
    assert view.row("train").parts[0].kind == "lost"
    orders, stale = missing(view, jobs_of(queued.root))
    assert [order.job.name for order in orders] == ["train", "evaluate", "report"]
    assert stale == queued.units("evaluate") + queued.units("report")


def test_a_chain_has_failed_when_its_last_link_has_and_is_begun_anew(cluster):
    config = SlurmConfig(chain=3)
    jobs = jobs_of(cluster.root, 1, config)
    submit([JobRequest(job) for job in jobs], cluster.root, config)
    finish(cluster, "data", "audit")
    cluster.ended(cluster.units("train")[0], "FAILED", 75)
    for name in ("train-2", "train-3", "evaluate", "report"):
        cluster.queued[cluster.units(name)[0]] = ("PENDING", "Dependency")
    assert missing(gather(cluster.root), jobs) == ([], [])
    for name in ("train-2", "train-3"):
        cluster.ended(cluster.units(name)[0], "FAILED", 75)
    again = [order.job.name for order in missing(gather(cluster.root), jobs)[0]]
    assert again == ["train", "train-2", "train-3", "evaluate", "report"]
    (cluster.root / "slurm" / ANSWERS_FILE).unlink()  # ended jobs are never queried again
    finish(cluster, "train-3", "evaluate", "report")
    assert next_command(gather(cluster.root), progress(cluster)) == "all is done"


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (
            "BadConstraints QOSMaxWallDurationPerJobLimit AssocMaxNodePerJobLimit QOSMaxGRESPerJob QOSMaxMemoryPerNode "
            "QOSMinCpuNotSatisfied MaxMemPerLimit",
            "sources will never start (",
        ),
        (
            "AssocGrpBillingMinutes QOSGrpCPUMinutesLimit AssocGrpWallLimit",
            "sources waits until the account or qos has",
        ),
        (
            "Priority Resources QOSMaxJobsPerUserLimit QOSMaxGRESPerUser AssocGrpGRES AssocGrpCPURunMinutesLimit "
            "QOSGrpWallRunMinutes AssocMaxJobsLimit",
            "assay slurm status run.toml --watch",
        ),
    ],
)
def test_a_job_that_waits_for_ever_is_reported(queued, reasons, words):
    for reason in reasons.split():
        queued.queued[queued.units("sources")[0]] = ("PENDING", reason)
        assert next_command(gather(queued.root), progress(queued)).startswith(words), reason


def test_status_survives_each_part_that_is_down(queued, monkeypatch):
    finish(queued, "sources", "ingest", "ingest-join", "clean", "clean-join", "data")
    [audit] = queued.units("audit")
    queued.queued[audit] = ("RUNNING", "None")
    queued.database = False
    view = gather(queued.root)
    assert view.row("audit").parts[0].state == "RUNNING"
    assert "Connection refused" in "\n".join(describe(view, progress(queued), None))
    queued.controller = False
    view = gather(queued.root)
    assert not settled(view)
    assert "Unable to contact slurm controller" in "\n".join(describe(view, progress(queued), None))
    assert "wait until the controller answers" in next_command(view, progress(queued))
    with pytest.raises(ClusterError, match="Unable to contact"):
        missing(view, jobs_of(queued.root))
    monkeypatch.setattr(commands, "queue", lambda jobs: commands._run("squeue-of-no-machine"))
    assert next_command(gather(queued.root), progress(queued)).startswith("on a login node, or with Slurm's module")


def test_jobs_that_left_the_queue_are_reported_by_their_own_record(queued):
    [audit], [train] = queued.units("audit"), queued.units("train")
    queued.database = False
    queued.queued.clear()
    queued.said(audit, "explained", 77, "the gate is closed: pii")
    for name in ("sources", "ingest", "ingest-join", "clean", "clean-join", "data"):
        for unit in queued.units(name):
            queued.said(unit, "done", 0)
    view = gather(queued.root)
    assert view.row("data").done
    assert (view.row("audit").parts[0].kind, view.row("audit").parts[0].status) == ("failed", 77)
    assert view.row("train").parts[0].kind == "lost"
    output = "\n".join(describe(view, progress(queued), None))
    assert "exit 77: the gate is closed: pii" in output
    assert "assay governance review run.toml" in output.splitlines()[-1]
    assert train not in output.splitlines()[-1]


def test_a_closed_gate_says_why_nothing_behind_it_ran(queued):
    finish(queued, "sources", "ingest", "ingest-join", "clean", "clean-join", "data", "report")
    [audit] = queued.units("audit")
    queued.ended(audit, "FAILED", 77, comment="grant 12; assay: the gate is closed: pii.total; assay journal 3:ab")
    queued.ended(queued.units("train")[0], "CANCELLED")
    queued.ended(queued.units("evaluate")[0], "CANCELLED")
    view = gather(queued.root)
    assert settled(view)
    output = "\n".join(describe(view, progress(queued), None))
    assert "because audit did not succeed" in output
    assert "the gate is closed: pii.total" in output
    assert "grant 12" not in output  # the site's part of the comment is not a cause


def test_attempts_are_paired_and_a_kill_without_a_word_is_reported(queued):
    [train] = queued.units("train")
    queued.said(train, "", None)
    queued.said(train, "left", 75, "signalled to stop; finished work is saved", attempt=1)
    queued.said(train, "", None, attempt=2)
    first, second, third = attempts_of(queued.root, train)
    assert (first.outcome, second.outcome, third.outcome) == ("killed", "left", "")
    queued.queued[train] = ("RUNNING", "None")
    output = "\n".join(describe(gather(queued.root), progress(queued), None))
    assert "train: begun again: killed without a record of its end" in output
    assert "train: begun again: signalled to stop; finished work is saved" in output


def test_progress_of_the_training_is_read_from_its_record(queued, tmp_path):
    finish(queued, "sources", "ingest", "ingest-join", "clean", "clean-join", "data", "audit")
    queued.queued[queued.units("train")[0]] = ("RUNNING", "None")
    folder = tmp_path / "training"
    for step in range(1, 41):
        line = {"event": "step", "step": step, "attempt": 2, "loss": 3.5, "tokens_per_second": 1234.6, "seconds": 2.0}
        append_line(folder / "metrics.jsonl", json.dumps({**line, "joules": 7200.0}))
    append_line(folder / "metrics.jsonl", json.dumps({"event": "checkpoint", "step": 30, "attempt": 2}))
    output = describe(gather(queued.root), Progress("run.toml", queued.root, training=folder, goal=100), None)
    [line] = [line for line in output if line.startswith("training:")]
    assert "step 40 of 100 (attempt 2), loss 3.5000, 1,235 tokens/s, 0.002 kWh" in line
    assert "saved at step 30; last step 0 s ago; expected end " in line
    assert output[-1] == "next: assay slurm logs run.toml --job train --follow"
    about = {"event": "started", "job": "108", "attempt": 3, "nodes": "node1", "started": "2099-11-25T10:00:00Z"}
    append_line(queued.root / "slurm" / "attempts" / f"{queued.units('train')[0]}.jsonl", json.dumps(about))
    output = describe(gather(queued.root), Progress("run.toml", queued.root, training=folder, goal=100), None)
    [line] = [line for line in output if line.startswith("training:")]
    assert "no step yet since its newest start" in line
    assert "expected end" not in line


def test_a_training_that_stopped_with_a_verdict_says_so_until_it_is_begun_again(queued, tmp_path):
    folder = tmp_path / "training"

    def output(*lines):
        for line in lines:
            append_line(folder / "metrics.jsonl", json.dumps({"attempt": 1, **line}))
        found = describe(gather(queued.root), Progress("run.toml", queued.root, training=folder, goal=100), None)
        return [line for line in found if "verdict" in line]

    step = {"event": "step", "loss": 3.5, "seconds": 2.0, "tokens_per_second": 1.0}
    verdict = {"event": "diverged", "step": 40, "reason": "too many", "skipped": 9, "window": 128}
    assert output({"event": "start", "step": 0}, {**step, "step": 40}) == []
    assert output({**verdict, "by_reason": {"loss": 1, "spike": 8}, "steps": [40], "documents": []}) == [
        "! training stopped with a verdict at step 40 (attempt 1): 9 of the last 128 steps were left out "
        "(1 loss, 8 spike); its log names them and what to do"
    ]
    assert output({"event": "start", "step": 30, "attempt": 2}, {**step, "step": 31, "attempt": 2}) == []


def test_logs_are_found_by_name_and_number(queued):
    unit = queued.units("clean")[3]
    path = queued.root / "slurm" / "logs" / f"run.clean-{unit}.log"
    write_text(path, "hello")
    view = gather(queued.root)
    for wanted in ("clean[3]", "clean_3", "clean"):
        assert log_of(view, wanted, queued.root)[1] == path
    with pytest.raises(MissingInput, match="has written no log yet"):
        log_of(view, "train", queued.root)
    with pytest.raises(ConfigError, match="there is no job 'x'; there are: sources, ingest"):
        log_of(view, "x", queued.root)


def test_a_followed_log_is_whole_and_ends_with_its_job(tmp_path, capsys):
    """The job's last line comes between the last reading and the answer that it is over."""
    path = tmp_path / "a.log"
    path.write_text("one\n")
    waits = []

    def live():
        path.write_text("one\ntwo\n")
        return False

    follow(path, live, waits.append)
    assert capsys.readouterr().out == "one\ntwo\n"
    assert len(waits) == 1, "after the first lines; the job is over, and nothing is waited for"
    follow(path, lambda: False, target=sys.stderr)
    assert capsys.readouterr() == ("", "one\ntwo\n")


@pytest.mark.parametrize(
    "text",
    ["", "torn", "[]", '{"jobs": ["101"]}', '{"accounted": [{"job": "1", "field": 2}], "asked": 1e99, "jobs": [], '
     '"over": [], "queued": []}', '{"accounted": [], "asked": 0, "jobs": [], "over": [3], "queued": []}'],
)  # fmt: skip
def test_answers_of_another_release_are_requested_for_again(queued, text):
    write_text(queued.root / "slurm" / ANSWERS_FILE, text)
    assert gather(queued.root, 60).queue_answers
    assert json.loads((queued.root / "slurm" / ANSWERS_FILE).read_bytes())["jobs"]


def test_an_ended_job_of_another_name_does_not_answer_for_ours(queued):
    """Ids begin anew at MaxJobId: cached answers about an earlier job with the same id are not used."""
    first = submitted(queued.root)[0].job
    before = {"job": first, "state": "FAILED", "status": 9, "signal": 0, "elapsed": 1, "nodes": "", "core_seconds": 1,
              "joules": None, "comment": "", "name": "other.report"}  # fmt: skip
    cache = {"accounted": [], "asked": 0.0, "jobs": [], "over": [before], "queued": [], "silent": []}
    write_text(queued.root / "slurm" / ANSWERS_FILE, json.dumps(cache))
    assert gather(queued.root).row("sources").parts[0].state == "PENDING"


def test_no_other_account_may_write_what_jobs_execute(tmp_path, monkeypatch):
    old = os.umask(0)
    try:
        keep_scripts(jobs_of(tmp_path), tmp_path / "run.toml", tmp_path, CONFIG)
    finally:
        os.umask(old)
    executed = [tmp_path / "slurm", *tmp_path.glob("slurm/*.sbatch"), *tmp_path.glob("slurm/machinery/**/*")]
    assert len(executed) > 10
    assert not any(path.stat().st_mode & 0o022 for path in executed)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    if tmp_path.stat().st_uid:
        with pytest.raises(ConfigError, match="belongs to the account"):
            keep_scripts(jobs_of(tmp_path), tmp_path / "run.toml", tmp_path, CONFIG)
    else:
        os.chown(tmp_path / "slurm", 4242, -1)
        with pytest.raises(ConfigError, match="belongs to the account 4242"):
            keep_scripts(jobs_of(tmp_path), tmp_path / "run.toml", tmp_path, CONFIG)


@given(st.sets(st.integers(0, 5000), min_size=1, max_size=200))
def test_ranges_name_each_number_once(numbers):
    found = []
    for part in ranges(numbers).split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(numbers)


@given(st.lists(st.sampled_from(["COMPLETED", "FAILED", "RUNNING", "PENDING", "CANCELLED"]), min_size=6, max_size=6))
def test_whatever_became_of_an_array_no_task_is_lost_or_made_twice(tmp_path_factory, states):
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        cluster = Cluster(patch, root)
        submit([JobRequest(job) for job in jobs_of(root)], root, CONFIG)
        for line in submitted(root)[1:]:
            for unit in cluster.units(line.name):
                cluster.queued[unit] = ("PENDING", "Dependency")
        finish(cluster, "sources")
        for unit, state in zip(cluster.units("ingest"), states, strict=True):
            if state in ("RUNNING", "PENDING"):
                cluster.queued[unit] = (state, "None")
            else:
                cluster.ended(unit, state)
        orders, stale = missing(gather(root), jobs_of(root))
        failed = {number for number, state in enumerate(states) if state in ("FAILED", "CANCELLED")}
        named = {order.job.name: order for order in orders}
        if not failed:
            assert (orders, stale) == ([], [])
            return
        again = set(named["ingest"].numbers) or set(range(6))
        assert again == failed
        live = {f"102_{number}" for number, state in enumerate(states) if state in ("RUNNING", "PENDING")}
        assert {unit for _, unit in named["ingest-join"].after} == live
        assert not live & set(stale)
