"""Readings: items of a source, joined or cut into units of work.

A unit is about one document shard. A part of a huge file is a range of bytes between lines, or of Parquet row groups.
The cuts depend on the file's bytes and on the target alone, so any number of workers gives the same parts. Each record
keeps the number that it has in the whole file, which is why a plain file is read once to count its line ends (a pass
without parsing). A compressed file, a WARC and a tar cannot be cut without reading them from their start: one process
reads them, and `ingest` begins a new document shard whenever one is full.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from data_pipeline.readers.archive import is_zip
from data_pipeline.readers.file_types.endings import COMPRESSED_WITHIN
from data_pipeline.readers.hub import local_files
from data_pipeline.readers.items import FilePart, SourceItem, hub_items
from data_pipeline.readers.local import find_paths
from data_pipeline.readers.parquet_pages import row_groups
from data_pipeline.readers.remote import find_remote
from data_pipeline.readers.sources import HubSource, JsonlSource, PackageSource, ParquetSource, Source, SyntheticSource
from data_pipeline.readers.streams import PACKED, blocks, open_source
from governance.config import Section
from governance.files import write_json
from governance.parallel import Shard, ShardMade, map_shards
from governance.stage import Recipe, Runtime

_NEWLINE = 10
PACKED_RATIO = 4  # text in a byte of a packed file or Parquet, to size shards by; measured 2.5 to 5 on prose


@dataclass(frozen=True)
class Reading:
    """The work of one shard: consecutive files of one source."""

    source: Source
    items: tuple[SourceItem, ...]
    shard_bytes: int = 1 << 62
    """Bytes of text after which a document shard is full and another begins."""
    beside: tuple[SourceItem, ...] = ()
    """Files that decide how the items are read: hosts' statements on a web archive's pages, own code."""


def is_packed(name: str) -> bool:
    """Return whether a file of this name holds more text than bytes."""
    return name.endswith((*PACKED, *COMPRESSED_WITHIN))


def text_bytes(item: SourceItem) -> int:
    """Approximate text bytes of an item."""
    if item.part:
        return item.part.bytes
    return item.bytes * (PACKED_RATIO if is_packed(item.file) else 1)


def has_lines(source: Source, item: SourceItem) -> bool:
    """Return whether an item is plain JSON Lines."""
    if isinstance(source, HubSource):
        return item.file.endswith(".jsonl")
    return isinstance(source, JsonlSource) and not is_packed(item.file)


def has_row_groups(source: Source, item: SourceItem) -> bool:
    """Return whether an item can be cut between its row groups."""
    if item.path is None:
        return False
    return isinstance(source, ParquetSource) or (isinstance(source, HubSource) and item.file.endswith(".parquet"))


def line_parts(path: Path, target: int) -> list[FilePart]:
    """Cut a plain file between lines.

    A part has at most `target` bytes, or one line. A file of white space alone is one part.
    """
    cuts = [(0, 0)]  # where a part begins, and the number of its first line
    last = (0, 0)  # where the last line so far begins, and its number
    size, blank = 0, True
    for block in blocks(path):
        starts = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE) + (size + 1)
        # The certain cuts of this block: the last line that still fits the part ends it.
        while (fit := int(np.searchsorted(starts, cuts[-1][0] + target, side="right"))) < len(starts):
            if fit and starts[fit - 1] > cuts[-1][0]:
                cuts.append((int(starts[fit - 1]), last[1] + fit))
            elif last[0] > cuts[-1][0]:
                cuts.append(last)
            else:  # a line longer than the target is a part of its own
                cuts.append((int(starts[fit]), last[1] + fit + 1))
        if len(starts):
            last = (int(starts[-1]), last[1] + len(starts))
        size += len(block)
        blank = blank and block.isspace()
    if size - cuts[-1][0] > target and last[0] > cuts[-1][0]:
        cuts.append(last)
    if blank:
        cuts = cuts[:1]
    ends = [*(begin for begin, _ in cuts[1:]), size]
    return [
        FilePart(begin, end, first, end - begin) for (begin, first), end in zip(cuts, ends, strict=True) if end > begin
    ]


def group_parts(path: Path, target: int) -> list[FilePart]:
    """Cut a Parquet file between row groups.

    A part has at most `target` bytes, or one group. There are no parts where the footer cannot be read: the file is
    then read whole, which yields its fault.
    """
    parts: list[FilePart] = []
    begin = first = rows = size = 0
    with open_source(path) as source:
        try:
            groups = row_groups(source)
        except ValueError:
            return []
    for index, group in enumerate(groups):
        if size and size + group.unpacked > target:
            parts.append(FilePart(begin, index, first, size))
            begin, first, rows, size = index, first + rows, 0, 0
        rows += group.rows
        size += group.unpacked
    return [*parts, FilePart(begin, len(groups), first, size)] if groups else []


def find_lines(section: Section, work: tuple[Path, int], path_of: Callable[[str], Path]) -> ShardMade:
    """Write down where a plain file of lines is cut."""
    path = path_of("parts")
    write_json(path, [asdict(part) for part in line_parts(*work)])
    return ShardMade({"parts": path}, {})


def cut_files(
    sources: Sequence[Source],
    files: Sequence[Sequence[SourceItem]],
    shard_bytes: int,
    recipe: Recipe,
    folder: Path,
    runtime: Runtime,
) -> list[list[SourceItem]]:
    """Items of each source, with large ones cut into parts.

    The workers share the pass over files of lines.
    """
    parts: dict[tuple[str, str], list[FilePart]] = {}
    lines: list[tuple[str, SourceItem]] = []
    for source, items in zip(sources, files, strict=True):
        for item in (item for item in items if text_bytes(item) > shard_bytes):
            if has_row_groups(source, item):
                parts[source.name, item.key] = group_parts(item.local, shard_bytes)
            elif has_lines(source, item):
                lines.append((source.name, item))
    shards = [
        Shard(f"{number:06d}-{name}", ("lines", item.digest, str(shard_bytes)), (item.local, shard_bytes))
        for number, (name, item) in enumerate(lines)
    ]
    for (name, item), done in zip(lines, map_shards(recipe, find_lines, shards, folder, runtime, ".json"), strict=True):
        written = json.loads((runtime.root / done.outputs["parts"].path).read_bytes())
        parts[name, item.key] = [FilePart(**values) for values in written]
    cut: list[list[SourceItem]] = []
    for source, items in zip(sources, files, strict=True):
        cut.append([])
        for item in items:
            pieces = parts.get((source.name, item.key), [])
            cut[-1] += [replace(item, part=part) for part in pieces] if len(pieces) > 1 else [item]
    return cut


def is_stream(source: Source, archive: SourceItem) -> bool:
    """Return whether an archive's members form one stream (tar)."""
    return isinstance(source, PackageSource) and not is_zip(archive.local)


def plan(
    source: Source,
    items: Sequence[SourceItem],
    shard_bytes: int,
    beside: Sequence[SourceItem] = (),
    *,
    whole: bool = False,
) -> list[Reading]:
    """Join consecutive files up to `shard_bytes` of text.

    All of them are joined where they can only be read as a `whole`.
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


def expected_items(source: Source, folder: Path, shard_bytes: int, runtime: Runtime) -> list[SourceItem]:
    """Expected items of a source, from names and sizes alone.

    A remote item of unknown size counts as a full shard: a package, a teacher's answers, a data set of the hub that is
    streamed, each file that a URL names.

    Raises:
        MissingInput: a file is missing, or its server does not answer.
    """
    if isinstance(source, PackageSource | SyntheticSource):
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
