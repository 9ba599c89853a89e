"""Reader of source trees: folders, checkouts and archives of source files.

Each file of a known programming language is a record with its repository, path, language and licence; others are
passed over and counted: `empty_file`, `binary_file` (a zero byte in its first 8,000, as git decides),
`no_programming_language`, `licence_file`. Archives (.zip, .whl, .tar and packed ones) are read member by member; a
torn one is a fault after the members before the tear.

The licence is that of the file's header, else that of the nearest licence file in its folder or above, within the same
archive, else the source's own (`licences.py`). A wheel's licence files count at their paths in its source tree. Text
is UTF-8, or UTF-16 with a byte-order mark; anything else is a fault, `not_utf8`.

Price: one pass over the files, two over an archive (the first one finds its licence files); a licence file is read
by each shard that has files of its folder or below. Memory: one file, 64 MiB at most.
"""

from __future__ import annotations

import codecs
import functools
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from data_pipeline.code.languages import programming_language
from data_pipeline.code.licences import (
    LICENCE_FILE_BYTES,
    LICENCE_RULES,
    UNKNOWN,
    deciding_licence_file,
    is_licence_file,
    joined,
    licence_of_file,
    licence_of_header,
)
from data_pipeline.documents import CODE_LANGUAGE
from data_pipeline.readers.archive import members, read_blocks
from data_pipeline.readers.items import SourceFiles, SourceItem
from data_pipeline.readers.parts import Reading
from data_pipeline.readers.record import Record, RecordFault, encodable, sample
from data_pipeline.readers.sources import CodeSource, Source, is_code_archive, licence_lists
from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream, byte_range, end_at_machine_error
from governance.errors import MissingInput

BINARY_CHARACTERS = 8000  # bytes of a file, as git decides
_BESIDE = "licence/"
_WHEEL_LICENCE = re.compile(r"[^/]+\.dist-info/(licenses/)?")
_LIBRARIES = ("Pygments", "license-expression", "licenseclassifier")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def with_licence_files(files: SourceFiles) -> SourceFiles:
    """A source's files, with licence files to read the others by."""
    found = [replace(item, file=_BESIDE + item.file) for item in files.items if is_licence_file(item.file)]
    return replace(files, beside=[*files.beside, *found])


def with_near_licence_files(work: Reading) -> Reading:
    """A reading with only the licence files above its files."""
    folders = {folder for item in work.items for folder in PurePosixPath(item.file).parents}
    near = [item for item in work.beside if PurePosixPath(item.file.removeprefix(_BESIDE)).parent in folders]
    return replace(work, beside=tuple(near))


def code_libraries(sources: Iterable[Source]) -> dict[str, str]:
    """Versions of libraries and rules that decide languages and licences.

    There are none where no source is of code.
    """
    of_code = any(licence_lists(source) is not None for source in sources)
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {**versions, "licence_rules": str(LICENCE_RULES)} if of_code else {}


def read_code(work: Reading, passed: Counter[str]) -> Iterator[Record | RecordFault]:
    """The records and faults of consecutive files of a source of code.

    `passed` counts the files that are not records, by reason.
    """
    assert isinstance(work.source, CodeSource), "the reader of sources of code"
    source = work.source
    licences = FolderLicences()
    for item in work.beside:
        licences.add(item.file.removeprefix(_BESIDE), _item_blocks(item))
    for item in work.items:
        if is_code_archive(item.file):
            pieces = _read_archive(source, item, passed)
        else:
            pieces = _read_file(source, item.file, _item_blocks(item), licences, passed)
        yield from pieces


class FolderLicences:
    """Licences of folders, from the licence files in them."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, tuple[str, str]]] = {}

    def add(self, file: str, pieces: Iterable[bytes], place: str = "") -> None:
        """Read a licence file, as far as it can be known.

        `place` is the path that it counts at, by default its own. Two different files at one place are a doubt.
        """
        data = bytearray()
        try:
            for piece in pieces:
                data += piece
                if len(data) > LICENCE_FILE_BYTES:
                    break
        except TornStream:
            data.clear()
        path, licence = PurePosixPath(place or file), _known_file(bytes(data)) if data else UNKNOWN
        there = self._folders.setdefault(str(path.parent), {})
        other, _ = there.get(path.name, (licence, file))
        there[path.name] = (licence if licence == other else UNKNOWN, file)

    def nearest(self, file: str) -> tuple[str, str]:
        """The licence of the nearest folder with licence files, and their names."""
        for folder in PurePosixPath(file).parents:
            if found := self._folders.get(str(folder)):
                names = deciding_licence_file(sorted(found))
                stated = list(dict.fromkeys(found[name][0] for name in names))
                return joined(stated), ", ".join(found[name][1] for name in names)
        return "", ""


@functools.lru_cache(maxsize=4096)
def _known_file(data: bytes) -> str:
    return licence_of_file(data) or UNKNOWN


def _item_blocks(item: SourceItem) -> Iterator[bytes]:
    return byte_range(item.local, 0, item.bytes)


def _read_file(
    source: CodeSource, file: str, pieces: Iterable[bytes], licences: FolderLicences, passed: Counter[str]
) -> Iterator[Record | RecordFault]:
    """The record or fault of one file, unless it is skipped."""
    if is_licence_file(file):
        passed["licence_file"] += 1
        return
    data = bytearray()
    try:
        for piece in pieces:
            data += piece
            if len(data) > MAX_RECORD_BYTES or _is_binary(data):
                break
    except TornStream as error:
        yield RecordFault(file, 0, error.reason, sample(bytes(data[:1000])))
        return
    if not data or _is_binary(data):
        passed["binary_file" if data else "empty_file"] += 1
        return
    try:
        text = _decoded(bytes(data[: MAX_RECORD_BYTES + 1]))
    except UnicodeDecodeError:
        text = None
    language = programming_language(file, "" if text is None else text)
    if not language:
        passed["no_programming_language"] += 1
    elif len(data) > MAX_RECORD_BYTES or text is None:
        reason = "not_utf8" if len(data) <= MAX_RECORD_BYTES else "file_too_long"
        yield RecordFault(file, 0, reason, sample(bytes(data[:1000])))
    else:
        yield _record(source, file, text, language, licences)


def _is_binary(data: bytearray) -> bool:
    return 0 in data[:BINARY_CHARACTERS] and not data.startswith(_UTF16)


def _decoded(data: bytes) -> str:
    if data.startswith(_UTF16):
        return data.decode("utf-16")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")


def _record(source: CodeSource, file: str, text: str, language: str, licences: FolderLicences) -> Record:
    licence, where = licence_of_header(text), "header"
    if not licence:
        licence, where = licences.nearest(file)
    repository, path = source.place_of(file)
    values = {
        "repository": repository,
        "path": path,
        "programming_language": language,
        "licence_from": where or "source",
    }
    kept = {name: encodable(values[name]) for name in source.columns}
    columns = json.dumps(kept, ensure_ascii=False, separators=(",", ":")) if kept else ""
    return Record(text, file, 0, language=CODE_LANGUAGE, licence=licence, columns=columns)


def _read_archive(source: CodeSource, archive: SourceItem, passed: Counter[str]) -> Iterator[Record | RecordFault]:
    licences = FolderLicences()
    try:
        for member in members(archive.local, ("*",)):
            if is_licence_file(member.name):
                place = _wheel_place(member.name) if archive.file.lower().endswith(".whl") else member.name
                licences.add(_name(archive, member.name), read_blocks(member), _name(archive, place))
    except MissingInput as error:  # a torn archive: the second pass reports it
        end_at_machine_error(error.__cause__ or error, archive.local)
    try:
        for member in members(archive.local, ("*",)):
            yield from _read_file(source, _name(archive, member.name), read_blocks(member), licences, passed)
    except MissingInput as error:
        end_at_machine_error(error.__cause__ or error, archive.local)
        words = f"cannot be read as an archive: {error.__cause__}"
        yield RecordFault(archive.file, 0, "unreadable_member", sample(words))


def _wheel_place(name: str) -> str:
    """Path at which a licence file of a wheel counts.

    A wheel keeps the files of its source tree in its `.dist-info` folder (PEP 639: in `licenses` there).
    """
    found = _WHEEL_LICENCE.match(name)
    return name[found.end() :] if found else name


def _name(archive: SourceItem, member: str) -> str:
    return f"{archive.file}/{member}"
