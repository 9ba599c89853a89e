"""Documents and document shards: Parquet, one row per document.

    id        string  unique in the corpus: "<source>/<file within the source>#<record>"
    text      string  UTF-8
    source    string  the name of the `[[data.sources]]` entry
    url       string  where the document is from; "" when the source does not say
    language  string  ISO 639-1 (or 639-3) code; "" before language identification, "und" when undetermined
    licence   string  SPDX identifier or expression; "NOASSERTION" where unknown
    sha256    string  of the raw text's UTF-8 bytes, 64 hexadecimal digits; never changes after ingest
    file      string  the source file, relative to the source
    position  int64   where the record begins in that file: its number from 0 (lines, rows, pages), or, in a WARC, the
                      byte at which its compressed record begins
    opt_out          string  what the rights holder reserved, as signals joined by a blank, in order: "robots:noai
                             tdm:reserved"; "none": searched, none found; "": not searched
    opt_out_fetched  string  ISO 8601 date (or time) at which those signals were read; "" when not searched
    columns   string  the row's values that the source keeps, a JSON object: {"date":"2024-05-01","score":0.7}; a column
                      of those sources' shards only

A *removed* shard has the same columns and `reason` (string) and `evidence` (string, "" when there is none).
A *quarantine* shard has `source, file, position, reason, sample` (the first 200 characters): records that could
not become documents. Shards are zstd-compressed, row groups of at most 8 MiB of text and kept columns,
dictionaries only of the short values that many rows share, no timestamps: the same documents give the same bytes.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from governance.errors import ManifestError
from governance.files import atomic_path
from governance.manifest import Manifest, Output
from governance.parallel import Shard, ShardDone, ShardMade, map_shards, sum_stats
from governance.stage import Made, Recipe, Runtime


def required(**columns: pa.DataType) -> pa.Schema:
    """The schema of these columns, none of which may be null."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


DOCUMENT_SCHEMA = required(
    id=pa.string(),
    text=pa.large_string(),
    source=pa.string(),
    url=pa.string(),
    language=pa.string(),
    licence=pa.string(),
    sha256=pa.string(),
    file=pa.string(),
    position=pa.int64(),
    opt_out=pa.string(),
    opt_out_fetched=pa.string(),
)
REMOVED_SCHEMA = pa.schema([*DOCUMENT_SCHEMA, *required(reason=pa.string(), evidence=pa.string())])
KEPT_COLUMNS = pa.field("columns", pa.large_string(), nullable=False)
QUARANTINE_SCHEMA = required(
    source=pa.string(), file=pa.string(), position=pa.int64(), reason=pa.string(), sample=pa.string()
)
CODE_LANGUAGE = "zxx"
"""The `language` of source code: ISO 639's code for content that is in no language."""
ROW_GROUP_BYTES = 8 << 20
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,400}\s*")
_LARGEST = sys.float_info.max
_REPEATED = frozenset(
    ("source", "language", "licence", "file", "opt_out", "opt_out_fetched", "reason", "split", "set", "part", "rule",
     "action", "kind")
)  # fmt: skip
_RELEASED_AFTER = 4  # row groups: memory that is given back costs a fault a page when it is needed again
COMPRESSION_LEVEL = 1  # zstd writes 227 MB/s per core at this level, 127 at level 3; files are an eighth larger


@dataclass(frozen=True)
class Document:
    """A row of a document shard; the fields are described above."""

    id: str
    text: str
    source: str
    url: str
    language: str
    licence: str
    sha256: str
    file: str
    position: int
    opt_out: str = ""
    opt_out_fetched: str = ""
    columns: str = ""


def number_of(value: Any) -> int | float | None:
    """Parse a kept value as a number.

    The value is a number or the text of one; the result is None for any other, "1_000" too.
    Integers are exact. Values beyond the range of a float count as others.
    """
    if isinstance(value, str):
        if "_" in value:  # Python would read it
            return None
        try:
            value = int(value) if _INTEGER.fullmatch(value) else float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -_LARGEST <= value <= _LARGEST else None


def date_of(value: str) -> datetime.date | datetime.datetime | None:
    """The day, or the moment in UTC, of an ISO 8601 text."""
    if value[4:5] != "-" and "T" not in value:  # digits alone, as seconds since 1970
        return None
    try:
        return datetime.date.fromisoformat(value) if len(value) == 10 else _moment(value)
    except (ValueError, OverflowError):  # a moment that UTC has no year for
        return None


def _moment(value: str) -> datetime.datetime | None:
    if len(value) < 12:  # also "20150101", a number before it is a day
        return None
    found = datetime.datetime.fromisoformat(value)
    return found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def with_kept_columns(schema: pa.Schema, shard: pa.Schema) -> pa.Schema:
    """A schema of documents with the columns that the shard keeps."""
    last = schema.get_field_index("opt_out_fetched")
    has = KEPT_COLUMNS.name in shard.names and last >= 0
    return schema.insert(last + 1, KEPT_COLUMNS) if has else schema


def shard_schema(path: Path, schema: pa.Schema = DOCUMENT_SCHEMA) -> pa.Schema:
    """The schema of documents that are made from a shard.

    Raises:
        ManifestError: the file is not Parquet.
    """
    with _reading(path) as file:
        return with_kept_columns(schema, file.schema_arrow)


def write_table(path: Path, table: pa.Table) -> None:
    """Write one shard atomically: documents, removed, quarantine or features."""
    rows = table.num_rows
    groups = max(1, table.nbytes // ROW_GROUP_BYTES)
    with atomic_path(path) as temporary, _open_writer(temporary, table.schema) as writer:
        writer.write_table(table, row_group_size=max(1, -(-rows // groups)))


def _open_writer(path: Path, schema: pa.Schema, bounds: Sequence[str] = ()) -> pq.ParquetWriter:
    """Writer of a shard, with dictionaries for short, shared texts only.

    Only short texts that many rows share are worth a dictionary; for others it costs time and saves nothing.
    """
    return pq.ParquetWriter(
        path,
        schema,
        store_schema=True,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        write_statistics=list(bounds) or False,
        use_dictionary=[field.name for field in schema if field.name in _REPEATED],
    )


@contextlib.contextmanager
def table_writer(path: Path, schema: pa.Schema, bounds: Sequence[str] = ()) -> Iterator[Callable[[pa.Table], None]]:
    """Write one shard atomically, one row group a table.

    Row groups carry the least and the greatest value of the columns `bounds`, so that a reader can pass over them.
    """
    with atomic_path(path) as temporary, _open_writer(temporary, schema, bounds) as writer:

        def append(table: pa.Table) -> None:
            if table.num_rows:
                writer.write_table(table.cast(schema), row_group_size=table.num_rows)

        yield append


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """`pa.array` of values without None; text may be UTF-8.

    For text it takes half the time, and does not load pandas.
    """
    if pa.types.is_int64(kind):
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.asarray(values, np.int64))])
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return pa.array(values, kind)
    alike = len(values) if values.count(values[0]) == len(values) else 1  # a source, a licence: encoded once
    encoded = [value if isinstance(value, bytes) else value.encode("utf-8") for value in values[::alike]] * alike
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    if pa.types.is_string(kind):
        if ends[-1] > np.iinfo(np.int32).max:
            return pa.array(values, kind)  # names the fault
        ends = ends.astype(np.int32)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))])


_ROW_BYTES = 256  # approximate bytes of a row's other columns, so that rows of empty text do not gather without bound
AddRow = Callable[[Sequence[Any], int], None]


@contextlib.contextmanager
def shard_writer(path: Path, schema: pa.Schema = DOCUMENT_SCHEMA) -> Iterator[AddRow]:
    """Write one shard row by row, whole or not at all.

    At most one row group (8 MiB) is held in memory.

    Yields `add(row, size)`: the row's values in the schema's order, and the UTF-8 bytes of its text and kept columns.
    """
    rows: list[Sequence[Any]] = []
    held = 0
    with atomic_path(path) as temporary, _open_writer(temporary, schema) as writer:

        def flush() -> None:
            columns = [
                _column(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(rows))
            rows.clear()

        def add(row: Sequence[Any], size: int) -> None:
            nonlocal held
            if rows and held + size + _ROW_BYTES > ROW_GROUP_BYTES:
                flush()
                held = 0
            rows.append(row)
            held += size + _ROW_BYTES

        yield add
        if rows:
            flush()


@contextlib.contextmanager
def shards_writer(next_path: Callable[[], Path], shard_bytes: int, schema: pa.Schema) -> Iterator[AddRow]:
    """Write document shards of at most `shard_bytes` one after another.

    The first is begun at once, so there is one even without rows. Yields `add`, as `shard_writer` does.
    """
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(shard_writer(next_path(), schema))
        held = 0

        def add(row: Sequence[Any], size: int) -> None:
            nonlocal write, held
            if held and held + size > shard_bytes:
                stack.close()
                write = stack.enter_context(shard_writer(next_path(), schema))
                held = 0
            write(row, size)
            held += size

        yield add


def read_table(path: Path, schema: pa.Schema = DOCUMENT_SCHEMA, columns: list[str] | None = None) -> pa.Table:
    """Read one shard and check its schema.

    String columns may come back in either Arrow width.

    Raises:
        ManifestError: the file is not Parquet or lacks a column.
    """
    try:
        table = pq.read_table(path, columns=columns, partitioning=None, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(
            f"{path}: cannot be read as Parquet: {error}. Remove its folder and make it again."
        ) from error
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    try:
        return table.select(wanted.names).cast(wanted)
    except (KeyError, ValueError) as error:
        raise ManifestError(f"{path}: does not have the columns {wanted.names}: {error}") from error


def read_groups(path: Path, schema: pa.Schema | None = None, chosen: Sequence[int] | None = None) -> Iterator[pa.Table]:
    """Row groups of a shard, one at a time, optionally `chosen`.

    Without a schema they have all columns of a document, kept ones included.

    Raises:
        ManifestError: the file is not Parquet or lacks a column.
    """
    with _reading(path) as file:
        schema = with_kept_columns(DOCUMENT_SCHEMA, file.schema_arrow) if schema is None else schema
        for group in range(file.num_row_groups) if chosen is None else chosen:
            table = file.read_row_group(group, columns=schema.names, use_threads=False)
            yield table.select(schema.names).cast(schema)
            del table
            if group % _RELEASED_AFTER == _RELEASED_AFTER - 1:
                pa.default_memory_pool().release_unused()  # else a worker keeps what its largest group needed, and more


def rows_by_group(path: Path, rows: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Row groups that hold the (ascending) rows, with positions.

    Raises:
        ManifestError: the file is not Parquet.
    """
    with _reading(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    bounds = np.searchsorted(rows, starts)
    return [
        (group, rows[bounds[group] : bounds[group + 1]] - starts[group])
        for group in np.flatnonzero(np.diff(bounds)).tolist()
    ]


def group_bytes(path: Path) -> list[int]:
    """Bytes of the texts in each row group, unpacked.

    Raises:
        ManifestError: the file is not Parquet.
    """
    with _reading(path) as file:
        place = file.schema.names.index("text")
        groups = range(file.num_row_groups)
        return [file.metadata.row_group(group).column(place).total_uncompressed_size for group in groups]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (KeyError, ValueError, pa.ArrowException, OSError) as error:
        raise ManifestError(
            f"{path}: cannot be read as a document shard: {error}. Remove its folder and make it again."
        ) from error


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a shard in order; one batch is in memory."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def read_documents(paths: Iterable[Path]) -> Iterator[Document]:
    """Documents of several shards in order."""
    for path in paths:
        for row in read_rows(path):
            yield Document(**row)


def document_shards(documents: Manifest, root: Path, role: str = "documents") -> list[tuple[Output, Path]]:
    """The shards of a role with their digests, in name order."""
    outputs = {root / output.path: output for output in documents.outputs}
    return [(outputs[path], path) for path in documents.files(role, root)]


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """The documents with another column of this name."""
    return table.set_column(table.schema.get_field_index(name), DOCUMENT_SCHEMA.field(name), column)


def edited(texts: pa.Array, changed: Mapping[int, str]) -> pa.Array:
    """The texts, with the rows of `changed` (ascending) replaced."""
    if not changed:
        return texts
    mask = np.zeros(len(texts), bool)
    mask[list(changed)] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(changed.values(), pa.large_string()))


def pass_on(
    path: Path,
    path_of: Callable[[str], Path],
    schemas: Mapping[str, pa.Schema],
    judge: Callable[[pa.Table], tuple[Sequence[pa.Table], dict[str, Any]]],
    none: dict[str, Any],
) -> ShardMade:
    """Write the roles of a shard side by side, by row group.

    Roles of documents keep the columns that the shard keeps.
    `judge` gives a row group's table for each role of `schemas`, in order, and its counts; `none` are the counts of no
    documents.
    """
    files = {role: path_of(role) for role in schemas}
    counts = [none]
    with contextlib.ExitStack() as open_files:
        writers = [
            open_files.enter_context(table_writer(files[role], shard_schema(path, schema)))
            for role, schema in schemas.items()
        ]
        for group in read_groups(path):
            tables, counted = judge(group)
            counts.append(counted)
            for append, table in zip(writers, tables, strict=True):
                append(table)
    return ShardMade(files, sum_stats(counts))


def map_documents(
    recipe: Recipe,
    function: Callable[..., ShardMade],
    documents: Manifest,
    payload: Sequence[Any],
    inputs: Sequence[str],
    folder: Path,
    runtime: Runtime,
) -> list[ShardDone]:
    """Make or find one shard for each shard of documents.

    `function` receives the path of the documents, followed by `payload`; `inputs` are the digests of the payload.
    """
    shards = [
        Shard(path.stem, (output.sha256, *inputs), (path, *payload), (output,))
        for output, path in document_shards(documents, runtime.root)
    ]
    return map_shards(recipe, function, shards, folder, runtime)


def gathered(done: Sequence[ShardDone], none: dict[str, Any]) -> Made:
    """The files and the summed counts of a step's shards.

    `none` are the counts of no shard.
    """
    outputs = [output for shard in done for output in shard.outputs.values()]
    return Made(outputs, sum_stats([none, *(shard.stats for shard in done)]))


def split_table(
    table: pa.Table, reasons: Sequence[str], evidence: Sequence[str], changed: pa.Table | None = None
) -> tuple[pa.Table, pa.Table]:
    """Kept rows (from `changed` where given) and removed rows with reasons."""
    kept = pa.array([not reason for reason in reasons], pa.bool_())
    marked = table.append_column(REMOVED_SCHEMA.field("reason"), pa.array(reasons, pa.string()))
    marked = marked.append_column(REMOVED_SCHEMA.field("evidence"), pa.array(evidence, pa.string()))
    return (table if changed is None else changed).filter(kept), marked.filter(pc.invert(kept))


def judged(
    table: pa.Table, reasons: Sequence[str], evidence: Sequence[str]
) -> tuple[tuple[pa.Table, pa.Table], dict[str, Any]]:
    """Kept rows, removed rows and counts, where no text changes."""
    sizes = pc.binary_length(table["text"]).to_pylist()
    return split_table(table, reasons, evidence), funnel(table["source"].to_pylist(), sizes, sizes, reasons)


def cut_spans(text: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
    """The text without the bytes of the spans, which may overlap."""
    pieces, at = [], 0
    for start, end in sorted(spans):
        pieces.append(text[at : max(at, start)])
        at = max(at, end)
    return b"".join([*pieces, text[at:]])


def funnel(
    sources: Iterable[str], bytes_in: Iterable[int], bytes_kept: Iterable[int], reasons: Iterable[str]
) -> dict[str, Any]:
    """The counts that every stage keeps, of documents in order.

    The reason "" means kept.
    """
    by_source: dict[str, dict[str, Any]] = {}
    for source, came, stayed, reason in zip(sources, bytes_in, bytes_kept, reasons, strict=True):
        counts = by_source.setdefault(source, _no_documents())
        counts["documents_in"] += 1
        counts["bytes_in"] += came
        if reason:
            counts["removed"][reason] = counts["removed"].get(reason, 0) + 1
        else:
            counts["documents_kept"] += 1
            counts["bytes_kept"] += stayed
    return {**sum_stats([_no_documents(), *by_source.values()]), "by_source": by_source}


def _no_documents() -> dict[str, Any]:
    return {"documents_in": 0, "documents_kept": 0, "bytes_in": 0, "bytes_kept": 0, "removed": {}}
