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
from governance.gate.decision import Papers
from governance.gate.policy import Policy
from governance.gate.signed_statements import Paper, person_fault
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
    there: bool


def refusals_of(corpus: str, papers: Papers, entries: Iterable[JournalEntry]) -> list[Refused]:
    """Refusals that are there, and those that verified entries state."""
    found: dict[str, Refused] = {}
    for entry in entries:
        said = entry.statement["predicate"]
        if entry.kind == REFUSED and said["corpus"] == corpus:
            [(name, digest)] = entry.subjects.items()
            found[digest] = Refused(PurePosixPath(name).name, digest, said["gate"], said["approver"], there=False)
    for paper in papers.rulings:
        ruling = paper.content
        if paper.kind == REFUSAL and paper.subject == corpus and isinstance(ruling, Refusal):
            found[paper.sha256] = Refused(paper.name, paper.sha256, ruling.gate, ruling.approver, there=True)
    return list(found.values())


def withdrawal_faults(
    paper: Paper, refused: Refused, policy: Policy, corpus: str, submitters: tuple[str, ...]
) -> list[str]:
    """Reasons why a withdrawal does not hold; empty if it does."""
    content = paper.content
    if not isinstance(content, Withdrawal):
        return [paper.fault or "is not a withdrawal"]
    owners = {name for gate in policy.gates() if gate.id == refused.gate for name in policy.owners_of(gate)}
    faults = [person_fault(paper, content, policy.people, submitters)]
    if content.approver not in {refused.approver, *owners}:
        who = ", ".join(sorted({refused.approver, *owners}))
        faults.append(f"{content.approver} may not withdraw it; these may: {who}")
    if paper.subject != refused.sha256:
        faults.append(f"it is of another refusal ({paper.subject[:16]}…)")
    if content.corpus != corpus:
        faults.append(f"it is for another corpus ({content.corpus[:16]}…)")
    return [fault for fault in faults if fault]


def settle(papers: Papers, policy: Policy, corpus: str, entries: Sequence[JournalEntry]) -> tuple[Papers, list[Paper]]:
    """Statements without withdrawn refusals, and the withdrawals that hold.

    What closes otherwise is in `Papers.unsettled`: a stated refusal that is gone, a withdrawal that does not hold.
    """
    ended: set[str] = set()
    held: list[Paper] = []
    unsettled: list[tuple[str, str, str]] = []
    for refused in refusals_of(corpus, papers, entries):
        judged = [
            (paper, withdrawal_faults(paper, refused, policy, corpus, papers.submitters))
            for paper in papers.rulings
            if isinstance(paper.content, Withdrawal)
            and (paper.subject == refused.sha256 or paper.content.refusal == refused.name)
        ]
        if good := [paper for paper, faults in judged if not faults]:
            ended.add(refused.sha256)
            held += good
            continue
        for paper, faults in judged:
            words = f"the withdrawal of the refusal {refused.name} does not hold: {'; '.join(faults)}"
            unsettled.append((refused.gate, paper.name, words))
        if not refused.there:
            words = (
                f"the refusal {refused.name} by {refused.approver} was removed or altered; put it back, or have an "
                f"owner withdraw it: assay governance review CONFIG --key KEY --withdraw {refused.name} --reason TEXT"
            )
            unsettled.append((refused.gate, refused.name, words))
    kept = tuple(paper for paper in papers.rulings if paper.sha256 not in ended)
    return replace(papers, rulings=kept, unsettled=tuple(unsettled)), held


def unstated_refusals(papers: Papers, policy: Policy, corpus: str, entries: Iterable[JournalEntry]) -> list[str]:
    """Names of persons' refusals of this corpus that no entry states."""
    stated = {digest for entry in entries if entry.kind == REFUSED for digest in entry.subjects.values()}
    return [paper.name for paper, _ in _by_persons(papers, policy, corpus) if paper.sha256 not in stated]


def _by_persons(papers: Papers, policy: Policy, corpus: str) -> Iterator[tuple[Paper, Refusal]]:
    """Refusals of this corpus by persons of the policy."""
    for paper in papers.rulings:
        ruling = paper.content
        if paper.kind != REFUSAL or paper.subject != corpus or not isinstance(ruling, Refusal):
            continue
        if not person_fault(paper, ruling, policy.people, ()):
            yield paper, ruling


def state_refusals(
    papers: Papers, held: Iterable[Paper], policy: Policy, corpus: str, root: Path, journal: Journal
) -> None:
    """State refusals of this corpus and withdrawals that hold, once each.

    A refusal that is no person's is not stated: a stranger's file would close the gate for good where nobody can
    withdraw it.
    """
    for paper, ruling in _by_persons(papers, policy, corpus):
        about = {"corpus": corpus, "gate": ruling.gate, "approver": ruling.approver}
        journal.state(REFUSED, {_subject(paper, root): paper.sha256}, [], **about)
    for paper in held:
        journal.state(WITHDRAWN, {_subject(paper, root): paper.sha256}, [], corpus=corpus, refusal=paper.subject)


def _subject(paper: Paper, root: Path) -> str:
    """Path below the root, or the bare name of a file outside."""
    return f"{REFUSALS}/{paper.name}" if paper.folder == root / REFUSALS else paper.name


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
