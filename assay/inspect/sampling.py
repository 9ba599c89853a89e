"""An even sample of files within a bound of bytes.

Small files, and texts of any size, are taken whole, every n-th one; of other larger files evenly spaced stretches of
whole lines or row groups are copied. A compressed file, a web archive, a wiki's dump and an Arrow stream can only be
read from the start, and a stripe of ORC only whole: the head is copied, compressed as the file is. `ingest` reports
what is damaged.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import lzma
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq

from assay.inspect.formats import InputFiles
from data_pipeline.readers.file_types.arrow_files import at_stream
from data_pipeline.readers.file_types.orc_process import open_orc
from data_pipeline.readers.streams import PACKED, TornStream, blocks, lines
from governance.files import atomic_file, atomic_path, place

_Item = TypeVar("_Item")
MAX_FILES = 5_000
"""Files of one kind that are read."""
_WHOLE_BYTES = 4 << 20
_STRETCH_BYTES = 1 << 20
_GZIP_MEMBER = b"\x1f\x8b\x08"
_LINE = (b"\n", 1)
_RECORD = (b"\r\n\r\nWARC/1", 4)
"""Bytes between two records, and how many belong to the first."""
_PAGE = (b"</page>", 7)


def sample_files(inputs: InputFiles, fraction: float, folder: Path) -> tuple[InputFiles, bool]:
    """The files to read, and whether they are only a part.

    Files that are read whole keep their place unless others were left out.

    Args:
        inputs: files of one kind.
        fraction: how much of their bytes may be read, up to 1.
        folder: where copies are written.
    """
    few = min(1.0, MAX_FILES / len(inputs.files))
    if fraction >= 1 and few == 1:
        return inputs, False
    sizes = {file: file.stat().st_size for file in inputs.files}
    small = [file for file, size in sizes.items() if size <= _WHOLE_BYTES or inputs.kind == "text"]
    whole = set(small)
    large = [file for file in inputs.files if file not in whole]
    every = min(few, fraction * sum(sizes[file] for file in large) / max(1, len(large)) / _STRETCH_BYTES)
    taken = {file: 1.0 for file in _every(small, min(fraction, few))}
    taken |= {file: min(1.0, fraction / every) for file in _every(large, every)}
    copies = []
    for number, file in enumerate(file for file in inputs.files if file in taken):
        target = folder / f"{number:06d}-{file.name}"
        copies.append(_copy(inputs, file, target, int(sizes[file] * taken[file])))
    size = sum(path.stat().st_size for path in copies)
    return replace(inputs, files=tuple(copies), bytes=size), min(fraction, few) < 1


def _every(files: Sequence[_Item], share: float) -> Sequence[_Item]:
    """That share of the files, evenly spaced; at least one of them."""
    share = min(share, 1.0)
    return [file for number, file in enumerate(files) if int((number + 1) * share) > int(number * share)] or files[:1]


def _copy(inputs: InputFiles, file: Path, target: Path, size: int) -> Path:
    """A copy of the file's first or evenly spaced `size` bytes."""
    packed = inputs.ending.endswith(PACKED)
    text = size * inputs.text_bytes // max(1, inputs.bytes)
    if size >= file.stat().st_size and (inputs.kind != "text" or size <= _WHOLE_BYTES):
        place(file, target)
        return target
    if copy_part := _BY_PART.get(inputs.kind if inputs.ending != ".wacz" else "wacz"):
        try:
            copy_part(file, target, size)
            return target
        except (OSError, ValueError, MemoryError, pa.ArrowException, zipfile.BadZipFile):
            pieces = iter([_first_bytes(file, size)])
    elif inputs.kind in ("warc", "wet") and inputs.ending.endswith(".gz"):
        pieces, packed = iter([_whole_members(file, size)]), False
    elif inputs.kind == "jsonl" and not packed:
        pieces = _stretches(file, size)
    elif inputs.kind in ("csv", "tsv"):
        pieces = _whole_rows(file, text)
    elif inputs.kind == "mediawiki":
        pieces = _whole_pages(file, text)
    else:
        bound = min(text, _WHOLE_BYTES) if inputs.kind == "text" else text
        pieces = _whole_records(_sound(file), bound, *(_RECORD if inputs.kind in ("warc", "wet") else _LINE))
    with atomic_file(target) as out, _packer(out, target.suffix if packed else "") as packer:
        for piece in pieces:
            packer.write(piece)
    return target


def _packer(out: BinaryIO, ending: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """A file that compresses the bytes written to it."""
    if ending == ".gz":
        return cast(BinaryIO, gzip.GzipFile("", "wb", 1, out, 0))
    if ending == ".zst":
        import zstandard

        return cast(BinaryIO, zstandard.ZstdCompressor(1).stream_writer(out, closefd=False))
    if ending == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(out, "wb", preset=0))
    if ending == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(out, "wb", compresslevel=1))
    if ending == ".lz4":
        own = os.fdopen(os.dup(out.fileno()), "wb")  # Arrow closes the file that it writes to
        return cast(BinaryIO, pa.CompressedOutputStream(pa.PythonFile(own, "w"), "lz4"))
    return contextlib.nullcontext(out)


def _sound(file: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed, before any damage."""
    with contextlib.suppress(TornStream):
        yield from blocks(file)


def _first_bytes(file: Path, size: int) -> bytes:
    with file.open("rb") as source:
        return source.read(size)


def _stretches(file: Path, size: int) -> Iterator[bytes]:
    """Whole lines at evenly spaced places."""
    number = max(1, size // _STRETCH_BYTES)
    end, left, done = file.stat().st_size, size, 0
    with file.open("rb") as source:
        for at in range(number):
            start = max(at * (end // number), done)  # a stretch ends after its bytes, at the end of a line
            source.seek(start)
            if start > done and not source.readline(_STRETCH_BYTES).endswith(b"\n"):  # a line began earlier
                continue
            begin = source.tell()
            stretch = source.read(min(size, _STRETCH_BYTES)) + source.readline(_STRETCH_BYTES)
            if source.tell() < end:
                stretch = stretch[: stretch.rfind(b"\n") + 1]
            yield stretch
            done = begin + len(stretch)
            left -= len(stretch)
            if left <= 0:
                return


def _whole_members(file: Path, size: int) -> bytes:
    head = _first_bytes(file, size)
    end = head.rfind(_GZIP_MEMBER)
    return head[:end] if end > 0 else head


def _whole_records(pieces: Iterator[bytes], size: int, mark: bytes, kept: int) -> Iterator[bytes]:
    """About the first `size` bytes, up to the end of a record.

    A first record that is longer is cut.
    """
    pending, given = b"", 0
    for piece in pieces:
        pending += piece
        end = pending.rfind(mark, 0, max(size - given, 0) + len(mark))
        if end >= 0:
            yield pending[: end + kept]
            given += end + kept
            pending = pending[end + kept :]
        if given + len(pending) > size:
            if not given:
                yield pending[:size]
            return
    yield pending


def _row_groups(file: Path, target: Path, size: int) -> None:
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
        fraction = (size + 1) / file.stat().st_size
        taken = _every([*range(parquet.num_row_groups)], fraction)
        rows = max(1, int(parquet.metadata.num_rows * fraction))
        with atomic_path(target) as temporary, pq.ParquetWriter(temporary, parquet.schema_arrow) as writer:
            for batch in parquet.iter_batches(min(rows, 1024), row_groups=taken, use_threads=False):
                writer.write_batch(batch)
                rows -= batch.num_rows
                if rows <= 0:
                    break


def _batches(file: Path, target: Path, size: int) -> None:
    with (
        file.open("rb") as source,
        pa.ipc.open_stream(at_stream(source)) as stream,
        atomic_path(target) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, stream.schema) as out,
    ):
        for batch in stream:
            out.write_batch(batch)
            if source.tell() >= size:
                break


def _first_rows(file: Path, target: Path, size: int) -> None:
    """The first rows of an ORC file.

    A stripe, which would be the smallest even part, may have any size.
    """
    with open_orc(file) as orc, atomic_path(target) as temporary:
        rows = max(1, int(orc.stated * (size + 1) / file.stat().st_size))
        with pyarrow.orc.ORCWriter(str(temporary), compression="zstd") as writer:
            for batch in orc.batches:
                writer.write(pa.Table.from_batches([batch.slice(0, rows)]))
                rows -= batch.num_rows
                if rows <= 0:
                    break


def _archives(file: Path, target: Path, size: int) -> None:
    """The first web archives of a WACZ file, cut between records."""
    with zipfile.ZipFile(file) as source, atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as out:
        for member in source.infolist():
            if not member.filename.startswith("archive/") or member.is_dir():
                continue
            with source.open(member) as packed:
                head = packed.read(size)
            if len(head) < member.file_size:
                at = head.rfind(_GZIP_MEMBER if member.filename.endswith(".gz") else _RECORD[0])
                head = head[: at + (0 if member.filename.endswith(".gz") else _RECORD[1])] if at > 0 else head
            out.writestr(member.filename, head)
            size -= len(head)
            if size <= 0 or len(head) < member.file_size:
                break


_BY_PART = {"parquet": _row_groups, "arrow": _batches, "orc": _first_rows, "wacz": _archives}


def _whole_pages(file: Path, size: int) -> Iterator[bytes]:
    """About the first `size` bytes of a wiki's dump, in whole pages."""
    tail = b""
    for piece in _whole_records(_sound(file), size, *_PAGE):
        yield piece
        tail = (tail + piece)[-64:]
    if b"</mediawiki>" not in tail:
        yield b"\n</mediawiki>\n"


def _whole_rows(file: Path, size: int) -> Iterator[bytes]:
    """About the first `size` bytes of a table, in whole rows."""
    quotes, rest = 0, b""
    for number, line in enumerate(lines(_sound(file))):
        if not number and (line.startswith(codecs.BOM_UTF16_LE) or line[1:2] == b"\0"):
            rest = b"\0"  # UTF-16-LE, in which a line end has two bytes
        yield line + b"\n"
        size -= len(line) + 1
        quotes += line.count(b'"')
        if (size < 0 and quotes % 2 == 0) or size < -_WHOLE_BYTES:  # a quoted value may have line breaks
            break
    yield rest
