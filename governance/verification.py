"""Verification of an artifact or root; `deep` includes signatures.

Promise of the plain check: one changed byte in a file that a manifest lists, in a manifest, or in a verdict is found,
and so is a file that no rule lists (`unlisted_files.py`); the problem names the file (of a large one the 64 MiB
piece). It reads every byte once, as fast as SHA-256 and the disk allow. `deep` adds what an attacker could forge
and what an accident can damage: the journal's chain and every signature in it, a statement for each
artifact that agrees with its manifest, each beginning that was ever stated of a file that grows
(`running_digests.py`), the energy ledger's figures against the manifests', the records of shards, the leaves of large
files, the heads that runs noted, model signatures, and that each waiver which a verdict used was in force for that
corpus.

An artifact that was removed whole, to save space, is not a fault; it is still in the journal. Source files cannot be
checked: only their digests are here.

A manifest's `run.energy` and the ledger's last line about its making are one reading of one meter, so they are equal to
the millijoule. To alter one unnoticed, the other must be altered, too, and the journal states both.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from governance.energy.ledger import FILE_NAME as LEDGER
from governance.energy.ledger import Interval, files_of, read_ledger
from governance.errors import ManifestError, MissingInput
from governance.files import json_text, sha256_bytes, sha256_file
from governance.gate.chain import Stated, latest_statements, unstated
from governance.gate.refusals import removal_faults
from governance.gate.verdict import Keyring, read_verdict
from governance.lineage.attest import MIRROR, MODEL_SIGNATURE, KeySigner, journal_keys, open_journal
from governance.lineage.lineage_graph import read_graph
from governance.lineage.unlisted_files import beside_faults, find_unlisted, note_faults
from governance.log import progress
from governance.manifest import FILE_NAME, SOURCES, Input, Manifest, read_manifest, verify
from governance.recomputation.audit_statement import audit_faults
from governance.replay.replay_statement import replay_faults
from governance.signing.git_anchor import anchor_faults
from governance.signing.journal import VERDICT, Journal
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.signing.journal_lines import JournalEntry, ahead_words, read_journal
from governance.signing.openssf import signature_faults
from governance.signing.running_digests import Signers, StatedPrefix, growing_files, prefix_faults
from governance.stage import root_of


@dataclass(frozen=True)
class _JournalEvidence:
    """Statements of the journal, for deep verification."""

    entries: Sequence[JournalEntry]
    latest: Stated
    signer: KeySigner
    """Decides which notes count."""
    growing: Sequence[str]
    """Files that grow, as they were before the journal was read."""
    signers: Signers
    """Those whose signed lines of the ledger count."""


class Verified(NamedTuple):
    """Result of a verification; texts begin with the file's path."""

    files: int
    """Number of files that were read."""
    problems: list[str]
    notes: list[str]
    """Unsigned content that is not a fault: an end that is not stated yet, an unfinished artifact."""


def verify_root(root: Path, keyring: Keyring, *, deep: bool = False) -> Verified:
    """Check every file below `root`.

    Raises:
        MissingInput: there is no artifact below `root`.
    """
    paths = sorted(root.glob(f"*/*/{FILE_NAME}"))
    if not paths:
        raise MissingInput(f"{root}: no artifact here (no <stage>/<key>/{FILE_NAME}). Give the root of a run.")
    evidence, problems = _evidence(root, keyring) if deep else (None, [])
    if behind := open_journal(keyring, root).behind() if deep else "":
        problems.append(f"{JOURNAL}: {behind}")
    files, faults = _verify_each(paths, root, evidence)
    problems += faults
    for path in sorted(root.glob("verdicts/*.json")):
        files += 1
        problems += _verify_verdict(path, root, keyring, evidence)
    if evidence is not None:
        files += 1
        problems += [*_lost(root, evidence), *removal_faults(root, evidence.entries)]
        problems += [*replay_faults(evidence.entries, root), *audit_faults(evidence.entries, root)]
    faults, notes = _verify_others(root, [""], evidence)
    return Verified(files, problems + faults, notes)


def verify_artifact(artifact: Path, keyring: Keyring, *, deep: bool = False) -> Verified:
    """Check one artifact.

    `deep` also checks all its remaining ancestors, and every statement about them.

    Raises:
        MissingInput: there is none.
    """
    root, path = root_of(artifact).absolute(), artifact if artifact.name == FILE_NAME else artifact / FILE_NAME
    path = path.resolve()
    own = path.parent.relative_to(root).as_posix()
    if not deep:
        files, faults = _verify_each([path], root, None)
        others, notes = _verify_others(root, [own], None)
        return Verified(files, faults + others, notes)
    evidence, problems = _evidence(root, keyring)
    graph = read_graph(root)
    try:
        above = [node for _, node in graph.ancestors(graph.find(read_manifest(path)))]
    except ManifestError:
        above = []  # the artifact's own check reports the fault
    paths = [root / node.path for node in above if node.manifest is not None]
    files, faults = _verify_each([path, *paths], root, evidence)
    stated = {entry.place: entry for entry in evidence.entries}
    verdicts = [
        root / name
        for node in above
        if node.stage == VERDICT and node.path in stated
        for name in stated[node.path].subjects
        if name.startswith("verdicts/") and (root / name).exists()
    ]
    for verdict in verdicts:
        faults += _verify_verdict(verdict, root, keyring, evidence)
    folders = [own, *(path.parent.relative_to(root).as_posix() for path in paths)]
    others, notes = _verify_others(root, folders, evidence)
    return Verified(files + 1 + len(verdicts), problems + faults + others, notes)


def require_growing(manifests: Iterable[Manifest], root: Path, journal: Journal) -> None:
    """Raise where a ledger or record differs from its statements.

    A report on these artifacts rests on the files that grow: the energy ledger, the record of a training, a cluster's.

    Raises:
        ManifestError: names each file with its fault; or the journal cannot be trusted.
    """
    growing = growing_files(root)
    faults, _ = prefix_faults(root, growing, _prefixes(journal.verified()))
    if faults := [*faults, *ledger_faults(manifests, root)]:
        raise ManifestError(
            "\n  ".join(
                [
                    f"{root}: a report would rest on what is not as it was signed:",
                    *faults,
                    "Restore these files as they were. A training whose record is lost starts again: remove its "
                    "folder, then assay train CONFIG. Without lost lines of the energy ledger this root has no report: "
                    "run again in a new one (--root)",
                ]
            )
        )


def verify_evidence(manifests: Sequence[Manifest], root: Path, keyring: Keyring) -> list[str]:
    """Faults of a report's evidence, each beginning with the path.

    Checks the journal's chain and signatures; that these manifests are what it states last; every stated beginning
    of the files that grow; the ledger's figures against the manifests'; and that no report rests on more than was
    stated when it was written.
    """
    evidence, problems = _evidence(root, keyring)
    problems += [f"{one.path}: {fault}" for one in manifests for fault in unstated(one, evidence.latest)]
    faults, _ = prefix_faults(root, evidence.growing, _prefixes(evidence.entries), evidence.signers)
    return [*problems, *faults, *ledger_faults(manifests, root), *_rested_on(manifests, root, evidence)]


def _verify_others(
    root: Path, folders: Sequence[str], evidence: _JournalEvidence | None
) -> tuple[list[str], list[str]]:
    """Problems and notes on files that are not outputs.

    Only files below these folders of the root are checked; "" is the root.
    """
    manifests = dict(_manifests(root))
    whole = [manifest for manifest in manifests.values() if manifest is not None]
    ours = whole if "" in folders else [manifest for manifest in whole if manifest.folder in folders]
    problems = beside_faults(ours, root)
    notes: list[str] = []
    latest = evidence.latest.items() if evidence is not None else ()
    mirrored = [name for name, entry in latest if entry.kind == MIRROR]
    for folder in folders:
        found = find_unlisted(manifests, root, folder, mirrored)
        problems += found.problems
        notes += found.notes
    if evidence is None:
        return problems, notes
    faults, unstated_ends = prefix_faults(root, evidence.growing, _prefixes(evidence.entries), evidence.signers)
    faults += note_faults(whole, root, evidence.signer)
    about = tuple(f"{folder}/" for folder in folders)
    faults, unstated_ends = (
        [line for line in lines if "" in folders or line.startswith((*about, "energy."))]
        for lines in (faults, unstated_ends)
    )
    problems += [*faults, *ledger_faults(ours, root), *_rested_on(ours, root, evidence)]
    return problems, notes + unstated_ends


def _manifests(root: Path) -> Iterator[tuple[str, Manifest | None]]:
    """Every manifest below a root by its path.

    The value is None for one that cannot be read, which is reported under its own name.
    """
    for path in sorted(root.glob(f"*/*/{FILE_NAME}")):
        try:
            yield path.relative_to(root).as_posix(), read_manifest(path)
        except ManifestError:
            yield path.relative_to(root).as_posix(), None


def _prefixes(entries: Iterable[JournalEntry]) -> dict[str, list[StatedPrefix]]:
    """Stated prefixes of growing files, by path and in order."""
    prefixes: dict[str, list[StatedPrefix]] = {}
    for entry in entries:
        for prefix in entry.grown:
            prefixes.setdefault(prefix.path, []).append(StatedPrefix(f"{JOURNAL} line {entry.index}", prefix))
    return prefixes


def _rested_on(manifests: Sequence[Manifest], root: Path, evidence: _JournalEvidence) -> Iterator[str]:
    """Growing files that a report read beyond their last statement."""
    for manifest in manifests:
        own = evidence.latest.get(manifest.path)  # without it the whole report is reported under its own name
        page = f"{manifest.folder}/report.json"
        if manifest.stage != "report" or own is None or not (root / page).is_file():
            continue
        data = (root / page).read_bytes()
        if sha256_bytes(data) not in {output.sha256 for output in manifest.outputs if output.path == page}:
            yield f"{page}: is not as its manifest states, so what it rests on is not known"
            continue
        until = [entry for entry in evidence.entries if entry.index <= own.index]
        stated = {prefix.path: prefix.bytes for entry in until for prefix in entry.grown}
        try:
            entries = json.loads(data)["evidence"]["entries"]
            read = {entry["path"]: entry["bytes"] or 0 for entry in entries if entry["path"].endswith(".jsonl")}
        except (ValueError, KeyError, TypeError):
            continue  # reported under its own name
        for name, size in read.items():
            if size > (least := stated.get(name, 0)):
                yield f"{name}: {manifest.folder} rests on {size} bytes of it, {least} were stated by then"


def _verify_each(paths: Sequence[Path], root: Path, evidence: _JournalEvidence | None) -> tuple[int, list[str]]:
    files, problems = 0, []
    with progress("verify", len(paths), "artifacts") as advance:
        for path in paths:
            count, faults = _verify_artifact(path, root, evidence)
            files += count
            problems += faults
            advance(1)
    return files, problems


def _verify_artifact(path: Path, root: Path, evidence: _JournalEvidence | None) -> tuple[int, list[str]]:
    name = path.relative_to(root).as_posix()
    try:
        manifest = read_manifest(path)
    except ManifestError as error:
        return 1, [f"{name}: {str(error).removeprefix(f'{path}: ')} Its files cannot be checked."]
    problems = []
    if path.read_bytes() != json_text(json.loads(path.read_bytes())).encode("utf-8"):
        problems.append(f"{name}: its bytes are not canonical: it was altered")
    if manifest.path != name:
        problems.append(f"{name}: states that it is {manifest.path}")
    for item in manifest.inputs:
        problems += [f"{name}: {problem}" for problem in _verify_input(item, root)]
    if evidence is not None:
        problems += [f"{name}: {problem}" for problem in unstated(manifest, evidence.latest)]
        if head := manifest.run.get("journal"):  # the journal must still have the line that it noted
            problems += [f"{name}: {JOURNAL} {fault}" for fault in anchor_faults(head, evidence.entries)]
        problems += signature_faults(manifest, root) if manifest.stage == "checkpoint" else []
    return 1 + len(manifest.outputs), problems + verify(manifest, root, deep=evidence is not None)


def _verify_input(item: Input, root: Path) -> list[str]:
    """Check that a remaining input is the one used."""
    path = root / item.path
    if item.stage in SOURCES or not path.exists():
        return []
    try:
        digest = read_manifest(path).digest
    except ManifestError:
        return []  # reported under its own name
    return (
        []
        if digest == item.digest
        else [f"was made from {item.path} with digest {item.digest[:16]}…, now {digest[:16]}…"]
    )


def _verify_verdict(path: Path, root: Path, keyring: Keyring, evidence: _JournalEvidence | None) -> list[str]:
    name = path.relative_to(root).as_posix()
    try:
        verdict = read_verdict(path, keyring)
    except ManifestError as error:
        return [f"{name}: {str(error).removeprefix(f'{path}: ')}"]
    if path.read_bytes() != json_text(json.loads(path.read_bytes())).encode("utf-8"):
        return [f"{name}: its bytes are not canonical: it was altered"]
    problems = _verify_input(Input(stage="encode", **verdict["corpus"]), root)
    if evidence is not None:
        problems += [*_unstated_verdict(name, path, evidence), *_waivers(verdict)]
    return [f"{name}: {problem}" for problem in problems]


def _evidence(root: Path, keyring: Keyring) -> tuple[_JournalEvidence, list[str]]:
    signer, keys, growing = KeySigner(keyring), journal_keys(keyring), growing_files(root)
    try:
        entries, problems = read_journal(root / JOURNAL, keys)
    except ManifestError as error:
        return _JournalEvidence((), {}, signer, growing, Signers()), [
            f"{JOURNAL}: {str(error).removeprefix(f'{root / JOURNAL}: ')}"
        ]
    problems += [f"{JOURNAL}: {words}" for words in ahead_words(entries, datetime.datetime.now(datetime.UTC))]
    signers = Signers(entries[0].digest if entries else "", keys)
    return _JournalEvidence(entries, latest_statements(entries), signer, growing, signers), problems


def _unstated_verdict(name: str, path: Path, evidence: _JournalEvidence) -> list[str]:
    """Verdict files that the journal does not state."""
    entry = evidence.latest.get(name)
    if entry is not None and entry.subjects[name] == sha256_file(path):
        return []
    return [f"{JOURNAL} has no statement of it as it is: it is an old one put back, or the journal was cut"]


def _waivers(verdict: Mapping[str, Any]) -> Iterator[str]:
    """Waivers that did not hold when the verdict used them."""
    given = datetime.datetime.fromisoformat(verdict["signed_at"]).date()
    for waiver in verdict["waivers"]:
        if datetime.date.fromisoformat(waiver["expires"]) < given:
            yield f"used a waiver of {waiver['gate']} that had expired on {waiver['expires']}"
        if waiver["subject"] != verdict["corpus"]["digest"]:
            yield f"used a waiver of {waiver['gate']} that belongs to another corpus"


def _lost(root: Path, evidence: _JournalEvidence) -> Iterator[str]:
    """Stated files that are missing from an existing folder."""
    for name, entry in evidence.latest.items():
        path = root / name
        if entry.kind in (MODEL_SIGNATURE, MIRROR) and path.exists() and sha256_file(path) != entry.subjects[name]:
            yield f"{name}: is not as {JOURNAL} line {entry.index} states it"
        if path.exists() or not path.parent.is_dir():
            continue
        if path.name == FILE_NAME or entry.kind in (VERDICT, MODEL_SIGNATURE, MIRROR):
            why = "its folder is there: it was moved, or its making killed"
            yield f"{name}: is missing, though {JOURNAL} line {entry.index} states it and {why}"


def ledger_faults(manifests: Iterable[Manifest], root: Path) -> list[str]:
    """Disagreements between the ledger and manifests, each naming its file."""
    measured = {manifest.folder: manifest for manifest in manifests if _figures(manifest)[0] is not None}
    if not measured:
        return []
    try:
        if not files_of(root / LEDGER):
            return [f"{LEDGER}: is missing, but {len(measured)} manifests state measured energy"]
        intervals = read_ledger(root / LEDGER, lambda line: False)
    except ManifestError as error:
        return [str(error).removeprefix(f"{root}/")]
    made: dict[str, list[Interval]] = {}
    for interval in intervals:
        made.setdefault(str(interval.samples[-1].marks.get("artifact")), []).append(interval)
    return [fault for folder, manifest in measured.items() for fault in _energy_faults(manifest, made.get(folder, []))]


def _energy_faults(manifest: Manifest, intervals: list[Interval]) -> Iterator[str]:
    figures = _figures(manifest)
    last = [
        (sample.millijoules, sample.low, sample.high) for sample in (interval.samples[-1] for interval in intervals)
    ]
    if any(all(own in (None, theirs) for own, theirs in zip(figures, line, strict=True)) for line in last):
        return  # the manifest lacks a bound, because a meter began late; the ledger may have one for the rest
    if any(interval.unseen_seconds and (interval.millijoules or 0) <= (figures[0] or 0) for interval in intervals):
        return  # its end could not be written (a full disk): the ledger holds less, and is known to
    listed = ", ".join(f"{_joules(values[0])} J" for values in last) or "nothing"
    yield f"{LEDGER}: states {listed} for {manifest.folder}, its manifest states {_joules(figures[0])} J"


def _figures(manifest: Manifest) -> tuple[int | None, int | None, int | None]:
    block = manifest.run.get("energy")
    values: dict[str, Any] = block if isinstance(block, dict) else {}
    joules, low, high = (
        round(value * 1000) if isinstance(value, (int, float)) else None
        for value in (values.get(name) for name in ("joules", "low", "high"))
    )
    return joules, low, high


def _joules(millijoules: int | None) -> str:
    return "unknown" if millijoules is None else f"{millijoules / 1000:g}"
