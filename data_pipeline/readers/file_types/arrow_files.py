"""Arrow IPC files and streams, and ORC files, in batches.

A record's position is its row's number from 0. An IPC file is a stream between two magic words, so both are read
onwards from their start: everything before a tear is kept, then one fault `unreadable_rows`. A file without its last
magic word is torn, and so is a stream without its end mark.

Bombs: a packed buffer states its size, which is compared with the file's before Arrow unpacks it (`streams.is_bomb`);
and the bytes of text and the rows are counted against the file's. A dictionary or a view can repeat one long value in
many rows, also inside a list: a batch is taken in slices of at most 16 MiB, and a single row that is a bomb is refused
before it becomes a Python value. ORC is read in a process of its own (`orc_process.py`).

Only the wanted columns are checked and read. Strings are checked as bytes, so that a value that is not UTF-8 spoils its
own row only.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.readers.file_types.orc_process import DamagedOrc, open_orc
from data_pipeline.readers.record import Fields, Record, RecordFault, sample
from data_pipeline.readers.rows import ROW_BYTES, paths_of_fields, read_batch, until_bomb
from data_pipeline.readers.streams import end_at_machine_error, is_bomb, open_source

_FILE_MAGIC, _END_MAGIC = b"ARROW1\0\0", b"ARROW1"
_END_MARK = b"\xff\xff\xff\xff\0\0\0\0"
_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_SLICE_BYTES = 16 << 20
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, struct.error, IndexError)


def read_arrow_file(path: Path, file: str, fields: Fields) -> Iterator[Record | RecordFault]:
    """The rows of an IPC file or stream.

    Raises:
        MissingInput: the file cannot be opened, the device fails while it is read, or the memory does not suffice.
    """
    with open_source(path) as source:
        size = path.stat().st_size
        whole = _before_bomb(path, at_stream(source).tell(), size)
        yield from until_bomb(_rows(source, path, file, fields, whole, size), size)


class _Onwards(io.RawIOBase):
    """A file's rest; a damaged length reserves no memory beyond it."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self._source, self._size = source, size

    def readable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        rest = max(0, self._size - self._source.tell())
        return self._source.read(rest if count < 0 else min(count, rest))

    def tell(self) -> int:
        return self._source.tell()


def at_stream(source: IO[bytes]) -> IO[bytes]:
    """A file at the beginning of its stream."""
    start = len(_FILE_MAGIC) if source.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
    source.seek(start)
    return source


def _rows(
    source: IO[bytes], path: Path, file: str, fields: Fields, whole: int | None, size: int
) -> Iterator[Record | RecordFault]:
    """Rows of the first `whole` batches; None: of all."""
    position = batches = 0
    try:
        with pa.ipc.open_stream(_Onwards(source, size)) as stream:
            ways = paths_of_fields(stream.schema, fields)
            while whole is None or batches < whole:
                try:
                    batch = stream.read_next_batch()
                except StopIteration:
                    if not _has_end(source):
                        yield RecordFault(file, position, "unreadable_rows", "the file ends without its end mark")
                    return
                columns = {batch.schema.get_all_field_indices(way[0])[0] for way in ways.values()}
                batches += 1
                for piece in _slices(_checked(batch, sorted(columns))):
                    if piece.num_rows == 1 and is_bomb(size, _bytes(piece.to_struct_array())):
                        yield RecordFault(file, position, "decompression_bomb", f"record batch {batches - 1}")
                        return
                    yield from read_batch(piece, ways, fields, file, position)
                    position += piece.num_rows
    except _DAMAGE as error:
        end_at_machine_error(error, path)
        yield RecordFault(file, position, "unreadable_rows", sample(f"{type(error).__name__}: {error}"))
    else:
        yield RecordFault(file, position, "decompression_bomb", f"record batch {batches}")


def _has_end(source: IO[bytes]) -> bool:
    """Return whether a file, read up to its stream's end, is whole."""
    at = source.tell()
    source.seek(0)
    start = source.read(len(_FILE_MAGIC))
    if start == _FILE_MAGIC:
        source.seek(-len(_END_MAGIC), os.SEEK_END)
        return source.read() == _END_MAGIC
    mark = _END_MARK if start.startswith(_END_MARK[:4]) else _END_MARK[4:]  # before Arrow 0.15 it had 4 bytes
    source.seek(max(0, at - len(mark)))
    return source.read(len(mark)) == mark


def _checked(batch: pa.RecordBatch, columns: list[int]) -> pa.RecordBatch:
    """These columns; offsets of a damaged file may point anywhere."""
    try:
        arrays = [batch.column(column) for column in columns]
    except KeyError as error:  # intervals of months, for one, have no class in pyarrow
        raise pa.ArrowNotImplementedError(f"a column has a type that pyarrow does not read: number {error}") from error
    for array in arrays:
        kind = _as_bytes(array.type)
        (array if kind == array.type else array.view(kind)).validate(full=True)
    return batch.select(columns)


def _as_bytes(kind: Any) -> Any:
    """The type with bytes for strings."""
    types = pa.types
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _as_bytes(kind.value_type), kind.ordered)
    if types.is_struct(kind):
        return pa.struct([part.with_type(_as_bytes(part.type)) for part in kind])
    if types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type), kind.keys_sorted)
    if types.is_list(kind) or types.is_large_list(kind):
        part = kind.value_field.with_type(_as_bytes(kind.value_type))
        return pa.list_(part) if types.is_list(kind) else pa.large_list(part)
    return _BYTES.get(kind, kind)


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Rows of a batch that take a bounded amount of memory."""
    if batch.num_rows > 1 and _bytes(batch.to_struct_array()) > _SLICE_BYTES:
        half = batch.num_rows // 2
        yield from _slices(batch.slice(0, half))
        yield from _slices(batch.slice(half))
    elif batch.num_rows:
        yield batch


def _bytes(array: Any) -> int:
    """Bytes that the values take in Python, repeated ones included."""
    kind, types, count = array.type, pa.types, len(array)
    size = ROW_BYTES * count
    if types.is_struct(kind):
        return size + sum(_bytes(array.field(index)) for index in range(kind.num_fields))
    if types.is_dictionary(kind):
        return size + _repeated(array)
    if kind in (pa.string_view(), pa.binary_view()):
        views = array.buffers()[1]
        lengths = np.frombuffer(views, np.int32)[::4][array.offset : array.offset + count] if views else np.zeros(1)
        return size + int(lengths.sum(dtype=np.int64))
    if kind in _BYTES or kind in _BYTES.values():
        return size + int(pc.sum(pc.binary_length(array)).as_py() or 0)
    if types.is_list_view(kind) or types.is_large_list_view(kind):  # ranges of the values may overlap
        return size + _bytes_of_ranges(array)
    if types.is_map(kind):  # has no `flatten`
        begin, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return size + _bytes(array.values.slice(begin, end - begin))
    if types.is_nested(kind) and hasattr(array, "flatten"):  # lists
        return size + _bytes(array.flatten())
    if types.is_run_end_encoded(kind):
        return size + count * _bytes(array.values)
    if types.is_union(kind):
        return size + count * sum(_bytes(array.field(index)) for index in range(kind.num_fields))
    return size


def _bytes_of_ranges(array: Any) -> int:
    """Bytes of a list view's values, at most, if above 16 MiB."""
    size = 0
    for begin, length in zip(array.offsets.to_pylist(), array.sizes.to_pylist(), strict=True):
        size += _bytes(array.values.slice(begin, length))
        if size > _SLICE_BYTES:
            return size * len(array)
    return size


def _repeated(array: Any) -> int:
    """Bytes of a dictionary's values, as often as they occur."""
    values = array.dictionary
    if values.type not in _BYTES and values.type not in _BYTES.values():
        return len(array) * _bytes(values)
    views = values.type in (pa.string_view(), pa.binary_view())
    lengths = pc.binary_length(values.cast(pa.large_binary()) if views else values)
    return int(pc.sum(pc.take(pc.cast(lengths, pa.int64()), array.indices)).as_py() or 0)


def _before_bomb(path: Path, start: int, size: int) -> int | None:
    """Batches before the first bomb; None without one.

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
    except _DAMAGE as error:
        end_at_machine_error(error, path)
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
        MissingInput: the file cannot be opened, the device fails while it is read, or the memory does not suffice.
    """
    open_source(path).close()
    size = path.stat().st_size
    yield from until_bomb(_orc_rows(path, file, fields, size), size)


def _orc_rows(path: Path, file: str, fields: Fields, size: int) -> Iterator[Record | RecordFault]:
    position = 0
    try:
        with open_orc(path, fields.names) as found:
            ways = paths_of_fields(found.schema, fields)
            for batch in found.batches:
                for piece in _slices(batch):
                    if piece.num_rows == 1 and is_bomb(size, _bytes(piece.to_struct_array())):
                        yield RecordFault(file, position, "decompression_bomb", "the values of a row")
                        return
                    yield from read_batch(piece, ways, fields, file, position)
                    position += piece.num_rows
            if position < found.stated:
                words = f"the file ends early: it states {found.stated} rows"
                yield RecordFault(file, position, "unreadable_rows", words)
    except DamagedOrc as error:
        yield RecordFault(file, position, "unreadable_rows", sample(str(error)))
    except _DAMAGE as error:
        end_at_machine_error(error, path)
        yield RecordFault(file, position, "unreadable_rows", sample(f"{type(error).__name__}: {error}"))
