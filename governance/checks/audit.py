"""Audit stage: evaluate every gate of the policy, record all results.

Promise: each gate has at least one result (`missing` where there was nothing to judge), each shard has one for each
gate of its suite, and no result is dropped. A corpus of which nothing is left fails its gates; it does not crash the
audit. The audit decides nothing: that is `governance.gate.verdict`. Where the run has the artifact of the stage "bias",
its tables are judged as they are. Price: the columns beside the text of raw documents and features, one pass over the
token shards, and the import of Great Expectations; docs/checks.md has figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from governance.checks.bias.bias import TABLES_FILE, BiasConfig
from governance.checks.drift import COLUMNS as DRIFT_COLUMNS
from governance.checks.drift import Sketch, drift_rows
from governance.checks.gathering import judge_table
from governance.checks.shards import (
    Place,
    counted_token_shards,
    document_results,
    raw_results,
    read_values,
    shard_tables,
)
from governance.checks.suites import Table, frame_of, licence_rows, pii_rows, source_rows, token_rows
from governance.checks.tokens import COLUMNS as TOKEN_COLUMNS
from governance.checks.tokens import TokenReaders
from governance.config import Section, canonical_json
from governance.errors import ManifestError, MissingInput
from governance.files import sha256_bytes, write_json
from governance.gate.policy import Gate, Policy
from governance.gate.verdict import CheckResult
from governance.manifest import Manifest, Output, describe
from governance.parallel import close_pool
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 5
STAGES = ("ingest", "clean", "dedup", "redact", "tokenizer", "encode")
"""The artifacts that every audit is of, in their order."""
OPTIONAL_STAGES = ("filter", "classify", "paragraphs", "decontaminate", "mix", "bias")
"""Those that it is of as well where the run has them."""
STATUSES = ("pass", "fail", "inconclusive", "error", "missing")


class AuditConfig(Section):
    """Settings of counting; the policy holds the thresholds."""

    min_documents: int = Field(default=30, ge=1)
    """Documents without which a share of the representation table is inconclusive."""
    reference: str = ""
    """A file of `assay governance freeze`, relative to the run's file: what the suite `drift` compares the features
    with; empty: there is no such table."""
    min_drift_documents: int = Field(default=500, ge=1)
    """Documents without which the table `drift` has no number: fewer differ by chance."""
    bias: BiasConfig = BiasConfig()
    """How whom the corpus speaks of is counted; the stage "bias" of its own hashes it."""


class AuditSection(Section):
    """All that decides an audit's bytes beside its inputs."""

    audit: AuditConfig
    """The section, without the path of the reference and without what the stage "bias" hashes."""
    policy: Policy
    """The rules, whole: other rules give another audit."""
    reference_sha256: str
    """The digest of the reference's sketch; empty: none."""
    token_shards: bool
    """Whether the token shards are counted again."""


@dataclass(frozen=True)
class Asked:
    """Inputs of an audit."""

    artifacts: Mapping[str, Manifest]
    gates: tuple[Gate, ...]
    config: AuditConfig
    readers: TokenReaders | None = None
    reference: Sketch | None = None

    def of(self, suite: str) -> list[Gate]:
        """The gates on a suite."""
        return [gate for gate in self.gates if gate.suite == suite]


@dataclass(frozen=True)
class Findings:
    """Results that an audit records."""

    results: tuple[CheckResult, ...]
    """Sorted by gate, then subject."""
    sources: list[dict[str, Any]]
    representation: dict[str, Any]
    drift: list[dict[str, Any]]
    token_shards: list[dict[str, Any]]
    outputs: tuple[Output, ...]
    """What the workers left."""


def audit(
    artifacts: Mapping[str, Manifest],
    policy: Policy,
    config: AuditConfig,
    runtime: Runtime,
    readers: TokenReaders | None = None,
    reference: Sketch | None = None,
) -> Manifest:
    """Judge the corpus of these artifacts by a policy.

    Outputs: `results.json` (every check result), `sources.json` (source x stage), `representation.json`, `drift.json`
    and `token_shards.json` (the tables of those suites, empty where there is none); roles `raw`, `documents` (a
    worker's finding for each shard), `id_hashes`, `sketches`, `tokens_train`, `tokens_validation` (a shard's row).

    Args:
        artifacts: stage -> manifest: ingest, clean, dedup, redact, tokenizer, encode; others where the run has them.
        policy: the gates.
        config: how to count.
        runtime: where.
        readers: how token shards are read; without them the suite `token_shards` has no table.
        reference: what `drift` compares with; without it that table has no rows, and gates on it are inconclusive.

    Raises:
        MissingInput: an artifact is not given, or one of its files is gone.
        ManifestError: a shard cannot be read.
    """
    if absent := [stage for stage in STAGES if stage not in artifacts]:
        raise MissingInput(f"audit: wants the artifacts {', '.join(absent)}. Make them with: {runtime.command}")
    section = AuditSection(
        audit=config.model_copy(update={"reference": "", "bias": BiasConfig()}),
        policy=policy,
        reference_sha256="" if reference is None else sha256_bytes(canonical_json(reference)),
        token_shards=readers is not None,
    )
    asked = Asked(artifacts, policy.gates(), config, readers, reference)

    def make(folder: Path) -> Made:
        try:
            findings = find_all(asked, Place(VERSION, folder, runtime))
        finally:
            close_pool()
        return _write(findings, folder, runtime.root)

    inputs = [artifacts[stage].as_input() for stage in (*STAGES, *OPTIONAL_STAGES) if stage in artifacts]
    return run_stage(Recipe("audit", VERSION, section), inputs, runtime, make)


def _write(findings: Findings, folder: Path, root: Path) -> Made:
    files = {
        "results.json": [asdict(result) for result in findings.results],
        "sources.json": findings.sources,
        "representation.json": findings.representation,
        "drift.json": findings.drift,
        "token_shards.json": findings.token_shards,
    }
    for name, value in files.items():
        write_json(folder / name, value)
    counted = Counter(str(result.status) for result in findings.results)
    stats = {**{status: counted.get(status, 0) for status in STATUSES}, "expectations": len(findings.results)}
    return Made([*(describe(folder / name, root) for name in files), *findings.outputs], stats)


def find_all(asked: Asked, place: Place) -> Findings:
    """Judge what lies in shards, then each table of the whole corpus."""
    artifacts, root = asked.artifacts, place.root
    results: list[CheckResult] = []
    outputs: list[Output] = []
    if judging := asked.of("raw"):
        raw = raw_results(place, artifacts["ingest"], judging)
        results, outputs = [*raw.results], [*raw.outputs]
    drift: list[dict[str, Any]] = []
    if asked.of("documents") or asked.reference is not None:
        documents, sketch = document_results(
            place, artifacts["clean"], asked.of("documents"), asked.reference is not None
        )
        results += documents.results
        outputs += documents.outputs
        if asked.reference is not None:
            drift = drift_rows(sketch, asked.reference, asked.config.min_drift_documents)
    counted: list[dict[str, Any]] = []
    problem = ""
    if asked.readers is not None:
        counted, problem, left = counted_token_shards(place, artifacts, asked.readers)
        outputs += left
    tables = dict(corpus_tables(asked, root))
    representation: dict[str, Any] = {}
    if "bias" in artifacts:
        representation = representation_of_bias(artifacts["bias"], bias_tables(artifacts, root), asked.config)
    tables["drift"] = Table("drift", frame_of(drift, DRIFT_COLUMNS))  # without a reference: no rows, inconclusive
    if asked.readers is not None:
        tables["token_shards"] = Table("token_shards", frame_of(counted, TOKEN_COLUMNS), problem)
    for suite, table in tables.items():
        judging = asked.of(suite)
        results += judge_table(table, judging) if judging else []
    return Findings(
        _with_missing(asked, results), source_rows(artifacts), representation, drift, counted, tuple(outputs)
    )


def _with_missing(asked: Asked, results: Sequence[CheckResult]) -> tuple[CheckResult, ...]:
    """The results, sorted, and one for each gate that has none."""
    judged = {result.gate for result in results}
    missing = [
        CheckResult(gate.id, gate.suite, "missing", None, 0, 0, f"there is no table for the suite {gate.suite}")
        for gate in asked.gates
        if gate.id not in judged
    ]
    return tuple(sorted([*results, *missing], key=lambda item: (item.gate, item.subject)))


def corpus_tables(asked: Asked, root: Path) -> Iterator[tuple[str, Table]]:
    """Tables of the whole corpus by suite, from manifests and stage "bias"."""
    artifacts = asked.artifacts
    yield "sources", Table("sources", frame_of(source_rows(artifacts)))
    yield "licences", Table("licences", frame_of(licence_rows(artifacts["redact"], root), _LICENCES))
    yield "tokens", Table("tokens", frame_of(token_rows(artifacts["encode"])))
    yield "pii", Table("pii", frame_of(pii_rows(artifacts["redact"]), _PII))
    for suite, rows in bias_tables(artifacts, root).items():
        yield suite, Table(suite, frame_of(rows, INTERVAL_COLUMNS))


def tables_again(
    checked: Manifest, artifacts: Mapping[str, Manifest], policy: Policy, runtime: Runtime
) -> Iterator[tuple[str, Table]]:
    """Tables that an audit judged, with their suites, rebuilt one by one."""
    place = Place(VERSION, runtime.root / checked.folder, runtime)
    asked = Asked(artifacts, policy.gates(), AuditConfig())
    for suite, table in shard_tables(place, artifacts):
        if asked.of(suite):
            yield suite, table
    tables = dict(corpus_tables(asked, runtime.root))
    columns = {"drift": DRIFT_COLUMNS, "token_shards": TOKEN_COLUMNS}
    for suite in sorted(set(columns) - set(tables)):
        if rows := read_values(checked.named(f"{suite}.json"), runtime.root):
            tables[suite] = Table(suite, frame_of(rows, columns[suite]))
    yield from tables.items()


def bias_tables(artifacts: Mapping[str, Manifest], root: Path) -> dict[str, list[dict[str, Any]]]:
    """The tables of the stage "bias", suite -> rows.

    None where the run has no such stage.

    Raises:
        ManifestError: its file is gone or is not what it should be.
    """
    if "bias" not in artifacts:
        return {}
    bias = artifacts["bias"]
    try:
        tables = read_values(bias.named(TABLES_FILE), root)
        return {str(suite): [dict(row) for row in rows] for suite, rows in tables.items()}
    except (ValueError, TypeError, AttributeError) as error:
        path = root / bias.folder / TABLES_FILE
        raise ManifestError(f"{path}: cannot be read: {error}. Remove its folder and make it again.") from error


_LICENCES = ("source", "licence", "documents")
_PII = ("type", "planted", "found", "canary_recall")
INTERVAL_COLUMNS = (
    "metric", "language", "axis", "group", "against", "stage", "instrument", "value", "lower", "upper", "n", "p", "q",
    "note",
)  # fmt: skip


def representation_of_bias(
    bias: Manifest, tables: Mapping[str, Sequence[Mapping[str, Any]]], config: AuditConfig
) -> dict[str, Any]:
    """The interval rows of the suite `representation` in the form of `representation.json`.

    A row a group.

    `n` of a share is the documents of its language, of a rate the words, so both counts come back as whole numbers.
    """
    by_group: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in tables.get("representation", ()):
        if row["group"] is None:
            continue  # `coverage` is of a whole corpus
        key = (str(row["language"]), str(row["axis"]), str(row["group"]))
        by_group.setdefault(key, {})[str(row["metric"])] = row
    rows, documents = [], {}
    for (language, axis, group), metrics in sorted(by_group.items()):
        share, on_axis, rate = (metrics.get(name, {}) for name in ("share", "axis_share", "per_million_words"))
        mentioning = round((share.get("value") or 0) * (share.get("n") or 0))
        documents[language] = share.get("n") or 0
        rows.append(
            {
                "language": language,
                "axis": axis,
                "group": group,
                "documents": mentioning,
                "mentions": round((rate.get("value") or 0) * (rate.get("n") or 0) / 1e6),
                "share": share.get("value"),
                "share_low": share.get("lower"),
                "share_high": share.get("upper"),
                "axis_share": on_axis.get("value"),
                "per_million_words": rate.get("value"),
                "conclusive": mentioning >= config.min_documents,
            }
        )
    without = bias.stats.get("documents_without_terms", {})
    return {
        "terms": {"artifact": bias.path},
        "min_documents": config.min_documents,
        "documents": documents,
        "documents_without_terms": sum(without.values()) if isinstance(without, Mapping) else without,
        "rows": rows,
    }
