"""Members of the archives that packages come in: wheels and zips, source archives (tar), Debian packages.

Members are visited in the archive's own order, which its digest fixes, and are read as streams: nothing is unpacked
to disk and no script of a package is ever run. A zip inside a zip is opened in place, its members are named
`outer.zip/inner.csv`. Where an archive holds one name twice, the second is called `1;name`.
"""

from __future__ import annotations

import fnmatch
import lzma
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_pipeline.readers.streams import BLOCK_BYTES, TornStream, open_source
from governance.errors import MissingInput

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError)
_ENCRYPTED = RuntimeError  # what zipfile raises for a member that wants a password
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60


@dataclass(frozen=True)
class Member:
    """One file of an archive; `open` may be called only before the next member is asked for."""

    name: str
    ordinal: int
    size_bytes: int
    """When unpacked."""
    open: Callable[[], IO[bytes]]


def members(path: Path, patterns: Iterable[str]) -> Iterator[Member]:
    """The files of an archive whose names match one of the shell patterns (`*` matches `/` too), in its order.

    Raises:
        MissingInput: it is no archive of a known kind, or is cut short.
    """
    wanted = tuple(patterns)
    found = _zip_members(path, wanted) if zipfile.is_zipfile(path) else _tar_members(path, wanted)
    names: Counter[str] = Counter()
    try:
        for ordinal, (name, size, opener) in enumerate(found):
            again = names[name]
            names[name] += 1
            yield Member(f"{again};{name}" if again else name, ordinal, size, opener)
    except _DAMAGE as error:
        raise MissingInput(
            f"{path}: cannot be read as an archive: {error}. Remove its folder, so that it is fetched again."
        ) from error


def read_blocks(member: Member) -> Iterator[bytes]:
    """The bytes of one member.

    Raises:
        TornStream: it is damaged, encrypted, or packed in a way that Python cannot unpack.
    """
    try:
        with member.open() as source:
            while block := source.read(BLOCK_BYTES):
                yield block
    except (*_DAMAGE, _ENCRYPTED) as error:
        raise TornStream("unreadable_member") from error


_Found = tuple[str, int, Callable[[], IO[bytes]]]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _zip_members(path: Path, patterns: tuple[str, ...]) -> Iterator[_Found]:
    with open_source(path) as source, zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if info.is_dir() or not _matches(info.filename, patterns):
                continue
            if info.filename.endswith(".zip"):
                yield from _inner_zip(archive, info)
            else:
                yield info.filename, info.file_size, _opener(archive, info)


def _inner_zip(outer: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[_Found]:
    try:
        with outer.open(info) as source, zipfile.ZipFile(source) as inner:
            for item in inner.infolist():
                if not item.is_dir():
                    yield f"{info.filename}/{item.filename}", item.file_size, _opener(inner, item)
    except (*_DAMAGE, _ENCRYPTED):
        yield info.filename, info.file_size, _opener(outer, info, broken=True)


def _opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo, *, broken: bool = False) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        if broken:
            raise zipfile.BadZipFile(f"{info.filename} is no whole zip")
        return archive.open(info)

    return open_member


def _tar_members(path: Path, patterns: tuple[str, ...]) -> Iterator[_Found]:
    with open_source(path) as source, _open_tar(source) as archive:
        for info in archive:
            name = info.name.removeprefix("./")
            if info.isfile() and _matches(name, patterns):
                yield name, info.size, _tar_opener(archive, info)


def _tar_opener(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        member = archive.extractfile(info)
        if member is None:
            raise tarfile.ReadError(f"{info.name} is no file")
        return member

    return open_member


def _open_tar(source: IO[bytes]) -> tarfile.TarFile:
    """Read a tar as a stream; in a Debian package (deb(5): an ar archive) the tar is its member data.tar.*."""
    compression = ""
    if source.read(len(_AR_MAGIC)) == _AR_MAGIC:
        compression = _seek_data(source)
    else:
        source.seek(0)
    if compression == ".zst":
        import zstandard

        reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(source, read_across_frames=True)
        return tarfile.open(fileobj=reader, mode="r|")
    return tarfile.open(fileobj=source, mode="r|*")


def _seek_data(source: IO[bytes]) -> str:
    """Move to the start of data.tar.* in an ar archive and return the end of its name."""
    while len(header := source.read(_AR_HEADER_BYTES)) == _AR_HEADER_BYTES:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        if name.startswith("data.tar"):
            return name.removeprefix("data.tar")
        size = int(header[48:58])
        source.seek(size + size % 2, 1)  # members start at even offsets
    raise tarfile.ReadError("the Debian package has no data.tar")
