"""Suites over shards: workers and the merging of their results.

`raw` and `documents` are judged in the worker that reads the shard, so that no table of the whole corpus exists; for
`token_shards` a worker counts one row, and the rows are judged together. Each worker imports Great Expectations (3 to
4 s), so there is one per `SHARDS_PER_WORKER` shards. Workers' files are part of the audit's artifact and reused by the
next audit with equal inputs: id hashes under any policy, findings under the same gates of the suite.

A table of the suite `raw` has the ingested documents of a shard. It has every column of the shard except `text`, and
four computed ones:

    repeats         how many other documents of the whole corpus have this id; 0 by law
    digest_fits     1 where the text's SHA-256 is the column `sha256`, else 0; missing where it was not computed
    opt_out_date    kind of `opt_out_fetched`: "none" (not checked), "valid", "invalid" (no ISO 8601 date or time),
                    "future" (after the day on which ingest read it), "undated" (signals without a date), "unknown" (a
                    date, but the manifest does not state when ingest ran)
    bytes           UTF-8 bytes of the text; missing where the digest is

Digests are computed for one row group of each shard, chosen by the shard's own digest: every document of a small
corpus, about an eighth of a large one, unpredictable in advance. An empty text in a column is a missing value.

The day on which ingest ran is the only value taken from a manifest's `run` block: another day can only turn "future"
into "valid". Price: one pass over the columns other than the text, and an eighth of the texts.

Duplicate ids are found over all shards, exactly and in bounded memory: the worker of a shard hashes its ids to 64 bits
and writes the hashes sorted. Then one range of hashes after the other is gathered from all shards and sorted: hashes
that occur more than once are candidates, and only their ids are read and compared, so that two ids with one hash are
not duplicates.

Price: 8 bytes per document on disk; one pass over the ids, and one over those of shards with candidates. Memory: one
range (256 MiB of hashes), and 12 bytes for each document whose id is repeated.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from governance.checks.drift import Sketch, merge_sketches, sketch_of
from governance.checks.gathering import Expected, SuiteSection, merge_findings, write_finding
from governance.checks.gx.own_expectations import source_digests
from governance.checks.suites import (
    SuiteTable,
    disagreement,
    document_table,
    frame_of,
    read_without_text,
    without_empty_text,
)
from governance.checks.tokens import TokenReaders, count_tokens, shards_of, token_shard_rows
from governance.config import Section, canonical_json
from governance.errors import read_errors
from governance.files import sha256_bytes, write_bytes, write_json
from governance.gate.decision import CheckResult
from governance.gate.policy import Gate
from governance.manifest import Manifest, Output
from governance.parallel import Shard, ShardDone, ShardMade, map_shards, sum_stats
from governance.stage import Recipe, Runtime
from governance.verified_files import intact

SHARDS_PER_WORKER = 16


@dataclass(frozen=True)
class AuditLocation:
    """Version, artifact folder and runtime of an audit."""

    version: int
    folder: Path
    runtime: Runtime

    @property
    def root(self) -> Path:
        """The folder of all artifacts."""
        return self.runtime.root


@dataclass(frozen=True)
class SuiteResults:
    """Outcome of one suite's shards."""

    results: list[CheckResult]
    outputs: list[Output]


def _map(
    place: AuditLocation,
    section: Section,
    function: Callable[..., ShardMade],
    shards: list[Shard],
    suffix: str = ".json",
) -> list[ShardDone]:
    few = replace(place.runtime, workers=min(place.runtime.workers, max(1, len(shards) // SHARDS_PER_WORKER)))
    recipe = Recipe("audit", place.version, section)
    return map_shards(recipe, function, shards, place.folder, few, suffix)


def _outputs(done: Sequence[ShardDone]) -> list[Output]:
    return [output for shard in done for output in shard.outputs.values()]


def _values(done: Sequence[ShardDone], role: str, root: Path) -> list[dict[str, Any]]:
    """JSON values that workers wrote under a role."""
    return [read_values(shard.outputs[role], root) for shard in done if role in shard.outputs]


def read_values(output: Output, root: Path) -> Any:
    """The JSON of a listed file."""
    with intact(output, root) as path:
        return json.loads(path.read_bytes())


# --- raw


def raw_shards(place: AuditLocation, ingest: Manifest) -> tuple[list[RawShard], list[Output]]:
    """Ingested shards with repeated ids, and the hash files."""
    root, listed = place.root, ingest.listed("documents")
    hashing = [Shard(Path(of.path).stem, ("ids", of.sha256), (root / of.path, read_ids), (of,)) for of in listed]
    done = _map(place, Section(), write_hashes, hashing, ".u64")
    by_path = {root / of.path: of for of in listed}

    def ids_of(path: Path) -> pa.ChunkedArray:
        with intact(by_path[path], root):
            return read_ids(path)

    with contextlib.ExitStack() as reading:
        hashes = [reading.enter_context(intact(shard.outputs["id_hashes"], root)) for shard in done]
        repeats = repeated_ids(list(by_path), hashes, ids_of)
    day = day_of(ingest)
    found = [RawShard(root / of.path, of.path, of.sha256, own, day) for of, own in zip(listed, repeats, strict=True)]
    return found, _outputs(done)


def judge_raw(section: SuiteSection, shard: RawShard, path_of: Callable[[str], Path]) -> ShardMade:
    """Judge one shard of ingest: a function for `map_shards`."""
    table = raw_table(shard)
    write_finding(section, table, Expected(shard.subject, shard.sha256), path_of("raw"))
    counts = {} if table.problem else table.frame["source"].value_counts().to_dict()
    return ShardMade({"raw": path_of("raw")}, {"documents": {str(name): int(n) for name, n in counts.items()}})


def raw_results(place: AuditLocation, ingest: Manifest, gates: Sequence[Gate]) -> SuiteResults:
    """The results of the suite `raw`."""
    section = SuiteSection(suite="raw", gates=tuple(gates), own_sources=source_digests(gates))
    shards, outputs = raw_shards(place, ingest)
    work = [
        Shard(shard.path.stem, ("raw", shard.subject, shard.sha256, _state(shard)), shard, (of,))
        for shard, of in zip(shards, ingest.listed("documents"), strict=True)
    ]
    done = _map(place, section, judge_raw, work)
    expected = [Expected(shard.subject, shard.sha256) for shard in shards]
    found = _values(done, "raw", place.root)
    corpus = f"{ingest.folder}/documents"
    results = merge_findings(section, expected, found, corpus)
    counted = sum_stats([shard.stats for shard in done]).get("documents", {})
    stated = {name: own["documents_kept"] for name, own in ingest.stats.get("by_source", {}).items()}
    if counted != {name: number for name, number in stated.items() if number}:
        results += _errors(
            gates, corpus, f"the shards have these documents by source: {counted}; the manifest: {stated}"
        )
    return SuiteResults(results, outputs + _outputs(done))


def _state(shard: RawShard) -> str:
    """Digest of a shard's facts other than its bytes."""
    repeats = [shard.repeats.rows.tolist(), shard.repeats.others.tolist()]
    return sha256_bytes(canonical_json([shard.read_on, repeats]))


def _errors(gates: Sequence[Gate], subject: str, detail: str) -> list[CheckResult]:
    return [CheckResult(gate.id, subject, "error", None, 0, 0, detail[:300]) for gate in gates]


# --- documents, and their sketches for `drift`


@dataclass(frozen=True)
class FeatureShard:
    """One feature shard of `clean`."""

    path: Path
    shard: Expected
    sketched: bool
    """True where a sketch is made."""


def judge_documents(section: SuiteSection, work: FeatureShard, path_of: Callable[[str], Path]) -> ShardMade:
    """Judge and sketch one feature shard: a function for `map_shards`."""
    table, rows = document_table(work.path, work.shard.subject)
    write_finding(section, table, work.shard, path_of("documents"))
    files = {"documents": path_of("documents")}
    if work.sketched and not table.problem:
        files["sketches"] = path_of("sketches")
        write_json(files["sketches"], sketch_of(read_without_text(work.path)))
    return ShardMade(files, {"rows": rows, "kept": len(table.frame)})


def document_results(
    place: AuditLocation, clean: Manifest, gates: Sequence[Gate], sketched: bool
) -> tuple[SuiteResults, Sketch]:
    """Results of the suite `documents`, with the sketch if requested."""
    section = SuiteSection(suite="documents", gates=tuple(gates), own_sources=source_digests(gates))
    shards = [(place.root / of.path, Expected(of.path, of.sha256), of) for of in clean.listed("features")]
    work = [
        Shard(
            path.stem, ("documents", own.subject, own.sha256, str(sketched)), FeatureShard(path, own, sketched), (of,)
        )
        for path, own, of in shards
    ]
    done = _map(place, section, judge_documents, work)
    corpus = f"{clean.folder}/features"
    findings = _values(done, "documents", place.root)
    results = merge_findings(section, [own for _, own, _ in shards], findings, corpus)
    counted = sum_stats([shard.stats for shard in done])
    known = not any(row.status == "error" and "`kept`" in row.detail for row in results)
    problem = disagreement(clean, counted.get("rows", 0), counted.get("kept", 0)) if done and known else ""
    results += _errors(gates, corpus, problem) if problem else []
    sketch = merge_sketches(_values(done, "sketches", place.root))
    return SuiteResults(results, _outputs(done)), sketch


def sketch_corpus(clean: Manifest, root: Path) -> Sketch:
    """Sketch of a corpus' kept documents, computed in this process."""

    def sketch(output: Output) -> Sketch:
        with intact(output, root) as path:
            return sketch_of(read_without_text(path))

    return merge_sketches(map(sketch, clean.listed("features")))


# --- token shards


def counted_token_shards(
    place: AuditLocation, artifacts: Mapping[str, Manifest], readers: TokenReaders
) -> tuple[list[dict[str, Any]], str, list[Output]]:
    """Rows of `token_shards`, problems of the table, and workers' files."""
    encode, tokenizer = artifacts["encode"], artifacts["tokenizer"]
    shards = shards_of(encode, tokenizer, artifacts["redact"], place.root, readers)
    made_of = (tokenizer.digest, artifacts["redact"].digest)
    listed = {of.path: of for of in (*encode.outputs, *artifacts["redact"].outputs)}
    work = [
        Shard(
            shard.path.stem,
            ("tokens", shard.subject, shard.sha256, *made_of),
            shard,
            tuple(listed[path.relative_to(place.root).as_posix()] for path in (shard.path, shard.documents) if path),
        )
        for shard in shards
    ]
    outputs = _outputs(_map(place, Section(), count_tokens, work))
    found = [read_values(output, place.root) for output in outputs]
    rows, problem = token_shard_rows(shards, found, encode)
    return rows, problem, outputs


# --- tables rebuilt for Data Docs and reviewers


def shard_tables(place: AuditLocation, artifacts: Mapping[str, Manifest]) -> Iterator[tuple[str, SuiteTable]]:
    """Tables of `raw` and `documents`, rebuilt in this process."""
    ingest, clean = artifacts["ingest"], artifacts["clean"]
    for shard, of in zip(raw_shards(place, ingest)[0], ingest.listed("documents"), strict=True):
        with intact(of, place.root):
            yield "raw", raw_table(shard)
    for of in clean.listed("features"):
        with intact(of, place.root) as path:
            yield "documents", document_table(path, of.path)[0]


TEXTS = ("id", "source", "url", "language", "licence", "sha256", "file", "opt_out", "opt_out_fetched")
"""String columns of a document shard other than `text`; `position` is an integer."""


@dataclass(frozen=True)
class RawShard:
    """One ingested shard, with facts from the others."""

    path: Path
    subject: str
    sha256: str
    repeats: Repeats
    read_on: str
    """The day on which ingest ran, YYYY-MM-DD in UTC; empty if unknown."""


def read_ids(path: Path) -> pa.ChunkedArray:
    """The ids of a shard.

    Raises:
        ManifestError: it cannot be read, or an id is null.
    """
    with read_errors(path, "its ids cannot be read"):
        return pq.read_table(path, columns=["id"], partitioning=None)["id"].cast(pa.large_string())


def day_of(ingest: Manifest) -> str:
    """The day on which a manifest was finished, or ""."""
    return str(ingest.run.get("finished") or "")[:10]


def raw_table(shard: RawShard) -> SuiteTable:
    """Table of a raw shard, or a problem with its columns.

    Raises:
        ManifestError: it cannot be read.
    """
    table = read_without_text(shard.path)
    if problem := _problem(shard.path, table):
        return SuiteTable(shard.subject, frame_of([]), problem)
    fits, sizes = _digests(shard, table["sha256"])
    repeats = np.zeros(table.num_rows, np.int64)
    repeats[shard.repeats.rows] = shard.repeats.others
    computed: Mapping[str, Any] = {
        "repeats": pa.array(repeats),
        "digest_fits": fits,
        "bytes": sizes,
        "opt_out_date": _dates(table["opt_out_fetched"], table["opt_out"], shard.read_on),
    }
    for name, column in computed.items():
        table = table.append_column(name, column)
    return SuiteTable(shard.subject, without_empty_text(table, {}).to_pandas())


def _problem(path: Path, table: pa.Table) -> str:
    schema = pq.read_schema(path)
    kinds = {field.name: field.type for field in schema}
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        return f"has the column {twice[0]!r} more than once"
    for name in (*TEXTS, "text"):
        if name not in kinds or not (pa.types.is_string(kinds[name]) or pa.types.is_large_string(kinds[name])):
            return f"has no column {name!r} of strings, so it is not a document shard"
    if "position" not in kinds or not pa.types.is_int64(kinds["position"]):
        return "has no column 'position' of 64-bit integers, so it is not a document shard"
    if nulls := sorted(name for name in table.column_names if table[name].null_count):
        return f"has nulls in {', '.join(nulls)}; a document shard has empty texts instead"
    return ""


def _digests(shard: RawShard, expected: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """Match of each text with its stated digest, and its length."""
    fits: list[int | None] = [None] * len(expected)
    sizes: list[int | None] = [None] * len(expected)
    with read_errors(shard.path, "its texts cannot be read", "Make it again."), pq.ParquetFile(shard.path) as file:
        if file.num_row_groups:
            chosen = int(shard.sha256[:8], 16) % file.num_row_groups
            first = sum(file.metadata.row_group(group).num_rows for group in range(chosen))
            texts = file.read_row_group(chosen, columns=["text"])["text"].cast(pa.large_binary())
            stated = expected.slice(first, len(texts)).to_pylist()
            for row, (text, digest) in enumerate(zip(texts, stated, strict=True), first):
                fits[row] = int(sha256_bytes(text.as_buffer()) == digest)
                sizes[row] = len(text.as_buffer())
    return pa.array(fits, pa.int64()), pa.array(sizes, pa.int64())


def _dates(fetched: pa.ChunkedArray, signals: pa.ChunkedArray, read_on: str) -> pa.ChunkedArray:
    """Kind of each date, computed once a distinct date."""
    known = pc.unique(fetched)
    kinds = pa.array([kind_of_date(value, read_on) for value in known.to_pylist()], pa.string())
    found = pc.take(kinds, pc.index_in(fetched, value_set=known))
    undated = pc.and_(pc.equal(fetched, ""), pc.not_equal(signals, ""))
    return pc.if_else(undated, "undated", found)


def kind_of_date(value: str, read_on: str) -> str:
    """Kind of a reading date, with a day's grace for time zones."""
    if not value:
        return "none"
    try:
        moment = datetime.datetime.fromisoformat(value)
        day = (moment.astimezone(datetime.UTC) if moment.tzinfo else moment).date()
    except (ValueError, OverflowError):
        return "invalid"
    if not read_on:
        return "unknown"
    return "future" if day > datetime.date.fromisoformat(read_on) + datetime.timedelta(days=1) else "valid"


RANGE_BYTES = 256 << 20
Hashes = npt.NDArray[np.uint64]
ReadIds = Callable[[Path], pa.ChunkedArray]
"""The column of ids of a shard, without nulls."""


@dataclass(frozen=True)
class Repeats:
    """Rows of a shard whose id occurs elsewhere as well."""

    rows: npt.NDArray[np.int64]
    """Ascending."""
    others: npt.NDArray[np.int32]
    """Number of other documents of the corpus with the row's id, at least 1."""


def write_hashes(section: Section, work: tuple[Path, ReadIds], path_of: Callable[[str], Path]) -> ShardMade:
    """The sorted hashes of a shard's ids, 8 bytes each, little-endian.

    Called by `map_shards`.
    """
    from governance.kernels.identities import hash_texts

    shard, read_ids = work
    hashes = np.sort(hash_texts(read_ids(shard)))
    path = path_of("id_hashes")
    write_bytes(path, hashes.astype("<u8").tobytes())
    return ShardMade({"id_hashes": path}, {"documents": len(hashes)})


def read_hashes(path: Path) -> Hashes:
    """The hashes of a shard, mapped from disk."""
    return np.memmap(path, "<u8", "r") if path.stat().st_size else np.zeros(0, np.uint64)


def repeated_ids(
    shards: Sequence[Path], hashes: Sequence[Path], read_ids: ReadIds, range_bytes: int = RANGE_BYTES
) -> list[Repeats]:
    """Rows of each shard whose id another document has.

    A row is counted once for each of the others.

    Args:
        shards: the shards.
        hashes: for each, the file that `write_hashes` made of it.
        read_ids: reads the ids of a shard.
        range_bytes: about how many bytes of hashes are held at a time.
    """
    mapped = [read_hashes(path) for path in hashes]
    ranges = max(1, -(-8 * sum(map(len, mapped)) // range_bytes))
    found: list[list[tuple[int, int]]] = [[] for _ in shards]
    for number in range(ranges):
        bounds = [(number * (1 << 64)) // ranges, ((number + 1) * (1 << 64)) // ranges]
        parts = [part[_place(part, bounds[0]) : _place(part, bounds[1])] for part in mapped]
        together = np.sort(np.concatenate([*parts, np.zeros(0, np.uint64)]))
        candidates = np.unique(together[1:][together[1:] == together[:-1]])
        if len(candidates):
            holders = [index for index, part in enumerate(parts) if np.isin(candidates, part).any()]
            _compare(candidates, holders, shards, read_ids, found)
    tables = (np.array(sorted(rows), np.int64).reshape(-1, 2) for rows in found)
    return [Repeats(table[:, 0], table[:, 1].astype(np.int32)) for table in tables]


def _place(hashes: Hashes, bound: int) -> int:
    """Offset of the first hash at or above a bound."""
    return len(hashes) if bound >> 64 else int(np.searchsorted(hashes, np.uint64(bound)))


def _compare(
    candidates: Hashes,
    holders: Sequence[int],
    shards: Sequence[Path],
    read_ids: ReadIds,
    found: list[list[tuple[int, int]]],
) -> None:
    """Read the ids behind the candidates.

    Append (row, others) where the ids themselves are equal.
    """
    places: list[tuple[int, npt.NDArray[np.int64], list[Any]]] = []
    for index in holders:
        from governance.kernels.identities import hash_texts

        ids = read_ids(shards[index])
        rows = np.flatnonzero(np.isin(hash_texts(ids), candidates))
        places.append((index, rows, ids.take(pa.array(rows)).to_pylist()))
    times = Counter(name for _, _, names in places for name in names)
    for index, rows, names in places:
        found[index] += [
            (row, times[name] - 1) for row, name in zip(rows.tolist(), names, strict=True) if times[name] > 1
        ]
