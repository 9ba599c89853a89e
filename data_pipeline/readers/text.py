"""Files that are one document each: plain text, Markdown, and the main text of HTML pages.

HTML: bytes that are valid UTF-8 are UTF-8; others have the encoding that the page declares, else the one that
uchardet finds (both through resiliparse), and a byte without meaning becomes U+FFFD. The main text is resiliparse's;
where it finds none (some malformed pages) all visible text is taken, and the record says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from data_pipeline.readers.delimited import read_csv
from data_pipeline.readers.record import Fault, Fields, Record, sample
from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream

PLAIN = (".txt", ".md")
HTML = (".html", ".htm")
TABLE = (".csv",)


def ending_of(name: str) -> str:
    """The lower-case ending of a file's name, with its dot; "" where there is none."""
    return PurePosixPath(name).suffix.lower()


def read_member(
    pieces: Iterable[bytes], file: str, ending: str, fields: Fields, language: str = ""
) -> Iterator[Record | Fault]:
    """The records of one file of text, HTML or CSV, as its name's `ending` says; streamed where it is CSV."""
    found = read_csv(pieces, file, fields) if ending in TABLE else _read_whole(pieces, file, ending)
    for piece in found:
        if language and isinstance(piece, Record) and not piece.language:
            yield replace(piece, language=language)
        else:
            yield piece


def _read_whole(pieces: Iterable[bytes], file: str, ending: str) -> Iterator[Record | Fault]:
    data = bytearray()
    try:
        for piece in pieces:
            data += piece
            if len(data) > MAX_RECORD_BYTES:
                yield Fault(file, 0, "file_too_long", sample(bytes(data[:1000])))
                return
    except TornStream as error:
        # Half of a text is not that text: the file is one record, and that record is lost.
        yield Fault(file, 0, error.reason, sample(bytes(data[:1000])))
        return
    if data:
        yield read_html(bytes(data), file) if ending in HTML else read_plain(bytes(data), file)


def read_plain(data: bytes, file: str) -> Record | Fault:
    """A text file as it stands, without its byte-order mark."""
    try:
        return Record(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8"), file, 0)
    except UnicodeDecodeError:
        return Fault(file, 0, "not_utf8", sample(data))


def read_html(data: bytes, file: str) -> Record | Fault:
    """The main text of an HTML page, paragraphs and lists kept as lines."""
    from resiliparse.extract.html2text import extract_plain_text

    try:
        page = decode_html(data)
        text = extract_plain_text(page, main_content=True)
        if text.strip():
            return Record(text, file, 0)
        return Record(extract_plain_text(page, main_content=False), file, 0, fallback=True)
    except Exception as error:  # resiliparse is a foreign parser on hostile bytes; its exception has no public name
        return Fault(file, 0, "not_html", sample(f"{type(error).__name__}: {error}"))


def decode_html(data: bytes) -> str:
    """The text of a page whose encoding is not known for certain."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    if b"\0" not in data and b"\x1b" not in data:  # UTF-16 and ISO-2022 can be valid UTF-8 by chance
        try:
            return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        except UnicodeDecodeError:
            pass
    found = detect_encoding(data, from_html_meta=True) or "utf-8"
    return str(bytes_to_str(data, found, errors="replace"))
