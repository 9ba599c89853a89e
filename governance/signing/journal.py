"""Journal: append-only chain of signed statements (`journal.jsonl`).

    {"envelope": {...}, "index": 12, "kind": "encode", "previous": "<SHA-256 of line 11>",
     "time": "2026-01-01T00:00:00Z"}                                                       (all in one line)

The envelope (DSSE, `dsse.py`) holds an in-toto statement. For an artifact its subject is the manifest with its
digest, and its predicate (`urn:assay:provenance:1`) has stage, key, version, config, the manifest's seal (so that the
`run` block is signed, too) and materials: what it was made from, down to the source files, for a run also the
checkpoints behind exported weights, the verdict that let it start and its last checkpoint. So the way from a source
file to a child of a checkpoint can be walked in the journal alone, when the artifacts are gone.

The files that only grow (energy ledger, a training's record) have no manifest until they are finished; each line states
how far they had grown and the digest of that much (`journal.grown`, `running_digests.py`). A file whose lines are
signed is announced before it is begun.

Promises. The signed predicate repeats index, kind, time and the hash of the line before (`journal`), so no account
without a key can drop, reorder, replay or alter a line and repair the chain. A chain cannot show that its own last
lines are gone: for that its head, "index:SHA-256 of the last line", is recorded elsewhere (`home_anchor.py`,
`git_anchor.py`), and each artifact needs a statement (`chain.py`). Appending is atomic among processes and nodes of one
file system. A killed writer tears at most its own last line; the next one reports it, closes it, and signs that it was
torn. What is already stated is not stated again.

Price: one signature and one `fsync` a line, some milliseconds; the file is read once by each process that appends.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.errors import ManifestError
from governance.files import append_line, locked, running_sha256, sha256_bytes
from governance.hooks import SignLine
from governance.log import get_logger
from governance.manifest import Input, Manifest
from governance.regular_files import read_whole
from governance.signing.dsse import PublicKey, SigningKey, key_id, refuse_expired, sign, statement, verify_envelope
from governance.signing.home_anchor import HomeAnchor
from governance.signing.journal_lines import (
    CLOCK,
    CLOCK_TYPE,
    FILE_NAME,
    MAX_JOURNAL_BYTES,
    PREDICATE_TYPE,
    JournalEntry,
    VerifiedLines,
    lines_of,
    named,
    parse_line,
    read_times,
    verify_lines,
    void,
)
from governance.signing.running_digests import FOREIGN, GROWN, Prefix, RunningDigests, Signers
from governance.signing.signed_lines import line_signer
from governance.stage import now

GIVEN_UP = "urn:assay:given-up:1"
BEGUN = "begun-anew"
BEGUN_TYPE = "urn:assay:begun-anew:1"
LEDGER = "ledger"
LEDGER_TYPE = "urn:assay:ledger:1"
RECORDS = "records"
RECORDS_TYPE = "urn:assay:records:1"
VERDICT = "verdict"
_LOCK = "journal.lock"
_LATE_SECONDS = 60.0


def provenance(subjects: Mapping[str, str], materials: Iterable[Input], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The statement that `subjects` (name -> SHA-256) were made from `materials`."""
    listed = [item.model_dump(mode="json") for item in materials]
    return statement(dict(subjects), PREDICATE_TYPE, {**facts, "materials": listed})


class Journal:
    """The journal of one root, for one process.

    Args:
        root: the artifacts' root.
        key: gives the signing key when something is to be signed.
        trusted: gives the trusted public keys when something is read.
        after: called with the head after each line that was appended.
        anchor: keeps the head outside of the root and reports lines that are gone.
    """

    def __init__(
        self,
        root: Path,
        key: Callable[[], SigningKey],
        trusted: Callable[[], Sequence[PublicKey]] = tuple,
        after: Callable[[str], None] = lambda head: None,
        anchor: HomeAnchor | None = None,
    ) -> None:
        self.path = root / FILE_NAME
        self._lock = root / _LOCK
        self._key, self._trusted, self._after, self._anchor = key, trusted, after, anchor
        self._signer: SigningKey | None = None
        self._forget()
        self._running = RunningDigests(root)
        self._warned: set[str] = set()  # foreign ledgers

    def _forget(self) -> None:
        self._size, self._hash = 0, running_sha256()  # size and hash of the bytes read so far
        self._ended = True  # whether they end with a whole line
        self._digests: list[str] = []  # SHA-256 of each line
        self._parsed: list[JournalEntry | None] = []  # each line; None for a torn one
        self._entries: list[JournalEntry] = []
        self._stated: dict[str, tuple[str, str]] = {}  # subject -> digest and seal, as they were stated last
        self._prefixes: dict[str, Prefix] = {}  # file that grows -> how it was stated last
        self._verified = VerifiedLines()
        self._keys: frozenset[str] = frozenset()  # those that verified them

    def head(self) -> str:
        """The last line as "index:SHA-256"; "" when there is none."""
        self._read()
        return f"{len(self._digests) - 1}:{self._digests[-1]}" if self._digests else ""

    def holds(self, head: str) -> bool:
        """Return whether this journal has the line of a head."""
        self._read()
        number, _, digest = head.partition(":")
        return int(number) < len(self._digests) and self._digests[int(number)] == digest

    def anchored(self) -> bool:
        """Return whether a head of this journal is anchored."""
        self._read()
        return self._anchor is not None and bool(self._digests) and self._anchor.known(self._digests[0])

    def behind(self) -> str:
        """Reason why lines after the anchored head are gone; "" if none."""
        self._read()
        if self._anchor is None or not self._digests:
            return ""
        return self._anchor.fault(self._digests[0], self.holds)

    def keep(self) -> None:
        """Store the head outside the root, as each append does."""
        head = self.head()
        if self._anchor is not None and head:
            self._anchor.leave(self._digests[0], head, self.holds, now())

    def accept(self, reason: str, owners: Sequence[PublicKey]) -> list[str]:
        """Give up the lines that are gone; return the lost heads.

        The journal states them, signed, from now on.


        Raises:
            ManifestError: the signing key is neither one of `owners` nor certified by one; nothing was changed.
            StorageError: the disk cannot be written.
        """
        if self._anchor is None or not self.behind():
            return []
        signer = self._signer = self._signer or self._key()
        verify_envelope(sign(statement({}, GIVEN_UP, {"signed_at": now()}), signer), owners, "the signing key")
        words = {"reason": reason, "time": now(), "key": key_id(signer.public_key())}
        head = self.head()
        lost = self._anchor.give_up(self._digests[0], head, self.holds, words)
        subject = {f"{FILE_NAME}#{head.partition(':')[0]}": head.partition(":")[2]}
        self.append("given-up", statement(subject, GIVEN_UP, {"reason": reason, "given_up": lost}))
        return lost

    def last_time(self) -> str:
        """The time of the last statement, ISO 8601 in UTC.

        The result is "" when there is none.
        """
        self._read()
        return self._entries[-1].time if self._entries else ""

    def verified(self) -> Sequence[JournalEntry]:
        """Every verified entry, oldest first.

        The chain and each signature are verified first. The result is empty where there is no journal. Lines that this
        object has verified, and whose bytes are the same, are not verified again.

        Raises:
            ManifestError: something in the journal was altered, or its signer is not trusted.
        """
        if not self.path.exists():
            return ()
        data, trusted = self._bytes(0), self._trusted()
        if sha256_bytes(data[: self._size]) != self._hash.hexdigest():
            self._forget()
        self._read(data)
        keys = frozenset(map(key_id, trusted))
        known = self._verified if keys == self._keys else VerifiedLines()
        whole = lines_of(data[: data.rfind(b"\n") + 1])  # a line without its end is being written, or was torn
        found, problems = verify_lines(list(zip(whole, self._parsed, strict=False))[known.lines :], trusted, known)
        if problems:
            raise ManifestError(f"{self.path.parent}: " + "; ".join(problems[:5]))
        self._verified, self._keys = found, keys
        return found.entries

    def append(self, kind: str, statement: Mapping[str, Any]) -> None:
        """Sign a statement and append it; its predicate gets the field `journal`.

        Raises:
            StorageError: the disk cannot be written.
            ConfigError: the signing key cannot be read.
        """
        self._append(kind, lambda: statement)

    def state(self, kind: str, subjects: Mapping[str, str], materials: Iterable[Input], **facts: Any) -> None:
        """State that `subjects` were made from `materials`, unless already so."""
        self._append(
            kind,
            lambda: None if self._is_stated(subjects) else provenance(subjects, materials, {"stage": kind, **facts}),
        )

    def state_artifact(self, manifest: Manifest) -> None:
        """Append the statement on an artifact, its `run` block included.

        A repetition adds nothing.
        """
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

    def state_begin(self, folder: Path, records: Sequence[str] = ()) -> None:
        """Announce the records that a training begins.

        Where their folder was removed, state that they begin again. It is called before the training's first line.
        Nothing is stated where its files are as they were left.

        Raises:
            ManifestError: one of `records`, names within the folder, is there, and no line announced or stated it.
        """
        name = folder.relative_to(self.path.parent).as_posix()
        begun: list[Prefix] = []

        def make() -> dict[str, Any] | None:
            begun.extend(self._running.begun(name, self._prefixes, [f"{name}/{record}" for record in records]))
            return statement({FILE_NAME: self._digests[-1]}, BEGUN_TYPE, {"folder": name}) if begun else None

        self._append(BEGUN, make, begun)
        self.state_records([folder / record for record in records])

    def state_records(self, paths: Sequence[Path]) -> None:
        """Announce files whose lines will be signed, unless they were.

        Raises:
            ManifestError: one is there that no line announced or stated.
        """
        names = [path.relative_to(self.path.parent).as_posix() for path in paths]
        begun: list[Prefix] = []

        def make() -> dict[str, Any] | None:
            begun.extend(self._running.announced(names, self._prefixes))
            return self._announcement(RECORDS_TYPE, files=[prefix.path for prefix in begun]) if begun else None

        self._append(RECORDS, make, begun)

    def state_ledger(self, path: Path, signed: bool = False) -> bool:
        """Announce a file of the energy ledger, before its first line.

        `signed` states that each of its lines is signed as it is written.

        Return False, with a warning, where it is there and no line announced it.
        """
        name = path.relative_to(self.path.parent).as_posix()
        begun: list[Prefix] = []

        def make() -> dict[str, Any] | None:
            if name in self._prefixes or path.exists():
                return None
            begun.append(Prefix(name, 0, 0, sha256_bytes(b""), signed=signed))
            return self._announcement(LEDGER_TYPE, file=name)

        self._append(LEDGER, make, begun)
        if name not in self._prefixes and name not in self._warned:
            self._warned.add(name)
            get_logger(__name__).warning("%s: %s. This run records its energy in another file", path, FOREIGN)
        return name in self._prefixes

    def _announcement(self, kind: str, **about: Any) -> dict[str, Any]:
        before = self._digests[-1] if self._digests else sha256_bytes(b"")
        # A journal is known by its first line, which this may be: the nonce tells two roots of one second apart.
        return statement({FILE_NAME: before}, kind, {**about, "nonce": uuid.uuid4().hex})

    def line_signer(self, path: Path, writer: str) -> SignLine:
        """Make the signer of a writer's lines in a file.

        In a ledger the writer is an interval.
        """
        self._read()
        self._signer = self._signer or self._key()
        name = path.relative_to(self.path.parent).as_posix()
        return line_signer(name, writer, self._digests[0], self._signer)

    def record_signer(self, path: Path, writer: str) -> SignLine:
        """Announce a record unless it was; make its writer's signer.

        Raises:
            ManifestError: it is there, and no line announced or stated it.
        """
        self.state_records([path])
        return self.line_signer(path, writer)

    def state_clock(self, verdicts: Sequence[str], reason: str, account: str) -> int:
        """Void the times of lines ahead of the clock; return the count.

        Args:
            verdicts: files of verdicts that are dated ahead, for the reader.
            reason: why they are.
            account: who signs this.
        """
        count = 0

        def make() -> dict[str, Any]:
            nonlocal count
            late = [entry for entry in read_times(self._entries)[0] if entry.time > now()]
            count = len(late)
            said = {"void": void(late), "verdicts": list(verdicts), "reason": reason, "account": account}
            return statement({FILE_NAME: self._digests[-1] if self._digests else sha256_bytes(b"")}, CLOCK_TYPE, said)

        self._append(CLOCK, make)
        return count

    def sign_apart(self, kind: str, subjects: Mapping[str, str], materials: Iterable[Input], **facts: Any) -> Any:
        """Envelope of a statement for readers without this journal.

        It says nothing of the root's other files, as each line does. Nothing is appended.

        Raises:
            ConfigError: the signing key cannot be read, or its certificate does not hold now.
        """
        time, signer = now(), self._signer or self._key()
        refuse_expired(signer, time)
        return sign(provenance(subjects, materials, {"stage": kind, "signed_at": time, **facts}), signer)

    def _is_stated(self, subjects: Mapping[str, str], seal: str = "") -> bool:
        return all(self._stated.get(name) == (digest, seal) for name, digest in subjects.items())

    def _also(self, manifest: Manifest) -> Iterator[Input]:
        """Further inputs of a run: exported and last checkpoints, verdict."""
        yield from manifest.made_from[len(manifest.inputs) :]
        last = manifest.stats.get("checkpoint")
        if isinstance(last, Mapping):
            yield Input(stage="checkpoint", path=last["path"], digest=last["digest"])
        if manifest.stage in ("checkpoint", "train"):
            corpora = {item.digest for item in manifest.inputs}
            packed = (entry for entry in self._entries if corpora & set(entry.subjects.values()))
            corpora |= {item.digest for entry in packed for item in entry.materials}
            for entry in reversed(self._entries):
                if entry.kind == VERDICT and corpora & named(entry):
                    yield Input(stage=VERDICT, path=entry.place, digest=entry.digest)
                    break

    def _append(self, kind: str, make: Callable[[], Mapping[str, Any] | None], begun: Sequence[Prefix] = ()) -> None:
        with locked(self._lock):
            self._read()
            made = make()
            if made is None:
                return
            if self._signer is None:
                self._signer = self._key()
            torn = bool(self._parsed) and self._parsed[-1] is None
            if torn:
                get_logger(__name__).warning(
                    "%s: line %d was torn by a writer that was killed; it is closed, and stays",
                    self.path,
                    len(self._digests) - 1,
                )
            last = self._digests[-1] if self._digests else ""
            time = now() if kind == CLOCK else self._time()
            entry = {"index": len(self._digests), "kind": kind, "previous": last, "time": time}
            refuse_expired(self._signer, str(entry["time"]))
            grown = [prefix.plain() for prefix in (*begun, *self._running.grown(self._prefixes, self._signers()))]
            block = {**entry, **({"torn": True} if torn else {}), **({GROWN: grown} if grown else {})}
            signed = sign({**made, "predicate": {**made["predicate"], "journal": block}}, self._signer)
            append_line(self.path, canonical_json({**entry, "envelope": signed}).decode("utf-8"), durable=True)
            head = self.head()
        if self._anchor is not None:
            self._anchor.leave(self._digests[0], head, self.holds, str(entry["time"]))
        self._after(head)

    def _signers(self) -> Signers:
        """Signers of signed lines: the run's key and the trusted ones."""
        if self._signer is None or not any(prefix.signed for prefix in self._prefixes.values()):
            return Signers()
        return Signers(self._digests[0], (*self._trusted(), self._signer.trusted()))

    def _time(self) -> str:
        """Now, but never before the last line: clocks of several nodes differ."""
        moment, last = now(), self._entries[-1].time if self._entries else ""
        if moment < last and _seconds(last) - _seconds(moment) > _LATE_SECONDS:
            get_logger(__name__).warning("this machine's clock shows %s; the journal is already at %s", moment, last)
        return max(moment, last)

    def _bytes(self, begin: int) -> bytes:
        """The file's bytes from `begin` on.

        Raises:
            ManifestError: it is not a regular file, or of a size that no journal has.
        """
        try:
            return read_whole(self.path, MAX_JOURNAL_BYTES, begin)
        except ValueError as error:
            raise ManifestError(f"{self.path}: cannot be read ({error}); each root has its journal") from error

    def _read(self, whole: bytes | None = None) -> None:
        """Read the lines appended since the last call, without verifying them.

        `whole` is the file's content, if it was read.
        """
        size = len(whole) if whole is not None else self.path.stat().st_size if self.path.exists() else 0
        if size == self._size:
            return
        if size < self._size or not self._ended:
            self._forget()
        data = whole[self._size :] if whole is not None else self._bytes(self._size)
        for line in lines_of(data):
            entry = parse_line(line, len(self._digests))
            self._digests.append(sha256_bytes(line))
            self._parsed.append(entry)
            if entry is not None:
                self._entries.append(entry)
                self._stated.update({name: (digest, entry.seal) for name, digest in entry.subjects.items()})
                self._prefixes.update((prefix.path, prefix) for prefix in entry.grown)
        self._hash.update(data)
        self._size, self._ended = self._size + len(data), data.endswith(b"\n")


def _seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()
