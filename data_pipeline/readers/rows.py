"""Records from Arrow batches, dotted names for nested fields.

Strings are taken as bytes and decoded here, value by value: so a value that is not UTF-8 spoils its own row only.
Bytes (`binary`) are read as UTF-8 text, which older writers mean by them. Whole numbers serve as ids; a value of any
other type is what the reasons `text_not_string`, `no_id` and so on are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from data_pipeline.readers.record import Fields, Record, RecordFault, sample, to_record
from data_pipeline.readers.streams import is_bomb

ROW_BYTES = 64
"""Least size of a row in memory: what a file of nulls states is counted with it."""


def paths_of_fields(schema: pa.Schema, fields: Fields) -> dict[str, tuple[str, ...]]:
    """The named values that the schema has.

    The result is their names, and the way to each through columns and structs.
    """
    ways = {}
    for name in fields.names:
        first, *rest = way = (name,) if schema.get_all_field_indices(name) else tuple(name.split("."))
        indices = schema.get_all_field_indices(first)
        kind: Any = schema.field(indices[0]).type if indices else None
        for part in rest:
            place = kind.get_field_index(part) if kind is not None and pa.types.is_struct(kind) else -1
            kind = kind.field(place).type if place >= 0 else None
        if kind is not None:
            ways[name] = way
    return ways


def read_batch(
    batch: pa.RecordBatch, ways: dict[str, tuple[str, ...]], fields: Fields, file: str, first: int
) -> Iterator[Record | RecordFault]:
    """One record or fault for each row.

    `first` is the number of the batch's first row.
    """
    columns = {name: _column(batch, way) for name, way in ways.items()}
    kept = frozenset(fields.columns) - frozenset(replace(fields, columns=()).names)
    kept |= {fields.text} if fields.messages else set()
    for index in range(batch.num_rows):
        row = {
            name: _kept(column, index) if name in kept else _value(column, index) for name, column in columns.items()
        }
        spoilt = next((value for value in row.values() if isinstance(value, bytes)), None)
        if spoilt is not None:
            yield RecordFault(file, first + index, "not_utf8", sample(spoilt))
        else:
            yield to_record(row, fields, file, first + index)


def until_bomb(
    pieces: Iterator[Record | RecordFault], packed: int, file_bytes: int | None = None
) -> Iterator[Record | RecordFault]:
    """Pieces of a file, until their text or number shows a bomb.

    Their text is compared with `packed` bytes, their number with those of the whole file (None: the same).
    """
    unpacked = 0
    for count, piece in enumerate(pieces, 1):
        text = piece.text if isinstance(piece, Record) else piece.sample
        unpacked += len(text) if isinstance(piece, Record) else 0
        if is_bomb(packed, unpacked) or is_bomb(packed if file_bytes is None else file_bytes, ROW_BYTES * count):
            yield RecordFault(piece.file, piece.position, "decompression_bomb", sample(text))
            return
        yield piece


def _column(batch: pa.RecordBatch, way: tuple[str, ...]) -> pa.Array:
    """The values on this way: strings as bytes, others as they are."""
    array = batch.column(batch.schema.get_all_field_indices(way[0])[0])
    for part in way[1:]:
        # `flatten` makes a value null where the struct around it is.
        array = array.flatten()[array.type.get_field_index(part)]
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type in (pa.string_view(), pa.binary_view(), pa.large_string()):
        return array.cast(pa.large_binary())
    return array.cast(pa.binary()) if pa.types.is_string(array.type) else array


def _value(array: pa.Array, index: int) -> Any:
    """A row's value; of a string that is not UTF-8 its bytes."""
    kind = array.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        data = array[index].as_py()
        try:
            return None if data is None else data.decode("utf-8")
        except UnicodeDecodeError:
            return data
    if pa.types.is_integer(kind):
        return array[index].as_py()
    return kind if array[index].is_valid else None  # anything but a string or a number: a fault names its type


def _kept(array: pa.Array, index: int) -> Any:
    """A kept value; none costs its record.

    One that Python has no type for (the year 10000, an unknown time zone) is Arrow's text of it, else null.
    """
    value = array[index]
    try:
        found = value.as_py()
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else found
    except (ValueError, OverflowError, KeyError):
        try:
            return value.cast(pa.string()).as_py()
        except (pa.ArrowException, ValueError):
            return None
