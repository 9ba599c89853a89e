"""Arrow IPC files and streams, and ORC files, in batches.

A record's position is its row's number from 0. An IPC file is a stream between two magic words, so both are read
onwards from their start: everything in front of a tear is kept, then one fault `unreadable_rows`.

Bombs: a packed buffer states its size, which is compared with the file's before Arrow unpacks anything
(`streams.is_bomb`); and the bytes of text are counted against the file's. A dictionary or a view can repeat one long
value in many rows: such columns are taken in slices of at most
16 MiB. ORC has no such statement: its rows are read 64 at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.readers.record import Fields, Record, RecordFault, sample
from data_pipeline.readers.rows import read_batch, until_bomb, wanted
from data_pipeline.readers.streams import is_bomb, open_source

_FILE_MAGIC = b"ARROW1\0\0"
_SLICE_BYTES = 16 << 20
_SLICE_ROWS = 1024
_ORC_ROWS = 64
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, struct.error, IndexError)


def read_arrow_file(path: Path, file: str, fields: Fields) -> Iterator[Record | RecordFault]:
    """The rows of an IPC file or stream.

    Raises:
        MissingInput: the file cannot be opened.
    """
    with open_source(path) as source:
        size = path.stat().st_size
        whole = _before_bomb(path, at_stream(source).tell(), size)
        yield from until_bomb(_rows(source, file, fields, whole), size)


def at_stream(source: IO[bytes]) -> IO[bytes]:
    """A file at the beginning of its stream."""
    start = len(_FILE_MAGIC) if source.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
    source.seek(start)
    return source


def _rows(source: IO[bytes], file: str, fields: Fields, whole: int | None) -> Iterator[Record | RecordFault]:
    """Rows of the first `whole` batches; None: of all."""
    position = batches = 0
    try:
        with pa.ipc.open_stream(source) as stream:
            ways = wanted(stream.schema, fields)
            while whole is None or batches < whole:
                try:
                    batch = stream.read_next_batch()
                except StopIteration:
                    return
                batch.validate(full=True)  # offsets of a damaged file may point anywhere
                batches += 1
                for piece in _slices(batch, ways):
                    yield from read_batch(piece, ways, fields, file, position)
                    position += piece.num_rows
    except _DAMAGE as error:
        yield RecordFault(file, position, "unreadable_rows", sample(f"{type(error).__name__}: {error}"))
    else:
        yield RecordFault(file, position, "decompression_bomb", f"record batch {batches}")


def _slices(batch: pa.RecordBatch, ways: dict[str, tuple[str, ...]]) -> Iterator[pa.RecordBatch]:
    """Rows of a batch that take a bounded amount of memory."""
    longest = 1
    for first in {way[0] for way in ways.values()}:
        longest = max(longest, _longest(batch.column(batch.schema.get_all_field_indices(first)[0])))
    rows = max(1, min(_SLICE_ROWS, _SLICE_BYTES // longest))
    yield from (batch.slice(begin, rows) for begin in range(0, batch.num_rows, rows))


def _longest(array: Any) -> int:
    """Bytes of the longest value that several rows may share."""
    kind = array.type
    if pa.types.is_struct(kind):
        return max((_longest(array.field(index)) for index in range(kind.num_fields)), default=1)
    if pa.types.is_dictionary(kind):
        return _longest(array.dictionary)
    if kind in (pa.string_view(), pa.binary_view()):
        views = array.buffers()[1]
        return int(np.frombuffer(views, np.int32)[::4].max(initial=1)) if views else 1
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return int(pc.max(pc.binary_length(array)).as_py() or 1)
    return 1


def _before_bomb(path: Path, start: int, size: int) -> int | None:
    """Batches in front of the first bomb; None without one.

    Damage ends the search: the reader of rows meets it too.
    """
    batches = unpacked = 0
    try:
        with pa.memory_map(str(path)) as mapped:
            mapped.seek(start)
            for message in pa.ipc.MessageReader.open_stream(mapped):
                unpacked += _unpacked_bytes(message)
                if is_bomb(size, unpacked):
                    return batches
                batches += message.type == "record batch"
    except _DAMAGE:
        pass
    return None


def _unpacked_bytes(message: Any) -> int:
    """Stated size of a message's buffers, of packed ones unpacked.

    The metadata is a flatbuffer (Arrow's format/Message.fbs): a table's fields are found through its vtable.
    """
    data, body = message.metadata.to_pybytes(), message.body
    if body is None:
        return 0
    header = _table(data, struct.unpack_from("<I", data)[0], 2)
    batch = header if message.type == "record batch" else _table(data, header, 1)  # a dictionary's batch is inside it
    if message.type not in ("record batch", "dictionary") or not _field(data, batch, 3):
        return int(body.size)
    place = _table(data, batch, 2)
    total = 0
    for index in range(struct.unpack_from("<I", data, place)[0]):
        offset, length = struct.unpack_from("<qq", data, place + 4 + 16 * index)
        stated = struct.unpack("<q", body.slice(offset, 8).to_pybytes())[0] if length >= 8 else 0
        total += stated if stated >= 0 else length
    return int(total)


def _field(data: bytes, table: int, index: int) -> int:
    """Place of a table's field; 0 where it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * index)[0] if 4 + 2 * index < size else 0
    return table + offset if offset else 0


def _table(data: bytes, table: int, index: int) -> int:
    """Place of the table or vector that a field refers to."""
    place = _field(data, table, index)
    if not place:
        raise ValueError("the metadata lacks a field")
    return int(place + struct.unpack_from("<I", data, place)[0])


def read_orc(path: Path, file: str, fields: Fields) -> Iterator[Record | RecordFault]:
    """The rows of an ORC file.

    Raises:
        MissingInput: the file cannot be opened.
    """
    open_source(path).close()
    yield from until_bomb(_orc_rows(path, file, fields), path.stat().st_size)


def _orc_rows(path: Path, file: str, fields: Fields) -> Iterator[Record | RecordFault]:
    import pyarrow.dataset

    position = 0
    try:
        found = pyarrow.dataset.dataset(path, format="orc")
        ways = wanted(found.schema, fields)
        columns = list(dict.fromkeys(way[0] for way in ways.values()))
        scanner = found.scanner(
            columns=columns, batch_size=_ORC_ROWS, batch_readahead=1, fragment_readahead=1, use_threads=False
        )
        for batch in scanner.to_batches():
            yield from read_batch(batch, ways, fields, file, position)
            position += batch.num_rows
    except _DAMAGE as error:
        yield RecordFault(file, position, "unreadable_rows", sample(f"{type(error).__name__}: {error}"))
