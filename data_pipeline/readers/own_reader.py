"""Files read by a function of the run's own.

    [[data.sources]]
    type = "own"
    reader = "mylab.formats:read_mails"
    paths = ["mails/*.mbox"]

The function takes a file's path and yields its records: a string, or a mapping with the source's fields (`text`, `id`,
`url`, ...). What it raises of the file's content is a fault `reader_failed`: the records before it are kept, the
rest of the file is lost and counted as torn. What the machine causes (an OSError of the system, no memory, a record
that takes longer than `seconds`) ends the stage: the next start may read the same file whole, and the bytes of an
artifact must not depend on that. The function's source files are inputs of the
artifact (`items.list_files`), and each worker checks their digest before it runs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_pipeline.readers.record import Record, RecordFault, sample, to_record
from data_pipeline.readers.sources import OwnSource
from governance.errors import ConfigError
from governance.own_code import OwnCode, first_line, load, source_digest
from governance.processes import time_limit

_END = object()


def read_own(
    path: Path, file: str, source: OwnSource, code: Sequence[tuple[str, Path, str]]
) -> Iterator[Record | RecordFault]:
    """The records and faults of one file.

    Args:
        path: the file.
        file: its name within the source.
        source: the section that names the function.
        code: each source file's name, path and SHA-256, as the artifact's key has them.

    Raises:
        ConfigError: the source changed since the stage started, or has no such function; or the machine failed it.
    """
    root = code[0][1].parents[len(Path(code[0][0]).parts) - 1]
    own = OwnCode(source.reader, root, tuple(place for _, place, _ in code))
    function = load(own, source_digest([(name, digest) for name, _, digest in code]))
    position = 0
    try:
        with time_limit(source.seconds):
            made = function(path)
            if isinstance(made, str | Mapping):  # its characters, or keys, would become documents
                raise TypeError(f"the function returned one {type(made).__name__}; yield each record")
            rows = iter(made)
        while True:
            with time_limit(source.seconds):
                row = next(rows, _END)
            if row is _END:
                return
            row = {source.text_field: row} if isinstance(row, str) else row
            if isinstance(row, Mapping):
                yield to_record(row, source.fields, file, position)
            else:
                yield RecordFault(file, position, "not_an_object", sample(str(row)))
            position += 1
    except (Exception, SystemExit) as error:  # own code may raise anything, and sys.exit() would end with 0
        words = first_line(error, path, file)
        # without a number an OSError is a library's word for damaged content: gzip.BadGzipFile, of bz2, of Arrow
        system = isinstance(error, OSError) and error.errno is not None
        if system or isinstance(error, TimeoutError | MemoryError):
            raise ConfigError(
                f"source {source.name} ({source.reader}), {file}, record {position}: {words}. No artifact was made. "
                "Start again; if this persists, correct the function or raise the source's `seconds`."
            ) from error
        yield RecordFault(file, position, "reader_failed", sample(words))
