"""Running digests of growing files: ledger, metrics, job records.

    {"path": "energy.jsonl", "bytes": 16282, "lines": 71, "sha256": "...64 hex"}

Each line of the journal carries, signed, one such statement for each file that has grown since the line before
(`journal.grown` of its predicate): the SHA-256 of the file's first `bytes` bytes, which end with a whole line. So a
later reader verifies every prefix that was ever stated, in one pass over the file, and only what was appended
after the last statement is unsigned.

A file that does not continue what was stated last (it was altered, cut or replaced) is stated with `anew`, so the break
itself is signed; `prefix_faults` then checks what was stated from there on, and reports the break as a fault until a
training starts the file again.

A training whose records were removed (most often with its folder) starts them again. Before its first line it states so
(`Journal.state_begin`): 0 bytes, with `anew`, for each file that is gone. Such a beginning is a note, and what was
stated before it no longer counts. It is stated only where none of the folder's files is left: with one of them there,
the others were taken away.

Files are announced before their first line (`Journal.state_ledger`, `state_begin`, `state_records`): 0 bytes, without
`anew`. An announcement with `signed` says that each line is signed as it is written (`signed_lines.py`): a line that no
run wrote is an error that names it, and nothing is stated. A file of an earlier release was stated without an
announcement; it stays readable to its end, and `verify` says that its lines are not signed one by one.

A ledger or a record with signed lines (`SIGNED`) that no line announces or stated is foreign, however young it is: it
is never stated, it is a fault, no report counts it, and no run appends to it, so no artifact rests on it: move it out
of the root. A training refuses to begin, and a submission to queue, where one is there.

Price: a process reads each file once and then only what was added; one `fdatasync` for a file that grew, so that no
statement outlives its bytes when a node loses its power.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from governance.errors import ManifestError
from governance.files import running_sha256
from governance.log import get_logger
from governance.signing.dsse import PublicKey
from governance.signing.signed_lines import LEDGERS, SignedLines

GROWING = (*LEDGERS, "train/*/*.jsonl", "slurm/*.jsonl", "slurm/attempts/*.jsonl")
"""Patterns, relative to a root, of the files that its processes append lines to."""
JOB_RECORDS = ("slurm/jobs.jsonl", "slurm/submitted.jsonl", "slurm/taken.jsonl")
"""Records of jobs that submissions and jobs write, signed."""
SIGNED = (*LEDGERS, "train/*/metrics.jsonl", "train/*/checkpoints.jsonl", *JOB_RECORDS)
"""Patterns of those whose lines are signed one by one, except in roots of an earlier release."""
GROWN = "grown"
"""The field of a statement's `journal` block."""
FOREIGN = "no line of the journal announced this file, so nobody signed its lines. Move it out of the root"
"""The fault of a ledger or record that no run of this root began."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Prefix:
    """The beginning of a file that grows, as it was stated."""

    path: str
    """Relative to the root, with forward slashes."""
    bytes: int
    lines: int
    sha256: str
    anew: bool = False
    """True if it does not continue an earlier statement."""
    signed: bool = False
    """True where each line is signed as it is written, since the file was announced so."""

    def plain(self) -> dict[str, Any]:
        """As JSON; `anew` and `signed` only where they are true."""
        values = {"path": self.path, "bytes": self.bytes, "lines": self.lines, "sha256": self.sha256}
        return {**values, **({"anew": True} if self.anew else {}), **({"signed": True} if self.signed else {})}


def read_prefix(values: Mapping[str, Any]) -> Prefix:
    """A statement as it was signed.

    Raises:
        KeyError, TypeError: it is not one.
    """
    found = Prefix(**values)
    if not (isinstance(found.path, str) and isinstance(found.bytes, int) and isinstance(found.lines, int)):
        raise TypeError("a running digest has a path, and numbers of bytes and lines")
    return found


def growing_files(root: Path) -> list[str]:
    """Names of the files below `root` that grow, in order."""
    found = {path for pattern in GROWING for path in root.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(root).as_posix() for path in found)


def foreign_records(growing: Iterable[str], announced: Container[str]) -> list[str]:
    """Names of signed files that the journal neither announced nor stated.

    `growing` is listed before the journal is read: a file that another process begins in between is announced.
    """
    return [name for name in growing if name not in announced and _is_signed(name)]


def _is_signed(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in SIGNED)


@dataclass
class _Position:
    """Hashed length of a file in this process."""

    bytes: int = 0
    lines: int = 0
    hash: Any = field(default_factory=running_sha256)
    signed: SignedLines | None = None
    """The lines' signatures, where each line has one."""


@dataclass(frozen=True)
class Signers:
    """Signers of a root's signed lines."""

    journal: str = ""
    """Digest of the journal's first line."""
    trusted: Sequence[PublicKey] = ()


class RunningDigests:
    """The running digests of one root, for one process.

    Args:
        root: the artifacts' root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, _Position] = {}

    def grown(self, stated: Mapping[str, Prefix], signers: Signers = Signers()) -> list[Prefix]:
        """Statements for each file grown since `stated`.

        `signers` are those whose signed lines count.

        A file that is shorter than what was stated of it is passed over: another node may see it so for a moment, and
        `prefix_faults` reports one that stays so. So is a file with signed lines that nobody announced.

        Raises:
            OSError: a file cannot be read.
            ManifestError: no run wrote a line of a file whose lines are signed.
        """
        found = []
        growing = growing_files(self._root)
        foreign = foreign_records(growing, stated)
        for name in growing:
            if name in foreign:
                continue
            path, last = self._root / name, stated.get(name)
            least = last.bytes if last else 0
            with contextlib.suppress(FileNotFoundError):  # its folder was removed in this moment
                if path.stat().st_size > least:
                    try:
                        prefix = self._advance(path, name, last, signers)
                    except ManifestError:
                        self._known.pop(name)  # the next statement reads the line again
                        raise
                    found += [prefix] if prefix.bytes > least else []
        return found

    def begun(self, folder: str, stated: Mapping[str, Prefix], signed: Sequence[str] = ()) -> list[Prefix]:
        """Statements that the files of a folder begin again.

        The lines of `signed` will be signed. The result is empty where one of the folder's files exists, or nothing was
        stated of any.
        """
        if any(name.startswith(f"{folder}/") for name in growing_files(self._root)):
            return []
        gone = (name for name, prefix in stated.items() if name.startswith(f"{folder}/") and prefix.bytes)
        nothing = running_sha256().hexdigest()
        return [Prefix(name, 0, 0, nothing, anew=True, signed=name in signed) for name in sorted(gone)]

    def announced(self, names: Iterable[str], stated: Mapping[str, Prefix]) -> Iterator[Prefix]:
        """Announcements of files whose lines will be signed, where none was.

        Raises:
            ManifestError: a file has lines, and none was ever stated.
        """
        for name in names:
            if name in stated:
                continue
            if (size := _size(self._root / name)) > 0:
                raise ManifestError(
                    f"{name}: has {size} bytes, and no line of the journal announces or states this file, so no run of "
                    "this root wrote it. Move it out of the root, and find out who can write to its folder"
                )
            yield Prefix(name, 0, 0, running_sha256().hexdigest(), signed=True)

    def _advance(self, path: Path, name: str, last: Prefix | None, signers: Signers) -> Prefix:
        signed = last is not None and last.signed
        position = self._known.get(name) or self._start(name, signed)
        unlike = last is not None and last.bytes <= position.bytes and last.sha256 != position.hash.hexdigest()
        if unlike or path.stat().st_size < position.bytes:  # it was cut or started again since, and has grown again
            position = self._start(name, signed)
        remembered = position.bytes
        continues = _read_on(path, position, last, signers)
        if not continues and remembered:  # another process stated a new beginning of a file that this one had hashed
            position = self._start(name, signed)
            continues = _read_on(path, position, last, signers)
        if not continues:
            get_logger(__name__).warning(
                "%s: does not continue what the journal states of its first %d bytes: it was altered, cut or "
                "replaced. It is stated as it is from here on, and verify reports the break",
                path,
                last.bytes if last else 0,
            )
        return Prefix(
            name, position.bytes, position.lines, position.hash.hexdigest(), anew=not continues, signed=signed
        )

    def _start(self, name: str, signed: bool) -> _Position:
        """State of a file at its beginning; earlier state is forgotten."""
        self._known[name] = _Position(signed=SignedLines(name) if signed else None)
        return self._known[name]


def _size(path: Path) -> int:
    """Bytes of a file; 0 where it is missing."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_on(path: Path, position: _Position, last: Prefix | None, signers: Signers) -> bool:
    """Hash the lines after `position`; whether they continue `last`."""
    continues = last is None or last.bytes <= position.bytes
    with path.open("rb") as file:
        file.seek(position.bytes)
        for piece in _pieces(file, last.bytes if last and not continues else None):
            if position.signed is not None:
                stated = last is not None and position.bytes < last.bytes
                position.signed.take(piece, signers.journal, None if stated else signers.trusted)
            position.hash.update(piece)
            position.bytes += len(piece)
            position.lines += piece.count(b"\n")
            if last is not None and position.bytes == last.bytes:
                continues = bool(position.hash.hexdigest() == last.sha256)
        os.fdatasync(file.fileno())
    return continues


def _pieces(file: Any, boundary: int | None) -> Iterator[bytes]:
    """Whole lines of a file in pieces, one ending at `boundary`."""
    pending = b""
    start = file.tell()
    while block := file.read(_BLOCK):
        data = pending + block
        if boundary is not None and start < boundary <= start + len(data):
            yield data[: boundary - start]
            data, start, boundary = data[boundary - start :], boundary, None
        end = data.rfind(b"\n") + 1
        if end:
            yield data[:end]
        pending, start = data[end:], start + end


@dataclass(frozen=True)
class StatedPrefix:
    """A statement and its line in the journal."""

    place: str
    """The line, in words."""
    prefix: Prefix


def prefix_faults(
    root: Path, growing: Iterable[str], stated: Mapping[str, Sequence[StatedPrefix]], signers: Signers | None = None
) -> tuple[list[str], list[str]]:
    """Differences of growing files from their statements, and unstated growth.

    Args:
        root: the artifacts' root.
        growing: `growing_files`, listed before the journal was read.
        stated: path -> its statements, in the order of the journal.
        signers: those whose signed lines count, where ends that are not stated yet are verified too.
    """
    faults: list[str] = []
    notes: list[str] = []
    foreign = foreign_records(growing, stated)
    for name in sorted({*stated, *growing}):
        if name in foreign:
            faults.append(f"{name}: {FOREIGN}")
            continue
        ours = list(stated.get(name, ()))
        breaks = [index for index, item in enumerate(ours) if item.prefix.anew]
        begun = [index for index in breaks if not ours[index].prefix.bytes]
        if begun:
            place = ours[begun[-1]].place
            notes.append(f"{name}: was begun anew, as {place} states: its records had been removed before a training")
        if altered := [index for index in breaks if index > (begun[-1] if begun else -1)]:
            place = ours[altered[-1]].place
            faults.append(f"{name}: does not continue at {place} what was stated before: it was altered or cut")
        ours = ours[breaks[-1] :] if breaks else ours
        if (root / name).is_file():
            found = _file_faults(root / name, name, ours, signers)
            faults += found[0]
            notes += found[1]
        elif (root / name).parent.is_dir() and ours[-1].prefix.bytes:
            faults.append(f"{name}: is missing, though {ours[-1].place} states {ours[-1].prefix.bytes} bytes of it")
    return faults, notes


def _file_faults(
    path: Path, name: str, stated: Sequence[StatedPrefix], signers: Signers | None
) -> tuple[list[str], list[str]]:
    """Differences of one file from its statements, and its unstated end."""
    faults, notes = _compare(path, name, stated)
    if signers is None or not stated:
        return faults, notes
    last = stated[-1].prefix
    if notes and last.signed:
        faults = _added(path, name, last.bytes, signers)
    if last.bytes and not last.signed and _is_signed(name):
        notes = [f"{name}: its lines are not signed one by one: an earlier release began it", *notes]
    return faults, notes


def _added(path: Path, name: str, stated: int, signers: Signers) -> list[str]:
    """The fault of a line after `stated` bytes that no run wrote."""
    data, lines = path.read_bytes(), SignedLines(name)
    try:
        lines.take(data[:stated], signers.journal, None)
        lines.take(data[stated:], signers.journal, signers.trusted)
    except ManifestError as error:
        return [str(error)]
    return []


def _compare(path: Path, name: str, stated: Sequence[StatedPrefix]) -> tuple[list[str], list[str]]:
    """Digests of a file at each stated length, in one pass."""
    position = _Position()
    by_length = {item.prefix.bytes: item for item in stated}
    with path.open("rb") as file:
        for length, item in sorted(by_length.items()):
            begin, first = position.bytes, position.lines + 1
            while position.bytes < length and (block := file.read(min(_BLOCK, length - position.bytes))):
                position.hash.update(block)
                position.bytes += len(block)
                position.lines += block.count(b"\n")
            if position.bytes < length:
                return [f"{name}: has {position.bytes} bytes, {item.place} states {length}: its end was cut"], []
            if position.hash.hexdigest() != item.prefix.sha256:
                where = f"bytes {begin} to {length - 1}, lines {first} to {position.lines}"
                return [f"{name}: is not as {item.place} states it: {where} differ"], []
        rest = file.read()
    if not rest:
        return [], []
    size = f"{len(rest)} bytes, {len(rest.splitlines())} line(s)"
    return [], [f"{name}: {'its end' if stated else 'all of it'} ({size}) is not stated yet"]
