"""Decontamination stage: remove evaluation sets from documents, with evidence.

`passages.py` defines the passages and how much of one must match.

Evidence. Role `hits` has a row a place: document, source, set, item, part ("*": the whole item), the span as
characters and as UTF-8 bytes of the document's text (from the first word found to the last, without the punctuation
around them), words found, words of the passage, coverage, what decided (coverage, run or part), and what was done.
Where passages of one set overlap, the one with the most words found is named.

`drop_document` removes a document with a hit as `contaminated`; `drop_span` cuts the spans out, and removes only
documents without a word left. The evidence of a removed document is its hit of the most words: "<set>#<item> <part>
<start>-<end>", the span in characters.

Roles: `documents`, `removed`, `hits`. Price: one pass per shard, a row group at a time; each worker holds the index
(some 60 bytes per word of the sets), and makes it once, in about half a second per million words.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_pipeline.decontamination.evaluation_sets import ITEM_SCHEMA, EvaluationSet
from data_pipeline.decontamination.passages import Hit, PassageConfig, PassageIndex, character_offsets, find_hits, seek
from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    REMOVED_SCHEMA,
    cut_spans,
    edited,
    funnel,
    gathered,
    map_documents,
    pass_on,
    read_table,
    required,
    split_table,
    with_column,
)
from governance.log import get_logger
from governance.manifest import Manifest
from governance.parallel import ShardMade
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import guarded

VERSION = 4
REASON = "contaminated"

HIT_SCHEMA = required(
    document=pa.string(),
    source=pa.string(),
    set=pa.string(),
    item=pa.string(),
    part=pa.string(),
    start=pa.int64(),
    end=pa.int64(),
    start_byte=pa.int64(),
    end_byte=pa.int64(),
    words_found=pa.int64(),
    passage_words=pa.int64(),
    coverage=pa.float64(),
    rule=pa.string(),
    action=pa.string(),
)
_SCHEMAS = {"documents": DOCUMENT_SCHEMA, "removed": REMOVED_SCHEMA, "hits": HIT_SCHEMA}


class DecontaminateConfig(PassageConfig):
    """Evaluation sets, what counts as an item, and what to do."""

    sets: tuple[EvaluationSet, ...] = Field(min_length=1)
    """The evaluation sets."""
    action: Literal["drop_document", "drop_span"] = "drop_document"
    """Remove the document, or cut the spans out of it."""


@dataclass(frozen=True)
class _Items:
    """The evaluation sets of one artifact.

    Two are equal if their digests are, wherever the files are.
    """

    digest: str
    paths: tuple[Path, ...] = field(compare=False)


@functools.lru_cache(maxsize=1)
def _sought(items: _Items, config: PassageConfig) -> PassageIndex:
    """The index of one artifact, made once per process."""
    return seek((read_table(path, ITEM_SCHEMA) for path in items.paths), config)


def _hit_rows(
    table: pa.Table, row: int, hits: Sequence[Hit], sought: PassageIndex, config: PassageConfig, action: str
) -> Iterator[tuple[Any, ...]]:
    """The rows of HIT_SCHEMA of one document."""
    at = character_offsets(table["text"][row].as_py())
    for hit in hits:
        size = int(sought.sizes[hit.passage])
        yield (
            table["id"][row].as_py(),
            table["source"][row].as_py(),
            *sought.names[hit.passage],
            int(at[hit.start]),
            int(at[hit.end]),
            hit.start,
            hit.end,
            hit.words,
            size,
            hit.words / size,
            sought.rule(hit, config),
            action,
        )


def _judge(
    table: pa.Table, sought: PassageIndex, config: DecontaminateConfig
) -> tuple[tuple[pa.Table, pa.Table, pa.Table], dict[str, Any]]:
    texts = table["text"].combine_chunks()
    reasons, evidence = [""] * table.num_rows, [""] * table.num_rows
    rows: list[tuple[Any, ...]] = []
    cut: dict[int, str] = {}
    for row, hits in sorted(find_hits(texts, sought, config).items()):
        left = ""
        if config.action == "drop_span":
            left = cut_spans(texts[row].as_buffer().to_pybytes(), [(hit.start, hit.end) for hit in hits]).decode()
        removed = not any(character.isalnum() for character in left)
        here = list(_hit_rows(table, row, hits, sought, config, "drop_document" if removed else "drop_span"))
        rows += here
        if removed:
            _, _, name, item, part, start, end, *_ = max(here, key=lambda row: (row[9], -row[5]))
            reasons[row], evidence[row] = REASON, f"{name}#{item} {part} {start}-{end}"
        else:
            cut[row] = left
    clean = edited(texts, cut)
    kept, removed_table = split_table(table, reasons, evidence, with_column(table, "text", clean))
    columns = zip(*rows, strict=True) if rows else [()] * len(HIT_SCHEMA)
    hit_table = pa.table([pa.array(c, f.type) for c, f in zip(columns, HIT_SCHEMA, strict=True)], HIT_SCHEMA)
    sizes, sizes_left = pc.binary_length(texts).to_pylist(), pc.binary_length(clean).to_pylist()
    counts = funnel(table["source"].to_pylist(), sizes, sizes_left, reasons)
    stats = {**counts, **_extras(rows, [sizes[row] - sizes_left[row] for row in cut])}
    return (kept, removed_table, hit_table), stats


def _decontaminate_shard(config: DecontaminateConfig, payload: tuple[Path, _Items], path_of: Any) -> ShardMade:
    path, items = payload
    sought = _sought(items, config)
    return pass_on(path, path_of, _SCHEMAS, lambda table: _judge(table, sought, config), _none())


def _none() -> dict[str, Any]:
    return {**funnel([], [], [], []), **_extras([], [])}


def _extras(rows: Sequence[tuple[Any, ...]], cut: Sequence[int]) -> dict[str, Any]:
    documents = {(row[2], row[0]) for row in rows}
    return {
        "hits_by_set": dict(Counter(row[2] for row in rows)),
        "documents_by_set": dict(Counter(name for name, _ in documents)),
        "documents_cut": len(cut),
        "bytes_cut": sum(cut),
    }


def decontaminate(documents: Manifest, sets: Manifest, config: DecontaminateConfig, runtime: Runtime) -> Manifest:
    """Remove documents or spans that hold an evaluation item; keep evidence.

    `stats` adds to the common counts: `hits_by_set`, `documents_by_set` (a document counts in each set that it holds an
    item of), `documents_cut`, `bytes_cut`, `items_sought_by_set` (items with a text specific enough to be found).

    Raises:
        ManifestError: a shard cannot be read.
        MissingInput: the artifact is not made and `runtime.make` is False.
    """
    recipe = Recipe("decontaminate", VERSION, config)

    def make(folder: Path) -> Made:
        items = _Items(sets.digest, tuple(sets.files("items", runtime.root)))
        sought = _sought(items, config)
        done = map_documents(recipe, _decontaminate_shard, documents, [items], [sets.digest], folder, runtime)
        made = gathered(done, _none())
        made.stats["items_sought_by_set"] = {name: sought.items.get(name, 0) for name in sorted(sets.stats["items"])}
        for name, count in sets.stats["items"].items():
            if sought.items.get(name, 0) < count:
                get_logger(__name__).warning(
                    "decontaminate: %d of %d items of %s are too short to be searched for (min_words, min_letters)",
                    count - sought.items.get(name, 0), count, name,
                )  # fmt: skip
        return made

    read = sets.listed("items")
    return run_stage(recipe, [documents.as_input(), sets.as_input()], runtime, guarded(make, read, runtime.root))
