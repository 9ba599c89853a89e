"""From items to records: which reader reads which file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_pipeline.readers.archive import members, read_blocks
from data_pipeline.readers.file_types.arrow_files import read_arrow_file, read_orc
from data_pipeline.readers.file_types.delimited import read_csv
from data_pipeline.readers.file_types.pair_files import read_pairs
from data_pipeline.readers.file_types.teacher_answers import read_answers
from data_pipeline.readers.file_types.web_captures import read_wacz, read_wet
from data_pipeline.readers.hub import read_hub, read_hub_file, read_json
from data_pipeline.readers.items import SourceItem
from data_pipeline.readers.own_reader import read_own
from data_pipeline.readers.parquet import read_parquet
from data_pipeline.readers.parts import Reading, has_row_groups
from data_pipeline.readers.record import Record, RecordFault
from data_pipeline.readers.sources import (
    ArrowSource,
    DelimitedSource,
    HubSource,
    JsonlSource,
    MediawikiSource,
    OrcSource,
    OwnSource,
    PackageSource,
    ParallelSource,
    ParquetSource,
    Source,
    SyntheticSource,
    TextSource,
    WarcSource,
    WetSource,
)
from data_pipeline.readers.streams import blocks, byte_range, plain_name
from data_pipeline.readers.text import ending_of, read_jsonl, read_member

ReadFile = Callable[[SourceItem], Iterator[Record | RecordFault]]
"""Read one file, or its part."""


def read_items(work: Reading, passed: Counter[str]) -> Iterator[Record | RecordFault]:
    """The records and faults of consecutive files of one source, in order.

    An empty file is one fault.

    `passed` counts, by reason, what the files hold besides records.
    """
    if isinstance(work.source, PackageSource):
        readings = _members(work.source, work.items)
    else:
        read = _file_reader(work, passed)
        readings = ((item.file, item.part is None, read(item)) for item in work.items)
    for file, whole, pieces in readings:
        empty, before = whole, passed.total()
        for piece in pieces:
            yield piece
            empty = False
        if empty and passed.total() == before:
            yield RecordFault(file, 0, "empty_file", "")


def _file_reader(work: Reading, passed: Counter[str]) -> ReadFile:
    """The reader of a source's files, by its type."""
    source = work.source
    if isinstance(source, WarcSource):
        from data_pipeline.readers.warc import load_host_rules, read_warc  # loads the parsers of HTML

        rules = load_host_rules(tuple(item.local for item in work.beside)) if work.beside else None
        return lambda item: (
            read_wacz(item.local, item.file, source, rules, passed)
            if item.file.endswith(".wacz")
            else read_warc(item.local, item.file, source, rules=rules, passed=passed)
        )
    if isinstance(source, WetSource):
        return lambda item: read_wet(item.local, item.file, source, passed)
    if isinstance(source, ParallelSource):
        return lambda item: read_pairs(item, source, work.beside, passed)
    if isinstance(source, MediawikiSource):
        from data_pipeline.readers.file_types.mediawiki import read_mediawiki  # loads the parsers of pages

        return lambda item: read_mediawiki(item.local, item.file, source, passed)
    if isinstance(source, SyntheticSource):
        return lambda item: read_answers(blocks(item.local), item.file, source)
    if isinstance(source, OwnSource):
        code = [(item.file.removeprefix("code/"), item.local, item.digest) for item in work.beside]
        return lambda item: read_own(item.local, item.file, source, code)
    return lambda item: _read(source, item)


def _members(
    source: PackageSource, items: Sequence[SourceItem]
) -> Iterator[tuple[str, bool, Iterator[Record | RecordFault]]]:
    """Each wanted member's name, that it is read whole, and its records."""
    wanted = {item.member for item in items}
    last = max(item.member or 0 for item in items)
    for member in members(items[0].local, source.files):
        if member.ordinal in wanted:
            language = source.language_of(member.name)
            ending = ending_of(member.name)
            pieces = read_blocks(member)
            records = read_member(pieces, member.name, ending, source.fields, language, source.extraction)
            yield member.name, True, records
        if member.ordinal == last:
            return


def _read(source: Source, item: SourceItem) -> Iterator[Record | RecordFault]:
    """The records of one file, or of its part.

    The name of a file of the hub determines its kind.
    """
    if item.part:
        if has_row_groups(source, item):
            groups = range(item.part.begin, item.part.end)
            return read_parquet(item.local, item.file, source.fields, groups, item.part.first)
        pieces = byte_range(item.local, item.part.begin, item.part.end)
        return read_jsonl(pieces, item.file, source.fields, item.part.first)
    if isinstance(source, TextSource):
        ending, language = ending_of(plain_name(item.file)), source.language_of(item.file)
        return read_member(blocks(item.local), item.file, ending, source.fields, language, source.extraction)
    if isinstance(source, HubSource) and item.path is None:
        if item.file == source.dataset:
            return read_hub(source)
        digest, _, of_commit = item.digest.partition(":")
        return read_hub_file(source, source.revision, item.file, "" if of_commit else digest)
    if isinstance(source, ArrowSource | OrcSource):
        return (read_orc if isinstance(source, OrcSource) else read_arrow_file)(item.local, item.file, source.fields)
    if isinstance(source, DelimitedSource):
        return read_csv(blocks(item.local), item.file, source.fields, source.dialect)
    ending = "" if isinstance(source, JsonlSource | ParquetSource) else Path(plain_name(item.local.name)).suffix
    if isinstance(source, ParquetSource) or ending == ".parquet":
        return read_parquet(item.local, item.file, source.fields)
    if isinstance(source, JsonlSource) or ending == ".jsonl":
        return read_jsonl(blocks(item.local), item.file, source.fields)
    return (read_arrow_file if ending == ".arrow" else read_json)(item.local, item.file, source.fields)
