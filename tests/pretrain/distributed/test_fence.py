"""The folder of a run has one holder: attempts of one host, of several, and of a Slurm job started twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.errors import Occupied
from governance.files import read_lines
from pretrain.config.training import TrackingConfig
from pretrain.distributed import lease as fence
from pretrain.distributed.lease import LeaseHolder, RunLease, hold_folder, newest_holder
from pretrain.metrics.metrics_log import open_record

HERE = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {
        "BEAT_SECONDS": 0.1,
        "TRUST_SECONDS": 0.2,
        "SILENT_SECONDS": 0.6,
        "_POLL_SECONDS": 0.02,
    }.items():
        monkeypatch.setattr(fence, name, seconds)


def leave_behind(folder: Path, holder: LeaseHolder) -> Path:
    """The file of an attempt that is not of this process."""
    path = folder / "holders" / f"{holder.number:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(holder)))
    return path


ELSEWHERE = LeaseHolder("node-7", 41, "2030-01-01T00:00:00Z", "main/12", 0, 3)


def test_one_attempt_after_the_other_counts_up(tmp_path):
    for number in (1, 2, 3):
        with hold_folder(tmp_path, ("", 0, 0), first=True) as held:
            assert held.number == number
            held.check(look=True)
        assert newest_holder(tmp_path / "holders").ended
    assert [path.name for path in (tmp_path / "holders").iterdir()] == ["000003.json"]


@pytest.mark.parametrize("ahead", [0, 3600])
def test_a_silent_holder_of_another_host_is_dead_and_may_not_come_back(tmp_path, ahead):
    """The holder's clock may have been ahead where clients of the file system stamp the times."""
    path = leave_behind(tmp_path, ELSEWHERE)
    os.utime(path, (time.time() + ahead, time.time() + ahead))
    older = RunLease(tmp_path, ELSEWHERE)
    older.look()
    began = time.monotonic()
    with hold_folder(tmp_path, ("main/13", 0, 0), first=True) as held:
        assert held.number == 4
        assert time.monotonic() - began > 0.5
        with pytest.raises(Occupied, match=r"newer attempt trains here: attempt 4, process \d+ on .* job main/13"):
            older.look()


def test_one_rank_of_a_node_looks_for_all_while_it_lives(tmp_path, monkeypatch):
    """The others trust its sighting where it is fresh and of their own attempt, and look themselves otherwise."""
    now = [1000.0]
    monkeypatch.setattr(fence, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(fence, "SHARED_MEMORY", tmp_path)
    leave_behind(tmp_path / "run", ELSEWHERE)
    looks = []
    monkeypatch.setattr(fence, "newest_holder", lambda folder: looks.append(1) or newest_holder(folder))
    first = RunLease(tmp_path / "run", ELSEWHERE)
    other = RunLease(tmp_path / "run", replace(ELSEWHERE, pid=42), leads=False)
    for _ in range(3):
        now[0] += fence.BEAT_SECONDS
        first._beat()
        other._beat()
        other.check()
    assert len(looks) == 3
    assert other._looked == first._looked
    now[0] += 1.5 * fence.BEAT_SECONDS  # the first one is suspended, or gone
    other._beat()
    assert len(looks) == 4
    first._beat()
    now[0] += fence.BEAT_SECONDS
    stranger = RunLease(tmp_path / "run", replace(ELSEWHERE, number=4), leads=False)
    stranger._looked -= 1.0
    stranger._beat()  # the sighting is of another attempt
    assert len(looks) == 6
    [left] = tmp_path.glob("assay-*")
    left.rename(tmp_path / "elsewhere")
    left.symlink_to(tmp_path / "elsewhere")
    assert fence.LeaseSighting(tmp_path / "run").read(3) is None  # a planted link is not trusted


def test_looks_of_many_nodes_are_rare_and_nothing_is_written_on_an_old_one(tmp_path, monkeypatch):
    """4,096 nodes together look ten times a second at most; a save looks once on each node."""
    monkeypatch.setattr(fence, "BEAT_SECONDS", 4.0)
    now, looks = [1000.0], []
    monkeypatch.setattr(fence, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(fence, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(fence, "newest_holder", lambda folder: looks.append(1) or newest_holder(folder))
    leave_behind(tmp_path / "run", ELSEWHERE)
    assert all(1 / 4.0 + (nodes - 1) / fence.look_seconds(nodes) <= 10 for nodes in (1, 32, 33, 512, 4096))
    leading, other = (
        RunLease(tmp_path / "run", replace(ELSEWHERE, number=0), leads=leads, nodes=4096) for leads in (True, False)
    )
    leading._ours = other._ours = ELSEWHERE  # as after `follow`, whose thread would beat, too
    leading._beat()
    for _ in range(500):
        now[0] += 1.0
        other._beat()
    assert len(looks) == 1
    for one in (other, leading, other):  # the parts of a save
        one.check()
    assert len(looks) == 2
    leave_behind(tmp_path / "run", replace(ELSEWHERE, restart=1, number=4))
    now[0] += fence.TRUST_SECONDS
    with pytest.raises(Occupied, match="attempt 4"):
        other.check()


def test_a_living_holder_of_another_host_keeps_another_job_out(tmp_path, monkeypatch):
    monkeypatch.setattr(fence, "SILENT_SECONDS", 60.0)
    path = leave_behind(tmp_path, ELSEWHERE)
    over = threading.Event()

    def beat():
        while not over.wait(0.1):
            path.touch()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with (
            pytest.raises(Occupied, match=r"process 41 on node-7 \(another host.*since 2030.*Slurm job main/12"),
            hold_folder(tmp_path, ("main/13", 0, 0), first=True),
        ):
            pass
        with (  # the same start of the job again: the scheduler forgot that it had started it
            pytest.raises(Occupied, match="process 41 on node-7"),
            hold_folder(tmp_path, ("main/12", 0, 0), first=True),
        ):
            pass
    finally:
        over.set()
        thread.join()
    assert newest_holder(tmp_path / "holders") == ELSEWHERE


def test_a_later_start_of_the_job_takes_over_from_a_living_one(tmp_path):
    path = leave_behind(tmp_path, ELSEWHERE)
    path.touch()
    older = RunLease(tmp_path, ELSEWHERE)
    began = time.monotonic()
    with hold_folder(tmp_path, ("main/12", 1, 0), first=True) as held:
        assert time.monotonic() - began >= fence.TRUST_SECONDS + fence.BEAT_SECONDS
        assert held.number == 4
        with pytest.raises(Occupied, match="restart 1"):
            older.check()  # it trusted its last look for less time than the newer one waited


@pytest.mark.parametrize("ended", [True, False])
def test_an_earlier_start_never_follows_a_later_one(tmp_path, ended):
    leave_behind(tmp_path, replace(ELSEWHERE, restart=2, ended=ended))
    with (
        pytest.raises(Occupied, match="a later start of this job"),
        hold_folder(tmp_path, ("main/12", 1, 0), first=True),
    ):
        pass


def test_a_lock_that_outlives_its_dead_node_counts_no_more(tmp_path):
    """The server of a network file system may still wait for the node, and keep its lock."""
    hold = (
        "import sys, time; from pathlib import Path; from governance.files import held\n"
        f"with held(Path({str(tmp_path / 'run.lock')!r}), 'a note'): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(HERE)}
    )
    try:
        assert holder.stdout.readline() == "held\n"
        leave_behind(tmp_path, ELSEWHERE)
        with hold_folder(tmp_path, ("main/12", 1, 0), first=True) as held:
            held.look()
        leave_behind(tmp_path, replace(ELSEWHERE, number=9))
        with hold_folder(tmp_path, ("main/20", 0, 0), first=True) as held:
            assert held.number == 10
    finally:
        holder.kill()
        holder.wait()


def test_an_older_attempt_records_nothing_more(tmp_path, monkeypatch):
    from pretrain.metrics.run_identity import METRICS_FILE

    older = RunLease(tmp_path, ELSEWHERE)
    leave_behind(tmp_path, ELSEWHERE)
    about, off = None, TrackingConfig(mode="disabled")
    with open_record(tmp_path, off, about, older.check, writes=True) as (record, _):
        record("step", 1)
        leave_behind(tmp_path, replace(ELSEWHERE, restart=1, number=4))
        time.sleep(fence.TRUST_SECONDS)
        with pytest.raises(Occupied):
            record("step", 2)
    assert [line["step"] for line in read_lines(tmp_path / METRICS_FILE)] == [1]


def test_an_older_attempt_commits_no_checkpoint_whenever_the_newer_one_begins(
    tmp_path, run_training, finished, monkeypatch
):
    """Whichever look of a save sees it first: nothing of that save remains afterwards, and the run continues."""
    from pretrain.checkpoint import save as saving

    monkeypatch.setattr(fence, "BEAT_SECONDS", 600.0)  # otherwise the look of a beat comes first, and ends this process
    looks = []
    plain = saving.write_checkpoint

    def counted(store, state, *others):
        return plain(replace(store, check_lease=lambda: looks.append(state.step)), state, *others)

    saving.write_checkpoint = counted
    try:
        run_training(tmp_path / "counted")
    finally:
        saving.write_checkpoint = plain
    each = looks.count(4)
    assert each >= 3

    for number in range(each):
        root, asked = tmp_path / str(number), []

        def fenced(store, state, *others, root=root, number=number, asked=asked):
            [folder] = (root / "train").glob("*")

            def look():
                asked.append(1)
                if len(asked) == number + 1:
                    leave_behind(folder, replace(ELSEWHERE, number=77))
                store.check_lease()

            return plain(replace(store, check_lease=look), state, *others)

        saving.write_checkpoint = fenced
        try:
            with pytest.raises(Occupied, match="attempt 77"):
                run_training(root)
        finally:
            saving.write_checkpoint = plain
        assert not list((root / "checkpoint").glob("*/manifest.json"))
        assert run_training(root).digest == finished[1].digest


def test_a_rank_that_waits_in_vain_is_ended_by_its_own_look(tmp_path):
    code = f"""
import time; from pathlib import Path
from pretrain.distributed import lease as fence
fence.BEAT_SECONDS = 0.1
folder = Path({str(tmp_path)!r})
rank_1 = fence.RunLease(folder, fence.LeaseHolder("node-8", 5, "x", "main/12", 0))
rank_1.follow(3)
print("waits", flush=True)
time.sleep(600)
"""
    leave_behind(tmp_path, ELSEWHERE)
    rank = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(HERE)}
    )
    try:
        assert rank.stdout.readline() == "waits\n"
        time.sleep(0.5)
        assert rank.poll() is None
        leave_behind(tmp_path, replace(ELSEWHERE, restart=1, number=4))
        assert rank.wait(120) == Occupied.exit_code
    finally:
        rank.kill()


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["main/1", "main/2", ""]), st.integers(0, 2), st.integers(0, 2)),
        min_size=1,
        max_size=8,
    )
)
def test_starts_in_any_order_never_let_an_earlier_one_of_a_job_follow_a_later_one(tmp_path_factory, starts):
    """Each start ends before the next; the numbers state which were let in, in order."""
    folder, let_in = tmp_path_factory.mktemp("run"), []
    for start in starts:
        try:
            with hold_folder(folder, start, first=True) as held:
                let_in.append(start)
                assert held.number == len(let_in)
        except Occupied:
            assert let_in[-1][0] == start[0] != ""
            assert let_in[-1] > start


def test_of_many_that_start_at_once_one_is_the_holder(tmp_path):
    """The lock does not work here, as on a file system that keeps no locks between nodes."""
    code = """
import contextlib, socket, sys, time; from pathlib import Path
from pretrain.distributed import lease as fence
from governance.errors import Occupied
@contextlib.contextmanager
def no_lock(path, note):
    yield None
fence.held = no_lock
fence.BEAT_SECONDS, fence.SILENT_SECONDS, fence.TRUST_SECONDS = 0.2, 60.0, 0.3
socket.gethostname = lambda: "node-" + sys.argv[2]
try:
    with fence.hold_folder(Path(sys.argv[1]), ("", 0, 0), first=True) as held:
        print(held.number, flush=True)
        while len(list(Path(sys.argv[1]).glob("refused-*"))) < 3:
            time.sleep(0.05)
        held.look()
except Occupied:
    Path(sys.argv[1], "refused-" + sys.argv[2]).touch()
    print("occupied", flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(number)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for number in range(4)
    ]
    output = sorted(process.communicate(timeout=300)[0].strip() for process in started)
    assert output == ["1", "occupied", "occupied", "occupied"]


def test_the_next_start_removes_what_killed_runs_left_in_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(fence, "SHARED_MEMORY", tmp_path)
    killed, alive = (fence.LeaseSighting(tmp_path / name) for name in ("killed", "alive"))
    foreign = tmp_path / "assay-of-somebody-else"
    foreign.touch()
    for one in (killed, alive):
        one.write(1, 0.0)
    yesterday = time.time() - 86_401
    for path in (killed._path, foreign):
        os.utime(path, (yesterday, yesterday))
    with hold_folder(tmp_path / "run", ("", 0, 0), first=True):
        assert alive._path.exists()
        assert foreign.exists()
        assert not killed._path.exists()
