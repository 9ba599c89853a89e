"""Filter stage: functions of the run's own remove documents.

    [[data.filters]]
    name = "loud"
    filter = "mylab.rules:too_loud"

A filter takes an Arrow record batch with the columns of a document (`documents.py`) and returns one value a row: True
keeps the document, False removes it as `own:<name>`. The first filter that removes a document is its reason. An
exception, another number of values, a null or no answer within `seconds` ends the stage with the function, the shard
and the rows: there is never a part of an artifact. The functions' source decides the stage's key (`own_code.py`).

Roles `documents`, `removed`. Price: that of the functions; a row group (8 MiB of text) is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    REMOVED_SCHEMA,
    document_shards,
    funnel,
    gathered,
    pass_on,
    split_table,
)
from data_pipeline.own_code import DOTTED, OwnCode, find_code, first_line, load
from governance.config import Section
from governance.errors import ConfigError
from governance.manifest import Manifest
from governance.parallel import Shard, ShardMade, map_shards
from governance.processes import time_limit
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 1


class OwnFilterConfig(Section):
    """A `[[data.filters]]` section: one function of the run's own."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    """Names the reason of removed documents: `own:<name>`."""
    filter: str = Field(pattern=DOTTED)
    """The function: `package.module:function`, in the folder of the run's file or installed."""
    seconds: float = Field(default=600, gt=0)
    """Time that one batch may take."""


class OwnFilterIdentity(Section):
    """Recipe of the stage: each function and the digest of its source."""

    filters: tuple[tuple[str, str, str], ...]
    """Name, dotted path, SHA-256 of the source."""


Filters = tuple[tuple[str, OwnCode, str, float], ...]


def find_filters(filters: Sequence[OwnFilterConfig], folder: Path) -> list[OwnCode]:
    """Find and import each function, before any document is read.

    Raises:
        MissingInput: a module is missing.
        ConfigError: a module cannot be imported or lacks the function.
    """
    found = [find_code(own.filter, folder, f"data.filters {own.name}: filter") for own in filters]
    for code in found:
        load(code)
    return found


def kept_rows(own: Callable[..., Any], batch: pa.RecordBatch, seconds: float) -> list[bool]:
    """The answers of a filter, one per row.

    Raises:
        ValueError: it raised, took too long, or did not answer with one boolean a row.
    """
    try:
        with time_limit(seconds):
            answer = own(batch)
            values = answer.to_pylist() if isinstance(answer, pa.Array | pa.ChunkedArray) else list(answer)
    except Exception as error:  # whatever own code raises
        raise ValueError(first_line(error)) from error
    if len(values) != batch.num_rows:
        raise ValueError(f"it returned {len(values)} values for {batch.num_rows} rows")
    wrong = [value for value in values if value not in (True, False) or value is None]
    if wrong:
        raise ValueError(f"it returned {wrong[0]!r}; each value must be True (keep) or False (remove)")
    return [bool(value) for value in values]


def _filter_shard(section: Section, payload: tuple[Path, Filters], path_of: Callable[[str], Path]) -> ShardMade:
    path, filters = payload
    functions = [(name, code.dotted, load(code, digest), seconds) for name, code, digest, seconds in filters]
    first = 0

    def judge(group: pa.Table) -> tuple[Sequence[pa.Table], dict[str, Any]]:
        nonlocal first
        reasons = [""] * len(group)
        [batch] = group.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], group.schema)]
        for name, dotted, own, seconds in functions:
            try:
                answers = kept_rows(own, batch, seconds)
            except ValueError as error:
                raise ConfigError(
                    f"filter {name} ({dotted}), {path.name}, rows {first} to {first + len(group) - 1}: {error}. "
                    "No artifact was made. Correct the function, and start again."
                ) from error
            reasons = [reason or ("" if kept else f"own:{name}") for reason, kept in zip(reasons, answers, strict=True)]
        sizes = pc.binary_length(group["text"]).to_pylist()
        first += len(group)
        counts = funnel(group["source"].to_pylist(), sizes, sizes, reasons)
        return split_table(group, reasons, [""] * len(group)), counts

    schemas = {"documents": DOCUMENT_SCHEMA, "removed": REMOVED_SCHEMA}
    return pass_on(path, path_of, schemas, judge, funnel([], [], [], []))


def own_filters(
    documents: Manifest, filters: Sequence[OwnFilterConfig], runtime: Runtime, folder: Path = Path()
) -> Manifest:
    """Remove the documents that the run's own functions do not keep.

    Raises:
        MissingInput: a module is missing.
        ConfigError: a function cannot be imported, raised, or did not return one boolean a row.
    """
    found = find_filters(filters, folder)
    digests = [code.digest for code in found]
    named = tuple((own.name, own.filter, digest) for own, digest in zip(filters, digests, strict=True))
    recipe = Recipe("filter", VERSION, OwnFilterIdentity(filters=named))
    chain: Filters = tuple(
        (own.name, code, digest, own.seconds) for own, code, digest in zip(filters, found, digests, strict=True)
    )

    def make(target: Path) -> Made:
        shards = [
            Shard(path.stem, (output.sha256, *digests), (path, chain), (output,))
            for output, path in document_shards(documents, runtime.root)
        ]
        return gathered(map_shards(recipe, _filter_shard, shards, target, runtime), funnel([], [], [], []))

    return run_stage(recipe, [documents.as_input()], runtime, make)
