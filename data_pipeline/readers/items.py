"""Items of a source: files with digests, archive members, file parts."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from data_pipeline.own_code import find_code, load
from data_pipeline.readers.archive import Member, members
from data_pipeline.readers.hub import list_hub, local_files
from data_pipeline.readers.local import LocalFile, find_files
from data_pipeline.readers.package import fetch
from data_pipeline.readers.parts import FilePart
from data_pipeline.readers.remote import fetch_remote, find_remote, is_url, local_pattern
from data_pipeline.readers.sources import (
    HubSource,
    JsonlSource,
    OwnSource,
    PackageSource,
    ParquetSource,
    Source,
    TextSource,
    WarcSource,
)
from data_pipeline.readers.streams import plain_name
from data_pipeline.readers.text import HTML, PLAIN, TABLE, ending_of
from governance.errors import ConfigError, ManifestError, MissingInput
from governance.file_digests import Digests
from governance.manifest import Manifest
from governance.stage import Runtime

_PACKED_RATIO = 4  # text in a byte of .gz, .zst or Parquet, to size shards by; measured 2.5 to 5 on prose


@dataclass(frozen=True)
class SourceItem:
    """One file: local, member of an archive, or on the hub."""

    file: str
    """Its name within the source."""
    path: Path | None
    digest: str
    """Of the file, or of the archive; for the hub its commit."""
    bytes: int
    member: int | None = None
    part: FilePart | None = None
    """Which of its records, where a huge file is cut."""

    @property
    def key(self) -> str:
        """All that decides which records these are."""
        part = f" {self.part.begin} {self.part.end} {self.part.first}" if self.part else ""
        return f"{self.digest} {self.member} {self.file}{part}"

    @property
    def local(self) -> Path:
        """Its path; only a data set of the hub has none."""
        assert self.path is not None, "a data set of the hub has no file"
        return self.path


@dataclass(frozen=True)
class Reading:
    """The work of one shard: consecutive files of one source."""

    source: Source
    items: tuple[SourceItem, ...]
    shard_bytes: int = 1 << 62
    """Bytes of text after which a document shard is full and another begins."""
    beside: tuple[SourceItem, ...] = ()
    """Files that decide how the items are read: hosts' statements on a web archive's pages, own code."""


def source_files(source: Source, folder: Path, digests: Digests, runtime: Runtime) -> list[SourceItem]:
    """The files that a source is made from, with their digests.

    Remote files are fetched if they are not there yet.

    Raises:
        MissingInput: a file, a package or an index is not there.
        ManifestError: a package's archive is not what was fetched, or not what the source pins.
    """
    if isinstance(source, PackageSource):
        return [_copied(fetch(source, runtime), "", digests, runtime)]
    if isinstance(source, HubSource):
        if source.revision:
            return _of_hub(source, runtime)
        return _digested(local_files(source, folder), digests)
    if any(is_url(pattern) for pattern in source.paths):
        remote = find_remote(source.paths, source.name)
        _check_endings([file.name for file in remote], source)
        fetched = [fetch_remote(file, source.name, runtime) for file in remote]
        return [_copied(copy, file.name, digests, runtime) for copy, file in zip(fetched, remote, strict=True)]
    return _digested(_local_files(source, folder), digests)


def _of_hub(source: HubSource, runtime: Runtime) -> list[SourceItem]:
    """An item for each listed file, else one for all rows."""
    listing = list_hub(source, runtime)
    whole = [SourceItem(source.dataset, None, listing.commit, 0)]
    files = listing.files
    return [SourceItem(f.name, None, f.sha256 or f"{listing.commit}:{f.name}", f.bytes) for f in files] or whole


def is_elsewhere(source: Source) -> bool:
    """Return whether a source is fetched over a network."""
    if isinstance(source, PackageSource):
        return True
    if isinstance(source, HubSource):
        return bool(source.revision)
    return any(is_url(pattern) for pattern in source.paths)


def find_source(source: Source, folder: Path) -> Iterator[Callable[[], object]]:
    """Checks for a source's local files, without reading them.

    Each raises as `source_files` would.
    """
    if isinstance(source, PackageSource) or (isinstance(source, HubSource) and source.revision):
        return
    if isinstance(source, HubSource):
        yield partial(local_files, source, folder)
    elif not any(is_url(pattern) for pattern in source.paths):
        yield partial(_local_files, source, folder)
    if isinstance(source, OwnSource):
        yield lambda: load(find_code(source.reader, folder, f"source {source.name}: reader"))
    if isinstance(source, WarcSource) and source.opt_out_paths:
        yield partial(find_files, source.opt_out_paths, folder, source.name, follow_links=source.follow_links)


def _local_files(
    source: JsonlSource | ParquetSource | TextSource | WarcSource | OwnSource, folder: Path
) -> list[LocalFile]:
    patterns = tuple(local_pattern(pattern) for pattern in source.paths)
    found = find_files(patterns, folder, source.name, follow_links=source.follow_links)
    _check_endings([file.name for file in found], source)
    return found


def files_beside(source: Source, folder: Path, digests: Digests) -> list[SourceItem]:
    """Files that decide how a source is read, but hold no text.

    Raises:
        MissingInput: a pattern names none.
    """
    if isinstance(source, OwnSource):
        named = find_code(source.reader, folder, f"source {source.name}: reader").named()
        return [SourceItem(f"code/{name}", path, digests.of(path), path.stat().st_size) for name, path in named]
    if not isinstance(source, WarcSource) or not source.opt_out_paths:
        return []
    found = find_files(source.opt_out_paths, folder, source.name, follow_links=source.follow_links)
    return [replace(item, file=f"opt_out/{item.file}") for item in _digested(found, digests)]


def _digested(files: Sequence[LocalFile], digests: Digests) -> list[SourceItem]:
    return [SourceItem(file.name, file.path, digests.of(file.path), file.path.stat().st_size) for file in files]


def _copied(manifest: Manifest, name: str, digests: Digests, runtime: Runtime) -> SourceItem:
    """A fetched file, its digest checked again."""
    (output,) = manifest.outputs
    path = runtime.root / output.path
    if digests.of(path) != output.sha256:
        raise ManifestError(f"{path}: was altered after it was fetched. Remove its folder; it is fetched again.")
    return SourceItem(name or path.name, path, output.sha256, output.bytes)


def archive_items(source: PackageSource, archive: SourceItem) -> list[SourceItem]:
    """The members of an archive that the source's patterns choose.

    Raises:
        MissingInput: none matches.
        ConfigError: one is of a kind that is not read.
    """
    found = list(members(archive.local, source.files))
    for pattern in source.files:
        if not any(_chosen_by(member, pattern) for member in found):
            raise MissingInput(
                f"source {source.name}: no file in {archive.file} matches {pattern!r}. List the archive's names with: "
                f"python -m zipfile -l, tar -tf or dpkg-deb -c {archive.path}"
            )
    for member in found:
        if not member.fault:
            _check_ending(member.name, PLAIN + HTML + TABLE, source)
    return [
        SourceItem(member.name, archive.path, archive.digest, member.size_bytes, member.ordinal) for member in found
    ]


def _chosen_by(member: Member, pattern: str) -> bool:
    outer = member.name.partition(".zip/")
    return fnmatchcase(member.name, pattern) or fnmatchcase(f"{outer[0]}.zip" if outer[1] else outer[0], pattern)


def expected_items(source: Source, folder: Path, shard_bytes: int, runtime: Runtime) -> list[SourceItem]:
    """Expected items of a source, from names and sizes alone.

    A remote item of unknown size counts as a full shard: a package, a data set of the hub that is streamed, each file
    that a URL names.

    Raises:
        MissingInput: a file is missing, or its server does not answer.
    """
    if isinstance(source, PackageSource):
        return [SourceItem(source.name, None, "", shard_bytes)]
    if isinstance(source, HubSource) and source.revision:
        return [item if item.bytes else replace(item, bytes=shard_bytes) for item in _of_hub(source, runtime)]
    if isinstance(source, HubSource):
        found = local_files(source, folder)
    elif any(is_url(pattern) for pattern in source.paths):
        names = [file.name for file in find_remote(source.paths, source.name)]
        return [SourceItem(name, None, "", shard_bytes // (_PACKED_RATIO if _is_packed(name) else 1)) for name in names]
    else:
        found = _local_files(source, folder)
    pieces = []
    for item in (SourceItem(file.name, file.path, "", file.path.stat().st_size) for file in found):
        size = text_bytes(item)
        if size <= shard_bytes or not (has_lines(source, item) or has_row_groups(source, item)):
            pieces.append(item)
            continue
        for begin in range(0, size, shard_bytes):
            end = min(begin + shard_bytes, size)
            pieces.append(replace(item, part=FilePart(begin, end, 0, end - begin)))
    return pieces


def may_overflow(item: SourceItem, shard_bytes: int) -> bool:
    """Return whether an item may fill more than one document shard.

    Packed text may be of any length.
    """
    return item.path is None or _is_packed(item.file) or text_bytes(item) > shard_bytes


def _check_endings(names: Sequence[str], source: Source) -> None:
    if isinstance(source, TextSource):
        for name in names:
            _check_ending(plain_name(name), PLAIN + HTML, source)


def _check_ending(name: str, allowed: tuple[str, ...], source: Source) -> None:
    if ending_of(name) not in allowed:
        kinds = ", ".join(allowed)
        raise ConfigError(f"source {source.name}: {name!r} is not one of {kinds}. Narrow the patterns to such files.")


def has_lines(source: Source, item: SourceItem) -> bool:
    """Return whether an item is plain JSON Lines."""
    return isinstance(source, JsonlSource | HubSource) and (
        item.file.endswith(".jsonl") if isinstance(source, HubSource) else not _is_packed(item.file)
    )


def has_row_groups(source: Source, item: SourceItem) -> bool:
    """Return whether an item can be cut between its row groups."""
    if item.path is None:
        return False
    return isinstance(source, ParquetSource) or (isinstance(source, HubSource) and item.file.endswith(".parquet"))


def is_stream(source: Source, archive: SourceItem) -> bool:
    """Return whether an archive's members form one stream (tar)."""
    return isinstance(source, PackageSource) and not zipfile.is_zipfile(archive.local)


def plan(
    source: Source,
    items: Sequence[SourceItem],
    shard_bytes: int,
    beside: Sequence[SourceItem] = (),
    *,
    whole: bool = False,
) -> list[Reading]:
    """Join consecutive files up to `shard_bytes` of text.

    All of them where they can only be read as a `whole`.
    """
    joined: list[list[SourceItem]] = [[]]
    size = 0
    for item in items:
        more = text_bytes(item)
        if joined[-1] and size + more > shard_bytes and not whole:
            joined.append([])
            size = 0
        joined[-1].append(item)
        size += more
    return [Reading(source, tuple(held), shard_bytes, tuple(beside)) for held in joined]


def text_bytes(item: SourceItem) -> int:
    """Approximate text bytes of an item."""
    if item.part:
        return item.part.bytes
    return item.bytes * (_PACKED_RATIO if _is_packed(item.file) else 1)


def _is_packed(name: str) -> bool:
    return name.endswith((".gz", ".zst", ".parquet"))


def identity(source: Source) -> Source:
    """A source without the fields that only locate its files."""
    if isinstance(source, PackageSource) or (isinstance(source, HubSource) and source.revision):
        return source
    where = {"dataset", "paths", "opt_out_paths"} & type(source).model_fields.keys()
    gone = {name: "" if name == "dataset" else () for name in where}
    return source.model_copy(update={**gone, "follow_links": False})
