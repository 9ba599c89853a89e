"""WARC records (ISO 28500), plain or compressed.

A compressed file has members (gzip, zstd) or is one stream (xz, bzip2, LZ4).

Promise: every whole record is found, whatever happened to others; damage is reported once, with the byte at which its
member begins (in a plain file: at which it begins), and reading goes on at the next member or header; one stream is
read up to its damage. fastwarc, which parses the records elsewhere, stops for good at the first damage, and takes a
cut record for a whole one: it decompresses here only what is followed by another whole member.

A record's place is that byte, plus the number of records before it in its member where a member holds several (a WARC
that was compressed as one file): unique in the file. Memory is bounded by `MAX_BLOCK_BYTES`: of a longer block only the
start is given.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from data_pipeline.readers.streams import (
    TornStream,
    blocks,
    end_at_machine_error,
    inflate_until_nonsense,
    is_bomb,
    open_source,
)

MAX_BLOCK_BYTES = 64 << 20
MAX_HEADER_BYTES = 64 << 10
_BUFFER_BYTES = 1 << 18  # a member is sought for each record, mostly of a few kB
_STEP_BYTES = 16 << 10
_ZSTD_STEP_BYTES = 4 << 10  # a call's output has no bound, so its input is small
_HEADER_BYTES = 256  # few headers are shorter
_USUAL_HEADER_BYTES = 4 << 10  # few are longer
_SHORTCUT_BYTES = 1 << 20  # most bytes of other members that a wrong length may cost
_MAX_WITHOUT_SHORTCUT = 1000  # members that are read without the shortcut after it has failed
_VERSION = b"WARC/1."
_GAP = b"\r\n\r\n"
_START = re.compile(rb"WARC/1\.[0-9]\r\n[A-Za-z]")
_CONTENT_LENGTH = re.compile(rb"\r\nContent-Length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_BEHIND_BYTES = 16  # bytes read after a block: enough to recognise the next header
_GZIP_MAGIC = b"\x1f\x8b\x08"
_ONE_STREAM = (".xz", ".bz2", ".lz4")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_ZSTD_DICTIONARY = 0x184D2A5D


class RawRecord(NamedTuple):
    """One record: its header and block as bytes, still to be understood."""

    place: int
    data: bytes
    """Version line, named fields, blank line, and the block."""
    cut: bool = False
    """The block is longer than `MAX_BLOCK_BYTES`: `data` holds its start only."""


@dataclass(frozen=True)
class TornRecord:
    """A stretch without a whole record."""

    place: int
    reason: str
    """`warc_torn_record` or `warc_bad_header`."""
    data: bytes
    """The bytes that there are, at most `MAX_HEADER_BYTES`."""


def raw_records(path: Path) -> Iterator[RawRecord | TornRecord]:
    """The records of a file and its torn places, in order.

    Raises:
        MissingInput: it cannot be opened, or the device fails while it is read.
    """
    try:
        yield from _of_stream(path) if path.name.endswith(_ONE_STREAM) else _of_file(path)
    except OSError as error:
        end_at_machine_error(error, path)
        raise


def _of_file(path: Path) -> Iterator[RawRecord | TornRecord]:
    with open_source(path, _BUFFER_BYTES) as source:
        start = source.read(4)
        if start.startswith(_GZIP_MAGIC) or path.name.endswith(".gz"):
            yield from _of_members(source, _gunzip, _GZIP_MAGIC, _whole_members)
        elif start == _ZSTD_MAGIC or _is_skippable(start) or path.name.endswith(".zst"):
            yield from _of_members(source, _unzstd_with(_dictionary(source)), _ZSTD_MAGIC)
        else:
            parser = _Parser(0, source.seek(0, 2))
            source.seek(0)
            while block := source.read(1 << 18):
                yield from parser.feed(block)
            yield from parser.finish(whole=True)


def _of_stream(path: Path) -> Iterator[RawRecord | TornRecord]:
    parser = _Parser(0)
    try:
        for block in blocks(path):
            yield from parser.feed(block)
    except TornStream:
        yield from parser.finish(whole=False)
    else:
        yield from parser.finish(whole=True)


def _is_skippable(magic: bytes) -> bool:
    return int.from_bytes(magic, "little") in _ZSTD_SKIPPABLE


class _DamagedError(Exception):
    """A member has no whole end."""


_Unpack = Callable[[IO[bytes], int], Iterator[tuple[bytes, int]]]
"""Yields the pieces of the member that begins at an offset, the last one with the offset after the member, others
with 0; raises `_DamagedError`."""


_Shortcut = Callable[[IO[bytes], int], Generator[RawRecord, None, int]]
"""Yields the records of the members from an offset on, and returns the offset of the first that it leaves to others."""


def _of_members(
    source: IO[bytes], unpack: _Unpack, magic: bytes, shortcut: _Shortcut | None = None
) -> Iterator[RawRecord | TornRecord]:
    size = source.seek(0, 2)
    offset = _behind_padding(source, 0)
    failed = left = 0
    while offset < size:
        left -= 1
        if shortcut is not None and left < 0:
            begin, offset = offset, (yield from shortcut(source, offset))
            # What it unpacks in vain may be much more than what it skips: it is tried the more rarely.
            failed = min(2 * failed + 1, _MAX_WITHOUT_SHORTCUT) if offset - begin < _STEP_BYTES else 0
            left = failed
        parser: _Parser | None = None
        try:
            for piece, end in unpack(source, offset):
                if end and parser is None and (only := _only_record(piece, offset)):
                    yield only
                else:
                    parser = parser or _Parser(offset)
                    yield from parser.feed(piece)
                    if end:
                        yield from parser.finish(whole=True)
            offset = _behind_padding(source, end)
        except _DamagedError:
            yield from (parser or _Parser(offset)).finish(whole=False)
            offset = _next_member(source, offset + 1, unpack, magic)


def _whole_members(source: IO[bytes], offset: int) -> Generator[RawRecord, None, int]:
    """The records of undamaged gzip members that hold one each.

    FastWARC decompresses them as one stream, in two thirds of zlib's time, and says at which byte the member began that
    it has come to. A record is given when the next member has begun: then its own was whole, with its check sum.

    Returns:
        The offset of the first member that is not such a one, has a long header, or is the last.
    """
    from fastwarc.stream_io import GzipReader

    source.seek(offset)
    unpacked, ahead = GzipReader(source, _STEP_BYTES), _HEADER_BYTES
    try:
        first = unpacked.read(1)
        while first:
            data = first + unpacked.read(ahead)
            while (end := data.find(_GAP)) < 0:
                piece = unpacked.read(_HEADER_BYTES // 4)
                if not piece or len(data) > _USUAL_HEADER_BYTES:
                    return offset
                data += piece
            length = _length_of_record(data, end + len(_GAP))
            if length is None or length > min(_SHORTCUT_BYTES, MAX_BLOCK_BYTES):
                return offset
            total, ahead = end + len(_GAP) + length, end + len(_GAP)
            data += unpacked.read(max(0, total + len(_GAP) - len(data)))
            if data[total:] != _GAP or unpacked.frame_start_position() != offset:
                return offset
            first = unpacked.read(1)
            behind = unpacked.frame_start_position()
            if not first or behind <= offset:  # the file's end, or the member holds more
                break
            yield RawRecord(offset, data[:total])
            offset = behind
    except OSError:  # damage
        pass
    return offset


def _only_record(data: bytes, place: int) -> RawRecord | None:
    """The record of a member that holds one and nothing else.

    Most members are so; `_Parser` would give the same, and takes as long as the decompression.
    """
    end = data.find(_GAP, 0, MAX_HEADER_BYTES) + len(_GAP)
    length = _length_of_record(data, end) if end >= len(_GAP) else None
    if length is None or length > MAX_BLOCK_BYTES or data[end + length :] != _GAP:
        return None
    return RawRecord(place, data[: end + length])


def _length_of_record(data: bytes, end: int) -> int | None:
    """The stated length of the block after a header.

    The header ends at `end`. The result is None if that is not one header.
    """
    if not data.startswith(_VERSION) or _START.search(data, 1, end):
        return None
    return content_length(data[:end])


def _behind_padding(source: IO[bytes], offset: int) -> int:
    """Offset after padding and zstd's skippable frames."""
    while True:
        source.seek(offset)
        start = source.read(8)
        if len(start) == 8 and _is_skippable(start[:4]):
            offset += 8 + int.from_bytes(start[4:], "little")
        elif start and not start.strip(b"\0"):
            offset += len(start)
        else:
            return offset + len(start) - len(start.lstrip(b"\0"))


def _next_member(source: IO[bytes], offset: int, unpack: _Unpack, magic: bytes) -> int:
    """Offset of the next valid WARC member, or the file's end."""
    tail = b""
    while True:
        source.seek(offset)
        block = source.read(1 << 18)
        if not block:
            return offset
        data = tail + block
        begin = offset - len(tail)
        at = data.find(magic)
        while at >= 0:
            if _is_record_start(unpack(source, begin + at)):
                return begin + at
            at = data.find(magic, at + 1)
        offset += len(block)
        tail = data[1 - len(magic) :]


def _is_record_start(member: Iterator[tuple[bytes, int]]) -> bool:
    start = b""
    try:
        while len(start) < len(_VERSION):
            start += next(member)[0]
    except (_DamagedError, StopIteration):
        return False
    return start.startswith(_VERSION)


def _gunzip(source: IO[bytes], offset: int) -> Iterator[tuple[bytes, int]]:
    source.seek(offset)
    inflater, before = zlib.decompressobj(31), None
    packed = unpacked = 0
    while block := source.read(_STEP_BYTES):
        packed += len(block)
        while block:
            if packed > _STEP_BYTES or unpacked:
                before = inflater.copy()  # copies 40 KiB, which a small member, decoded in one step, need not pay
            try:
                piece = inflater.decompress(block, 16 * _STEP_BYTES)
            except zlib.error as error:
                pieces = inflate_until_nonsense(before or zlib.decompressobj(31), block)
                yield from ((piece, 0) for piece in pieces)
                raise _DamagedError from error
            unpacked += len(piece)
            if is_bomb(packed, unpacked):
                raise _DamagedError
            if inflater.eof:
                yield piece, source.tell() - len(inflater.unused_data)
                return
            yield piece, 0
            block = inflater.unconsumed_tail
    rest = inflater.flush()
    yield rest, source.tell() if inflater.eof else 0
    if not inflater.eof:
        raise _DamagedError


def _unzstd_with(dictionary: bytes) -> _Unpack:
    import zstandard

    known = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    decompressor = zstandard.ZstdDecompressor(dict_data=known, max_window_size=1 << 27)

    def unpack(source: IO[bytes], offset: int) -> Iterator[tuple[bytes, int]]:
        source.seek(offset)
        frame = decompressor.decompressobj()
        packed = unpacked = 0
        while block := source.read(_ZSTD_STEP_BYTES):
            try:
                piece = frame.decompress(block)
            except zstandard.ZstdError as error:
                raise _DamagedError from error
            packed += len(block)
            unpacked += len(piece)
            if is_bomb(packed, unpacked):
                raise _DamagedError
            if frame.eof:
                yield piece, source.tell() - len(frame.unused_data)
                return
            yield piece, 0
        raise _DamagedError

    return unpack


def _dictionary(source: IO[bytes]) -> bytes:
    """Dictionary of a .warc.zst, from its leading skippable frame."""
    import zstandard

    source.seek(0)
    start = source.read(8)
    if len(start) < 8:
        return b""
    magic, size = struct.unpack("<II", start)
    if magic != _ZSTD_DICTIONARY or size > MAX_BLOCK_BYTES:
        return b""
    data = source.read(size)
    if not data.startswith(_ZSTD_MAGIC):
        return data
    try:
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_BLOCK_BYTES)
    except zstandard.ZstdError:
        return b""  # then every member is reported as torn


class _Parser:
    """Cuts the bytes of one member into records.

    A record is given when what follows it shows that it is whole.
    """

    def __init__(self, offset: int, size: int | None = None) -> None:
        self._place = offset
        self._size = size  # a plain file's size, with places in bytes; otherwise the member's, with places counted
        self._buffer = bytearray()
        self._skip = 0
        self._lost = False
        self._known: tuple[int, int] | None = None  # where the buffer's first header ends, and its block's length
        self._waiting: RawRecord | None = None  # whole as far as it is seen; its member may be torn yet

    def feed(self, data: bytes) -> Iterator[RawRecord | TornRecord]:
        if self._skip:
            gone = min(self._skip, len(data))
            self._skip -= gone
            self._advance(gone)
            data = data[gone:]
        self._buffer += data
        while (found := self._step(at_end=False)) is not None:
            yield from self._given(found)

    def finish(self, whole: bool) -> Iterator[RawRecord | TornRecord]:
        """The member's end, or (not `whole`) the place where it is torn."""
        while (found := self._step(at_end=True)) is not None:
            yield from self._given(found)
        if whole:
            yield from self._given(None)
            rest = bytes(self._buffer).strip()
            if self._skip or (rest and not self._lost):
                yield TornRecord(self._place, "warc_torn_record", rest[:MAX_HEADER_BYTES])
        elif self._waiting is not None and not self._buffer.strip():
            yield TornRecord(self._waiting.place, "warc_torn_record", self._waiting.data[:MAX_HEADER_BYTES])
        else:
            yield from self._given(None)
            if not self._lost:
                yield TornRecord(self._place, "warc_torn_record", bytes(self._buffer[:MAX_HEADER_BYTES]))

    def _given(self, found: RawRecord | TornRecord | None) -> Iterator[RawRecord | TornRecord]:
        if self._waiting is not None:
            yield self._waiting
        self._waiting = None
        if isinstance(found, RawRecord) and self._size is None:
            self._waiting = found
        elif found is not None:
            yield found

    def _advance(self, count: int, records: int = 0) -> None:
        self._place += records if self._size is None else count

    def _drop(self, count: int, records: int = 0) -> None:
        del self._buffer[:count]
        self._known = None
        self._advance(count, records)

    def _step(self, at_end: bool) -> RawRecord | TornRecord | None:
        """The next record or torn place; None: more bytes are needed."""
        if self._known:
            return self._block(*self._known, at_end)
        if self._lost and not self._found_again():
            return None
        buffer = self._buffer
        if buffer.startswith((b"\r", b"\n")):
            self._drop(len(buffer) - len(buffer.lstrip(b"\r\n")))
        if not buffer[: len(_VERSION)] or not _VERSION.startswith(buffer[: len(_VERSION)]):
            return self._torn("warc_bad_header", 1) if buffer else None
        end = buffer.find(_GAP, 0, MAX_HEADER_BYTES) + len(_GAP)
        if end < len(_GAP):
            return self._torn("warc_bad_header", 1) if len(buffer) >= MAX_HEADER_BYTES else None
        again = _START.search(buffer, 1, end)
        if again:  # the header was cut, and another follows
            return self._torn("warc_bad_header", again.start())
        length = content_length(bytes(buffer[:end]))
        if length is None:
            return self._torn("warc_bad_header", end)
        self._known = (end, length)
        return self._block(end, length, at_end)

    def _block(self, end: int, length: int, at_end: bool) -> RawRecord | TornRecord | None:
        buffer, place = self._buffer, self._place
        if self._size is not None and place + end + length > self._size:
            return self._torn("warc_torn_record", end)
        if length > MAX_BLOCK_BYTES:
            if len(buffer) < end + MAX_HEADER_BYTES and not at_end:
                return None
            record = RawRecord(place, bytes(buffer[: end + MAX_HEADER_BYTES]), cut=True)
            self._skip = max(0, end + length - len(buffer))
            self._drop(min(len(buffer), end + length), 1)
            return record
        total = end + length
        behind = bytes(buffer[total : total + _BEHIND_BYTES])
        if len(buffer) < total or (len(behind) < _BEHIND_BYTES and not at_end):
            # At the end, what a length runs over may be other records.
            return self._torn("warc_torn_record", end) if at_end and len(buffer) < total else None
        next_start = behind.lstrip(b"\r\n")[: len(_VERSION)]
        if not behind.startswith(_GAP) and not _VERSION.startswith(next_start):
            return self._torn("warc_torn_record", end)
        record = RawRecord(place, bytes(buffer[:total]))
        self._drop(total, 1)
        return record

    def _torn(self, reason: str, count: int) -> TornRecord:
        torn = TornRecord(self._place, reason, bytes(self._buffer[:MAX_HEADER_BYTES]))
        self._drop(count, 1)
        self._lost = True
        return torn

    def _found_again(self) -> bool:
        """Drop everything before the next header."""
        found = _START.search(self._buffer)
        if not found:
            self._drop(max(0, len(self._buffer) - _BEHIND_BYTES))
            return False
        self._drop(found.start())
        self._lost = False
        return True


def content_length(header: bytes) -> int | None:
    """The Content-Length of a record's header.

    The result is None where it has none, or no whole number of at most 18 digits.
    """
    found = _CONTENT_LENGTH.search(header)
    return int(found[1]) if found else None
