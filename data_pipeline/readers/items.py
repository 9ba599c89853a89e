"""Files of a source with their digests, local or fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipeline.readers.file_types.pair_files import split_sides
from data_pipeline.readers.hub import list_hub, local_files
from data_pipeline.readers.local import FoundFiles, find_files, find_paths
from data_pipeline.readers.package import fetch
from data_pipeline.readers.pages.extraction import check_installed
from data_pipeline.readers.remote import fetch_remote, find_remote
from data_pipeline.readers.sources import (
    HtmlSource,
    HubSource,
    OwnSource,
    PackageSource,
    ParallelSource,
    Source,
    SyntheticSource,
    WarcSource,
)
from data_pipeline.readers.text import check_endings
from governance.errors import ManifestError
from governance.file_digests import Digests
from governance.manifest import Input, Manifest, Output
from governance.own_code import find_code, load
from governance.stage import Runtime


@dataclass(frozen=True)
class FilePart:
    """A range of a file's bytes or row groups, `end` exclusive."""

    begin: int
    end: int
    first: int
    """The number of its first record within the file."""
    bytes: int
    """Unpacked."""


@dataclass(frozen=True)
class SourceItem:
    """One file: local, member of an archive, or on the hub."""

    file: str
    """Its name within the source."""
    path: Path | None
    digest: str
    """SHA-256 of the file, or of the archive; for the hub its commit."""
    bytes: int
    member: int | None = None
    part: FilePart | None = None
    """Range of its records, where a huge file is cut."""
    facts: tuple[int, ...] = ()
    """Size, times and inode of a local file when its digest was taken (`Digests.facts`)."""

    @property
    def key(self) -> str:
        """Identity of its records: digest, member, name and part."""
        part = f" {self.part.begin} {self.part.end} {self.part.first}" if self.part else ""
        return f"{self.digest} {self.member} {self.file}{part}"

    @property
    def local(self) -> Path:
        """Its path; only a data set of the hub has none."""
        assert self.path is not None, "a data set of the hub has no file"
        return self.path


@dataclass(frozen=True)
class SourceFiles:
    """A source, its files, and those that decide how they are read."""

    source: Source
    """At its commit, where it is of the hub."""
    items: list[SourceItem]
    beside: list[SourceItem]
    """Files without text: hosts' statements on a web archive's pages, own code."""
    unread: list[tuple[str, str]]
    """Path and reason of each file that may hold records and is not read."""

    def inputs(self) -> list[Input]:
        """Each file by its digest, as an input of an artifact."""
        return [
            Input(stage="file" if item.path else "hub", digest=item.digest, path=f"{self.source.name}/{item.file}")
            for item in (*self.items, *self.beside)
        ]


def list_files(source: Source, folder: Path, digests: Digests, runtime: Runtime) -> SourceFiles:
    """The files that a source is made from, with their digests.

    Remote files are fetched if they are missing.

    Raises:
        MissingInput: a file, a package or an index is missing.
        ManifestError: a package's archive is not what was fetched, or not what the source pins.
    """
    fetched: list[tuple[str, Manifest]] = []
    if isinstance(source, SyntheticSource):
        raise TypeError(f"{source.name}: its files are made by data_pipeline/synthetic")
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
    outputs = [(name or Path(manifest.outputs[0].path).name, manifest.outputs[0]) for name, manifest in fetched]
    items = fetched_items(outputs, digests, runtime.root)
    beside: list[tuple[str, Path]] = []
    if isinstance(source, WarcSource) and source.opt_out_paths:
        found = find_files(source.opt_out_paths, folder, f"source {source.name}", follow_links=source.follow_links)
        beside = [(f"opt_out/{file.name}", file.path) for file in found]
    elif isinstance(source, OwnSource):
        code = find_code(source.reader, folder, f"source {source.name}: reader")
        beside = [(f"code/{name}", path) for name, path in code.named()]
    local, more = (
        [
            SourceItem(name, path, digests.of(path), path.stat().st_size, facts=digests.facts(path))
            for name, path in files
        ]
        for files in ([(file.name, file.path) for file in here.files], beside)
    )
    items += local
    if isinstance(source, ParallelSource):
        items, more = split_sides(source.name, source, items)
    return SourceFiles(source, items, more, here.unread)


def fetched_items(outputs: Iterable[tuple[str, Output]], digests: Digests, root: Path) -> list[SourceItem]:
    """Items of files that are artifacts below the root, by name.

    Raises:
        ManifestError: one was altered since.
    """
    items = []
    for name, output in outputs:
        path = root / output.path
        if digests.of(path) != output.sha256:
            raise ManifestError(f"{path}: was altered after it was fetched. Remove its folder; it is fetched again.")
        items.append(SourceItem(name, path, output.sha256, output.bytes, facts=digests.facts(path)))
    return items


def hub_items(source: HubSource, runtime: Runtime) -> list[SourceItem]:
    """An item for each listed file, else one for all rows."""
    listing = list_hub(source, runtime)
    whole = [SourceItem(source.dataset, None, listing.commit, 0)]
    files = listing.files
    return [SourceItem(f.name, None, f.sha256 or f"{listing.commit}:{f.name}", f.bytes) for f in files] or whole


def find_source(source: Source, folder: Path) -> Iterator[Callable[[], object]]:
    """Checks for a source's local files, without reading them.

    Each check raises what `list_files` would raise.
    """
    if isinstance(source, HtmlSource):
        yield partial(check_installed, source.extraction)
    if isinstance(source, HubSource):
        yield from () if source.revision else (partial(local_files, source, folder),)
    elif not isinstance(source, PackageSource | SyntheticSource) and not source.elsewhere:
        yield partial(find_paths, source, folder)
    if isinstance(source, OwnSource):
        yield lambda: load(find_code(source.reader, folder, f"source {source.name}: reader"))
    if isinstance(source, WarcSource) and source.opt_out_paths:
        yield partial(find_files, source.opt_out_paths, folder, source.name, follow_links=source.follow_links)
