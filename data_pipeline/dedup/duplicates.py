"""Duplicates of a corpus: candidates, comparisons, and the decisions on each shard.

Documents are numbered through the whole corpus, those of earlier corpora first. The join says which share a key; equal
texts are then confirmed by their SHA-256, equal addresses by the addresses themselves; near texts are compared by
their shingles in `kernels/greedy_dedup.py`. No document is removed for a hash alone.

The decisions are an Arrow IPC file, one record batch a shard (in the order of the shards), with the rows that go:

    row       int64   the document's row in its shard
    reason    string  exact_duplicate, url_duplicate, near_duplicate, duplicate_of_earlier
    evidence  string  "kept=<id>", " corpus=<16 digits of the manifest's digest>" if it is of an earlier corpus, and
                      " jaccard=<exact similarity>" unless the texts are equal

Its schema's metadata holds the counts as JSON. All workers of an array read the same file.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
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
from pydantic import Field

from data_pipeline.dedup.join import BAND, TEXT, URL, JoinEngine, shared_keys
from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    KEPT_COLUMNS,
    date_of,
    number_of,
    read_groups,
    rows_by_group,
    write_table,
)
from governance.config import Section
from governance.errors import storage_errors
from governance.files import atomic_path
from governance.splitmix64 import finalise

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
ATTRIBUTES = ("length", "source_order", "licence", "url")  # criteria that every document has

MAX_KEPT_PER_BAND = 64  # comparisons of one document within one band
MAX_TEXTS_PER_ADDRESS = 16  # an address with more texts than this is a collection, not a page
DECISIONS = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("evidence", pa.string())])
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}")
_MONTH = re.compile(r"[0-9]{4}(-[0-9]{2})?")  # or a year alone
_REASONS = ("", "exact_duplicate", "url_duplicate", "near_duplicate")
_OF_EARLIER = "duplicate_of_earlier"
_TEXT = pa.schema([DOCUMENT_SCHEMA.field("text")])


class DedupConfig(Section):
    """Definition of a duplicate, and which document is kept."""

    ngram: int = Field(default=5, ge=1, le=32)
    """Words in a shingle."""
    bands: int = Field(default=20, ge=1, le=64)
    """Bands of a signature: more find more pairs of lower similarity."""
    rows: int = Field(default=6, ge=1, le=32)
    """Bins in a band: more of them miss more pairs of lower similarity."""
    jaccard_threshold: float = Field(default=0.8, gt=0, le=1)
    """Share of all distinct shingles of two texts that both have, from which the lesser text is removed.

    It is strict: with word 5-grams, changing 5 % of the words at random already gives about 0.65."""
    urls: bool = True
    """Allow documents of one address to be duplicates."""
    url_overlap: float = Field(default=0.2, ge=0, le=1)
    """Shingles of the smaller text that two texts of one address must share; 0: the address alone suffices."""
    prefer: tuple[str, ...] = ("length", "source_order")
    """Criteria for the duplicate that is kept, most important first: the longest text (`length`, UTF-8 bytes), the
    source named first (`source_order`), a known `licence`, a known `url`; the name of a classifier or of a kept column
    of a row ("date", "score"): the highest number, the latest date. Among equals the first of the corpus is kept."""
    against: tuple[str, ...] = Field(default=(), exclude=True)
    """Folders of earlier dedup artifacts, relative to the root or absolute, with whose documents these are compared.

    Their digests are inputs of the stage; their paths are not hashed."""
    join_memory_mib: int = Field(default=1024, ge=256, exclude=True)
    """Memory limit of the join of keys, in MiB; it changes no byte, so it is not hashed."""


@dataclass(frozen=True)
class CorpusShard:
    """One shard: its documents, and what `dedup` keeps of each."""

    documents: Path
    signatures: Path
    keys: Path
    rows: int
    kept: Flags | None = None
    """Places of the signed documents that stayed and so are in `documents` (an earlier corpus); None: all."""
    origin: str = ""
    """The digest of the earlier corpus' manifest; "" for what is new."""
    scores: Path | None = None
    """Scores of `classify`, a row for each document that it kept or removed; None: it did not run."""


@dataclass(frozen=True)
class Corpus:
    """All shards in the order of their documents' numbers, earlier corpora first."""

    shards: Sequence[CorpusShard]
    sources: Sequence[str]
    """In the order in which they first occur, which is the order of preference."""

    @functools.cached_property
    def firsts(self) -> list[int]:
        """The number of each shard's first document.

        One more entry holds the number of all documents.
        """
        return [0, *np.cumsum([shard.rows for shard in self.shards]).tolist()]

    @property
    def new(self) -> int:
        """Number of the first document of this corpus."""
        return sum(shard.rows for shard in self.shards if shard.origin)

    def ignored(self) -> Flags:
        """The documents that earlier corpora removed: no document is removed for them."""
        kept = [np.ones(shard.rows, bool) if shard.kept is None else shard.kept for shard in self.shards]
        return ~np.concatenate([np.zeros(0, bool), *kept])

    def rows(self, numbers: Integers) -> Iterator[tuple[CorpusShard, Integers]]:
        """Shards that hold the (ascending) numbers, with the rows in each."""
        bounds = np.searchsorted(numbers, self.firsts)
        for place, shard in enumerate(self.shards):
            if bounds[place + 1] > bounds[place]:
                yield shard, numbers[bounds[place] : bounds[place + 1]] - self.firsts[place]

    def row_groups(self, numbers: Integers) -> Iterator[tuple[Path, list[tuple[int, Integers]]]]:
        """Each file of documents that has some of the ascending numbers.

        With each come its row groups and the rows in each of them.
        """
        for shard, rows in self.rows(numbers):
            places = rows if shard.kept is None else np.cumsum(shard.kept)[rows] - 1
            yield shard.documents, rows_by_group(shard.documents, places)

    def signature_column(self, column: str, numbers: Integers) -> pa.ChunkedArray:
        """A column of the signatures, for numbers that ascend."""
        found = [
            pq.read_table(shard.signatures, columns=[column], partitioning=None)[column].combine_chunks().take(rows)
            for shard, rows in self.rows(numbers)
        ]
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

    def values_of(self, name: str, numbers: Integers) -> list[Any]:
        """Scores of a classifier, or values of a kept column.

        The numbers must ascend. The value is None where a document has none, and for documents of earlier corpora.
        """
        values: list[Any] = []
        for shard, rows in self.rows(numbers):
            if shard.origin:
                values += [None] * len(rows)
            elif (
                shard.scores is not None
                and name not in ("id", "source", "language", "kept")  # columns of `scores` that are not a classifier's
                and name in pq.read_schema(shard.scores).names
            ):
                scores = pq.read_table(shard.scores, columns=[name, "kept"], partitioning=None)
                values += scores.filter(scores["kept"])[name].take(pa.array(rows)).to_pylist()
            elif KEPT_COLUMNS.name in pq.read_schema(shard.documents).names:
                kept = pq.read_table(shard.documents, columns=[KEPT_COLUMNS.name], partitioning=None)
                kept = kept[KEPT_COLUMNS.name].take(pa.array(rows)).to_pylist()
                values += [json.loads(row).get(name) if row else None for row in kept]
            else:
                values += [None] * len(rows)
        return values


def _from_the_highest(values: Sequence[Any]) -> Integers:
    """Ranks of values, the highest first.

    Numbers come before dates, dates before other texts, and None comes last. A text that is a number counts as one (all
    values of a CSV file are text) unless other texts are ISO dates, of which it is the year.
    """
    dated = any(isinstance(value, str) and _DATE.match(value) for value in values)
    kinds = [_kind_and_value(value, dated) for value in values]
    ranks = {kind: rank for rank, kind in enumerate(sorted(set(kinds), reverse=True))}
    return np.array([ranks[kind] for kind in kinds], np.int64)


def _kind_and_value(value: Any, dated: bool) -> tuple[int, Any]:
    """A value behind the rank of its kind, for comparisons."""
    if isinstance(value, int | float) and value == value:
        return 3, value
    if not isinstance(value, str):
        return 0, None
    if not dated:
        number = number_of(value)
        return (1, value) if number is None else (3, number)
    text = value.strip()
    found = date_of(f"{text}-01-01"[:10] if _MONTH.fullmatch(text) else text)
    if found is None:
        return 1, value
    day_only = not isinstance(found, datetime.datetime)
    return 2, datetime.datetime.combine(found, datetime.time(), datetime.UTC) if day_only else found


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
        hashes = np.add.reduceat(finalise(numbers.astype(np.uint64)), starts) ^ finalise(lengths.astype(np.uint64))
        chosen = np.zeros(len(starts), bool)
        chosen[np.unique(hashes, return_index=True)[1]] = True
        chosen &= (lengths > 1) & (numbers[starts + lengths - 1] >= new) & ~np.isin(hashes, seen)
        seen = np.union1d(seen, hashes[chosen])
        members.append(numbers[np.repeat(chosen, lengths)])
        sizes.append(lengths[chosen])
    empty = np.zeros(0, np.int64)
    return CandidateGroups(np.concatenate([empty, *members]), np.cumsum(np.concatenate([empty, *sizes])))


def confirmed(groups: CandidateGroups, values: pa.ChunkedArray) -> tuple[Integers, Integers]:
    """Documents that truly share a value: ascending numbers and group labels.

    `values` are those of the members, in the order of their numbers, each number once.
    """
    numbers = np.unique(groups.members)
    labels = pc.dictionary_encode(values.combine_chunks()).indices.to_numpy().astype(np.int64)
    shared = np.bincount(labels)[labels] > 1 if len(labels) else np.zeros(0, bool)
    return numbers[shared], labels[shared]


@dataclass(frozen=True)
class Candidates:
    """Candidate duplicates, best first: documents that share a text, address or band."""

    numbers: Integers
    """From the best document to the worst, those of earlier corpora first."""
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
    shingles: npt.NDArray[np.uint64]
    """Those of text t are `shingles[starts[t]:ends[t]]`."""
    starts: Integers
    ends: Integers


def find_candidates(corpus: Corpus, config: DedupConfig, engine: JoinEngine, workers: int) -> Candidates:
    """Find the documents to compare.

    It joins one kind of key after another, confirms what hashes propose, ranks the documents and reads their shingles.
    """
    files, ignored = [shard.keys for shard in corpus.shards], corpus.ignored()

    def groups(kind: range, keys: int) -> CandidateGroups:
        return gather(shared_keys(files, corpus.firsts[:-1], kind, keys, engine), ignored, corpus.new)

    texts = groups(TEXT, len(ignored))
    copies, label = confirmed(texts, corpus.signature_column("text_sha256", np.unique(texts.members)))
    _, first, which = np.unique(label, return_index=True, return_inverse=True)
    originals = copies[first[which]]

    def first_of(numbers: Integers) -> Integers:
        """First document of the corpus with the text of each."""
        places = np.minimum(np.searchsorted(copies, numbers), max(0, len(copies) - 1))
        return np.where(copies[places] == numbers, originals[places], numbers) if len(copies) else numbers

    here, address, collections = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    if config.urls:
        places = groups(URL, len(ignored))
        here, labels = confirmed(places, corpus.signature_column("url", np.unique(places.members)))
        # An address with many different texts names a collection, not a page.
        pairs = np.unique(np.stack([labels, first_of(here)]), axis=1)
        named, sizes = np.unique(pairs[0], return_counts=True)
        crowded = named[sizes > MAX_TEXTS_PER_ADDRESS]
        page, collections = ~np.isin(labels, crowded), len(crowded)
        here, address = here[page], np.unique(labels[page], return_inverse=True)[1]
    # Of equal texts only the first is compared, so later copies take no part in the join of bands.
    ignored[copies[originals != copies]] = True
    near = groups(BAND, config.bands * len(ignored))
    numbers = np.unique(np.concatenate([copies, here, near.members]))
    order = _ranked(corpus, numbers, config.prefer)
    representatives, text = np.unique(first_of(numbers), return_inverse=True)
    addresses = np.full(len(numbers), -1, np.int64)
    addresses[np.searchsorted(numbers, here)] = address
    compared = np.unique(np.concatenate([near.members, representatives[text[addresses >= 0]]]))
    shingles = _read_shingles(corpus, compared, representatives, config.ngram, engine.scratch.parent, workers)
    text = text.astype(np.int64)[order]
    return Candidates(numbers[order], text, addresses[order], near, representatives, collections, *shingles)


def _ranked(corpus: Corpus, numbers: Integers, prefer: Sequence[str]) -> Integers:
    """Positions from the best to the worst, earlier corpora first."""
    weights: list[npt.NDArray[Any]] = [numbers]
    for preference in reversed(prefer):
        if preference == "length":
            weight = -corpus.signature_column("bytes", numbers).to_numpy()
        elif preference == "source_order":
            named = corpus.document_column("source", numbers)
            weight = pc.index_in(named, pa.array(corpus.sources, pa.string())).to_numpy()
        elif preference == "licence":
            unknown = pa.array(["", "NOASSERTION"])
            weight = pc.is_in(corpus.document_column("licence", numbers), unknown).to_numpy()
        elif preference == "url":
            weight = pc.equal(corpus.document_column("url", numbers), "").to_numpy()
        else:
            weight = _from_the_highest(corpus.values_of(preference, numbers))
        weights.append(np.where(numbers < corpus.new, 0, weight))
    return np.lexsort([*weights, numbers >= corpus.new])


def _read_shingles(
    corpus: Corpus, compared: Integers, representatives: Integers, ngram: int, folder: Path, workers: int
) -> tuple[npt.NDArray[np.uint64], Integers, Integers]:
    """Shingles of the documents `compared`, mapped from an unnamed file.

    The result also states where those of each text start and end.
    """
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
        return np.zeros(0, np.uint64), starts, ends
    with storage_errors(folder), ThreadPoolExecutor(workers) as pool, tempfile.TemporaryFile(dir=folder) as scratch:
        for first in range(0, len(work), workers):  # at most as many row groups in memory as workers
            for values, offsets in pool.map(sets_of, work[first : first + workers]):
                texts = places[done : done + len(offsets) - 1]
                starts[texts], ends[texts] = offsets[:-1] + written, offsets[1:] + written
                scratch.write(values.tobytes())
                written, done = written + len(values), done + len(texts)
        scratch.flush()
        shingles = np.asarray(np.memmap(scratch, np.uint64, mode="c")) if written else np.zeros(0, np.uint64)
    return shingles, starts, ends


def write_decisions(
    decisions: Path, pairs: Path, corpus: Corpus, config: DedupConfig, engine: JoinEngine, workers: int
) -> None:
    """Compare each candidate with the kept ones, best first.

    Write the comparisons to `pairs`, and the decisions on each shard to `decisions`.
    """
    from data_pipeline.kernels.greedy_dedup import walk_ranked

    found = find_candidates(corpus, config, engine, workers)
    numbers, bands = found.numbers, found.bands
    # The bands of text t are `bands.labels[by_text][starts[t]:starts[t + 1]]`.
    texts = np.searchsorted(found.representatives, bands.members)
    by_text = np.argsort(texts, kind="stable")
    starts = np.searchsorted(texts[by_text], np.arange(len(found.representatives) + 1)).astype(np.int64)
    band_rooms, address_rooms = (
        np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        for sizes in (
            np.minimum(np.diff(bands.ends, prepend=0), MAX_KEPT_PER_BAND),
            np.bincount(found.address[found.address >= 0]),
        )
    )
    reason, kept_by, jaccard, compared, values, cut = walk_ranked(
        found.text,
        found.address,
        numbers < corpus.new,
        starts,
        bands.labels[by_text],
        band_rooms,
        address_rooms,
        found.shingles,
        found.starts,
        found.ends,
        config.jaccard_threshold,
        config.url_overlap,
    )
    gone = np.flatnonzero(reason)
    gone = gone[np.argsort(numbers[gone])]
    removed, kept = numbers[gone], numbers[kept_by[gone]]
    stats = {
        "candidates": int((numbers >= corpus.new).sum()),
        "comparisons": len(values),
        "bands_cut": int(cut),
        "kept_for_others": len(np.unique(kept)),
        "urls_of_collections": found.collections,
    }

    named = np.unique(np.concatenate([kept, numbers[compared].reshape(-1)]))
    ids = corpus.document_column("id", named)
    sides = [ids.take(pa.array(np.searchsorted(named, numbers[compared[:, side]]))) for side in (0, 1)]
    removes = kept_by[compared[:, 1]] == compared[:, 0]
    write_table(pairs, pa.table([*sides, values, removes], names=["kept", "other", "jaccard", "removed"]))
    origins = [corpus.shards[place].origin for place in np.searchsorted(corpus.firsts, kept, side="right") - 1]
    reasons, evidence = [], []
    for name, origin, kind, value in zip(
        ids.take(pa.array(np.searchsorted(named, kept))).to_pylist(), origins, reason[gone], jaccard[gone], strict=True
    ):
        similar = "" if _REASONS[kind] == "exact_duplicate" else f" jaccard={value:.4f}"
        reasons.append(_OF_EARLIER if origin else _REASONS[kind])
        evidence.append(f"kept={name}{f' corpus={origin[:16]}' if origin else ''}{similar}")
    schema = DECISIONS.with_metadata({"stats": json.dumps(stats, sort_keys=True)})
    with atomic_path(decisions) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for shard, first in zip(corpus.shards, corpus.firsts[:-1], strict=True):
            if not shard.origin:
                a, b = np.searchsorted(removed, (first, first + shard.rows))
                columns = [pa.array(values[a:b], pa.string()) for values in (reasons, evidence)]
                writer.write_batch(pa.record_batch([pa.array(removed[a:b] - first), *columns], DECISIONS))


def read_decisions(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Written decisions, mapped.

    Reading the batch of a shard costs memory for that shard only.
    """
    return pa.ipc.open_file(pa.memory_map(str(path)))
