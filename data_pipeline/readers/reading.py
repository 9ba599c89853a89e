"""From items to records: which reader reads which type of source.

`_READERS`, at the end, is the only place that knows; each format is read by one function in a file of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from data_pipeline.readers.parts import Reading
from data_pipeline.readers.record import Fields, Record, RecordFault
from data_pipeline.readers.sources import HubSource, MediawikiSource, OwnSource, PackageSource, TextSource, WarcSource
from data_pipeline.readers.streams import blocks, byte_range, plain_name
from data_pipeline.readers.text import ending_of, read_jsonl, read_member

Pieces = Iterator[Record | RecordFault]
"""Records and faults, in order: the yield of a reader."""


def read_items(work: Reading, passed: Counter[str]) -> Pieces:
    """The records and faults of consecutive files of one source, in order.

    An empty file is one fault.

    `passed` counts, by reason, what the files hold besides records.
    """
    if isinstance(work.source, PackageSource):
        readings = _members(work.source, work)
    else:
        read = _READERS[work.source.type]
        readings = ((item.file, item.part is None, read(item, work.source, work, passed)) for item in work.items)
    for file, whole, pieces in readings:
        empty, before = whole, passed.total()
        for piece in pieces:
            yield piece
            empty = False
        if empty and passed.total() == before:
            yield RecordFault(file, 0, "empty_file", "")


def _members(source: PackageSource, work: Reading) -> Iterator[tuple[str, bool, Pieces]]:
    """Each wanted member's name, that it is read whole, and its records."""
    wanted = {item.member for item in work.items}
    last = max(item.member or 0 for item in work.items)
    for member in members(work.items[0].local, source.files):
        if member.ordinal in wanted:
            language = source.language_of(member.name)
            ending = ending_of(member.name)
            pieces = read_blocks(member)
            records = read_member(pieces, member.name, ending, source.fields, language, source.extraction)
            yield member.name, True, records
        if member.ordinal == last:
            return


def _read_lines(item: SourceItem, fields: Fields) -> Pieces:
    if item.part is None:
        return read_jsonl(blocks(item.local), item.file, fields)
    return read_jsonl(byte_range(item.local, item.part.begin, item.part.end), item.file, fields, item.part.first)


def _read_row_groups(item: SourceItem, fields: Fields) -> Pieces:
    if item.part is None:
        return read_parquet(item.local, item.file, fields)
    return read_parquet(item.local, item.file, fields, range(item.part.begin, item.part.end), item.part.first)


def _read_text(item: SourceItem, source: TextSource) -> Pieces:
    ending, language = ending_of(plain_name(item.file)), source.language_of(item.file)
    return read_member(blocks(item.local), item.file, ending, source.fields, language, source.extraction)


def _read_data_set(item: SourceItem, source: HubSource) -> Pieces:
    """Rows of a data set's file, by its ending."""
    if item.path is None:
        if item.file == source.dataset:
            return read_hub(source)
        digest, _, of_commit = item.digest.partition(":")
        return read_hub_file(source, source.revision, item.file, "" if of_commit else digest)
    ending = Path(plain_name(item.path.name)).suffix
    if ending == ".parquet":
        return _read_row_groups(item, source.fields)
    if ending == ".jsonl":
        return _read_lines(item, source.fields)
    return (read_arrow_file if ending == ".arrow" else read_json)(item.path, item.file, source.fields)


def _read_web_archive(item: SourceItem, source: WarcSource, work: Reading, passed: Counter[str]) -> Pieces:
    from data_pipeline.readers.warc import load_host_rules, read_warc  # loads the parsers of HTML

    # The rules are read once a process: the next file finds them loaded.
    rules = load_host_rules(tuple(statement.local for statement in work.beside)) if work.beside else None
    if item.file.endswith(".wacz"):
        return read_wacz(item.local, item.file, source, rules, passed)
    return read_warc(item.local, item.file, source, rules=rules, passed=passed)


def _read_wiki(item: SourceItem, source: MediawikiSource, passed: Counter[str]) -> Pieces:
    from data_pipeline.readers.file_types.mediawiki import read_mediawiki  # loads the parsers of pages

    return read_mediawiki(item.local, item.file, source, passed)


def _read_with_own_code(item: SourceItem, source: OwnSource, work: Reading) -> Pieces:
    code = [(module.file.removeprefix("code/"), module.local, module.digest) for module in work.beside]
    return read_own(item.local, item.file, source, code)


_READERS: dict[str, Callable[[SourceItem, Any, Reading, Counter[str]], Pieces]] = {
    "jsonl": lambda item, source, work, passed: _read_lines(item, source.fields),
    "parquet": lambda item, source, work, passed: _read_row_groups(item, source.fields),
    "csv": lambda item, source, work, passed: read_csv(blocks(item.local), item.file, source.fields, source.dialect),
    "tsv": lambda item, source, work, passed: read_csv(blocks(item.local), item.file, source.fields, source.dialect),
    "arrow": lambda item, source, work, passed: read_arrow_file(item.local, item.file, source.fields),
    "orc": lambda item, source, work, passed: read_orc(item.local, item.file, source.fields),
    "text": lambda item, source, work, passed: _read_text(item, source),
    "warc": _read_web_archive,
    "wet": lambda item, source, work, passed: read_wet(item.local, item.file, source, passed),
    "mediawiki": lambda item, source, work, passed: _read_wiki(item, source, passed),
    "parallel": lambda item, source, work, passed: read_pairs(item, source, work.beside, passed),
    "own": lambda item, source, work, passed: _read_with_own_code(item, source, work),
    "hub": lambda item, source, work, passed: _read_data_set(item, source),
    "synthetic": lambda item, source, work, passed: read_answers(blocks(item.local), item.file, source),
}
"""Reader of one file of each type of source; packages and source code (`data_pipeline/code`) are read as a whole."""
