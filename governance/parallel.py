"""Parallel map over shards; the number of workers changes no byte.

The workers are processes of this machine, and processes of an array: `Runtime.worker = (i, n)`. Worker i of n makes
every n-th shard and waits for the records of the others, which run the same command on the same file system. When no
record has come for `PATIENCE_SECONDS`, it makes what is missing itself: a worker that died only delays the others, and
two that make the same shard make the same bytes. What one worker makes for all (`once`, and stages made alone) is
worker 0's: how the others wait for it, and take over, is `governance/leader.py`'s.

Where a scheduler starts tasks when it likes, nobody can wait: then `Runtime.mode` is "share" for the tasks of an array,
and "join" for the job behind it. A share makes worker i's missing shards of the first step that is not complete and
leaves, and looks at those of others only where it has none to make; it believes records whose files have the size that
they say. A join reads the files and compares them, makes
what lies between two steps, and leaves at the next step that is not complete.

Each finished shard leaves a record `<root>/<stage>/records/<key>.json`, written after its files: the shard's key,
its files with sizes and digests, its counts. A shard is skipped when a record with its key stands, signed by a key that
this run believes (`signed_notes.py`), and its files are whole, in this artifact or in an earlier one of the same
stage: then the files are linked, not made again. So a changed input or configuration re-makes exactly the shards that
it touches.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.config import Section
from governance.errors import AlteredFile, BudgetReached, MissingInput, PipelineError
from governance.files import put_in_place, remove_file, sha256_file, sweep_temporaries
from governance.leader import PATIENCE_SECONDS, POLL_SECONDS, make_alone
from governance.log import get_logger, progress
from governance.manifest import Output, describe
from governance.processes import end_with_parent
from governance.signed_notes import Signer, read_note, write_note
from governance.stage import Leave, Recipe, Runtime, note_progress
from governance.verified_files import intact


@dataclass(frozen=True)
class Shard:
    """One unit of work.

    `name` names its files, `inputs` and the recipe decide its bytes.
    """

    name: str
    inputs: tuple[str, ...]
    """Digests and names: all of the payload that decides bytes, and nothing that does not."""
    payload: Any
    """Handed to the function as it is; must pickle."""
    reads: tuple[Output, ...] = ()
    """Files of earlier artifacts that the function reads: hashed as it begins, and unchanged when it ends."""


@dataclass(frozen=True)
class ShardMade:
    """Result of a shard function: files by role, and counts."""

    files: Mapping[str, Path]
    stats: dict[str, Any]


@dataclass(frozen=True)
class ShardDone:
    """A finished shard.

    Role -> file with size and digest, and its counts.
    """

    outputs: dict[str, Output]
    stats: dict[str, Any]


@dataclass(frozen=True)
class _Place:
    """Location of an artifact's shards, and the signer of records."""

    folder: Path
    root: Path
    suffix: str | Mapping[str, str]
    signer: Signer

    def path_of(self, name: str, role: str) -> Path:
        """The file of one shard and role."""
        suffix = self.suffix if isinstance(self.suffix, str) else self.suffix[role]
        return self.folder / role / f"{name}{suffix}"


ShardFunction = Callable[[Any, Callable[[str], Path]], ShardMade]
"""`function(payload, path_of) -> ShardMade`; `path_of(role)` is the final path `<artifact>/<role>/<name><suffix>`."""


def map_shards(
    recipe: Recipe,
    function: Callable[..., ShardMade],
    shards: Sequence[Shard],
    folder: Path,
    runtime: Runtime,
    suffix: str | Mapping[str, str] = ".parquet",
) -> list[ShardDone]:
    """Make or find each shard below `folder`, in the order of `shards`.

    `function(section, payload, path_of)` must be a top-level function, so that it pickles. `suffix` ends the files'
    names: one for all roles, or role -> suffix.

    Raises:
        Leave: shards are missing, and this is a join, or a share that has made its own of them.
    """
    records = folder.parent / "records"
    artifact = "/".join(folder.relative_to(runtime.root).parts[:2])
    linked = runtime.linked.setdefault(artifact, set())
    place = _Place(folder, runtime.root, suffix, runtime.signer)
    find = functools.partial(_find, place=place, linked=linked)
    task = functools.partial(_make_shard, function, recipe.section, records, place)
    done: dict[int, ShardDone] = {}
    mine = range(runtime.worker[0], len(shards), runtime.worker[1])

    def work(index: int) -> tuple[int, str, Shard]:
        return index, recipe.key(shards[index].inputs), shards[index]

    def look(indices: Iterable[int], trusted: bool) -> Iterator[tuple[int, str, Shard]]:
        """Those that are missing; what is there goes into `done`."""
        for item in map(work, indices):
            index, key, shard = item
            if (found := find(records / f"{key}.json", shard.name, trusted=trusted)) is None:
                yield item
            else:
                done[index] = found

    if runtime.mode == "share":
        _share(recipe.stage, functools.partial(look, trusted=True), mine, len(shards), task, runtime)
        return [done[index] for index in range(len(shards))]
    missing = list(look(range(len(shards)), trusted=False))
    if missing and runtime.mode == "join":
        _forget([(records / f"{key}.json", shard.name) for _, key, shard in missing], find)
        raise Leave(recipe.stage, f"{len(missing)} of {len(shards)} shards are missing; the next array makes them")
    ours = [item for item in missing if item[0] in mine]
    others = {index: (records / f"{key}.json", shard.name) for index, key, shard in missing if index not in mine}
    with progress(recipe.stage, len(shards), "shards", done=len(done)) as advance:
        for index, made in _made(recipe.stage, task, ours, runtime):
            done[index] = made
            advance(1)
        for index, made in _await(others, functools.partial(find, trusted=True)):
            done[index] = made
            advance(1)
        for index, made in _made(recipe.stage, task, [work(index) for index in sorted(others)], runtime):
            done[index] = made
            advance(1)
    sweep_temporaries(records)
    keys = (work(index)[1] for index in range(len(shards)))
    _note_beside(runtime, folder.parent.name, (describe(records / f"{key}.json", runtime.root) for key in keys))
    _note_beside(runtime, folder.parent.name, (output for one in done.values() for output in one.outputs.values()))
    return [done[index] for index in range(len(shards))]


def _note_beside(runtime: Runtime, stage: str, files: Iterable[Output]) -> None:
    runtime.beside.setdefault(stage, {}).update((file.path, file) for file in files)


def _made(
    stage: str, task: Callable[[Any], Any], work: list[tuple[int, str, Shard]], runtime: Runtime
) -> Iterator[tuple[int, ShardDone]]:
    """Make shards, and say of each that it is made."""
    names = {index: shard.name for index, _, shard in work}
    for index, made in _run(task, work, runtime):
        note_progress(runtime, f"{stage} {names[index]}")
        yield index, made


def _share(
    stage: str,
    look: Callable[[Iterable[int]], Iterator[tuple[int, str, Shard]]],
    mine: range,
    count: int,
    task: Callable[[Any], Any],
    runtime: Runtime,
) -> None:
    """Make what is missing of this task's own, and leave.

    It reads no records but those while it has work.

    Raises:
        Leave: the step is not complete yet, as far as this task knows.
    """
    if ours := list(look(mine)):
        with progress(stage, len(ours), "shards") as advance:
            for _ in _made(stage, task, ours, runtime):
                advance(1)
        raise Leave(stage, f"{len(ours)} shards made, all that were missing of its own", made=len(ours))
    if next(look(index for index in range(count) if index not in mine), None) is not None:
        raise Leave(stage, "0 shards made; what is missing is of other tasks")


def _forget(missing: Sequence[tuple[Path, str]], find: Callable[[Path, str], ShardDone | None]) -> None:
    """Remove the records whose files are not as they say.

    A share, which looks at sizes alone, would believe them.
    """
    for record, name in missing:
        if record.exists() and find(record, name) is None:  # looked at again: a share may have made it just now
            get_logger(__name__).warning("%s: its files are not as it says; the shard is made again", record)
            remove_file(record)


def _await(
    others: dict[int, tuple[Path, str]], find: Callable[[Path, str], ShardDone | None]
) -> Iterator[tuple[int, ShardDone]]:
    """The shards that other workers make, as their records appear.

    `others` keeps those that never did.
    """
    heard = time.monotonic()
    while others and time.monotonic() - heard < PATIENCE_SECONDS:
        for index, (record, name) in list(others.items()):
            if record.exists() and (made := find(record, name)) is not None:
                del others[index]
                heard = time.monotonic()
                yield index, made
        if others:
            time.sleep(POLL_SECONDS)
    if others:
        get_logger(__name__).warning(
            "%d shards of other workers have not come for %d s; making them here", len(others), PATIENCE_SECONDS
        )


def once(runtime: Runtime, path: Path, make: Callable[[Path], None], beside: Sequence[Path] = ()) -> Path:
    """A file that one worker makes for all.

    What a step over all shards found, and every worker goes on with.

    `path` lies in `<root>/<stage>/records/` and its name holds the key of what decides its bytes; `make(path)` writes
    it atomically, and those `beside` it. Their sizes and digests are noted in `<path>.json`, written last: a file that
    was altered since is made again.

    Raises:
        Leave: it is not made yet, and this is a share.
        PipelineError: the worker that makes it has failed; its message is in this one's.
    """
    files = (path, *beside)
    note = path.with_name(f"{path.name}.json")
    share = runtime.mode == "share"

    def find() -> Path | None:
        noted = read_note(note, runtime.root, runtime.signer)
        return path if noted is not None and _as_noted(noted, files, trusted=share) else None

    def make_and_note() -> Path:
        make(path)
        facts = {file.name: _facts(file, trusted=False) for file in files}
        write_note(note, facts, runtime.root, runtime.signer)
        return path

    found = find()
    stage = path.parent.parent.name
    if found is None and share:
        raise Leave(stage, "a join makes what is next")
    found = found or make_alone(path, runtime.worker, find, make_and_note)
    if not share:
        noted = read_note(note, runtime.root, runtime.signer) or {}
        names = [(file.relative_to(runtime.root).as_posix(), noted[file.name]) for file in files if noted]
        _note_beside(runtime, stage, [describe(note, runtime.root), *(Output(path=p, **facts) for p, facts in names)])
    return found


def _as_noted(noted: Mapping[str, Any], files: Sequence[Path], trusted: bool) -> bool:
    """Return whether the files are there as a note says.

    Of trusted ones only the sizes are looked at.
    """
    try:
        return all(_facts(file, trusted).items() <= noted[file.name].items() for file in files)
    except (OSError, KeyError, AttributeError, MissingInput):
        return False


def _facts(file: Path, trusted: bool) -> dict[str, Any]:
    size = {"bytes": file.stat().st_size}
    return size if trusted else {**size, "sha256": sha256_file(file)}


def _find(record: Path, name: str, place: _Place, linked: set[str], trusted: bool = False) -> ShardDone | None:
    """The finished shard of this record.

    Its files are read and compared, of `trusted` ones only the sizes.

    `linked` gets the artifact that they are of, where that is another.
    """
    root, values = place.root, read_note(record, place.root, place.signer)
    if values is None:
        return None
    outputs = {role: Output(**output) for role, output in values["outputs"].items()}
    for output in outputs.values():
        path = root / output.path
        if not path.is_file() or path.stat().st_size != output.bytes:
            return None
        if not trusted and sha256_file(path) != output.sha256:
            return None
    here = {}
    for role, output in outputs.items():
        target = place.path_of(name, role)
        if root / output.path != target:
            put_in_place(root / output.path, target)
            linked.add("/".join(Path(output.path).parts[:2]))
        here[role] = output.model_copy(update={"path": target.relative_to(root).as_posix()})
    return ShardDone(here, values["stats"])


def _make_shard(
    function: Callable[..., ShardMade], section: Section, records: Path, place: _Place, work: tuple[int, str, Shard]
) -> tuple[int, ShardDone]:
    index, key, shard = work
    for left in (2, 1, 0):
        try:
            with contextlib.ExitStack() as reading:
                for output in shard.reads:
                    reading.enter_context(intact(output, place.root))
                made = function(section, shard.payload, functools.partial(place.path_of, shard.name))
            break
        except AlteredFile:  # another worker may have put an equal file in its place; one that differs is refused again
            if not left:
                raise
    outputs = {role: describe(path, place.root) for role, path in made.files.items()}
    record = {"key": key, "outputs": {r: o.model_dump(mode="json") for r, o in outputs.items()}, "stats": made.stats}
    write_note(records / f"{key}.json", record, place.root, place.signer)
    return index, ShardDone(outputs, made.stats)


def _run(task: Callable[[Any], Any], work: list[Any], runtime: Runtime) -> Any:
    """Yield results as they finish.

    At most two tasks a worker wait in the queue, so memory stays level.

    One worker asks the energy budget before each task, for the time of the longest so far. Several ask before they
    fill the queue, so first with nothing before them, and whenever a task has finished: for twice the longest time
    from a task's being queued to its end, since what is in the pool's hands cannot be taken back. That is awaited and
    yielded before `BudgetReached` is passed on: its energy is inside what the meter measures.
    """
    workers, longest = runtime.workers, 0.0
    if workers <= 1 or len(work) <= 1:
        for item in work:
            runtime.budget.look(longest)
            began = time.monotonic()
            yield task(item)
            longest = max(longest, time.monotonic() - began)
        return
    pool = _pool(workers)
    waiting: set[Future[Any]] = set()
    submitted: dict[Future[Any], float] = {}
    queue = iter(work)
    try:
        while (items := list(itertools.islice(queue, 2 * workers - len(waiting)))) or waiting:
            try:
                runtime.budget.look(2 * longest)
            except BudgetReached:
                for future in wait([future for future in waiting if not future.cancel()]).done:
                    yield future.result()
                raise
            for item in items:
                waiting.add(future := pool.submit(task, item))
                submitted[future] = time.monotonic()
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                longest = max(longest, time.monotonic() - submitted.pop(future))
                yield future.result()
    except BrokenProcessPool as error:
        close_pool()
        raise PipelineError(
            "a worker process was killed, most likely for want of memory. Finished shards are kept; "
            "run the same command again with fewer --workers."
        ) from error
    finally:
        for future in waiting:
            future.cancel()


_POOL: dict[int, ProcessPoolExecutor] = {}  # at most one, by its number of workers; state with a lifetime: close_pool


def _pool(workers: int) -> ProcessPoolExecutor:
    """This process's workers, started afresh (spawn).

    Forking a process with Arrow threads can deadlock.
    """
    if workers not in _POOL:
        close_pool()
        context = multiprocessing.get_context("spawn")
        _POOL[workers] = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow, initargs=(os.getpid(),))
    return _POOL[workers]


def _follow(parent: int) -> None:
    """Make a worker end with its parent and ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


def close_pool() -> None:
    """End the worker processes, if there are any.

    The next `map_shards` starts new ones.
    """
    while _POOL:
        _POOL.popitem()[1].shutdown(cancel_futures=True)


def sum_stats(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add counts shard by shard: integers add, dictionaries merge by adding.

    Nothing else is a count.
    """
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping):
                total[name] = sum_stats([total.get(name, {}), value])
            elif isinstance(value, int):
                total[name] = total.get(name, 0) + value
            else:
                raise TypeError(f"{name}: {type(value).__name__} is no count")
    return dict(sorted(total.items()))
