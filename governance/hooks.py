"""Hooks of the stage contract: energy meter, energy budget, attestation, signatures.

    runtime = Runtime(root, hooks=Hooks(meter=meter(config, ledger), attest=attest_with(...)))

The defaults measure, bound, sign and record nothing, so that a library or a test may run stages without them. No hook
changes a byte of an artifact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from governance.errors import BudgetReached
from governance.manifest import Manifest
from governance.signed_notes import NoteSigner

UNKNOWN_ENERGY: dict[str, Any] = {"joules": None, "low": None, "high": None, "method": "unknown"}

UNMEASURED = "unmeasured"
"""Entry of a meter's dictionary: a line for each thing that it cannot measure; its upper bound is then unknown."""
ELSEWHERE = "Ray node"
"""Words that begin such a line."""

Meter = Callable[[str], AbstractContextManager[dict[str, Any]]]
"""Given a stage's name, measure the node while the context lasts; the dictionary is filled at its end."""

Attest = Callable[[Manifest], None]
"""Record, signed, that this artifact is about to be committed; a repetition adds nothing."""


SignLine = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A line of one writer with its number and signature."""

LineSigner = Callable[[Path, str], SignLine]
"""Makes the signer of a writer's lines in a file; the text names the writer."""


@dataclass(frozen=True)
class Watched:
    """Scope of one rank's energy budget."""

    energy: dict[str, Any]
    """Dictionary that the meter of this rank's node yields."""
    artifact: str
    """Artifact of the training, or of the stage."""
    own: frozenset[str] = frozenset()
    """The ledger's names of what the ranks of this start measure; this one's need not be among them."""
    measures: bool = True
    """True for the rank that measures its node."""
    first: bool = True
    """True for the rank that adds the ledger's figures for all others."""


class Watch(Protocol):
    """The budget of a training.

    The answer of `over(sum over the ranks of words(...))` is alike on every rank.
    """

    def words(self, ahead_seconds: float) -> list[int]:
        """Budget words of this rank for the next look."""

    def start(self, words: Sequence[int]) -> None:
        """Raise `BudgetReached` where the energy used so far is unknown."""

    def over(self, words: Sequence[int]) -> bool:
        """Return whether it is time to save and leave."""

    def reached(self, what: str) -> BudgetReached:
        """The error to raise then."""

    def facts(self) -> dict[str, Any]:
        """The figures of the last look, for the record."""


class Budget:
    """The energy budget of a policy as stages use it.

    This one has no bound; the one of `governance.energy.budget` has.
    """

    def check(self, stage: str, artifact: str) -> None:
        """Raise `BudgetReached` before a stage opens anything, where it has no room."""

    def watching(self, stage: str, artifact: str, energy: dict[str, Any]) -> AbstractContextManager[None]:
        """Watch a stage, whose meter fills `energy`.

        Raise `BudgetReached` where the meter gives no figure.
        """
        return contextlib.nullcontext()

    def look(self, ahead_seconds: float) -> None:
        """Raise `BudgetReached` if this many seconds more would exceed it.

        Called between two shards.
        """

    def watch(self, watched: Watched) -> Watch | None:
        """Budget watcher of a rank; None without a bound."""
        return None


@contextlib.contextmanager
def no_meter(stage: str) -> Iterator[dict[str, Any]]:
    """Meter of a run that measures nothing.

    Its energy is unknown, not zero.
    """
    yield dict(UNKNOWN_ENERGY)


def no_attest(manifest: Manifest) -> None:
    """Attestation of a run that signs nothing."""


def no_begin(folder: Path, records: Sequence[str]) -> None:
    """Statement of a run without a journal."""


def sign_nothing(path: Path, writer: str) -> SignLine:
    """Leave the lines of a run without a journal unsigned."""
    return dict


def no_head() -> str:
    """Journal head of a run without a journal: always empty."""
    return ""


def no_tally(line: str) -> None:
    """Tally of a run whose progress no job follows."""


@dataclass(frozen=True)
class Hooks:
    """Functions that stages call around their work."""

    meter: Meter = no_meter
    """Energy of the node while a stage is made."""
    budget: Budget = field(default_factory=Budget)
    """The most energy that may be used."""
    attest: Attest = no_attest
    """Called with each artifact before its manifest is written."""
    begin: Callable[[Path, Sequence[str]], None] = no_begin
    """Called with a training's folder and records before their first line: announce them, and state what begins again
    because it was removed."""
    line_signer: LineSigner = sign_nothing
    """Signs the lines of records as they are written."""
    head: Callable[[], str] = no_head
    """The journal's last line, "index:sha256"; "" where there is none."""
    signer: NoteSigner = field(default_factory=NoteSigner)
    """Signs the notes that are left for the next run, and decides which notes of others count (`signed_notes.py`)."""
    tally: Callable[[str], None] = no_tally
    """Called with the name of each shard and artifact that this process finishes, so that a job can see progress."""
