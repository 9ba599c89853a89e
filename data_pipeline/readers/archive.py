"""Members of package archives: wheel, zip, tar, Debian package.

Members are visited in the archive's own order, which its digest fixes, and are read as streams; no script of a package
is ever run. A zip inside a zip is unpacked to a nameless temporary file (in memory up to 16 MiB), its members are named
`outer.zip/inner.csv`, at most `MAX_DEPTH` zips deep. Where an archive holds one name twice, the second is called
`1;name`.

A member that unpacks to absurdly more than it takes (`streams.is_bomb`), or with which the archive as a whole would, is
not opened: reading it raises `TornStream("decompression_bomb")`. In a tar, which is one stream, the bound holds for the
stream, and for the place of the next member: after it there is one last member, of the archive's own name, that cannot
be read.
"""

from __future__ import annotations

import fnmatch
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from data_pipeline.readers.items import SourceItem
from data_pipeline.readers.sources import PackageSource
from data_pipeline.readers.streams import (
    BLOCK_BYTES,
    TornStream,
    end_at_machine_error,
    is_bomb,
    open_source,
    unpacked_file,
)
from data_pipeline.readers.text import check_endings
from governance.errors import MissingInput, storage_errors

MAX_DEPTH = 3
_DAMAGE = (  # ValueError: also a number of a tar's header that is none, or a name that is not UTF-8
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError,
    ValueError,
)  # fmt: skip
_ENCRYPTED = RuntimeError  # raised by zipfile for a member with a password
_IN_MEMORY_BYTES = 16 << 20
_END_RECORD_BYTES = (1 << 16) + 128  # the longest comment, the record and those of Zip64 before it
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60


@dataclass(frozen=True)
class Member:
    """One file of an archive.

    `open` may be called only before the next member is taken.
    """

    name: str
    size_bytes: int
    """Size when unpacked."""
    open: Callable[[], IO[bytes]]
    fault: str = ""
    """Reason why it cannot be read, where that is known without reading it; then `open` raises it."""
    ordinal: int = 0


def is_zip(path: Path) -> bool:
    """Return whether a file ends as a zip does.

    zipfile takes a failing device for another kind of file, so the end is read here first.

    Raises:
        MissingInput: the device fails.
    """
    try:
        with open_source(path) as source:
            source.seek(max(0, source.seek(0, os.SEEK_END) - _END_RECORD_BYTES))
            source.read(_END_RECORD_BYTES)
            return zipfile.is_zipfile(source)
    except OSError as error:
        end_at_machine_error(error, path)
        raise


def members(path: Path, patterns: Iterable[str]) -> Iterator[Member]:
    """Members of an archive that match a pattern, in archive order.

    Raises:
        MissingInput: the archive is of an unknown kind, or cut short.
    """
    wanted = tuple(patterns)
    found = _zip_members(path, wanted) if is_zip(path) else _tar_members(path, wanted)
    names: Counter[str] = Counter()
    try:
        for ordinal, member in enumerate(found):
            again = names[member.name]
            names[member.name] += 1
            name = f"{again};{member.name}" if again else member.name
            yield replace(member, name=name, ordinal=ordinal)
    except (*_DAMAGE, TornStream) as error:
        end_at_machine_error(error, path)
        raise MissingInput(
            f"{path}: cannot be read as an archive: {error}. Remove its folder, so that it is fetched again."
        ) from error


def archive_items(source: PackageSource, archive: SourceItem) -> list[SourceItem]:
    """The members of an archive that the source's patterns choose.

    Raises:
        MissingInput: none matches.
        ConfigError: one is of a kind that is not read.
    """
    found = list(members(archive.local, source.files))
    names: set[str] = set()
    for member in found:
        outer, inside, _ = member.name.partition(".zip/")
        names |= {member.name, f"{outer}.zip" if inside else member.name}
    for pattern in source.files:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise MissingInput(
                f"source {source.name}: no file in {archive.file} matches {pattern!r}. List the archive's names with: "
                f"python -m zipfile -l, tar -tf or dpkg-deb -c {archive.path}"
            )
    check_endings([member.name for member in found if not member.fault], source)
    return [
        SourceItem(member.name, archive.path, archive.digest, member.size_bytes, member.ordinal, facts=archive.facts)
        for member in found
    ]


def read_blocks(member: Member) -> Iterator[bytes]:
    """The bytes of one member.

    Raises:
        TornStream: it is damaged, encrypted, a bomb, or packed in a way that Python cannot unpack.
        MissingInput: the device fails while it is read.
    """
    try:
        with member.open() as source:
            while block := source.read(BLOCK_BYTES):
                yield block
    except TornStream as error:
        raise TornStream(error.reason if error.reason in _OWN_FAULTS else "unreadable_member") from error
    except (*_DAMAGE, _ENCRYPTED) as error:
        end_at_machine_error(error, Path(member.name))
        raise TornStream("unreadable_member") from error


_OWN_FAULTS = ("decompression_bomb", "nested_too_deep")


def _broken(name: str, size: int, fault: str) -> Member:
    def refuse() -> IO[bytes]:
        raise TornStream(fault)

    return Member(name, size, refuse, fault)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


class _Allowance:
    """Total unpacked size of an archive, inner zips included."""

    def __init__(self, packed: int) -> None:
        self._packed = packed
        self._unpacked = 0

    def grants(self, packed: int, unpacked: int) -> bool:
        """Return whether a member may be opened, and count it if so."""
        if is_bomb(packed, unpacked) or is_bomb(self._packed, self._unpacked + unpacked):
            return False
        self._unpacked += unpacked
        return True


def _zip_members(path: Path, patterns: tuple[str, ...]) -> Iterator[Member]:
    allowance = _Allowance(path.stat().st_size)
    with open_source(path) as source, zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not _is_folder(info) and _matches(info.filename, patterns):
                yield from _zip_member(archive, info, info.filename, allowance, 1)


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith("/")  # is_dir of Python 3.11 raises where a member has no name


def _zip_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, allowance: _Allowance, depth: int
) -> Iterator[Member]:
    # zipfile gives no more bytes than the directory says, so what it says is the bound.
    if not allowance.grants(info.compress_size, info.file_size):
        yield _broken(name, info.file_size, "decompression_bomb")
    elif not name.lower().endswith(".zip"):
        yield Member(name, info.file_size, lambda: archive.open(info))
    elif depth > MAX_DEPTH:
        yield _broken(name, info.file_size, "nested_too_deep")
    else:
        yield from _inner_zip(archive, info, name, allowance, depth)


def _inner_zip(
    outer: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, allowance: _Allowance, depth: int
) -> Iterator[Member]:
    try:
        # Read in place, each member would unpack everything before it again.
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file:
            with outer.open(info) as packed, storage_errors(Path(tempfile.gettempdir())):
                shutil.copyfileobj(packed, file, BLOCK_BYTES)
            with zipfile.ZipFile(file) as inner:
                for item in inner.infolist():
                    if not _is_folder(item):
                        yield from _zip_member(inner, item, f"{name}/{item.filename}", allowance, depth + 1)
    except (*_DAMAGE, _ENCRYPTED) as error:
        end_at_machine_error(error, Path(name))
        yield _broken(name, info.file_size, "unreadable_member")


def _tar_members(path: Path, patterns: tuple[str, ...]) -> Iterator[Member]:
    packed = path.stat().st_size
    try:
        with open_source(path) as source, _open_tar(source, path) as archive:
            for info in archive:
                name = info.name.removeprefix("./")
                if info.isfile() and _matches(name, patterns):
                    if is_bomb(packed, info.size):  # also a sparse member, whose holes take no bytes
                        yield _broken(name, info.size, "decompression_bomb")
                    else:
                        yield Member(name, info.size, _tar_opener(archive, info))
                # The library would look for the next header there, in steps of 10 KiB, however far after the end.
                if is_bomb(packed, archive.offset):
                    raise TornStream("decompression_bomb")
    except TornStream as error:
        if error.reason not in _OWN_FAULTS:
            raise
        yield _broken(path.name, 0, error.reason)


def _tar_opener(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        member = archive.extractfile(info)
        if member is None:
            raise tarfile.ReadError(f"{info.name} is not a file")
        return member

    return open_member


def _open_tar(source: IO[bytes], path: Path) -> tarfile.TarFile:
    """Read a tar as a stream.

    In a Debian package (deb(5): an ar archive) the tar is its member data.tar.*.
    """
    length = None
    if source.read(len(_AR_MAGIC)) == _AR_MAGIC:
        length = _seek_data(source)
    else:
        source.seek(0)
    return tarfile.open(fileobj=unpacked_file(source, path, length), mode="r|")


def _seek_data(source: IO[bytes]) -> int:
    """Seek to data.tar.* in an ar archive; return its size."""
    while len(header := source.read(_AR_HEADER_BYTES)) == _AR_HEADER_BYTES:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        try:
            size = int(header[48:58])
        except ValueError:
            break
        if name.startswith("data.tar"):
            return size
        source.seek(size + size % 2, 1)  # members start at even offsets
    raise tarfile.ReadError("the Debian package has no data.tar")
