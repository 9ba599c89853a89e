"""Global join on document keys, by sorting, DuckDB or Daft (Ray).

A *key file* is a Parquet file of one shard's keys: `key` (int64, ascending) and `row` (int32, the document in the
shard). The range of a key is its kind: equal text, equal address, a band of a signature.

Keys that fit the limit are sorted in this process, unless the engine is `daft`. Of others the join runs range by range:
keys are hashes, so each range is a hash partition, sized so that its table of groups fits the limit, and since the
files are sorted and their row groups carry bounds, a range reads little more than its own rows. Each range opens each
file, so many files are first merged into fewer, each as large as the limit allows. Both engines run the
same SQL text, and their rows are sorted here, so the result depends on neither engine, nor on the limit, nor on the
machine.

Price: with DuckDB 2.0 on one core, 40 million keys took 25 to 32 CPU-seconds within 256 MiB, of which the process
held 295 at its peak, 145 of these before the join began (`benchmarks/measures/data/join.py`); and
the rows of one range in memory.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from governance.errors import MissingInput, PipelineError, storage_errors
from governance.files import atomic_path, remove_tree
from governance.processes import end_with_parent, interrupts_held
from governance.ray_cluster.ray_connection import require_listener
from governance.ray_cluster.ray_pool import ADDRESS_VARIABLE, address, no_cluster, went_away

Integers = npt.NDArray[np.int64]
TEXT, URL, BAND = range(0, 1 << 61), range(1 << 61, 1 << 62), range(1 << 62, 1 << 63)
SORTED_BYTES_PER_KEY = 64  # keys and numbers, the keys in order, and those that are shared once more
BYTES_PER_KEY = 160  # 80 in DuckDB's table of groups (measured), and as much again while it grows
ENGINE_SHARE = 0.7  # the engine's part of the limit; the rest is for this process, Parquet's buffers and the rows found
KEYS_PER_ROW_GROUP = 1 << 14
FILES_PER_RANGE = 4  # a file costs .2 ms per range, or .3 ms and its keys once more where it is merged
UNITS_MEMORY_MIB = 512  # memory for parts of documents, which have no setting of their own

SHARED_KEYS = """
SELECT signed.key AS key, shards.first + signed.row AS number
FROM signed
JOIN (
    SELECT key FROM signed WHERE key >= {low} AND key <= {high} GROUP BY key HAVING count(*) > 1
) AS shared ON signed.key = shared.key
LEFT JOIN shards ON signed.filename = shards.filename
WHERE signed.key >= {low} AND signed.key <= {high}
"""


@dataclass(frozen=True)
class JoinEngine:
    """Join engine and its limits; neither changes the result."""

    name: str
    """`duckdb`, `daft`, or `ray`: Daft on the cluster, where the keys do not fit the limit."""
    memory_mib: int
    """Memory limit of the process."""
    scratch: Path
    """Folder of merged key files and of DuckDB's temporary files.

    Nodes of a cluster must see it.
    """


def write_keys(path: Path, keys: Integers, rows: npt.NDArray[np.int32]) -> None:
    """Write one shard's key file.

    It is not compressed, since hashes do not compress.
    """
    order = np.argsort(keys, kind="stable")
    table = pa.table({"key": keys[order], "row": rows[order]})
    with atomic_path(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="none",
            use_dictionary=["row"],
            write_statistics=["key"],
            row_group_size=KEYS_PER_ROW_GROUP,
        )


def require_engine(name: str) -> None:
    """Raise where the engine of the joins is not installed.

    Raises:
        MissingInput: with the command that installs it.
    """
    needed = {"daft": ("daft",), "ray": ("ray", "daft")}.get(name, ())
    if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
        raise MissingInput(
            f"engine {name}: {missing[0]} is not installed. Install it with: pip install 'assay-pretrain[ray]'"
        )


def shared_keys(
    files: Sequence[Path], firsts: Sequence[int], kind: range, keys: int, engine: JoinEngine
) -> Iterator[tuple[Integers, Integers]]:
    """Keys of a kind that more than one document has.

    It yields pairs `(key, number)`, sorted, a range of the keys at a time.

    The documents of file i are numbered from `firsts[i]`; `keys` is about how many keys of the kind there are.

    Raises:
        MissingInput: the engine is not installed.
        StorageError: the disk is full.
        PipelineError: the engine failed; holds its message.
    """
    if not files or not keys:
        return
    if engine.name != "daft" and keys * SORTED_BYTES_PER_KEY <= engine.memory_mib * ENGINE_SHARE * (1 << 20):
        yield _sorted(files, firsts, kind)
        return
    parts = max(1, -(-keys * BYTES_PER_KEY // int(engine.memory_mib * ENGINE_SHARE * (1 << 20))))
    step = -(-len(kind) // parts)
    run_engine = {"duckdb": _duckdb, "daft": _daft, "ray": _daft}[engine.name]
    with storage_errors(engine.scratch), contextlib.ExitStack() as stack:
        if len(files) > FILES_PER_RANGE * parts:
            files, firsts = stack.enter_context(_merged(files, firsts, kind, engine))
        names = [str(path) for path in files]
        shards = pa.table({"filename": pa.array(names, pa.string()), "first": pa.array(firsts, pa.int64())})
        run = stack.enter_context(run_engine(names, shards, engine))
        for low in range(kind.start, kind.stop, step):
            found = run(SHARED_KEYS.format(low=low, high=min(low + step, kind.stop) - 1))
            if found["number"].null_count:
                raise PipelineError(
                    f"{engine.name}: returned names of key files other than those given; use the other engine"
                )
            key, number = (found[name].to_numpy() for name in ("key", "number"))
            order = np.lexsort((number, key))
            yield key[order], number[order]


@contextlib.contextmanager
def _merged(
    files: Sequence[Path], firsts: Sequence[int], kind: range, engine: JoinEngine
) -> Iterator[tuple[list[Path], list[int]]]:
    """Fewer and larger files of the keys of a kind.

    Yields their paths, and the number of the first document of each; removes them on exit. Opening 10^6 files for
    each of 4,000 ranges would take more than a week.
    """
    folder = engine.scratch / "merged"
    most = int(engine.memory_mib * ENGINE_SHARE * (1 << 20) / SORTED_BYTES_PER_KEY)
    paths: list[Path] = []
    begins: list[int] = []
    parts: list[tuple[Integers, Integers]] = []

    def write() -> None:
        paths.append(folder / f"{len(paths)}.parquet")
        key, row = map(np.concatenate, zip(*parts, strict=True))
        write_keys(paths[-1], key, row.astype(np.int32))
        parts.clear()

    held = 0
    try:
        for path, first in zip(files, firsts, strict=True):
            key, row = _named_keys_of(path, kind)
            if parts and (held + len(key) > most or first - begins[-1] > 1 << 30):  # rows are 32-bit numbers
                write()
                held = 0
            if not parts:
                begins.append(first)
            parts.append((key, row + (first - begins[-1])))
            held += len(key)
        write()
        yield paths, begins
    finally:
        remove_tree(folder)


def _named_keys_of(path: Path, kind: range) -> tuple[Integers, Integers]:
    """As `_keys_of`; an error names the file."""
    try:
        return _keys_of(path, kind)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise PipelineError(f"{path}: its keys cannot be read ({error}). Remove its folder, make it again") from error


def _sorted(files: Sequence[Path], firsts: Sequence[int], kind: range) -> tuple[Integers, Integers]:
    """Shared keys of a kind, with numbers, by one sort."""
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for path, first in zip(files, firsts, strict=True):
        key, row = _named_keys_of(path, kind)
        parts.append((key, row + first))
    every = np.sort(np.concatenate([key for key, _ in parts]), kind="stable")  # it merges: each part is sorted
    shared = np.unique(every[1:][every[1:] == every[:-1]])
    found = []
    for key, number in parts:
        starts, stops = (np.searchsorted(key, shared, side) for side in ("left", "right"))
        counts = stops - starts
        places = np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        found.append((np.repeat(shared, counts), number[places]))
    key, number = map(np.concatenate, zip(*found, strict=True))
    order = np.lexsort((number, key))
    return key[order], number[order]


def _keys_of(path: Path, kind: range) -> tuple[Integers, Integers]:
    """The keys of a kind in a key file, with their rows."""
    with pq.ParquetFile(path) as file:
        bounds = [file.metadata.row_group(group).column(0).statistics for group in range(file.num_row_groups)]
        apart = [found and found.has_min_max and (found.max < kind.start or found.min > kind[-1]) for found in bounds]
        table = file.read_row_groups([group for group, other in enumerate(apart) if not other], use_threads=False)
    key = table["key"].to_numpy()
    mine = slice(int(np.searchsorted(key, kind.start)), int(np.searchsorted(key, kind[-1], "right")))
    return key[mine], table["row"].to_numpy()[mine].astype(np.int64)


def shared_units(
    keys: Iterable[npt.NDArray[np.uint64]], firsts: Integers, engine_name: str, folder: Path
) -> Iterator[tuple[Integers, Integers]]:
    """Parts of documents that share a key with another.

    It yields pairs `(key, number)` as `shared_keys` does.

    `keys` has an array below 2^62 for each shard: a key for each of its units, which are numbered from `firsts[i]` on;
    `firsts` ends with the number of all. Files are spilled below `folder`.
    """
    with spill_folder(folder) as scratch:
        files = []
        for number, values in enumerate(keys):
            files.append(scratch / f"{number}.parquet")
            write_keys(files[-1], values.astype(np.int64), np.arange(len(values), dtype=np.int32))
        engine = JoinEngine(engine_name, UNITS_MEMORY_MIB, scratch)
        yield from shared_keys(files, firsts[:-1].tolist(), range(1 << 62), int(firsts[-1]), engine)


@contextlib.contextmanager
def spill_folder(folder: Path) -> Iterator[Path]:
    """A spill folder of this process, removed on exit.

    Folders that killed processes of this host left are removed too.
    """
    own = folder / f"join~{socket.gethostname()}~{os.getpid()}"
    for left in folder.glob(f"join~{socket.gethostname()}~*"):
        if not Path(f"/proc/{left.name.rsplit('~', 1)[1]}").exists():
            remove_tree(left)
    try:
        yield own
    finally:
        remove_tree(own)


@contextlib.contextmanager
def _duckdb(names: list[str], shards: pa.Table, engine: JoinEngine) -> Iterator[Any]:
    import duckdb

    settings = {
        "threads": 1,
        "memory_limit": f"{max(64, int(engine.memory_mib * ENGINE_SHARE))}MiB",
        "temp_directory": str(engine.scratch),
        "preserve_insertion_order": False,
    }
    try:
        with duckdb.connect(config=settings) as database:
            database.register("shards", shards)
            database.read_parquet(names, filename=True).create_view("signed")
            yield lambda query: database.sql(query).to_arrow_table()
    except duckdb.Error as error:
        raise PipelineError(f"the join of the keys failed in DuckDB: {error}") from error


@contextlib.contextmanager
def _daft(names: list[str], shards: pa.Table, engine: JoinEngine) -> Iterator[Any]:
    require_engine(engine.name)
    on_ray = engine.name == "ray" or bool(os.environ.get(ADDRESS_VARIABLE))
    with _on_ray(names, shards, engine.name) if on_ray else _queries(names, shards) as run:
        yield run


@contextlib.contextmanager
def _on_ray(names: list[str], shards: pa.Table, engine_name: str) -> Iterator[Any]:
    """Queries in a process of their own.

    Ray ends a process that loses its cluster.

    Raises:
        MissingInput: no cluster answers.
        PipelineError: it went away.
    """
    try:
        require_listener(address())
    except (OSError, ValueError) as error:
        raise no_cluster(engine_name, error) from error
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, os.getpid(), names, shards, engine_name), daemon=True)
    with interrupts_held():
        process.start()
    other.close()

    def run(query: str) -> pa.Table:
        try:
            pipe.send(query)
            found = pipe.recv()
        except (EOFError, OSError) as error:
            raise went_away("the process that is connected to it ended") from error
        if isinstance(found, Exception):
            raise found
        return found

    try:
        yield run
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection, parent: int, names: list[str], shards: pa.Table, engine_name: str) -> None:
    """Answer each query of the pipe by a table or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    os.dup2(2, 1)  # Ray prints what its workers print; standard output is the command's
    try:
        with _queries(names, shards, engine_name) as run:
            while True:
                pipe.send(run(pipe.recv()))
    except EOFError:
        return
    except PipelineError as error:
        pipe.send(error)


@contextlib.contextmanager
def _queries(names: list[str], shards: pa.Table, on_ray: str = "") -> Iterator[Any]:
    """Queries in this process; for an engine `on_ray`, on the cluster."""
    os.environ.setdefault("DO_NOT_TRACK", "true")  # both send usage statistics by default
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import daft

    failures: tuple[type[Exception], ...] = (daft.exceptions.DaftCoreException,)
    if on_ray:
        failures = (Exception,)  # Ray raises many classes, none of them public
        try:
            daft.set_runner_ray(address(), noop_if_initialized=True)
        except failures as error:
            raise no_cluster(on_ray, error) from error
    signed, named = daft.read_parquet(names, file_path_column="filename"), daft.from_arrow(shards)
    try:
        yield lambda query: daft.sql(query, signed=signed, shards=named).to_arrow()
    except EOFError:  # there is no further query
        raise
    except failures as error:
        raise PipelineError(f"the join of the keys failed in Daft: {error}") from error
