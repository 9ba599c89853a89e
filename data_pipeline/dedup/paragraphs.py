"""Paragraph deduplication stage: cut repeated paragraphs and lines.

A paragraph that occurs in at least `min_paragraph_documents` documents, or a line in at least `min_line_documents`,
stays where it occurs first (in the order of the corpus) and is cut out everywhere else. `kernels/paragraph_hashes.py`
defines paragraph and line; case and punctuation count, white space does not. Shorter ones are kept: headings and
greetings are not boilerplate. A document of which less than `min_left_bytes` remains leaves as
`duplicate_text`; its evidence is how much was cut.

Roles: `documents`, `removed` (with the text as it came in), `cuts` (id, kind, start and end in bytes of the text that
came in; the cut takes the blank lines behind it along), `units` (the compared units: hashes and places).

Price: two passes; one row of 29 bytes a paragraph or line goes through the join of `dedup/join.py`, which spills.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data_pipeline.dedup.cutting import CUT_SCHEMA, Cutting, cut_shard, first_rows, nothing_cut
from data_pipeline.dedup.join import shared_units
from data_pipeline.documents import cut_spans, document_shards, gathered, read_groups, table_writer
from governance.config import Section
from governance.manifest import Manifest
from governance.parallel import Shard, ShardMade, map_shards, once
from governance.stage import Made, Recipe, Runtime, run_stage

Integers = npt.NDArray[np.int64]

VERSION = 2
_A_ROW_GROUP = 1 << 16
_KINDS = ("paragraph", "line")
_UNITS = pa.schema(
    [("row", pa.int64()), ("kind", pa.int8()), ("start", pa.int64()), ("end", pa.int64()),
     ("high", pa.uint64()), ("low", pa.uint64())]
)  # fmt: skip
_NUMBERS = pa.schema([("number", pa.int64())])


class ParagraphsConfig(Section):
    """Units to compare, and how often one must occur to be cut."""

    min_paragraph_documents: int = Field(default=2, ge=2)
    """Documents that hold a paragraph, from which all but the first lose it."""
    min_paragraph_bytes: int = Field(default=100, ge=1)
    """Bytes of a paragraph that is compared, blanks folded."""
    min_line_documents: int = Field(default=6, ge=2)
    """Documents that hold a line, from which all but the first lose it."""
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
            columns = {"row": found.row + rows, "kind": found.kind, "start": found.start, "end": found.end}
            append(pa.table({**columns, "high": found.high, "low": found.low}, schema=_UNITS))
            rows += len(group)
            count += len(found.row)
    return ShardMade({"units": path_of("units")}, {"units": count})


def repeated_units(paths: Sequence[Path], config: ParagraphsConfig, engine_name: str, target: Path) -> None:
    """Write the units that are cut.

    `number` is the unit's in the corpus, ascending within each range of the join.

    Raises:
        StorageError: the disk is full.
        PipelineError: the join fails, in the engine's words.
    """
    firsts = first_rows(paths)

    def keys() -> Iterator[npt.NDArray[np.uint64]]:
        for path in paths:
            table = pq.read_table(path, columns=["kind", "high"], partitioning=None)
            # A paragraph of one line has that line's hash: the kind parts them, or each such pair would be joined.
            yield (table["high"].to_numpy() >> np.uint64(2)) ^ table["kind"].to_numpy().astype(np.uint64)

    with table_writer(target, _NUMBERS, bounds=("number",)) as append:
        for _, numbers in shared_units(keys(), firsts, engine_name, target.parent):
            cut = _all_but_the_first(np.sort(numbers), paths, firsts, config)
            for start in range(0, len(cut), _A_ROW_GROUP):
                append(pa.table({"number": cut[start : start + _A_ROW_GROUP]}, schema=_NUMBERS))


def _all_but_the_first(
    numbers: Integers, paths: Sequence[Path], firsts: Integers, config: ParagraphsConfig
) -> Integers:
    """Repeated units after their first occurrence, ascending, in enough documents."""
    shard = np.searchsorted(firsts, numbers, side="right") - 1
    columns = ("kind", "high", "low", "row")
    parts = [
        pq.read_table(paths[place], columns=list(columns)).take(pa.array(numbers[shard == place] - firsts[place]))
        for place in np.unique(shard)
    ]
    table = pa.concat_tables(parts) if parts else pa.table({name: pa.array([], pa.int64()) for name in columns})
    kind, high, low, row = (table[name].to_numpy() for name in columns)
    order = np.lexsort((numbers, low, high, kind))
    kind, high, low, row, shard = (values[order] for values in (kind, high, low, row, shard))
    new = np.ones(len(order), bool)
    new[1:] = (kind[1:] != kind[:-1]) | (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    other_document = new.copy()
    other_document[1:] |= (row[1:] != row[:-1]) | (shard[1:] != shard[:-1])
    group = np.cumsum(new) - 1
    documents = np.bincount(group, weights=other_document).astype(np.int64)
    minimum = np.where(kind == 0, config.min_paragraph_documents, config.min_line_documents)
    return np.sort(numbers[order][~new & (documents[group] >= minimum)])


@dataclass(frozen=True)
class UnitsToCut:
    """The work on one shard."""

    documents: Path
    units: Path
    cuts: Path
    first: int
    """Number of the shard's first unit in the corpus."""


def without(text: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    """The text without the spans and the blank lines after each."""
    return cut_spans(text, [(start, _behind_blanks(text, end)) for start, end in spans]).rstrip()


def _behind_blanks(text: bytes, end: int) -> int:
    at = end
    while at < len(text) and text[at : at + 1].isspace():
        at += 1
    return text.rfind(b"\n", end, at) + 1 or at  # the blanks that open the next line belong to it


def _cut_shard(config: ParagraphsConfig, work: UnitsToCut, path_of: Callable[[str], Path]) -> ShardMade:
    units = pq.read_table(work.units, columns=["row", "kind", "start", "end"])
    ours = [("number", ">=", work.first), ("number", "<", work.first + len(units))]
    units = units.take(pa.array(np.sort(pq.read_table(work.cuts, filters=ours)["number"].to_numpy()) - work.first))
    return cut_shard(work.documents, units, Cutting(_KINDS, CUT_SCHEMA, without, config.min_left_bytes), path_of)


def drop_paragraphs(documents: Manifest, config: ParagraphsConfig, runtime: Runtime) -> Manifest:
    """Cut repeated paragraphs and lines except where they occur first.

    `stats` adds to the common counts `cut`: paragraphs, lines, and documents that lost any.

    Raises:
        ManifestError: a shard cannot be read.
        PipelineError: the join fails.
    """
    recipe = Recipe("paragraphs", VERSION, config)

    def make(folder: Path) -> Made:
        inputs = document_shards(documents, runtime.root)
        first = [Shard(path.stem, ("units", output.sha256), path, (output,)) for output, path in inputs]
        found = map_shards(recipe, _units_shard, first, folder, runtime)
        units = [runtime.root / shard.outputs["units"].path for shard in found]
        known = [shard.outputs["units"].sha256 for shard in found]
        join = functools.partial(repeated_units, units, config, runtime.engine)
        cuts = once(runtime, folder.parent / "records" / f"{recipe.key(known)}.parquet", join)
        firsts = itertools.accumulate((shard.stats["units"] for shard in found), initial=0)
        second = [
            Shard(
                path.stem,
                ("cut", output.sha256, str(first), *known),
                UnitsToCut(path, runtime.root / shard.outputs["units"].path, cuts, first),
                (output, shard.outputs["units"]),
            )
            for (output, path), shard, first in zip(inputs, found, firsts, strict=False)
        ]
        done = map_shards(recipe, _cut_shard, second, folder, runtime)
        return gathered([*found, *done], nothing_cut(_KINDS))

    return run_stage(recipe, [documents.as_input()], runtime, make)
