"""Ingest stage: each source record becomes a document or is quarantined.

Promise: records read = documents + quarantined, exactly; the first record of an id stays, in the order of sources,
files and records; the same sources give the same bytes wherever they lie and however many workers read them.

Shards: the files of a source, or the matching members of an archive, are taken in order until they would exceed
`shard_bytes`. A plain file of JSON lines, or a Parquet file, that is larger is cut (`readers/parts.py`) and read by
several workers. What cannot be cut, a compressed file, a WARC, a tar, a data set of the hub, is read by one, which
begins another document shard whenever `shard_bytes` of text are in one: so no document shard is larger, but for a
document that is larger itself. Price: one pass over the sources, one more over plain files that are cut, memory of one
row group (8 MiB) and one record a worker; a source with its own ids is written twice where an id occurs twice, and
its ids are held in memory once.

Ids: "<source>/<file>#<position>" is unique by construction; "<source>/<id>", where the source names an id field, is
checked over all shards of the source.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data_pipeline.documents import QUARANTINE_SCHEMA, AddRow, shard_writer
from data_pipeline.readers.hub import at_commit
from data_pipeline.readers.items import (
    Reading,
    SourceItem,
    archive_items,
    files_beside,
    has_lines,
    has_row_groups,
    identity,
    is_stream,
    plan,
    source_files,
    text_bytes,
)
from data_pipeline.readers.parts import FilePart, group_parts, line_parts
from data_pipeline.readers.reading import read_items
from data_pipeline.readers.record import TORN, Record, RecordFault, sample
from data_pipeline.readers.sources import PackageSource, Source
from governance.config import Section, canonical_json
from governance.errors import ConfigError, MissingInput
from governance.file_digests import Digests
from governance.files import place, sha256_bytes, write_json
from governance.log import get_logger
from governance.manifest import FILE_NAME, Input, Manifest, Output, present, read_manifest
from governance.parallel import Shard, ShardDone, ShardMade, map_shards, once, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 5


class IngestConfig(Section):
    """Shard sizes of ingested sources."""

    shard_bytes: int = Field(default=64 << 20, ge=1)
    """Bytes of text that a document shard holds at most: files are joined up to it, and huge ones are cut."""


class IngestIdentity(Section):
    """All that decides the bytes.

    Where local files lie (`paths`, a local `dataset`) does not: inputs are digests.
    """

    sources: tuple[Source, ...]
    ingest: IngestConfig
    names: str
    """SHA-256 of the files' names within their sources: ids, formats and languages come from them."""


def to_row(record: Record, source: Source) -> tuple[tuple[Any, ...], int]:
    """Row of a document shard from a record, and its UTF-8 bytes."""
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
        record.opt_out,
        record.opt_out_fetched,
    )
    return row, len(data)


def read_shard(section: Section, work: Reading, path_of: Callable[[str], Path]) -> ShardMade:
    """Read files into document shards and one shard of quarantined records.

    The further ones, and all of a source with ids of its own, which are checked later over all its shards, have the
    prefix `read_`: `drop_repeated` gives them their places.
    """
    prefix = "read_" if work.source.fields.id else ""
    quarantine = path_of(f"{prefix}quarantine")
    documents: dict[str, Path] = {}

    def next_path() -> Path:
        role = f"{_FURTHER}{len(documents):05d}" if documents else f"{prefix}documents"
        documents[role] = path_of(role)
        return documents[role]

    # A cut file is counted where it begins.
    count: Counter[str] = Counter(files=sum(not (item.part and item.part.begin) for item in work.items))
    removed: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    torn: set[str] = set()
    with (
        _filling(next_path, work.shard_bytes) as add,
        shard_writer(quarantine, QUARANTINE_SCHEMA) as refuse,
    ):
        for piece in read_items(work, passed):
            if isinstance(piece, RecordFault):
                refuse((work.source.name, piece.file, piece.position, piece.reason, piece.sample), 0)
                removed[f"quarantine:{piece.reason}"] += 1
                torn |= {piece.file} if piece.reason in TORN else set()
                continue
            row, size = to_row(piece, work.source)
            add(row, size)
            count["kept"] += 1
            count["bytes"] += size
            count["html_fallbacks"] += piece.fallback
    return ShardMade(
        {**documents, f"{prefix}quarantine": quarantine},
        _funnel(count + Counter(torn_files=len(torn)), removed, passed),
    )


_FURTHER = "read_documents_"  # and a number from 1: the roles of a reading's further document shards


@contextlib.contextmanager
def _filling(next_path: Callable[[], Path], shard_bytes: int) -> Iterator[AddRow]:
    """Write document shards of at most `shard_bytes` one after another."""
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(shard_writer(next_path()))
        held = 0

        def add(row: Sequence[Any], text_bytes: int) -> None:
            nonlocal write, held
            if held and held + text_bytes > shard_bytes:
                stack.close()
                write = stack.enter_context(shard_writer(next_path()))
                held = 0
            write(row, text_bytes)
            held += text_bytes

        yield add


def _funnel(count: Counter[str], removed: Counter[str], passed: Counter[str]) -> dict[str, Any]:
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
        "passed_over": dict(passed),
    }


def repeated_rows(shards: Sequence[Path]) -> list[list[int]]:
    """Rows whose id occurs in an earlier row, for each shard."""
    tables = [pq.read_table(path, columns=["id"], partitioning=None) for path in shards]
    ids = pa.concat_tables(tables)["id"].cast(pa.large_string()).combine_chunks()
    codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    repeated = np.ones(len(codes), dtype=bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    return [np.flatnonzero(repeated[a:b]).tolist() for a, b in pairwise(starts)]


@dataclass(frozen=True)
class Unrepeating:
    """Work on one shard: rows with repeated ids."""

    documents: Path
    quarantine: Path | None
    """None where the reading's first shard has what was quarantined."""
    repeated: tuple[int, ...]


def drop_repeated(section: Section, work: Unrepeating, path_of: Callable[[str], Path]) -> ShardMade:
    """Move rows with repeated ids to the quarantine; return count differences."""
    paths = {role: path_of(role) for role in ("documents", "quarantine")}
    if not work.repeated:
        place(work.documents, paths["documents"])
        if work.quarantine is None:
            return ShardMade({"documents": paths["documents"]}, {})
        place(work.quarantine, paths["quarantine"])
        return ShardMade(paths, {})
    repeated = frozenset(work.repeated)
    lost = 0
    with shard_writer(paths["documents"]) as add, shard_writer(paths["quarantine"], QUARANTINE_SCHEMA) as refuse:
        for _, row in _rows(work.quarantine) if work.quarantine else ():
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


def ingest(sources: tuple[Source, ...], config: IngestConfig, config_folder: Path, runtime: Runtime) -> Manifest:
    """Make or find the documents of all sources.

    Relative paths start at `config_folder`.

    Raises:
        ConfigError: two sources have one name.
        MissingInput: a source's file, package or data set is not there, or it was not made and `runtime.make` is off. A
            look-up goes on without the files where one artifact has these settings.
    """
    names = Counter(source.name for source in sources)
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise ConfigError(
            f"data.sources: the name {twice[0]!r} is given {names[twice[0]]} times. Rename one: ids start with it."
        )
    sources = tuple(at_commit(source, runtime) for source in sources)
    digests = Digests(runtime)
    try:
        files = [source_files(source, config_folder, digests, runtime) for source in sources]
        beside = [files_beside(source, config_folder, digests) for source in sources]
    except MissingInput as error:
        if runtime.make:
            raise
        return _sealed(sources, config, runtime.root, error)
    digests.save()
    inputs = [
        Input(stage="file" if item.path else "hub", digest=item.digest, path=f"{source.name}/{item.file}")
        for source, items, more in zip(sources, files, beside, strict=True)
        for item in (*items, *more)
    ]
    called = sha256_bytes(canonical_json([item.path for item in inputs]))
    known = IngestIdentity(sources=tuple(identity(source) for source in sources), ingest=config, names=called)

    def make(folder: Path) -> Made:
        chosen = [
            archive_items(source, items[0]) if isinstance(source, PackageSource) else items
            for source, items in zip(sources, files, strict=True)
        ]
        cut = cut_files(sources, chosen, config.shard_bytes, folder, runtime)
        readings = []
        for source, items, parts, more in zip(sources, files, cut, beside, strict=True):
            readings += plan(source, parts, config.shard_bytes, more, whole=is_stream(source, items[0]))
        return _make(readings, folder, runtime)

    return run_stage(Recipe("ingest", VERSION, known), inputs, runtime, make)


def _sealed(sources: Sequence[Source], config: IngestConfig, root: Path, error: MissingInput) -> Manifest:
    """The one artifact of these settings, without its source files.

    The names and digests of the files are in the artifact; that they are still those of the files cannot be checked.

    Raises:
        MissingInput: `error`, where no artifact or more than one was made with these settings.
    """
    settings = [identity(source).model_dump(mode="json") for source in sources]
    made = []
    for path in sorted(root.glob(f"ingest/*/{FILE_NAME}")):
        manifest = read_manifest(path)
        same = (manifest.config.get("sources"), manifest.config.get("ingest")) == (
            settings,
            config.model_dump(mode="json"),
        )
        if same and manifest.version == VERSION and present(manifest, root):
            made.append(manifest)
    if len(made) != 1:
        several = (
            f" ({len(made)} artifacts of {root / 'ingest'} have these settings, so none is chosen)" if made else ""
        )
        raise MissingInput(f"{error}{several}") from error
    get_logger(__name__).warning(
        "%s The sealed documents %s are used. Not checked: that their %d source file(s) are still those recorded",
        error, made[0].folder, len(made[0].inputs),
    )  # fmt: skip
    return made[0]


def find_lines(section: Section, work: tuple[Path, int], path_of: Callable[[str], Path]) -> ShardMade:
    """Write down where a plain file of lines is cut."""
    path = path_of("parts")
    write_json(path, [asdict(part) for part in line_parts(*work)])
    return ShardMade({"parts": path}, {})


def cut_files(
    sources: Sequence[Source], files: Sequence[Sequence[SourceItem]], shard_bytes: int, folder: Path, runtime: Runtime
) -> list[list[SourceItem]]:
    """Items of each source, with large ones cut into parts."""
    huge = [
        (source, item)
        for source, items in zip(sources, files, strict=True)
        for item in items
        if text_bytes(item) > shard_bytes
    ]
    parts = {
        (source.name, item.key): group_parts(item.local, shard_bytes)
        for source, item in huge
        if has_row_groups(source, item)
    }
    lines = [(source, item) for source, item in huge if has_lines(source, item)]
    shards = [
        Shard(f"{number:06d}-{source.name}", ("lines", item.digest, str(shard_bytes)), (item.local, shard_bytes))
        for number, (source, item) in enumerate(lines)
    ]
    found = map_shards(Recipe("ingest", VERSION, Section()), find_lines, shards, folder, runtime, ".json")
    for (source, item), done in zip(lines, found, strict=True):
        written = json.loads((runtime.root / done.outputs["parts"].path).read_bytes())
        parts[source.name, item.key] = [FilePart(**values) for values in written]
    return [
        [piece for item in items for piece in _pieces(item, parts.get((source.name, item.key), []))]
        for source, items in zip(sources, files, strict=True)
    ]


def _pieces(item: SourceItem, parts: Sequence[FilePart]) -> list[SourceItem]:
    return [replace(item, part=part) for part in parts] if len(parts) > 1 else [item]


def _make(readings: Sequence[Reading], folder: Path, runtime: Runtime) -> Made:
    recipe = Recipe("ingest", VERSION, Section())  # a shard depends on its own source only: its inputs name it
    shards = []
    for number, work in enumerate(readings):
        of_source = sha256_bytes(canonical_json(identity(work.source)))
        read = (str(work.shard_bytes), *(item.key for item in (*work.beside, *work.items)))
        shards.append(Shard(f"{number:06d}-{work.source.name}", (of_source, *read), work))
    done = map_shards(recipe, read_shard, shards, folder, runtime)
    stats = [(work.source.name, part.stats) for work, part in zip(readings, done, strict=True)]
    outputs = [output for part in done for role, output in part.outputs.items() if not role.startswith("read_")]
    last: list[tuple[str, Shard]] = []
    for source in {work.source.name: work.source for work in readings}.values():
        own = {index: done[index] for index, work in enumerate(readings) if work.source.name == source.name}
        more = _unrepeating(bool(source.fields.id), own, shards, folder, runtime)
        last += [(source.name, shard) for shard in more]
    finished = map_shards(recipe, drop_repeated, [shard for _, shard in last], folder, runtime)
    stats += [(name, part.stats) for (name, _), part in zip(last, finished, strict=True)]
    outputs += [output for part in finished for output in part.outputs.values()]
    by_source = {name: sum_stats([part for of, part in stats if of == name]) for name in dict(stats)}
    total = sum_stats([part for _, part in stats])
    for name, funnel in by_source.items():
        if funnel["quarantined"]:
            get_logger(__name__).warning("source %s: quarantined %s", name, funnel["removed"])
    return Made(outputs, {**total, "by_source": by_source})


def _unrepeating(
    with_ids: bool, read: Mapping[int, ShardDone], shards: Sequence[Shard], folder: Path, runtime: Runtime
) -> list[Shard]:
    """Final names of shards read under `read_`, repeated ids removed.

    What was read stays next to it, so that another process that makes the same artifact, or a later one whose other
    files changed, finds it whole; an untouched shard is one file with two names.
    """
    found: list[tuple[str, Output, Output | None]] = []
    for index, part in read.items():
        name = shards[index].name
        for role, output in sorted(part.outputs.items()):
            if role == "read_documents":
                found.append((name, output, part.outputs["read_quarantine"]))
            elif role.startswith(_FURTHER):
                number, _, source = name.partition("-")
                found.append((f"{number}.{role.removeprefix(_FURTHER)}-{source}", output, None))
    paths = [runtime.root / output.path for _, output, _ in found]
    repeated = _repeated(found, paths, folder, runtime) if with_ids else [[]] * len(found)
    work = []
    for (name, output, quarantine), path, rows in zip(found, paths, repeated, strict=True):
        inputs = ("finish", output.sha256, quarantine.sha256 if quarantine else "", *map(str, rows))
        beside = runtime.root / quarantine.path if quarantine else None
        work.append(Shard(name, inputs, Unrepeating(path, beside, tuple(rows))))
    return work


def _repeated(
    found: Sequence[tuple[str, Output, Output | None]], paths: Sequence[Path], folder: Path, runtime: Runtime
) -> list[list[int]]:
    """`repeated_rows`, found by one worker for all."""
    key = Recipe("ingest", VERSION, Section()).key(["repeated", *(output.sha256 for _, output, _ in found)])
    path = folder.parent / "records" / f"{key}.repeated.json"
    rows: list[list[int]] = json.loads(
        once(runtime, path, lambda path: write_json(path, repeated_rows(paths))).read_bytes()
    )
    return rows
