"""Files of one document each: plain text, Markdown, HTML; CSV tables.

HTML goes through `page_process`: its main text, in bounded time whatever the page is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from data_pipeline.readers.delimited import read_csv
from data_pipeline.readers.page_process import read_html
from data_pipeline.readers.record import Fields, Record, RecordFault, sample
from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream

PLAIN = (".txt", ".md")
HTML = (".html", ".htm")
TABLE = (".csv",)


def ending_of(name: str) -> str:
    """The lower-case ending of a file's name, with its dot.

    "" where there is none.
    """
    return PurePosixPath(name).suffix.lower()


def read_member(
    pieces: Iterable[bytes], file: str, ending: str, fields: Fields, language: str = ""
) -> Iterator[Record | RecordFault]:
    """Records of one text, HTML or CSV file, by `ending`."""
    found = read_csv(pieces, file, fields) if ending in TABLE else _read_whole(pieces, file, ending)
    for piece in found:
        if language and isinstance(piece, Record) and not piece.language:
            yield replace(piece, language=language)
        else:
            yield piece


def _read_whole(pieces: Iterable[bytes], file: str, ending: str) -> Iterator[Record | RecordFault]:
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
    if data:
        yield read_html(bytes(data), file) if ending in HTML else read_plain(bytes(data), file)


def read_plain(data: bytes, file: str) -> Record | RecordFault:
    """A text file, without its byte-order mark."""
    try:
        return Record(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8"), file, 0)
    except UnicodeDecodeError:
        return RecordFault(file, 0, "not_utf8", sample(data))
