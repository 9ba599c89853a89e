"""Workers of an array: any number of them, killed, missing or failing, gives the result of one process."""

import functools
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from governance import parallel, workers
from governance.config import Section
from governance.errors import BudgetReached, ConfigError
from governance.files import held, is_held, write_bytes
from governance.manifest import Manifest, describe, verify
from governance.parallel import Shard, ShardMade, close_pool, map_shards, once, sum_stats
from governance.stage import Made, Recipe, Runtime, ShareDone, run_stage
from governance.workers import take_turns

LIMIT = 300  # time limit of a wait in seconds


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(workers, "_POLL_SECONDS", 0.01)


def twice(section, payload, path_of) -> ShardMade:
    write_bytes(path_of("texts"), payload.encode() * 2)
    return ShardMade({"texts": path_of("texts")}, {"bytes": 2 * len(payload)})


def slow(section, payload, path_of) -> ShardMade:
    time.sleep(0.05)
    return twice(section, payload, path_of)


def count_of(paths: list[Path], pause: float, target: Path) -> None:
    """The global step: it writes a line each time that it runs."""
    with open(target.parent / f"made-by-{os.getpid()}", "ab") as log:
        log.write(b"x")
    time.sleep(pause)
    write_bytes(target, str(sum(path.stat().st_size for path in paths)).encode())


def again(section, payload, path_of) -> ShardMade:
    path, total = payload
    write_bytes(path_of("totals"), path.read_bytes() + total.read_bytes())
    return ShardMade({"totals": path_of("totals")}, {"second": 1})


def two_passes(runtime: Runtime, count: int = 13, first_pass=twice, pause: float = 0.0) -> Manifest:
    """A stage made alone, then one like dedup: shards, a step over all of them, shards that use its result."""

    def make_list(folder: Path) -> Made:
        write_bytes(folder / "one.txt", b"one")
        return Made([describe(folder / "one.txt", runtime.root)], {})

    before = run_stage(Recipe("lists", 1, Section()), [], runtime, make_list, alone=True)
    recipe = Recipe("passes", 1, Section())

    def make(folder: Path) -> Made:
        first = [Shard(f"{i:03d}", (str(i),), f"text {i}") for i in range(count)]
        done = map_shards(recipe, first_pass, first, folder, runtime, ".txt")
        paths = [runtime.root / shard.outputs["texts"].path for shard in done]
        join = functools.partial(count_of, paths, pause)
        total = once(runtime, folder.parent / "records" / f"{folder.name}.total", join)
        second = [Shard(f"{i:03d}", (str(i), total.read_text()), (path, total)) for i, path in enumerate(paths)]
        more = map_shards(recipe, again, second, folder, runtime, ".txt")
        outputs = [output for shard in (*done, *more) for output in shard.outputs.values()]
        return Made(outputs, sum_stats([shard.stats for shard in (*done, *more)]))

    return run_stage(recipe, [before.as_input()], runtime, make)


def _run(root: Path, worker: tuple[int, int], **values) -> None:
    take_turns(Runtime(root, worker=worker), functools.partial(two_passes, **values))


def _start(root: Path, worker: tuple[int, int], **values) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_run, args=(root, worker), kwargs=values)
    process.start()
    return process


def until(condition) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def joins(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "passes" / "records").glob("made-by-*"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return two_passes(Runtime(tmp_path_factory.mktemp("plain"))).digest


@pytest.mark.parametrize("size", [2, 5])
def test_an_array_makes_what_one_process_makes(tmp_path, plain, size):
    processes = [_start(tmp_path, (number, size), first_pass=slow) for number in range(size)]
    for process in processes:
        process.join(LIMIT)
    assert [process.exitcode for process in processes] == [0] * size
    found = two_passes(Runtime(tmp_path, make=False))
    assert found.digest == plain
    assert verify(found, tmp_path) == []
    assert joins(tmp_path) == 1, "the global step ran once"


def test_the_work_of_workers_that_never_start_is_made(tmp_path, plain):
    made = take_turns(Runtime(tmp_path, worker=(1, 3)), two_passes)
    assert made.digest == plain


@pytest.mark.parametrize("point", ["share", "join"])
def test_the_work_of_a_killed_worker_is_made_at_once(tmp_path, plain, point):
    victim = _start(tmp_path, (0, 2), first_pass=slow, pause=10 * LIMIT if point == "join" else 0.0)
    if point == "join":
        until(lambda: joins(tmp_path))
    else:
        until(lambda: list(tmp_path.glob("passes/*/texts/*.txt")))
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert take_turns(Runtime(tmp_path, worker=(1, 2)), two_passes).digest == plain


def test_a_worker_waits_for_the_one_that_joins(tmp_path, plain):
    first = _start(tmp_path, (0, 2), pause=1.0)
    until(lambda: joins(tmp_path))
    assert take_turns(Runtime(tmp_path, worker=(1, 2)), two_passes).digest == plain
    first.join(LIMIT)
    assert (first.exitcode, joins(tmp_path)) == (0, 1)


@pytest.mark.parametrize(
    "error", [BudgetReached("no more"), ConfigError("vocabulary_size = 7"), ValueError("a defect")]
)
def test_each_worker_ends_with_the_error_itself(tmp_path, error):
    def fail(path: Path) -> None:
        raise error

    def work(turn: Runtime) -> Path:
        return once(turn, tmp_path / "passes" / "records" / "key.total", fail)

    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(take_turns, Runtime(tmp_path, worker=(i, 3)), work) for i in range(3)]
        assert [end.exception(LIMIT) for end in ends] == [error] * 3
    assert not is_held(tmp_path / "join.lock")


def test_what_no_share_can_see_is_made_by_one_process(tmp_path):
    """A source whose server gives no version: a join reads it, and the next share cannot know that it did."""
    modes = []

    def work(turn: Runtime) -> str:
        modes.append(turn.mode)
        if turn.mode == "all":
            return "made"
        raise ShareDone("fetch", "its server tells no version" if turn.mode == "share" else "5 shards are missing")

    assert take_turns(Runtime(tmp_path, worker=(0, 2)), work) == "made"
    assert modes == ["share", "join", "share", "all"]


def test_a_join_that_another_worker_was_killed_in_is_run_again_by_a_join(tmp_path, monkeypatch):
    """A worker that waited tries its share again first, so that it does not make alone what the others could share."""
    another = held(tmp_path / "join.lock", "another")
    another.__enter__()
    modes = []

    def work(turn: Runtime) -> str:
        modes.append(turn.mode)
        if turn.mode != "share":
            return "made"
        raise ShareDone("dedup", "a join makes what is next")

    def die(*lock) -> None:
        another.__exit__(None, None, None)
        wait(*lock)

    wait = workers._wait
    monkeypatch.setattr(workers, "_wait", die)
    assert take_turns(Runtime(tmp_path, worker=(0, 2)), work) == "made"
    assert modes == ["share", "share", "join"]


def test_a_share_that_makes_something_ends_the_suspicion_that_shares_can_do_no_more(tmp_path):
    ends = iter([("share", 0), ("join", 0), ("share", 3), ("share", 0), ("join", None)])

    def work(turn: Runtime) -> str:
        mode, made = next(ends)
        assert turn.mode == mode
        if made is None:
            return "made"
        raise ShareDone("dedup", "a join comes next", made)

    assert take_turns(Runtime(tmp_path, worker=(0, 2)), work) == "made"


def test_a_lock_excludes_threads_and_processes_and_ends_with_them(tmp_path):
    lock = tmp_path / "some.lock"
    assert not is_held(lock)
    with held(lock, "the first") as holder:
        assert (holder, is_held(lock)) == (None, True)
        with held(lock, "a second one of this process") as other:
            assert other == "the first"
        assert is_held(lock), "the end of the second one's try is not the end of the first one's lock"
        context = multiprocessing.get_context("fork")
        answer = context.Queue()
        child = context.Process(target=lambda: answer.put((is_held(lock), held(lock, "a child").__enter__())))
        child.start()
        assert answer.get(timeout=LIMIT) == (True, "the first")
        child.join(LIMIT)
    assert not is_held(lock)
    release = threading.Timer(0.3, lambda: None)
    with ThreadPoolExecutor() as pool, held(lock, "for a moment"):
        waiting = pool.submit(lambda: held(lock, "patient", wait_seconds=LIMIT).__enter__())
        release.start()
        release.join()
        assert not waiting.done()
    assert waiting.result(LIMIT) is None


def held_back(section, payload, path_of) -> ShardMade:
    made = twice(section, payload, path_of)
    return ShardMade(made.files, {"held": int(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))})


def test_workers_never_get_an_interrupt_not_even_while_they_start(tmp_path):
    """A worker that imports Python has no handler yet, and would print a traceback of its own."""
    close_pool()
    try:
        assert two_passes(Runtime(tmp_path, workers=2), first_pass=held_back).stats["held"] == 13
    finally:
        close_pool()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def by_whom(section, payload, path_of) -> ShardMade:
    return ShardMade(twice(section, payload, path_of).files, {"workers": {str(os.getpid()): 1}})


@pytest.mark.parametrize(("tasks", "most"), [(1 << 50, 2), (0, 4)])
def test_workers_are_replaced_between_steps_after_many_tasks(tmp_path, monkeypatch, tasks, most):
    monkeypatch.setattr(parallel, "_MOST_TASKS", tasks)
    made = [two_passes(Runtime(tmp_path / name, workers=2), first_pass=by_whom) for name in "ab"]
    first, second = (set(manifest.stats["workers"]) for manifest in made)
    assert len(first | second) <= most
    assert tasks or first.isdisjoint(second)
    assert made[0].outputs == made[1].outputs
