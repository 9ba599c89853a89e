"""JSON Lines (RFC 8259, UTF-8): plain, .gz or .zst.

A record's position is its line's number from 0, also where a shard reads only a part of a plain file; a compressed
file cannot be cut, it is read by one process from its start. A line of white space only holds no record and is passed
over, as editors leave one at the end; every other line is a record or a fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from data_pipeline.readers.record import Fields, Record, RecordFault, sample, to_record
from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream, lines


def read_jsonl(pieces: Iterable[bytes], file: str, fields: Fields, first: int = 0) -> Iterator[Record | RecordFault]:
    """Records and faults of a JSON lines stream, in order.

    `first` is the number of the stream's first line within its file.
    """
    position = first - 1
    try:
        for position, line in enumerate(lines(pieces, whole=not first), first):
            if not line.isspace() and line:
                yield _read_line(line, file, position, fields)
    except TornStream as error:
        last = _read_line(error.tail, file, position + 1, fields)
        if isinstance(last, Record):  # an object that is closed was whole: only its line end is lost
            yield last
            position += 1
        yield RecordFault(file, position + 1, error.reason, sample(error.tail))


def _read_line(line: bytes, file: str, position: int, fields: Fields) -> Record | RecordFault:
    if len(line) > MAX_RECORD_BYTES:
        return RecordFault(file, position, "line_too_long", sample(line))
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return RecordFault(file, position, "not_utf8", sample(line))
    except (ValueError, RecursionError):  # also a number of too many digits, or objects nested too deep
        return RecordFault(file, position, "not_json", sample(line))
    if not isinstance(row, dict):
        return RecordFault(file, position, "not_an_object", sample(line))
    record = to_record(row, fields, file, position)
    return RecordFault(file, position, record, sample(line)) if isinstance(record, str) else record
