"""Statement "training-audit-draw": steps that an audit will repeat, signed beforehand.

    {"training": "train/<key>", "head": "41:<SHA-256>", "nonce": "<hex, or a public value>", "beacon": false,
     "value": "<SHA-256>", "share": 0.01, "amount": 1,
     "checkpoints": [{"path": ..., "digest": ..., "step": 100}, ...]}      all that were published, in order

The journal holds it as `draw` in a line's predicate. The audit itself is an artifact, `training_audit`, whose
recipe holds the draw; so an audit that was begun and not finished, or drawn again, is seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.errors import ManifestError
from governance.files import sha256_bytes
from governance.manifest import FILE_NAME, Input, read_manifest
from governance.recomputation.audit_draw import amount_of, drawn, public_value
from governance.signing.journal import Journal
from governance.signing.journal_lines import JournalEntry

KIND = "training-audit-draw"
STAGE = "training_audit"
FALSIFIED = "falsified"


def state_draw(journal: Journal, facts: dict[str, Any], materials: Sequence[Input]) -> None:
    """State a draw in the journal."""
    subject = {f"{KIND}/{facts['value'][:16]}": sha256_bytes(canonical_json(facts))}
    journal.state(KIND, subject, materials, draw=facts)


def draws(entries: Sequence[JournalEntry], training: str) -> list[dict[str, Any]]:
    """The draws of a training's audits, oldest first."""
    found = (entry.statement["predicate"]["draw"] for entry in entries if entry.kind == KIND)
    return [facts for facts in found if facts["training"] == training]


def audit_faults(entries: Sequence[JournalEntry], root: Path) -> Iterator[str]:
    """Faults of draws and audits, and those that audits found."""
    known = {}
    for entry in entries:
        if entry.kind == KIND:
            facts = entry.statement["predicate"]["draw"]
            known[facts["value"]] = facts
            yield from (f"journal.jsonl: line {entry.index}: {fault}" for fault in _draw_faults(entry, entries))
    for path in sorted(root.glob(f"{STAGE}/*/{FILE_NAME}")):
        try:
            made = read_manifest(path)
            audit = json.loads((root / made.folder / "audit.json").read_bytes())
        except (ManifestError, OSError, ValueError):
            continue  # reported under its own name
        facts, repeated = known.get(audit["value"]), [one["number"] for one in audit["repeated"]]
        if facts is None:
            yield f"{made.path}: no line of the journal states its draw"
        elif repeated != drawn(facts["value"], len(facts["checkpoints"]), facts["amount"]):
            yield f"{made.path}: it did not repeat the stretches that were drawn"
        yield from (
            f"{one['end']['path']}: an audit ({made.path}) repeated steps {one['first_step']} to "
            f"{one['last_step']} and got other weights"
            for one in audit["repeated"]
            if one["result"] == FALSIFIED
        )


def _draw_faults(entry: JournalEntry, entries: Sequence[JournalEntry]) -> Iterator[str]:
    facts = entry.statement["predicate"]["draw"]
    before = [one for one in entries if one.index < entry.index]
    if facts["value"] != public_value(facts["head"], facts["training"], facts["nonce"]):
        yield "the value of its draw does not follow from the head and the nonce"
    if facts["amount"] != amount_of(len(facts["checkpoints"]), facts["share"]):
        yield "its draw takes another number of stretches than the share says"
    index, _, digest = facts["head"].partition(":")
    if not any((str(one.index), one.digest) == (index, digest) for one in before):
        yield "the head of its draw is not a line before it"
    stated = {(name, said) for one in before if one.index <= int(index) for name, said in one.subjects.items()}
    for one in facts["checkpoints"]:
        if (one["path"], one["digest"]) not in stated:
            yield f"{one['path']} was not stated before its draw"
