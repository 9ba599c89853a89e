"""Source files on this machine: which a pattern names, what each is called within its source, and its digest.

A file's name within its source does not change when the folder moves: it is the path below the folder that all of the
source's patterns share in front of their first wildcard.
"""

from __future__ import annotations

import glob
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from governance.errors import MissingInput, StorageError
from governance.files import sha256_file, write_json
from governance.log import get_logger

_SETTLED_NANOSECONDS = 2_000_000_000  # a file changed this lately can change again within one tick of its clock
_WILD = "*?["


@dataclass(frozen=True)
class LocalFile:
    """A source file of this machine."""

    name: str
    """Its name within the source."""
    path: Path


def find_files(patterns: tuple[str, ...], folder: Path, source: str) -> list[LocalFile]:
    """The files that the patterns name, each once, in the order of their names.

    Raises:
        MissingInput: a pattern names no file.
    """
    absolute = [os.path.normpath(os.path.join(glob.escape(str(folder.absolute())), pattern)) for pattern in patterns]
    shared = Path(os.path.commonpath([_fixed_part(pattern) for pattern in absolute]))
    found: dict[str, Path] = {}
    for pattern, written in zip(absolute, patterns, strict=True):
        paths = [Path(name) for name in glob.glob(pattern, recursive=True)]
        files = [path for path in paths if path.is_file()]
        if not files:
            what = "names folders only; add a pattern for their files, as /**/*.jsonl" if paths else "names no file"
            raise MissingInput(
                f"source {source}: {written!r} {what} (looked in {folder.absolute()}). Mend its `paths`."
            )
        found |= {path.relative_to(shared).as_posix(): path for path in files}
    return [LocalFile(name, found[name]) for name in sorted(found)]


def _fixed_part(pattern: str) -> str:
    """The folder in front of a pattern's first wildcard; an escaped `[[]` of the folder's own name is none."""
    fixed = []
    for part in Path(pattern).parent.parts:
        plain = part.replace("[*]", "\0").replace("[?]", "\1").replace("[[]", "\2")
        if any(wild in plain for wild in _WILD):
            break
        fixed.append(plain.replace("\0", "*").replace("\1", "?").replace("\2", "["))
    return os.path.join(*fixed)


class Digests:
    """SHA-256 of source files, remembered in `<root>/fetch/digests.json` so that a second run need not read them.

    What is remembered holds only for the same path, size, times and inode, and only for a file that had stood
    unchanged for two seconds when it was read. Nothing rests on this file: without it everything is read again.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / "fetch" / "digests.json"
        self._changed = False
        try:
            values = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            values = {}
        self._known: dict[str, list[object]] = values if isinstance(values, dict) else {}

    def of(self, path: Path) -> str:
        """The file's SHA-256.

        Raises:
            MissingInput: it is not there or cannot be read.
        """
        name = str(path.absolute())
        before = _facts(path)
        known = self._known.get(name)
        if isinstance(known, list) and known[:-1] == before:
            return str(known[-1])
        started = time.time_ns()
        digest = sha256_file(path)
        if before == _facts(path) and started - max(before[1], before[2]) > _SETTLED_NANOSECONDS:
            self._known[name] = [*before, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Write what was learnt; a disk that refuses costs only the time to read again."""
        if not self._changed:
            return
        try:
            write_json(self._path, self._known)
        except StorageError as error:
            get_logger(__name__).warning("the digests of the source files are not remembered: %s", error)


def _facts(path: Path) -> list[int]:
    try:
        state = path.stat()
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from error
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
