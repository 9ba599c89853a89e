"""Faults planted into real training: signals at every place, a killed, a hanging and a slow rank, a second run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import Occupied, Preempted
from governance.files import read_lines
from pretrain import loop, train
from pretrain.distributed.process_group import Ranks
from pretrain.distributed.stragglers import RATIO, WINDOWS, StragglerMonitor, ratios
from pretrain.engine.engine import Engine
from tests.pretrain.planted_faults import launch_two, start_one


def me(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_a_signal_before_the_first_step_has_gradients_ends_it_at_once(tmp_path, finished, run_training, monkeypatch):
    for owner, name, plant in (
        (train, "altered_shards", lambda *_: me(signal.SIGUSR1)),  # while the data opens
        (Engine, "forward", lambda engine, batch: me()),  # where a compiler would work for minutes
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, plant)
            with pytest.raises(Preempted, match="before the first step"):
                run_training(tmp_path)
        assert not list((tmp_path / "checkpoint").glob("*"))
    assert run_training(tmp_path).digest == finished[1].digest


@pytest.mark.parametrize("last", [8, 10])
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(tmp_path, finished, run_training, monkeypatch, last):
    """Missing measurements are made after the restart, and the artifact is that of an uninterrupted run.

    The time from the signal until the step was durable is recorded.
    """
    passes, measure, began = [], loop.measure, time.monotonic()

    def measured(nats_of, *others):
        def passed(batch):
            passes.append(1)
            me()
            return nats_of(batch)

        [metrics] = (tmp_path / "train").glob("*/metrics.jsonl")
        steps = [line["step"] for line in read_lines(metrics) if line["event"] == "step"]
        return measure(passed if steps[-1] == last else nats_of, *others)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure", measured)
        with pytest.raises(Preempted, match=f"step {last}"):
            run_training(tmp_path)
    assert len(passes) == 1
    [left] = [line for line in lines_of(tmp_path) if line["event"] == "left"]
    assert left["step"] == last
    assert 0 < left["seconds"] < time.monotonic() - began
    assert run_training(tmp_path).digest == finished[1].digest
    steps = [line["step"] for line in lines_of(tmp_path) if line["event"] == "step"]
    assert steps == list(range(1, 11))  # none twice


def test_a_planned_end_is_reported_as_no_signal(tmp_path, finished, run_training, caplog):
    with pytest.raises(Preempted, match="stopped as planned after step 6"):
        run_training(tmp_path, until_step=6)
    assert "signal" not in caplog.text
    [left] = [line for line in lines_of(tmp_path) if line["event"] == "left"]
    assert (left["step"], left["seconds"]) == (6, 0.0)
    assert run_training(tmp_path).digest == finished[1].digest


@pytest.mark.parametrize(("seconds", "warned"), [(29.0, False), (31.0, True)])
def test_a_save_that_hardly_fits_is_a_warning_with_its_fix(caplog, seconds, warned):
    output = []
    context = SimpleNamespace(
        checkpoints=SimpleNamespace(gather=lambda own: [own, seconds]),  # the signal reached the other rank
        stop_requested=SimpleNamespace(seconds=lambda: 0.0),
        record=lambda *event, **values: output.append((*event, values)),
        settings=SimpleNamespace(notice_seconds=60),
    )
    loop._report_stop_seconds(context, 7)
    assert output == [("left", 7, {"seconds": seconds})]
    assert ("more than half of the 60 s" in caplog.text and "raise that limit to 124 s" in caplog.text) == warned


def lines_of(root: Path) -> list[dict]:
    [metrics] = (root / "train").glob("*/metrics.jsonl")
    return read_lines(metrics)


def test_a_second_run_finds_the_first_alive_and_leaves(tmp_path, finished, run_training):
    slow = "at_step(5, lambda: time.sleep(600))"
    first = start_one(tmp_path, slow)
    try:
        deadline = time.monotonic() + 600
        while not any(
            line["event"] == "step" for path in tmp_path.glob("train/*/metrics.jsonl") for line in read_lines(path)
        ):
            assert first.exitcode is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(
            Occupied, match=rf"process {first.pid} on {socket.gethostname()} \(this host\), since 20"
        ) as error:
            run_training(tmp_path)
        assert error.value.exit_code == 73
    finally:
        first.kill()  # leaves no lock behind
        first.join()
    assert run_training(tmp_path).digest == finished[1].digest


# Marks in the root: "in-step" and "in-evaluation" when those begin, "noted-N" when the Nth signal was handled.
NOTED = """
from pretrain.distributed import preemption
preemption.ONE_REQUEST_SECONDS = 3.0
note, noted = preemption.StopRequested.note, []
def note_and_mark(*given):
    note(*given)
    noted.append(1)
    (root / f"noted-{len(noted)}").touch()
preemption.StopRequested.note = note_and_mark
def until_noted():
    (root / "in-step").touch()
    while not noted:
        time.sleep(0.02)
"""


def until_marked(process, path):
    """Wait until another process has made this file."""
    deadline = time.monotonic() + 600
    while not path.exists():
        assert process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_saves_and_a_second_one_ends_at_once(tmp_path, finished, run_training):
    """One process: the first run stops between two steps, the second while its evaluation never ends."""
    slow = f"{NOTED}at_step(6, until_noted)"
    first = start_one(tmp_path, slow)
    until_marked(first, tmp_path / "in-step")
    os.kill(first.pid, signal.SIGINT)
    first.join(600)
    assert "which is saved; run the same command" in (tmp_path / "log").read_text()
    assert first.exitcode == 75
    stopped = max(line["step"] for line in lines_of(tmp_path) if line["event"] == "step")
    assert [line["step"] for line in lines_of(tmp_path) if line["event"] == "checkpoint"][-1] == stopped < 10

    (tmp_path / "noted-1").unlink()
    endless = f"{NOTED}loop.measure = lambda *_: (root / 'in-evaluation').touch() or time.sleep(600)"
    second = start_one(tmp_path, endless)
    until_marked(second, tmp_path / "in-evaluation")  # in which no batch ends and so no signal is noticed
    for count in (1, 2):  # the same request, delivered to the launcher and to the rank
        os.kill(second.pid, signal.SIGINT)
        until_marked(second, tmp_path / f"noted-{count}")
    time.sleep(3.2)
    assert second.exitcode is None
    os.kill(second.pid, signal.SIGINT)
    second.join(120)
    assert second.exitcode == -signal.SIGINT
    assert run_training(tmp_path).digest == finished[1].digest


def test_a_run_on_another_host_is_named(tmp_path, run_training, monkeypatch, finished):
    """The note is the holder's, wherever it runs: all nodes see the lock of a shared file system."""
    [lock] = (finished[0] / "train").glob("*/run.lock")
    there = tmp_path / lock.relative_to(finished[0])
    there.parent.mkdir(parents=True)
    note = json.dumps({"host": "node-7", "pid": 41, "since": "2030-01-01T00:00:00Z"})
    hold = (
        "import sys, time; from pathlib import Path; from governance.files import held\n"
        f"with held(Path({str(there)!r}), {note!r}): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Occupied, match=r"process 41 on node-7 \(another host.*since 2030"):
            run_training(tmp_path)
    finally:
        holder.kill()
        holder.wait()


def test_ratios_are_over_the_median_of_the_others():
    assert ratios([1.0]) == [1.0]
    assert ratios([1.0, 2.0]) == [0.5, 2.0]
    assert ratios([1.0, 1.0, 1.0, 3.0]) == [1.0, 1.0, 1.0, 3.0]


def test_a_rank_is_reported_only_when_it_is_slow_for_several_windows():
    pace = object.__new__(StragglerMonitor)
    pace._slow = {}
    windows = [[1.0, RATIO + 0.1], [1.0, 1.0], *([[1.0, RATIO + 0.1]] * WINDOWS)]
    assert [len(pace.judge(window)) for window in windows] == [0, 0, *([0] * (WINDOWS - 1)), 1]


@given(
    st.lists(st.lists(st.integers(0, 10**7), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 6),
)
def test_each_window_reports_the_own_work_of_every_rank(windows, every, resumed):
    """Microseconds over the window on the wire, seconds per step in the record; one rank alone records nothing."""
    output, now = [], [0.0]
    device = SimpleNamespace(type="cpu")

    def record(event, step, **values):
        output.append({"event": event, "step": step, **values})

    def spend(seconds):
        now[0] += seconds

    pace = StragglerMonitor(every, Ranks(1, 3, 1, 3), device, record, clock=lambda: now[0])
    ends, count = [], 0  # steps of each window
    for step in range(resumed + 1, resumed + every * (len(windows) + 1) + 1):
        with pace.working():
            spend(0.25 if step > resumed + 1 else 100.0)  # at a start the reader opens files
        own = pace.slots(step)
        assert bool(own) == (count > 0 and step % every == 0)
        if own:
            assert own == [0, int(1e6 * 0.75 * count), 0]  # only to its own place, a read and a pass for each step
            ends.append((step, count))
            count = 0
        pace.report(step, windows[len(ends) % len(windows)] if own else [])
        with pace.passing():
            spend(0.5)
        spend(1.0)  # waits for others
        count += 1
    ranks = [line for line in output if line["event"] == "ranks"]
    assert [(line["step"], line["steps"]) for line in ranks] == ends
    assert len(ranks) >= len(windows)
    for number, line in enumerate(ranks, 1):
        window = windows[number % len(windows)]
        assert line["seconds"] == pytest.approx([value / 1e6 / line["steps"] for value in window])
        least, median, greatest = sorted(line["seconds"])
        assert (line["seconds_least"], line["seconds_median"], line["seconds_greatest"]) == (least, median, greatest)
        assert line["seconds"][line["slowest"]] == greatest
    alone = StragglerMonitor(every, Ranks(), device, record)
    assert [alone.slots(step) for step in range(1, 9)] == [[]] * 8


# Rank 1 is killed in step 7, once it has read that step 4 is durable: otherwise the other waits long for its part.
KILL = """
from governance.files import read_lines
def killed():
    [metrics] = root.glob("train/*/metrics.jsonl")
    while not any(line["event"] == "checkpoint" for line in read_lines(metrics)):
        time.sleep(0.02)
    (root / "killed-at").write_text(repr(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_goes_on_from_its_checkpoint(
    tmp_path, run_training, losses_of, caplog, finished
):
    plant = f"{KILL}at_step(7, lambda: rank == 1 and once() and killed())"
    assert launch_two(tmp_path, plant, restarts=1, zero_stage=3) == 0
    [named] = [record for record in caplog.records if "was killed by SIGKILL" in record.getMessage()]
    assert named.getMessage().startswith("rank 1 ")
    assert "restarting the ranks from the checkpoint of step 4" in caplog.text
    assert named.created - float((tmp_path / "killed-at").read_text()) < 60  # the others have ended by then, too
    run = run_training(tmp_path, make=False, zero_stage=3)
    root, whole = finished
    assert losses_of(run, tmp_path) == pytest.approx(losses_of(whole, root), rel=1e-5)


# Signals to rank 1 alone: while the data opens, in step 6, and in the evaluation after step 8.
SIGNALS = """
def leave(where):
    if rank == 1 and once(where):
        os.kill(os.getpid(), signal.SIGTERM)
altered = train.altered_shards
def in_data(*given):
    leave("data")
    return altered(*given)
train.altered_shards = in_data
at_step(6, lambda: leave("step"))
measure = loop.measure
def in_evaluation(nats_of, *others):
    if (root / "planted-step").exists():
        leave("evaluation")
    return measure(nats_of, *others)
loop.measure = in_evaluation
"""


@pytest.mark.slow
def test_a_signal_to_one_rank_only_hangs_nobody(tmp_path, run_training, losses_of, finished):
    for where, step in (("data", None), ("step", 6), ("evaluation", 8)):
        assert launch_two(tmp_path, SIGNALS) == 75, where
        assert (tmp_path / f"planted-{where}").exists()
        left = [line["step"] for path in tmp_path.glob("train/*/metrics.jsonl") for line in read_lines(path)
                if line["event"] == "left"]  # fmt: skip
        assert (left[-1] if left else None) == step, where
    assert launch_two(tmp_path, SIGNALS) == 0
    run = run_training(tmp_path, make=False)
    assert losses_of(run, tmp_path) == pytest.approx(losses_of(finished[1], finished[0]), rel=1e-5)
    assert [line["step"] for line in lines_of(tmp_path) if line["event"] == "step"] == list(range(1, 11))


@pytest.mark.slow
def test_a_slow_rank_is_reported(tmp_path):
    # Rank 1 takes several times as long as it would, however much else the machine does.
    plant = """
from pretrain.engine.engine import Engine
plain = Engine.forward
def forward(*given):
    began = time.monotonic()
    output = plain(*given)
    time.sleep(rank * (0.3 + 5 * (time.monotonic() - began)))
    return output
Engine.forward = forward
"""
    assert launch_two(tmp_path, plant, straggler_window_steps=2) == 0
    lines = lines_of(tmp_path)
    output = [line for line in lines if line["event"] == "stragglers"]
    assert [line["rank"] for line in output] == [1]
    assert output[0]["ratio"] > RATIO
    assert output[0]["step"] in (2 * WINDOWS, 2 * WINDOWS + 2)  # the first window includes each rank's first pass
    ranks = {line["step"]: line for line in lines if line["event"] == "ranks"}
    assert list(ranks) == [2, 4, 6, 8, 10]
    slow = [ranks[output[0]["step"] - 2 * back] for back in range(WINDOWS)]
    assert {line["slowest"] for line in slow} == {1}
    assert all(line["seconds"][1] > RATIO * line["seconds"][0] for line in slow)
    assert output[0]["seconds"] == pytest.approx(2 * ranks[output[0]["step"]]["seconds"][1])
