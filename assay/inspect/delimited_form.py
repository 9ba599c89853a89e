"""Delimiter and encoding of CSV and TSV files, from their first rows.

Spreadsheets of many countries write semicolons, and some write windows-1252 or UTF-16.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
from pathlib import Path

from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream, blocks

_HEAD_BYTES = 1 << 18
_FIRST_BYTES = 1 << 12
_ROWS = 50
_DELIMITERS = (",", ";", "\t", "|")
_USUAL = {"csv": ",", "tsv": "\t"}
_REGULAR = 0.8
"""Share of rows as long as the header from which a delimiter other than the usual one is chosen."""
GUESS = "windows-1252"
"""Encoding chosen for text that is neither UTF-8 nor UTF-16. It cannot be proved: other encodings decode too."""


def first_rows(kind: str, file: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The first rows of a table, and its settings as a source.

    Only settings that differ from the defaults are given.

    Raises:
        csv.Error: the rows are damaged.
    """
    csv.field_size_limit(MAX_RECORD_BYTES)  # of characters, for the whole process; documents are longer than its 128 Ki
    text, encoding = _decoded(head_of(file, _HEAD_BYTES))
    usual = _USUAL[kind]
    shares = {delimiter: _regular(text, delimiter) for delimiter in _DELIMITERS}
    best = max(shares, key=lambda delimiter: shares[delimiter])
    delimiter = best if shares[usual] < _REGULAR <= shares[best] else usual
    form = {"delimiter": delimiter} if delimiter != usual else {}
    form |= {"encoding": encoding} if encoding != "utf-8" else {}
    rows = csv.DictReader(_lines(text), delimiter=delimiter)
    return [dict(row) for row in itertools.islice(rows, _ROWS)], form


def head_of(file: Path, size: int) -> bytes:
    """The beginning of a file, unpacked: at least `size` bytes of it."""
    head = b""
    with contextlib.suppress(TornStream):
        for piece in blocks(file):  # the first ones of a packed file may be empty
            head += piece
            if len(head) >= size:
                break
    return head


def _decoded(head: bytes) -> tuple[str, str]:
    """The whole lines of a head, and its encoding."""
    start = head[:_FIRST_BYTES]
    zeros = [4 * start[place::2].count(0) > len(start) for place in (0, 1)]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, reader = "utf-16", "utf-16"
    elif any(zeros):  # UTF-16 without its mark: every other byte of Latin letters is zero
        encoding = reader = "utf-16-be" if zeros[0] else "utf-16-le"
    else:
        encoding, reader = "utf-8", "utf-8-sig"
        with contextlib.suppress(UnicodeDecodeError):
            return _whole_lines(codecs.getincrementaldecoder(reader)().decode(head), head), encoding
        with contextlib.suppress(UnicodeDecodeError):
            head.decode(GUESS)
            encoding = reader = GUESS
    return _whole_lines(codecs.getincrementaldecoder(reader)("replace").decode(head), head), encoding


def _whole_lines(text: str, head: bytes) -> str:
    return text[: text.rfind("\n") + 1] or text if len(head) >= _HEAD_BYTES else text


def _lines(text: str) -> io.StringIO:
    """Lines of a text, whatever ends them, from its first full one."""
    return io.StringIO(text.lstrip("\r\n"), newline="")


def _regular(text: str, delimiter: str) -> float:
    """Share of the first rows as long as the header.

    Returns 0 for a header of a single value.
    """
    try:
        rows = [row for row in itertools.islice(csv.reader(_lines(text), delimiter=delimiter), _ROWS) if row]
    except csv.Error:
        return 0.0
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows) if rows and len(rows[0]) > 1 else 0.0
