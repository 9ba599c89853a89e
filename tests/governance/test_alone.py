"""What one worker makes for all: the others wait for it, hear when it fails, and take over when it is gone."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from governance import leader as alone
from governance.config import Section
from governance.errors import BudgetReached, ConfigError, PipelineError, StorageError
from governance.files import write_bytes, write_json
from governance.leader import make_alone
from governance.manifest import describe
from governance.parallel import once
from governance.stage import Made, Recipe, Runtime, run_stage

LIMIT = 30  # seconds in which a wait that should end must


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(alone, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(alone, "BEAT_SECONDS", 0.05)


def finder(path: Path):
    return lambda: path.read_bytes() if path.exists() else None


def maker(path: Path, data: bytes):
    def make() -> bytes:
        write_bytes(path, data)
        return data

    return make


def until(condition) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def refuse() -> bytes:
    raise ConfigError("tokenizer: vocabulary_size = 7: too small. Raise it.")


def test_those_who_wait_hear_why_the_first_worker_failed(tmp_path):
    sign, path = tmp_path / "records" / "key", tmp_path / "made"
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(make_alone, sign, (i, 3), finder(path), maker(path, b"not mine")) for i in (1, 2)]
        time.sleep(0.2)
        with pytest.raises(ConfigError):
            make_alone(sign, (0, 3), finder(path), refuse)
        for other in others:
            with pytest.raises(PipelineError, match=r"worker 0 .*vocabulary_size = 7: too small(.|\n)*again"):
                other.result(LIMIT)
    assert not path.exists()


@pytest.mark.parametrize("error", [BudgetReached("no more"), StorageError("full"), ValueError("a defect")])
def test_those_who_wait_end_with_the_exit_code_of_the_first(tmp_path, error):
    def end() -> bytes:
        raise error

    with ThreadPoolExecutor() as pool:
        other = pool.submit(make_alone, tmp_path / "key", (1, 2), finder(tmp_path / "made"), refuse)
        time.sleep(0.2)
        with pytest.raises(type(error)):
            make_alone(tmp_path / "key", (0, 2), finder(tmp_path / "made"), end)
        with pytest.raises(PipelineError, match=str(error)) as told:
            other.result(LIMIT)
    assert told.value.exit_code == getattr(error, "exit_code", 1)


def test_a_stage_and_a_step_for_all_end_so_too(tmp_path):
    def stage(number: int):
        def make(folder: Path) -> Made:
            raise ValueError("a defect")

        return run_stage(Recipe("alone", 1, Section()), [], Runtime(tmp_path, worker=(number, 2)), make, alone=True)

    def step(number: int):
        def make(path: Path) -> None:
            raise ValueError("a defect")

        return once(Runtime(tmp_path, worker=(number, 2)), tmp_path / "passes" / "records" / "key.total", make)

    for work in (stage, step):
        with ThreadPoolExecutor() as pool:
            other = pool.submit(work, 1)
            time.sleep(0.2)
            with pytest.raises(ValueError, match="a defect"):
                work(0)
            with pytest.raises(PipelineError, match="ValueError: a defect"):
                other.result(LIMIT)


def test_a_note_of_an_earlier_run_stops_nobody(tmp_path):
    sign, path = tmp_path / "key", tmp_path / "made"
    with pytest.raises(ConfigError):
        make_alone(sign, (0, 2), finder(path), refuse)
    [note] = tmp_path.glob("*.failed")
    with ThreadPoolExecutor() as pool:
        other = pool.submit(make_alone, sign, (1, 2), finder(path), maker(path, b"not mine"))
        time.sleep(0.2)
        assert not other.done()
        make_alone(sign, (0, 2), finder(path), maker(path, b"made"))
        assert other.result(LIMIT) == b"made"
    assert not note.exists()
    assert list(tmp_path.glob("*.alive")) == []


def test_signs_of_life_keep_the_others_waiting_however_long_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(alone, "PATIENCE_SECONDS", 2.0)
    sign, path = tmp_path / "key", tmp_path / "made"
    go = threading.Event()

    def slow() -> bytes:
        assert go.wait(LIMIT)
        return maker(path, b"made")()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(make_alone, sign, (0, 2), finder(path), slow)
        other = pool.submit(make_alone, sign, (1, 2), finder(path), maker(path, b"not mine"))
        time.sleep(2 * alone.PATIENCE_SECONDS)
        waits = not other.done()
        go.set()
        assert waits
        assert (first.result(LIMIT), other.result(LIMIT)) == (b"made", b"made")


def test_a_clock_that_is_wrong_is_no_sign_of_death(tmp_path, monkeypatch):
    """The times of files are compared with each other, never with this node's clock."""
    monkeypatch.setattr(alone, "PATIENCE_SECONDS", 1.0)
    path, ticks, ended = tmp_path / "made", iter(range(1, 10**6)), threading.Event()
    (tmp_path / "key.alive").touch()

    def years_ago() -> None:
        while not ended.wait(0.05):
            os.utime(tmp_path / "key.alive", (next(ticks), 1))
            os.utime(tmp_path / "key.alive", (1, next(ticks)))

    with ThreadPoolExecutor() as pool:
        beats = pool.submit(years_ago)
        other = pool.submit(make_alone, tmp_path / "key", (1, 2), finder(path), maker(path, b"not mine"))
        time.sleep(2.5)
        waits = not other.done()
        write_bytes(path, b"made")
        ended.set()
        assert waits
        assert other.result(LIMIT) == b"made"
        beats.result(LIMIT)


def _until_killed(root: Path) -> None:
    make_alone(root / "key", (0, 3), finder(root / "made"), lambda: time.sleep(10 * LIMIT) or b"")


def test_one_worker_takes_over_from_one_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(alone, "PATIENCE_SECONDS", 1.0)
    path, made_by = tmp_path / "made", []

    def taking_over(number: int):
        def make() -> bytes:
            made_by.append(number)
            time.sleep(3 * alone.PATIENCE_SECONDS)  # longer than the third worker would wait without a sign of life
            return maker(path, b"made")()

        return make

    first = multiprocessing.get_context("fork").Process(target=_until_killed, args=(tmp_path,))
    first.start()
    until((tmp_path / "key.alive").exists)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(make_alone, tmp_path / "key", (i, 3), finder(path), taking_over(i)) for i in (1, 2)]
        assert [other.result(LIMIT) for other in others] == [b"made", b"made"]
    assert made_by == [1]


def test_an_array_without_its_first_worker_makes_a_whole_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(alone, "PATIENCE_SECONDS", 0.1)

    def stage(root: Path, worker: tuple[int, int]):
        def make(folder: Path) -> Made:
            write_bytes(folder / "one.txt", b"one")
            return Made([describe(folder / "one.txt", root)], {})

        return run_stage(Recipe("alone", 1, Section()), [], Runtime(root, worker=worker), make, alone=True)

    lonely = stage(tmp_path / "array", (1, 2))  # worker 0 never comes
    assert lonely.digest == stage(tmp_path / "one", (0, 1)).digest
    assert list((tmp_path / "one" / "alone" / "records").glob("*")) == []


def test_a_torn_or_vanished_note_is_no_message(tmp_path):
    write_json(tmp_path / "key.failed", {})
    path = tmp_path / "made"
    with ThreadPoolExecutor() as pool:
        other = pool.submit(make_alone, tmp_path / "key", (1, 2), finder(path), maker(path, b"not mine"))
        time.sleep(0.1)
        (tmp_path / "key.failed").unlink()
        (tmp_path / "key.failed").write_text("{")
        time.sleep(0.1)
        write_bytes(path, b"made")
        assert other.result(LIMIT) == b"made"
