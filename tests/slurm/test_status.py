"""Lines of the status that were once wrong, and the number of its queries to Slurm."""

import json
from dataclasses import replace

import pytest

from slurm import commands
from slurm.accounting import ACCOUNTING_FILE, account
from slurm.job_states import WATCH_SECONDS, gather
from slurm.status import describe, folded, next_command
from slurm.submit import JobRequest, submit
from tests.slurm.test_standing import CONFIG, JOBS, Cluster, finish, jobs_of, progress


@pytest.fixture
def queued(monkeypatch, tmp_path):
    """A submitted run, all of it waiting."""
    cluster = Cluster(monkeypatch, tmp_path)
    cluster.put(jobs_of(cluster.root))
    return cluster


def output(cluster):
    return describe(gather(cluster.root), progress(cluster), None)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("JobHeldUser", "scontrol release 101; or end the run: assay slurm cancel run.toml"),
        ("job requeued in held state", "scontrol release 101;"),
        ("launch failed requeued held", "took a launch for failed): scontrol release 101;"),
        ("JobHeldAdmin", "sources is held by an administrator"),
    ],
)
def test_a_held_job_is_to_be_released(queued, reason, words):
    queued.queued["101"] = ("PENDING", reason)
    assert words in next_command(gather(queued.root), progress(queued))


def test_arrays_that_are_planned_no_more_need_no_retry(queued):
    for name in JOBS:
        for unit in queued.units(name):
            queued.ended(unit, "CANCELLED")
    queued.put(jobs_of(queued.root, shards=1))
    queued.queued[queued.units("data")[0]] = ("RUNNING", "None")
    assert next_command(gather(queued.root), progress(queued)) == "assay slurm logs run.toml --job data --follow"
    assert [line.split()[2] for line in output(queued) if line.startswith("ingest")] == ["superseded"]


def test_a_stage_is_one_row(queued):
    finish(queued, "sources")
    units = queued.units("ingest")
    for unit in units[:4]:
        queued.ended(unit)
    queued.queued[units[4]] = ("RUNNING", "None")
    view = gather(queued.root)
    assert list(folded(view.rows)) == ["sources", "ingest", "clean", "data", "audit", "train", "evaluate", "report"]
    [row] = [line for line in output(queued) if line.startswith("ingest")]
    assert row.split()[:3] == ["ingest", "102,103", "RUNNING"]
    assert "4/6" in row
    assert "Dependency" not in row


def test_only_shards_of_an_unfinished_stage_are_compared_with_a_guess(queued):
    records = queued.root / "ingest" / "records"
    records.mkdir(parents=True)
    for number in range(5):
        (records / f"{number:064x}.json").touch()
    now = replace(progress(queued), steps=("ingest", "clean"), shards=6)
    [line] = [line for line in describe(gather(queued.root), now, None) if "shards made" in line]
    assert line.endswith(": ingest 5 of about 6")
    for name in ("ingest", "ingest-join"):
        for unit in queued.units(name):
            queued.ended(unit)
    [line] = [line for line in describe(gather(queued.root), now, None) if "shards made" in line]
    assert line.endswith(": ingest all 5")


def test_a_job_that_was_done_before_slurm_ended_it_says_so(queued):
    [data] = queued.units("data")
    queued.said(data, "done", 0, "done")
    queued.ended(data, "CANCELLED")
    assert "data (CANCELLED): it was finished; then Slurm ended it (CANCELLED)" in output(queued)


def test_a_job_that_ended_well_is_done_though_slurm_calls_it_preempted(queued):
    [train] = queued.units("train")
    queued.ended(train, "PREEMPTED")
    assert gather(queued.root).row("train").over
    queued.said(train, "done", 0, "done")
    assert gather(queued.root).row("train").done
    queued.queued[train] = ("PENDING", "launch failed requeued held")
    assert gather(queued.root).row("train").done


def test_an_explained_error_is_to_be_fixed_before_a_retry(queued):
    queued.ended(queued.units("train")[0], "FAILED", 78)
    assert output(queued)[-1].startswith("next: train did not succeed; fix that, then: assay slurm retry")


def test_no_cause_is_empty(queued):
    [train], [audit] = queued.units("train"), queued.units("audit")
    queued.said(train, "", None)
    queued.ended(train, "FAILED", 1)
    queued.ended(audit, "FAILED", 1)
    lines = output(queued)
    assert "train (FAILED): exit 1: killed without a record of its end, most often with its node" in lines
    assert any(line.startswith("audit") and line.endswith("exit 1: Slurm says FAILED") for line in lines)


def test_nodes_that_a_job_does_not_get_are_shown(queued, monkeypatch):
    item = commands.Queued(queued.units("train")[0], "PENDING", "Resources", 0, "", "", "node[5-6]", "run.train")
    monkeypatch.setattr(commands, "queue", lambda jobs: [item])
    [row] = [line for line in output(queued) if line.startswith("train")]
    assert "node[5-6]" in row


def test_a_job_of_another_that_had_the_same_id_is_not_counted(queued):
    [train] = queued.units("train")
    theirs = commands.Accounted(train, "COMPLETED", 0, 0, 60, "node9", 1440, 9000, "", name="their.job")
    ours = commands.Accounted(train, "COMPLETED", 0, 0, 60, "node1", 28, 100, "", name="run.train")
    queued.queued.pop(train)
    queued.accounts[train] = [theirs, ours]
    row = gather(queued.root).row("train")
    assert (row.core_seconds, row.joules) == (28, 100)


def test_watchers_share_the_queue_of_a_site_without_accounting(queued):
    queued.database = False
    first = gather(queued.root, WATCH_SECONDS)
    assert first.silent
    queued.calls.clear()
    assert gather(queued.root, WATCH_SECONDS) == first
    assert queued.calls == []


def test_watchers_share_an_answer_for_a_minute_and_what_ended_is_never_requested_again(queued):
    def queries():
        found = [call for call in queued.calls if call[0] in ("queue", "accounted")]
        queued.calls.clear()
        return found

    assert WATCH_SECONDS >= 60  # what sites ask for
    finish(queued, "sources", "ingest")
    queries()
    first = gather(queued.root, WATCH_SECONDS)
    assert len(queries()) == 2
    assert gather(queued.root, WATCH_SECONDS) == first
    assert queries() == []
    again = gather(queued.root)  # a single call gets the present state
    queue, accounts = queries()
    assert not {"101", "102"} & {*queue[1:], *accounts[1:]}
    assert again == first
    queued.put(jobs_of(queued.root)[-1:])
    queries()
    gather(queued.root, WATCH_SECONDS)
    assert len(queries()) == 2  # another submission makes the answer old


def test_both_meters_are_side_by_side(queued):
    queued.ended(queued.units("train")[0], joules=1500)
    queued.accounts[queued.units("train")[0]] *= 2  # two starts
    energy = account(gather(queued.root), 1000.0, queued.root)
    assert (energy.slurm, energy.ours) == (3000, 1000.0)
    file = queued.root / "slurm" / ACCOUNTING_FILE
    account(gather(queued.root), 1000.0, queued.root)  # the same answer is kept once
    first = file.read_text()
    [kept] = map(json.loads, first.splitlines())
    assert kept["jobs"]["train"] == {"core_seconds": 240, "joules": 3000}
    output = "\n".join(describe(gather(queued.root), progress(queued), replace(energy, ended=True)))
    submit([JobRequest(jobs_of(queued.root)[-3])], queued.root, CONFIG)  # earlier failures count too
    queued.ended(queued.units("train")[0], joules=500)
    assert account(gather(queued.root), None, queued.root).slurm == 3500
    assert file.read_text().startswith(first)  # a report that was written from it can be verified
    assert json.loads(file.read_text().splitlines()[-1])["slurm"] == 3500
    assert "energy by Slurm 3.0 kJ, energy by our meters 1.0 kJ, they disagree: Slurm's is +200% of ours" in output
    assert not energy.ended  # jobs are still waiting: the meters are not compared
    assert "disagree" not in "\n".join(describe(gather(queued.root), progress(queued), energy))
