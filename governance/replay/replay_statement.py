"""Statement "replay": the certificate that a training was repeated without some documents.

    {"documents": ["<identity>", ...],                     removed by this replay
     "training": "train/<key>", "steps": 21,               what was repeated, and its steps
     "clean": {"path": ..., "digest": ..., "step": 9},     the checkpoint that it went on from; null: from step 1
     "first_step": 12,                                     the first step that had read one of the documents
     "recomputed": {"steps": 2, "equal": 2},               those before it: losses with the same bits in both trainings
     "replayed": {"path": ..., "digest": ...},             the new training
     "checkpoint": {"path": ..., "digest": ...},           its last checkpoint
     "weights": {"00000.safetensors": "<SHA-256>"}}        the new weights' files

It stands in the journal as `replay` of a line's predicate, and the line's subject is its digest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.errors import ManifestError, MissingInput
from governance.files import sha256_bytes
from governance.manifest import FILE_NAME, Input, Manifest, read_manifest
from governance.signing.journal import Journal
from governance.signing.journal_lines import JournalEntry

KIND = "replay"


def weights_of(checkpoint: Manifest) -> dict[str, str]:
    """Digests of a checkpoint's files of weights, by name."""
    named = ((Path(output.path), output.sha256) for output in checkpoint.outputs)
    return {path.name: digest for path, digest in named if path.parent.name == "weights"}


def state_replay(journal: Journal, facts: dict[str, Any], materials: Iterable[Input]) -> None:
    """State a replay in the journal, unless it is already stated."""
    subject = f"{KIND}/{Path(facts['replayed']['path']).parent.name}"
    journal.state(KIND, {subject: sha256_bytes(canonical_json(facts))}, materials, replay=facts)


def replays(entries: Sequence[JournalEntry]) -> Iterator[dict[str, Any]]:
    """The facts of every replay that a journal states, oldest first."""
    for entry in entries:
        if entry.kind == KIND:
            yield entry.statement["predicate"][KIND]


def replay_faults(entries: Sequence[JournalEntry], root: Path) -> Iterator[str]:
    """Differences between statements on replays and the artifacts that are there."""
    for facts in replays(entries):
        for name in ("replayed", "checkpoint"):
            path = root / facts[name]["path"]
            with contextlib.suppress(MissingInput, ManifestError):  # gone, or named by its own check
                made = read_manifest(path)
                recipe = made.config if name == "replayed" else made.config["recipe"]
                lacks = set(facts["documents"]) - set(recipe["train"].get("removed_documents", ()))
                if made.digest != facts[name]["digest"] or (path.name == FILE_NAME and lacks):
                    yield f"{facts[name]['path']}: is not what the journal states of the replay"
                if name == "checkpoint" and weights_of(made) != facts["weights"]:
                    yield f"{facts[name]['path']}: its weights are not those of the replay in the journal"
