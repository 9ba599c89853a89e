"""The launcher with children that only pretend: the ranks that it blames, restarts, and gives up on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from governance.files import append_line
from pretrain.distributed import launcher
from pretrain.distributed.launcher import launch, progress_in
from pretrain.distributed.preemption import ONE_REQUEST_SECONDS

KILL = "os.kill(os.getpid(), 9)"
CRASH = "raise ValueError('our own mistake')"
EXPLAINED = "sys.stderr.write('PipelineError: too few rows\\n'); sys.exit(1)"
WAIT = "time.sleep(60)"
GRACE = launcher._GRACE_SECONDS  # the real one; `pretend` shortens it


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """Ranks that run a line of Python each; with `tries`, each try appends a line to a file there."""
    tries = tmp_path / "tries"

    def plan(*lines, processes=None, **options):
        script = (
            "import os, signal, sys, time\n"
            "rank = int(os.environ['RANK'])\n"
            f"tries = open({str(tries)!r}, 'a+'); rank or tries.write('x'); tries.close()\n"
            f"exec({list(lines)!r}[rank])"
        )
        monkeypatch.setattr(launcher, "_command", lambda words: [sys.executable, "-c", script])
        monkeypatch.setattr(launcher, "_GRACE_SECONDS", 2.0)
        monkeypatch.setattr(launcher, "_EXPLAINED_SECONDS", 1.0)
        status = launch(processes or len(lines), [], **options)
        return status, len(tries.read_text())

    return plan


def test_all_is_well(pretend):
    assert pretend("pass", "pass", restarts=3) == (0, 1)


def test_standard_output_is_for_the_result_of_the_launcher(pretend, capfd):
    """With --json, the output is exactly one object."""
    assert pretend("print('train 0123  train/key')", "print('train 0123  train/key')") == (0, 1)
    written = capfd.readouterr()
    assert (written.out, written.err.count("train 0123  train/key")) == ("", 2)


def test_a_killed_rank_takes_the_others_down_and_is_named(pretend, caplog, capfd, tmp_path):
    at = str(tmp_path / "killed-at")
    line = (
        f"sys.stderr.write('step 7 begins\\n'); sys.stderr.flush(); open({at!r}, 'w').write(str(time.time())); {KILL}"
    )
    # Its peer fails because of it, with a traceback, and is not blamed; another waits for ever, and is ended.
    after = f"while not os.path.exists({at!r}): time.sleep(0.01)\ntime.sleep(1.0)\n"
    assert pretend(after + CRASH, line, WAIT, restarts=0) == (137, 1)
    [named] = caplog.records
    grace, took = launcher._GRACE_SECONDS, named.created - float((tmp_path / "killed-at").read_text())
    assert grace <= took < 60 - (GRACE - grace)  # the real grace period holds within a minute as well
    output = named.getMessage()
    assert "rank 1" in output
    assert "SIGKILL" in output
    assert "step 7 begins" in output
    assert "step 7 begins" in capfd.readouterr().err  # passed on as well


def test_a_crash_is_tried_again_as_often_as_allowed(pretend):
    steps = iter([(3, 0), (5, 0), (6, 0), (8, 0)])
    assert pretend(KILL, "pass", restarts=2, progress_of=lambda: next(steps)) == (137, 3)


def test_a_newer_checkpoint_gives_all_tries_back(pretend):
    steps = iter([(3, 0), (5, 4), (6, 4)])
    assert pretend(CRASH, restarts=1, progress_of=lambda: next(steps)) == (1, 3)


def test_the_same_step_twice_ends_it(pretend, caplog):
    assert pretend(KILL, restarts=5, progress_of=lambda: (7, 4)) == (137, 2)
    assert "second crash after step 7" in caplog.text


def test_a_second_try_may_succeed(pretend, tmp_path):
    mark = str(tmp_path / "once")
    once = f"os.path.exists({mark!r}) or (open({mark!r}, 'x').close(), {KILL})"
    assert pretend(once, "pass", restarts=1) == (0, 2)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (EXPLAINED, 1),
        ("sys.exit(78)", 78),
        ("sys.exit(66)", 66),
        ("sys.exit(65)", 65),
        ("sys.exit(77)", 77),
        ("sys.exit(73)", 73),
        ("sys.exit(75)", 75),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_what_was_explained_or_requested_is_not_tried_again(pretend, line, status):
    assert pretend(line, restarts=3) == (status, 1)


def test_a_rank_that_still_saves_is_waited_for_when_another_has_left(pretend, tmp_path):
    saved = tmp_path / "saved"
    saves = f"time.sleep(2.5); open({str(saved)!r}, 'x').close(); sys.exit(75)"  # longer than a crash would leave it
    assert pretend("sys.exit(75)", saves) == (75, 1)
    assert saved.exists()


def test_a_hang_is_tried_again(pretend):
    steps = iter([(3, 0), (5, 0)])
    assert pretend(f"sys.exit({launcher.HUNG})", restarts=1, progress_of=lambda: next(steps)) == (70, 2)


def test_the_rank_that_made_no_progress_is_named_after_a_hang(pretend, caplog, tmp_path):
    mark = str(tmp_path / "up")
    stopped = f"open({mark!r}, 'x').close(); os.kill(os.getpid(), signal.SIGSTOP)"
    hung = f"while not os.path.exists({mark!r}): time.sleep(0.01)\nsys.exit({launcher.HUNG})"
    assert pretend(hung, stopped, restarts=0) == (70, 1)
    [named] = caplog.records
    assert named.getMessage().startswith("rank 1 ")
    assert "is stuck" in named.getMessage()


def test_a_rank_whose_interpreter_is_blocked_counts_as_hung(pretend, caplog):
    """The timer in C ends it with 1, and without a traceback."""
    blocked = (
        "import ctypes, faulthandler; faulthandler.dump_traceback_later(0.2, exit=True); ctypes.PyDLL(None).sleep(60)"
    )
    steps = iter([(3, 0), (5, 0)])
    assert pretend(f"sys.exit({launcher.HUNG})", blocked, restarts=1, progress_of=lambda: next(steps)) == (70, 2)
    assert [line.getMessage().partition(" (pid")[0] for line in caplog.records if "hung" in line.getMessage()] == [
        "rank 1", "rank 1"
    ]  # fmt: skip
    assert pretend(blocked, restarts=0) == (70, 3)


def test_ranks_that_hang_alike_are_all_named(pretend, caplog, tmp_path):
    """No evidence tells which one stopped first; of two that hold their interpreters, the first to run out does."""
    marks = [str(tmp_path / name) for name in ("one", "two")]
    stopped = [f"open({mark!r}, 'x').close(); os.kill(os.getpid(), signal.SIGSTOP)" for mark in marks]
    hung = f"while not all(map(os.path.exists, {marks!r})): time.sleep(0.01)\nsys.exit({launcher.HUNG})"
    assert pretend(*stopped, hung, restarts=0) == (70, 1)
    assert re.match(
        r"rank 0 \(pid \d+\) is stuck.*The same holds for rank 1 \(pid \d+\)", caplog.records[-1].getMessage()
    )

    pid = tmp_path / "pid"
    block = (
        "import ctypes, faulthandler; faulthandler.dump_traceback_later(0.2, exit=True); ctypes.PyDLL(None).sleep(60)"
    )
    first = f"os.symlink(str(os.getpid()), {str(pid)!r}); {block}"
    second = (
        f"while not os.path.lexists({str(pid)!r}): time.sleep(0.01)\n"
        f"while os.path.exists('/proc/' + os.readlink({str(pid)!r})): time.sleep(0.01)\n{block}"
    )
    assert pretend(second, first, restarts=0) == (70, 2)
    assert re.match(r"rank 1 \(pid .*The same holds for rank 0 \(pid ", caplog.records[-1].getMessage())


def test_ranks_end_when_their_launcher_is_killed(tmp_path):
    """A rank gets SIGTERM, and saves and leaves as for a scheduler."""
    line = (
        "import signal, sys, time; import assay.cli.main as cli\n"
        f"signal.signal(15, lambda *_: (open({str(tmp_path / 'left')!r}, 'w').close(), sys.exit(75)))\n"
        "cli.refuse_missing = lambda arguments: (print('up', flush=True), time.sleep(60))\n"
        "cli.main(['data', 'show', 'x.toml'])"
    )
    outer = (
        "import sys; from pretrain.distributed import launcher as l\n"
        f"l._command = lambda words: [sys.executable, '-c', {line!r}]\n"
        "l.launch(1, [])"
    )
    child = subprocess.Popen([sys.executable, "-c", outer], stderr=subprocess.PIPE, text=True)
    assert child.stderr.readline() == "up\n"
    child.kill()
    assert child.stderr.read() == ""  # the rank held its other end: it has ended
    assert (tmp_path / "left").exists()


@pytest.mark.parametrize(
    ("number", "handler", "status"),
    [
        (signal.SIGTERM, "lambda *_: os.kill(os.getpid(), 9)", 137),
        (signal.SIGTERM, "lambda *_: sys.exit(75)", 75),
        (signal.SIGTERM, "signal.SIG_DFL", 75),  # it came while the rank was still importing: nothing was learned
        (signal.SIGINT, "signal.SIG_DFL", 130),
        (signal.SIGINT, "lambda *_: sys.exit(130)", 130),  # the same, as KeyboardInterrupt in the imports
    ],
)
def test_a_signal_is_passed_on_and_nothing_is_tried_again(number, handler, status):
    line = (
        "import os, sys, time, signal\n"
        f"signal.signal({int(number)}, {handler}); print('up', flush=True); time.sleep(60)"
    )
    outer = (
        "import sys; from pretrain.distributed import launcher as l\n"
        f"l._command = lambda words: [sys.executable, '-c', {line!r}]\n"
        "sys.exit(l.launch(1, [], restarts=3))"
    )
    child = subprocess.Popen([sys.executable, "-c", outer], stderr=subprocess.PIPE, text=True, process_group=0)
    assert child.stderr.readline() == "up\n"
    child.send_signal(number)
    errors = child.communicate(timeout=300)[1]
    assert child.returncode == status
    assert ("ended with status" in errors or "was killed by" in errors) == (status == 137)


def test_a_signal_during_the_start_of_a_rank_reaches_it(monkeypatch):
    start = launcher._start

    def signalled(*words):
        rank = start(*words)
        os.kill(os.getpid(), signal.SIGTERM)
        return rank

    monkeypatch.setattr(launcher, "_start", signalled)
    monkeypatch.setattr(launcher, "_command", lambda words: [sys.executable, "-c", f"import time; {WAIT}"])
    monkeypatch.setattr(launcher, "_SAVING_SECONDS", 1.0)
    assert launch(1, []) == 75


def test_how_far_a_run_is(tmp_path):
    assert progress_in(tmp_path) == (0, 0)
    append_line(tmp_path / "metrics.jsonl", '{"event": "step", "step": 7}')
    append_line(tmp_path / "metrics.jsonl", '{"event": "step", "step": 5}')
    append_line(tmp_path / "metrics.jsonl", '{"event": "validation", "step": 6}')
    append_line(tmp_path / "metrics.jsonl", '{"event": "checkpoint", "step": 4}')
    append_line(tmp_path / "checkpoints.jsonl", '{"step": 5}')  # begun, and perhaps never durable
    assert progress_in(tmp_path) == (5, 4)


def test_at_a_terminal_a_rank_has_one_too(tmp_path):
    """The progress bar needs it; its last lines are kept all the same."""
    line = "import sys; sys.stderr.write(f'tty {sys.stderr.isatty()}' + chr(10)); sys.exit(78)"
    outer = (
        "import sys; from governance.log import set_up_logging; set_up_logging()\n"
        "from pretrain.distributed import launcher as l\n"
        f"l._command = lambda words: [sys.executable, '-c', {line!r}]\n"
        "sys.exit(l.launch(1, []))"
    )
    reading, end = os.openpty()
    child = subprocess.Popen([sys.executable, "-c", outer], stderr=end)
    os.close(end)
    assert child.wait(300) == 78
    assert os.read(reading, 1 << 16).decode().count("tty True") >= 1
    os.close(reading)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_z_stops_the_ranks_and_fg_continues_them(tmp_path, times):
    """A second Ctrl-Z, while a rank is still stopping, needs no second fg."""
    rank = (
        "import os, signal, sys, time\nmark = sys.argv[1]\n"
        "def stop(number, frame):\n"
        "    open(mark + '.asked', 'w').close()\n"
        "    while not os.path.exists(mark + '.stop'): time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "signal.signal(signal.SIGTSTP, stop)\n"
        "open(mark, 'x').close()\nwhile not open(mark).read(): time.sleep(0.05)"
    )
    code = (
        "import sys\nfrom pretrain.distributed import launcher\n"
        f"launcher._command = lambda words: [sys.executable, '-c', {rank!r}, *words]\n"
        "sys.exit(launcher.launch(1, sys.argv[1:]))"
    )
    mark = tmp_path / "mark"
    job = subprocess.Popen([sys.executable, "-c", code, str(mark)], process_group=0)
    while not mark.exists():
        assert job.poll() is None
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGTSTP)
    while not Path(f"{mark}.asked").exists():
        time.sleep(0.05)
    for _ in range(1, times):
        os.killpg(job.pid, signal.SIGTSTP)
    Path(f"{mark}.stop").touch()
    assert os.WIFSTOPPED(os.waitpid(job.pid, os.WUNTRACED)[1])
    [child] = (Path("/proc") / str(job.pid) / "task" / str(job.pid) / "children").read_text().split()
    stat, deadline = Path("/proc") / child / "stat", time.monotonic() + 300
    while (stopped := stat.read_text().rpartition(")")[2].split()[0] == "T") is False and time.monotonic() < deadline:
        time.sleep(0.05)
    mark.write_text("go on")
    os.killpg(job.pid, signal.SIGCONT)
    assert stopped
    ended = os.waitpid(job.pid, os.WUNTRACED)[1]
    job.returncode = ended  # it is waited for
    if os.WIFSTOPPED(ended):
        os.killpg(job.pid, signal.SIGKILL)
    assert ended == 0


def test_ctrl_c_is_passed_on_once_and_the_second_ends_all(tmp_path, monkeypatch):
    """The launcher and two ranks as one foreground job: the terminal's Ctrl-C goes to the launcher's group alone.

    In the last two cases the ranks run C code that never returns to Python, so none handles the signal.
    """
    rank = (
        "import itertools, os, signal, sys, time\n"
        "caught = []\n"
        "signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))\n"
        "open(sys.argv[1] + os.environ['RANK'], 'x').close()\n"
        "if os.path.exists(sys.argv[2]): sum(itertools.repeat(0))\n"
        "while not caught: time.sleep(0.05)\n"
        "sys.exit(75)\n"
    )
    handled = tmp_path / "handled"
    code = (
        "import sys\nfrom pretrain.distributed import launcher\n"
        f"launcher._command = lambda words: [sys.executable, '-c', {rank!r}, *words]\n"
        "send = launcher._send\n"
        f"launcher._send = lambda ranks, number: (send(ranks, number), open({str(handled)!r}, 'w').close())\n"
        "sys.exit(launcher.launch(2, sys.argv[1:]))"
    )

    def later():
        """More than a second after the launcher has handled the first one."""
        while not handled.exists():
            assert job.poll() is None
            time.sleep(0.05)
        time.sleep(ONE_REQUEST_SECONDS + 0.2)

    for name, status in (("once", 75), ("delivered twice", None), ("twice", 130)):
        handled.unlink(missing_ok=True)
        stay = tmp_path / "stay"
        if name != "once":
            stay.touch()
        words = [sys.executable, "-c", code, str(tmp_path / name), str(stay)]
        job = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
        while not all((tmp_path / f"{name}{number}").exists() for number in range(2)):
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGINT)
        if name == "twice":
            later()
        if name != "once":
            os.killpg(job.pid, signal.SIGINT)
        if status is None:
            later()
            with pytest.raises(subprocess.TimeoutExpired):
                job.wait(timeout=0.5)
            os.killpg(job.pid, signal.SIGINT)
        assert job.wait(timeout=300) == (status or 130)
