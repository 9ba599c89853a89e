"""Files read by a function of the run's own.

    [[data.sources]]
    type = "own"
    reader = "mylab.formats:read_mails"
    paths = ["mails/*.mbox"]

The function takes a file's path and yields its records: a string, or a mapping with the source's fields (`text`, `id`,
`url`, ...). What it raises, and a record that takes longer than `seconds`, is a fault `reader_failed`: the records in
front of it are kept, the rest of the file is lost and counted as torn. The function's source files are inputs of the
artifact (`items.files_beside`), and each worker checks their digest before it runs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_pipeline.own_code import OwnCode, first_line, load, source_digest, time_limit
from data_pipeline.readers.record import Record, RecordFault, sample, to_record
from data_pipeline.readers.sources import OwnSource

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
        ConfigError: the source changed since the stage started, or has no such function.
    """
    root = code[0][1].parents[len(Path(code[0][0]).parts) - 1]
    own = OwnCode(source.reader, root, tuple(place for _, place, _ in code))
    function = load(own, source_digest([(name, digest) for name, _, digest in code]))
    position = 0
    try:
        with time_limit(source.seconds):
            rows = iter(function(path))
        while True:
            with time_limit(source.seconds):
                row = next(rows, _END)
            if row is _END:
                return
            row = {source.text_field: row} if isinstance(row, str) else row
            record = to_record(row, source.fields, file, position) if isinstance(row, Mapping) else "not_an_object"
            yield record if isinstance(record, Record) else RecordFault(file, position, record, sample(str(row)))
            position += 1
    except Exception as error:  # whatever own code raises
        yield RecordFault(file, position, "reader_failed", sample(first_line(error)))
