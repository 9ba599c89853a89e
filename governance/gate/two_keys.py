"""Two-key verdicts: audit and gate signed by different keys.

`verdict_by = ["audit", "gate"]` in `[governance]`, or in a site's `site.toml`, which the run's file cannot override.
A key has the name in its certificate, if a trusted key signed that, and the name of its person in `[people]`. So the
holder of one key alone opens nothing: the job states the audit with the first, and a person signs the verdict with
the second (`assay governance check CONFIG --set governance.signing_key=...`).

The second signature covers what its holder checked. `check` compares the chain with the journal and judges the audit's
results again; it does not count the corpus again. To do that, remove `<root>/audit` with its records first: if the new
audit differs, its statement is by the second key, and the gate stays closed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.errors import ManifestError
from governance.files import sha256_bytes
from governance.signing.dsse import PublicKey, certified, signing_time, verify_envelope
from governance.signing.journal_lines import FILE_NAME as JOURNAL


@dataclass(frozen=True)
class TwoKeys:
    """One demand: signers of audit and verdict, and their keys' names."""

    audit: str
    verdict: str
    roots: tuple[PublicKey, ...]
    """Trusted keys, whose certificates give names."""
    people: Mapping[str, str]
    """Person -> key id."""


@dataclass(frozen=True)
class Signer:
    """A key that signed something, and its names."""

    key: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"the key {self.key[:16]}… ({', '.join(self.names) or 'without a name'})"


def signer(envelope: Any, demand: TwoKeys, place: str) -> Signer:
    """Signer of an envelope.

    Raises:
        ManifestError: it has no trusted signature; begins with `place`.
    """
    payload, key = verify_envelope(envelope, demand.roots, place)
    attached = (certified(item.get("certificate"), demand.roots) for item in envelope["signatures"])
    names = {
        found.name
        for found in attached  # certificates are public: anybody can attach one of another key, or an old one
        if found is not None and sha256_bytes(found.public_key) == key and found.covers(signing_time(payload))
    }
    return Signer(key, tuple(sorted(names | {person for person, own in demand.people.items() if own == key})))


def two_key_faults(demands: Sequence[TwoKeys], verdict: Any, audit: tuple[str, str], root: Path) -> Iterator[str]:
    """Faults of a two-key verdict's envelopes.

    Args:
        demands: who must have signed.
        verdict: the verdict's envelope.
        audit: path and digest of the audit's manifest.
        root: the folder of the journal.
    """
    for demand in demands:
        try:
            yield from _faults(demand, verdict, audit, root)
        except ManifestError as error:
            yield str(error)


def _faults(demand: TwoKeys, verdict: Any, audit: tuple[str, str], root: Path) -> Iterator[str]:
    envelope = _last_statement(root / JOURNAL, audit)
    if envelope is None:
        yield f"{JOURNAL} has no statement of the audit {audit[0]} ({audit[1][:16]}…), which {demand.audit} must sign"
        return
    first, second = signer(envelope, demand, "the audit's statement"), signer(verdict, demand, "the verdict")
    if demand.audit not in first.names:
        yield f"the audit is stated by {first}; {demand.audit} must sign it"
    if demand.verdict not in second.names:
        yield f"the verdict is signed by {second}; {demand.verdict} must sign it"
    if first.key == second.key:
        yield f"the audit's statement and the verdict are signed by one key, {first.key[:16]}…; two are required"


def _last_statement(journal: Path, audit: tuple[str, str]) -> Any:
    """Envelope of the last line about the audit, by digest."""
    try:
        lines = journal.read_bytes().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            envelope = json.loads(line)["envelope"]
            subjects = json.loads(base64.b64decode(envelope["payload"]))["subject"]
            stated = {item["name"]: item["digest"]["sha256"] for item in subjects}
        except (ValueError, KeyError, TypeError):
            continue
        if audit[0] in stated:
            return envelope if stated[audit[0]] == audit[1] else None
    return None
