"""From items to records: which reader reads which file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from data_pipeline.readers.archive import members, read_blocks
from data_pipeline.readers.hub import read_hub, read_hub_file, read_local
from data_pipeline.readers.items import Reading, SourceItem, has_row_groups
from data_pipeline.readers.jsonl import read_jsonl
from data_pipeline.readers.own_reader import read_own
from data_pipeline.readers.parquet import read_parquet
from data_pipeline.readers.parts import FilePart
from data_pipeline.readers.record import Record, RecordFault
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
from data_pipeline.readers.streams import blocks, byte_range, plain_name
from data_pipeline.readers.text import ending_of, read_member


def read_items(work: Reading, passed: Counter[str]) -> Iterator[Record | RecordFault]:
    """The records and faults of consecutive files of one source, in order.

    An empty file is one fault.

    `passed` counts, by reason, what the files hold besides records.
    """
    if isinstance(work.source, PackageSource):
        readings = _members(work.source, work.items)
    elif isinstance(work.source, WarcSource):
        readings = _archives(work.source, work, passed)
    elif isinstance(work.source, OwnSource):
        readings = _own(work.source, work)
    else:
        readings = _files(work.source, work.items)
    for file, whole, pieces in readings:
        empty, before = whole, passed.total()
        for piece in pieces:
            yield piece
            empty = False
        if empty and passed.total() == before:
            yield RecordFault(file, 0, "empty_file", "")


_Readings = Iterator[tuple[str, bool, Iterator[Record | RecordFault]]]
"""Each file's name, whether it is read whole, and what is read."""


def _files(source: Source, items: Sequence[SourceItem]) -> _Readings:
    for item in items:
        yield item.file, item.part is None, _read(source, item)


def _archives(source: WarcSource, work: Reading, passed: Counter[str]) -> _Readings:
    from data_pipeline.readers.warc import load_host_rules, read_warc  # loads the parsers of HTML

    rules = load_host_rules(item.local for item in work.beside) if work.beside else None
    for item in work.items:
        yield item.file, True, read_warc(item.local, item.file, source, rules=rules, passed=passed)


def _own(source: OwnSource, work: Reading) -> _Readings:
    code = [(item.file.removeprefix("code/"), item.local, item.digest) for item in work.beside]
    for item in work.items:
        yield item.file, True, read_own(item.local, item.file, source, code)


def _members(source: PackageSource, items: Sequence[SourceItem]) -> _Readings:
    wanted = {item.member for item in items}
    last = max(item.member or 0 for item in items)
    for member in members(items[0].local, source.files):
        if member.ordinal in wanted:
            language = source.language_of(member.name)
            ending = ending_of(member.name)
            yield member.name, True, read_member(read_blocks(member), member.name, ending, source.fields, language)
        if member.ordinal == last:
            return


def _read(source: Source, item: SourceItem) -> Iterator[Record | RecordFault]:
    if item.part:
        return _read_part(source, item, item.part)
    if isinstance(source, JsonlSource):
        return read_jsonl(blocks(item.local), item.file, source.fields)
    if isinstance(source, ParquetSource):
        return read_parquet(item.local, item.file, source.fields)
    if isinstance(source, TextSource):
        ending = ending_of(plain_name(item.file))
        language = source.language_of(item.file)
        return read_member(blocks(item.local), item.file, ending, source.fields, language)
    assert isinstance(source, HubSource), "the last of the kinds"
    if item.path:
        return read_local(item.path, item.file, source.fields)
    if item.file == source.dataset:
        return read_hub(source)
    digest, _, of_commit = item.digest.partition(":")
    return read_hub_file(source, source.revision, item.file, "" if of_commit else digest)


def _read_part(source: Source, item: SourceItem, part: FilePart) -> Iterator[Record | RecordFault]:
    if has_row_groups(source, item):
        return read_parquet(item.local, item.file, source.fields, range(part.begin, part.end), part.first)
    return read_jsonl(byte_range(item.local, part.begin, part.end), item.file, source.fields, part.first)
