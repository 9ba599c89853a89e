"""The training script with stand-ins for Slurm's programs: checks first, signals, reactions to an end."""

import json
import os
import shlex
import signal
import socket

import pytest

from slurm.config import SlurmConfig
from tests.slurm.test_scripts import ClusterNode

CONFIG = SlurmConfig(retries=2, nodes=2, cpus_per_task=3)


@pytest.fixture
def node(tmp_path):
    """Its `srun` records its options and runs the command once; step 40 is saved, by training's record."""
    made = ClusterNode(tmp_path)
    made.program("srun", f'echo "srun $*" >> {made.calls}; while [[ $1 == -* ]]; do shift; done; exec "$@"')
    made.program(
        "scontrol",
        f'echo "$*" >> {made.calls}\n'
        '[ "$*" != "show hostnames node\\"1" ] || printf "node4\\nnode5\\n"\n'
        '[ "$1 $2" != "show job" ] || echo "JobState=RUNNING Restarts=${RESTARTS:-0} PreemptTime=${PREEMPTED:-None}'
        ' ExcNodeList=${EXCLUDED:-(null)}"',
    )
    made.naps(0.1)
    folder = made.root / "train" / "key"
    folder.mkdir(parents=True)
    lines = [{"event": "checkpoint", "step": 40}, {"event": "step", "step": 43}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    return made


def train(node, preflight="exit 0", training="exit 0", node_counts=(), **settings):
    node.program("assay", f'case "$1" in slurm) {preflight} ;; train) {training} ;; esac')
    return node.run("train", config=CONFIG.model_copy(update=settings), node_counts=node_counts)


def test_the_nodes_are_checked_and_then_the_ranks_are_started(node):
    done = train(node, preflight='echo "$2 $MASTER_ADDR:$MASTER_PORT"', training='echo "$1 $MASTER_ADDR:$MASTER_PORT"')
    assert done.returncode == 0
    first, second = [line for line in node.requests if line.startswith("srun")]
    words = f"{node.file} --root {node.root}"
    assert first.endswith(f"--wait=30 --time=15 assay slurm preflight {words}")
    assert second.endswith(f"{node.root}/slurm/logs/run.train-7.0 assay train {words}")
    assert "preflight node4:20007" in node.log
    assert "train node4:20007" in node.log


def test_the_log_has_the_command_as_a_person_would_type_it(node):
    node.file = node.file.with_name("my run.toml")
    node.file.touch()
    assert train(node).returncode == 0
    assert f"assay: {shlex.join(['assay', 'train', str(node.file), '--root', str(node.root)])}\n" in node.log


@pytest.mark.parametrize(("answer", "address"), [(":", "node4"), ("exit 1", socket.gethostname())])
def test_a_message_of_scontrol_is_not_an_address(node, answer, address):
    """Where it fails, the ranks meet at this host, the first of the job."""
    show = node.programs / "scontrol"
    first = f'#!/bin/bash\necho "scontrol: warning: x" >&2\n[ "$2" != hostnames ] || {answer}\n'
    show.write_text(show.read_text().replace("#!/bin/bash\n", first))
    assert train(node, training='echo "$1 $MASTER_ADDR"').returncode == 0
    assert f"train {address}\n" in node.log


def test_each_rank_and_each_attempt_has_a_log_of_its_own(node):
    for status in (1, 0):
        train(node, training=f'echo "says $SLURM_RESTART_COUNT"; exit {status}', srun_options=("--cpu-bind=cores",))
    assert "--cpu-bind=cores bash -c" in [line for line in node.requests if line.startswith("srun")][-1]
    logs = node.root / "slurm" / "logs"
    assert (logs / "run.train-7.0" / "rank-0.log").read_text() == "says 0\n"
    node.run("train", attempt=1, config=CONFIG)
    assert (logs / "run.train-7.1" / "rank-0.log").read_text() == "says 1\n"
    assert "says 1" in node.log
    assert "says 0" not in node.log


def test_an_interface_that_is_given_is_set_for_both_libraries(node):
    train(node, training='echo "$GLOO_SOCKET_IFNAME $NCCL_SOCKET_IFNAME"', interface="ib0")
    assert "ib0 ib0" in node.log


def test_a_bad_node_is_excluded_and_another_requested(node, monkeypatch):
    monkeypatch.setenv("EXCLUDED", "node9")
    message = 'printf "%s\\n" "preflight node5: ecc: BAD: GPU 3" "preflight bad-node=node5;preflight bad-node=node6;"'
    error = 'echo "2026-11-25 10:00:00 ERROR ClusterError: node5: ecc: GPU 3" >&2; exit 69'
    done = train(node, preflight=f"{message}; {error}")
    assert done.returncode == 69
    assert node.attempts()[-1]["cause"] == "preflight: node5: ecc: GPU 3"
    requests = [line for line in node.requests if line.startswith(("requeue", "update jobid=7 Exc"))]
    assert requests == ["requeue 7", "update jobid=7 ExcNodeList=node9,node5,node6"]
    assert "assay train" not in "".join(node.requests)


def test_what_another_node_would_not_fix_leaves_none_out(node):
    train(node, preflight="exit 69")
    assert "requeue 7" in node.requests
    assert not [line for line in node.requests if "ExcNodeList" in line and line.startswith("update")]


def test_failures_are_counted_anew_after_each_checkpoint(node):
    for step, attempts in ((40, 3), (60, 1)):
        (node.root / "train" / "key" / "metrics.jsonl").write_text(f'{{"event": "checkpoint", "step": {step}}}\n')
        for number in range(attempts):
            node.calls.unlink(missing_ok=True)
            train(node, training="exit 1")
            assert ("requeue 7" in node.requests) == (number < 2)
    assert node.attempts()[-1]["progress"] == "step 60"


@pytest.mark.parametrize(
    ("said", "status", "cause"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0", 137, "out of memory: slurmstepd: error: Detec"),
        ("srun: error: node5: task 1: Killed", 137, "node5: task 1: Killed"),
        (
            "slurmstepd: error: StepId=7.1 exceeded memory limit (2958 > 2097), being killed\n"
            "srun: error: node4: task 0: Killed",
            137,
            "out of memory: slurmstepd: error: StepId=7.1 exceeded",
        ),
        ("10:00:00 ERROR StorageError: cannot write x: no space left", 74, "cannot write x: no space left"),
        (
            "srun: error: node4: task 0: Exited with exit code 1\nsrun: error: node5: task 1: Aborted",
            134,
            "node5: task 1",
        ),
        ("nothing of use", 1, "failed with status 1"),
    ],
)
def test_the_cause_in_words(node, said, status, cause):
    train(node, training=f'echo "{said}" >&2; exit {status}')
    assert node.attempts()[-1]["cause"].startswith(cause)
    assert node.attempts()[-1]["outcome"] == "failed"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_script_reaches_the_ranks_which_save(node, number):
    record = node.root / "train" / "key" / "metrics.jsonl"
    saved = f'echo \'{{"event": "checkpoint", "step": 44}}\' >> {record}; exit 75'
    saves = f"trap {shlex.quote(saved)} USR1; for i in 1 2 3 4 5 6 7 8 9; do /bin/sleep 0.2; done; exit 1"
    done = train(node, training=f"(/bin/sleep 0.6; kill -{number} $PPID) & {saves}")
    assert done.returncode == 75
    ended = node.attempts()[-1]
    assert ended["outcome"] == "left"
    assert "signalled to stop" in ended["cause"]
    assert "step 44 is saved" in ended["cause"]
    assert "requeue 7" in node.requests


def test_a_limit_that_is_too_short_for_a_step_is_bounded_and_a_preemption_is_not(node, monkeypatch):
    for attempt in range(3):
        node.calls.unlink(missing_ok=True)
        assert train(node, training="exit 75").returncode == 124
        assert ("requeue 7" in node.requests) == (attempt < 2)
    assert "raise slurm.time_limit" in node.attempts()[-1]["cause"]
    monkeypatch.setenv("PREEMPTED", "2026-11-25T10:00:00")
    assert train(node, training="exit 75").returncode == 75
    assert node.attempts()[-1]["outcome"] == "left"


def test_the_steps_of_another_run_below_the_root_do_not_count(node):
    other = node.root / "train" / "other" / "metrics.jsonl"
    other.parent.mkdir()
    other.write_text('{"event": "checkpoint", "step": 9000}\n')
    os.utime(other, (1, 1))
    train(node, training="exit 1")
    assert node.attempts()[-1]["progress"] == "step 40"


def test_a_node_without_the_command_is_left_out_by_its_name(node):
    said = ["slurmstepd: error: execve(): assay: No such file or directory"]
    said += ["srun: error: node4: task 0: Exited with exit code 69"]
    said += ["srun: error: node5: task 1: Exited with exit code 2"]
    node.program("srun", f"printf '%s\\n' {shlex.join(said)} >&2; exit 69")
    assert train(node).returncode == 127
    assert node.attempts()[-1]["cause"] == "the command is not on node5"
    assert "update jobid=7 ExcNodeList=node5" in node.requests


def test_no_node_is_left_out_where_too_few_would_remain(node):
    show = node.programs / "scontrol"
    show.write_text(show.read_text() + '[ "$*" != "show hostnames node5" ] || echo node5\n')
    for others, left_out in (("", False), ("node6", True)):
        node.calls.unlink(missing_ok=True)
        node.program("sinfo", f"echo 'sinfo: warning: x' >&2; echo node5 {others} | tr ' ' '\\n'")
        train(node, preflight="echo 'preflight bad-node=node5;'; exit 69")
        assert "requeue 7" in node.requests
        assert ("update jobid=7 ExcNodeList=node5" in node.requests) == left_out


def test_a_save_that_did_not_fit_is_a_failure_with_its_fix(node):
    train(node, training='trap "" USR1; kill -USR1 $PPID; /bin/sleep 0.5; exit 137')
    ended = node.attempts()[-1]
    assert ended["outcome"] == "failed"
    assert "Raise slurm.signal_seconds" in ended["cause"]


def test_a_copy_on_a_node_that_was_cut_off_does_not_requeue_the_one_that_took_its_place(node, monkeypatch):
    monkeypatch.setenv("RESTARTS", "1")
    done = train(node, training="exit 73")
    assert done.returncode == 73
    assert not [line for line in node.requests if line.startswith("requeue")]
    assert "has requeued job 7 itself" in node.log


def test_a_signal_to_every_process_of_the_job_as_the_ranks_end_loses_no_record(node):
    """As Slurm does after a node has died: waiting and reading processes of the script get SIGTERM as well."""
    everybody = '"$PPID" $(cat "/proc/$PPID/task/$PPID/children")'
    node.program("sleep", f'/bin/sleep 0.1; ! grep -q "assay train" {node.calls} || kill -TERM {everybody}')
    message = 'echo "srun: error: Node failure on node5" >&2'
    done = train(
        node, training=f"{message}; (/bin/sleep 0.5) & exit 143"
    )  # any process that holds the output keeps the script waiting
    assert done.returncode == 143
    assert node.attempts()[-1]["cause"] == "Node failure on node5"
    assert "requeue 7" in node.requests


@pytest.fixture
def chain(node):
    """Job 7 is the second of four links; `scancel` records its calls."""
    same = {"after": [], "numbers": [], "submission": 1, "submitted": "", "tasks": 0}
    lines = [
        {**same, "job": job, "kind": kind, "name": name}
        for job, kind, name in (
            ("5", "audit", "audit"), ("6", "train", "train"), ("7", "train", "train-2"), ("8", "train", "train-3"),
            ("9", "train", "train-4"), ("10", "evaluate", "evaluate"),
        )
    ]  # fmt: skip
    (node.root / "slurm" / "jobs.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    node.program("scancel", f'echo "scancel $*" >> {node.calls}')
    return node


def test_later_links_do_not_get_a_node_that_a_link_excluded(chain, monkeypatch):
    monkeypatch.setenv("EXCLUDED", "node9")
    done = train(chain, preflight="echo 'preflight bad-node=node5;'; exit 69", chain=4)
    assert done.returncode == 69
    calls = [line for line in chain.requests if line.startswith(("requeue", "scancel")) or "ExcNodeList" in line]
    assert calls == ["update jobid=8 ExcNodeList=node9,node5", "update jobid=9 ExcNodeList=node9,node5"]


@pytest.mark.parametrize("status", [2, 65, 66, 77, 78])
def test_a_failure_that_is_explained_ends_the_chain(chain, status):
    assert train(chain, training=f"exit {status}", chain=4).returncode == status
    assert "scancel 8 9" in chain.requests


@pytest.mark.parametrize("status", [0, 75])
def test_a_link_that_saved_or_finished_lets_the_next_one_go_on(chain, status):
    saves = f'echo \'{{"event": "checkpoint", "step": 44}}\' >> {chain.root}/train/key/metrics.jsonl; exit {status}'
    assert train(chain, training=saves, chain=4).returncode == status
    assert not [line for line in chain.requests if line.startswith(("requeue", "scancel"))]


def test_the_tries_of_a_chain_are_bounded_as_those_of_one_job(chain):
    """Two more tries without a checkpoint, whichever links have them; a checkpoint allows as many again."""
    before = {"attempt": 0, "event": "ended", "job": "6", "outcome": "failed", "progress": "step 40", "status": 1}
    record = chain.root / "slurm" / "attempts" / "6.jsonl"
    record.parent.mkdir()
    for failures, ends in ((1, False), (2, True)):
        chain.calls.unlink(missing_ok=True)
        (record.parent / "7.jsonl").unlink(missing_ok=True)
        record.write_text(failures * (json.dumps({**before, "cause": "x"}, sort_keys=True) + "\n"))
        assert train(chain, training="exit 1", chain=4).returncode == 1
        assert ("scancel 8 9" in chain.requests) == ends
    record.write_text(2 * (json.dumps({**before, "cause": "x", "progress": "step 30"}, sort_keys=True) + "\n"))
    (record.parent / "7.jsonl").unlink()
    chain.calls.unlink()
    train(chain, training="exit 1", chain=4)
    assert not [line for line in chain.requests if line.startswith("scancel")]


def test_the_site_may_name_the_meeting_point(node, tmp_path):
    (tmp_path / "site.sh").write_text("export MASTER_ADDR=here MASTER_PORT=99; step=x; progress=x; said=/nowhere\n")
    message = 'echo "$MASTER_ADDR:$MASTER_PORT"'
    done = train(node, training=message, environment=str(tmp_path / "site.sh"))
    assert done.returncode == 0
    assert "here:99" in node.log
    assert node.attempts()[-1]["progress"] == "step 40"


@pytest.fixture
def spare(node):
    """A job of three nodes, of which two train; files of its root say which it still has, and a node's state."""
    node.program(
        "scontrol",
        f'echo "$*" >> {node.calls}\n'
        '[ "$1 $2" != "show hostnames" ] || { [ "$3" = \'node"1\' ] && echo n1,n2,n3 || echo "$3"; } | tr , "\\n"\n'
        f'[ "$1 $2" != "show job" ] || echo "JobState=RUNNING Restarts=0 PreemptTime=None EndTime=${{ENDS:-Unknown}} '
        f'NodeList=$(cat {node.root}/has 2>/dev/null || echo n1,n2,n3)"',
    )
    node.program(
        "sinfo", f'for n in n1 n2 n3 n4 n5 n6 n7; do echo "$n $(cat {node.root}/$n 2>/dev/null || echo mixed)"; done'
    )
    node.more = {"SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "3", "MASTER_PORT": ""}
    return node


def first_fails(node, how, then="exit 0"):
    """Words of a training whose first start does `how`, and each later one `then`."""
    return f"if mkdir {node.root}/failed 2>/dev/null; then {how}; else {then}; fi"


@pytest.mark.parametrize(
    ("how", "counts", "nodes"),
    [
        ('echo "srun: error: Node failure on n2" >&2; echo n1,n3 > ROOT/has; exit 1', (2,), "n1,n3"),
        ('echo "down*" > ROOT/n2; exit 1', (2,), "n1,n3"),  # a node that died in silence
        (
            'printf "%s\\n" "Traceback (most recent call last):" "RuntimeError: [x] Connection closed by peer [::1]:4" '
            '"srun: error: n1: task 0: Killed" >&2; exit 137',  # what the other rank says is a consequence
            (2,),
            "n2,n3",
        ),
        ("exit 70", (2,), "n1,n2"),
        ('echo "srun: error: Node failure on n2" >&2; echo n1 > ROOT/has; exit 1', (2, 1), "n1"),
    ],
)
def test_a_failed_training_starts_again_in_its_allocation(spare, how, counts, nodes):
    how = how.replace("ROOT", str(spare.root))
    done = train(spare, training=first_fails(spare, how), spare_nodes=1, node_counts=counts)
    assert done.returncode == 0, spare.log
    assert "requeue 7" not in spare.requests
    steps = [line for line in spare.requests if line.startswith("srun") and "preflight" not in line]
    assert [line.partition("--nodelist=")[2].split()[0] for line in steps] == ["n1,n2", nodes]
    count = len(nodes.split(","))
    assert f"--nodes={count} --ntasks={count} --ntasks-per-node=1" in steps[1]
    assert f"ranks meet at {nodes[:2]}:21016" in spare.log  # another port than the first, 20007
    _, ended, again, last = spare.attempts()
    assert (ended["outcome"], again["event"], last["outcome"]) == ("failed", "started", "done")
    assert ended["cause"].endswith(f", on {nodes}")
    assert ("without n2" in ended["cause"]) == ("n2" in ended.get("blamed", ""))
    assert again["nodes"] == last["nodes"] == nodes
    assert ("Traceback" in how) == (ended.get("means") == "network")
    assert ended.get("action") != "later"  # `status` says what was done
    assert "--no-kill" in (spare.root / "slurm" / "train.sbatch").read_text()


@pytest.mark.parametrize(
    ("how", "settings", "excluded"),
    [
        ('echo "srun: error: Node failure on n2" >&2; exit 1', {}, "n2"),  # no node to spare
        ('echo "10:00:00 ERROR StorageError: cannot write x: no space left" >&2; exit 74', {"spare_nodes": 1}, ""),
        ('echo "srun: error: Node failure on n2" >&2; echo n1 > ROOT/has; exit 1', {"spare_nodes": 1}, "n2"),
        ("exit 70", {"spare_nodes": 1, "ends": "2026-01-01T00:00:00"}, ""),  # its last minutes
    ],
)
def test_a_failure_gives_the_job_back_where_the_allocation_cannot_help(spare, how, settings, excluded):
    spare.more["ENDS"] = settings.pop("ends", "Unknown")
    counts = (2,) if settings else ()
    train(spare, training=first_fails(spare, how.replace("ROOT", str(spare.root))), node_counts=counts, **settings)
    assert "requeue 7" in spare.requests
    assert [line for line in spare.requests if "ExcNodeList=" in line and "jobid" in line] == [
        f"update jobid=7 ExcNodeList={excluded}"
    ] * bool(excluded)


def test_each_node_of_a_list_is_left_out(spare):
    """srun names nodes that ended alike together, as in n[1-2]."""
    said = [
        "slurmstepd: error: execve(): assay: No such file",
        "srun: error: n1,n2: tasks 0-1: Exited with exit code 2",
    ]
    lost = f"printf '%s\\n' {shlex.join(said)} >&2; exit 2"
    done = train(spare, preflight=first_fails(spare, lost), spare_nodes=1, node_counts=(2, 1))
    assert done.returncode == 0, spare.log
    assert spare.attempts()[1]["blamed"] == ",n1,n2,"
    assert spare.attempts()[-1]["nodes"] == "n3"


def test_tries_in_the_allocation_are_bounded_and_a_requeue_leaves_out_all_their_nodes(spare):
    fails = 'n=$(grep -c "slurm preflight" CALLS); echo "srun: error: Node failure on n$((n % 3 + 1))" >&2; exit 1'
    train(spare, training=fails.replace("CALLS", str(spare.calls)), spare_nodes=1, node_counts=(2, 1), retries=9)
    ends = [line for line in spare.attempts() if line["event"] == "ended"]
    assert [line["blamed"] for line in ends] == [",n2,", ",n3,", ",n1,"]
    assert "update jobid=7 ExcNodeList=n2,n3,n1" in spare.requests
    spare.calls.unlink()
    (spare.root / "slurm" / "attempts" / "7.jsonl").unlink()
    train(spare, training="exit 70", spare_nodes=1, node_counts=(2,), retries=2)
    assert [line["outcome"] for line in spare.attempts() if line["event"] == "ended"] == ["failed"] * 3
    assert "requeue 7" not in spare.requests
