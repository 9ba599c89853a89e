"""Parquet footers and page headers: offsets and memory a reader needs.

A page is the least that can be unpacked, so its size, and that of a chunk's dictionary, decide the memory that a column
takes. Arrow neither shows nor bounds them: a file of 25 kB whose one page unpacks to 800 MB takes 3.1 GB in pyarrow,
whatever its arguments, and a fault here. The footer is read here too, because pyarrow ends the process on some damaged
ones once their columns are looked at.

Footer and headers are `FileMetaData` and `PageHeader` of parquet.thrift (Apache Parquet format 2) in Thrift's compact
protocol. Each page begins with a header, so a chunk is walked by reading a header and skipping its page.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

_MAGIC = b"PAR1"
_WINDOWS = (1 << 10, 1 << 16, 1 << 24)  # a header is some 50 bytes, but may hold statistics of long values
_DICTIONARY_PAGE = 2
_DATA_PAGES = ((5, 2), (8, 4))  # field of the header of each version's data page, and of the encoding in it
_DELTA_BYTE_ARRAY = 7
_MAX_NESTING = 16
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


@dataclass(frozen=True)
class Chunk:
    """The pages of one column in one row group."""

    path: str
    """The column's name; with dots, where it is inside others."""
    begin: int
    length: int
    """Bytes of the file."""


@dataclass(frozen=True)
class RowGroup:
    """One row group."""

    rows: int
    unpacked: int
    """Bytes of all its columns."""
    chunks: tuple[Chunk, ...]


def row_groups(file: IO[bytes]) -> list[RowGroup]:
    """The row groups that a file's footer names.

    Raises:
        ValueError: it has no footer, or one that is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != _MAGIC or length + 8 > size:
        raise ValueError("no Parquet footer at the end of the file")
    file.seek(size - 8 - length)
    try:
        return [_group(values) for values in _Compact(file.read(length)).struct()[4]]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("the Parquet footer is damaged") from error


def _group(values: dict[int, Any]) -> RowGroup:
    rows, unpacked = values[3], values[2]
    if not isinstance(rows, int) or not isinstance(unpacked, int) or rows < 0:
        raise ValueError("the Parquet footer is damaged")
    return RowGroup(rows, unpacked, tuple(_chunk(chunk[3]) for chunk in values[1]))


def _chunk(values: dict[int, Any]) -> Chunk:
    begin, length = values[9], values[7]
    if 0 < values.get(11, 0) < begin:  # a dictionary precedes the pages
        begin = values[11]
    if begin < 0 or length < 0:
        raise ValueError("the Parquet footer is damaged")
    return Chunk(".".join(part.decode("utf-8", "replace") for part in values[3]), begin, length)


@dataclass(frozen=True)
class PageHeader:
    """Fields of a page header."""

    is_dictionary: bool
    packed: int
    unpacked: int
    """Bytes."""
    values: int
    """Number of values, nulls included; 0 of a dictionary."""
    repeats: bool
    """A value may be a beginning of the one before, stored once (encoding DELTA_BYTE_ARRAY)."""


def pages(file: IO[bytes], chunk: Chunk) -> Iterator[PageHeader]:
    """The pages of a column chunk.

    Raises:
        ValueError: bytes in place of a page header.
    """
    at, end = chunk.begin, chunk.begin + chunk.length
    while at < end:
        page, header = _page(file, at)
        yield page
        at += header + page.packed


def _page(file: IO[bytes], at: int) -> tuple[PageHeader, int]:
    for window in _WINDOWS:
        file.seek(at)
        walker = _Compact(file.read(window))
        try:
            values = walker.struct()
        except IndexError:
            continue  # it does not end within this window
        kind, unpacked, packed = (values.get(field) for field in (1, 2, 3))
        if not (isinstance(kind, int) and isinstance(unpacked, int) and isinstance(packed, int)):
            break
        if min(unpacked, packed) < 0:
            break
        return PageHeader(kind == _DICTIONARY_PAGE, packed, unpacked, *_content(values)), walker.at
    raise ValueError(f"no page header at byte {at}")


def _content(header: dict[int, Any]) -> tuple[int, bool]:
    """Values of a data page, and whether its encoding repeats them."""
    for field, encoding in _DATA_PAGES:
        if isinstance(about := header.get(field), dict):
            values = about.get(1)
            return max(0, values) if isinstance(values, int) else 0, about.get(encoding) == _DELTA_BYTE_ARRAY
    return 0, False


class _Compact:
    """Thrift's compact protocol, as far as Parquet uses it.

    A struct becomes its values by field number.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The values of the struct at `at`, which moves after it.

        Raises:
            IndexError: it does not end within the data.
            ValueError: it is not a struct.
        """
        if depth > _MAX_NESTING:
            raise ValueError("nested too deep for Parquet")
        values: dict[int, Any] = {}
        field = 0
        while (first := self._byte()) != 0:
            field = field + (first >> 4) if first >> 4 else self._zigzag()
            kind = first & 15
            values[field] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return values

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _BINARY:
            size = self._varint()  # moves `at`
            return self._take(size)
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_TRUE, _FALSE, _BYTE):  # a list stores a truth value in a byte
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        raise ValueError(f"not a type of Parquet: {kind}")

    def _list(self, depth: int) -> list[Any]:
        if depth > _MAX_NESTING:
            raise ValueError("nested too deep for Parquet")
        first = self._byte()
        count = first >> 4 if first >> 4 < 15 else self._varint()
        if count > len(self._data) - self.at:  # each value takes a byte at least
            raise IndexError(count)
        return [self._value(first & 15, depth + 1) for _ in range(count)]

    def _take(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self._data):
            raise IndexError(self.at)
        return self._data[self.at - size : self.at]

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("not an integer of Thrift")
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
