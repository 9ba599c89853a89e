"""The program that runs an attempt, in this process: causes, waits, and what it imports."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from governance.gate.approvals import Difference
from slurm.attempt import attempt_start, ending, job_attempt
from slurm.attempt.causes import cause_in, cause_of, exited, reason_in
from slurm.attempt.job_attempt import JobAttempt, events, failures, job_here, last_saved, note
from slurm.render import keep_program, program_of


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    (tmp_path / "slurm" / "logs").mkdir(parents=True)
    (tmp_path / "slurm" / "jobs.jsonl").touch()
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_NAME", "run.train")
    return JobAttempt(root=tmp_path, kind="train", command=["assay", "train"], job="7", retries=3, progress="step 40")


def test_the_copy_imports_neither_torch_nor_the_installed_program(tmp_path):
    keep_program(tmp_path)
    program = program_of(tmp_path)
    look = (
        f"import sys; sys.argv = ['{program}', '--help']; import runpy\n"
        f"try: runpy.run_path('{program}', run_name='__main__')\nexcept SystemExit: pass\n"
        "print(*sorted(module.__file__ for module in list(sys.modules.values()) if getattr(module, '__file__', None)))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", look], capture_output=True, text=True, check=True)
    files = [Path(name) for name in done.stdout.splitlines()[-1].split()]
    own = {path for path in files if tmp_path in path.parents}
    assert {path.relative_to(program).name for path in own if program in path.parents} >= {
        "attempt_start.py",
        "ending.py",
    }
    assert not [path for path in files if "site-packages" in path.parts]
    assert not [path for path in files if Path(__file__).parents[2] in path.parents and path not in own]


def test_nothing_else_stays_where_the_copy_looks_for_modules(tmp_path):
    keep_program(tmp_path)
    above = program_of(tmp_path).parents[1]
    (above / "argparse.py").write_text("raise SystemExit('planted')")
    (above / "slurm" / "attempt" / "json").symlink_to(tmp_path)
    keep_program(tmp_path)
    assert not (above / "argparse.py").exists()
    assert not (above / "slurm" / "attempt" / "json").is_symlink()
    assert (program_of(tmp_path) / "__main__.py").exists()


def test_a_task_is_named_by_its_array():
    assert job_here({"SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": "2"}) == ("9", 2)
    assert job_here({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}) == ("7_3", 0)


def test_the_last_error_and_what_is_indented_below_it_is_the_reason():
    lines = ["x ERROR First: one", "  a", "x ERROR Second: two", "  b", "  signed by c", "", "  d", "end", "  e"]
    assert reason_in(lines) == "two; b; d"
    assert reason_in(["first", "last", ""]) == "last"
    assert reason_in([]) == ""
    assert len(reason_in(["x" * 1000])) == 600


def test_a_difference_from_the_parent_policy_is_not_a_reason():
    found = [Difference("a.b", "max is 2, was 1", loosened, ()).text() for loosened in (True, False)]
    lines = ["x ERROR GateClosed: closed", "  a.b failed: x", *(f"  {words} (against the parent)" for words in found)]
    assert reason_in(lines) == "closed; a.b failed: x"


def test_causes_of_a_parallel_step():
    killed = "srun: error: n2: task 1: Killed"
    assert cause_in(["srun: error: n1: task 0: Exited with exit code 1", killed]) == "n2: task 1: Killed"
    assert cause_in([killed, "slurmstepd: error: Detected 1 oom_kill event"]).startswith("out of memory: slurmstepd")
    assert cause_in([killed, "10:00 ERROR Hang: rank 1"]) == "rank 1"
    assert cause_in(["srun: error: Unable to create step"]) == "Unable to create step"
    assert cause_in(["nothing"]) == ""
    assert (cause_of(139), cause_of(3)) == ("ended by signal 11", "failed with status 3")
    lines = [
        "srun: error: n[2-3]: tasks 1-2: Exited with exit code 66",
        "srun: error: n1: task 0: Exited with exit code 1",
    ]
    assert exited(lines, 66, 78) == ["n[2-3]"]


def test_the_last_saved_step_is_of_the_run_that_wrote_last(attempt):
    assert last_saved(attempt) == "step 0"
    for name, step, age in (("new", 7, 0), ("old", 90, 100)):
        path = attempt.root / "train" / name / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(
            f'{{"event": "checkpoint", "step": {step}}}\n{{"event": "step", "step": 99}}\n{{"event": "check'
        )
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert last_saved(attempt) == "step 7"


def refusing(times, number=errno.EROFS):
    """A function that the file system refuses a number of times."""
    left = [times]

    def refuse(function):
        def tried(*words, **named):
            left[0] -= 1
            if left[0] >= 0:
                raise OSError(number, os.strerror(number))
            return function(*words, **named)

        return tried

    return refuse


@pytest.fixture
def naps(monkeypatch):
    found = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


@pytest.mark.parametrize(("number", "waits"), [(errno.EROFS, 30), (errno.ESTALE, 30), (errno.EACCES, 0)])
def test_a_start_waits_for_a_file_system_that_refuses_for_a_while(attempt, naps, monkeypatch, capfd, number, waits):
    log = attempt.root / "slurm" / "logs" / "run.train-7.0.log"
    out, error = os.dup(1), os.dup(2)
    with monkeypatch.context() as changed:
        changed.setattr(attempt_start.os, "open", refusing(6, number)(os.open))
        attempt_start._open_log(attempt)
    os.dup2(out, 1)
    os.dup2(error, 2)
    assert (sum(naps), log.exists()) == (waits, waits > 0)


@pytest.fixture
def decided(monkeypatch):
    """Reactions to failures, recorded and not carried out."""
    found = []
    monkeypatch.setattr(ending, "_after_failure", lambda *words: found.append(words[1:]))
    monkeypatch.setattr(ending, "_correct_state", lambda *words: None)
    monkeypatch.setattr(ending, "ignore_signals", lambda: None)
    return found


@pytest.mark.parametrize(("refusals", "known"), [(6, True), (1000, False)])
def test_the_record_of_a_failure_waits_for_the_file_system(attempt, naps, decided, monkeypatch, refusals, known):
    """Without it, Slurm's count of all starts bounds the failures: after five preemptions, none would be left."""
    attempt.number = 5
    monkeypatch.setattr(job_attempt, "append_line", refusing(refusals)(job_attempt.append_line))
    with pytest.raises(SystemExit) as ended:
        ending.finish(attempt, 74, "read-only")
    assert ended.value.code == 74
    assert decided == [(74, "read-only", 1 if known else 6)]
    assert sum(naps) == (30 if known else 300)
    assert failures(attempt) == (1 if known else 0)


@pytest.fixture
def stale(attempt, naps, monkeypatch):
    """`stale(times)`: the root is a stale mount until so many pauses have passed."""

    def begin(times):
        def refuse(path, *words, real=os.stat, **named):
            if len(naps) < times and str(path).startswith(str(attempt.root)):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return real(path, *words, **named)

        monkeypatch.setattr(os, "stat", refuse)

    return begin


@pytest.mark.parametrize(("pauses", "known"), [(6, True), (1000, False)])
def test_the_record_of_a_failure_waits_for_a_stale_mount(attempt, naps, stale, decided, pauses, known):
    stale(pauses)
    with pytest.raises(SystemExit) as ended:
        ending.finish(attempt, 70, "a rank hung")
    assert ended.value.code == 70
    assert sum(naps) == (30 if known else 300)
    assert decided == [(70, "a rank hung", 1)]
    assert [line["event"] for line in events(attempt)] == ["ended"] * known


def test_a_start_on_a_stale_mount_excludes_the_node(attempt, naps, stale, decided, monkeypatch):
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    attempt.command = ["assay", "train", str(attempt.root / "run.toml")]
    stale(1000)
    with pytest.raises(SystemExit) as ended:
        attempt_start._begin(attempt)
    assert ended.value.code == 66
    assert attempt.left_out == [socket.gethostname().partition(".")[0]]
    [(_, cause, _)] = decided
    assert f"does not see {attempt.root}; put it on a file system that all nodes share" in cause
    assert ending._unseen(attempt) == attempt.command[-1]
    assert not attempt.is_cancelled


def test_an_attempt_that_leaves_has_no_time_to_wait(attempt, naps, monkeypatch):
    monkeypatch.setattr(job_attempt, "append_line", refusing(1000)(job_attempt.append_line))
    monkeypatch.setattr(ending, "_requeue", lambda *words: sys.exit(words[1]))
    monkeypatch.setattr(ending, "ignore_signals", lambda: None)
    with pytest.raises(SystemExit):
        ending.finish(attempt, 75)
    assert naps == []


def test_the_record_is_json_whatever_the_message(attempt):
    assert note(attempt, "ended", cause='"\\\t\x1b é', outcome="failed", progress="step 40")
    [line] = events(attempt)
    assert line["cause"] == '"\\\t\x1b é'
    assert failures(attempt) == 1
