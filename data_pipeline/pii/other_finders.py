"""Finders beyond the exact rules: a file's rules, a model.

Their files are inputs of the stage. A worker opens them once per process.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.pii.credential_rules import find_listed, rules_of_digest
from data_pipeline.pii.detections import Detection
from data_pipeline.pii.entities.entity_finder import open_finder
from data_pipeline.pii.entities.finder_settings import FinderConfig
from governance.errors import AlteredFile
from governance.files import sha256_file


class OtherFinders(NamedTuple):
    """The files of the finders that a run has."""

    rules: Path | None = None
    rules_digest: str = ""
    entities: FinderConfig | None = None
    model: Path | None = None
    model_files: tuple[tuple[str, str], ...] = ()
    """Names and digests of the model's files."""


def find_others(texts: Sequence[str], finders: OtherFinders) -> list[list[Detection]]:
    """Detections of these finders in each text, disjoint, in order."""
    from data_pipeline.pii.detect import joined

    found: list[list[Detection]] = [[] for _ in texts]
    if finders.rules is not None:
        book = rules_of_digest(finders.rules, finders.rules_digest)
        found = [find_listed(text, book) for text in texts]
    if finders.entities is not None and finders.model is not None:
        _require_unchanged(finders.model, finders.model_files)
        more = open_finder(finders.entities, finders.model)(texts)
        found = [joined(first, second, text) for first, second, text in zip(found, more, texts, strict=True)]
    return found


@functools.lru_cache(maxsize=2)
def _require_unchanged(model: Path, files: tuple[tuple[str, str], ...]) -> None:
    """Compare the model's files with their digests, once per process.

    Raises:
        AlteredFile: one has other bytes than when the run began.
    """
    for name, digest in files:
        if not (model / name).is_file() or sha256_file(model / name) != digest:
            raise AlteredFile(f"data.pii.finder: {model / name} changed during the run. Run again.")


def find_with(texts: Sequence[str], finders: OtherFinders) -> list[list[Detection]]:
    """Detections of the exact rules and of these finders."""
    from data_pipeline.pii.detect import find, joined

    others = find_others(texts, finders)
    return [joined(find(text), more, text) for text, more in zip(texts, others, strict=True)]
