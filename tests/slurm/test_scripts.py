"""The scripts: valid bash before and after they are filled in, true to the configuration, with right exit codes."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm.config import SlurmConfig
from slurm.graph import PlannedRun, plan
from slurm.render import keep_program, render

FOLDER = Path(__file__).parents[2] / "slurm"
TEMPLATES = sorted([*FOLDER.glob("*.sbatch"), *FOLDER.glob("*.sh")])


def jobs_of(config, root=Path("/shared/run"), file=Path("/shared/run.toml"), shards=40, node_counts=()):
    work = PlannedRun("run", ("ingest", "clean"), shards, (str(file), "--root", str(root)), node_counts)
    return {job.name: job for job in plan(work, config, 1001)}


def bash_accepts(text):
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0


def shellcheck(path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "--shell=bash", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_are_valid_unfilled(path):
    assert bash_accepts(path.read_text())
    shellcheck(path)


@pytest.mark.parametrize("runtime", ["none", "pyxis", "apptainer"])
@pytest.mark.parametrize("name", ["ingest", "ingest-join", "audit", "train", "evaluate"])
def test_templates_are_valid_filled_in(runtime, name, tmp_path):
    container = {} if runtime == "none" else {"container": "/images/assay.sqsh", "container_runtime": runtime}
    config = SlurmConfig(environment="/shared/my modules.sh", gpus_per_node=2, **container)
    script = tmp_path / "script.sbatch"
    script.write_text(render(jobs_of(config)[name], Path("/shared/run.toml"), Path("/shared/run"), config))
    assert "@" not in "".join(
        line for line in script.read_text().splitlines() if not any(word in line for word in ("USR1@", "[@]", '"$@"'))
    )
    assert len(script.read_text().splitlines()) <= 60  # read by a lab's administrators
    assert bash_accepts(script.read_text())
    shellcheck(script)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\x00\n\r"), min_size=1, max_size=20)


@settings(max_examples=25)  # a shell for each job of each example
@given(name=NAMES, folder=NAMES)
def test_any_path_survives_quoting(name, folder):
    if name in (".", "..") or folder in (".", ".."):
        return
    root, file = Path("/runs") / folder, Path("/runs") / folder / f"{name}.toml"
    config = SlurmConfig(environment=f"/etc/{name}")
    for job in jobs_of(config, root, file).values():
        text = render(job, file, root, config)
        filled = {line.partition("=")[0]: line.partition("=")[2] for line in text.split("\n") if "=" in line}
        assert shlex.split(filled["root"]) == [str(root)]
        assert shlex.split(filled["environment"]) == [f"/etc/{name}"]
        assert shlex.split(filled["command"].strip()[1:-1]) == list(job.command)
        assert bash_accepts(text)


class ClusterNode:
    """A machine on which a script runs: a root, stand-in programs, and the calls that they received."""

    def __init__(self, folder):
        self.root, self.programs = folder / "root", folder / "programs"
        (self.root / "slurm" / "logs").mkdir(parents=True)
        (self.root / "slurm" / "jobs.jsonl").write_text("")
        self.programs.mkdir()
        self.more = {}
        """Of the job's environment."""
        self.file = folder / "run.toml"
        self.file.touch()
        self.calls = folder / "calls"
        self.program("scontrol", f'echo "$*" >> {self.calls}')
        self.naps()

    def program(self, name, body):
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def naps(self, seconds=0.0):
        """Make each pause of an attempt last so long."""
        (self.programs / "naps.py").write_text(
            f"import runpy, sys, time\nlast = time.sleep\ntime.sleep = lambda _: last({seconds})\n"
            "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
        )
        own = sys.executable
        self.program("python", f'[ "$1" = -I ] || exec {own} "$@"\nexec {own} -I -B {self.programs}/naps.py "${{@:3}}"')

    def run(self, name="data", attempt=0, task=None, config=None, node_counts=()):
        config = config or SlurmConfig(retries=2)
        job = jobs_of(config, self.root, self.file, node_counts=node_counts)[name]
        script = self.root / "slurm" / f"{name}.sbatch"
        with mock.patch("sys.executable", str(self.programs / "python")):
            script.write_text(render(job, self.file, self.root, config))
        keep_program(self.root)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "GLOO_", "NCCL_"))}
        here = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(attempt),
        }
        here |= {"SLURM_JOB_NODELIST": 'node"1', "SLURM_CPUS_ON_NODE": "3", "SLURM_JOB_NAME": f"run.{name}"}
        if task is not None:
            here |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}
        done = subprocess.run(
            ["bash", str(script)], env={**kept, **here, **self.more}, capture_output=True, text=True, errors="replace",
            check=False, timeout=300,
        )  # fmt: skip
        unit = "7" if task is None else f"7_{task}"
        log = self.root / "slurm" / "logs" / f"run.{name}-{unit}.{attempt}.log"
        self.log = log.read_text(errors="replace") if log.exists() else ""
        return done

    @property
    def requests(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def attempts(self, unit="7"):
        path = self.root / "slurm" / "attempts" / f"{unit}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def node(tmp_path):
    return ClusterNode(tmp_path)


def test_a_job_runs_what_a_person_would_type(node, tmp_path):
    node.program("assay", f'printf "%s\\n" "$@" > {tmp_path}/words')
    assert node.run("ingest", task=3).returncode == 0
    words = (tmp_path / "words").read_text().splitlines()
    shown = ["data", "prepare", str(node.file), "--root", str(node.root), "--data-workers", "3", "--task", "3/40"]
    assert words == shown
    started, ended = node.attempts("7_3")
    assert (started["event"], ended["event"], ended["status"], ended["outcome"]) == ("started", "ended", 0, "done")
    assert started["nodes"] == 'node"1'
    assert set(node.requests) == {"show job 7_3"}


@pytest.mark.parametrize(
    ("status", "outcome", "requeued"),
    [(0, "done", False), (2, "explained", False), (65, "explained", False), (66, "explained", False),
     (71, "explained", False), (77, "explained", False), (78, "explained", False), (75, "left", True),
     (1, "failed", True), (70, "failed", True),
     (73, "failed", True), (74, "failed", True), (137, "failed", True)],
)  # fmt: skip
def test_what_follows_an_exit_status(node, status, outcome, requeued):
    node.program("assay", f"exit {status}")
    assert node.run("audit").returncode == status
    assert node.attempts()[-1]["outcome"] == outcome
    assert ("requeue 7" in node.requests) == requeued


def test_the_reason_of_a_closed_gate_is_in_the_comment(node):
    output = [
        "2026-11-25 10:00:00 ERROR GateClosed: verdict closed",
        "  pii.total on pii failed: 3 > 0. Decision: ann.",
        "  pii.rate failed (waived, owner: ann): 2 > 0 [pii]",
        "  1 gate that cannot block did not pass: raw.x (details in the report)",
        "  signed by the account that ran it; no person has approved",
        "  next: change the corpus or its settings, then repeat the command",
    ]
    node.program("assay", f"printf '%s\\n' {shlex.join(output)} >&2; exit 77")
    assert node.run("audit").returncode == 77
    reason = "the gate is closed: verdict closed; pii.total on pii failed: 3 > 0. Decision: ann."
    assert node.attempts()[-1]["cause"] == reason
    assert f"update jobid=7 comment=assay: {reason}" in node.requests
    head = "assay journal 12:0123abc"
    node.program("scontrol", f'echo "$*" >> {node.calls}; [ "$1" != show ] || echo "   Comment={head}"')
    node.run("audit")
    assert f"update jobid=7 comment=assay: {reason}; {head}" in node.requests
    node.program(
        "scontrol", f'echo "$*" >> {node.calls}; [ "$1" != show ] || echo "   Comment=bioassay: 12; assay: x; {head}"'
    )
    node.run("audit")  # the site's own text there is kept
    assert f"update jobid=7 comment=bioassay: 12; assay: {reason}; {head}" in node.requests


def test_failures_are_bounded_and_preemptions_are_not(node):
    node.program("assay", "exit 1")
    for attempt in range(4):
        node.calls.unlink(missing_ok=True)
        node.run(attempt=attempt)
        assert ("requeue 7" in node.requests) == (attempt < 2)
    node.program("assay", "exit 75")
    for attempt in range(4, 8):
        node.calls.unlink(missing_ok=True)
        node.run(attempt=attempt)
        assert "requeue 7" in node.requests


def test_where_the_record_cannot_be_written_slurms_own_count_bounds(node):
    node.program("assay", "exit 1")
    (node.root / "slurm" / "attempts").write_text("a file in the folder's place")
    node.run(attempt=1)
    assert "requeue 7" in node.requests
    node.calls.unlink()
    node.run(attempt=2)
    assert "requeue 7" not in node.requests


def test_a_task_requeues_itself_and_not_its_array(node):
    node.program("assay", "exit 74")
    node.run("ingest", task=5)
    assert "requeue 7_5" in node.requests
    assert "requeue 7" not in node.requests


@pytest.mark.parametrize(
    ("output", "comes_back"),
    [("JobState=CANCELLED Reason=None", False), ("JobState=COMPLETING Reason=None PreemptTime=None", False),
     ("JobState=COMPLETING Reason=TimeLimit PreemptTime=None", True), ("JobState=RUNNING Reason=None", True),
     ("JobState=COMPLETING Reason=None PreemptTime=2026-11-25T10:00:00", True)],
)  # fmt: skip
def test_a_cancelled_job_does_not_come_back(node, output, comes_back):
    node.program("assay", "exit 75")
    node.program("scontrol", f'echo "$*" >> {node.calls}; echo "JobId=7 {output}"')
    node.run()
    assert ("requeue 7" in node.requests) == comes_back


def test_a_link_of_a_chain_leaves_the_rest_to_the_next(node):
    node.program("srun", 'while [[ $1 == -* ]]; do shift; done; exec "$@"')
    node.program("assay", "exit 75")
    assert node.run("train", config=SlurmConfig(chain=2)).returncode == 75
    assert not [line for line in node.requests if line.startswith("requeue")]


def test_a_node_that_does_not_see_the_root_says_so(node):
    node.program("assay", "exit 0")
    (node.root / "slurm" / "jobs.jsonl").unlink()
    done = node.run()
    assert done.returncode == 66
    assert "does not see" in node.log


def test_a_node_without_the_command_is_left_out(node):
    node.program("assay", "exit 127")
    node.run()
    assert [line for line in node.requests if line.startswith("update jobid=7 ExcNodeList=")]
    assert "requeue 7" in node.requests


def test_the_signal_before_the_limit_puts_a_step_back(node):
    node.program("assay", "echo shard >> $ASSAY_TALLY; kill -USR1 $PPID; exec /bin/sleep 30")
    for attempt in range(4):  # without bound, as long as one makes progress
        assert node.run(attempt=attempt).returncode == 75
        assert node.attempts()[-1]["cause"] == "signalled to stop before the time limit"
    assert node.requests.count("requeue 7") == 4


def test_a_step_for_which_the_limit_is_too_short_is_bounded(node):
    node.program("assay", "kill -USR1 $PPID; exec /bin/sleep 30")
    assert [node.run(attempt=attempt).returncode for attempt in range(3)] == [124, 124, 124]
    assert node.attempts()[-1]["cause"] == "its time limit was reached before it finished a shard"
    assert node.requests.count("requeue 7") == 2


def test_a_controller_that_is_down_is_waited_for(node, tmp_path):
    node.program("assay", "exit 75")
    answers = f'echo x >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) -gt 40 ] || {{ echo "$down" >&2; exit 1; }}'
    for down, comes_back in (("Unable to contact slurm controller", True), ("Invalid job id specified", False)):
        (tmp_path / "tries").unlink(missing_ok=True)
        node.calls.unlink(missing_ok=True)
        node.program(
            "scontrol", f'down="{down}"; case "$*" in "show job 7") {answers} ;; esac; echo "$*" >> {node.calls}'
        )
        assert node.run().returncode == 75
        assert ("requeue 7" in node.requests) == comes_back


def test_failures_are_bounded_whatever_the_bytes_of_their_messages(node, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # where grep does not treat a file with such bytes as text
    node.program("assay", "printf 'ERR: caf\\303' >&2; exit 1")
    for attempt in range(3):
        node.calls.unlink(missing_ok=True)
        node.run(attempt=attempt)
        assert ("requeue 7" in node.requests) == (attempt < 2)
    assert node.attempts()[-1]["cause"] == "failed with status 1: ERR: caf"


def test_a_job_that_takes_its_nodes_with_it_ends_at_last(node):
    node.program("assay", "exit 0")
    assert node.run().returncode == 0  # an attempt with any end is not such a start
    started = json.dumps(node.attempts()[0]) + "\n"
    record = node.root / "slurm" / "attempts" / "7.jsonl"
    record.write_text(record.read_text() + 9 * started)
    assert node.run(attempt=10).returncode == 0
    record.write_text(record.read_text() + 10 * started)
    assert node.run(attempt=20).returncode == 69
    assert "killed without a record" in node.attempts()[-1]["cause"]
    assert "requeue 7" not in node.requests


def test_failures_of_a_data_step_are_counted_anew_after_each_shard(node):
    for makes, comes_back in (("", True), ("", True), ("", False), ("echo shard >> $ASSAY_TALLY;", True), ("", True)):
        node.calls.unlink(missing_ok=True)
        node.program("assay", f"{makes} exit 1")
        node.run("ingest", task=4)
        assert ("requeue 7_4" in node.requests) == comes_back
    assert node.attempts("7_4")[-1]["progress"] == "1 made"


def test_a_script_of_the_site_cannot_touch_ours(node, tmp_path):
    names = [
        "root",
        "command",
        "status",
        "progress",
        "before",
        "job",
        "attempts",
        "step",
        "reported",
        "retries",
        "shares",
        "workers",
    ]
    site = tmp_path / "it's modules.sh"
    lines = [f"{name}=theirs; export {name}" for name in names]
    lines += ["begin() { echo theirs; exit 9; }", "finish() { exit 9; }", "made() { exit 9; }", "export -f finish made"]
    lines += ["IFS=:", "set -f", "export SEEN=yes", "trap 'exit 9' TERM", "cd /", "false"]
    site.write_text("\n".join([*lines, "true"]) + "\n")
    node.program("assay", f'printf "%s\\n" "$SEEN" "$@" > {tmp_path}/words; exit 75')
    assert node.run("ingest", task=3, config=SlurmConfig(environment=str(site))).returncode == 75
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:4] == ["yes", "data", "prepare", str(node.file)]
    assert words[-2:] == ["--task", "3/40"]
    started, ended = node.attempts("7_3")  # begun once, though the script is read twice
    assert started["started"] == ended["started"]
    assert "requeue 7_3" in node.requests


@pytest.mark.parametrize("ends", ["return 3", "exit 3", "cd /nowhere"])
def test_an_environment_that_fails_is_reported(node, tmp_path, ends):
    site = tmp_path / "modules.sh"
    site.write_text(f"finish=x\n{ends}\n")
    node.program("assay", "exit 0")
    assert node.run(config=SlurmConfig(environment=str(site))).returncode == 127
    assert node.attempts()[-1]["cause"].startswith(f"the environment {site} cannot be sourced on ")


@pytest.mark.parametrize(
    ("signal", "status", "cause"),
    [("TERM", 75, "signalled to stop (SIGTERM) while "), ("USR1", 124, "its time limit was reached while ")],
)
def test_a_signal_while_the_environment_is_sourced_is_no_fault_of_it(node, tmp_path, signal, status, cause):
    site = tmp_path / "modules.sh"
    site.write_text(f"finish=x; kill -{signal} $$\n")
    node.program("assay", "exit 0")
    assert node.run(config=SlurmConfig(environment=str(site))).returncode == status
    assert node.attempts()[-1]["cause"].startswith(cause)
    assert not any("ExcNodeList" in request for request in node.requests)


def test_a_job_that_is_called_off_does_not_come_back(node):
    """Whenever its attempt notices: before its request for a requeue, after that, or when it begins again."""
    off = node.root / "slurm" / "cancelled" / "7"
    cancel = f"mkdir -p {off.parent}; touch {off}"
    node.program("scancel", f'echo "scancel $*" >> {node.calls}')
    node.program("assay", f"{cancel}; exit 75")
    assert node.run().returncode == 75
    assert not [line for line in node.requests if line.startswith("requeue")]
    off.unlink()
    node.program("assay", "exit 75")
    node.program("scontrol", f'echo "$*" >> {node.calls}; case $1 in requeue) {cancel} ;; esac')
    assert node.run().returncode == 75
    assert node.requests[-2:] == ["requeue 7", "scancel 7"]
    node.program("assay", f"touch {node.root}/ran")
    node.calls.unlink()
    assert node.run(attempt=1).returncode == 75
    assert node.requests == ["scancel 7"]
    assert not (node.root / "ran").exists()


def test_what_needs_time_is_tried_later_and_later_and_an_array_spreads(node):
    for attempt, (status, seconds) in enumerate([(74, 60), (69, 120), (73, 240)]):
        node.program("assay", f"exit {status}")
        node.run(attempt=attempt, config=SlurmConfig(retries=9))
        assert node.requests[-1] == f"update jobid=7 StartTime=now+{seconds}"
    node.program("assay", "exit 1")
    node.run(attempt=3, config=SlurmConfig(retries=9))
    assert node.requests[-1] == "requeue 7"
    node.program("assay", "exit 74")
    waits = set()
    for task in range(4):
        node.run("ingest", task=task)
        waits.add(int(node.requests[-1].partition("now+")[2]))
    assert all(60 <= wait <= 120 for wait in waits)
    assert len(waits) > 1
