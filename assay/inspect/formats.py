"""Formats and fields of the files below a path.

A kind is a type of source (`file_types/endings.py`); `megatron` pairs (.bin, .idx) are counted. An `.xml` file is a
wiki's dump if it begins as one. Fields are chosen from the names and values of the first records.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assay.inspect.data_set_files import licence_of, stated_licences, without_rows
from assay.inspect.delimited_form import first_rows, head_of
from data_pipeline.readers.file_types.arrow_files import at_stream
from data_pipeline.readers.file_types.chats import messages_text
from data_pipeline.readers.file_types.endings import SEEKING, SOURCE_TYPES
from data_pipeline.readers.file_types.orc_process import open_orc
from data_pipeline.readers.local import has_text_name
from data_pipeline.readers.parts import PACKED_RATIO, is_packed
from data_pipeline.readers.sources import CODE_ARCHIVES
from data_pipeline.readers.streams import MAX_RECORD_BYTES, PACKED, TornStream, blocks, lines, plain_name
from governance.errors import MissingInput

_KINDS = SOURCE_TYPES | {".idx": "megatron"}
WITHOUT_FIELDS = {
    "text": "a document per file", "warc": "a document per page", "wet": "a document per page",
    "mediawiki": "a document per page",
}  # fmt: skip
"""Kinds whose records have no fields to choose from."""
_NAMES = {
    "text": ("text", "content", "body", "document", "raw_content", "markdown", "article", "code", "passage"),
    "id": ("id", "_id", "doc_id", "uuid", "key"),
    "url": ("url", "source_url", "link", "uri"),
    "language": ("language", "lang"),
    "licence": (
        "licence", "license", "spdx", "lizenz", "licencia", "licença", "licenca", "licenza", "licentie", "licens",
        "lisens", "lisenssi", "licencja", "licenc", "licența", "lisans", "лицензия", "ліцензія", "許可證", "许可证",
        "ライセンス", "라이선스", "लाइसेंस", "الترخيص",
    ),
}  # fmt: skip
"""Usual names of a role's field in small letters; of licences also the word in other languages."""
_CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
_NEVER_PACKED = (*SEEKING, ".idx")
_SMALL_LETTERS = ("arrow", "megatron")
_TABLES = ("csv", "tsv")
_FIRST_RECORDS = 50
_FOOTERS = 100
_HEAD_BYTES = 4096
_IDS_COMPARED = 10
_MAX_FILES_SEEN = 200
"""Files of one ending that are opened to compare their fields."""


@dataclass(frozen=True)
class InputFiles:
    """The files of one kind and ending."""

    kind: str
    ending: str
    """Endings of their names, compression included: ".jsonl.gz"."""
    files: tuple[Path, ...]
    bytes: int
    part: bool = False
    """True where other files with that ending have no text, or have it in another field."""
    licence: str = "NOASSERTION"
    """Licence on the card of a hub data set."""

    @cached_property
    def text_bytes(self) -> int:
        """Estimated bytes of text; of Parquet files from some footers."""
        if self.ending != ".parquet":
            return self.bytes * (PACKED_RATIO if is_packed(self.ending) else 1)
        plain = stored = 0
        for file in self.files[:: max(1, len(self.files) // _FOOTERS)]:
            with contextlib.suppress(OSError, pa.ArrowException):
                footer = pq.read_metadata(file)
                plain += sum(footer.row_group(at).total_byte_size for at in range(footer.num_row_groups))
                stored += file.stat().st_size
        return self.bytes * plain // stored if plain else self.bytes * PACKED_RATIO

    @cached_property
    def form(self) -> dict[str, str]:
        """Unusual delimiter and encoding of CSV and TSV files."""
        for file in self.files[:10] if self.kind in _TABLES else ():
            with contextlib.suppress(OSError, csv.Error):
                rows, form = first_rows(self.kind, file)
                if rows:
                    return form
        return {}


def find_inputs(path: Path) -> tuple[list[InputFiles], Counter[str]]:
    """Readable files below a path by kind, and the other endings.

    Raises:
        MissingInput: there is no file, or none of a known format.
    """
    if not path.exists():
        raise MissingInput(f"{path}: no such file or folder. Give the path of your documents.")
    found: dict[tuple[str, str], list[Path]] = {}
    others: Counter[str] = Counter()
    about: dict[Path, str] = {}
    for file in _walk(path, about):
        plain = plain_name(file.name)
        ending, packed = Path(plain).suffix.lower(), file.name[len(plain) :]
        kind = _KINDS.get(ending)
        if packed and ending in _NEVER_PACKED:
            kind, ending = None, ending + packed
        elif (kind in _SMALL_LETTERS or ending == ".wacz") and not plain.endswith(ending):
            kind = None  # their readers know small letters only
        if not has_text_name(file):
            others["(name not UTF-8)"] += 1
        elif not (file.is_file() and os.access(file, os.R_OK)):  # a link whose target is gone, a pipe, another's file
            others["(unreadable)"] += 1
        elif kind is None or not _is_of(kind, file):
            others[f"{ending} (no MediaWiki dump)" if kind == "mediawiki" else ending or "(no ending)"] += 1
        else:
            found.setdefault((kind, ending + packed), []).append(file)
    others.update(f"({kind})" for kind in about.values())
    if not found and not others:
        holds = "the folder holds no file" if path.is_dir() else "neither a file nor a folder, but a pipe or a device"
        raise MissingInput(f"{path}: {holds}. Give the path of your documents.")
    if not found:
        counted = ", ".join(f"{ending} {count:,}" for ending, count in others.most_common(8))
        raise MissingInput(
            f"{path}: none of its {others.total():,} files has a known format ({counted}). Known are "
            f"{', '.join(_KINDS)}, all but {', '.join(_NEVER_PACKED)} also with {', '.join(PACKED)}; for others write "
            f"a reader: docs/own_code.md.{unpack_hint(others)}"
        )
    stated, partly = stated_licences(about), {file.suffix for file in about}
    return [
        InputFiles(kind, ending, tuple(files), _bytes(files), ending in partly, licence_of(files, stated))
        for (kind, ending), files in sorted(found.items())
    ], others


def unpack_hint(others: Iterable[str]) -> str:
    """Advice for endings of archives of several files, or ""."""
    packed = [ending for ending in sorted(others) if ending in (*CODE_ARCHIVES, ".7z", ".rar")]
    return f" Unpack archives ({', '.join(packed)}) first; only those of source code are read packed." if packed else ""


def _bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _is_of(kind: str, file: Path) -> bool:
    """Return whether a file is what an ambiguous ending says."""
    if kind == "megatron":
        return file.with_suffix(".bin").is_file()
    return kind != "mediawiki" or b"<mediawiki" in head_of(file, _HEAD_BYTES)[:_HEAD_BYTES]


def _walk(path: Path, about: dict[Path, str]) -> Iterator[Path]:
    """Files below a path; those without rows go into `about`."""
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        beside = without_rows(Path(folder), names)
        about |= {Path(folder, name): kind for name, kind in beside.items()}
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith(".") and name not in beside)


def first_records(inputs: InputFiles) -> list[Mapping[str, Any]]:
    """The first records of the first file that has any."""
    for file in inputs.files[:10]:
        try:
            records = [record for record in _rows(inputs.kind, file) if isinstance(record, Mapping)]
        except (OSError, ValueError, StopIteration, csv.Error, pa.ArrowException, MemoryError, MissingInput):
            continue  # a damaged file: `ingest` reports it
        if records:
            return records
    return []


def fields_of(inputs: InputFiles) -> dict[str, str]:
    """Fields of files; no id where two files share one.

    Ids that count the rows of each file would quarantine the later files' rows as duplicates.
    """
    chosen = choose_fields(first_records(inputs))
    seen: set[str] = set()
    for file in inputs.files[:_IDS_COMPARED] if chosen.get("id") and len(inputs.files) > 1 else ():
        rows = first_records(InputFiles(inputs.kind, inputs.ending, (file,), 0))
        own = {str(row[chosen["id"]]) for row in rows if row.get(chosen["id"]) is not None}
        if own & seen:
            return {**chosen, "id": ""}
        seen |= own
    return chosen


def has_long_line(inputs: InputFiles) -> bool:
    """Return whether a JSON Lines file begins with too long a line."""
    heads = (next(_lines(file), b"") for file in inputs.files[:10] if inputs.kind == "jsonl")
    return any(len(head) > MAX_RECORD_BYTES for head in heads)


def by_text_field(inputs: InputFiles) -> list[InputFiles]:
    """Files of one ending, divided by text field and form.

    Files without a record belong to the largest part. Above a number of files all count as those of the first.
    """
    if inputs.kind in WITHOUT_FIELDS or not 1 < len(inputs.files) <= _MAX_FILES_SEEN:
        return [inputs]
    parts: dict[tuple[object, ...], list[Path]] = {}
    others: list[Path] = []
    for file in inputs.files:
        records = first_records(one := InputFiles(inputs.kind, inputs.ending, (file,), 0))
        chosen = choose_fields(records)
        field = (chosen["text"], chosen.get("messages", ""), *one.form.items())
        (parts.setdefault(field, []) if records else others).append(file)
    if len(parts) < 2:
        return [inputs]
    max(parts.values(), key=len).extend(others)
    return [replace(inputs, files=tuple(files), bytes=_bytes(files), part=True) for files in parts.values()]


def _rows(kind: str, file: Path) -> list[Any]:
    if kind == "jsonl":
        records = []
        for line in itertools.islice(_lines(file), _FIRST_RECORDS):
            with contextlib.suppress(ValueError, RecursionError):  # `ingest` quarantines such a line
                records.append(json.loads(line))
        return records
    if kind in _TABLES:
        return first_rows(kind, file)[0]
    if kind == "parquet":
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
            batch = next(parquet.iter_batches(_FIRST_RECORDS, use_threads=False), None)
            return _python_rows(batch) if batch else []
    if kind == "orc":
        with open_orc(file) as found:
            return _python_rows(next(found.batches).slice(0, _FIRST_RECORDS))
    if kind == "arrow":
        with file.open("rb") as source, pa.ipc.open_stream(at_stream(source)) as stream:
            return _python_rows(stream.read_next_batch().slice(0, _FIRST_RECORDS))
    return []


def _python_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows, with null for what Python has no type for.

    Examples are an unknown time zone and text that is not UTF-8. Bytes that are UTF-8 are text, as `ingest` reads them.
    """
    columns = {}
    for place, name in enumerate(batch.schema.names):
        with contextlib.suppress(KeyError):  # intervals of months have no class in pyarrow
            columns[name] = batch.column(place)
    return [_flat({name: _python(column[at]) for name, column in columns.items()}) for at in range(batch.num_rows)]


def _python(value: pa.Scalar) -> Any:
    with contextlib.suppress(ValueError, OverflowError, KeyError):
        found = value.as_py()
        return found.decode("utf-8") if isinstance(found, bytes) else found
    return None


def _lines(file: Path) -> Iterator[bytes]:
    with contextlib.suppress(TornStream):  # the lines before the damage
        yield from lines(blocks(file))


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values inside structs under dotted names, as a `parquet` source has them."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def choose_fields(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Choose a field for each role, "" for none.

    The usual name decides. Without one for `text`, a chat is `messages`; without a chat, `text` is the longest strings.
    """
    strings: dict[str, list[str]] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, str):
                strings.setdefault(str(name), []).append(value)
    chosen = {}
    small = {name.casefold(): name for name in strings}
    with_numbers = {str(name).casefold(): str(name) for row in records for name in row}
    for role, names in _NAMES.items():
        there = with_numbers if role == "id" else small
        known = [name if name in there.values() else there[name] for name in names if name in there]
        chosen[role] = known[0] if known else ""
    chats = [name for name in _CHATS if any(messages_text(record.get(name), "roles") for record in records)]
    if chats and not chosen["text"]:  # in tables a chat is JSON, the longest string
        chosen["messages"] = chats[0]
    elif not chosen["text"]:
        chosen["text"] = _longest(strings)
    if chosen["id"] and not _are_ids([record.get(chosen["id"]) for record in records]):
        chosen["id"] = ""
    return chosen


def _longest(strings: Mapping[str, Sequence[str]]) -> str:
    """Field of the longest strings on average; "" if they are short."""
    mean = {name: sum(map(len, values)) / len(values) for name, values in strings.items()}
    longest = max(mean, key=lambda name: mean[name], default="")
    return longest if mean.get(longest, 0) >= 40 else ""


def _are_ids(values: Sequence[Any]) -> bool:
    """Return whether all are texts or numbers, and no two are equal."""
    unique = len(set(map(str, values))) == len(values)
    return unique and all(isinstance(value, str | int) and value != "" for value in values)
