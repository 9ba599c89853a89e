"""Keep one document of each set of duplicates; what is dropped names the document that stands for it.

Exact duplicates are documents whose normalised text has one SHA-256. Near-duplicates are found with MinHash (Broder
1997; the parameters of Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", in the form that
FineWeb uses: word 5-grams, 14 bands of 8 rows): documents that share a band are *candidates*, and each comparison is
then made exactly, on the sets of shingles themselves. `kernels/minhash.py` says what a word and a shingle are.

The promise. Documents are walked from the best to the worst: the longest text first (UTF-8 bytes), among equals the
first of the corpus (sources in the order in which they are named). A document is removed if and only if its exact
Jaccard similarity to a candidate *that was kept* is at least `jaccard_threshold`; it names the most similar. So

- no document leaves because of a chain of neighbours: each is itself near to the one that is named;
- no two kept documents that were compared are as near as the threshold.

A copy of a document that left as a near-duplicate leaves for the same kept one, as a near-duplicate too.

What is missed: a pair that shares no band (0.44 of pairs at J = 0.7, 0.08 at 0.8, 0.0004 at 0.9, with the parameters
above); near-duplicates among texts of fewer than `ngram` words, which are compared exactly only; and, in a band shared
by more than 64 *kept* documents (a template, say, whose copies are not near to each other), what a comparison with the
first 64 does not show: `stats` counts those as `bands_cut`. A band of thousands of near-copies has few kept ones, and
costs one comparison a copy.

Roles: `documents`, `removed`, `signatures` (a row a document: text's digest, bytes, words, a key a band), `pairs`
(`pairs.parquet`: each comparison of two documents: the kept or better one's id, the other's, exact similarity,
whether the other was removed for it).

Price. Signatures are made shard by shard, in parallel; a shard's texts are in memory only then. The join of the bands
is DuckDB's, within 1 GiB, and spills into a folder `join~...` of the artifact that is gone afterwards. The process that
walks holds 40 bytes a document, 16 for each band that a candidate shares, and some 150 a comparison; the candidates'
shingle sets (8 bytes a word) lie in one file without a name and are mapped, so that a kill leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from data_pipeline.clean import document_shards, split_table
from data_pipeline.documents import funnel, read_table, write_table
from data_pipeline.parallel import Shard, ShardMade, map_shards, sum_stats
from governance.config import Section, canonical_json
from governance.errors import PipelineError, storage_errors
from governance.files import remove_tree, sha256_bytes
from governance.manifest import Manifest, Output, describe
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 1
MAX_KEPT_A_BAND = 64  # comparisons of one document within one band
JOIN_MEMORY = "1GiB"  # beyond it DuckDB spills

Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Similarity = Callable[[int, int], float]
Candidates = Iterable[tuple[int, Sequence[int]]]
Removal = tuple[int, str, str]  # row, reason, evidence


class DedupConfig(Section):
    """What counts as a duplicate."""

    ngram: int = Field(default=5, ge=1, le=32)
    """Words a shingle."""
    bands: int = Field(default=14, ge=1, le=64)
    """Bands of a signature: more find more pairs of lower similarity."""
    rows: int = Field(default=8, ge=1, le=32)
    """Permutations a band: more pass over more pairs of lower similarity."""
    jaccard_threshold: float = Field(default=0.7, gt=0, le=1)
    """Shingles that two texts share, of all distinct shingles of both, from which the lesser text is removed.

    It is strict: with word 5-grams, changing 5 % of the words at random already gives about 0.65."""


@dataclass
class Verdict:
    """The walk's result; documents are numbered through the corpus from 0."""

    kept_for: dict[int, tuple[int, float | None]] = field(default_factory=dict)
    """Removed document -> the kept one and their similarity; None: an exact duplicate."""
    compared: list[tuple[int, int, float]] = field(default_factory=list)
    """Each comparison: the better document, the other, their exact similarity."""
    bands_cut: int = 0
    """Look-ups in a band of more kept documents than were compared."""


def walk(candidates: Candidates, similarity: Similarity, threshold: float, limit: int = MAX_KEPT_A_BAND) -> Verdict:
    """Decide which candidates go; they come from the best to the worst, each with the numbers of its shared bands.

    `similarity(kept, other)` is the exact Jaccard similarity of two documents.
    """
    verdict = Verdict()
    kept_in: dict[int, list[int]] = defaultdict(list)
    for document, bands in candidates:
        neighbours: dict[int, None] = {}  # a set that keeps its order
        for band in bands:
            verdict.bands_cut += len(kept_in[band]) > limit
            neighbours.update(dict.fromkeys(kept_in[band][:limit]))
        best, nearest = threshold, None
        for kept in neighbours:
            value = similarity(kept, document)
            verdict.compared.append((kept, document, value))
            if value > best or (value == best and nearest is None):
                best, nearest = value, kept
        if nearest is not None:
            verdict.kept_for[document] = (nearest, best)
            continue
        for band in bands:
            if len(kept_in[band]) <= limit:  # one more than is compared, to know that there are more
                kept_in[band].append(document)
    return verdict


def _sign_shard(config: DedupConfig, path: Path, path_of: Any) -> ShardMade:
    from data_pipeline.kernels.minhash import band_keys

    texts = read_table(path, columns=["text"])["text"].combine_chunks()
    keys, words = band_keys(texts, config.ngram, config.bands, config.rows)
    columns = {
        "text_sha256": pa.array([sha256_bytes(text.as_buffer()) for text in texts], pa.string()),
        "bytes": pc.binary_length(texts).cast(pa.int64()),
        "words": pa.array(words, pa.int64()),
        **{f"band_{band}": keys[:, band] for band in range(config.bands)},
    }
    target = path_of("signatures")
    write_table(target, pa.table(columns))
    return ShardMade({"signatures": target}, {"documents": len(texts)})


def _split_shard(config: DedupConfig, payload: tuple[Path, Sequence[Removal]], path_of: Any) -> ShardMade:
    path, removals = payload
    table = read_table(path)
    reasons, evidence = [""] * table.num_rows, [""] * table.num_rows
    for row, reason, shown in removals:
        reasons[row], evidence[row] = reason, shown
    files = {role: path_of(role) for role in ("documents", "removed")}
    for path_to, part in zip(files.values(), split_table(table, reasons, evidence), strict=True):
        write_table(path_to, part)
    sizes = pc.binary_length(table["text"]).to_pylist()
    return ShardMade(files, funnel(table["source"].to_pylist(), sizes, sizes, reasons))


@dataclass(frozen=True)
class Join:
    """What the global join tells: exact duplicates, and the candidates from the best to the worst."""

    exact: dict[int, int]
    """Document -> the first of the corpus with the same text, for each that is not the first."""
    candidates: Integers
    """Their numbers, in the order of the walk."""
    ends: Integers
    """Where the bands of each candidate end in `bands`."""
    bands: Integers
    """Numbers of the bands that candidates share."""
    too_short: int
    """Distinct documents of fewer words than a shingle."""

    def rows(self) -> Iterator[tuple[int, list[int]]]:
        """Each candidate with its bands, in the order of the walk."""
        start = 0
        for number, end in zip(self.candidates.tolist(), self.ends.tolist(), strict=True):
            yield number, self.bands[start:end].tolist()
            start = end


def join_signatures(paths: Sequence[Path], config: DedupConfig, scratch: Path) -> Join:
    """Find equal texts, and documents that share a band; `scratch` takes what DuckDB spills.

    Raises:
        StorageError: the disk is full.
        PipelineError: DuckDB cannot do it, in its own words.
    """
    import duckdb

    sizes, words = _column(paths, "bytes"), _column(paths, "words")
    order = np.lexsort((np.arange(len(sizes)), -sizes))  # the best first
    rank = np.empty(len(sizes), np.int64)
    rank[order] = np.arange(len(sizes))
    settings = {"threads": 1, "memory_limit": JOIN_MEMORY, "temp_directory": str(scratch)}
    try:
        with storage_errors(scratch), duckdb.connect(config=settings) as database:
            exact = _equal_texts(database, paths)
            distinct = np.ones(len(sizes), bool)
            distinct[list(exact)] = False
            ranks, bands = _shared_bands(database, paths, config.bands, rank, distinct & (words >= config.ngram))
    except duckdb.Error as error:
        raise PipelineError(f"dedup: the join of the signatures failed in DuckDB: {error}") from error
    firsts = np.flatnonzero(np.diff(ranks, prepend=-1))
    ends = np.append(firsts[1:], len(ranks)) if len(firsts) else firsts
    return Join(exact, order[ranks[firsts]], ends, bands, int((distinct & (words < config.ngram)).sum()))


def _column(paths: Sequence[Path], name: str) -> npt.NDArray[Any]:
    parts = [pq.read_table(path, columns=[name], partitioning=None).column(0).to_numpy() for path in paths]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _equal_texts(database: Any, paths: Sequence[Path]) -> dict[int, int]:
    database.execute("CREATE TABLE texts (digest VARCHAR, number BIGINT)")
    start = 0
    for path in paths:
        digests = pq.read_table(path, columns=["text_sha256"], partitioning=None).column(0)
        _insert(database, "texts", {"digest": digests, "number": np.arange(start, start + len(digests))})
        start += len(digests)
    found = database.execute(
        "WITH firsts AS (SELECT digest, min(number) AS first FROM texts GROUP BY digest HAVING count(*) > 1)"
        " SELECT number, first FROM texts JOIN firsts USING (digest) WHERE number <> first ORDER BY number"
    ).fetchnumpy()
    database.execute("DROP TABLE texts")
    return dict(zip(found["number"].tolist(), found["first"].tolist(), strict=True))


def _shared_bands(
    database: Any, paths: Sequence[Path], bands: int, rank: Integers, chosen: npt.NDArray[np.bool_]
) -> tuple[Integers, Integers]:
    """Rows (rank of a document, number of a band it shares), sorted."""
    database.execute("CREATE TABLE bands (key UBIGINT, rank BIGINT)")
    start = 0
    for path in paths:
        for band in range(bands):
            keys = _column([path], f"band_{band}")
            rows = slice(start, start + len(keys))
            _insert(database, "bands", {"key": keys[chosen[rows]], "rank": rank[rows][chosen[rows]]})
        start = rows.stop
    found = database.execute(
        "WITH shared AS (SELECT key, row_number() OVER (ORDER BY key) - 1 AS band FROM bands"
        " GROUP BY key HAVING count(*) > 1)"
        " SELECT rank, band FROM bands JOIN shared USING (key) ORDER BY rank, band"
    ).fetchnumpy()
    return np.asarray(found["rank"]), np.asarray(found["band"])


def _insert(database: Any, table: str, columns: dict[str, Any]) -> None:
    database.register("incoming", pa.table(columns))
    database.execute(f"INSERT INTO {table} SELECT * FROM incoming")
    database.unregister("incoming")


@dataclass(frozen=True)
class Corpus:
    """The shards of a corpus, and the number of the first document of each (and of the one after the last)."""

    shards: list[tuple[Output, Path]]
    starts: list[int]

    def rows(self, numbers: Iterable[int]) -> Iterator[tuple[tuple[Output, Path], Integers, int]]:
        """Each shard, with those of `numbers` that are in it as its rows, and the number of its first document."""
        values = np.asarray(sorted(numbers), np.int64)
        cuts = np.searchsorted(values, self.starts)
        for shard, a, b, start in zip(self.shards, cuts, cuts[1:], self.starts, strict=False):
            yield shard, values[a:b] - start, start

    def ids(self, numbers: Iterable[int]) -> dict[int, str]:
        """The ids of some documents."""
        named: dict[int, str] = {}
        for (_, path), rows, start in self.rows(numbers):
            if len(rows):
                column = read_table(path, columns=["id"])["id"].take(pa.array(rows)).to_pylist()
                named.update(zip((rows + start).tolist(), column, strict=True))
        return named


def _similarity(corpus: Corpus, members: Sequence[int], config: DedupConfig, folder: Path, workers: int) -> Similarity:
    """Write the shingle sets of `members` to a nameless file below `folder`; return the similarity of two of them."""
    from data_pipeline.kernels.minhash import jaccard, shingle_sets

    def sets_of(item: tuple[Path, Integers, int]) -> tuple[Keys, Integers]:
        return shingle_sets(read_table(item[0], columns=["text"])["text"].take(pa.array(item[1])), config.ngram)

    where: dict[int, tuple[int, int]] = {}
    shingles, written = np.zeros(0, np.uint64), 0
    work = [(path, rows, start) for (_, path), rows, start in corpus.rows(members) if len(rows)]
    if not work:
        return lambda left, right: 0.0  # nobody to compare, and perhaps no folder yet
    with storage_errors(folder), ThreadPoolExecutor(workers) as pool, tempfile.TemporaryFile(dir=folder) as scratch:
        for first in range(0, len(work), workers):  # so many shards in memory, and no more
            part = work[first : first + workers]
            for (_, rows, start), (values, offsets) in zip(part, pool.map(sets_of, part), strict=True):
                ends = itertools.pairwise((offsets + written).tolist())
                where.update(zip((rows + start).tolist(), ends, strict=True))
                scratch.write(values.tobytes())
                written += len(values)
        scratch.flush()
        if written:
            shingles = np.asarray(np.memmap(scratch, np.uint64, mode="r"))

    def similarity(left: int, right: int) -> float:
        return float(jaccard(shingles[slice(*where[left])], shingles[slice(*where[right])]))

    return similarity


@contextlib.contextmanager
def _spill_folder(folder: Path) -> Iterator[Path]:
    """A folder for this process alone; those that killed processes of this host left are removed."""
    own = folder / f"join~{socket.gethostname()}~{os.getpid()}"
    for left in folder.glob(f"join~{socket.gethostname()}~*"):
        if not Path(f"/proc/{left.name.rsplit('~', 1)[1]}").exists():
            remove_tree(left)
    try:
        yield own
    finally:
        remove_tree(own)


def _decide(
    corpus: Corpus, signatures: list[Path], config: DedupConfig, folder: Path, runtime: Runtime
) -> tuple[Join, Verdict]:
    """Join the signatures and walk the candidates; then a copy of a document that left goes for the same one."""
    with _spill_folder(folder) as scratch:
        join = join_signatures(signatures, config, scratch)
    similarity = _similarity(corpus, join.candidates.tolist(), config, folder, max(1, runtime.workers))
    verdict = walk(join.rows(), similarity, config.jaccard_threshold)
    for number, first in join.exact.items():
        verdict.kept_for[number] = verdict.kept_for.get(first, (first, None))
    return join, verdict


def _removals(corpus: Corpus, verdict: Verdict, names: dict[int, str]) -> list[list[Removal]]:
    removals: list[list[Removal]] = []
    for _, rows, start in corpus.rows(verdict.kept_for):
        removals.append([])
        for row in rows.tolist():
            kept, value = verdict.kept_for[row + start]
            reason, shown = ("exact_duplicate", "") if value is None else ("near_duplicate", f" jaccard={value:.4f}")
            removals[-1].append((row, reason, f"kept={names[kept]}{shown}"))
    return removals


def _pairs_table(verdict: Verdict, names: dict[int, str]) -> pa.Table:
    fields = {"kept": pa.string(), "other": pa.string(), "jaccard": pa.float64(), "removed": pa.bool_()}
    rows = [
        (names[kept], names[other], value, verdict.kept_for.get(other, (-1, None))[0] == kept)
        for kept, other, value in verdict.compared
    ]
    return pa.Table.from_pylist([dict(zip(fields, row, strict=True)) for row in rows], pa.schema(fields))


def _extras(join: Join, verdict: Verdict) -> dict[str, int]:
    return {
        "too_short_to_compare": join.too_short,
        "candidates": len(join.candidates),
        "comparisons": len(verdict.compared),
        "bands_cut": verdict.bands_cut,
        "kept_for_others": len({kept for kept, _ in verdict.kept_for.values()}),
    }


def dedup(documents: Manifest, config: DedupConfig, runtime: Runtime) -> Manifest:
    """Keep one document of each set of duplicates; count the others by reason.

    `stats` adds to the common counts: `too_short_to_compare` (documents compared exactly only), `candidates`
    (documents that share a band), `comparisons`, `bands_cut`, `kept_for_others` (kept documents that stand for some).

    Raises:
        ManifestError: a shard cannot be read.
        MissingInput: the artifact is not made and `runtime.make` is False.
        StorageError: the disk is full.
    """
    recipe = Recipe("dedup", VERSION, config)

    def make(folder: Path) -> Made:
        inputs = document_shards(documents, runtime.root)
        wanted = [Shard(path.stem, ("signatures", output.sha256), path) for output, path in inputs]
        signed = map_shards(recipe, _sign_shard, wanted, folder, runtime)
        corpus = Corpus(inputs, np.cumsum([0, *(shard.stats["documents"] for shard in signed)]).tolist())
        signatures = [runtime.root / shard.outputs["signatures"].path for shard in signed]
        join, verdict = _decide(corpus, signatures, config, folder, runtime)
        named = {number for kept, other, _ in verdict.compared for number in (kept, other)}
        names = corpus.ids(named | {kept for kept, _ in verdict.kept_for.values()})
        pairs = folder / "pairs" / "pairs.parquet"
        write_table(pairs, _pairs_table(verdict, names))
        split = [
            Shard(path.stem, ("documents", output.sha256, sha256_bytes(canonical_json(removals))), (path, removals))
            for (output, path), removals in zip(inputs, _removals(corpus, verdict, names), strict=True)
        ]
        done = map_shards(recipe, _split_shard, split, folder, runtime)
        stats = sum_stats([funnel([], [], [], []), *(shard.stats for shard in done)])
        outputs = [output for shard in (*signed, *done) for output in shard.outputs.values()]
        stats = {**stats, **_extras(join, verdict)}
        return Made([*outputs, describe(pairs, runtime.root)], stats)

    return run_stage(recipe, [documents.as_input()], runtime, make)
