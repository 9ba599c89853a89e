"""Files of a source with their digests, local or fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_pipeline.own_code import find_code, load
from data_pipeline.readers.hub import hub_items, local_files
from data_pipeline.readers.local import FoundFiles, find_files, find_paths
from data_pipeline.readers.package import fetch
from data_pipeline.readers.pages.extraction import check_installed
from data_pipeline.readers.parts import (
    PACKED_RATIO,
    FilePart,
    SourceItem,
    has_lines,
    has_row_groups,
    is_packed,
    text_bytes,
)
from data_pipeline.readers.remote import fetch_remote, find_remote
from data_pipeline.readers.sources import HtmlSource, HubSource, OwnSource, PackageSource, Source, WarcSource
from data_pipeline.readers.text import check_endings
from governance.errors import ManifestError
from governance.file_digests import Digests
from governance.manifest import Manifest
from governance.stage import Runtime


@dataclass(frozen=True)
class SourceFiles:
    """A source, its files, and those that decide how they are read."""

    source: Source
    """At its commit, where it is of the hub."""
    items: list[SourceItem]
    beside: list[SourceItem]
    """Files without text: hosts' statements on a web archive's pages, own code."""
    unread: list[tuple[str, str]]
    """Path and reason of what may hold records and is not read."""


def list_files(source: Source, folder: Path, digests: Digests, runtime: Runtime) -> SourceFiles:
    """The files that a source is made from, with their digests.

    Remote files are fetched if they are not there yet.

    Raises:
        MissingInput: a file, a package or an index is not there.
        ManifestError: a package's archive is not what was fetched, or not what the source pins.
    """
    fetched: list[tuple[str, Manifest]] = []
    here = FoundFiles([], [])
    if isinstance(source, HubSource):
        if source.revision:
            return SourceFiles(source, hub_items(source, runtime), [], [])
        here = local_files(source, folder)
    elif isinstance(source, PackageSource):
        fetched = [("", fetch(source, runtime))]
    elif source.elsewhere:
        remote = find_remote(source.paths, source.name)
        check_endings([file.name for file in remote], source)
        fetched = [(file.name, fetch_remote(file, source.name, runtime)) for file in remote]
    else:
        here = find_paths(source, folder)
    items = []
    for name, manifest in fetched:
        (output,) = manifest.outputs
        path = runtime.root / output.path
        if digests.of(path) != output.sha256:
            raise ManifestError(f"{path}: was altered after it was fetched. Remove its folder; it is fetched again.")
        items.append(SourceItem(name or path.name, path, output.sha256, output.bytes, facts=digests.facts(path)))
    beside: list[tuple[str, Path]] = []
    if isinstance(source, OwnSource):
        code = find_code(source.reader, folder, f"source {source.name}: reader")
        beside = [(f"code/{name}", path) for name, path in code.named()]
    elif isinstance(source, WarcSource) and source.opt_out_paths:
        found = find_files(source.opt_out_paths, folder, source.name, follow_links=source.follow_links)
        beside = [(f"opt_out/{file.name}", file.path) for file in found]
    local, more = (
        [
            SourceItem(name, path, digests.of(path), path.stat().st_size, facts=digests.facts(path))
            for name, path in files
        ]
        for files in ([(file.name, file.path) for file in here.files], beside)
    )
    return SourceFiles(source, [*items, *local], more, here.unread)


def find_source(source: Source, folder: Path) -> Iterator[Callable[[], object]]:
    """Checks for a source's local files, without reading them.

    Each check raises what `list_files` would raise.
    """
    if isinstance(source, HtmlSource):
        yield partial(check_installed, source.extraction)
    if isinstance(source, HubSource):
        yield from () if source.revision else (partial(local_files, source, folder),)
    elif not isinstance(source, PackageSource) and not source.elsewhere:
        yield partial(find_paths, source, folder)
    if isinstance(source, OwnSource):
        yield lambda: load(find_code(source.reader, folder, f"source {source.name}: reader"))
    if isinstance(source, WarcSource) and source.opt_out_paths:
        yield partial(find_files, source.opt_out_paths, folder, source.name, follow_links=source.follow_links)


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
        return [item if item.bytes else replace(item, bytes=shard_bytes) for item in hub_items(source, runtime)]
    if source.elsewhere:
        assert not isinstance(source, HubSource), "those of the hub are listed above"
        names = [file.name for file in find_remote(source.paths, source.name)]
        return [SourceItem(name, None, "", shard_bytes // (PACKED_RATIO if is_packed(name) else 1)) for name in names]
    pieces = []
    found = local_files(source, folder) if isinstance(source, HubSource) else find_paths(source, folder)
    for file in found.files:
        item = SourceItem(file.name, file.path, "", file.path.stat().st_size)
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
    return item.path is None or is_packed(item.file) or text_bytes(item) > shard_bytes
