"""Evaluation sets as an artifact: the texts of every item.

    [[data.decontaminate.sets]]
    name = "arc-easy"
    paths = ["evals/arc-easy/*.jsonl.gz"]
    fields = ["question"]                      # one of these texts in a document identifies its item
    answer_fields = ["choices", "answer"]      # these only together with the others, as a whole item

A field may hold a text, or lists and objects of any depth: every text within is taken, in order, and named by its path
("choices.text.0"); a name with dots is such a path. Numbers, truth values and null are skipped.

Promise: a set is read whole or not at all. A line that is not a JSON object, a torn file or a field that no item has is
an error: a set that is read in part would leave the rest in the corpus unnoticed.

Each row of a file is one item. Role `items`: one Parquet file per set with a row per text, items in order: set, item
(the value of `id_field`, else its number from 0 over the set's files; "<value>:<number>" where an earlier item has that
value), part (the path to the text), alone (whether it is of `fields`), listed (whether it
is one of several texts of a list, as a choice is), text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from data_pipeline.documents import gathered, required, shard_writer
from data_pipeline.readers.local import find_files
from data_pipeline.readers.record import encodable, value_at
from data_pipeline.readers.streams import TornStream, blocks, lines
from governance.config import Section, canonical_json
from governance.errors import ConfigError, MissingInput
from governance.file_digests import file_inputs, unchanged
from governance.files import sha256_bytes
from governance.manifest import Manifest
from governance.parallel import Shard, ShardMade, map_shards
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 3
ITEM_SCHEMA = required(
    set=pa.string(), item=pa.string(), part=pa.string(), alone=pa.bool_(), listed=pa.bool_(), text=pa.large_string()
)


class EvaluationSet(Section):
    """One evaluation set: JSON Lines (.gz, .zst) or Parquet files."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the set in the evidence: "<name>#<item>"."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Shell patterns (`**` goes through folders), relative to the folder of the run's file, or absolute."""
    fields: tuple[str, ...] = Field(min_length=1)
    """Names of the values whose texts each name an item by themselves: question, context, solution ..."""
    answer_fields: tuple[str, ...] = ()
    """Names of the values whose texts count only as a part of the whole item: choices, answer ..."""
    id_field: str = ""
    """The name of the value that identifies an item; "": its number does.

    An item with the value of an earlier one is named by its value and number."""

    @model_validator(mode="after")
    def _names_once(self) -> EvaluationSet:
        if twice := sorted(name for name, times in Counter(self.fields + self.answer_fields).items() if times > 1):
            raise ValueError(f"{twice[0]!r} is named twice in fields and answer_fields; name each value once")
        return self


class SetsIdentity(Section):
    """Settings that decide the bytes; paths do not, since inputs are digests."""

    sets: tuple[EvaluationSet, ...]


def texts_of(value: Any, way: str, listed: bool = False) -> Iterator[tuple[str, bool, str]]:
    """Every text within a value that is not blank.

    It yields the way to each, whether it is one of several in a list, and the text itself.
    """
    if isinstance(value, str):
        if value.strip():
            yield way, listed, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from texts_of(item, f"{way}.{name}", listed)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from texts_of(item, f"{way}.{number}", listed or len(value) > 1)


_ABSENT = object()


def read_rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of an evaluation set.

    Raises:
        MissingInput: it cannot be read whole.
    """
    if path.name.endswith(".parquet"):
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=256):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise MissingInput(f"evaluation set {name}: {path} cannot be read as Parquet: {error}.") from error
        return
    number = -1
    try:
        for number, line in enumerate(lines(blocks(path))):
            if line and not line.isspace():
                yield _read_line(line, path, number, name)
    except TornStream as error:
        raise MissingInput(
            f"evaluation set {name}: {path} is cut short after line {number + 1} ({error.reason}). Fetch it again."
        ) from error


def _read_line(line: bytes, path: Path, number: int, name: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MissingInput(
            f"evaluation set {name}: {path}, line {number + 1} is not JSON ({error}). Correct it."
        ) from error
    if not isinstance(row, dict):
        raise MissingInput(f"evaluation set {name}: {path}, line {number + 1} is not a JSON object. Correct it.")
    return row


def _item_name(row: dict[str, Any], number: int, wanted: EvaluationSet) -> str:
    if not wanted.id_field:
        return str(number)
    value = value_at(row, wanted.id_field, _ABSENT)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ConfigError(
            f"evaluation set {wanted.name}: item {number} has no text or whole number as {wanted.id_field!r}."
            f" Correct id_field, or leave it out to number the items."
        )
    return str(value)


def _write_set(
    config: Section, payload: tuple[EvaluationSet, tuple[Path, ...], tuple[str, ...]], path_of: Any
) -> ShardMade:
    wanted, paths, digests = payload
    target: Path = path_of("items")
    known = dict.fromkeys(wanted.fields, True) | dict.fromkeys(wanted.answer_fields, False)
    seen: Counter[str] = Counter()
    names: dict[str, None] = {}
    items: set[str] = set()
    number = texts = 0
    with shard_writer(target, ITEM_SCHEMA) as add, unchanged(zip(paths, digests, strict=True)):
        for row in (row for path in paths for row in read_rows(path, wanted.name)):
            item = encodable(_item_name(row, number, wanted))
            while item in items:
                item = f"{item}:{number}"
            items.add(item)
            names.update(dict.fromkeys(row))
            for field, alone in known.items():
                value = value_at(row, field, _ABSENT)
                seen[field] += value is not _ABSENT
                for way, listed, text in texts_of(None if value is _ABSENT else value, field):
                    add((wanted.name, item, encodable(way), alone, listed, encodable(text)), len(text))
                    texts += 1
            number += 1
    if missing := [field for field in known if not seen[field]]:
        have = ", ".join(sorted(names)) or "none"
        raise ConfigError(
            f"evaluation set {wanted.name}: no item has {missing[0]!r}; its items have: {have}. Correct its fields."
        )
    if not texts:
        raise ConfigError(f"evaluation set {wanted.name}: {', '.join(known)} have no text in any of {number} items.")
    return ShardMade({"items": target}, {"items": {wanted.name: number}, "texts": {wanted.name: texts}})


def evaluation_sets(sets: Sequence[EvaluationSet], folder: Path, runtime: Runtime) -> Manifest:
    """Make or find the texts of all sets.

    Relative paths start at `folder`. `stats` counts `items` and `texts` by set.

    Raises:
        ConfigError: no item of a set has a field, or none holds a text.
        MissingInput: a file is missing or cannot be read whole; or it was not made and `runtime.make` is False.
    """
    files = [find_files(wanted.paths, folder, f"evaluation set {wanted.name}") for wanted in sets]
    named = (
        (f"{wanted.name}/{file.name}", file.path) for wanted, found in zip(sets, files, strict=True) for file in found
    )
    inputs = file_inputs(named, runtime)
    identity = SetsIdentity(sets=tuple(wanted.model_copy(update={"paths": ()}) for wanted in sets))
    whole = replace(runtime, worker=(0, 1), mode="all")  # a few small files: one process makes them all, for all

    def make(target: Path) -> Made:
        shards, start = [], 0
        for wanted, found, known in zip(sets, files, identity.sets, strict=True):
            digests = tuple(item.digest for item in inputs[start : start + len(found)])
            start += len(found)
            paths = tuple(file.path for file in found)
            shards.append(Shard(wanted.name, (sha256_bytes(canonical_json(known)), *digests), (wanted, paths, digests)))
        recipe = Recipe("evaluation_sets", VERSION, Section())
        return gathered(map_shards(recipe, _write_set, shards, target, whole), {"items": {}, "texts": {}})

    return run_stage(Recipe("evaluation_sets", VERSION, identity), inputs, runtime, make, alone=True)
