"""Git anchor: the journal's head as a note in a repository.

A chain cannot show that its last lines are gone, or that all of it was rewritten with a stolen key. So its head,
"index:SHA-256 of the last line", is kept in the user's state folder, which both checks of the gate read
(`home_anchor.py`). It is also written to the comment of the Slurm job (kept by the scheduler's accounting), in the W&B
summary (`pretrain/metrics/wandb.py`), the manifest of each training run and, on request, a git note on the commit
of the run's file (`git notes --ref=assay show`). `anchor_faults` compares any of them with a journal.

An anchor that cannot be written is one warning: it must never stop a run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from governance.log import get_logger
from governance.signing.journal import GIVEN_UP, Journal
from governance.signing.journal_lines import JournalEntry, read_journal

NOTES_REF = "assay"
_SECONDS = 20


def anchor(root: Path, notes_in: Path | None) -> Callable[[str], None]:
    """Function that anchors a head in Slurm's comment and git notes."""
    warned: set[str] = set()

    def leave(head: str) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        if job and shutil.which("scontrol"):
            comment = f"{_comment_of_site(job)}assay journal {head}"
            _attempt(["scontrol", "update", f"JobId={job}", f"Comment={comment}"], None, warned)
        if notes_in is not None:
            words = ["git", "notes", f"--ref={NOTES_REF}", "append", "-m", f"assay journal {head} {root.name}"]
            _attempt(words, notes_in, warned)

    return leave


def _comment_of_site(job: str) -> str:
    """The site's own part of a job's comment; sites bill by it."""
    try:
        words = ["scontrol", "show", "job", job]
        shown = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"^\s*Comment=(.*)$", shown, re.MULTILINE)
    own = re.split(r"(?:^|; )assay[: ]", found[1])[0].rstrip() if found else ""  # Slurm shows a blank at its end
    return f"{own}; " if own else ""


def _attempt(words: Sequence[str], folder: Path | None, warned: set[str]) -> None:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
        fault = "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        fault = str(error)
    if fault and words[0] not in warned:
        warned.add(words[0])
        get_logger(__name__).warning(
            "%s: the journal's head is not recorded there (%s); the run goes on", words[0], fault
        )


def anchor_words(journal: Journal) -> Iterator[str]:
    """Known head of a journal, and statements that gave up lines."""
    unknown = "no head of it was kept in this account's state folder: lines cut from its end would not show"
    known = "it has the line that was kept last in this account's state folder" if journal.anchored() else unknown
    yield journal.behind() or known
    for entry in read_journal(journal.path, ())[0] if journal.path.exists() else ():
        if entry.statement["predicateType"] == GIVEN_UP:
            predicate = entry.statement["predicate"]
            heads = ", ".join(head[:24] for head in predicate["given_up"])
            yield f"line {entry.index}, {entry.time}: gave up {heads}…: {predicate['reason']}"


def anchor_faults(head: str, entries: Sequence[JournalEntry]) -> list[str]:
    """Reasons why a journal does not continue this head."""
    number, _, digest = head.partition(":")
    lines = {str(entry.index): entry.digest for entry in entries}
    if number not in lines:
        return [f"had line {number} when the head {head[:24]}… was noted; it has {len(entries)} now: lines are gone"]
    if lines[number] != digest:
        return [f"line {number}: is not the one whose head {head[:24]}… was noted: the journal was rewritten"]
    return []
