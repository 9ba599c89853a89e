"""Duplicate candidates of the corpus, ranked, with their shingles.

Documents are numbered through the whole corpus, those of earlier corpora first. The join says which share a key; equal
texts are then confirmed by their SHA-256, equal addresses by the addresses themselves; near texts are compared by
their shingles in `kernels/greedy_dedup.py`. No document is removed for a hash alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.dedup.join import BAND, TEXT, URL, JoinEngine, shared_keys
from data_pipeline.documents import DOCUMENT_SCHEMA, read_groups, rows_by_group
from governance.errors import storage_errors

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MAX_KEPT_A_BAND = 64  # comparisons of one document within one band
MAX_TEXTS_AN_ADDRESS = 16  # an address with more texts than this names a collection and no page
_TEXT = pa.schema([DOCUMENT_SCHEMA.field("text")])
_SPREAD = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64's finaliser


@dataclass(frozen=True)
class DedupRules:
    """Rules of the decision; `DedupConfig` documents each."""

    ngram: int
    bands: int
    threshold: float
    urls: bool
    overlap: float
    prefer: Sequence[str]


@dataclass(frozen=True)
class CorpusShard:
    """One shard: its documents, signatures and place in the corpus."""

    documents: Path
    signatures: Path
    keys: Path
    first: int
    """The number of its first document."""
    rows: int
    kept: Flags | None = None
    """Of an earlier corpus: which of the signed documents stayed, and so are in `documents`; None: all."""
    origin: str = ""
    """The digest of the earlier corpus' manifest; "" for what is new."""


@dataclass(frozen=True)
class Corpus:
    """All parts in the order of their numbers.

    Those below `new` are of earlier corpora.
    """

    parts: Sequence[CorpusShard]
    new: int

    def ignored(self) -> Flags:
        """The documents that earlier corpora removed: no document is removed for them."""
        kept = [np.ones(part.rows, bool) if part.kept is None else part.kept for part in self.parts]
        return ~np.concatenate([np.zeros(0, bool), *kept])

    def rows(self, numbers: Integers) -> Iterator[tuple[CorpusShard, Integers]]:
        """Parts that hold the (ascending) numbers, with the rows in each."""
        for part in self.parts:
            a, b = np.searchsorted(numbers, (part.first, part.first + part.rows))
            if b > a:
                yield part, numbers[a:b] - part.first

    def signature_column(self, column: str, numbers: Integers) -> pa.ChunkedArray:
        """A column of the signatures, for numbers that ascend."""
        found = [_take(part.signatures, column, rows) for part, rows in self.rows(numbers)]
        return pa.chunked_array(found or [pa.array([], pa.int64())])

    def document_column(self, column: str, numbers: Integers) -> pa.ChunkedArray:
        """A column of the documents, for numbers that ascend."""
        schema = pa.schema([DOCUMENT_SCHEMA.field(column)])
        found = [
            table[column].combine_chunks().take(pa.array(rows))
            for path, chosen in self.row_groups(numbers)
            for table, (_, rows) in zip(read_groups(path, schema, [group for group, _ in chosen]), chosen, strict=True)
        ]
        return pa.chunked_array(found or [pa.array([], pa.string())])

    def row_groups(self, numbers: Integers) -> Iterator[tuple[Path, list[tuple[int, Integers]]]]:
        """Each file of documents that has some of the numbers (which ascend).

        Its row groups and the rows in each.
        """
        for part, rows in self.rows(numbers):
            places = rows if part.kept is None else np.cumsum(part.kept)[rows] - 1
            yield part.documents, rows_by_group(part.documents, places)


def _take(path: Path, column: str, rows: Integers) -> pa.Array:
    return pq.read_table(path, columns=[column], partitioning=None).column(0).combine_chunks().take(pa.array(rows))


@dataclass(frozen=True)
class CandidateGroups:
    """Sets of documents: group g is `members[ends[g - 1]:ends[g]]`, numbers that ascend."""

    members: Integers
    ends: Integers

    @property
    def labels(self) -> Integers:
        """The group of each member."""
        return np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=0))


def gather(found: Iterable[tuple[Integers, Integers]], ignored: Flags, new: int) -> CandidateGroups:
    """Groups of documents that share a key, with at least one new.

    Groups of the same members are one; groups are distinguished by 64 bits of their members' hashes.
    """
    members: list[Integers] = []
    sizes: list[Integers] = []
    seen = np.zeros(0, np.uint64)
    for keys, numbers in found:
        stay = ~ignored[numbers]
        keys, numbers = keys[stay], numbers[stay]
        if not len(keys):
            continue
        starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
        lengths = np.diff(starts, append=len(keys))
        hashes = np.add.reduceat(_spread(numbers.astype(np.uint64)), starts) ^ _spread(lengths.astype(np.uint64))
        chosen = np.zeros(len(starts), bool)
        chosen[np.unique(hashes, return_index=True)[1]] = True
        chosen &= (lengths > 1) & (numbers[starts + lengths - 1] >= new) & ~np.isin(hashes, seen)
        seen = np.union1d(seen, hashes[chosen])
        members.append(numbers[np.repeat(chosen, lengths)])
        sizes.append(lengths[chosen])
    empty = np.zeros(0, np.int64)
    return CandidateGroups(np.concatenate([empty, *members]), np.cumsum(np.concatenate([empty, *sizes])))


def _spread(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    for shift, factor in zip((np.uint64(30), np.uint64(27)), _SPREAD, strict=True):
        values = (values ^ values >> shift) * factor
    return values ^ values >> np.uint64(31)


def confirmed(groups: CandidateGroups, values: pa.ChunkedArray) -> tuple[Integers, Integers]:
    """Documents that truly share a value: ascending numbers and group labels.

    `values` are the members' in the order of their numbers, each number once.
    """
    numbers = np.unique(groups.members)
    labels = pc.dictionary_encode(values.combine_chunks()).indices.to_numpy().astype(np.int64)
    shared = np.bincount(labels)[labels] > 1 if len(labels) else np.zeros(0, bool)
    return numbers[shared], labels[shared]


@dataclass(frozen=True)
class Candidates:
    """Candidate duplicates: documents that share a text, address or band."""

    numbers: Integers
    """Ascending."""
    text: Integers
    """The number of the text of each: equal texts have one."""
    address: Integers
    """The label of an address that others have too, or -1."""
    bands: CandidateGroups
    """Groups of texts, each named by its first document."""
    representatives: Integers
    """Text -> its first document."""
    collections: int
    """Addresses that name a collection."""
    order: Integers
    """Positions in `numbers` from the best document to the worst, those of earlier corpora first."""
    sets: ShingleSets


@dataclass(frozen=True)
class ShingleSets:
    """Shingles of texts: those of text t are `shingles[starts[t]:ends[t]]`."""

    shingles: npt.NDArray[np.uint64]
    starts: Integers
    ends: Integers


def find_candidates(
    corpus: Corpus, rules: DedupRules, sources: Sequence[str], engine: JoinEngine, folder: Path, workers: int
) -> Candidates:
    """Find the documents to compare.

    Joins one kind of key after another, confirms what hashes propose, ranks the documents and reads their shingles.

    `sources` are in their order of preference; `folder` takes the file of shingles.
    """
    files, firsts = [part.keys for part in corpus.parts], [part.first for part in corpus.parts]
    ignored = corpus.ignored()

    def groups(kind: range, keys: int) -> CandidateGroups:
        return gather(shared_keys(files, firsts, kind, keys, engine), ignored, corpus.new)

    texts = groups(TEXT, len(ignored))
    copies, label = confirmed(texts, corpus.signature_column("text_sha256", np.unique(texts.members)))
    _, first, which = np.unique(label, return_index=True, return_inverse=True)
    originals = copies[first[which]]
    here, address, collections = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    if rules.urls:
        places = groups(URL, len(ignored))
        here, address = confirmed(places, corpus.signature_column("url", np.unique(places.members)))
        here, address, collections = _pages(here, address, _first_of(copies, originals, here))
    # Of equal texts only the first is compared, so later copies take no part in the join of bands.
    ignored[copies[originals != copies]] = True
    near = groups(BAND, rules.bands * len(ignored))
    numbers = np.unique(np.concatenate([copies, here, near.members]))
    representatives, text = np.unique(_first_of(copies, originals, numbers), return_inverse=True)
    addresses = np.full(len(numbers), -1, np.int64)
    addresses[np.searchsorted(numbers, here)] = address
    compared = np.unique(np.concatenate([near.members, representatives[text[addresses >= 0]]]))
    sets = _read_shingles(corpus, compared, representatives, rules.ngram, folder, workers)
    order = _ranked(corpus, numbers, rules.prefer, sources)
    return Candidates(numbers, text.astype(np.int64), addresses, near, representatives, collections, order, sets)


def _first_of(copies: Integers, originals: Integers, numbers: Integers) -> Integers:
    """For each document, the first of the corpus with its text."""
    places = np.minimum(np.searchsorted(copies, numbers), max(0, len(copies) - 1))
    return np.where(copies[places] == numbers, originals[places], numbers) if len(copies) else numbers


def _pages(numbers: Integers, labels: Integers, texts: Integers) -> tuple[Integers, Integers, int]:
    """The documents whose address names a page, with labels from 0.

    And how many addresses name collections.
    """
    pairs = np.unique(np.stack([labels, texts]), axis=1)
    many = np.unique(pairs[0], return_counts=True)
    crowded = many[0][many[1] > MAX_TEXTS_AN_ADDRESS]
    page = ~np.isin(labels, crowded)
    return numbers[page], np.unique(labels[page], return_inverse=True)[1].astype(np.int64), len(crowded)


def _read_shingles(
    corpus: Corpus, compared: Integers, representatives: Integers, ngram: int, folder: Path, workers: int
) -> ShingleSets:
    """Shingles of the documents `compared`, mapped from an unnamed file."""
    from data_pipeline.kernels.minhash import shingle_sets

    def sets_of(item: tuple[Path, tuple[int, Integers]]) -> tuple[npt.NDArray[np.uint64], Integers]:
        path, (group, rows) = item
        [table] = read_groups(path, _TEXT, [group])
        return shingle_sets(table["text"].combine_chunks().take(pa.array(rows)), ngram)

    places = np.searchsorted(representatives, compared)
    starts, ends = (np.zeros(len(representatives), np.int64) for _ in range(2))
    work = [(path, group) for path, chosen in corpus.row_groups(compared) for group in chosen]
    written = done = 0
    if not work:
        return ShingleSets(np.zeros(0, np.uint64), starts, ends)
    with storage_errors(folder), ThreadPoolExecutor(workers) as pool, tempfile.TemporaryFile(dir=folder) as scratch:
        for first in range(0, len(work), workers):  # at most as many row groups in memory as workers
            for values, offsets in pool.map(sets_of, work[first : first + workers]):
                texts = places[done : done + len(offsets) - 1]
                starts[texts], ends[texts] = offsets[:-1] + written, offsets[1:] + written
                scratch.write(values.tobytes())
                written, done = written + len(values), done + len(texts)
        scratch.flush()
        shingles = np.asarray(np.memmap(scratch, np.uint64, mode="c")) if written else np.zeros(0, np.uint64)
    return ShingleSets(shingles, starts, ends)


def _ranked(corpus: Corpus, numbers: Integers, prefer: Sequence[str], sources: Sequence[str]) -> Integers:
    """Positions from the best to the worst, earlier corpora first."""
    weights: list[npt.NDArray[Any]] = [numbers]
    for preference in reversed(prefer):
        if preference == "length":
            weight = -corpus.signature_column("bytes", numbers).to_numpy()
        elif preference == "source_order":
            named = corpus.document_column("source", numbers)
            weight = pc.index_in(named, pa.array(sources, pa.string())).to_numpy()
        elif preference == "licence":
            unknown = pa.array(["", "NOASSERTION"])
            weight = pc.is_in(corpus.document_column("licence", numbers), unknown).to_numpy()
        else:
            weight = pc.equal(corpus.document_column("url", numbers), "").to_numpy()
        weights.append(np.where(numbers < corpus.new, 0, weight))
    return np.lexsort([*weights, numbers >= corpus.new])
