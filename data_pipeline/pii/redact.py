"""Redaction stage: replace, mask, pseudonymise or count personal data and keys.

Promises: each type has an exact grammar, numbers also a check (a checksum, a date, an assigned range) or a word that
names them; a number that fails its check stays. Findings do not overlap and depend on nothing but the text. All
documents are kept, `sha256` still names the raw text, and what was found is counted by type and source (never written
down: a list of what was removed would be what was removed). In each run made-up values are planted into copies of
passages and looked for, so that recall is a measurement of this run (`canaries`).

Price: one linear pass over the bytes names the places that could hold something; only those are read by the rules,
each of which looks at a bounded stretch around its place. A shard is read a row group at a time.

Names and places are found only where `[data.pii.finder]` names a model, credentials of further formats where
`credential_rules` names a file of rules. Not detected: postal addresses, dates of birth and anything else that needs an
understanding of the sentence; numbers spelt in words; digits other than ASCII's; Ethereum addresses (their checksum is
Keccak's, which we lack).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from data_pipeline.documents import DOCUMENT_SCHEMA, document_shards, edited, funnel, gathered, pass_on, with_column
from data_pipeline.pii.canaries import Canary, hosts, is_found, measure, planted
from data_pipeline.pii.credential_rules import read_rules
from data_pipeline.pii.detections import ENTITIES, FAMILIES, RULE, TYPES, Detection, expand
from data_pipeline.pii.entities.entity_canaries import ENTITY_MAKERS, ENTITY_SENTENCES, is_covered
from data_pipeline.pii.entities.entity_finder import finder_files, library_versions
from data_pipeline.pii.entities.finder_settings import FinderConfig
from data_pipeline.pii.other_finders import OtherFinders, find_others, find_with
from data_pipeline.pii.pii_actions import Action, fingerprint, new_text, read_key
from governance.config import Section
from governance.file_digests import file_inputs
from governance.manifest import Input, Manifest
from governance.parallel import Shard, ShardMade, map_shards
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 11


class PiiConfig(Section):
    """Types to detect, and the action on each."""

    types: tuple[str, ...] = Field(default=tuple(FAMILIES))
    """Types to find, or families of them (contact, network, payment, national_id, secret); none finds nothing."""
    action: Action = "replace"
    """Treatment of a finding: "replace" it by its type, "mask" its letters, "pseudonymise" or only "count" it."""
    actions: dict[str, Action] = Field(default_factory=dict)
    """Other actions for some types or families; a type's own entry goes before its family's."""
    key_file: str = ""
    """For "pseudonymise": the path of a file of at least 32 random bytes, relative to the run's file; when empty, the
    environment variable ASSAY_PII_KEY_FILE holds the path. Neither path nor key decides what the artifact is called."""
    credential_rules: str = ""
    """Path of a TOML file of rules in the format of gitleaks, relative to the run's file; each rule is a type of the
    family `secret`. Its digest decides what the artifact is called."""
    finder: FinderConfig | None = None
    """A model that finds names and places; without one they are not sought."""
    canary_bytes: int = Field(default=8 << 20, ge=0)
    """One canary of each type is planted into a shard at its start, then once per this many bytes of text; 0: none."""
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
        expand(actions, ENTITIES)
        return actions

    @model_validator(mode="after")
    def _entities_have_a_finder(self) -> PiiConfig:
        if self.finder is None and (named := [kind for kind in ENTITIES if kind in self.actions]):
            raise ValueError(f"actions: {named[0]!r} is found only by a model. Name one in [data.pii.finder].")
        return self

    def plan(self) -> dict[str, Action]:
        """The action of each type that is looked for."""
        entities = ENTITIES if self.finder is None else tuple(sorted(set(self.finder.labels.values())))
        sought = (*expand(self.types), *(entities if self.finder else ()))
        chosen: dict[str, Action] = dict.fromkeys(sought, self.action)
        for name in sorted(self.actions, key=lambda name: name not in FAMILIES):
            chosen.update({kind: self.actions[name] for kind in expand([name], ENTITIES) if kind in chosen})
        return chosen


class RedactSettings(Section):
    """Recipe of the redaction: plan, and key by fingerprint."""

    actions: dict[str, Action]
    """The action of each type that is looked for."""
    key_fingerprint: str
    """Fingerprint of the key of the pseudonyms; "" when none are made."""
    canary_bytes: int
    """As in `PiiConfig`."""
    seed: int
    """As in `PiiConfig`."""
    stdnum: str
    """Version of python-stdnum, whose check digits decide what is a number of its type."""
    rules_left_out: tuple[str, ...] = ()
    """Rules of the file that say nothing about a text."""
    finder: dict[str, Any] | None = None
    """The finder of names and places: its settings but the path, and the versions of its libraries."""


def redact_table(
    table: pa.Table, actions: Mapping[str, Action], key: bytes = b"", finders: OtherFinders | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """The documents with their findings treated, and the counts of the funnel.

    `actions` maps a type to its treatment.
    """
    from data_pipeline.pii.detect import splice

    texts = table["text"].combine_chunks()
    sources = table["source"].to_pylist()
    types = frozenset(actions)
    changed: dict[int, str] = {}
    found_in = 0
    by_source: dict[str, Counter[str]] = {}
    for index, text, found in _found(texts, finders):
        findings = [finding for finding in found if finding.type in types]
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
        "findings": {kind: total[kind] for kind in actions if total[kind] or not kind.startswith(RULE)},
        "findings_by_source": {source: dict(count) for source, count in by_source.items()},
    }


def _found(texts: pa.Array, finders: OtherFinders | None) -> Iterator[tuple[int, str, list[Detection]]]:
    """Place, text and detections of each document that has candidates."""
    from data_pipeline.kernels.pii_candidates import scan
    from data_pipeline.pii.detect import find_among, joined
    from governance.kernels.buffers import text_buffers

    data, offsets = text_buffers(texts)
    places = scan(data, offsets)
    hot, starts = np.unique(places[:, 0], return_index=True)
    stops = np.append(starts[1:], len(places))[: len(hot)]
    exact = zip(hot.tolist(), starts.tolist(), stops.tolist(), strict=True)
    if finders is None:
        for index, start, stop in exact:
            text = texts[index].as_py()
            yield index, text, find_among(text, places[start:stop, 1:])
        return
    spans = {index: (start, stop) for index, start, stop in exact}
    column = texts.to_pylist()
    for index, (text, others) in enumerate(zip(column, find_others(column, finders), strict=True)):
        start, stop = spans.get(index, (0, 0))
        yield index, text, joined(find_among(text, places[start:stop, 1:]), others, text)


Payload = tuple[Path, bytes, OtherFinders | None]


def _redact_shard(settings: RedactSettings, payload: Payload, path_of: Callable[[str], Path]) -> ShardMade:
    from data_pipeline.pii.detect import find

    path, key, finders = payload
    types = tuple(kind for kind in settings.actions if kind in TYPES)
    entities = tuple(kind for kind in settings.actions if kind in ENTITIES)
    turns, seen = 0, 0

    def known(canary: Canary, found: Sequence[Detection]) -> bool:
        action = settings.actions[canary.expected.type]
        return is_found(canary, found, {kind for kind, other in settings.actions.items() if other == action}, find)

    def treat(table: pa.Table) -> tuple[Sequence[pa.Table], dict[str, Any]]:
        nonlocal turns, seen
        treated, stats = redact_table(table, settings.actions, key, finders)
        seen += stats["bytes_in"]
        wanted = 1 + seen // settings.canary_bytes if settings.canary_bytes else 0
        if wanted > turns:
            chosen = hosts(table["sha256"].to_pylist(), settings.seed)
            passages = [(table["sha256"][place].as_py(), table["text"][place].as_py()) for place in chosen]
            rounds = range(turns, wanted)
            stats["canaries"] = measure(
                planted(types, rounds, passages, settings.seed),
                types,
                lambda texts: [find(text) for text in texts],
                known,
            )
            if finders is not None and entities:
                named = planted(entities, rounds, passages, settings.seed, ENTITY_MAKERS, ENTITY_SENTENCES)
                stats["canaries"] |= measure(named, entities, lambda texts: find_with(texts, finders), is_covered)
        turns = max(turns, wanted) if table.num_rows else turns
        return (treated,), stats

    return pass_on(path, path_of, {"documents": DOCUMENT_SCHEMA}, treat, _nothing(settings.actions))


def _nothing(actions: Mapping[str, Action]) -> dict[str, Any]:
    empty = redact_table(DOCUMENT_SCHEMA.empty_table(), actions)[1]
    planted_types = [kind for kind in actions if kind in (*TYPES, *ENTITIES)]
    return {**empty, "canaries": {kind: {"planted": 0, "found": 0} for kind in planted_types}}


def redact(documents: Manifest, config: PiiConfig, runtime: Runtime, folder: Path = Path()) -> Manifest:
    """Redact the detections of every document as configured; keep every document.

    Args:
        documents: the artifact to read.
        config: what is looked for and what is done with it.
        runtime: where and how.
        folder: where relative paths start: the folder of the run's file.

    Raises:
        ConfigError: a type is pseudonymised and no key can be read, or a rule of `credential_rules` cannot be.
        MissingInput: the model of `finder`, or its library, is missing.
    """
    finders, rules, left_out, inputs = _others(config, folder, runtime)
    actions = config.plan() | dict.fromkeys(rules, config.actions.get("secret", config.action))
    key = read_key(config.key_file, folder) if "pseudonymise" in actions.values() else b""
    settings = RedactSettings(
        actions=actions,
        key_fingerprint=fingerprint(key) if key else "",
        canary_bytes=config.canary_bytes,
        seed=config.seed,
        stdnum=metadata.version("python-stdnum"),
        rules_left_out=left_out,
        finder=None
        if config.finder is None
        else {**config.finder.model_dump(exclude={"path"}), "libraries": library_versions(config.finder)},
    )
    recipe = Recipe("redact", VERSION, settings)

    digests = tuple(item.digest for item in inputs)

    def make(target: Path) -> Made:
        shards = [
            Shard(path.stem, (path.stem, output.sha256, *digests), (path, key, finders), (output,))
            for output, path in document_shards(documents, runtime.root)
        ]
        return gathered(map_shards(recipe, _redact_shard, shards, target, runtime), _nothing(actions))

    return run_stage(recipe, [documents.as_input(), *inputs], runtime, make)


def _others(
    config: PiiConfig, folder: Path, runtime: Runtime
) -> tuple[OtherFinders | None, tuple[str, ...], tuple[str, ...], list[Input]]:
    """The other finders; types and left-out rules of the file; inputs."""
    finders, inputs = OtherFinders(), []
    types: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    if config.credential_rules:
        path = folder / config.credential_rules
        book, digest = read_rules(path)
        types, left_out = book.types, book.left_out
        finders = finders._replace(rules=path, rules_digest=digest)
        inputs.append(Input(stage="file", digest=digest, path=path.name))
    if config.finder is not None:
        model, files = finder_files(config.finder, folder)
        of_model = file_inputs(((file.relative_to(model).as_posix(), file) for file in files), runtime)
        inputs += of_model
        known = tuple((item.path, item.digest) for item in of_model)
        finders = finders._replace(entities=config.finder, model=model, model_files=known)
    return (finders if inputs else None), types, left_out, inputs
