"""Parallel map over shards; the number of workers changes no byte.

A step over shards is done by processes of this machine (`Runtime.workers`), by those of a Ray cluster
(`Runtime.engine`), or by an array (`Runtime.mode`): "share" for its tasks, "join" for the job after it. A share makes
task i's missing shards of the first step that is not complete and leaves, and looks at those of others only where it
has none to make; it trusts records whose files have the recorded sizes. A join reads the files and compares them, makes
what comes between two steps, and leaves at the next step that is not complete. `governance/workers.py` does both in
turn.

Each finished shard leaves a record `<root>/<stage>/records/<key>.json`, written after its files: the shard's key,
its files with sizes and digests, its counts. A shard is skipped when there is a record with its key, signed by a key
that this run trusts (`signed_notes.py`), and its files are whole, in this artifact or in an earlier one of the same
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
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from governance.config import Section
from governance.errors import AlteredFile, BudgetReached, MissingInput, PipelineError
from governance.files import put_in_place, remove_file, sha256_file, sweep_temporaries
from governance.first_use import add_compile_seconds, announce_to, compile_seconds, say_compiling
from governance.log import get_logger, progress
from governance.manifest import Output, describe
from governance.processes import end_with_parent, interrupts_held, pass_on_interrupt
from governance.ray_cluster.ray_connection import is_seen
from governance.ray_cluster.ray_pool import RayPool
from governance.signed_notes import NoteSigner, read_note, write_note
from governance.stage import Recipe, Runtime, ShareDone
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

    Lists its files by role, with size and digest, and its counts.
    """

    outputs: dict[str, Output]
    stats: dict[str, Any]


@dataclass(frozen=True)
class _ShardFolder:
    """Location of an artifact's shards, and the signer of records."""

    folder: Path
    root: Path
    suffix: str | Mapping[str, str]
    signer: NoteSigner

    def path_of(self, name: str, role: str) -> Path:
        """The file of one shard and role."""
        suffix = self.suffix if isinstance(self.suffix, str) else self.suffix[role]
        return self.folder / role / f"{name}{suffix}"


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
        ShareDone: shards are missing, and this is a join, or a share that has made its own of them.
    """
    records = folder.parent / "records"
    artifact = "/".join(folder.relative_to(runtime.root).parts[:2])
    linked = runtime.notes.linked.setdefault(artifact, set())
    place = _ShardFolder(folder, runtime.root, suffix, runtime.hooks.signer)
    task = functools.partial(_make_shard, function, recipe.section, records, place)
    done: dict[int, ShardDone] = {}
    share = runtime.mode == "share"

    def look(indices: Iterable[int]) -> Iterator[tuple[int, str, Shard]]:
        """Yield the missing shards; put the others into `done`."""
        for index in indices:
            key = recipe.key(shards[index].inputs)
            if (found := _find(records / f"{key}.json", shards[index].name, place, linked, trusted=share)) is None:
                yield index, key, shards[index]
            else:
                done[index] = found

    number, count = runtime.worker if share else (0, 1)
    missing = list(look(range(number, len(shards), count)))
    if missing and runtime.mode == "join":
        _forget([(records / f"{key}.json", shard.name) for _, key, shard in missing], place, linked)
        raise ShareDone(recipe.stage, f"{len(missing)} of {len(shards)} shards are missing; the next array makes them")
    if missing or not share:
        keys_made = {index: key for index, key, _ in missing}
        with progress(recipe.stage, len(missing) + len(done), "shards", done=len(done)) as advance:
            for index, made, _, host in _run(task, missing, runtime):
                _note_host(runtime, artifact, host, records / f"{keys_made[index]}.json")
                runtime.hooks.tally(f"{recipe.stage} {shards[index].name}")
                done[index] = made
                advance(1)
    if share:
        if missing:
            raise ShareDone(
                recipe.stage, f"{len(missing)} shards made, all that were missing of its own", made=len(missing)
            )
        if other := next(look(index for index in range(len(shards)) if index % count != number), None):
            raise ShareDone(recipe.stage, "0 shards made; what is missing is of other tasks", missing=other[0] % count)
        return [done[index] for index in range(len(shards))]
    sweep_temporaries(records)
    keys = (recipe.key(shard.inputs) for shard in shards)
    _note_beside(runtime, folder.parent.name, (describe(records / f"{key}.json", runtime.root) for key in keys))
    _note_beside(runtime, folder.parent.name, (output for one in done.values() for output in one.outputs.values()))
    return [done[index] for index in range(len(shards))]


def _note_host(runtime: Runtime, artifact: str, host: str, record: Path) -> None:
    """Note that another host made a shard; wait for its record.

    Raises:
        MissingInput: the record does not come.
    """
    if host == socket.gethostname():
        return
    runtime.notes.elsewhere.setdefault(artifact, set()).add(host)
    if not is_seen(record):  # a network file system may still report it missing, from its cache
        raise MissingInput(f"{record}: is not visible here, and {host} wrote it. Mount the root with shorter caches")


def _note_beside(runtime: Runtime, stage: str, files: Iterable[Output]) -> None:
    runtime.notes.beside.setdefault(stage, {}).update((file.path, file) for file in files)


def _forget(missing: Sequence[tuple[Path, str]], place: _ShardFolder, linked: set[str]) -> None:
    """Remove the records whose files differ from them.

    Otherwise a share, which only compares sizes, would trust them.
    """
    for record, name in missing:
        if record.exists() and _find(record, name, place, linked) is None:  # again: a share may have made it just now
            get_logger(__name__).warning("%s: its files differ from it; the shard is made again", record)
            remove_file(record)


def once(runtime: Runtime, path: Path, make: Callable[[Path], None], beside: Sequence[Path] = ()) -> Path:
    """Find or make the file that joins all shards of a step.

    `path` is in `<root>/<stage>/records/` and its name holds the key of what decides its bytes; `make(path)` writes
    it atomically, and those `beside` it. Their sizes and digests are noted in `<path>.json`, written last: a file that
    was altered since is made again.

    Raises:
        ShareDone: it is not made yet, and this is a share.
    """
    files = (path, *beside)
    note = path.with_name(f"{path.name}.json")
    share, signer, stage = runtime.mode == "share", runtime.hooks.signer, path.parent.parent.name
    noted = read_note(note, runtime.root, signer)
    if noted is None or not _as_noted(noted, files, trusted=share):
        if share:
            raise ShareDone(stage, "a join makes what is next")
        make(path)
        noted = {file.name: _facts(file, trusted=False) for file in files}
        write_note(note, noted, runtime.root, signer)
    if not share:
        outputs = [Output(path=file.relative_to(runtime.root).as_posix(), **noted[file.name]) for file in files]
        _note_beside(runtime, stage, [describe(note, runtime.root), *outputs])
    return path


def _as_noted(noted: Mapping[str, Any], files: Sequence[Path], trusted: bool) -> bool:
    """Return whether the files are as noted, trusted ones by size."""
    try:
        return all(_facts(file, trusted).items() <= noted[file.name].items() for file in files)
    except (OSError, KeyError, AttributeError, MissingInput):
        return False


def _facts(file: Path, trusted: bool) -> dict[str, Any]:
    size = {"bytes": file.stat().st_size}
    return size if trusted else {**size, "sha256": sha256_file(file)}


def _find(record: Path, name: str, place: _ShardFolder, linked: set[str], trusted: bool = False) -> ShardDone | None:
    """The finished shard of this record, or None.

    Its files are read and compared; of `trusted` records only the sizes are. `linked` gets the artifact that the files
    belong to, where that is another.
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
    function: Callable[..., ShardMade],
    section: Section,
    records: Path,
    place: _ShardFolder,
    work: tuple[int, str, Shard],
) -> tuple[int, ShardDone, float, str]:
    """The shard's number, its result, the seconds of compilation, and the host."""
    index, key, shard = work
    compiled = compile_seconds()
    for left in (2, 1, 0):
        try:
            with contextlib.ExitStack() as reading:
                for output in shard.reads:
                    reading.enter_context(intact(output, place.root))
                made = function(section, shard.payload, functools.partial(place.path_of, shard.name))
            break
        except AlteredFile:  # another worker may have replaced it by an equal file; one that differs is refused again
            if not left:
                raise
    outputs = {role: describe(path, place.root) for role, path in made.files.items()}
    record = {"key": key, "outputs": {r: o.model_dump(mode="json") for r, o in outputs.items()}, "stats": made.stats}
    write_note(records / f"{key}.json", record, place.root, place.signer)
    return index, ShardDone(outputs, made.stats), compile_seconds() - compiled, socket.gethostname()


def _run(task: Callable[[Any], Any], work: list[Any], runtime: Runtime) -> Any:
    """Yield results as they finish.

    At most two tasks per worker wait in the queue, so memory stays level.

    One worker checks the energy budget before each task, for the time of the longest so far. Several check before they
    fill the queue, so first with nothing before them, and whenever a task has finished: for twice the longest time
    from queueing a task to its end, since a queued task cannot be taken back. Queued tasks are awaited and yielded
    before `BudgetReached` is passed on: their energy is inside what the meter measures.
    """
    longest = 0.0
    if len(work) <= 1 or (runtime.workers <= 1 and runtime.engine != "ray"):
        for item in work:
            pass_on_interrupt()
            runtime.hooks.budget.look(longest)
            began = time.monotonic()
            yield task(item)
            longest = max(longest, time.monotonic() - began)
        return
    pool, compiling = _pool(runtime)
    waiting: set[Future[Any]] = set()
    submitted: dict[Future[Any], float] = {}
    queue = iter(work)
    try:
        while (items := list(itertools.islice(queue, _room(pool, runtime, waiting)))) or waiting:
            pass_on_interrupt()
            try:
                runtime.hooks.budget.look(2 * longest)
            except BudgetReached:
                for future in wait([future for future in waiting if not future.cancel()]).done:
                    yield future.result()
                raise
            with interrupts_held():  # `submit` starts the workers, which would be interrupted before they ignore it
                for item in items:
                    waiting.add(future := pool.submit(task, item))
                    submitted[future] = time.monotonic()
            finished, waiting = _first_finished(waiting, compiling)
            for future in finished:
                longest = max(longest, time.monotonic() - submitted.pop(future))
                add_compile_seconds(future.result()[2] / _width(pool, runtime))
                yield future.result()
    except BrokenProcessPool as error:
        workers = list(getattr(pool, "_processes", {}).values())
        close_pool()
        raise PipelineError(_broken([worker.exitcode for worker in workers])) from error
    finally:
        for future in waiting:
            future.cancel()


def _broken(statuses: Sequence[int | None]) -> str:
    """Words on a pool that lost a worker."""
    # The pool ends the others by SIGTERM.
    left = [status for status in statuses if status is not None and status >= 0]
    if left:
        return (
            f"a worker process left with status {max(left)}. If a traceback above does not say why, a library, or a "
            "filter or reader of the run's own, called os._exit or the like, or memory was short. Finished shards are "
            "kept; correct the cause and run the same command again."
        )
    return (
        "a worker process was killed, most likely for lack of memory. Finished shards are kept; run the same command "
        "again with fewer --data-workers."
    )


def _width(pool: ProcessPoolExecutor | RayPool, runtime: Runtime) -> int:
    """Tasks that run at a time."""
    return pool.width if isinstance(pool, RayPool) else runtime.workers


def _room(pool: ProcessPoolExecutor | RayPool, runtime: Runtime, waiting: set[Future[Any]]) -> int:
    """Room in the queue; none where a cluster has shrunk."""
    return max(0, 2 * _width(pool, runtime) - len(waiting))


def _first_finished(waiting: set[Future[Any]], compiling: Event) -> tuple[set[Future[Any]], set[Future[Any]]]:
    """Wait for a finished task; return those finished and the others.

    While it waits, the compilation of a worker is logged.
    """
    while True:
        finished, others = wait(waiting, _LOOK_SECONDS, return_when=FIRST_COMPLETED)
        if compiling.is_set():
            say_compiling()
        if finished:
            return finished, others


_LOOK_SECONDS = 1.0
_MOST_TASKS = 128  # of a worker: each step leaves some memory behind, about 100 MB for so many shards of 64 MB
_POOL: dict[tuple[Any, ...], tuple[ProcessPoolExecutor | RayPool, Event]] = {}
"""At most one, by its kind, with the event that one compiles; state with a lifetime: close_pool."""


def _pool(runtime: Runtime) -> tuple[ProcessPoolExecutor | RayPool, Event]:
    """The processes of a runtime, and their event "compiling".

    Those of this machine are spawned: forking a process with Arrow threads can deadlock. After many
    tasks they are replaced before the next step, so that their memory does not grow with the corpus.
    """
    ray = runtime.engine == "ray"
    kind = (runtime.root,) if ray else (runtime.workers,)
    if kind not in _POOL or _has_worked(_POOL[kind][0], runtime.workers):
        close_pool()
        context = multiprocessing.get_context("spawn")
        compiling = context.Event()
        _POOL[kind] = RayPool(runtime.root) if ray else _processes(runtime.workers, context, compiling), compiling
    return _POOL[kind]


def _has_worked(pool: ProcessPoolExecutor | RayPool, workers: int) -> bool:
    return isinstance(pool, ProcessPoolExecutor) and pool._queue_count >= _MOST_TASKS * workers


def _processes(workers: int, context: SpawnContext, compiling: Event) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_follow, initargs=(os.getpid(), compiling))


def _follow(parent: int, compiling: Event) -> None:
    """Make a worker end with its parent, ignore Ctrl-C and announce compilation."""
    announce_to(compiling)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


def close_pool() -> None:
    """End the worker processes, if there are any.

    The next `map_shards` starts new ones.
    """
    while _POOL:
        _POOL.popitem()[1][0].shutdown(cancel_futures=True)


def sum_stats(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add counts shard by shard: integers add, dictionaries merge by adding.

    Raises:
        TypeError: a value is neither.
    """
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping):
                total[name] = sum_stats([total.get(name, {}), value])
            elif isinstance(value, int):
                total[name] = total.get(name, 0) + value
            else:
                raise TypeError(f"{name}: {type(value).__name__} is not a count")
    return dict(sorted(total.items()))
