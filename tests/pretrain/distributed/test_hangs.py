"""A rank that hangs: the named culprit, the written files, and that the run continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from pretrain import loop
from pretrain.config.training import CallbackConfig, EngineConfig
from pretrain.distributed import launcher
from pretrain.distributed.watchdog import HangReports, Heartbeat, culprit, watch_hangs
from pretrain.metrics.wandb_reader import read_offline
from tests.pretrain.planted_faults import launch_two
from tests.pretrain.rank_runs import run_ranks


def test_a_heart_has_a_long_limit_first_and_then_a_short_one(tmp_path):
    with watch_hangs(
        HangReports(tmp_path), EngineConfig(first_step_timeout_seconds=900, step_timeout_seconds=5)
    ) as heart:
        assert heart.last()[2] == 900
        heart.stepped(1, 200.0)  # it compiled
        assert heart.last()[1:] == ("step 1 was done", 5)
        heart.stepped(2, 1.0)
        assert heart.last()[2] == 20
        heart.beat("save", long=True)
        assert heart.last()[2] == 900
        heart.paused(1000.0)
        heart.stepped(3, 1002.0)  # a step of two seconds
        assert heart.last()[2] == 40
    with watch_hangs(
        HangReports(tmp_path), EngineConfig(first_step_timeout_seconds=0, step_timeout_seconds=0)
    ) as heart:
        heart.stepped(1, 1.0)
        assert heart.last()[2] == 0


def test_the_limits_leave_room_for_callbacks(tmp_path, run_training, monkeypatch):
    """The other ranks wait for the first one's, which may take longer than a step."""
    limits = []

    def watched(*given, plain=loop.watch_hangs):
        limits.append(given[-1])
        return plain(*given)

    monkeypatch.setattr(loop, "watch_hangs", watched)
    (tmp_path / "slow_hook.py").write_text("def see(values):\n    pass\n")
    hook = CallbackConfig(function="slow_hook:see", events=("step", "evaluation", "checkpoint"), seconds=100)
    run_training(tmp_path, folder=tmp_path, callbacks=(hook,), steps=1, warmup_steps=0, decay_steps=0)
    assert limits == [100 * (1 + 1 + 2)]  # a save may end while the next one begins
    config = EngineConfig(first_step_timeout_seconds=900, step_timeout_seconds=5)
    with watch_hangs(HangReports(tmp_path), config, callback_seconds=400) as heart:
        assert heart.last()[2] == 1300
        heart.stepped(1, 1.0)
        assert heart.last()[2] == 405
    with watch_hangs(
        HangReports(tmp_path), EngineConfig(first_step_timeout_seconds=0, step_timeout_seconds=0), callback_seconds=9
    ) as heart:
        heart.stepped(1, 1.0)
        assert heart.last()[2] == 0


def test_the_first_validation_of_each_attempt_may_compile(tmp_path, run_training, kill_at, monkeypatch):
    beats = []

    def noted(self, what, *, long=False, plain=Heartbeat.beat):
        beats.append((what, long))
        plain(self, what, long=long)

    monkeypatch.setattr(Heartbeat, "beat", noted)
    kill_at(6, tmp_path)
    first = [long for what, long in beats if what == "validation of step 4"]
    beats.clear()
    run_training(tmp_path)
    second, third = ([long for what, long in beats if what == f"validation of step {step}"] for step in (8, 10))
    assert len(first) == len(second) > 1
    assert set(first) == set(second) == {True}
    assert set(third) == {False}


def test_a_hang_that_keeps_the_interpreter_to_itself_is_ended_too(tmp_path):
    """Not even the watching thread runs then; only the interpreter's timer in C does."""
    code = f"""
import ctypes, time
from pathlib import Path
from pretrain.distributed import watchdog
from pretrain.config.training import EngineConfig
watchdog._STUCK_SECONDS = 1.0
with watchdog.watch_hangs(watchdog.HangReports(Path({str(tmp_path)!r})), EngineConfig(first_step_timeout_seconds=3)):
    time.sleep(1.5)
    ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the lock
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "File" in done.stderr


def test_a_pause_beyond_every_limit_is_no_hang(tmp_path):
    """Ctrl-Z, and `fg` later than the limit and the timer in C allow; also where the main thread is inside C code."""
    insides = {"python": "time.sleep(0.05)", "c": "ctypes.CDLL(None).usleep(50_000)"}
    jobs = {name: start_watched(tmp_path / name, inside) for name, inside in insides.items()}
    for name, job in jobs.items():
        while not (tmp_path / name / "begun").exists():
            assert job.poll() is None
            time.sleep(0.05)
        job.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(os.waitpid(job.pid, os.WUNTRACED)[1])
    time.sleep(6)
    for name, job in jobs.items():
        (tmp_path / name / "end").touch()
        job.send_signal(signal.SIGCONT)
        assert (job.communicate(timeout=300)[1], job.returncode) == ("", 0), name


def start_watched(folder, inside):
    """A process that its watchdog watches until the folder has a file "end"."""
    folder.mkdir()
    code = f"""
import ctypes, time
from pathlib import Path
from pretrain.distributed import watchdog
from pretrain.config.training import EngineConfig
watchdog._STUCK_SECONDS = 0.5
folder = Path({str(folder)!r})
config = EngineConfig(first_step_timeout_seconds=4, step_timeout_seconds=4)
with watchdog.watch_hangs(watchdog.HangReports(folder), config) as heart:
    while not (folder / "end").exists():
        heart.stepped(1, 0.0)
        time.sleep(1.2)  # the thread has looked, and set the timer
        (folder / "begun").touch()
        {inside}
    time.sleep(1.3)  # the thread looks again, and finds no beat since before the pause
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, process_group=0)


def test_a_pause_that_others_made_is_not_made_again(tmp_path):
    """The launcher stops a rank whose main thread holds the lock; after SIGCONT the rank goes on."""
    code = f"""
import time
from pathlib import Path
from pretrain.distributed.watchdog import HangReports, watch_hangs
from pretrain.config.training import EngineConfig
folder = Path({str(tmp_path)!r})
with watch_hangs(HangReports(folder), EngineConfig()):
    (folder / "begun").touch()
    sum(range(10**8))  # one call in C
    time.sleep(1.0)
"""
    job = subprocess.Popen([sys.executable, "-c", code], process_group=0)
    try:
        while not (tmp_path / "begun").exists():
            assert job.poll() is None
            time.sleep(0.05)
        job.send_signal(signal.SIGTSTP)
        time.sleep(0.2)
        job.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(job.pid, os.WUNTRACED)[1])
        job.send_signal(signal.SIGCONT)
        assert os.waitpid(job.pid, os.WUNTRACED)[1] == 0
    finally:
        job.kill()


@pytest.mark.slow
def test_hangs_write_the_stacks_of_every_rank_and_are_started_again(tmp_path, run_training, caplog, monkeypatch):
    """Rank 1 hangs in step 6; after the restart it is stopped in step 9, and cannot even write its stacks."""
    plant = """
watchdog._SLOWEST_STEPS = 0.0
def planted_hang():
    if rank == 1 and once("hang"):
        time.sleep(600)
at_step(6, planted_hang)
at_step(9, lambda: rank == 1 and once("stop") and os.kill(os.getpid(), signal.SIGSTOP))
"""
    monkeypatch.setattr(launcher, "_GRACE_SECONDS", 12.0)  # a stopped rank uses all of it
    assert launch_two(tmp_path, plant, restarts=2, step_timeout_seconds=8.0, mode="offline") == 0
    stuck = [line.getMessage() for line in caplog.records if "neither wrote its stacks nor ended" in line.getMessage()]
    assert [text.partition(" (pid")[0] for text in stuck] == ["rank 1"]
    run = run_training(tmp_path, make=False)
    alerts = [(alert["title"], alert["level"]) for alert in read_offline(tmp_path / run.folder / "wandb").alerts]
    assert alerts == [("A rank hangs", "ERROR")] * 2
    stacks = {path.name: path.read_text() for path in (tmp_path / run.folder / "hangs" / "000001").glob("*")}
    assert sorted(stacks) == ["rank-00000.txt", "rank-00001.txt"]
    assert "planted_hang" in stacks["rank-00001.txt"]
    assert "planted_hang" not in stacks["rank-00000.txt"]
    assert "loop.py" in stacks["rank-00000.txt"]
    assert "step 6: the gradients are there" in stacks["rank-00000.txt"]  # rank 1 never got there, and is named
    assert culprit(HangReports(tmp_path / run.folder, ranks=2)).startswith(
        "rank 1 is stuck after 'step 6: the rows are read'"
    )
    assert culprit(HangReports(tmp_path / run.folder, ranks=2, attempt=2)).startswith("rank 1 wrote no stacks")


def test_a_hang_names_the_rank_that_is_behind(tmp_path):
    place = HangReports(tmp_path, ranks=4)
    (place.file(0).parent).mkdir(parents=True)

    def write(rank, beats):
        text = f"stamp rank {rank} pid 1: no sign of life for 9 s since beat {beats}: step {beats}\n\nstacks"
        place.file(rank).write_text(text)

    for rank in range(4):
        write(rank, 7)
    assert "all 4 rank(s)" in culprit(place)
    write(2, 6)
    assert culprit(place).startswith("rank 2 is stuck after 'step 6'")
    place.file(1).unlink()
    assert culprit(place).startswith("rank 1 wrote no stacks")
    assert "rank 1, 4, 5, 6, 7, 8, 9, 10 and 501 more wrote no stacks" in culprit(replace(place, ranks=512))


def test_the_flight_recorder_is_written_where_it_is_on(tmp_path):
    """The collectives that a rank was in, as torch's own reader expects them."""
    code = f"""
import os, pickle
os.environ["TORCH_FR_BUFFER_SIZE"] = "50"
from pathlib import Path
import torch
from torch import distributed
from pretrain.distributed.watchdog import _write_flight_recorder
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
distributed.all_reduce(torch.ones(3))
[entry] = pickle.loads(_write_flight_recorder(Path({str(tmp_path / "rank-00000.fr")!r})).read_bytes())["entries"]
assert entry["profiling_name"] == "gloo:all_reduce", entry
"""
    well, output = run_ranks(tmp_path, ["-c", code], 1)
    assert well, output
