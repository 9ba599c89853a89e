"""Stratified sample of documents for tokenizer training.

The rule: a stratum gets `sample_bytes` in proportion to its share of all bytes. Within it documents are taken by rising
SHA-256 of their id until its share is full; the last one is cut. Price: one pass over ids and sizes, one over the row
groups that hold a chosen document; memory of a row group and of 32 bytes for each document that may still be taken,
never for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.documents import DOCUMENT_SCHEMA, read_groups, rows_by_group
from data_pipeline.tokens.mix import rows_by_cell
from data_pipeline.tokens.token_shards import document_identity

_CHOSEN_BY = pa.schema([DOCUMENT_SCHEMA.field(name) for name in ("id", "text", "source", "language")])
_TEXT = pa.schema([DOCUMENT_SCHEMA.field("text")])
_PARITY_DOCUMENTS = 512
_PLACE = np.dtype([("hash", np.uint64), ("shard", np.int64), ("row", np.int64), ("size", np.int64)])
_PRUNE = 1 << 16  # documents of a stratum that gather before the ones that cannot be taken are let go

Places = npt.NDArray[np.void]
"""Documents as (hash, shard, row, size); `size` is how many of its bytes to take."""


@dataclass(frozen=True)
class TrainingSample:
    """The documents to train on, and those to compare the engines on."""

    places: Places
    """Sorted by shard and row."""
    parity: Places
    """The up to 512 of lowest hash among them."""
    bytes_by_source: dict[str, int]
    documents: int
    """In the whole corpus."""


@dataclass
class _Stratum:
    """Statistics of one (source, language) while the corpus is read."""

    bytes: int = 0
    held: list[Places] = field(default_factory=list)
    waiting: int = 0

    def add(self, places: Places, most_bytes: int) -> None:
        self.bytes += int(places["size"].sum())
        self.held.append(places)
        self.waiting += len(places)
        if self.waiting > _PRUNE:
            self.held = [_first(np.concatenate(self.held), most_bytes)]
            self.waiting = 0


def choose_sample(paths: Sequence[Path], sample_bytes: int) -> TrainingSample:
    """Choose from the document shards `paths`, see the module's rule."""
    strata: dict[tuple[str, ...], _Stratum] = {}
    documents = 0
    for shard, path in enumerate(paths):
        first = 0
        for table in read_groups(path, _CHOSEN_BY):
            for name, places in _by_stratum(table, shard, first):
                strata.setdefault(name, _Stratum()).add(places, sample_bytes)
            first += table.num_rows
        documents += first
    corpus = sum(stratum.bytes for stratum in strata.values())
    taken = [np.zeros(0, _PLACE)]
    by_source: dict[str, int] = {}
    for name, stratum in sorted(strata.items()):
        room = min(stratum.bytes, -(-sample_bytes * stratum.bytes // max(corpus, 1)))
        places = _first(np.concatenate(stratum.held), room)
        if len(places):
            places["size"][-1] -= max(0, int(places["size"].sum()) - room)
            by_source[name[0]] = by_source.get(name[0], 0) + int(places["size"].sum())
            taken.append(places)
    places = np.concatenate(taken)
    lowest = np.sort(places, order=["hash", "shard", "row"])[:_PARITY_DOCUMENTS]
    return TrainingSample(_in_order(places), _in_order(lowest), by_source, documents)


def _in_order(places: Places) -> Places:
    return np.sort(places, order=["shard", "row"])


def _first(places: Places, most_bytes: int) -> Places:
    """Places of lowest hash that reach `most_bytes` together."""
    places = np.sort(places, order=["hash", "shard", "row"])
    before = np.cumsum(places["size"]) - places["size"]
    return np.array(places[before < most_bytes])


def _by_stratum(table: pa.Table, shard: int, first: int) -> Iterator[tuple[tuple[str, ...], Places]]:
    """The documents with text of a table by (source, language).

    The table's first row is row `first` of the shard.
    """
    places = np.zeros(table.num_rows, _PLACE)
    hashes = b"".join(document_identity(identity)[:8] for identity in table["id"].to_pylist())
    places["hash"] = np.frombuffer(hashes, ">u8")
    places["shard"], places["row"] = shard, np.arange(first, first + table.num_rows)
    places["size"] = pc.binary_length(table["text"]).to_numpy()
    for name, rows in rows_by_cell(table):
        yield name, places[rows][places["size"][rows] > 0]


def sample_texts(paths: Sequence[Path], places: Places, most_bytes: int | None = None) -> Iterator[str]:
    """Texts of `places` in order, each cut to its size.

    Cuts fall between characters; `most_bytes` is the limit of one text. Row groups that hold none are not read.
    """
    for shard in np.unique(places["shard"]).tolist():
        chosen = places[places["shard"] == shard]
        sizes = iter(chosen["size"].tolist())
        groups = rows_by_group(paths[shard], chosen["row"])
        tables = read_groups(paths[shard], _TEXT, [group for group, _ in groups])
        for table, (_, rows) in zip(tables, groups, strict=True):
            for row in rows.tolist():
                data, size = table["text"][row].as_buffer(), next(sizes)
                limit = min(size, most_bytes) if most_bytes is not None else size
                yield data.slice(0, min(limit, data.size)).to_pybytes().decode("utf-8", errors="ignore")
