"""`Record` (becomes a document) and `RecordFault` (is quarantined).

Promise: everything in a source file is a record or a fault, with its file and position; a reader raises only for
what concerns the whole source (a file that is gone, a wrong configuration).

Faults by reason:

    not_json  not_an_object  not_utf8  lone_surrogate  line_too_long  file_too_long  not_csv  wrong_columns  not_html
    wrong_encoding  repeated_column  not_messages  no_answer
    no_text_field  text_not_string  no_id  url_not_string  language_not_string  licence_not_string
    opt_out_not_string  opt_out_fetched_not_string  columns_not_json
    not_po             a message of a PO file that has a line of another format
    no_path  no_repository
                       a row of source code that no opt-out list would find
    no_licence_field   a row of source code without the value that is said to be its licence
    empty_file         the file holds not a single record
    truncated_gzip  corrupt_gzip, and so for zstd, xz, bzip2 and lz4; unreadable_member  unreadable_rows
    missing_member  wacz_digest_mismatch
                       the file is torn: what precedes the tear was read, the rest is lost
    decompression_bomb a few bytes unpack to very many (streams.py says when); read up to the bound
    dictionary_too_large  an .xz file that needs more than 256 MiB to unpack
    unclosed_quote     a quoted value of a CSV file that has no end
    undecodable        a CSV file that its encoding's decoder gives up: UTF-16 without a byte-order mark
    corrupt_xml  truncated_xml  hostile_xml
                       of MediaWiki's dumps, as mediawiki.py says
    nested_too_deep    an archive in an archive in an archive in an archive
    page_too_large     a page of a Parquet file would not fit a worker's memory; the rest of its row group is lost
    reader_failed      a reader of the run's own failed on the content; the rest of the file is lost
    warc_torn_record  warc_bad_header  warc_...
                       of web archives, as warc.py says
    no_text            a page or a file without text
    page_needs_ocr     a page of a PDF file that shows something and has no readable text; the position is its number
    truncated_pdf      a PDF file without its end: none of it is read
    pdf_password  pdf_too_many_pages  pdf_too_slow  pdf_broke_parser  not_pdf
                       a PDF file that cannot be read: it asks for a password, has more than 5,000 pages, or took more
                       time or memory than a file of its size may
    answer_refused  answer_not_json  answer_malformed  other_model  missing_choices  surplus_choice  empty_answer
                       of a teacher model's answers, as teacher_answers.py says
    duplicate_id       another record of the source came first with this id (found by `ingest`)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from data_pipeline.readers.file_types.chats import MessagesForm, messages_fault, messages_text

_ABSENT = object()
SAMPLE_CHARACTERS = 200
TORN = frozenset(
    {
        *(f"{how}_{kind}" for how in ("truncated", "corrupt") for kind in ("gzip", "zstd", "xz", "bzip2", "lz4")),
        "unreadable_member",
        "missing_member",
        "wacz_digest_mismatch",
        "unreadable_rows",
        "decompression_bomb",
        "dictionary_too_large",
        "truncated_pdf",
        "unclosed_quote",
        "undecodable",
        "corrupt_xml",
        "truncated_xml",
        "hostile_xml",
        "nested_too_deep",
        "page_too_large",
        "reader_failed",
        "warc_torn_record",
        "warc_bad_header",
    }
)
"""The reasons that say that a file has lost an unknown number of records."""


@dataclass(frozen=True)
class Record:
    """One text of a source, with the fields of a document."""

    text: str
    file: str
    position: int
    url: str = ""
    language: str = ""
    licence: str = ""
    """"" where the record has none of its own: then the source's holds."""
    id: str = ""
    """"" where the source names no id."""
    fallback: bool = False
    """The main text of an HTML page was not found, so all of its text was taken."""
    truncated: bool = False
    """The answer of a teacher model reached its bound of tokens."""
    opt_out: str = ""
    """The rights holder's signals, joined by a blank; "none": searched, none found; "": not searched."""
    opt_out_fetched: str = ""
    """Time at which those signals were read, ISO 8601; "": not searched."""
    columns: str = ""
    """The row's other values that the source keeps, a JSON object; "" where it keeps none."""


@dataclass(frozen=True)
class RecordFault:
    """An unreadable record, or the unreadable rest of a file."""

    file: str
    position: int
    reason: str
    sample: str


@dataclass(frozen=True)
class Fields:
    """Names of the row values that a record needs, or ""."""

    text: str
    id: str = ""
    url: str = ""
    language: str = ""
    licence: str = ""
    opt_out: str = ""
    opt_out_fetched: str = ""
    columns: tuple[str, ...] = ()
    """Names of other values that are kept."""
    kept_licence: str = ""
    """Name of the kept value that is a licence or null; a row that lacks it is a fault."""
    messages: MessagesForm | None = None
    """The form in which the value `text`, a list of messages, becomes text; None: it is text."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a reader looks for."""
        own = (self.text, self.id, self.url, self.language, self.licence, self.opt_out, self.opt_out_fetched)
        return tuple(dict.fromkeys(filter(None, (*own, *self.columns))))


def encodable(text: str) -> str:
    """Replace lone surrogates, which have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode("utf-8")


def sample(data: bytes | str) -> str:
    """The first 200 characters, made safe to write as UTF-8."""
    if isinstance(data, bytes):
        return data[: 4 * SAMPLE_CHARACTERS].decode("utf-8", "replace")[:SAMPLE_CHARACTERS]
    return encodable(data[:SAMPLE_CHARACTERS])


def to_record(
    row: Mapping[str, Any],
    fields: Fields,
    file: str,
    position: int,
    shown: bytes | str | None = None,
    *,
    encodes: bool = False,
) -> Record | RecordFault:
    """Record of a row of named values, or its fault.

    `shown` is the text that a fault shows of it; None stands for the row's values. `encodes`: all texts of the row are
    known to have a UTF-8 form.
    """

    def fault(reason: str) -> RecordFault:
        return RecordFault(file, position, reason, sample(str(row) if shown is None else shown))

    if lacking := _lacking(row, fields):
        return fault(lacking)
    text = row[fields.text] if fields.messages is None else messages_text(row[fields.text], fields.messages)
    if not isinstance(text, str):
        return fault("text_not_string" if fields.messages is None else messages_fault(row[fields.text]))
    identity: Any = row.get(fields.id, "") if fields.id else ""
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    if fields.id and not (identity and isinstance(identity, str)):
        return fault("no_id")
    values: dict[str, Any] = {}
    for name in ("url", "language", "licence", "opt_out", "opt_out_fetched"):
        key = getattr(fields, name)
        value = row.get(key) if key else None
        if value is not None and not isinstance(value, str):
            return fault(f"{name}_not_string")
        values[name] = value or ""
    values["columns"] = _kept_values(row, fields.columns)
    if values["columns"] is None:
        shown = text if shown is None else shown  # an object's address and a set's order differ between runs
        return fault("columns_not_json")
    if not encodes and not all(map(_encodes, (text, identity, *filter(None, values.values())))):
        return fault("lone_surrogate")
    return Record(text, file, position, id=identity, **values)


def _lacking(row: Mapping[str, Any], fields: Fields) -> str:
    """The reason against a row without a needed value, or ""."""
    if fields.text not in row:
        return "no_text_field"
    without = fields.kept_licence and value_at(row, fields.kept_licence, _ABSENT) is _ABSENT
    return "no_licence_field" if without else ""


def value_at(row: Mapping[str, Any], way: str, absent: Any = None) -> Any:
    """The value of a field.

    It is the field of that very name, or the one found down the objects that a dotted name goes through.
    """
    if way in row:
        return row[way]
    value: Any = row
    for name in way.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return absent
        value = value[name]
    return value


def _kept_values(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The values as a JSON object; "" without names.

    The result is None if they have no such form. Dates, decimals and bytes are text, NaN and infinity null.
    """
    if not names:
        return ""
    try:
        values = {name: _finite(value_at(row, name)) for name in names}
        return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_text)
    except (TypeError, ValueError, RecursionError):  # types that JSON lacks, or objects nested too deep
        return None


def _finite(value: Any) -> Any:
    """The value as plain types, with null for NaN and infinity."""
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta | Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form that is the same in every run")


def _encodes(value: str) -> bool:
    """Return whether `value` has a UTF-8 form.

    Half of a surrogate pair, which a JSON escape can write, has none.
    """
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
