"""Refusals of a corpus: stated by the journal, closing until withdrawn.

The journal states each refusal by a person of the policy, once: when it is signed (`assay governance review`), if that
account holds a key that the run trusts, otherwise when a check or the door first reads it. A refusal that was stated
and whose bytes are gone closes the gate as one that is there, until its approver or an owner of the gate signs a
withdrawal (`urn:assay:withdrawal:1`) about its SHA-256.

Promise: only a withdrawal without a fault ends a refusal; every other one is named, and changes nothing. What ended a
refusal is stated, too, so that `verify` names the removal of either. The limit: a refusal signed in an account without
such a key is not known if its file is removed before any check or door has read it; the command says so. The reviewer's
own key cannot sign the line, because readers that do not trust it would refuse the whole journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from governance.files import sha256_file
from governance.gate.decision import SignedStatements
from governance.gate.policy import Policy
from governance.gate.signed_statements import SignedStatement, person_fault
from governance.gate.waivers import REFUSAL, Refusal, Withdrawal
from governance.signing.journal import Journal
from governance.signing.journal_lines import JournalEntry

REFUSALS = "refusals"
"""The folder of refusals below a root."""
REFUSED = "refusal"
WITHDRAWN = "withdrawal"
"""Kinds of the journal's lines on a refusal and on its withdrawal."""


@dataclass(frozen=True)
class Refused:
    """A refusal of this corpus, whether its file is there or not."""

    name: str
    """The file's name."""
    sha256: str
    gate: str
    approver: str
    present: bool


def refusals_of(corpus: str, statements: SignedStatements, entries: Iterable[JournalEntry]) -> list[Refused]:
    """Refusals that are there, and those that verified entries state."""
    found: dict[str, Refused] = {}
    for entry in entries:
        said = entry.statement["predicate"]
        if entry.kind == REFUSED and said["corpus"] == corpus:
            [(name, digest)] = entry.subjects.items()
            found[digest] = Refused(PurePosixPath(name).name, digest, said["gate"], said["approver"], present=False)
    for signed in statements.rulings:
        ruling = signed.content
        if signed.kind == REFUSAL and signed.subject == corpus and isinstance(ruling, Refusal):
            found[signed.sha256] = Refused(signed.name, signed.sha256, ruling.gate, ruling.approver, present=True)
    return list(found.values())


def withdrawal_faults(
    signed: SignedStatement, refused: Refused, policy: Policy, corpus: str, submitters: tuple[str, ...]
) -> list[str]:
    """Reasons why a withdrawal does not hold; empty if it does."""
    content = signed.content
    if not isinstance(content, Withdrawal):
        return [signed.fault or "is not a withdrawal"]
    owners = {name for gate in policy.gates() if gate.id == refused.gate for name in policy.owners_of(gate)}
    faults = [person_fault(signed, content, policy.people, submitters)]
    if content.approver not in {refused.approver, *owners}:
        who = ", ".join(sorted({refused.approver, *owners}))
        faults.append(f"{content.approver} may not withdraw it; these may: {who}")
    if signed.subject != refused.sha256:
        faults.append(f"it belongs to another refusal ({signed.subject[:16]}…)")
    if content.corpus != corpus:
        faults.append(f"it is for another corpus ({content.corpus[:16]}…)")
    return [fault for fault in faults if fault]


def apply_withdrawals(
    statements: SignedStatements, policy: Policy, corpus: str, entries: Sequence[JournalEntry]
) -> tuple[SignedStatements, list[SignedStatement]]:
    """Statements without withdrawn refusals, and the withdrawals that hold.

    Other faults close the gate, too, and are in `refusal_faults`: a stated refusal that is gone, a withdrawal that does
    not hold.
    """
    ended: set[str] = set()
    held: list[SignedStatement] = []
    refusal_faults: list[tuple[str, str, str]] = []
    for refused in refusals_of(corpus, statements, entries):
        judged = [
            (signed, withdrawal_faults(signed, refused, policy, corpus, statements.submitters))
            for signed in statements.rulings
            if isinstance(signed.content, Withdrawal)
            and (signed.subject == refused.sha256 or signed.content.refusal == refused.name)
        ]
        if good := [signed for signed, faults in judged if not faults]:
            ended.add(refused.sha256)
            held += good
            continue
        for signed, faults in judged:
            words = f"the withdrawal of the refusal {refused.name} does not hold: {'; '.join(faults)}"
            refusal_faults.append((refused.gate, signed.name, words))
        if not refused.present:
            words = (
                f"the refusal {refused.name} by {refused.approver} was removed or altered; put it back, or have an "
                f"owner withdraw it: assay governance review CONFIG --key KEY --withdraw {refused.name} --reason TEXT"
            )
            refusal_faults.append((refused.gate, refused.name, words))
    kept = tuple(signed for signed in statements.rulings if signed.sha256 not in ended)
    return replace(statements, rulings=kept, refusal_faults=tuple(refusal_faults)), held


def unstated_refusals(
    statements: SignedStatements, policy: Policy, corpus: str, entries: Iterable[JournalEntry]
) -> list[str]:
    """Names of persons' refusals of this corpus that no entry states."""
    stated = {digest for entry in entries if entry.kind == REFUSED for digest in entry.subjects.values()}
    return [signed.name for signed, _ in _refusals_by_people(statements, policy, corpus) if signed.sha256 not in stated]


def _refusals_by_people(
    statements: SignedStatements, policy: Policy, corpus: str
) -> Iterator[tuple[SignedStatement, Refusal]]:
    """Refusals of this corpus by persons of the policy."""
    for signed in statements.rulings:
        ruling = signed.content
        if signed.kind != REFUSAL or signed.subject != corpus or not isinstance(ruling, Refusal):
            continue
        if not person_fault(signed, ruling, policy.people, ()):
            yield signed, ruling


def state_refusals(
    statements: SignedStatements,
    held: Iterable[SignedStatement],
    policy: Policy,
    corpus: str,
    root: Path,
    journal: Journal,
) -> None:
    """State refusals of this corpus and withdrawals that hold, once each.

    A refusal that no person signed is not stated: a stranger's file would close the gate for good where nobody can
    withdraw it.
    """
    for signed, ruling in _refusals_by_people(statements, policy, corpus):
        about = {"corpus": corpus, "gate": ruling.gate, "approver": ruling.approver}
        journal.state(REFUSED, {_subject(signed, root): signed.sha256}, [], **about)
    for signed in held:
        journal.state(WITHDRAWN, {_subject(signed, root): signed.sha256}, [], corpus=corpus, refusal=signed.subject)


def _subject(signed: SignedStatement, root: Path) -> str:
    """Path below the root, or the bare name of a file outside."""
    return f"{REFUSALS}/{signed.name}" if signed.folder == root / REFUSALS else signed.name


def removal_faults(root: Path, entries: Sequence[JournalEntry]) -> list[str]:
    """Stated refusals and withdrawals that are gone or altered."""
    withdrawn = {entry.statement["predicate"]["refusal"] for entry in entries if entry.kind == WITHDRAWN}
    stated = {
        (name, digest): entry.index
        for entry in entries
        if entry.kind in (REFUSED, WITHDRAWN)
        for name, digest in entry.subjects.items()
        if name.startswith(f"{REFUSALS}/") and digest not in withdrawn
    }
    return [
        f"{name}: is missing or altered: journal line {index} states it, and no withdrawal"
        for (name, digest), index in stated.items()
        if not (root / name).is_file() or sha256_file(root / name) != digest
    ]
