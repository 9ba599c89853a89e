"""Filter stage: bounds on kept columns, and functions of the run's own.

    [[data.filters]]                        [[data.filters]]
    name = "recent"                         name = "loud"
    column = "date"                         filter = "mylab.rules:too_loud"
    min = "2015-01-01"

A filter on a column is `column_filters.py`; its reasons are `column:<name>` and `column_missing:<name>`.

A function takes an Arrow record batch with the columns of a document (`documents.py`) and returns one value a row: True
keeps the document, False removes it as `own:<name>`. The first filter that removes a document is its reason. An
exception, another number of values, a null or no answer within `seconds` ends the stage with the function, the shard
and the rows: there is never a part of an artifact. The functions' source decides the stage's key (`own_code.py`).

Roles `documents`, `removed`. `without_value` counts the documents that a filter on a column had no value of; where
these are all documents, and the filter keeps them, it does nothing, and a warning says so.

Price: that of the functions; a row group (8 MiB of text) is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field, model_validator

from data_pipeline.documents import DOCUMENT_SCHEMA, REMOVED_SCHEMA, funnel, gathered, judged, map_documents, pass_on
from data_pipeline.filters.column_filters import ColumnBounds, column_reasons, require_bounds
from governance.config import Section, canonical_json
from governance.errors import ConfigError
from governance.log import get_logger
from governance.manifest import Manifest
from governance.own_code import DOTTED, OwnCode, find_code, first_line, load
from governance.parallel import ShardMade
from governance.processes import time_limit
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 5


class OwnFilterConfig(ColumnBounds):
    """A `[[data.filters]]` section: bounds on a column, or a function."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    """Names the reason of removed documents: `own:<name>`, `column:<name>`."""
    filter: str = Field(default="", pattern=rf"^$|{DOTTED}")
    """The function: `package.module:function`, in the folder of the run's file or installed; "": `column` decides."""
    seconds: float = Field(default=600, gt=0)
    """Time that one batch may take."""

    @model_validator(mode="after")
    def _is_one_filter(self) -> OwnFilterConfig:
        if bool(self.filter) == bool(self.column):
            raise ValueError("needs either `column` with bounds or `filter`, a function; give one of the two")
        if self.filter and self.conditions():
            raise ValueError(f"{', '.join(self.conditions())}: bounds are for a `column`, not for a function")
        if self.column:
            require_bounds(self)
        return self


class OwnFilterIdentity(Section):
    """Recipe of the stage: each function and the digest of its source."""

    filters: tuple[tuple[str, str, str], ...]
    """Name, dotted path, SHA-256 of the source; or name, "column <column>", its conditions as JSON."""


Chain = tuple[tuple[OwnFilterConfig, OwnCode | None, str], ...]
"""Each filter, its code where it is a function, and the digest of its source or its conditions."""


def find_filters(filters: Sequence[OwnFilterConfig], folder: Path) -> Chain:
    """Find and import each function, before any document is read.

    Raises:
        MissingInput: a module is missing.
        ConfigError: a module cannot be imported or lacks the function.
    """
    found: list[tuple[OwnFilterConfig, OwnCode | None, str]] = []
    for one in filters:
        code = find_code(one.filter, folder, f"data.filters {one.name}: filter") if one.filter else None
        if code is not None:
            load(code)
        found.append((one, code, code.digest if code else canonical_json(one.conditions()).decode()))
    return tuple(found)


def kept_rows(own: Callable[..., Any], batch: pa.RecordBatch, seconds: float) -> list[bool]:
    """The answers of a filter, one per row.

    Raises:
        ValueError: it raised, took too long, or did not answer with one boolean a row.
    """
    try:
        with time_limit(seconds):
            answer = own(batch)
            values = answer.to_pylist() if isinstance(answer, pa.Array | pa.ChunkedArray) else list(answer)
    except (Exception, SystemExit) as error:  # own code may raise anything, and sys.exit() would end with 0
        raise ValueError(first_line(error)) from error
    if len(values) != batch.num_rows:
        raise ValueError(f"it returned {len(values)} value(s) for {batch.num_rows} rows")
    wrong = [value for value in values if value not in (True, False) or value is None]
    if wrong:
        raise ValueError(f"it returned {wrong[0]!r}; each value must be True (keep) or False (remove)")
    return [bool(value) for value in values]


def _filter_shard(section: Section, payload: tuple[Path, Chain], path_of: Callable[[str], Path]) -> ShardMade:
    path, chain = payload
    filters = [(config, None if code is None else load(code, digest)) for config, code, digest in chain]
    first = 0

    def judge(group: pa.Table) -> tuple[Sequence[pa.Table], dict[str, Any]]:
        nonlocal first
        reasons, without = [""] * len(group), {}
        [batch] = group.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], group.schema)]
        for config, own in filters:
            if own is None:
                given, without[config.name] = column_reasons(config.name, config, batch)
            else:
                try:
                    given = ["" if kept else f"own:{config.name}" for kept in kept_rows(own, batch, config.seconds)]
                except ValueError as error:
                    rows = f"rows {first} to {first + len(group) - 1}"
                    raise ConfigError(
                        f"filter {config.name} ({config.filter}), {path.name}, {rows}: {error}. No artifact was made. "
                        "Correct the function and start again."
                    ) from error
            reasons = [reason or new for reason, new in zip(reasons, given, strict=True)]
        first += len(group)
        tables, counts = judged(group, reasons, [""] * len(group))
        return tables, {**counts, "without_value": without}

    schemas = {"documents": DOCUMENT_SCHEMA, "removed": REMOVED_SCHEMA}
    return pass_on(path, path_of, schemas, judge, _nothing())


def _nothing() -> dict[str, Any]:
    return {**funnel([], [], [], []), "without_value": {}}


def own_filters(documents: Manifest, filters: Sequence[OwnFilterConfig], runtime: Runtime, folder: Path) -> Manifest:
    """Remove the documents that a filter does not keep.

    Raises:
        MissingInput: a module is missing.
        ConfigError: a function cannot be imported, raised, or did not return one boolean a row.
    """
    chain = find_filters(filters, folder)
    digests = [digest for _, _, digest in chain]
    named = tuple((one.name, one.filter or f"column {one.column}", digest) for one, _, digest in chain)
    recipe = Recipe("filter", VERSION, OwnFilterIdentity(filters=named))

    def make(target: Path) -> Made:
        done = map_documents(recipe, _filter_shard, documents, [chain], digests, target, runtime)
        made = gathered(done, _nothing())
        _warn_of_idle(filters, made.stats)
        return made

    return run_stage(recipe, [documents.as_input()], runtime, make)


def _warn_of_idle(filters: Sequence[OwnFilterConfig], stats: Mapping[str, Any]) -> None:
    """Warn of filters that find no value to compare in any document."""
    came = stats["documents_in"]
    for one in filters:
        if one.missing == "keep" and 0 < came == stats["without_value"].get(one.name):
            get_logger(__name__).warning(
                "filter %s keeps all %s documents: none has a value in %r that its bounds compare with. Check the name "
                "in `column` and in the sources' `columns`, and the type of the bounds",
                one.name, f"{came:,}", one.column,
            )  # fmt: skip
