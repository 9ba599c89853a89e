"""ORC files as Arrow batches, read in a process of their own.

ORC keeps the lengths of texts apart from the texts, and its library reserves the memory of a whole batch before it
reads a byte of it: 1.3 kB that state five texts of a GiB took 5 GB, and with more the process ended. A list may hold a
billion nulls in a few bytes. So the kernel bounds the address space of a child, which sends the batches on as an Arrow
stream, its last batch with the fault that ended it. A child that ends without a word is the file's damage, too, unless
the kernel or a person killed it.

A batch has at most 64 rows, fewer where as many of the mean packed size could unpack to more than 64 MiB.

Price: half a CPU-second a file, and a pipe between the processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa

from data_pipeline.readers.streams import BOMB_RATIO
from governance.errors import PipelineError
from governance.processes import end_with_parent

MEMORY_BYTES = 1 << 30
"""Address space that a file may take, beyond that of the process."""
_ROWS, _BATCH_BYTES = 64, 64 << 20
_READY = b"ready\n"
_BEYOND = f"it needs more than {MEMORY_BYTES >> 20} MiB, or breaks the parser"
"""Words for each way to end at the bound; chance decides which."""
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
_CHILD = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from data_pipeline.readers.file_types.orc_process import serve; serve()"
)  # fmt: skip


class DamagedOrc(ValueError):
    """The file cannot be read to its end; the text says why."""


class OrcRows(NamedTuple):
    """An open file."""

    schema: pa.Schema
    """The chosen columns."""
    stated: int
    """Rows that the file states."""
    batches: Iterator[pa.RecordBatch]
    """In order; raises `DamagedOrc` where they end early."""


@contextlib.contextmanager
def open_orc(path: Path, names: tuple[str, ...] | None = None) -> Iterator[OrcRows]:
    """The rows of a file, in the columns of the named values.

    Without names they have all columns.

    Raises:
        DamagedOrc: it is not an ORC file, or its footer is damaged.
        OSError: the device fails, with its number.
        MemoryError: the process was killed.
        PipelineError: the process cannot be started.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path.absolute()), json.dumps(names), str(os.getpid()), *sys.path],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdout is not None, "it is a pipe"
    try:
        if child.stdout.read(len(_READY)) != _READY:
            raise PipelineError(
                "the process that reads ORC files ended as it started. "
                "See what this prints: python -c 'import pyarrow.dataset, pyarrow.orc'"
            )
        try:
            stream = pa.ipc.open_stream(child.stdout)
        except (pa.ArrowException, OSError) as error:
            raise _reason(child) from error
        facts = stream.schema.metadata or {}
        yield OrcRows(stream.schema, int(facts.get(b"rows", 0)), _batches(stream, child))
    finally:
        child.kill()
        child.stdout.close()
        child.wait()


def _batches(stream: pa.RecordBatchReader, child: subprocess.Popen[bytes]) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            batch, about = stream.read_next_batch_with_custom_metadata()
        except StopIteration:  # also where the child ended between two batches
            if child.wait():
                raise _reason(child) from None
            return
        except (pa.ArrowException, OSError) as error:
            raise _reason(child) from error
        if about is not None:
            number, words = json.loads(about[b"fault"])
            raise DamagedOrc(words) if number is None else OSError(number, os.strerror(number))
        yield batch


def _reason(child: subprocess.Popen[bytes]) -> Exception:
    """Cause, if the child ended before its stream did."""
    if child.wait() == -signal.SIGKILL:
        return MemoryError("the process that reads it was killed")
    return DamagedOrc(_BEYOND)


def serve() -> None:
    """Main function of the child process."""
    import pyarrow.dataset
    import pyarrow.orc  # noqa: F401, these now: what they map is not the file's

    path, names, parent = sys.argv[1:4]
    end_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the run ends this process
    pa.set_memory_pool(pa.system_memory_pool())  # others reserve address space in advance
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _bound_memory()
    out = sys.stdout.buffer
    out.write(_READY)
    out.flush()
    _send(Path(path), json.loads(names), out)


def _bound_memory() -> None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            here = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux
        here = 1 << 30
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound = here + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))


def _send(path: Path, names: list[str] | None, out: IO[bytes]) -> None:
    """Write the batches as an Arrow stream, then any error."""
    schema, batches, fault = pa.schema([]), iter(()), None
    try:
        schema, batches = _opened(path, names)
    except _DAMAGE as error:
        fault = error
    with pa.ipc.new_stream(out, schema) as stream:
        while fault is None:
            try:
                batch = next(batches, None)
            except _DAMAGE as error:
                fault = error
                break
            if batch is None:
                return
            stream.write_batch(batch)
            out.flush()  # what precedes the damage is read, however this process ends
        number = fault.errno if isinstance(fault, OSError) else None
        said = f"{type(fault).__name__}: {fault}".replace(str(path), path.name)  # the folder is not content
        words = _BEYOND if isinstance(fault, MemoryError) else said
        nothing = pa.RecordBatch.from_arrays([pa.nulls(0, kind) for kind in schema.types], schema=schema)
        stream.write_batch(nothing, custom_metadata={"fault": json.dumps((number, words))})


def _opened(path: Path, names: list[str] | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    import pyarrow.dataset
    import pyarrow.orc

    found = pyarrow.dataset.dataset(path, format="orc")
    has = set(found.schema.names)
    ways = found.schema.names if names is None else [name if name in has else name.partition(".")[0] for name in names]
    columns = list(dict.fromkeys(way for way in ways if way in has))
    count = pyarrow.orc.ORCFile(path).nrows
    most = _BATCH_BYTES * count // (BOMB_RATIO * max(1, path.stat().st_size))
    scanner = found.scanner(
        columns=columns, batch_size=min(_ROWS, max(1, most)), batch_readahead=1, fragment_readahead=1,
        use_threads=False,
    )  # fmt: skip
    return scanner.projected_schema.with_metadata({"rows": str(count)}), scanner.to_batches()
