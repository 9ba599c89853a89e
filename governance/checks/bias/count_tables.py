"""Columns of the count tables, their parts, and their sum.

`counts.py` describes the tables. Parts hold all sites; their sum names the largest `MAX_SITES`, by documents,
whatever the partition into parts.

As an array a count table has 64 buckets for each key (`by_bucket`). A count table has key columns, `bucket`, and
counts; rows of the same keys add up, in any order and partition. What is made of them is made of sums of integers, so
it does not depend on either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from governance.checks.bias.provenance_columns import SMALL_SITES
from governance.checks.bias.statistics import BUCKETS, Integers
from governance.errors import ManifestError, read_errors
from governance.files import atomic_path

Tables = dict[str, list[pa.Table]]

MAX_SITES = 4096
"""Sites that `fates` names; smaller ones have too few documents for a stratum."""
TABLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "documents": (("language", "source", "bucket"), ("documents", "words", "sentences", "bytes")),
    "axes": (("language", "bucket", "axis"), ("documents",)),
    "groups": (("language", "source", "bucket", "axis", "group"), ("documents", "mentions", "sentences")),
    "categories": (("language", "source", "bucket", "family", "category"), ("sentences",)),
    "pairs": (("language", "source", "bucket", "axis", "group", "family", "category"), ("sentences",)),
    "scores": (
        ("language", "source", "bucket", "axis", "group", "instrument"),
        ("sentences", "total", "squares", "hits"),
    ),
    "fates": (
        ("stage", "reason", "source", "site", "language", "length_bin", "bucket", "axis", "group"),
        ("documents",),
    ),
    "shares": (("dimension", "value", "bucket"), ("documents", "bytes", "words")),
    "terms": (("stage", "language", "term", "family", "category"), ("mentions",)),
    "beside": (("language", "source", "axis", "group", "term"), ("words", "scored")),
}
"""Table -> its keys, in the order in which it is sorted, and its counts."""
EXAMPLES_TABLE = "examples"
CELL = ("stage", "language", "axis", "group", "family", "category")
"""The keys of `examples`."""
EXAMPLE_COLUMNS = (*CELL, "priority", "id", "source", "reason", "text")
ALL_TABLES = (*TABLES, EXAMPLES_TABLE)
_INTEGER_KEYS = {"bucket", "length_bin"}


def schema_of(table: str) -> pa.Schema:
    """The columns of a table."""
    if table == EXAMPLES_TABLE:
        kinds = {"priority": pa.uint64()}
        return pa.schema([(name, kinds.get(name, pa.string())) for name in EXAMPLE_COLUMNS])
    keys, counts = TABLES[table]
    fields = [(name, pa.int64() if name in _INTEGER_KEYS else pa.string()) for name in keys]
    return pa.schema([*fields, *((name, pa.int64()) for name in counts)])


def merged(table: str, parts: Sequence[pa.Table]) -> pa.Table:
    """The sum of parts of one table, in its order.

    `examples` keeps the first of all.
    """
    if table == EXAMPLES_TABLE:
        return _first_examples(parts)
    keys, counts = TABLES[table]
    schema = schema_of(table)
    whole = pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)])
    added = whole.group_by(list(keys), use_threads=False).aggregate([(name, "sum") for name in counts])
    renamed = added.select([*keys, *(f"{name}_sum" for name in counts)]).rename_columns(schema.names)
    return renamed.sort_by([(name, "ascending") for name in keys]).cast(schema).combine_chunks()


def _first_examples(parts: Sequence[pa.Table]) -> pa.Table:
    """The examples of least priority in each cell."""
    from governance.kernels.behind_counts import EXAMPLES

    schema = schema_of(EXAMPLES_TABLE)
    whole = pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)])
    whole = whole.sort_by([(name, "ascending") for name in (*CELL, "priority", "id")])
    begins = np.zeros(len(whole), bool)
    begins[:1] = True
    for name in CELL:
        code = pc.dictionary_encode(whole[name].combine_chunks()).indices.to_numpy()
        begins[1:] |= code[1:] != code[:-1]
    places = np.arange(len(whole))
    first = np.maximum.accumulate(np.where(begins, places, 0))
    return whole.filter(pa.array(places - first < EXAMPLES)).combine_chunks()


def table_of(name: str, **columns: Any) -> pa.Table:
    """Rows of a count table; a single value applies to all rows."""
    schema = schema_of(name)
    rows = max(len(values) for values in columns.values() if not isinstance(values, str))
    whole = {key: [value] * rows if isinstance(value, str) else value for key, value in columns.items()}
    return pa.table([pa.array(whole[field.name], field.type) for field in schema], schema=schema)


def _part_schema() -> pa.Schema:
    fields = {field.name: field for name in ALL_TABLES for field in schema_of(name)}
    return pa.schema([pa.field("table", pa.string()), *fields.values()])


def write_part(path: Path, tables: Mapping[str, pa.Table]) -> None:
    """Write a shard's tables into one Parquet file (column `table`)."""
    rows = [table.append_column("table", pa.array([name] * len(table), pa.string())) for name, table in tables.items()]
    whole = pa.concat_tables([_part_schema().empty_table(), *rows], promote_options="default")
    write_counts(path, whole.select(_part_schema().names))


def write_counts(path: Path, table: pa.Table) -> None:
    """Write a table; the same rows give the same bytes."""
    with atomic_path(path) as temporary:
        pq.write_table(table.combine_chunks(), temporary, compression="zstd", row_group_size=1 << 20)


def merge_parts(paths: Iterable[Path], most_sites: int = MAX_SITES) -> dict[str, pa.Table]:
    """The count tables of all parts.

    The largest sites keep their names, the others are merged.

    Raises:
        ManifestError: a part cannot be read.
    """
    paths = list(paths)
    largest = _largest_sites(paths, most_sites)
    pending: Tables = {name: [] for name in ALL_TABLES}
    for path in paths:
        part = _read_part(path)
        for name, parts in pending.items():
            own = part.filter(pc.equal(part["table"], name)).select(schema_of(name).names)
            parts.append(own if name != "fates" else _without_small_sites(own, largest))
            if len(parts) > 32:
                pending[name] = [merged(name, parts)]
    return {name: merged(name, parts) for name, parts in pending.items()}


def _read_part(path: Path, columns: list[str] | None = None) -> pa.Table:
    with read_errors(path):
        return pq.read_table(path, partitioning=None, columns=columns)


def _largest_sites(paths: Sequence[Path], most: int) -> pa.Array | None:
    """The sites with most rows of fates, by documents, then by name.

    The result is None where there are no more than `most`.
    """
    sizes: list[pa.Table] = []
    for path in paths:
        part = _read_part(path, ["table", "site", "documents"])
        sizes.append(part.filter(pc.equal(part["table"], "fates")).select(["site", "documents"]))
        if len(sizes) > 32:
            sizes = [_by_site(sizes)]
    found = _by_site(sizes) if sizes else None
    if found is None or found.num_rows <= most:
        return None
    ordered = found.sort_by([("documents", "descending"), ("site", "ascending")])
    return pa.concat_arrays([ordered["site"].combine_chunks()[:most], pa.array([""])])  # no URL is not a small site


def _by_site(parts: Sequence[pa.Table]) -> pa.Table:
    added = pa.concat_tables(parts).group_by("site", use_threads=False).aggregate([("documents", "sum")])
    return added.rename_columns(["site", "documents"])


def _without_small_sites(fates: pa.Table, largest: pa.Array | None) -> pa.Table:
    if largest is None:
        return fates
    sites = pc.if_else(pc.is_in(fates["site"], value_set=largest), fates["site"], SMALL_SITES)
    return fates.set_column(fates.column_names.index("site"), "site", sites)


Counts = Mapping[tuple[Any, ...], Integers]
"""key -> [buckets]; sorted by key."""
NOTHING: Integers = np.zeros(BUCKETS, np.int64)


def by_bucket(table: pa.Table, keys: Sequence[str], count: str) -> dict[tuple[Any, ...], Integers]:
    """Sum one count over all rows of the same keys and bucket.

    The result maps each key to its [buckets] and is sorted by key.

    Raises:
        ManifestError: the table lacks a column, or has a bucket outside 0 .. 63.
    """
    if absent := sorted({*keys, "bucket", count} - set(table.column_names)):
        raise ManifestError(f"a count table of {table.column_names} lacks {absent}. Make the stage `bias` again.")
    if table.num_rows == 0:
        return {}
    codes = np.zeros(table.num_rows, np.int64)
    dictionaries = []
    for key in keys:
        encoded = pc.dictionary_encode(table[key]).combine_chunks()
        dictionaries.append(encoded.dictionary.to_pylist())
        codes = codes * len(dictionaries[-1]) + encoded.indices.to_numpy()
    buckets = table["bucket"].to_numpy().astype(np.int64)
    if buckets.min() < 0 or buckets.max() >= BUCKETS:
        raise ManifestError(f"a count table has the bucket {buckets.max()} of {BUCKETS}. Make the stage `bias` again.")
    present, rows = np.unique(codes, return_inverse=True)
    sums = np.zeros((len(present), BUCKETS), np.int64)
    np.add.at(sums, (rows, buckets), table[count].to_numpy())
    columns = []
    for values in reversed(dictionaries):
        columns.append([values[place] for place in (present % len(values)).tolist()])
        present = present // len(values)
    labels = zip(*reversed(columns), strict=True)
    return dict(sorted(zip(labels, sums, strict=True), key=lambda item: item[0]))


def stacked(counts: Counts, keys: Iterable[tuple[Any, ...]]) -> npt.NDArray[np.int64]:
    """Counts as an array [keys, buckets], in the order of the keys.

    A key without counts has zeros.
    """
    return np.array([counts.get(key, NOTHING) for key in keys], np.int64).reshape(-1, BUCKETS)
