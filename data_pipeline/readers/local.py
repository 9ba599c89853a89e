"""Local source files: glob patterns and names within the source.

A file's name within its source does not change when the folder moves: it is the path below the folder that all of the
source's patterns share before their first wildcard.

Symbolic links: a pattern whose fixed folder is itself behind a link is what its writer meant; a link inside that folder
that leads out of it is refused, unless the source says `follow_links`. `**` enters each folder once, by its own name
before by a link's, so that a link to a folder above it does not recur endlessly.

A folder that may not be read, a link whose target is gone, a match that is neither file nor folder and a name that is
not UTF-8 are reported, with a reason: `unreadable_folder`, `dangling_link`, `not_a_file`, `name_not_utf8`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.readers.sources import PathSource
from data_pipeline.readers.text import check_endings
from governance.errors import MissingInput, near_path

_WILD = "*?["
_NAMED = 3  # matches that cannot be read, in a message


@dataclass(frozen=True)
class LocalFile:
    """A source file of this machine."""

    name: str
    """Its name within the source."""
    path: Path


@dataclass(frozen=True)
class FoundFiles:
    """Files that patterns match, and matches that cannot be read."""

    files: list[LocalFile]
    unread: list[tuple[str, str]]
    """Path and reason of each file that may hold records and is not read."""


def find_files(patterns: tuple[str, ...], folder: Path, owner: str, *, follow_links: bool = False) -> list[LocalFile]:
    """Files that match the patterns; all must be readable.

    `owner` is the part of the run's file that has the patterns, in words: "source news".

    Raises:
        MissingInput: as `search_files`; or a folder, a link or a match cannot be read.
    """
    found = search_files(patterns, folder, owner, follow_links=follow_links)
    if found.unread:
        raise MissingInput(f"{owner}: {unread_words(found.unread)}. Correct them, or narrow the pattern.")
    return found.files


def unread_words(unread: Sequence[tuple[str, str]]) -> str:
    """The first matches that cannot be read, with their reasons."""
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    return "not read: " + ", ".join(f"{path} ({reason})" for path, reason in unread[:_NAMED]) + more


def search_files(
    patterns: tuple[str, ...], folder: Path, owner: str, *, follow_links: bool = False, any_of: bool = False
) -> FoundFiles:
    """Files that match the patterns, once each, sorted by name.

    Raises:
        MissingInput: a pattern (with `any_of`: each of them) names no file, or reaches one through a link that leads
            out of its folder.
    """
    absolute = [os.path.normpath(os.path.join(glob.escape(str(folder.absolute())), pattern)) for pattern in patterns]
    shared = Path(os.path.commonpath([_fixed_part(pattern) for pattern in absolute]))
    found: dict[str, Path] = {}
    unread: dict[str, str] = {}
    wanting = []
    for pattern, written in zip(absolute, patterns, strict=True):
        fixed = _fixed_part(pattern)
        walk = _FolderWalk(fixed, owner, follow_links)
        paths = [Path(name) for name in walk.expand(fixed, Path(pattern).parts[len(Path(fixed).parts) :])]
        kinds = [_kind(path) for path in paths]
        files = [path for path, kind in zip(paths, kinds, strict=True) if kind == "file"]
        unread |= walk.unread
        passed = [(path, kind) for path, kind in zip(paths, kinds, strict=True) if kind not in ("file", "folder")]
        unread |= {os.fsencode(path).decode("utf-8", "backslashreplace"): kind for path, kind in passed}
        if not files:
            folders = any(path.is_dir() for path in paths)
            what = "names folders only; add a pattern for their files, as /**/*.jsonl" if folders else "names no file"
            wanting.append(f"{written!r} {what}")
        for path in files:
            walk.check(path)
        found |= {path.relative_to(shared).as_posix(): path for path in files}
    if wanting and not (any_of and found):
        gone = [part for pattern in absolute if not (part := Path(_fixed_part(pattern))).exists()]
        near = near_path(gone[0]) if gone else ""
        lost = f"; {unread_words(sorted(unread.items()))}" if unread else ""
        raise MissingInput(
            f"{owner}: {', '.join(wanting)} (looked in {folder.absolute()}{lost}). Correct the pattern.{near}"
        )
    return FoundFiles([LocalFile(name, found[name]) for name in sorted(found)], sorted(unread.items()))


def find_paths(source: PathSource, folder: Path) -> FoundFiles:
    """The files of this machine that a source's `paths` name.

    Raises:
        MissingInput: as `search_files`.
        ConfigError: one is of a kind that the source does not hold.
    """
    patterns = tuple(pattern.removeprefix("file://") for pattern in source.paths)
    found = search_files(patterns, folder, f"source {source.name}", follow_links=source.follow_links)
    check_endings([file.name for file in found.files], source)
    return found


def remaining_files(source: PathSource, folder: Path) -> Iterator[Path]:
    """Files of a source's patterns; patterns without any are skipped."""
    for pattern in () if source.elsewhere else source.paths:
        with contextlib.suppress(MissingInput):
            local = pattern.removeprefix("file://")
            found = search_files((local,), folder, f"source {source.name}", follow_links=source.follow_links)
            yield from (file.path for file in found.files)


def _fixed_part(pattern: str) -> str:
    """The folder before a pattern's first wildcard.

    An escaped `[[]` of the folder's own name is not a wildcard.
    """
    fixed = []
    for part in Path(pattern).parent.parts:
        if _is_wild(part):
            break
        fixed.append(_unescaped(part))
    return os.path.join(*fixed)


def _is_wild(part: str) -> bool:
    plain = part.replace("[*]", "").replace("[?]", "").replace("[[]", "")
    return any(wild in plain for wild in _WILD)


def _unescaped(part: str) -> str:
    return part.replace("[*]", "*").replace("[?]", "?").replace("[[]", "[")


class _FolderWalk:
    """Paths below a fixed folder that match a pattern, as `glob` does."""

    def __init__(self, fixed: str, owner: str, follow_links: bool) -> None:
        self._fixed = fixed
        self._inside = os.path.join(os.path.realpath(fixed), "")
        self._owner = owner
        self._follow = follow_links
        self.unread: dict[str, str] = {}

    def expand(self, folder: str, parts: Sequence[str]) -> Iterator[str]:
        """The paths below `folder` that match the parts of a pattern."""
        if not parts:
            yield folder
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            for below in self._folders(folder):
                if rest:
                    yield from self.expand(below, rest)
                else:
                    yield from (os.path.join(below, name) for name in self._names(below) if not name.startswith("."))
        elif _is_wild(part):
            hidden = part.startswith(".")
            for name in fnmatch.filter(self._names(folder), part):
                path = os.path.join(folder, name)
                if (hidden or not name.startswith(".")) and (not rest or self._is_folder(path)):
                    yield from self.expand(path, rest)
        elif os.path.lexists(path := os.path.join(folder, _unescaped(part))):
            yield from self.expand(path, rest)

    def _folders(self, top: str) -> Iterator[str]:
        """`top` and all folders below it, each once.

        Links come after the folders themselves.
        """
        seen: set[tuple[int, int]] = set()
        links: list[str] = []
        waiting = [top] if os.path.isdir(top) else []
        while waiting or links:
            folder = waiting.pop() if waiting else links.pop(0)
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            yield folder
            for name in reversed(self._names(folder)):
                path = os.path.join(folder, name)
                if name.startswith(".") or not self._is_folder(path):
                    continue
                if os.path.islink(path):
                    self.check(Path(path))
                    links.append(path)
                else:
                    waiting.append(path)

    def _is_folder(self, path: str) -> bool:
        """Return whether a path is a folder.

        A dangling link named like one is reported.
        """
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)
        except OSError:
            if os.path.islink(path) and "." not in os.path.basename(path):
                self.unread[path] = "dangling_link"
            return False

    def _names(self, folder: str) -> list[str]:
        """Sorted names in a folder; an unreadable one is reported."""
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            self.unread[folder] = "unreadable_folder"
            return []

    def check(self, path: Path) -> None:
        """Refuse a path that a link leads out of the fixed folder.

        Raises:
            MissingInput: it does, and the source does not say `follow_links`.
        """
        if self._follow or self._holds(path):
            return
        parts = path.relative_to(self._fixed).parts
        ways = (Path(self._fixed, *parts[: count + 1]) for count in range(len(parts)))
        link = next((way for way in ways if not self._holds(way)), path)
        others = ", or set follow_links = true on the source" if self._owner.startswith("source ") else ""
        raise MissingInput(
            f"{self._owner}: {link} is a symbolic link to {os.path.realpath(link)}, which is outside "
            f"{self._fixed}. Name the target's folder in the pattern{others}."
        )

    def _holds(self, path: Path) -> bool:
        return os.path.join(os.path.realpath(path), "").startswith(self._inside)


def has_text_name(path: Path) -> bool:
    """Return whether a path is UTF-8, so that manifests can state it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(path: Path) -> str:
    """File, folder, or the reason why a match cannot be read."""
    if not has_text_name(path):
        return "name_not_utf8"
    try:
        mode = path.stat().st_mode
    except OSError:
        return "dangling_link" if path.is_symlink() else "unreadable_folder"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "not_a_file"
