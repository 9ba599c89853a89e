"""Chain check: an artifact and its ancestors against the journal.

A manifest's own digests and its seal are not secret: an account that can write the file can make them match. The
journal's statement of that manifest needs a trusted key. So before a verdict is signed, and again before
training, each manifest of the chain must have the digest, the seal and the inputs of its last statement, and be the
one that the next artifact names as its input.

An artifact that was removed whole, to save space, is not a fault: the statements of its products hold its digest. Nor
is an input in another root, which has a journal of its own.

`chain_faults` is pure; `read_chain` reads the manifests; `require_chain` is called before signing and before
training. Price: one JSON file per artifact, and the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from governance.errors import GateClosed, ManifestError, MissingInput
from governance.manifest import FILE_NAME, SOURCES, Input, Manifest, read_manifest
from governance.signing.journal import Journal
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.signing.journal_lines import JournalEntry
from governance.stage_order import CORPUS_STAGES

_PREPARED = {row.name for row in CORPUS_STAGES} | {"bias", "audit"}
Stated = Mapping[str, JournalEntry]
"""The last entry about each file, by its path below the root."""


def require_whole(journal: Journal) -> Sequence[JournalEntry]:
    """Verify the journal and compare it with its anchor; return its entries.

    Raises:
        GateClosed: it lacks lines that it had.
        ManifestError: it was altered, or its signer is not trusted.
    """
    entries = journal.verified()
    if fault := journal.behind():
        raise GateClosed(f"{journal.path} is behind its anchor: {fault}")
    return entries


def require_chain(ends: Sequence[Manifest], root: Path, journal: Journal) -> None:
    """Raise unless these artifacts and their ancestors match the journal.

    Raises:
        GateClosed: names each manifest that does not match, and the command that makes it again; or the journal was
            altered or lacks lines that it had.
    """
    try:
        entries = require_whole(journal)
    except ManifestError as error:
        raise GateClosed(f"the journal cannot be trusted: {error}") from error
    journal.keep()
    stated = latest_statements(entries)
    prepared = all(end.stage in _PREPARED for end in ends)
    manifests, faults = read_chain([_committed(end, root, entries, stated) for end in ends], root)
    if faults := [*faults, *chain_faults(manifests, stated)]:
        raise GateClosed(
            "\n  ".join(
                [
                    f"{root} differs from what was signed about it:",
                    *faults,
                    "Restore the files, or remove the folder of each file named here and make it again: "
                    + (
                        "assay data prepare CONFIG, then: assay governance check CONFIG"
                        if prepared
                        else "with the command that made it"
                    ),
                ]
            )
        )


def _committed(end: Manifest, root: Path, entries: Iterable[JournalEntry], stated: Stated) -> Manifest:
    """The manifest in the root, where another process made it again.

    Both have one digest and stated their `run` blocks, of which the last one counts. A manifest that nobody stated, or
    whose last statement has another digest, is returned as it is, to be refused.
    """
    last, mine = stated.get(end.path), (end.digest, end.seal)
    if last is None or last.seal == end.seal or last.subjects[end.path] != end.digest:
        return end
    if mine not in ((entry.subjects.get(end.path), entry.seal) for entry in entries if entry.states_files):
        return end
    try:
        return read_manifest(root / end.path)
    except (ManifestError, MissingInput):
        return end


def require_stated(manifests: Iterable[Manifest], root: Path, journal: Journal) -> None:
    """Raise unless the journal states each of these artifacts, last or earlier.

    An earlier statement counts: a process that is killed while it saves a step again has stated what it did not write.
    The manifests are read before the journal: another training states a checkpoint before it writes the manifest.

    Raises:
        GateClosed: names each manifest without a statement.
        ManifestError: the journal cannot be trusted.
    """
    manifests = list(manifests)
    entries = [entry for entry in journal.verified() if entry.states_files]
    stated = {(*subject, entry.seal) for entry in entries for subject in entry.subjects.items()}
    faults = [one.path for one in manifests if (one.path, one.digest, one.seal) not in stated]
    if faults:
        raise GateClosed(
            "\n  ".join(
                [
                    f"{root / JOURNAL} has no statement of these artifacts as they are:",
                    *sorted(faults),
                    "Restore the files, or remove the folder of each and make it again",
                ]
            )
        )


def latest_statements(entries: Iterable[JournalEntry]) -> Stated:
    """The last statement about each file, of entries that were verified."""
    return {name: entry for entry in entries for name in entry.subjects if entry.states_files}


def read_chain(ends: Sequence[Manifest], root: Path) -> tuple[dict[str, Manifest], list[str]]:
    """Artifacts and ancestors below `root` by path, and unreadable ones."""
    found: dict[str, Manifest] = {}
    faults: dict[str, str] = {}
    waiting = [(manifest.path, manifest) for manifest in ends]
    while waiting:
        path, manifest = waiting.pop()
        found[path] = manifest
        for item in _artifacts(manifest.inputs):
            if item.path not in found and item.path not in faults:
                try:
                    waiting.append((item.path, read_manifest(root / item.path)))
                except MissingInput:
                    continue
                except ManifestError as error:
                    faults[item.path] = f"{item.path}: {str(error).removeprefix(f'{root / item.path}: ')}"
    return found, sorted(faults.values())


def chain_faults(manifests: Mapping[str, Manifest], stated: Stated) -> Iterator[str]:
    """Differences from the journal's last statements, naming the manifests."""
    digests = {path: manifest.digest for path, manifest in manifests.items()}
    for path, manifest in sorted(manifests.items()):
        if manifest.path != path:
            yield f"{path}: states that it is {manifest.path}"
        yield from (f"{path}: {fault}" for fault in unstated(manifest, stated, digests[path]))
        for item in _artifacts(manifest.inputs):
            yield from (f"{path}: {fault}" for fault in _other_input(item, digests.get(item.path), stated))


def unstated(manifest: Manifest, stated: Stated, digest: str = "") -> Iterator[str]:
    """Differences between one manifest and its last statement.

    `digest` is the manifest's, where the caller knows it.
    """
    entry = stated.get(manifest.path)
    if entry is None:
        yield f"{JOURNAL} has no statement of it: another program wrote it, or the journal was truncated"
        return
    place, predicate = f"{JOURNAL} line {entry.index}", entry.statement["predicate"]
    digest = digest or manifest.digest
    if (said := entry.subjects[manifest.path]) != digest:
        yield f"{place} states digest {said[:16]}…, the manifest has {digest[:16]}…"
    elif (entry.kind, predicate.get("key"), predicate.get("version")) != (
        manifest.stage,
        manifest.key,
        manifest.version,
    ):
        yield f"{place} states another stage, key or version"
    elif entry.materials[: len(manifest.inputs)] != manifest.inputs:
        yield f"{place} states other inputs"
    elif entry.seal != manifest.seal:
        yield f"{place} states another `run` block: its energy, times or host were altered"


def _artifacts(inputs: Iterable[Input]) -> Iterator[Input]:
    return (item for item in inputs if item.stage not in SOURCES and item.path.endswith(FILE_NAME))


def _other_input(item: Input, there: str | None, stated: Stated) -> Iterator[str]:
    """Difference of an input from `there`, its present digest.

    Without one, from the last statement about it.
    """
    entry = stated.get(item.path)
    if there is not None:
        if there != item.digest:
            yield f"was made from {item.path} with digest {item.digest[:16]}…, now {there[:16]}…"
    elif entry is not None and entry.subjects[item.path] != item.digest:
        yield f"was made from {item.path} with digest {item.digest[:16]}…; {JOURNAL} line {entry.index} states another"
