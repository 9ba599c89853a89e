"""Files of text: JSON Lines and CSV, plain text, Markdown, HTML, PDF.

JSON Lines and CSV hold one record per row, the others are one document each.

JSON Lines (RFC 8259, UTF-8). A record's position is its line's number from 0, also where a shard reads only a part of a
plain file; a compressed file cannot be cut, it is read by one process from its start. A line of white space only holds
no record and is skipped, as editors leave one at the end; every other line is a record or a fault.

CSV of packages: `file_types/delimited.py`.

HTML goes through `page_process`: its main text, in bounded time whatever the page is. So does PDF: its text layer is
one document; each page that has none and shows something is a fault, `page_needs_ocr`, at the page's number from 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from pydantic_core import from_json

from data_pipeline.readers.file_types.delimited import read_csv
from data_pipeline.readers.file_types.endings import HTML, PDF, TABLE, TEXT
from data_pipeline.readers.page_process import read_html, read_pdf
from data_pipeline.readers.pages.extraction import ASSAY, Extraction
from data_pipeline.readers.record import Fields, Record, RecordFault, sample, to_record
from data_pipeline.readers.sources import PackageSource, Source, TextSource
from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream, lines, plain_name
from governance.errors import ConfigError


def ending_of(name: str) -> str:
    """The lower-case ending of a file's name, with its dot.

    The result is "" where there is none.
    """
    return PurePosixPath(name).suffix.lower()


def check_endings(names: Iterable[str], source: Source) -> None:
    """Refuse files of kinds that the source does not hold.

    Raises:
        ConfigError: there is one.
    """
    allowed = TEXT + (TABLE if isinstance(source, PackageSource) else ())
    for name in names if isinstance(source, TextSource | PackageSource) else ():
        name = plain_name(name) if isinstance(source, TextSource) else name
        if ending_of(name) not in allowed:
            kinds = ", ".join(allowed)
            raise ConfigError(
                f"source {source.name}: {name!r} is not one of {kinds}. Narrow the patterns to such files."
            )


def read_member(
    pieces: Iterable[bytes], file: str, ending: str, fields: Fields, language: str = "", way: Extraction = ASSAY
) -> Iterator[Record | RecordFault]:
    """Records of one text, HTML, PDF or CSV file, by `ending`."""
    for piece in read_csv(pieces, file, fields) if ending in TABLE else _read_whole(pieces, file, ending, way):
        if language and isinstance(piece, Record) and not piece.language:
            yield replace(piece, language=language)
        else:
            yield piece


def _read_whole(pieces: Iterable[bytes], file: str, ending: str, way: Extraction) -> Iterator[Record | RecordFault]:
    data = bytearray()
    try:
        for piece in pieces:
            data += piece
            if len(data) > MAX_RECORD_BYTES:
                yield RecordFault(file, 0, "file_too_long", sample(bytes(data[:1000])))
                return
    except TornStream as error:
        # Half of a text is not that text: the file is one record, and that record is lost.
        yield RecordFault(file, 0, error.reason, sample(bytes(data[:1000])))
        return
    if data and ending in PDF:
        yield from read_pages(bytes(data), file)
    elif data:
        yield read_html(bytes(data), file, way=way) if ending in HTML else read_plain(bytes(data), file)


def read_pages(data: bytes, file: str) -> Iterator[Record | RecordFault]:
    """Document of a PDF file, and faults of pages without text."""
    found = read_pdf(data)
    if isinstance(found, str):
        yield RecordFault(file, 0, found, sample(data[:20]))
        return
    if found.text:
        yield Record(found.text, file, 0)
    elif not found.needs_ocr:
        yield RecordFault(file, 0, "no_text", f"{found.pages} empty page{'s' * (found.pages != 1)}")
    for number in found.needs_ocr:
        yield RecordFault(file, number, "page_needs_ocr", f"page {number + 1} of {found.pages}: no readable text")


def read_plain(data: bytes, file: str) -> Record | RecordFault:
    """A text file, without its byte-order mark."""
    try:
        return Record(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8"), file, 0)
    except UnicodeDecodeError:
        return RecordFault(file, 0, "not_utf8", sample(data))


def read_jsonl(pieces: Iterable[bytes], file: str, fields: Fields, first: int = 0) -> Iterator[Record | RecordFault]:
    """Records and faults of a JSON lines stream, in order.

    `first` is the number of the stream's first line within its file.
    """
    position = first - 1
    try:
        for position, line in enumerate(lines(pieces, whole=not first), first):
            if not line.isspace() and line:
                yield _read_line(line, file, position, fields)
    except TornStream as error:
        last = _read_line(error.tail, file, position + 1, fields)
        if isinstance(last, Record):  # an object that is closed was whole: only its line end is lost
            yield last
            position += 1
        yield RecordFault(file, position + 1, error.reason, sample(error.tail))


def _read_line(line: bytes, file: str, position: int, fields: Fields) -> Record | RecordFault:
    if len(line) > MAX_RECORD_BYTES:
        return RecordFault(file, position, "line_too_long", sample(line))
    row, encodes = parse_quickly(line)
    if row is None:
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            return RecordFault(file, position, "not_utf8", sample(line))
        except (ValueError, RecursionError):  # also a number of too many digits, or objects nested too deep
            return RecordFault(file, position, "not_json", sample(line))
    if not isinstance(row, dict):
        return RecordFault(file, position, "not_an_object", sample(line))
    return to_record(row, fields, file, position, line, encodes=encodes and fields.messages is None)


def parse_quickly(line: bytes) -> tuple[Any, bool]:
    """The value that `json` would read, and True.

    True says that all of its texts have a UTF-8 form. It is None and False where pydantic's reader refuses the line: of
    what `json` reads it refuses lone surrogates and values nested more than 200 deep.
    """
    try:
        return from_json(line, cache_strings="keys"), True
    except ValueError:
        return None, False
