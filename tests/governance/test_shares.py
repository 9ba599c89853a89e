"""Shares and joins of an array: any order of them, with failures, gives the result of one process.

A model gives the shards that each share must make: exactly its own missing ones of the next step, and nothing else.
"""

import functools
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance import parallel
from governance.config import Section
from governance.files import append_line, write_bytes
from governance.hooks import Hooks
from governance.manifest import Manifest, describe, read_manifest, verify
from governance.parallel import Shard, ShardMade, map_shards, once
from governance.stage import Made, Recipe, Runtime, ShareDone, run_stage
from tests.altered_files import flip

COUNTS = {"letters": 5, "totals": 5, "totals-2": 7, "words": 3}  # the data steps, with their numbers of shards
CALLS: list[tuple[str, int]] = []
FAIL_AFTER: list[int] = []  # of calls; empty: never


class Fault(Exception):
    """A shard function that dies."""


def shard_of(section, payload, path_of) -> ShardMade:
    step, index, text = payload
    if FAIL_AFTER and len(CALLS) >= FAIL_AFTER[0]:
        raise Fault(step)
    CALLS.append((step, index))
    write_bytes(path_of(step), f"{step} {index} {text}".encode())
    return ShardMade({step: path_of(step)}, {"bytes": len(text)})


def logged(section, payload, path_of) -> ShardMade:
    """As `shard_of`, for several processes: each call leaves a file that names its process."""
    root, work = payload
    write_bytes(root / "calls" / f"{work[0]}-{work[1]}-{os.getpid()}", b"")
    time.sleep(0.02)
    return shard_of(section, work, path_of)


def step_of(step: str, text: str, folder: Path, runtime: Runtime, function=shard_of) -> list:
    shards = []
    for index in range(COUNTS[step]):
        payload = (step, index, text)
        inputs = (step, str(index), text)
        shards.append(Shard(f"{index:03d}", inputs, payload if function is shard_of else (runtime.root, payload)))
    return map_shards(Recipe(folder.parent.name, 1, Section()), function, shards, folder, runtime, ".txt")


def alone(stage: str, before: list[Manifest], runtime: Runtime) -> Manifest:
    def make(folder: Path) -> Made:
        CALLS.append((stage, 0))
        write_bytes(folder / "one.txt", stage.encode())
        return Made([describe(folder / "one.txt", runtime.root)], {})

    return run_stage(Recipe(stage, 1, Section()), [m.as_input() for m in before], runtime, make, alone=True)


def joined(beside: Path, count: int, path: Path) -> None:
    CALLS.append(("join", 0))
    write_bytes(beside, b"beside")
    write_bytes(path, str(count).encode())


def shared(stage: str, steps: list[str], before: Manifest, runtime: Runtime, function=shard_of) -> Manifest:
    def make(folder: Path) -> Made:
        map_shards(Recipe(stage, 1, Section()), function, [], folder, runtime)  # a step without work is not a step
        text, outputs = before.digest, []
        for number, step in enumerate(steps):
            if number:
                path = folder.parent / "records" / f"{folder.name}.total"
                beside = path.with_suffix(".beside")

                join = functools.partial(joined, beside, len(outputs))
                text += once(runtime, path, join, beside=(beside,)).read_text()
            done = step_of(step, text, folder, runtime, function)
            outputs += [output for part in done for output in part.outputs.values()]
        return Made(outputs, {})

    return run_stage(Recipe(stage, 1, Section()), [before.as_input()], runtime, make)


def chain(runtime: Runtime, function=shard_of) -> list[str]:
    """Something like the pipeline: a stage made alone, a pass, two passes with a join between, alone, a pass."""
    made = [alone("lists", [], runtime)]
    made.append(shared("letters", ["letters"], made[-1], runtime, function))
    made.append(shared("totals", ["totals", "totals-2"], made[-1], runtime, function))
    made.append(alone("vocabulary", [made[-1]], runtime))
    made.append(shared("words", ["words"], made[-1], runtime, function))
    return [manifest.digest for manifest in made]


JOINS = {"": ["lists"], "letters": [], "totals": ["join"], "totals-2": ["vocabulary"], "words": []}
"""What a join makes behind each step (and before the first) beside committing."""


class Model:
    """The work done so far, and the next work of a share or a join."""

    def __init__(self) -> None:
        self.steps = list(COUNTS)
        self.joined: list[str] = []  # the steps after which a join has run, "" for the start
        self.done: dict[str, set[int]] = {step: set() for step in self.steps}

    def next_step(self) -> str | None:
        """The step at which a share works; None where a join comes next, or all is made."""
        if len(self.joined) in (0, len(self.steps) + 1):
            return None
        step = self.steps[len(self.joined) - 1]
        return step if len(self.done[step]) < COUNTS[step] else None

    def share(self, number: int, count: int) -> list[tuple[str, int]]:
        step = self.next_step()
        if step is None:
            return []
        return [(step, i) for i in range(number, COUNTS[step], count) if i not in self.done[step]]

    def join(self) -> list[tuple[str, int]]:
        made = []
        while len(self.joined) <= len(self.steps) and self.next_step() is None:
            step = ["", *self.steps][len(self.joined)]
            made += [(name, 0) for name in JOINS[step]]
            self.joined.append(step)
        return made

    def made(self, calls: list[tuple[str, int]]) -> None:
        for step, index in calls:
            if step in self.done:
                self.done[step].add(index)


def run(root: Path, fail_after: int | None = None, **values) -> tuple[list[tuple[str, int]], str]:
    """One process; the calls that were completed, and its exception."""
    CALLS.clear()
    FAIL_AFTER[:] = [] if fail_after is None else [fail_after]
    try:
        chain(Runtime(root, **values))
        end = "all"
    except ShareDone:
        end = "left"
    except Fault:
        end = "failed"
    FAIL_AFTER.clear()
    return list(CALLS), end


def manifests(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")}


turns = st.one_of(
    st.tuples(st.integers(1, 7), st.integers(0, 6), st.none() | st.integers(0, 4)),
    st.tuples(st.integers(1, 7), st.integers(0, 6), st.none() | st.integers(0, 4)),
    st.just("join"),
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return chain(Runtime(tmp_path_factory.mktemp("plain")))


@given(schedule=st.lists(turns, max_size=30))
@settings(max_examples=25)
def test_any_order_of_shares_and_joins_ends_as_one_process(tmp_path_factory, plain, schedule):
    root = tmp_path_factory.mktemp("array")
    model = Model()
    for turn in schedule:
        before = manifests(root)
        if turn == "join":
            expected = model.join()
            calls, end = run(root, mode="join")
            assert calls == expected
            assert (end == "all") == (len(model.joined) == len(COUNTS) + 1)
            continue
        count, number, fails = turn
        expected = model.share(number % count, count)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "sleep", lambda seconds: pytest.fail("a share waits"))
            calls, end = run(root, fails, mode="share", worker=(number % count, count))
        assert calls == expected[:fails]
        failed = fails is not None and fails < len(expected)
        assert end == ("failed" if failed else "all" if len(model.joined) == len(COUNTS) + 1 else "left")
        model.made(calls)
        assert manifests(root) == before, "a share commits nothing"
    run(root)
    found = chain(Runtime(root, make=False))
    assert found == plain


@given(count=st.integers(1, 7), data=st.data())
@settings(max_examples=8)
def test_arrays_and_joins_by_turns_leave_nothing_to_do(tmp_path_factory, plain, count, data):
    """The job graph: a join, then for each step an array (its tasks in any order) and a join."""
    root = tmp_path_factory.mktemp("graph")
    assert run(root, mode="join")[1] == "left"
    for step, shards in COUNTS.items():
        made = []
        for number in data.draw(st.permutations(range(count))):
            made += run(root, mode="share", worker=(number, count))[0]
        assert sorted(made) == [(step, index) for index in range(shards)]
        end = run(root, mode="join")[1]
    assert end == "all"
    calls, end = run(root)
    assert (calls, end) == ([], "all")
    assert chain(Runtime(root, make=False)) == plain


def test_after_a_failed_share_the_next_one_makes_exactly_what_is_missing(tmp_path):
    run(tmp_path, mode="join")
    assert run(tmp_path, 1, mode="share", worker=(0, 2)) == ([("letters", 0)], "failed")
    assert run(tmp_path, mode="share", worker=(1, 2)) == ([("letters", 1), ("letters", 3)], "left")
    assert run(tmp_path, mode="join") == ([], "left")  # shards are missing: it makes none of them
    assert run(tmp_path, mode="share", worker=(0, 2)) == ([("letters", 2), ("letters", 4)], "left")
    assert run(tmp_path, mode="share", worker=(0, 2)) == ([], "left")


def test_a_join_reads_what_shares_believe(tmp_path, plain):
    run(tmp_path, mode="join")
    run(tmp_path, mode="share")
    [victim] = tmp_path.glob("letters/*/letters/003.txt")
    flip(victim, -1)
    assert run(tmp_path, mode="share") == ([], "left"), "its size is right"
    assert run(tmp_path, mode="join") == ([], "left")
    assert run(tmp_path, mode="share") == ([("letters", 3)], "left")
    assert run(tmp_path, mode="join")[1] == "left"
    victim.write_bytes(b"short")  # of a finished artifact: sizes are looked at
    run(tmp_path)
    assert chain(Runtime(tmp_path, make=False)) == plain


@pytest.mark.parametrize("name", ["total", "beside"])
def test_what_was_made_once_and_altered_is_made_again_by_a_join(tmp_path, plain, name):
    for _ in range(2):
        run(tmp_path, mode="join")
        run(tmp_path, mode="share")
    assert run(tmp_path, mode="join") == ([("join", 0)], "left")
    [victim] = tmp_path.glob(f"totals/records/*.{name}")
    original = victim.read_bytes()
    victim.write_bytes(original + b"!")
    assert run(tmp_path, mode="share") == ([], "left"), "a cut or longer file is not believed"
    assert run(tmp_path, mode="join") == ([("join", 0)], "left")
    victim.write_bytes(bytes(byte ^ 1 for byte in original))
    assert run(tmp_path, mode="join") == ([("join", 0)], "left")
    assert victim.read_bytes() == original
    run(tmp_path)
    assert chain(Runtime(tmp_path, make=False)) == plain


def _turn(root: Path, start, worker: tuple[int, int]) -> None:
    start.wait(600)
    try:
        chain(Runtime(root, mode="share", worker=worker), logged)
    except ShareDone:
        return


@pytest.mark.parametrize("workers", [[(0, 2), (1, 2)], [(0, 1), (0, 1)], [(2, 3), (0, 3), (1, 3)]])
def test_shares_at_once_in_processes(tmp_path, plain, workers):
    context = multiprocessing.get_context("fork")
    twice = len(set(workers)) < len(workers)
    for step, shards in COUNTS.items():
        names = {f"{step}-{index}" for index in range(shards)}
        with pytest.raises(ShareDone):
            chain(Runtime(tmp_path, mode="join"), logged)
        start = context.Barrier(len(workers))
        processes = [context.Process(target=_turn, args=(tmp_path, start, worker)) for worker in workers]
        for process in processes:
            process.start()
        for process in processes:
            process.join(600)
        assert [process.exitcode for process in processes] == [0] * len(workers)
        made = [path.name.rsplit("-", 1) for path in (tmp_path / "calls").iterdir()]
        made = [(name, pid) for name, pid in made if name in names]
        assert {name for name, _ in made} == names
        assert twice or len(made) == shards, "each made its own, and nobody another's"
        assert twice or len({pid for _, pid in made}) == len(workers)
    assert chain(Runtime(tmp_path, mode="join"), logged) == plain
    for path in tmp_path.rglob("manifest.json"):
        assert verify(read_manifest(path), tmp_path) == []


def test_what_a_look_up_finds_does_not_depend_on_the_mode(tmp_path, plain):
    chain(Runtime(tmp_path))
    for mode in ("share", "join", "all"):
        assert run(tmp_path, mode=mode, worker=(3, 7) if mode == "share" else (0, 1)) == ([], "all")
        assert chain(Runtime(tmp_path, mode=mode, make=False)) == plain


def test_a_share_reads_no_records_but_its_own_while_it_has_work(tmp_path, monkeypatch):
    read: list[str] = []
    find = parallel._find
    monkeypatch.setattr(
        parallel, "_find", lambda record, name, *a, **k: read.append(name) or find(record, name, *a, **k)
    )

    def turn(worker: int) -> str:
        read.clear()
        tally = functools.partial(append_line, tmp_path / f"tally-{worker}")
        runtime = Runtime(tmp_path, worker=(worker, 3), mode="share", hooks=Hooks(tally=tally))
        with pytest.raises(ShareDone) as left:
            step_of("totals-2", "x", tmp_path / "counts" / "key", runtime)
        return str(left.value)

    assert "3 shards made" in turn(0)
    assert read == ["000", "003", "006"]
    assert (tmp_path / "tally-0").read_text().splitlines() == ["counts 000", "counts 003", "counts 006"]
    assert "0 shards made" in turn(0)  # it has none to make: then it must check whether the step is complete
    assert read == ["000", "003", "006", "001"]
    assert "2 shards made" in turn(1)
