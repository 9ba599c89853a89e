"""Ingest stage: each source record becomes a document or is quarantined.

Promise: records read = documents + quarantined, exactly; the first record of an id stays, in the order of sources,
files and records; the same sources give the same bytes wherever they are and however many workers read them.

Shards: the files of a source, or the matching members of an archive, are taken in order until they would exceed
`shard_bytes`. A plain file of JSON lines, or a Parquet file, that is larger is cut (`readers/parts.py`) and read by
several workers. What cannot be cut, a compressed file, a WARC, a tar, a data set of the hub, is read by one, which
begins another document shard whenever `shard_bytes` of text are in one: so no document shard is larger,
unless a single document is. Price: one pass over the sources, one more over plain files that are cut, memory of one
row group (8 MiB) and one record per worker; a source with its own ids is written twice where an id occurs twice, and
its ids are held in memory once.

Ids: "<source>/<file>#<position>" is unique by construction; "<source>/<id>", where the source names an id field, is
checked over all shards of the source.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import not_
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data_pipeline.code.source_rows import read_code_rows
from data_pipeline.code.source_trees import code_libraries, read_code, with_licence_files, with_near_licence_files
from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    KEPT_COLUMNS,
    QUARANTINE_SCHEMA,
    read_rows,
    shard_schema,
    shard_writer,
    shards_writer,
    with_kept_columns,
)
from data_pipeline.readers.archive import archive_items
from data_pipeline.readers.file_types.character_references import decode_references
from data_pipeline.readers.file_types.endings import HTML
from data_pipeline.readers.hub import at_commit
from data_pipeline.readers.items import SourceFiles, SourceItem, list_files
from data_pipeline.readers.local import remaining_files, unread_words
from data_pipeline.readers.parts import Reading, cut_files, is_stream, plan
from data_pipeline.readers.reading import read_items
from data_pipeline.readers.record import TORN, Record, RecordFault, sample
from data_pipeline.readers.sources import (
    CodeSource,
    HubSource,
    PackageSource,
    Source,
    SyntheticSource,
    identity,
    licence_lists,
)
from data_pipeline.readers.streams import plain_name
from data_pipeline.readers.text import ending_of
from data_pipeline.synthetic.synthesize import facts_of, list_answers
from data_pipeline.synthetic.synthesize import plan as plan_requests
from governance.config import Section, canonical_json
from governance.errors import ManifestError, MissingInput
from governance.file_digests import Digests, is_unchanged
from governance.files import place, sha256_bytes, write_json
from governance.log import get_logger
from governance.manifest import FILE_NAME, SOURCES, Input, Manifest, Output, present, read_manifest
from governance.parallel import Shard, ShardDone, ShardMade, map_shards, once, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import all_intact

VERSION = 27
_FETCHED = (PackageSource, HubSource, SyntheticSource)
_NAMED = 3  # source files that the warning on sealed documents names


class IngestConfig(Section):
    """Shard sizes of ingested sources."""

    shard_bytes: int = Field(default=64 << 20, ge=1)
    """Bytes of text and kept columns that a shard holds at most: files are joined up to it, and huge ones are cut."""


class IngestIdentity(Section):
    """Recipe of the stage: everything that decides its bytes.

    The place of local files (`paths`, a local `dataset`) does not: inputs are digests.
    """

    sources: tuple[Source, ...]
    ingest: IngestConfig
    names: str
    """SHA-256 of the files' names within their sources, from which ids, formats and languages come; and of the reasons
    why others are not read."""
    code_libraries: dict[str, str] = Field(default={}, exclude_if=not_)
    """Versions of the libraries and rules that decide languages and licences of code, where a source is of code."""


def to_row(record: Record, source: Source) -> tuple[tuple[Any, ...], int]:
    """Row of a document shard, its text in UTF-8, and its bytes."""
    data = record.text.encode("utf-8")
    row = (
        f"{source.name}/{record.id or f'{record.file}#{record.position}'}",
        data,
        source.name,
        record.url,
        record.language or source.language,
        record.licence or source.licence,
        sha256_bytes(data),
        record.file,
        record.position,
        record.opt_out,
        record.opt_out_fetched,
        *([record.columns] if source.fields.columns else ()),
    )
    return row, len(data)


def read_shard(section: Section, work: Reading, path_of: Callable[[str], Path]) -> ShardMade:
    """Read files into document shards and one shard of quarantined records.

    Further document shards, and all of a source with ids of its own, which are checked later over all its shards, have
    the prefix `read_`: `drop_repeated` gives them their places.

    Raises:
        MissingInput: a file is gone, or was changed since its digest was taken.
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
    decodes = getattr(work.source, "decode_entities", False)
    kept = pa.schema([KEPT_COLUMNS] if work.source.fields.columns else [])
    with (
        shard_writer(quarantine, QUARANTINE_SCHEMA) as refuse,
        shards_writer(next_path, work.shard_bytes, with_kept_columns(DOCUMENT_SCHEMA, kept)) as add,
    ):
        for piece in _reader_of(work.source)(work, passed):
            if isinstance(piece, RecordFault):
                refuse((work.source.name, piece.file, piece.position, piece.reason, piece.sample), 0)
                removed[f"quarantine:{piece.reason}"] += 1
                torn |= {_containing(piece.file, work.items)} if piece.reason in TORN else set()
                continue
            if decodes and ending_of(plain_name(piece.file)) not in HTML:
                text, found = decode_references(piece.text)
                count["entities_decoded" if text != piece.text else "entities_left"] += found
                piece = replace(piece, text=text)
            row, size = to_row(piece, work.source)
            add(row, size + len(piece.columns.encode("utf-8")))
            count["kept"] += 1
            count["bytes"] += size
            count["html_fallbacks"] += piece.fallback
            count["truncated"] += piece.truncated
    _refuse_changed(work)
    counts = {
        "documents_in": count["kept"] + removed.total(),
        "documents_kept": count["kept"],
        "bytes_in": count["bytes"],
        "bytes_kept": count["bytes"],
        "removed": dict(removed),
        "quarantined": removed.total(),
        "files": count["files"],
        "html_fallbacks": count["html_fallbacks"],
        "torn_files": len(torn),
        "passed_over": dict(passed),
    }
    if decodes:
        counts |= {name: count[name] for name in ("entities_decoded", "entities_left")}
    if isinstance(work.source, SyntheticSource):
        counts["truncated"] = count["truncated"]
    return ShardMade({**documents, f"{prefix}quarantine": quarantine}, counts)


def _refuse_changed(work: Reading) -> None:
    """Refuse files that were changed since their digest was taken.

    Raises:
        MissingInput: one was changed, or is gone.
    """
    for item in (*work.items, *work.beside):
        again = item.part is None and item.member is None  # a file that several read is not read again by each
        if item.path and not is_unchanged(item.path, item.facts, item.digest, again=again):
            raise MissingInput(
                f"source {work.source.name}: {item.path} was changed while it was read; no artifact was made. Run the "
                "command again when nothing writes to the file."
            )


def _containing(name: str, items: Sequence[SourceItem]) -> str:
    """The archive of a torn member, or the file itself."""
    return next((item.file for item in items if name.startswith(f"{item.file}/")), name)


def _reader_of(source: Source) -> Callable[[Reading, Counter[str]], Iterator[Record | RecordFault]]:
    if isinstance(source, CodeSource):
        return read_code
    return read_code_rows if licence_lists(source) is not None else read_items


_FURTHER = "read_documents_"  # followed by a number from 1: roles of a reading's further document shards


def repeated_rows(shards: Sequence[Path]) -> list[list[int]]:
    """Rows whose id occurs in an earlier row, for each shard."""
    tables = [pq.read_table(path, columns=["id"], partitioning=None) for path in shards]
    ids = pa.concat_tables(tables)["id"].cast(pa.large_string()).combine_chunks()
    codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    repeated = np.ones(len(codes), dtype=bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    return [np.flatnonzero(repeated[a:b]).tolist() for a, b in pairwise(starts)]


def drop_repeated(
    section: Section, work: tuple[Path, Path | None, frozenset[int]], path_of: Callable[[str], Path]
) -> ShardMade:
    """Move rows with repeated ids to the quarantine; return count differences.

    `work` holds the documents, the quarantined records (None if the reading's first shard has them), and the rows with
    repeated ids.
    """
    documents, quarantine, repeated = work
    paths = {role: path_of(role) for role in ("documents", "quarantine")}
    if not repeated:
        place(documents, paths["documents"])
        if quarantine is None:
            return ShardMade({"documents": paths["documents"]}, {})
        place(quarantine, paths["quarantine"])
        return ShardMade(paths, {})
    lost = 0
    with (
        shard_writer(paths["documents"], shard_schema(documents)) as add,
        shard_writer(paths["quarantine"], QUARANTINE_SCHEMA) as refuse,
    ):
        for row in read_rows(quarantine) if quarantine else ():
            refuse(tuple(row.values()), 0)
        for number, row in enumerate(read_rows(documents)):
            size = len(row["text"].encode("utf-8"))
            if number in repeated:
                refuse((row["source"], row["file"], row["position"], "duplicate_id", sample(row["text"])), 0)
                lost += size
            else:
                add(tuple(row.values()), size + len(row.get("columns", "").encode("utf-8")))
    count = len(repeated)
    removed = {"quarantine:duplicate_id": count}
    return ShardMade(paths, {"documents_kept": -count, "bytes_kept": -lost, "quarantined": count, "removed": removed})


@dataclass
class _Listing:
    """Files of all sources, before any is read."""

    files: list[SourceFiles] = field(default_factory=list)
    synthetic: dict[str, Manifest] = field(default_factory=dict)
    """Source -> the artifact of its teacher's answers."""
    remaining: dict[str, set[str]] = field(default_factory=dict)
    """Source with missing files -> digests of its files that remain."""
    missing: MissingInput | None = None
    """The first error of a look-up, for a file that is gone."""

    def inputs(self) -> list[Input]:
        """Inputs of the artifact: each file by its digest."""
        found = [item for files in self.files for item in files.inputs()]
        return found + [made.as_input() for made in self.synthetic.values()]


def ingest(sources: tuple[Source, ...], config: IngestConfig, config_folder: Path, runtime: Runtime) -> Manifest:
    """Make or find the documents of all sources.

    Relative paths start at `config_folder`. The names of sources are distinct (`DataConfig` refuses others).

    Raises:
        MissingInput: a source's file, package or data set is missing, or it was not made and `runtime.make` is off. A
            look-up goes on without files that are gone, where one artifact has these settings and no file that is still
            there differs; not where a server has a file that was not fetched, nor without the note on a hub's branch.
    """
    sources = tuple(at_commit(source, runtime) if isinstance(source, HubSource) else source for source in sources)
    listing = _list_sources(sources, config_folder, runtime)
    inputs = listing.inputs()
    if listing.missing is not None:
        candidates = _artifacts_with(sources, config, runtime.root)
        same = [made for made in candidates if _has_same_files(made, inputs, listing.remaining)]
        return _only_artifact(same, runtime.root, listing.missing)
    unread = {files.source.name: files.unread for files in listing.files if files.unread}
    for name, missed in unread.items():
        get_logger(__name__).warning("source %s: %s. They count as torn files", name, unread_words(missed))
    reasons = [f"{name} {reason}" for name, missed in unread.items() for _, reason in missed]
    known = IngestIdentity(
        sources=tuple(identity(files.source) for files in listing.files),
        ingest=config,
        names=sha256_bytes(canonical_json([*(item.path for item in inputs), *reasons])),
        code_libraries=code_libraries(sources),
    )

    def make(folder: Path) -> Made:
        recipe = Recipe("ingest", VERSION, Section())  # a shard depends on its own source only: its inputs name it
        readings = list(_readings_of(listing.files, config.shard_bytes, recipe, folder, runtime))
        lost = [
            (name, {"torn_files": len(missed), "passed_over": dict(Counter(reason for _, reason in missed))})
            for name, missed in unread.items()
        ]
        made = _read_all(readings, lost, recipe, folder, runtime)
        facts = {name: facts_of(answers) for name, answers in sorted(listing.synthetic.items())}
        return Made(made.outputs, {**made.stats, **({"synthetic": facts} if facts else {})})

    return run_stage(Recipe("ingest", VERSION, known), inputs, runtime, make)


def _list_sources(sources: tuple[Source, ...], config_folder: Path, runtime: Runtime) -> _Listing:
    """List and hash the files of each source; request a teacher's answers.

    Raises:
        MissingInput: a file is missing, and this is not a look-up; or a server has a file that was not fetched.
    """
    found, digests = _Listing(), Digests(runtime)
    for source in sources:
        try:
            if isinstance(source, SyntheticSource):
                requests = plan_requests(source, sources, config_folder, digests, runtime)
                files, found.synthetic[source.name] = list_answers(requests, digests, runtime)
            else:
                files = list_files(source, config_folder, digests, runtime)
            found.files.append(with_licence_files(files) if isinstance(source, CodeSource) else files)
        except MissingInput as error:
            if runtime.make or error.stage:
                raise
            found.missing = found.missing or error
            paths = () if isinstance(source, _FETCHED) else remaining_files(source, config_folder)
            found.remaining[source.name] = {digests.of(path) for path in paths}
    digests.save()
    return found


def _readings_of(
    listed: Sequence[SourceFiles], shard_bytes: int, recipe: Recipe, folder: Path, runtime: Runtime
) -> Iterator[Reading]:
    """Work of each shard: whole files, or a part of one."""
    chosen = [
        archive_items(files.source, files.items[0]) if isinstance(files.source, PackageSource) else files.items
        for files in listed
    ]
    cut = cut_files([files.source for files in listed], chosen, shard_bytes, recipe, folder, runtime)
    for files, parts in zip(listed, cut, strict=True):
        whole = is_stream(files.source, files.items[0])
        planned = plan(files.source, parts, shard_bytes, files.beside, whole=whole)
        yield from map(with_near_licence_files, planned) if isinstance(files.source, CodeSource) else planned


def _artifacts_with(sources: Sequence[Source], config: IngestConfig, root: Path) -> Iterator[Manifest]:
    """Artifacts of these settings, whatever their files; damaged ones are skipped."""
    settings = ([identity(source).model_dump(mode="json") for source in sources], config.model_dump(mode="json"))
    for path in sorted(root.glob(f"ingest/*/{FILE_NAME}")):
        with contextlib.suppress(ManifestError):
            made = read_manifest(path)
            same = (made.config.get("sources"), made.config.get("ingest")) == settings
            same = same and made.config.get("code_libraries", {}) == code_libraries(sources)
            if same and made.version == VERSION and present(made, root):
                yield made


def _has_same_files(made: Manifest, inputs: Sequence[Input], remaining: Mapping[str, set[str]]) -> bool:
    """Return whether the files that are still there are those recorded.

    `inputs` are those of the sources that are whole; `remaining` holds, by source, digests of the files that others
    still have.
    """
    files = [item for item in made.inputs if item.stage in SOURCES]
    recorded = [item for item in files if item.path.partition("/")[0] not in remaining]
    digests = {(item.path.partition("/")[0], item.digest) for item in files}
    return recorded == [item for item in inputs if item.stage in SOURCES] and all(
        (source, digest) in digests for source, of_source in remaining.items() for digest in of_source
    )


def _only_artifact(made: Sequence[Manifest], root: Path, error: MissingInput) -> Manifest:
    """The one artifact of the settings, whose source files are gone.

    The names and digests of the files are in the artifact; those that are gone cannot be compared.

    Raises:
        MissingInput: `error`, where `made` is not one artifact.
    """
    if len(made) != 1:
        several = (
            f" ({len(made)} artifacts of {root / 'ingest'} have these settings, so none is chosen)" if made else ""
        )
        raise MissingInput(f"{error}{several}") from error
    names = [item.path for item in made[0].inputs]
    get_logger(__name__).warning(
        "%s The sealed documents %s are used, made from %d source file(s): %s. Those that are gone, and changes of "
        "`paths`, are not checked",
        error, made[0].folder, len(names), ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED),
    )  # fmt: skip
    return made[0]


def _read_all(
    readings: Sequence[Reading], lost: list[tuple[str, dict[str, Any]]], recipe: Recipe, folder: Path, runtime: Runtime
) -> Made:
    """Read all shards, then drop the repeated ids of each source.

    `lost` has the counts of what cannot be read, by source.
    """
    shards = [_shard_of(number, reading) for number, reading in enumerate(readings)]
    read = map_shards(recipe, read_shard, shards, folder, runtime)
    # An id may repeat in any shard of its source, so shards get their final names once all of the source is read.
    of_source: dict[str, list[tuple[Shard, ShardDone]]] = {}
    for shard, done in zip(shards, read, strict=True):
        of_source.setdefault(shard.payload.source.name, []).append((shard, done))
    unnamed = [
        (name, shard) for name, parts in of_source.items() for shard in _without_repeats(parts, recipe, folder, runtime)
    ]
    final = map_shards(recipe, drop_repeated, [shard for _, shard in unnamed], folder, runtime)
    outputs = [output for done in read for role, output in done.outputs.items() if not role.startswith("read_")]
    outputs += [output for done in final for output in done.outputs.values()]
    stats = [(reading.source.name, done.stats) for reading, done in zip(readings, read, strict=True)] + lost
    stats += [(name, done.stats) for (name, _), done in zip(unnamed, final, strict=True)]
    return Made(outputs, _sum_by_source(stats))


def _shard_of(number: int, reading: Reading) -> Shard:
    """A reading as a shard, which depends on its own files."""
    settings = sha256_bytes(canonical_json(identity(reading.source)))
    libraries = code_libraries([reading.source]).values()
    files = (item.key for item in (*reading.beside, *reading.items))
    inputs = (settings, str(reading.shard_bytes), *libraries, *files)
    return Shard(f"{number:06d}-{reading.source.name}", inputs, reading)


def _sum_by_source(stats: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Counts of all sources and, in `by_source`, of each."""
    by_source = {name: sum_stats([counts for other, counts in stats if other == name]) for name in dict(stats)}
    for name, counts in by_source.items():
        if counts["quarantined"]:
            get_logger(__name__).warning("source %s: quarantined %s", name, counts["removed"])
    return {**sum_stats([counts for _, counts in stats]), "by_source": by_source}


def _without_repeats(
    parts: Sequence[tuple[Shard, ShardDone]], recipe: Recipe, folder: Path, runtime: Runtime
) -> Iterator[Shard]:
    """Give one source's shards their final names, repeated ids removed.

    Shards stay under their first names too, for another process that makes the same artifact and for a later artifact
    in which only other files changed. A shard without repeats is one file with two names.
    """
    found: list[tuple[str, Output, Output | None]] = []
    for shard, done in parts:
        for role, output in sorted(done.outputs.items()):
            if role == "read_documents":
                found.append((shard.name, output, done.outputs["read_quarantine"]))
            elif role.startswith(_FURTHER):
                number, _, source = shard.name.partition("-")
                found.append((f"{number}.{role.removeprefix(_FURTHER)}-{source}", output, None))
    paths = [runtime.root / output.path for _, output, _ in found]
    repeated: list[list[int]] = [[]] * len(found)
    if parts[0][0].payload.source.fields.id:  # one worker finds the repeats, for all
        key = recipe.key(["repeated", *(output.sha256 for _, output, _ in found)])
        path = folder.parent / "records" / f"{key}.repeated.json"

        def decide(path: Path) -> None:
            with all_intact([output for _, output, _ in found], runtime.root):
                write_json(path, repeated_rows(paths))

        once(runtime, path, decide)
        repeated = json.loads(path.read_bytes())
    for (name, output, quarantine), path, rows in zip(found, paths, repeated, strict=True):
        inputs = ("finish", output.sha256, quarantine.sha256 if quarantine else "", *map(str, rows))
        beside = runtime.root / quarantine.path if quarantine else None
        reads = (output, quarantine) if quarantine else (output,)
        yield Shard(name, inputs, (path, beside, frozenset(rows)), reads)
