"""CSV with a header row (RFC 4180), streamed.

A record's position is its row's number from 0, the header not counted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from data_pipeline.readers.record import Fields, Record, RecordFault, sample, to_record
from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream, lines


def read_csv(pieces: Iterable[bytes], file: str, fields: Fields) -> Iterator[Record | RecordFault]:
    """Records and faults of a CSV stream, in order."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    # Bytes that are not UTF-8 come through as lone surrogates, so that they spoil their own row only.
    text = (line.decode("utf-8", "surrogateescape") + "\n" for line in lines(pieces))
    rows = csv.reader(text, strict=True)
    header: list[str] | None = None
    position = 0
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield RecordFault(file, position, "not_csv", sample(f"line {rows.line_num}: {error}"))
            position += 1
            continue
        except TornStream as error:
            yield RecordFault(file, position, error.reason, sample(error.tail))
            return
        if row is None:
            return
        if header is None:
            header = row
        elif row:  # a blank line holds no record
            yield _read_row(row, header, fields, file, position)
            position += 1


def _read_row(row: list[str], header: list[str], fields: Fields, file: str, position: int) -> Record | RecordFault:
    if len(row) != len(header):
        return RecordFault(file, position, "wrong_columns", sample(",".join(row)))
    record = to_record(dict(zip(header, row, strict=True)), fields, file, position)
    if isinstance(record, str):
        reason = "not_utf8" if record == "lone_surrogate" else record
        return RecordFault(file, position, reason, sample(",".join(row)))
    return record
