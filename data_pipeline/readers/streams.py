"""Byte and line streams of plain and packed files.

The packed forms are .gz, .zst, .xz, .bz2 and .lz4.

Promise: memory stays level whatever the file's size, and a torn file yields everything before the tear, then
`TornStream`. The libraries' own file objects do not: one drops what it had decoded when the end is missing, the other
treats a missing end as the end.

A stream that unpacks to more than `BOMB_BYTES` and to more than `BOMB_RATIO` times what went in is torn there, as
`decompression_bomb`. Prose packs 3 to 6 times and repetitive logs up to 100 times; a bomb is built near deflate's
limit of 1032 times, or zstd's of 32,768 times. Below 128 MiB everything passes, long runs of zeros too.
"""

from __future__ import annotations

import bz2
import errno
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

from governance.errors import MissingInput

BLOCK_BYTES = 1 << 18
MAX_RECORD_BYTES = 1 << 26
"""A line, or a file that is one document, of more than 64 MiB is a fault: it is binary, or its line ends are lost."""
BOMB_BYTES = 128 << 20
BOMB_RATIO = 250
_GZIP_HEADER = 31  # zlib's window bits for "a gzip member with header and check sum"
_ZSTD_STEP_BYTES = 512  # a call's output has no bound, so its input is small: 512 bytes give at most 16 MiB
_STEP_BYTES = 1 << 12  # for .xz, .bz2 and .lz4: if their library fails, what it had decoded of the step is lost
_XZ_MEMORY_BYTES = 256 << 20  # `xz -9` needs 65 MiB; a header can ask for 4 GiB
_ZSTD_WINDOW_BYTES = 1 << 31  # the largest that `zstd --ultra --long=31` writes; only a frame that needs it uses it


class TornStream(Exception):
    """A stream ends, or turns into nonsense, before its end.

    `tail` is the line that was cut.
    """

    def __init__(self, reason: str, tail: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.tail = tail


def open_source(path: Path, buffer_bytes: int = -1) -> IO[bytes]:
    """Open a source file for reading.

    A larger buffer (-1: Python's) spares calls where a reader seeks and continues.

    Raises:
        MissingInput: it is missing or cannot be read.
    """
    try:
        return open(path, "rb", buffer_bytes)
    except OSError as error:
        raise MissingInput(
            f"cannot read {path}: {error.strerror}. Correct the source's `paths`, or the file."
        ) from error


def blocks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file.

    The end of its name (one of `PACKED`, or another) determines the format.

    Raises:
        MissingInput: it cannot be opened, or the device fails while it is read.
        TornStream: the compressed stream has no whole end.
    """
    with open_source(path) as source:
        unpack = _UNPACKERS.get(path.suffix)
        raw = _raw_blocks(source, path)
        yield from unpacked(raw, unpack) if unpack else raw


def byte_range(path: Path, begin: int, end: int) -> Iterator[bytes]:
    """The bytes `begin` to `end` (exclusive) of a plain file.

    Raises:
        MissingInput: it cannot be opened, or the device fails while it is read.
    """
    with open_source(path) as source:
        source.seek(begin)
        yield from _first(_raw_blocks(source, path), end - begin)


def end_at_machine_error(error: BaseException, path: Path) -> None:
    """End the run where the machine, not the file, is at fault.

    Without a number an `OSError` is a library's word for damaged content; an invalid argument is the file's own offset.

    Raises:
        MissingInput: the device fails while the file is read, or the memory does not suffice.
    """
    if isinstance(error, MemoryError):
        raise MissingInput(f"cannot read {path}: not enough memory. Give the run more memory.") from error
    if isinstance(error, zipfile.BadZipFile) and isinstance(error.__context__, OSError):
        error = error.__context__  # the end record could not be read
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        reason = error.strerror or error
        raise MissingInput(
            f"cannot read {path}: {reason}. Start again; if this persists, examine the device."
        ) from error


def is_bomb(packed: int, unpacked: int) -> bool:
    """Return whether the compression ratio marks a decompression bomb."""
    return unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed


Unpack = Callable[[Iterator[bytes]], Iterator[bytes]]


def unpacked(raw: Iterator[bytes], unpack: Unpack) -> Iterator[bytes]:
    """Decompressed blocks of a stream, until its end or a bomb.

    Raises:
        TornStream: the compressed stream has no whole end, is nonsense, or is a bomb.
    """
    packed = size = 0

    def counted() -> Iterator[bytes]:
        nonlocal packed
        for block in raw:
            packed += len(block)
            yield block

    for piece in unpack(counted()):
        allowed = max(BOMB_BYTES, BOMB_RATIO * packed) - size
        yield piece[:allowed]
        size += len(piece)
        if len(piece) > allowed:
            raise TornStream("decompression_bomb")


def plain_name(name: str) -> str:
    """A file's name without the ending of its compression."""
    return name.removesuffix(next((ending for ending in PACKED if name.endswith(ending)), ""))


def _raw_blocks(source: IO[bytes], path: Path) -> Iterator[bytes]:
    while True:
        try:
            block = source.read(BLOCK_BYTES)
        except OSError as error:
            raise MissingInput(f"cannot read {path}: {error.strerror} at byte {source.tell()}.") from error
        if not block:
            return
        yield block


def _gunzip(raw: Iterator[bytes]) -> Iterator[bytes]:
    """Inflate one gzip member after another (RFC 1952).

    Zero bytes between and after them are padding.
    """
    inflater = None
    for block in raw:
        data = block
        while data:
            if inflater is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                inflater = zlib.decompressobj(_GZIP_HEADER)
            before = inflater.copy()
            try:
                piece = inflater.decompress(data, BLOCK_BYTES)
            except zlib.error as error:
                yield from inflate_until_nonsense(before, data)
                raise TornStream("corrupt_gzip") from error
            if piece:
                yield piece
            if inflater.eof:
                data, inflater = inflater.unused_data, None
            else:
                data = inflater.unconsumed_tail
    if inflater is not None:
        yield inflater.flush()  # zlib may hold back the last output of a whole stream
        if not inflater.eof:
            raise TornStream("truncated_gzip")


def inflate_until_nonsense(inflater: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """Bytes that zlib decoded before it failed."""
    try:
        for index in range(len(data)):
            yield inflater.decompress(data[index : index + 1])
    except zlib.error:
        return


def _unzstd(raw: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress one zstd frame after another (RFC 8878)."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    frame = None
    for block in raw:
        for start in range(0, len(block), _ZSTD_STEP_BYTES):
            data = block[start : start + _ZSTD_STEP_BYTES]
            while data:
                frame = frame or decompressor.decompressobj()
                try:
                    piece = frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise TornStream("corrupt_zstd") from error
                if piece:
                    yield piece
                data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise TornStream("truncated_zstd")


def _inflate(new: Callable[[], Any], damage: type[Exception], name: str) -> Unpack:
    """An unpacker out of the standard library's decompressor of .xz or .bz2.

    Several streams may follow one another.
    """

    def unpack(raw: Iterator[bytes]) -> Iterator[bytes]:
        inflater, ended = None, False
        for step in (block[k : k + _STEP_BYTES] for block in raw for k in range(0, len(block), _STEP_BYTES)):
            data = step.lstrip(b"\0") if ended else step  # .xz may be padded with zeros
            while data or (inflater and not inflater.needs_input and not inflater.eof):
                inflater, ended = inflater or new(), False
                try:
                    yield inflater.decompress(data, BLOCK_BYTES)
                except damage as error:
                    greedy = "usage limit" in str(error)  # the library's own bound on memory, for .xz
                    raise TornStream("dictionary_too_large" if greedy else f"corrupt_{name}") from error
                data = b""
                if inflater.eof:
                    data, inflater, ended = inflater.unused_data.lstrip(b"\0"), None, True
        if inflater is not None:
            raise TornStream(f"truncated_{name}")

    return unpack


def _unlz4(raw: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress one LZ4 frame after another."""
    import pyarrow as pa

    source = io.BufferedReader(_Pieces(raw), BLOCK_BYTES)
    try:
        while source.peek(1):  # Arrow reads one frame and what follows it
            stream = pa.CompressedInputStream(pa.PythonFile(source, "r"), "lz4")
            while piece := stream.read(_STEP_BYTES):
                yield piece
    except OSError as error:
        raise TornStream("truncated_lz4" if "runcated" in str(error) else "corrupt_lz4") from error


_UNPACKERS: dict[str, Unpack] = {
    ".gz": _gunzip,
    ".zst": _unzstd,
    ".xz": _inflate(lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES), lzma.LZMAError, "xz"),
    ".bz2": _inflate(bz2.BZ2Decompressor, OSError, "bzip2"),
    ".lz4": _unlz4,
}
PACKED = tuple(_UNPACKERS)
"""Endings of packed files that are read."""
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ\0": ".xz", b"BZh": ".bz2"}


class _Pieces(io.RawIOBase):
    """A forward-only file over byte blocks; raises at the tear."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = memoryview(b"")
        self._torn: TornStream | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            if self._torn:
                raise self._torn
            try:
                piece = next(self._pieces, None)
            except TornStream as error:
                self._torn = error
                raise
            if piece is None:
                return 0
            self._held = memoryview(piece)
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count


def unpacked_file(source: IO[bytes], path: Path, length: int | None = None) -> IO[bytes]:
    """The next `length` bytes of a file, decompressed by signature.

    The result is a file that can only be read onwards; its `read` raises the errors of `unpacked`.
    """
    start = source.tell()
    head = source.read(max(map(len, _MAGIC)))
    source.seek(start)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    raw = _raw_blocks(source, path) if length is None else _first(_raw_blocks(source, path), length)
    return _Pieces(unpacked(raw, _UNPACKERS[kind]) if kind else raw)  # type: ignore[return-value]


def parse_xml(parser: expat.XMLParserType, data: bytes, final: bool, silent: int) -> None:
    """Parse a part of an XML file.

    `silent` bytes, these included, came since the parser's last event.

    Raises:
        TornStream: they are not well-formed, or hostile.
    """
    if silent > MAX_RECORD_BYTES:
        raise TornStream("hostile_xml", b"a tag of more than 64 MiB")
    try:
        parser.Parse(data, final)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the last two: an encoding that cannot be read
        early = final and isinstance(error, expat.ExpatError)
        raise TornStream("truncated_xml" if early else "corrupt_xml", str(error).encode()) from error


def _first(pieces: Iterator[bytes], length: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[:length]
        length -= len(piece)
        if length <= 0:
            return


def lines(pieces: Iterable[bytes], *, whole: bool = True, quote: bytes = b"") -> Iterator[bytes]:
    r"""Split a stream at b"\n".

    The ends are taken off, and so is a byte-order mark at the start of a `whole` file.

    A line above `MAX_RECORD_BYTES` is cut just after that bound, so that the reader can recognise it. The number of
    its quotation marks stays odd or even.

    Raises:
        TornStream: the stream does; the line that was cut is its `tail`.
    """
    pending: list[bytes] = []
    size = 0
    first = whole

    def bounded(part: bytes) -> bytes:
        room = max(0, MAX_RECORD_BYTES + 1 - size)
        return part[:room] + quote * (quote != b"" and part.count(quote, room) % 2)

    try:
        for block in pieces:
            *ended, rest = block.split(b"\n")
            for line in ended:
                if pending:
                    pending.append(bounded(line))
                    full = b"".join(pending)
                    pending, size = [], 0
                else:
                    full = line
                yield _without_mark(full) if first else full
                first = False
            if rest and (part := bounded(rest)):
                pending.append(part)
                size += len(part)
    except TornStream as error:
        tail = b"".join(pending)
        raise TornStream(error.reason, _without_mark(tail) if first else tail) from error
    if pending:
        line = b"".join(pending)
        yield _without_mark(line) if first else line


def _without_mark(line: bytes) -> bytes:
    return line.removeprefix(b"\xef\xbb\xbf")
