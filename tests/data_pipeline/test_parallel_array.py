"""Workers of an array: each makes its shards and waits for the others; a lost one delays and blocks nothing."""

import functools
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from governance import leader as alone_module
from governance import parallel
from governance.config import Section
from governance.files import write_bytes
from governance.manifest import Manifest, describe, verify
from governance.parallel import Shard, ShardMade, map_shards, once, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage


class Nothing(Section):
    """The stage under test has no settings."""


def twice(section, payload, path_of) -> ShardMade:
    write_bytes(path_of("texts"), payload.encode() * 2)
    return ShardMade({"texts": path_of("texts")}, {"bytes": 2 * len(payload)})


def count_of(paths: list[Path], target: Path) -> None:
    """The global step: it says in a file who made it, and how often."""
    with open(target.parent / f"made-by-{os.getpid()}", "ab") as log:
        log.write(b"x")
    write_bytes(target, str(sum(path.stat().st_size for path in paths)).encode())


def again(section, payload, path_of) -> ShardMade:
    path, total = payload
    write_bytes(path_of("totals"), path.read_bytes() + total.read_bytes())
    return ShardMade({"totals": path_of("totals")}, {"second": 1})


def two_passes(runtime: Runtime, count: int = 13) -> Manifest:
    """A stage like dedup: shards, then one step over all of them, then shards that use what it found."""
    recipe = Recipe("passes", 1, Nothing())

    def make(folder: Path) -> Made:
        first = [Shard(f"{i:03d}", (str(i),), f"text {i}") for i in range(count)]
        done = map_shards(recipe, twice, first, folder, runtime, ".txt")
        paths = [runtime.root / shard.outputs["texts"].path for shard in done]
        total = once(runtime, folder.parent / "records" / f"{folder.name}.total", functools.partial(count_of, paths))
        second = [Shard(f"{i:03d}", (str(i), total.read_text()), (path, total)) for i, path in enumerate(paths)]
        more = map_shards(recipe, again, second, folder, runtime, ".txt")
        outputs = [output for shard in (*done, *more) for output in shard.outputs.values()]
        return Made(outputs, sum_stats([shard.stats for shard in (*done, *more)]))

    return run_stage(recipe, [], runtime, make)


def _run(root: Path, worker: tuple[int, int]) -> None:
    two_passes(Runtime(root, worker=worker))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(parallel, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(alone_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(parallel, "PATIENCE_SECONDS", 30)


def _array(root: Path, workers: list[tuple[int, int]]) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_run, args=(root, worker)) for worker in workers]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(workers)


def test_an_array_makes_what_one_process_makes_and_shares_the_work(tmp_path, quick):
    alone = two_passes(Runtime(tmp_path / "alone"))
    for size in (2, 3, 5):
        root = tmp_path / f"array{size}"
        _array(root, [(i, size) for i in range(size)])
        found = two_passes(Runtime(root, make=False))
        assert found.digest == alone.digest
        assert verify(found, root) == []
        assert len(list((root / "passes" / "records").glob("made-by-*"))) == 1  # the global step ran once


def test_a_worker_that_died_delays_and_blocks_nothing(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(parallel, "PATIENCE_SECONDS", 0.2)
    alone = two_passes(Runtime(tmp_path / "alone"))
    found = two_passes(Runtime(tmp_path / "lost", worker=(0, 3)))  # workers 1 and 2 never come
    assert found.digest == alone.digest


def test_a_file_made_once_that_was_altered_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(alone_module, "POLL_SECONDS", 0.01)
    path = tmp_path / "records" / "key.total"
    one = functools.partial(write_bytes, data=b"one")
    for _ in range(2):
        assert once(Runtime(tmp_path), path, one).read_bytes() == b"one"
        path.write_bytes(b"two")
    with ThreadPoolExecutor() as pool:
        other = pool.submit(once, Runtime(tmp_path, worker=(1, 2)), path, one)  # waits for worker 0
        once(Runtime(tmp_path, worker=(0, 2)), path, one)
        assert other.result(20).read_bytes() == b"one"


def test_an_older_manifest_without_its_files_is_not_taken_for_made(tmp_path, monkeypatch):
    monkeypatch.setattr(alone_module, "POLL_SECONDS", 0.01)

    def stage(worker: tuple[int, int]) -> bytes:
        def make(folder: Path) -> Made:
            write_bytes(folder / "one.txt", b"one")
            return Made([describe(folder / "one.txt", tmp_path)], {})

        made = run_stage(Recipe("alone", 1, Nothing()), [], Runtime(tmp_path, worker=worker), make, alone=True)
        return (tmp_path / made.outputs[0].path).read_bytes()

    stage((0, 2))
    next(tmp_path.glob("alone/*/one.txt")).unlink()
    with ThreadPoolExecutor() as pool:
        other = pool.submit(stage, (1, 2))
        time.sleep(0.1)
        stage((0, 2))
        assert other.result(20) == b"one"


def test_a_stage_made_alone_is_made_by_the_first_worker_only(tmp_path, monkeypatch):
    recipe = Recipe("alone", 1, Nothing())
    made_by: list[int] = []

    def stage(worker: tuple[int, int]) -> Manifest:
        def make(folder: Path) -> Made:
            made_by.append(worker[0])
            write_bytes(folder / "one.txt", b"one")
            return Made([describe(folder / "one.txt", tmp_path)], {})

        return run_stage(recipe, [], Runtime(tmp_path, worker=worker), make, alone=True)

    first = stage((0, 2))
    assert stage((1, 2)).digest == first.digest
    assert made_by == [0]


def dawdle(section, payload, path_of) -> ShardMade:
    write_bytes(path_of("pids"), str(os.getpid()).encode())
    time.sleep(60)
    return ShardMade({"pids": path_of("pids")}, {})


def _dawdle(root: Path) -> None:
    shards = [Shard(f"{i}", (str(i),), None) for i in range(2)]
    map_shards(Recipe("slow", 1, Nothing()), dawdle, shards, root / "slow" / "a", Runtime(root, workers=2), ".txt")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(tmp_path, number):
    parent = multiprocessing.get_context("spawn").Process(target=_dawdle, args=(tmp_path,))
    parent.start()
    until = time.monotonic() + 60
    while len(found := list(tmp_path.glob("slow/a/pids/*.txt"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    workers = [int(path.read_text()) for path in found]
    assert len(set(workers) - {parent.pid}) == 2
    os.kill(parent.pid, number)
    parent.join()
    until = time.monotonic() + 10
    while (left := [pid for pid in workers if _runs(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def _runs(pid: int) -> bool:
    """Whether a process is there and is more than an entry that nobody has waited for."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
