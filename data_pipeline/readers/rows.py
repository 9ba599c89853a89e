"""Records from Arrow batches, with dotted names for nested fields.

Strings are taken as bytes and decoded here, value by value: so a value that is not UTF-8 spoils its own row only.
Bytes (`binary`) are read as UTF-8 text, which older writers mean by them. Whole numbers serve as ids; a value of any
other type is what the reasons `text_not_string`, `no_id` and so on are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import pyarrow as pa

from data_pipeline.readers.record import Fields, Record, RecordFault, sample, to_record


def wanted(schema: pa.Schema, fields: Fields) -> dict[str, tuple[str, ...]]:
    """The named values that the schema has.

    Their names, and the way to each through columns and structs.
    """
    ways = {name: _way(schema, name) for name in astuple(fields) if name}
    return {name: way for name, way in ways.items() if way}


def _way(schema: pa.Schema, name: str) -> tuple[str, ...]:
    if schema.get_all_field_indices(name):
        return (name,)
    first, *rest = name.split(".")
    indices = schema.get_all_field_indices(first)
    if not indices:
        return ()
    kind = schema.field(indices[0]).type
    for part in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return ()
        kind = kind.field(kind.get_field_index(part)).type
    return (first, *rest)


def read_batch(
    batch: pa.RecordBatch, ways: dict[str, tuple[str, ...]], fields: Fields, file: str, first: int
) -> Iterator[Record | RecordFault]:
    """One record or fault for each row.

    `first` is the number of the batch's first row.
    """
    columns = {name: _plain(_column(batch, way)) for name, way in ways.items()}
    for index in range(batch.num_rows):
        row = {name: _value(column, index) for name, column in columns.items()}
        yield _read_row(row, fields, file, first + index)


def _column(batch: pa.RecordBatch, way: tuple[str, ...]) -> pa.Array:
    array = batch.column(batch.schema.get_all_field_indices(way[0])[0])
    for part in way[1:]:
        # `flatten` makes a value null where the struct around it is.
        array = array.flatten()[array.type.get_field_index(part)]
    return array


def _plain(array: pa.Array) -> pa.Array:
    """Strings as bytes, whatever form they have; other types as they are."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == pa.string_view() or array.type == pa.binary_view():
        return array.cast(pa.large_binary())
    if pa.types.is_string(array.type):
        return array.cast(pa.binary())
    return array.cast(pa.large_binary()) if pa.types.is_large_string(array.type) else array


def _value(array: pa.Array, index: int) -> Any:
    kind = array.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        data = array[index].as_py()
        try:
            return None if data is None else data.decode("utf-8")
        except UnicodeDecodeError:
            return data
    if pa.types.is_integer(kind):
        return array[index].as_py()
    return kind if array[index].is_valid else None  # anything but a string or a number: its type is what a fault says


def _read_row(row: dict[str, Any], fields: Fields, file: str, position: int) -> Record | RecordFault:
    spoilt = next((value for value in row.values() if isinstance(value, bytes)), None)
    if spoilt is not None:
        return RecordFault(file, position, "not_utf8", sample(spoilt))
    record = to_record(row, fields, file, position)
    return RecordFault(file, position, record, sample(str(row))) if isinstance(record, str) else record
