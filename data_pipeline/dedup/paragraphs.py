"""Paragraph deduplication stage: cut repeated paragraphs and lines.

A paragraph that occurs in at least `min_paragraph_documents` documents, or a line in at least `min_line_documents`,
stays where it occurs first (in the order of the corpus) and is cut out everywhere else. `kernels/paragraph_hashes.py`
defines paragraph and line; case and punctuation count, white space does not. Paragraphs below `min_paragraph_bytes` and
lines below `min_line_bytes` are never cut: headings and greetings are not boilerplate. A document of which less than
`min_left_bytes` remains is removed, with the reason `duplicate_text`; its evidence is how much was cut.

Roles: `documents`, `removed` (with the text as it came in), `cuts` (id, kind, start and end in bytes of the text that
came in; the blank lines after the span are removed with it), `units` (the compared units: hashes and places).

Price: two passes; one row of 29 bytes per paragraph or line goes through the join of `dedup/join.py`, which spills.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from data_pipeline.dedup.cutting import CUT_SCHEMA, SPAN_SCHEMA, Cutting, cut_repeats, first_rows
from data_pipeline.dedup.join import shared_units
from data_pipeline.documents import CODE_LANGUAGE, cut_spans, read_groups, table_writer
from governance.config import Section
from governance.manifest import Manifest
from governance.parallel import ShardMade
from governance.stage import Recipe, Runtime

Integers = npt.NDArray[np.int64]

VERSION = 4
_A_ROW_GROUP = 1 << 16
_KINDS = ("paragraph", "line")
_UNITS = pa.schema(
    [("row", pa.int64()), ("kind", pa.int8()), ("start", pa.int64()), ("end", pa.int64()),
     ("high", pa.uint64()), ("low", pa.uint64())]
)  # fmt: skip


class ParagraphsConfig(Section):
    """Units to compare, and how often one must occur to be cut."""

    min_paragraph_documents: int = Field(default=2, ge=2)
    """Documents with a paragraph, from which on all but its first occurrence are cut."""
    min_paragraph_bytes: int = Field(default=100, ge=1)
    """Bytes of a paragraph that is compared, blanks folded."""
    min_line_documents: int = Field(default=6, ge=2)
    """Documents with a line, from which on all but its first occurrence are cut."""
    min_line_bytes: int = Field(default=24, ge=1)
    """Bytes of a line that is compared, blanks folded."""
    min_left_bytes: int = Field(default=100, ge=0)
    """Bytes, below which a document that was cut is removed."""


def _units_shard(config: ParagraphsConfig, path: Path, path_of: Callable[[str], Path]) -> ShardMade:
    from data_pipeline.kernels.paragraph_hashes import find_units
    from governance.kernels.buffers import text_buffers

    rows = 0
    count = 0
    with table_writer(path_of("units"), _UNITS) as append:
        for group in read_groups(path):
            buffers = text_buffers(group["text"])
            found = find_units(*buffers, config.min_paragraph_bytes, config.min_line_bytes)
            prose = pc.not_equal(group["language"], CODE_LANGUAGE).to_numpy()[found.row]
            columns = {"row": found.row + rows, "kind": found.kind, "start": found.start, "end": found.end}
            units = pa.table({**columns, "high": found.high, "low": found.low}, schema=_UNITS).filter(pa.array(prose))
            append(units)
            rows += len(group)
            count += len(units)
    return ShardMade({"units": path_of("units")}, {"units": count})


def repeated_units(
    config: ParagraphsConfig, documents: Sequence[Path], paths: Sequence[Path], engine_name: str, target: Path
) -> None:
    """Write the units to cut, by document in each range.

    Raises:
        StorageError: the disk is full.
        PipelineError: the join fails, in the engine's words.
    """
    firsts, first_documents = first_rows(paths), first_rows(documents)

    def keys() -> Iterator[npt.NDArray[np.uint64]]:
        for path in paths:
            table = pq.read_table(path, columns=["kind", "high"], partitioning=None)
            # A paragraph of one line has that line's hash: the kind parts them, or each such pair would be joined.
            # Other units that share a key cost only time: whole hashes are compared afterwards.
            yield (table["high"].to_numpy() >> np.uint64(2)) ^ table["kind"].to_numpy().astype(np.uint64)

    with table_writer(target, SPAN_SCHEMA, bounds=("document",)) as append:
        for _, numbers in shared_units(keys(), firsts, engine_name, target.parent):
            numbers = np.sort(numbers)
            shard = np.searchsorted(firsts, numbers, side="right") - 1
            parts = [_UNITS.empty_table()]
            for place in np.unique(shard):
                here = pa.array(numbers[shard == place] - firsts[place])
                parts.append(pq.read_table(paths[place], partitioning=None).take(here))
            units = pa.concat_tables(parts)
            units = units.append_column("document", pa.array(units["row"].to_numpy() + first_documents[shard]))
            cut = units.take(pa.array(_all_but_the_first(units, config))).select(SPAN_SCHEMA.names)
            for start in range(0, len(cut), _A_ROW_GROUP):
                append(cut.slice(start, _A_ROW_GROUP))


def _all_but_the_first(units: pa.Table, config: ParagraphsConfig) -> Integers:
    """Rows of `units` that repeat an earlier one, in enough documents; ascending."""
    kind, high, low, document = (units[name].to_numpy() for name in ("kind", "high", "low", "document"))
    order = np.lexsort((low, high, kind))  # stable: equal units stay in the order of the corpus
    kind, high, low, document = (values[order] for values in (kind, high, low, document))
    new = np.ones(len(order), bool)
    new[1:] = (kind[1:] != kind[:-1]) | (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    other_document = new.copy()
    other_document[1:] |= document[1:] != document[:-1]
    group = np.cumsum(new) - 1
    documents = np.bincount(group, weights=other_document).astype(np.int64)
    minimum = np.where(kind == 0, config.min_paragraph_documents, config.min_line_documents)
    return np.sort(order[~new & (documents[group] >= minimum)])


def without(text: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    """The text without the spans and the blank lines after each."""
    return cut_spans(text, [(start, _behind_blanks(text, end)) for start, end in spans]).rstrip()


def _behind_blanks(text: bytes, end: int) -> int:
    at = end
    while at < len(text) and text[at : at + 1].isspace():
        at += 1
    return text.rfind(b"\n", end, at) + 1 or at  # the blanks that open the next line belong to it


def drop_paragraphs(documents: Manifest, config: ParagraphsConfig, runtime: Runtime) -> Manifest:
    """Cut repeated paragraphs and lines except where they occur first.

    `stats` adds to the common counts `cut`: paragraphs, lines, and documents that lost any.

    Raises:
        ManifestError: a shard cannot be read.
        PipelineError: the join fails.
    """
    join = functools.partial(repeated_units, config)
    cutting = Cutting("units", _units_shard, join, _KINDS, CUT_SCHEMA, without, config.min_left_bytes)
    return cut_repeats(Recipe("paragraphs", VERSION, config), documents, runtime, cutting)
