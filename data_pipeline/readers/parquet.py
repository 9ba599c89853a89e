"""Parquet files, streamed page by page within bounded memory.

A record's position is its row's number from 0 in the file. Arrow holds a column's current page, its dictionary and one
small batch of rows; by default it would hold the whole row group (one of 2 GB: 2.0 GB resident by default, 133 MB as
it is read here, libraries included). A page, or a dictionary, of more than `MAX_PAGE_BYTES` cannot be read in this
way: its row group becomes one fault, `page_too_large`, and the next one is read. In a damaged row group the rows before
the damage are records, and the rest is one fault, `unreadable_rows`. Page check sums are verified where a file has
them.

A value that a dictionary holds once and a column a million times is a bomb like any other: the bytes of text
are counted against the bytes of the file (`streams.is_bomb`). So are the values that the pages state: a list may hold a
billion nulls in a few bytes. A batch's rows are few enough for the longest value that a dictionary holds, or that an
encoding by common beginnings may repeat.

A row whose file lacks the text's column is a fault like any row without text, so a file of another schema is counted
row by row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.readers.parquet_pages import Chunk, RowGroup, pages, row_groups
from data_pipeline.readers.record import Fields, Record, RecordFault, sample
from data_pipeline.readers.rows import ROW_BYTES, paths_of_fields, read_batch, until_bomb
from data_pipeline.readers.streams import end_at_machine_error, is_bomb, open_source

MAX_PAGE_BYTES = 1 << 28
_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 1024
_REPEATED_BYTES = 64 << 20  # most bytes of a batch whose rows all hold the dictionary's longest value

_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


@dataclass(frozen=True)
class _Open:
    """A Parquet file and the columns to read."""

    reader: pq.ParquetFile
    source: IO[bytes]
    groups: list[RowGroup]
    fields: Fields
    ways: dict[str, tuple[str, ...]]
    file: str

    def chunks(self, group: int) -> list[Chunk]:
        """The column chunks of a row group that hold the wanted values."""
        names = [".".join(way) for way in self.ways.values()]
        return [
            chunk
            for chunk in self.groups[group].chunks
            if any(chunk.path == name or chunk.path.startswith(f"{name}.") for name in names)
        ]


def read_parquet(
    path: Path, file: str, fields: Fields, groups: range | None = None, first: int = 0
) -> Iterator[Record | RecordFault]:
    """Records and faults of the row groups, in order.

    `first` is the number of their first row within the file.

    Raises:
        MissingInput: the file cannot be opened, the device fails while it is read, or the memory does not suffice.
    """
    with open_source(path) as source, contextlib.ExitStack() as stack:
        try:
            found = row_groups(source)
            reader = stack.enter_context(
                pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
            )
            opened = _Open(reader, source, found, fields, paths_of_fields(reader.schema_arrow, fields), file)
        except _DAMAGE as error:
            end_at_machine_error(error, path)
            yield RecordFault(file, first, "unreadable_rows", _words(error))
            return
        chosen = range(len(found)) if groups is None else groups
        size = path.stat().st_size
        packed = min(size, sum(chunk.length for group in chosen for chunk in opened.chunks(group)))
        yield from until_bomb(_read_groups(opened, chosen, first, size), packed, size)


def _read_groups(opened: _Open, groups: Iterable[int], first: int, size: int) -> Iterator[Record | RecordFault]:
    values = 0
    for group in groups:
        rows = opened.groups[group].rows
        places = range(first, first + rows)
        first += rows
        if not rows or opened.fields.text not in opened.ways:
            columns = ", ".join(opened.reader.schema_arrow.names)
            for position in places:
                yield RecordFault(opened.file, position, "no_text_field", sample(f"columns: {columns}"))
            continue
        try:
            batch_rows, most_values = _of_pages(opened, group)
        except _DAMAGE as error:
            end_at_machine_error(error, Path(opened.source.name))
            yield _lost("unreadable_rows", opened, group, places, _words(error))
            continue
        values += most_values
        if is_bomb(size, ROW_BYTES * values):
            yield _lost("decompression_bomb", opened, group, places, f"its pages state {values:,} values")
            return
        if batch_rows:
            yield from _read_group(opened, group, places, batch_rows)
        else:
            words = f"a page or dictionary of more than {MAX_PAGE_BYTES >> 20} MiB"
            yield _lost("page_too_large", opened, group, places, words)


def _read_group(opened: _Open, group: int, places: range, batch_rows: int) -> Iterator[Record | RecordFault]:
    """Rows of a row group, and one fault for damaged rows."""
    first, rows, count = places.start, places.stop - places.start, 0
    # Damage costs its whole batch, so the rows of the batch before it are read one by one.
    for size in (batch_rows, 1):
        try:
            for batch in _batches(opened, group, size, count):
                yield from read_batch(batch, opened.ways, opened.fields, opened.file, first + count)
                count += batch.num_rows
        except _DAMAGE as error:
            end_at_machine_error(error, Path(opened.source.name))
            words = _words(error)
        else:
            words = "the row group ends early"
            break
    if count < rows:
        yield _lost("unreadable_rows", opened, group, range(first + count, first + rows), words)


def _batches(opened: _Open, group: int, size: int, skip: int) -> Iterator[pa.RecordBatch]:
    """Batches of `size` rows of a row group after `skip`."""
    columns = [".".join(way) for way in opened.ways.values()]
    for batch in opened.reader.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
        if skip >= batch.num_rows:
            skip -= batch.num_rows
        else:
            yield batch.slice(skip)
            skip = 0


def _of_pages(opened: _Open, group: int) -> tuple[int, int]:
    """Rows of a batch, and values of the column with most.

    There are 0 rows if a page is too large. The values are those that the pages state.
    """
    rows = max(1, opened.groups[group].rows)
    unpacked = repeated = most_values = 0
    for chunk in opened.chunks(group):
        values = 0
        with contextlib.suppress(ValueError):  # a damaged header: Arrow gives the rows before it
            for page in pages(opened.source, chunk):
                if max(page.packed, page.unpacked) > MAX_PAGE_BYTES:
                    return 0, 0
                unpacked += page.unpacked
                repeated = max(repeated, page.unpacked if page.is_dictionary or page.repeats else 0)
                values += page.values
        most_values = max(most_values, values)
    longest = max(1, unpacked // rows, repeated * _BATCH_BYTES // _REPEATED_BYTES)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // longest)), most_values


def _lost(reason: str, opened: _Open, group: int, rows: range, words: str) -> RecordFault:
    details = f"row group {group}, rows {rows.start} to {rows.stop - 1}: {words}"
    return RecordFault(opened.file, rows.start, reason, sample(details))


def _words(error: BaseException) -> str:
    return sample(f"{type(error).__name__}: {error}".splitlines()[0])
