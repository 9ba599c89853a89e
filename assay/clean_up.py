"""Clean-up of a root: artifacts that nothing present rests on.

An artifact of the corpus, its audit or its parts (`REMOVABLE`) is kept if one of these rests on it, itself or through
what it was made from, as its manifest or any line of the journal states:

- the run of the given configuration, and artifacts that the user or the configuration names;
- a verdict below `verdicts/`: the corpus and the audit that it judges;
- an artifact of any other stage (downloads, classifiers, checkpoints, runs, reports, documents);
- a line of the journal of any other kind (verdict, checkpoint, report, export, pushed corpus, evaluation), also where
  its subject was removed since.

Audits and their counts are kept with their corpus. Everything in doubt is kept, too: an artifact that differs from its
last statement, or that a link leads to. Unfinished artifacts are never removed. Nothing is removed where the journal is
missing, altered or behind its anchor.

`clean_up` plans under a lock, states the removal in the journal (`urn:assay:clean-up:1`, signed: each manifest with its
digest), then moves each folder out of the way with one rename, products before what they were made from, removes the
records that only these artifacts list, and deletes what it moved. So an artifact is whole or gone at every moment, and
verification, which accepts an artifact that was removed whole, is right after each step. A clean-up that was killed is
continued by the next one. Price: one manifest per artifact, the journal, and a `stat` per file.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from governance.config import Section
from governance.errors import GateClosed, ManifestError, MissingInput, Occupied, StorageError, storage_errors
from governance.files import held, is_held, living_writers, move_folder, remove_file, remove_tree, sha256_bytes
from governance.gate.chain import Stated, latest_statements, require_chain, unstated
from governance.gate.verdict import Keyring, read_verdict
from governance.lineage.unlisted_files import RECORD
from governance.log import get_logger
from governance.manifest import FILE_NAME, SOURCES, Manifest, read_manifest
from governance.signing.dsse import statement
from governance.signing.journal import VERDICT, Journal
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.signing.journal_lines import JournalEntry
from governance.stage_order import CORPUS_STAGES
from pretrain.distributed.lease import live_holder

STATEMENT, STATEMENT_TYPE = "clean-up", "urn:assay:clean-up:1"
REMOVED = ".clean-up"
"""Folder of a root for what is being deleted: two levels deeper than artifacts, so that nothing mistakes it for one."""
_WITH_CORPUS = (
    "bias", "audit", "data_docs", "model_audit", "memorisation", "claim_language", "claim_recall", "claims",
    "scaling", "mixture", "text_index", "verbatim",
)  # fmt: skip
_PARTS = ("lists", "language_model", "evaluation_sets")
_NOT_CORPUS = (*_PARTS, "fetch", "classifier")
"""Inputs of an audit that many corpora share."""
REMOVABLE = frozenset((*(row.name for row in CORPUS_STAGES), *_WITH_CORPUS, *_PARTS, "teacher_logits"))


@dataclass(frozen=True)
class Candidate:
    """An artifact that a clean-up could remove."""

    path: str
    """Its folder below the root."""
    bytes: int
    """Size of its files."""
    kept_for: str
    """Reason why it stays; "": none, so it is removed."""
    manifest: Manifest


@dataclass(frozen=True)
class CleanUp:
    """Plan of a clean-up: artifacts to remove and to keep."""

    candidates: tuple[Candidate, ...]
    records: tuple[str, ...]
    """Files of `<stage>/records/` that only removed artifacts list."""
    freed: int
    """Bytes that the disk gets back: files that a kept artifact shares by a hard link do not count."""

    @property
    def free(self) -> list[Candidate]:
        """The artifacts that nothing rests on."""
        return [candidate for candidate in self.candidates if not candidate.kept_for]


def plan_clean_up(root: Path, named: Iterable[tuple[str, str]], keyring: Keyring, journal: Journal) -> CleanUp:
    """The artifacts of a root, with the reason why each is kept.

    Args:
        root: the artifacts' root.
        named: (reason, path of the manifest below the root) of artifacts kept for themselves.
        keyring: has the trusted keys.
        journal: the root's journal.

    Raises:
        GateClosed: the journal is missing, altered, or behind its anchor.
        ManifestError: a manifest or verdict cannot be read, so what it rests on is not known.
        StorageError: the folder for what is being deleted is a link.
    """
    if (root / REMOVED).is_symlink():
        raise StorageError(f"{root / REMOVED}: is a link to another folder. Nothing was removed. Remove the link.")
    there = _manifests(root)
    if there and not ((root / JOURNAL).is_file() and (root / JOURNAL).stat().st_size):
        raise GateClosed(
            f"{root / JOURNAL}: is missing or empty, so what rests on the artifacts of this root is not known. Nothing "
            "was removed. Restore the journal."
        )
    require_chain((), root, journal)
    entries = journal.verified()
    stated = latest_statements(entries)
    kept = _kept(root, there, entries, [*named, *_judged(root, keyring)])
    candidates = tuple(
        Candidate(
            manifest.folder,
            sum(path.stat().st_size for path in _files(root / manifest.folder)),
            kept.get(path, ""),
            manifest,
        )
        for path, manifest in there.items()
        if manifest.stage in REMOVABLE
    )
    free = [one.manifest for one in candidates if not one.kept_for]
    removed = [*free, *(one for one in _half_removed(root) if not any(unstated(one, stated)))]
    staying = [manifest for path, manifest in there.items() if path not in {one.path for one in free}]
    records = _unneeded_records(root, removed, staying)
    gone = [path for one in free for path in _files(root / one.folder)]
    return CleanUp(candidates, records, _freed([*gone, *(root / name for name in records)]))


def _manifests(root: Path) -> dict[str, Manifest]:
    """Path below the root -> manifest, of every artifact.

    Raises:
        ManifestError: a manifest cannot be read, or states another place.
    """
    manifests = {}
    for file in sorted(root.glob(f"*/*/{FILE_NAME}")):
        manifest = manifests[file.relative_to(root).as_posix()] = read_manifest(file)
        if root / manifest.path != file:
            raise ManifestError(f"{file}: states that it is {manifest.path}. Remove or restore its folder.")
    return manifests


def _unneeded_records(root: Path, removed: Iterable[Manifest], staying: Iterable[Manifest]) -> tuple[str, ...]:
    """Records that only removed artifacts list, in order of removal."""
    needed = {item.path for one in staying for item in (*one.beside, *one.outputs)}
    listed = {item.path for one in removed for item in one.beside}
    records = (name for name in listed - needed if _is_record(root, name))
    return tuple(sorted(records, key=lambda name: (name.endswith(".json"), name)))  # a note after what it vouches for


def named_in(config: Section, against: Sequence[str], folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Artifacts of which a configuration names files.

    A custom tokenizer, sources in the root, and the artifacts of `dedup.against`. Every text that reads as a
    path into the root counts, a pattern by what comes before its first wildcard.
    """
    below = f"{root.resolve()}{os.sep}"
    texts = [*((folder, text) for text in _texts(config)), *((root, text) for text in against)]
    places = {os.path.realpath(start / re.split(r"[*?\[]", text)[0]) for start, text in texts if "\0" not in text}
    for file in sorted(root.glob(f"*/*/{FILE_NAME}")):
        artifact = f"{file.parent.resolve()}{os.sep}"
        if any(
            f"{place}{os.sep}".startswith(artifact) or artifact.startswith(place)
            for place in places
            if place.startswith(below)
        ):
            yield "the configuration, which names it", file.relative_to(root).as_posix()


def _texts(value: object) -> Iterator[str]:
    """Every text in a section."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Section):
        yield from _texts(list(vars(value).values()))
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _kept(
    root: Path, there: Mapping[str, Manifest], entries: Sequence[JournalEntry], named: Iterable[tuple[str, str]]
) -> dict[str, str]:
    """Path of each manifest that is kept -> reason.

    Artifacts that were removed since are included. Everything that a kept artifact rests on is kept with it, whatever
    its digest.
    """
    rests_on: dict[str, set[str]] = {}
    ends = [*named, *((one.folder, path) for path, one in there.items() if one.stage not in REMOVABLE)]
    for entry in entries:
        used = _used(entry)
        for name in entry.subjects:
            rests_on.setdefault(name, set()).update(used)
        if entry.kind not in REMOVABLE:
            ends += [(f"{entry.kind} ({entry.place})", path) for path in sorted(used)]
    for path, manifest in there.items():
        rests_on.setdefault(path, set()).update(item.path for item in manifest.made_from if item.stage not in SOURCES)
    stated = latest_statements(entries)
    ends += [
        (f"safety: {doubt}", path) for path, manifest in there.items() if (doubt := _doubt(root, manifest, stated))
    ]
    kept: dict[str, str] = {}
    while ends:
        for reason, path in ends:
            waiting = [path]
            while waiting:
                one = waiting.pop()
                if one not in kept:
                    kept[one] = reason
                    waiting += rests_on.get(one, ())
        ends = list(_audits(there, rests_on, kept))  # an audit rests on its counts, so the next look can find more
    return kept


def _used(entry: JournalEntry) -> set[str]:
    """Manifests that a line's subjects were made from, or that it judges."""
    used = {item.path for item in entry.materials if item.stage not in SOURCES}
    if entry.kind == VERDICT:
        judged = [entry.statement["predicate"].get(item) for item in ("corpus", "audit")]
        used |= {str(item["path"]) for item in judged if isinstance(item, Mapping)}
    return used


def _audits(
    there: Mapping[str, Manifest], rests_on: Mapping[str, set[str]], kept: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Audits not kept yet, with their counts, whose corpus is kept."""
    for path, manifest in there.items():
        corpus = sorted(item for item in rests_on[path] if item.partition("/")[0] not in _NOT_CORPUS)
        if manifest.stage in _WITH_CORPUS and path not in kept and corpus and all(item in kept for item in corpus):
            yield f"{kept[corpus[0]].removesuffix(' (its corpus)')} (its corpus)", path


def _judged(root: Path, keyring: Keyring) -> Iterator[tuple[str, str]]:
    """The corpus and audit of each verdict."""
    for file in sorted(root.glob("verdicts/*.json")):
        verdict = read_verdict(file, keyring)
        yield from ((file.relative_to(root).as_posix(), verdict[item]["path"]) for item in ("corpus", "audit"))


def _doubt(root: Path, made: Manifest, stated: Stated) -> str:
    """Reason for doubt about a removable artifact; "" if none."""
    if made.stage not in REMOVABLE:
        return ""
    if (root / made.folder).resolve() != root.resolve() / made.folder:
        return "a link leads to it, so its files are elsewhere"
    return next(unstated(made, stated), "")


def _half_removed(root: Path) -> Iterator[Manifest]:
    """Artifacts that a killed clean-up has moved and not deleted."""
    for file in sorted(root.glob(f"{REMOVED}/*/*/*/{FILE_NAME}")):
        with contextlib.suppress(ManifestError, MissingInput):
            yield read_manifest(file)


def _is_record(root: Path, name: str) -> bool:
    """Return whether a name is a shard's record in its folder."""
    stage, path = name.partition("/")[0], root / name
    if RECORD.fullmatch(name) is None or stage not in REMOVABLE:
        return False
    inside = path.parent.resolve() == root.resolve() / stage / "records"
    return inside and path.is_file() and not path.is_symlink()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]


def _freed(paths: Iterable[Path]) -> int:
    names: Counter[tuple[int, int]] = Counter()
    facts = {}
    for path in paths:
        state = path.stat()
        names[state.st_dev, state.st_ino] += 1
        facts[state.st_dev, state.st_ino] = state
    return sum(facts[inode].st_size for inode, count in names.items() if count >= facts[inode].st_nlink)


def in_use(root: Path, *, joins: bool = False) -> str:
    """The process that works in a root; "" where none is seen.

    Seen are the lease of a training, the locks of workers (not of a join where this process `joins`), and files that a
    living process is writing.
    """
    for folder in sorted(root.glob("train/*")):
        if holder := live_holder(folder):
            return f"a training in {folder.relative_to(root)}: {holder}"
    for lock in (
        *sorted(root.glob("share-*.lock")),
        *sorted(root.glob("claim_*.lock")),
        *(() if joins else (root / "join.lock",)),
    ):
        if is_held(lock):
            return f"a worker that holds {lock.name}"
    for path, process in living_writers(root):
        return f"process {process}, which writes {path.relative_to(root)}"
    return ""


def clean_up(root: Path, plan: Callable[[], CleanUp], journal: Journal) -> CleanUp:
    """Remove what the plan frees; it continues a clean-up that was killed.

    Args:
        root: the artifacts' root.
        plan: is called once no other command is seen in the root.
        journal: the root's journal, which gets the statement before anything is removed.

    Raises:
        Occupied: a training or another command works in the root.
        StorageError: the disk refuses.
    """
    with held(root / "join.lock", f"clean-up, process {os.getpid()} on {socket.gethostname()}") as holder:
        user = f"a worker that holds join.lock: {holder}" if holder is not None else in_use(root, joins=True)
        head = journal.head()
        found = plan() if not user else None
        if found is not None:  # the plan takes a while, and somebody may have begun to read meanwhile
            user = f"a command that appended to {JOURNAL}" if journal.head() != head else in_use(root, joins=True)
        if user or found is None:
            raise Occupied(f"{root}: is used by {user}. Nothing was removed. Wait until it ends, then run this again.")
        if found.free:
            removed = [
                {"path": candidate.manifest.path, "digest": candidate.manifest.digest, "bytes": candidate.bytes}
                for candidate in found.free
            ]
            subject = {f"{JOURNAL}#{head.partition(':')[0]}": head.partition(":")[2] or sha256_bytes(b"")}
            journal.append(STATEMENT, statement(subject, STATEMENT_TYPE, {"removed": removed}))
            with storage_errors(root / REMOVED):
                (root / REMOVED).mkdir(exist_ok=True)
                own = Path(tempfile.mkdtemp(dir=root / REMOVED))  # only this account can open it; no link in it
            for candidate in _products_first(found.free):
                move_folder(root / candidate.path, own / candidate.path)
        for name in found.records:
            remove_file(root / name)
        remove_tree(root / REMOVED)
    get_logger(__name__).info("%s: %d artifacts removed", root, len(found.free))
    return found


def _products_first(artifacts: Sequence[Candidate]) -> Iterator[Candidate]:
    """Artifacts in order of removal, products before their inputs."""
    left = {artifact.manifest.path: artifact for artifact in artifacts}
    while left:
        inputs = {item.path for artifact in left.values() for item in artifact.manifest.made_from}
        last = [path for path in left if path not in inputs]
        yield from [left.pop(path) for path in last or list(left)]
