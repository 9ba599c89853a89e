"""CSV and TSV (RFC 4180) with a header row, streamed.

A record's position is its row's number from 0, the header not counted. A blank line holds no record. Line breaks in
quoted values belong to the value, so a file cannot be cut: one worker reads it from its start.

Another encoding than UTF-8 is transcoded block by block. Bytes that it cannot decode spoil their own row only.

A quoted value without an end takes the rest of the file with it. After 64 MiB, or at the end of the file, it is one
fault `unclosed_quote`, and the file counts as torn. (In a package's CSV the end of the file is a fault `not_csv`.)
Any other row of more than 64 MiB is `line_too_long`, and the next row is read.

A malformed row is `not_csv`. Where its quoted value continues on further lines, these are skipped up to its closing
mark: one that a delimiter or the line's end follows.

Blank lines before the header are skipped. A file whose first line ends in a carriage return alone, outside quotes, has
such line ends throughout.
"""

from __future__ import annotations

import codecs
import csv
import re
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

    @property
    def undecoded(self) -> str:
        """Reason of a row with bytes outside the encoding."""
        return "not_utf8" if self.encoding == "utf-8" else "wrong_encoding"


def read_csv(
    pieces: Iterable[bytes], file: str, fields: Fields, dialect: Dialect | None = None
) -> Iterator[Record | RecordFault]:
    """Records and faults of a stream of rows, in order.

    Without `dialect` the file is a package's: commas, UTF-8, and faults without line numbers.
    """
    form = dialect or Dialect()
    csv.field_size_limit(MAX_RECORD_BYTES)  # in characters; `_Fed` bounds the row first
    fed = _Fed(pieces if form.encoding == "utf-8" else _as_utf8(pieces, form.encoding), form)
    rows = (
        csv.reader(fed, strict=True, delimiter=form.delimiter, quotechar=form.quote)
        if form.quote
        else csv.reader(fed, strict=True, delimiter=form.delimiter, quoting=csv.QUOTE_NONE)
    )
    header: list[str] | None = list(form.header) or None
    wrong = wrong_shown = ""
    position = 0
    while True:
        fed.start_row()
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield RecordFault(file, position, *_malformed(error, fed, packaged=dialect is None))
            position += 1
            continue
        except TornStream as error:
            yield RecordFault(file, position, error.reason, sample(error.tail or f"line {fed.begin}".encode()))
            return
        if row is None:
            return
        if header is None:
            if row or dialect is None:
                header = row
                wrong = _fault_of(row, fields, dialect)
                wrong_shown = f"line {fed.begin}: {form.delimiter.join(row)}"
        elif row:
            shown = ",".join(row) if dialect is None else f"line {fed.begin}: {form.delimiter.join(row)}"
            if wrong:
                yield RecordFault(file, position, wrong, sample(wrong_shown))
            elif len(row) != len(header):
                yield RecordFault(file, position, "wrong_columns", sample(shown))
            else:
                piece = to_record(dict(zip(header, row, strict=True)), fields, file, position, shown)
                yield _undecoded(piece, form)
            position += 1


def _undecoded(piece: Record | RecordFault, form: Dialect) -> Record | RecordFault:
    """The piece; bytes outside the encoding came through as surrogates."""
    if isinstance(piece, RecordFault) and piece.reason == "lone_surrogate":
        return replace(piece, reason=form.undecoded)
    return piece


def _malformed(error: csv.Error, fed: _Fed, packaged: bool) -> tuple[str, str]:
    """Reason and sample of a row that the CSV reader refused."""
    words = str(error).partition(" - ")[0]  # the rest is advice for Python programmers
    reason, line = "not_csv", fed.line
    if isinstance(error, _LongRow):
        reason, line = "line_too_long", fed.begin
    elif "unexpected end of data" not in words:
        fed.skip_open_value()
    elif not packaged:
        reason, line = "unclosed_quote", fed.begin
    return reason, sample(f"line {line}: {words}")


def _fault_of(header: list[str], fields: Fields, dialect: Dialect | None) -> str:
    """The fault of all rows below this header, or ""."""
    if dialect is None:
        return ""
    if any("\udc80" <= character <= "\udcff" for name in header for character in name):
        return dialect.undecoded
    return "repeated_column" if any(Counter(header)[name] > 1 for name in fields.names) else ""


class _LongRow(csv.Error):
    """A row that is longer than a record may be."""


class _Fed:
    """Lines for the CSV reader, which bound each row."""

    def __init__(self, pieces: Iterable[bytes], form: Dialect) -> None:
        self._quote = form.quote.encode()
        self._source = lines(_with_newlines(pieces, form), quote=self._quote)
        quote, end = re.escape(form.quote), rf"(?:{re.escape(form.delimiter)}|\r?$)"
        self._opening = re.compile(rf"(?:^|{re.escape(form.delimiter)}){quote}")
        self._closing = re.compile(rf"(?:[^{quote}]|{quote}{quote}|{quote}(?!{end}))*+{quote}") if quote else None
        self._text = ""
        self._skips = False
        self.line = 0
        """Number of the last line, from 1."""
        self.start_row()

    def start_row(self) -> None:
        """Begin a row with the next line."""
        self.begin, self._bytes, self._quotes = self.line + 1, 0, 0

    def skip_open_value(self) -> None:
        """Pass over the further lines of a malformed row's quoted value.

        A mark closes the value if a delimiter or the line's end follows it.
        """
        self._skips = bool(self._quotes % 2) and self._ends_open(self._text, is_open=self.line > self.begin)

    def __iter__(self) -> _Fed:
        return self

    def __next__(self) -> str:
        while self._skips:
            try:
                self._skips = self._ends_open(self._read(), is_open=True)
            except StopIteration as end:
                raise TornStream("unclosed_quote") from end
            if not self._skips:
                self.start_row()
        self._text = self._read()
        return self._text + "\n"

    def _read(self) -> str:
        """The next line, while its row is within the bound."""
        line = next(self._source)
        self.line += 1
        self._bytes += len(line) + 1
        self._quotes += line.count(self._quote) if self._quote else 0
        if self._bytes > MAX_RECORD_BYTES + 1:
            if self._quotes % 2:
                raise TornStream("unclosed_quote")
            raise _LongRow(f"a row of more than {MAX_RECORD_BYTES >> 20} MiB")
        # Bytes that are not UTF-8 come through as lone surrogates, so that they spoil their own row only.
        return line.decode("utf-8", "surrogateescape")

    def _ends_open(self, line: str, is_open: bool) -> bool:
        """Return whether a quoted value continues after this line."""
        at = 0
        while self._closing is not None:
            if not is_open:
                opened = self._opening.search(line, at)
                if opened is None:
                    return False
                at = opened.end()
            closed = self._closing.match(line, at)
            if closed is None:
                return True
            at, is_open = closed.end(), False
        return False


def _with_newlines(pieces: Iterable[bytes], form: Dialect) -> Iterator[bytes]:
    """The stream with newlines in place of bare carriage returns."""
    quote, starts = form.quote.encode(), (b"", form.delimiter.encode()[-1:], b"\xbf")  # what precedes a quoted value
    signs = re.compile(rb"\r\n?|\n" + (b"|" + re.escape(quote) if quote else b""))
    bare: bool | None = None
    is_open, closed = False, -1  # whether a quoted value is, and the place after the last one's mark
    held = before = b""
    for piece in pieces:
        piece, held = held + piece, b""
        for found in signs.finditer(piece) if bare is None else ():
            if found[0] == quote:
                last = piece[found.start() - 1 : found.start()] if found.start() else before
                is_open, closed = not is_open and (last in starts or found.start() == closed), found.end()
            elif not is_open and found[0] == b"\r" and found.end() == len(piece):  # b"\n" may follow
                piece, held = piece[:-1], b"\r"
            elif not is_open:
                bare = found[0] == b"\r"
                break
        before, closed = piece[-1:] or before, closed - len(piece)
        yield piece.replace(b"\r", b"\n") if bare else piece
    yield held


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
