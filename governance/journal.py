"""The journal of a root: an append-only chain of signed statements, one a line, `<root>/journal.jsonl`.

    {"envelope": {...}, "index": 12, "kind": "encode", "previous": "<SHA-256 of line 11>",
     "time": "2026-01-01T00:00:00Z"}                                                       (all in one line)

The envelope (DSSE, `signing.py`) holds an in-toto statement. Of an artifact its subject is the manifest with its
digest, and its predicate (`urn:assay:provenance:1`) has stage, key, version, config, the manifest's seal (so that the
`run` block is signed, too) and materials: what it was made from, down to the source files, for a run also the verdict
that let it start and its last checkpoint. So the way from a
source file to a child of a checkpoint can be walked in the journal alone, when the artifacts are gone.

The files that only grow (energy ledger, a training's record) have no manifest until they are finished; each line states
how far they had grown and the digest of that much (`journal.grown`, `running_digests.py`).

Promises. The signed predicate repeats index, kind, time and the hash of the line before (`journal`), so nobody
without a key can drop, reorder, replay or alter a line and make the chain fit again. What a chain cannot show of
itself is that its last lines are gone: for that its head, "index:SHA-256 of the last line", stands elsewhere
(`anchors.py`), and each artifact wants a statement (`verification.py`). Appending is atomic among processes and nodes
of one file system. A killed writer tears at most its own last line; the next one says so, closes it, and signs that
it was torn. What is already stated is not stated again.

Price: one signature and one `fsync` a line, some milliseconds; the file is read once by each process that appends.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.clock import CLOCK, read_times, void
from governance.clock import PREDICATE_TYPE as CLOCK_TYPE
from governance.config import canonical_json
from governance.errors import ManifestError
from governance.files import append_line, locked, sha256_bytes, sha256_file
from governance.log import get_logger
from governance.manifest import Input, Manifest
from governance.running_digests import GROWN, Prefix, RunningDigests, read_prefix
from governance.signing import SigningKey, refuse_expired, sign, statement, verify_envelope
from governance.stage import now

if TYPE_CHECKING:
    from governance.signing import PublicKey

FILE_NAME = "journal.jsonl"
PREDICATE_TYPE = "urn:assay:provenance:1"
VERDICT = "verdict"
_LOCK = "journal.lock"
_FIELDS = {"envelope", "index", "kind", "previous", "time"}
_LATE_SECONDS = 60.0


@dataclass(frozen=True)
class Entry:
    """One line whose statement can be read."""

    index: int
    """Its number in the file, from 0; a torn line has one too."""
    digest: str
    """SHA-256 of the line without its end."""
    kind: str
    time: str
    statement: Mapping[str, Any]

    @property
    def place(self) -> str:
        """How other statements name this line."""
        return f"{FILE_NAME}#{self.index}"

    @property
    def subjects(self) -> dict[str, str]:
        """What it speaks of: name -> SHA-256."""
        return {item["name"]: item["digest"]["sha256"] for item in self.statement["subject"]}

    @property
    def seal(self) -> str:
        """The seal of the manifest that it states; "" where it states none."""
        predicate = self.statement["predicate"]
        return str(predicate.get("seal", "")) if self.states_files else ""

    @property
    def states_files(self) -> bool:
        """Whether its subjects are files, and what they were made from is said."""
        return bool(self.statement["predicateType"] == PREDICATE_TYPE)

    @property
    def materials(self) -> tuple[Input, ...]:
        """What that was made from; none for a statement of another kind."""
        if not self.states_files:
            return ()
        return tuple(Input(**item) for item in self.statement["predicate"].get("materials", ()))

    @property
    def grown(self) -> tuple[Prefix, ...]:
        """How far the files that grow had come, of those that had grown since the line before."""
        return tuple(map(read_prefix, self.statement["predicate"]["journal"].get(GROWN, ())))


def provenance(subjects: Mapping[str, str], materials: Iterable[Input], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The statement that `subjects` (name -> SHA-256) were made from `materials`."""
    listed = [item.model_dump(mode="json") for item in materials]
    return statement(dict(subjects), PREDICATE_TYPE, {**facts, "materials": listed})


class Journal:
    """The journal of one root, for one process.

    Args:
        root: the artifacts' root.
        key: gives the signing key when something is to be signed.
        trusted: gives the public keys that are believed when something is read.
        after: told the head after each line that was appended.
    """

    def __init__(
        self,
        root: Path,
        key: Callable[[], SigningKey],
        trusted: Callable[[], Sequence[PublicKey]] = tuple,
        after: Callable[[str], None] = lambda head: None,
    ) -> None:
        self.path = root / FILE_NAME
        self._lock = root / _LOCK
        self._key, self._trusted, self._after = key, trusted, after
        self._signer: SigningKey | None = None
        self._size = 0  # bytes that were taken in
        self._ended = True  # and whether they end with a whole line
        self._lines = 0
        self._last = ""  # SHA-256 of the last line
        self._torn = False
        self._entries: list[Entry] = []
        self._stated: dict[str, tuple[str, str]] = {}  # subject -> digest and seal, as they were stated last
        self._believed: tuple[str, tuple[Entry, ...]] = ("", ())  # SHA-256 of what was verified last, and its entries
        self._prefixes: dict[str, Prefix] = {}  # file that grows -> how it was stated last
        self._running = RunningDigests(root)

    def head(self) -> str:
        """The last line as "index:SHA-256"; "" when there is none."""
        self._read()
        return f"{self._lines - 1}:{self._last}" if self._lines else ""

    def last_time(self) -> str:
        """The time of the last statement, ISO 8601 in UTC; "" when there is none."""
        self._read()
        return self._entries[-1].time if self._entries else ""

    def believed(self) -> Sequence[Entry]:
        """Every entry, oldest first, after the chain and each signature were verified; none where there is no journal.

        Bytes that were verified by this object are not verified again.

        Raises:
            ManifestError: something in the journal is not as it was written, or its signer is not trusted.
        """
        if not self.path.exists():
            return ()
        digest = sha256_file(self.path)
        if digest != self._believed[0]:
            found, problems = read_journal(self.path, self._trusted(), ended=True)
            if problems:
                raise ManifestError(f"{self.path.parent}: " + "; ".join(problems[:5]))
            self._believed = (digest, tuple(found))
        return self._believed[1]

    def append(self, kind: str, statement: Mapping[str, Any]) -> None:
        """Sign a statement and append it; its predicate gets the field `journal`.

        Raises:
            StorageError: the disk refuses.
            ConfigError: the signing key cannot be read.
        """
        self._append(kind, lambda: statement)

    def state(self, kind: str, subjects: Mapping[str, str], materials: Iterable[Input], **facts: Any) -> None:
        """Append that `subjects` were made from `materials`, unless that was the last that was stated of them."""
        self._append(
            kind,
            lambda: None if self._is_stated(subjects) else provenance(subjects, materials, {"stage": kind, **facts}),
        )

    def state_artifact(self, manifest: Manifest) -> None:
        """Append the statement on an artifact, its `run` block included; one that stands adds nothing."""
        subjects = {manifest.path: manifest.digest}
        facts = {
            "stage": manifest.stage,
            "key": manifest.key,
            "version": manifest.version,
            "config": manifest.config,
            "seal": manifest.seal,
        }

        def make() -> dict[str, Any] | None:
            if self._is_stated(subjects, manifest.seal):
                return None
            return provenance(subjects, (*manifest.inputs, *self._also(manifest)), facts)

        self._append(manifest.stage, make)

    def state_clock(self, verdicts: Sequence[str], reason: str, account: str) -> int:
        """Append that the times of the lines dated ahead of this clock are void; returns how many.

        Args:
            verdicts: files of verdicts that are dated ahead, for the reader.
            reason: why they are.
            account: who says so.
        """
        count = 0

        def make() -> dict[str, Any]:
            nonlocal count
            late = [entry for entry in read_times(self._entries)[0] if entry.time > now()]
            count = len(late)
            said = {"void": void(late), "verdicts": list(verdicts), "reason": reason, "account": account}
            return statement({FILE_NAME: self._last}, CLOCK_TYPE, said)

        self._append(CLOCK, make)
        return count

    def _is_stated(self, subjects: Mapping[str, str], seal: str = "") -> bool:
        return all(self._stated.get(name) == (digest, seal) for name, digest in subjects.items())

    def _also(self, manifest: Manifest) -> Iterator[Input]:
        """What a run rests on besides its inputs: its last checkpoint, and the verdict that let it start."""
        last = manifest.stats.get("checkpoint")
        if isinstance(last, Mapping):
            yield Input(stage="checkpoint", path=last["path"], digest=last["digest"])
        if manifest.stage in ("checkpoint", "train"):
            corpora = {item.digest for item in manifest.inputs}
            packed = (entry for entry in self._entries if corpora & set(entry.subjects.values()))
            corpora |= {item.digest for entry in packed for item in entry.materials}
            for entry in reversed(self._entries):
                if entry.kind == VERDICT and corpora & _named(entry):
                    yield Input(stage=VERDICT, path=entry.place, digest=entry.digest)
                    break

    def _append(self, kind: str, make: Callable[[], Mapping[str, Any] | None]) -> None:
        with locked(self._lock):
            self._read()
            made = make()
            if made is None:
                return
            if self._signer is None:
                self._signer = self._key()
            if self._torn:
                get_logger(__name__).warning(
                    "%s: line %d was torn by a writer that was killed; it is closed, and stays",
                    self.path,
                    self._lines - 1,
                )
            time = now() if kind == CLOCK else self._time()
            entry = {"index": self._lines, "kind": kind, "previous": self._last, "time": time}
            refuse_expired(self._signer, str(entry["time"]))
            grown = [prefix.plain() for prefix in self._running.grown(self._prefixes)]
            block = {**entry, **({"torn": True} if self._torn else {}), **({GROWN: grown} if grown else {})}
            signed = sign({**made, "predicate": {**made["predicate"], "journal": block}}, self._signer)
            append_line(self.path, canonical_json({**entry, "envelope": signed}).decode("utf-8"), durable=True)
            head = self.head()
        self._after(head)

    def _time(self) -> str:
        """Now, but never before the last line: clocks of several nodes differ."""
        moment, last = now(), self._entries[-1].time if self._entries else ""
        if moment < last and _seconds(last) - _seconds(moment) > _LATE_SECONDS:
            get_logger(__name__).warning("this machine's clock says %s; the journal is at %s already", moment, last)
        return max(moment, last)

    def _read(self) -> None:
        """Take in what was appended since; nothing is verified here."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._size:
            return
        if size < self._size or not self._ended:
            self._size, self._lines, self._last, self._torn, self._entries, self._stated = 0, 0, "", False, [], {}
            self._prefixes = {}
        with open(self.path, "rb") as handle:
            handle.seek(self._size)
            data = handle.read()
        for line in _lines(data):
            entry = _parse(line, self._lines)
            self._lines, self._last, self._torn = self._lines + 1, sha256_bytes(line), entry is None
            if entry is not None:
                self._entries.append(entry)
                self._stated.update({name: (digest, entry.seal) for name, digest in entry.subjects.items()})
                self._prefixes.update((prefix.path, prefix) for prefix in entry.grown)
        self._size, self._ended = self._size + len(data), data.endswith(b"\n")


def _seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()


def _named(entry: Entry) -> set[str]:
    return {*entry.subjects.values(), *(item.digest for item in entry.materials)}


def _lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines[:-1] if not lines[-1] else lines


def _parse(line: bytes, index: int) -> Entry | None:
    """The entry of a line, its signature not yet looked at; None when it is none."""
    try:
        values = json.loads(line)
        found = json.loads(base64.b64decode(values["envelope"]["payload"]))
        entry = Entry(index, sha256_bytes(line), str(values["kind"]), str(values["time"]), found)
        _named(entry)
        dict(found["predicate"]["journal"])
        tuple(entry.grown)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return entry


def read_journal(path: Path, trusted: Sequence[PublicKey], *, ended: bool = False) -> tuple[list[Entry], list[str]]:
    """The entries of a journal, and what is wrong with it, in words, each naming file and line (none: it is whole).

    `ended` passes over a last line without its end: somebody is writing it, or it was torn, and the next writer closes
    it. Costs a verification of Ed25519 a line (about 0.2 ms).

    Raises:
        ManifestError: there is no journal, or it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); each root has its journal") from error
    if ended:
        data = data[: data.rfind(b"\n") + 1]
    entries: list[Entry] = []
    problems: list[str] = []
    lines = _lines(data)
    previous, torn = "", False
    for index, line in enumerate(lines):
        entry = _parse(line, index)
        closed = entry is None and _is_closed(lines, index)
        faults = [] if closed else _faults(line, entry, (index, previous, torn), trusted)
        problems += [f"{FILE_NAME}: line {index}: {fault}" for fault in faults]
        if entry is not None:
            entries.append(entry)
        previous, torn = sha256_bytes(line), entry is None
    if data and not data.endswith(b"\n"):
        problems.append(f"{FILE_NAME}: line {len(lines) - 1}: has no end: its writer was killed, or it was cut")
    return entries, [*problems, *(f"{FILE_NAME}: {fault}" for fault in read_times(entries)[1])]


def _is_closed(lines: Sequence[bytes], index: int) -> bool:
    """Whether the next line says, signed, that this one was torn; its signature is looked at when its turn comes."""
    following = _parse(lines[index + 1], index + 1) if index + 1 < len(lines) else None
    if following is None:
        return False
    block = following.statement["predicate"].get("journal", {})
    return block.get("torn") is True and block.get("previous") == sha256_bytes(lines[index])


def _faults(line: bytes, entry: Entry | None, wanted: tuple[int, str, bool], trusted: Sequence[PublicKey]) -> list[str]:
    """What is wrong with a line whose number, predecessor and the latter's state are `wanted`."""
    if entry is None:
        return ["is torn or altered: no statement can be read"]
    index, previous, torn = wanted
    values = json.loads(line)
    faults = []
    if canonical_json(values) != line or set(values) != _FIELDS:
        faults.append("its bytes are not those that were written")
    try:
        verify_envelope(values["envelope"], trusted, "its envelope")
    except ManifestError as error:
        faults.append(str(error))
    block = {**entry.statement["predicate"].get("journal", {})}
    said_torn, _ = block.pop("torn", False), block.pop(GROWN, None)
    if block != {name: value for name, value in values.items() if name != "envelope"}:
        faults.append("says other things than were signed")
    if block.get("index") != index:
        faults.append(f"was signed as line {block.get('index')}: lines were dropped, repeated or moved")
    if block.get("previous") != previous:
        faults.append("does not follow the line before it")
    if said_torn != torn:
        faults.append("says that the line before it was torn" if said_torn else "follows a torn line without saying so")
    return faults
