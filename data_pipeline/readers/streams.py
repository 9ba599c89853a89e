"""Bytes out of files: plain, .gz and .zst, block by block, and lines out of blocks.

Promise: memory stays level whatever the file's size, and a torn file gives all that stands before the tear, then
`TornStream`. The libraries' own file objects do not: one drops what it had decoded when the end is missing, the other
takes a missing end for the end.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from governance.errors import MissingInput

BLOCK_BYTES = 1 << 18
MAX_RECORD_BYTES = 1 << 28
"""A line, or a file that is one document, of more than 256 MiB is a fault: it is binary, or its line ends are lost."""
_GZIP_HEADER = 31  # zlib's window bits for "a gzip member with header and check sum"
_ZSTD_STEP_BYTES = 1 << 12  # a call's output has no bound, so its input is small: 4 KiB give at most about 128 MiB
_ZSTD_WINDOW_BYTES = 1 << 31  # the largest that `zstd --ultra --long=31` writes; only a frame that wants it uses it


class TornStream(Exception):
    """A stream ends, or turns into nonsense, before its end; `tail` is the line that was cut."""

    def __init__(self, reason: str, tail: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.tail = tail


def open_source(path: Path) -> IO[bytes]:
    """Open a source file for reading.

    Raises:
        MissingInput: it is not there or cannot be read.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}. Mend the source's `paths`, or the file.") from error


def blocks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file; its name's end (.gz, .zst, other) says how.

    Raises:
        MissingInput: it cannot be opened, or the device fails while it is read.
        TornStream: the compressed stream has no whole end.
    """
    with open_source(path) as source:
        raw = _raw_blocks(source, path)
        if path.name.endswith(".gz"):
            yield from _gunzip(raw)
        elif path.name.endswith(".zst"):
            yield from _unzstd(raw)
        else:
            yield from raw


def plain_name(name: str) -> str:
    """A file's name without the ending of its compression."""
    return name.removesuffix(".gz").removesuffix(".zst")


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
    """Inflate one gzip member after another (RFC 1952); zero bytes between and after them are padding."""
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
                yield from _inflate_until_nonsense(before, data)
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


def _inflate_until_nonsense(inflater: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What a failing call decoded before it failed, byte by byte: zlib itself throws it away."""
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


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    r"""Split a stream at b"\n"; the ends are taken off, and so is a byte-order mark at the start.

    A line above `MAX_RECORD_BYTES` is cut just behind that bound, so that the reader can tell.

    Raises:
        TornStream: the stream does; the line that was cut is its `tail`.
    """
    pending: list[bytes] = []
    size = 0
    first = True
    try:
        for block in pieces:
            *whole, rest = block.split(b"\n")
            for line in whole:
                if pending:
                    pending.append(line[: max(0, MAX_RECORD_BYTES + 1 - size)])
                    full = b"".join(pending)
                    pending, size = [], 0
                else:
                    full = line
                yield _without_mark(full) if first else full
                first = False
            if rest and size <= MAX_RECORD_BYTES:
                pending.append(rest[: MAX_RECORD_BYTES + 1 - size])
                size += len(pending[-1])
    except TornStream as error:
        tail = b"".join(pending)
        raise TornStream(error.reason, _without_mark(tail) if first else tail) from error
    if pending:
        line = b"".join(pending)
        yield _without_mark(line) if first else line


def _without_mark(line: bytes) -> bytes:
    return line.removeprefix(b"\xef\xbb\xbf")
