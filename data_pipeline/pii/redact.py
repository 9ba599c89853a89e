"""Redaction stage: replace, mask, pseudonymise or count personal data and keys.

Promises: each type has an exact grammar, numbers also a check (a checksum, a date, an assigned range) or a word that
names them; a number that fails its check stays. Findings do not overlap and depend on nothing but the text. All
documents are kept, `sha256` still names the raw text, and what was found is counted by type and source (never written
down: a list of what was removed would be what was removed). In each run made-up values are planted into copies of
passages and looked for, so that recall is a measurement of this run (`canaries`).

Price: one linear pass over the bytes names the places that could hold something; only those are read by the rules,
each of which looks at a bounded stretch around its place. A shard is read a row group at a time.

Not detected: names, postal addresses, dates of birth and anything else that needs an understanding of the sentence;
numbers spelt in words; digits other than ASCII's; Ethereum addresses (their checksum is Keccak's, which we lack).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from data_pipeline.documents import DOCUMENT_SCHEMA, document_shards, edited, funnel, gathered, pass_on, with_column
from data_pipeline.kernels.pii_candidates import scan
from data_pipeline.pii.canaries import hosts, measure, planted
from data_pipeline.pii.detect import find, find_among, replace, splice
from data_pipeline.pii.detections import FAMILIES, PLACEHOLDERS, TYPES, Detection, expand
from data_pipeline.pii.redaction import Action, fingerprint, new_text, read_key
from governance.config import Section
from governance.kernels.buffers import text_buffers
from governance.manifest import Manifest
from governance.parallel import Shard, ShardMade, map_shards
from governance.stage import Made, Recipe, Runtime, run_stage

__all__ = ["PLACEHOLDERS", "TYPES", "Detection", "PiiConfig", "find", "redact", "redact_table", "replace"]

VERSION = 5


class PiiConfig(Section):
    """Types to detect, and the action on each."""

    types: tuple[str, ...] = Field(default=tuple(FAMILIES))
    """Types to find, or families of them (contact, network, payment, national_id, secret); none finds nothing."""
    action: Action = "replace"
    """What is done with a finding: "replace" it by its type, "mask" its letters, "pseudonymise" or only "count" it."""
    actions: dict[str, Action] = Field(default_factory=dict)
    """Other actions for some types or families; a type's own entry goes before its family's."""
    key_file: str = ""
    """For "pseudonymise": the path of a file of at least 32 random bytes, relative to the run's file; when empty, the
    environment variable ASSAY_PII_KEY_FILE holds the path. Neither path nor key decides what the artifact is called."""
    canary_bytes: int = Field(default=8 << 20, ge=0)
    """One canary of each type is planted into a shard at its start and after each so many bytes of text; 0: none."""
    seed: int = Field(default=0, ge=0)
    """Chooses the canaries and their places."""

    @field_validator("types")
    @classmethod
    def _known_types(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        expand(names)
        return names

    @field_validator("actions")
    @classmethod
    def _known_actions(cls, actions: dict[str, Action]) -> dict[str, Action]:
        expand(actions)
        return actions

    def plan(self) -> dict[str, Action]:
        """The action of each type that is looked for."""
        chosen: dict[str, Action] = dict.fromkeys(expand(self.types), self.action)
        for name in sorted(self.actions, key=lambda name: name not in FAMILIES):
            chosen.update({kind: self.actions[name] for kind in expand([name]) if kind in chosen})
        return chosen


class RedactSettings(Section):
    """Recipe of the redaction: plan, and key by fingerprint."""

    actions: dict[str, Action]
    """The action of each type that is looked for."""
    key_fingerprint: str
    """Of the key of the pseudonyms; "" when none are made."""
    canary_bytes: int
    """As in `PiiConfig`."""
    seed: int
    """As in `PiiConfig`."""
    stdnum: str
    """Version of python-stdnum, whose check digits decide what is a number of its type."""


def redact_table(table: pa.Table, actions: Mapping[str, Action], key: bytes = b"") -> tuple[pa.Table, dict[str, Any]]:
    """The documents with their findings treated, and the counts of the funnel.

    `actions` maps a type to its treatment.
    """
    texts = table["text"].combine_chunks()
    data, offsets = text_buffers(texts)
    places = scan(data, offsets)
    hot, starts = np.unique(places[:, 0], return_index=True)
    stops = np.append(starts[1:], len(places))[: len(hot)]
    sources = table["source"].to_pylist()
    types = frozenset(actions)
    changed: dict[int, str] = {}
    found_in = 0
    by_source: dict[str, Counter[str]] = {}
    for index, start, stop in zip(hot.tolist(), starts.tolist(), stops.tolist(), strict=True):
        text = texts[index].as_py()
        findings = [finding for finding in find_among(text, places[start:stop, 1:]) if finding.type in types]
        if findings:
            found_in += 1
            by_source.setdefault(sources[index], Counter()).update(finding.type for finding in findings)
            new = [new_text(kind, text[a:b], actions[kind], key) for a, b, kind in findings]
            changed[index] = splice(text, findings, new)
    new_texts = edited(texts, changed)
    before, after = (pc.binary_length(column).to_pylist() for column in (texts, new_texts))
    total: Counter[str] = sum(by_source.values(), Counter())
    return with_column(table, "text", new_texts) if changed else table, {
        **funnel(sources, before, after, [""] * len(sources)),
        "documents_with_findings": found_in,
        "findings": {kind: total[kind] for kind in actions},
        "findings_by_source": {source: dict(count) for source, count in by_source.items()},
    }


def _redact_shard(settings: RedactSettings, payload: tuple[Path, bytes], path_of: Callable[[str], Path]) -> ShardMade:
    path, key = payload
    types = tuple(settings.actions)
    turns, seen = 0, 0

    def treat(table: pa.Table) -> tuple[Sequence[pa.Table], dict[str, Any]]:
        nonlocal turns, seen
        treated, stats = redact_table(table, settings.actions, key)
        seen += stats["bytes_in"]
        wanted = 1 + seen // settings.canary_bytes if settings.canary_bytes else 0
        if wanted > turns:
            chosen = hosts(table["sha256"].to_pylist(), settings.seed)
            passages = [(table["sha256"][place].as_py(), table["text"][place].as_py()) for place in chosen]
            canaries = planted(types, range(turns, wanted), passages, settings.seed)
            stats["canaries"] = measure(canaries, types, find)
        turns = max(turns, wanted) if table.num_rows else turns
        return (treated,), stats

    return pass_on(path, path_of, {"documents": DOCUMENT_SCHEMA}, treat, _nothing(types))


def _nothing(types: tuple[str, ...]) -> dict[str, Any]:
    empty = redact_table(DOCUMENT_SCHEMA.empty_table(), dict.fromkeys(types, "count"))[1]
    return {**empty, "canaries": {kind: {"planted": 0, "found": 0} for kind in types}}


def redact(documents: Manifest, config: PiiConfig, runtime: Runtime, folder: Path = Path()) -> Manifest:
    """Redact the detections of every document as configured; keep every document.

    Args:
        documents: the artifact to read.
        config: what is looked for and what is done with it.
        runtime: where and how.
        folder: where a relative `key_file` starts: the folder of the run's file.

    Raises:
        ConfigError: a type is pseudonymised and no key can be read.
    """
    actions = config.plan()
    key = read_key(config.key_file, folder) if "pseudonymise" in actions.values() else b""
    settings = RedactSettings(
        actions=actions,
        key_fingerprint=fingerprint(key) if key else "",
        canary_bytes=config.canary_bytes,
        seed=config.seed,
        stdnum=metadata.version("python-stdnum"),
    )
    recipe = Recipe("redact", VERSION, settings)

    def make(target: Path) -> Made:
        shards = [
            Shard(path.stem, (path.stem, output.sha256), (path, key), (output,))
            for output, path in document_shards(documents, runtime.root)
        ]
        return gathered(map_shards(recipe, _redact_shard, shards, target, runtime), _nothing(tuple(actions)))

    return run_stage(recipe, [documents.as_input()], runtime, make)
