"""The scripts under faults of Slurm, a node, a port or a clock: jobs return, elsewhere or later, and end for good."""

import pytest

from slurm.attempt.causes import PROGRAM_DIFFERS
from tests.slurm.test_train_script import CONFIG, node, train

__all__ = ["node"]


SAYS = 'case "$1 $2" in "show job") echo "{}" ;; release*|update*) echo "$*" >> {} ;; esac'
HELD = "JobState=COMPLETING Reason=launch_failed_requeued_held Restarts=1"


@pytest.mark.parametrize("status", [0, 1, 75, 78, 143])
def test_a_job_that_slurm_holds_as_if_its_launch_had_failed_is_released(node, status):
    node.program("scontrol", SAYS.format(HELD, node.calls))
    assert train(node, training=f"exit {status}").returncode in (status, 124)
    assert node.requests.count("release 7") == 1
    assert "released" in [line["event"] for line in node.attempts()]


def test_what_waits_for_a_job_that_was_preempted_before_does_not_wait_for_its_empty_start(node, monkeypatch):
    """Slurm requeues it as it ends; where that launch fails, the next job of the run to end releases it."""
    (node.root / "slurm" / "jobs.jsonl").write_text(
        '{"after": [["afterok", "6"]], "job": "7", "kind": "train"}\n'
        '{"after": [["afterok", "5"], ["afterok", "7"]], "job": "8", "kind": "evaluate"}\n'
    )
    monkeypatch.setenv("RESTARTS", "1")
    node.program("assay", "exit 0")
    node.run("train", attempt=1, config=CONFIG)
    assert [line for line in node.requests if "Dependency=" in line] == ["update jobid=8 Dependency=afterok:5"]
    monkeypatch.delenv("RESTARTS")
    node.calls.unlink()
    node.program("squeue", 'printf "%s launch failed requeued held\\n" 8 88; echo "6 Priority"')
    train(node)
    assert not [line for line in node.requests if "Dependency=" in line]
    assert [line for line in node.requests if line.startswith("release")] == ["release 8"]


def test_the_last_job_of_a_run_waits_for_the_empty_start_of_a_done_one_and_releases_it(node, monkeypatch):
    (node.root / "slurm" / "jobs.jsonl").write_text(
        "".join(
            f'{{"after": [], "job": "{job}", "kind": "{kind}"}}\n'
            for job, kind in enumerate(("train", "report", "x"), 6)
        )
    )
    monkeypatch.setenv("ASSAY_PAUSE_SECONDS", "1")
    for job in (6, 8):  # the empty start of one does not wait for the other
        ended = node.root / "slurm" / "attempts" / f"{job}.jsonl"
        ended.parent.mkdir(parents=True, exist_ok=True)
        ended.write_text('{"event": "ended", "outcome": "done"}\n')
    record = node.root / "slurm" / "attempts" / "6.jsonl"
    asked = node.root / "asked"
    replies = ["6 None", "6 launch failed requeued held", "6 None", "8 Priority"]
    say = f'echo x >>{asked}; case $(wc -l <{asked}) in ' + " ".join(
        f'{number}) echo "{reply}" ;;' for number, reply in enumerate(replies, 1)
    ) + " esac"  # fmt: skip
    node.program("squeue", say)
    for outcome, times in (("done", 4), ("failed", 1)):  # a job that has something left to do is not waited for
        record.write_text(f'{{"event": "ended", "outcome": "{outcome}"}}\n')
        asked.unlink(missing_ok=True)
        train(node)
        assert len(asked.read_text().split()) == times
        assert node.requests.count("release 6") == 1


def test_a_job_is_released_ten_times_and_no_more_and_never_one_that_is_held_by_hand(node):
    node.program("scontrol", SAYS.format(HELD, node.calls))
    for _ in range(11):
        train(node)
    assert node.requests.count("release 7") == 10
    node.calls.unlink()
    node.program("scontrol", SAYS.format("JobState=PENDING Reason=job_requeued_in_held_state Restarts=1", node.calls))
    train(node)
    assert not [line for line in node.requests if line.startswith("release")]


@pytest.mark.parametrize("training", ["exit 0", "exit 1"])
def test_a_start_that_the_controller_forgot_begins_later_and_is_not_ended_twice(node, training):
    node.program("scontrol", SAYS.format("JobState=PENDING Reason=None Restarts=0", node.calls))
    train(node, training=training)
    assert "update jobid=7 StartTime=now+30" in node.requests
    assert not [line for line in node.requests if line.startswith("requeue")]


def test_a_step_that_did_not_reach_the_controller_is_started_again_in_place(node):
    output = "srun: error: Unable to confirm allocation for job 7: Unable to contact slurm controller (connect failure)"
    fails = f'[ -e {node.root}/reached ] || {{ touch {node.root}/reached; echo "{output}" >&2; exit 1; }}'
    assert train(node, preflight=f"{fails}; exit 0").returncode == 0
    assert [line.split()[-5] for line in node.requests if line.startswith("srun")] == ["slurm", "slurm", "assay"]
    assert node.attempts()[-1]["outcome"] == "done"


def test_each_attempt_meets_at_a_port_of_its_own(node):
    output = 'echo "$MASTER_PORT"'
    ports = []
    for attempt in range(2):
        node.program("assay", f'case "$1" in train) {output} ;; esac')
        node.run("train", attempt=attempt, config=CONFIG)
        ports += [line for line in node.log.splitlines() if line.isdecimal()]
    assert ports == ["20007", "20104"]


@pytest.mark.parametrize(("status", "cause"), [(69, "x"), (137, "x: Address already in use")])
def test_a_preflight_that_the_first_node_ends_is_its_failure(node, status, cause):
    error = 'echo "2026-11-25 10:00:00 ERROR ClusterError: x: Address already in use" >&2'
    assert train(node, preflight=f"{error}; exit {status}").returncode == 69
    assert node.attempts()[-1]["cause"].startswith(f"preflight: {cause}")
    assert "update jobid=7 StartTime=now+60" in node.requests


def test_a_preflight_that_says_nothing_has_a_cause(node):
    train(node, preflight="exit 69")
    assert node.attempts()[-1]["cause"] == "preflight: scheduler or node unavailable"


def test_a_preemption_during_the_preflight_is_no_failure(node, monkeypatch):
    monkeypatch.setenv("PREEMPTED", "2026-11-25T10:00:00")
    assert train(node, preflight='echo "srun: error: node5: task 1: Terminated" >&2; exit 143').returncode == 75
    assert node.attempts()[-1]["outcome"] == "left"


def test_a_hang_is_named_though_the_rank_that_hung_was_killed(node):
    output = 'echo "10:00:00 ERROR Hang: rank 1 is at all_reduce since 70 s" >&2'
    assert train(node, training=f'{output}; echo "srun: error: n2: task 1: Killed" >&2; exit 137').returncode == 70
    assert node.attempts()[-1]["cause"] == "rank 1 is at all_reduce since 70 s"


def test_words_alone_leave_no_node_out(node):
    """A message that is known does."""
    node.more |= {"SLURM_JOB_NUM_NODES": "1", "SLURMD_NODENAME": "node4"}
    hosts(node, "node4", "node5")
    lost = "NVRM: Xid (PCI:0000:1b:00): 79, pid=1, GPU has fallen off the bus."
    for said, expected in (("node GPU driver cannot find device", []), (lost, ["node4"])):
        train(node, training=f"echo '{said}' >&2; exit 1")
        assert (said, left_out(node)) == (said, expected)


def hosts(node, *names):
    """`scontrol show hostnames` splits names; the partition has these nodes."""
    show = node.programs / "scontrol"
    show.write_text(show.read_text() + 'case "$2" in hostnames) shift 2; tr , "\\n" <<<"$1" ;; esac\n')
    node.program("sinfo", f'printf "%s (null)\\n" {" ".join(names)}')


def left_out(node):
    found = [line.partition("ExcNodeList=")[2] for line in node.requests if "jobid=7 ExcNodeList" in line]
    node.calls.unlink(missing_ok=True)
    return found


def test_of_nodes_that_cannot_all_be_left_out_the_most_blamed_is(node, monkeypatch):
    """The clock of node5 is wrong; in its pair, either may be."""
    node.more["SLURM_JOB_NUM_NODES"] = "2"
    hosts(node, "node4", "node5", "node6")
    for pair, before, expected in ((("node4", "node5"), "(null)", "node4"), (("node5", "node6"), "node4", "node5")):
        monkeypatch.setenv("EXCLUDED", before)
        output = "".join(f"preflight bad-node={name};" for name in pair)
        train(node, preflight=f"echo '{output}'; exit 69")
        assert left_out(node) == [expected]


@pytest.mark.parametrize(("other", "expected"), [("node7 a", ["node5"]), ("node7 b", [])])
def test_only_usable_nodes_with_the_feature_of_the_job_count_as_others(node, other, expected):
    """Down and drained nodes are in the answer to a query that does not leave them out."""
    node.more["SLURM_JOB_NUM_NODES"] = "2"
    hosts(node)
    show = node.programs / "scontrol"
    show.write_text(show.read_text().replace(" ExcNodeList=", " Features=a ExcNodeList="))
    usable = '[[ "$*" == *"--responding --states="* && "$*" != *dow* && "$*" != *drain* ]]'
    node.program("sinfo", f'printf "%s\n" "node5 a" "node6 a" "{other}"\n{usable} || printf "%s a\n" node8 node9')
    train(node, preflight="echo 'preflight bad-node=node5;'; exit 69")
    assert left_out(node) == expected


def test_an_edited_program_is_no_fault_of_the_node_that_compared_it(node):
    node.more["SLURM_JOB_NUM_NODES"] = "2"
    said = 'echo "srun: error: node4: task 0: Exited with exit code 78" >&2'
    error = f'echo "10:00:00 ERROR ConfigError: {PROGRAM_DIFFERS} from what was submitted (submission 1, now):" >&2'
    killed = 'echo "srun: error: node5: task 1: Killed" >&2'
    assert train(node, preflight=f"{error}; {said}; {killed}; exit 137").returncode == 78
    assert node.attempts()[-1]["cause"].startswith(PROGRAM_DIFFERS)
    assert node.attempts()[-1]["outcome"] == "explained"
    assert left_out(node) == []


def test_a_node_that_does_not_see_the_file_is_left_out(node):
    node.more["SLURM_JOB_NUM_NODES"] = "2"
    hosts(node, "node4", "node5", "node6")
    said = 'echo "srun: error: node5: task 1: Exited with exit code 78" >&2'
    error = 'echo "10:00:00 ERROR ConfigError: no such file" >&2'
    assert train(node, preflight=f"{error}; {said}; exit 78").returncode == 69
    assert "node5 does not see files that the other nodes see: no such file" in node.attempts()[-1]["cause"]
    assert left_out(node) == ["node5"]
    both = said.replace("node5: task 1", "node4,node5: tasks 0-1")
    assert train(node, preflight=f"{error}; {both}; exit 78").returncode == 78
    assert node.attempts()[-1]["outcome"] == "explained"
    node.more["SLURMD_NODENAME"] = "node4"
    node.calls.unlink()
    assert train(node, training=f"rm {node.file}; exit 78").returncode == 78
    assert node.attempts()[-1]["cause"].startswith(f"node4 does not see {node.file}")
    assert left_out(node) == ["node4"]
