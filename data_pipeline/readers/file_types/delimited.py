"""CSV and TSV (RFC 4180) with a header row, streamed.

A record's position is its row's number from 0, the header not counted. A blank line holds no record. Line breaks in
quoted values belong to the value, so a file cannot be cut: one worker reads it from its start.

Another encoding than UTF-8 is transcoded block by block. Bytes that it cannot decode spoil their own row only.

A quoted value without an end takes the rest of the file with it. After 64 MiB, or at the end of the file, it is one
fault `unclosed_quote`, and the file counts as torn. (In a package's CSV the end of the file is a fault `not_csv`.)
"""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from data_pipeline.readers.record import Fields, Record, RecordFault, sample, to_record
from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream, lines


@dataclass(frozen=True)
class Dialect:
    """Form of the rows of a file."""

    delimiter: str = ","
    quote: str = '"'
    """"": a quotation mark is a character like any other."""
    encoding: str = "utf-8"
    header: tuple[str, ...] = ()
    """Names of the columns of a file without a header row."""


def read_csv(
    pieces: Iterable[bytes], file: str, fields: Fields, dialect: Dialect | None = None
) -> Iterator[Record | RecordFault]:
    """Records and faults of a stream of rows, in order.

    Without `dialect` the file is a package's: commas, UTF-8, and faults without line numbers.
    """
    form = dialect or Dialect()
    csv.field_size_limit(MAX_RECORD_BYTES)
    fed = _Fed(lines(pieces if form.encoding == "utf-8" else _as_utf8(pieces, form.encoding)))
    rows = (
        csv.reader(fed, strict=True, delimiter=form.delimiter, quotechar=form.quote)
        if form.quote
        else csv.reader(fed, strict=True, delimiter=form.delimiter, quoting=csv.QUOTE_NONE)
    )
    header: list[str] | None = list(form.header) or None
    wrong = ""
    position = 0
    while True:
        begin, fed.bytes = rows.line_num + 1, 0
        try:
            row = next(rows, None)
        except csv.Error as error:
            ended = dialect is not None and "unexpected end of data" in str(error)
            reason = "unclosed_quote" if ended else "not_csv"
            yield RecordFault(file, position, reason, sample(f"line {begin if ended else rows.line_num}: {error}"))
            position += 1
            continue
        except TornStream as error:
            yield RecordFault(file, position, error.reason, sample(error.tail or f"line {begin}".encode()))
            return
        if row is None:
            return
        if header is None:
            header = row
            wrong = _fault_of(row, fields) if dialect else ""
        elif row:
            shown = ",".join(row) if dialect is None else f"line {begin}: {form.delimiter.join(row)}"
            if wrong or len(row) != len(header):
                yield RecordFault(file, position, wrong or "wrong_columns", sample(shown))
            else:
                piece = to_record(dict(zip(header, row, strict=True)), fields, file, position, shown)
                if isinstance(piece, RecordFault) and piece.reason == "lone_surrogate":
                    piece = replace(piece, reason="not_utf8" if form.encoding == "utf-8" else "wrong_encoding")
                yield piece
            position += 1


def _fault_of(header: list[str], fields: Fields) -> str:
    """The fault of all rows below this header, or ""."""
    if any("\udc80" <= character <= "\udcff" for name in header for character in name):
        return "not_utf8"
    return "repeated_column" if any(Counter(header)[name] > 1 for name in fields.names) else ""


class _Fed:
    """Lines for the CSV reader, up to a row without end."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self.bytes = 0
        """Of the row that is being read."""

    def __iter__(self) -> _Fed:
        return self

    def __next__(self) -> str:
        if self.bytes > MAX_RECORD_BYTES:
            raise TornStream("unclosed_quote")
        line = next(self._source)
        self.bytes += len(line) + 1
        # Bytes that are not UTF-8 come through as lone surrogates, so that they spoil their own row only.
        return line.decode("utf-8", "surrogateescape") + "\n"


def _as_utf8(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """The stream in UTF-8.

    Bytes that cannot be decoded become a byte that is not UTF-8.
    """
    codecs.register_error("assay_spoilt", lambda error: ("\udc80", error.end))  # type: ignore[attr-defined]
    decoder = codecs.getincrementaldecoder(encoding)("assay_spoilt")
    try:
        for piece in pieces:
            yield decoder.decode(piece).encode("utf-8", "surrogateescape")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")
    except UnicodeError as error:  # the codec gives up: UTF-16 without a byte-order mark
        raise TornStream("undecodable") from error
