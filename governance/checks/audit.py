"""Audit stage: evaluate every gate of the policy, record all results.

Promise: each gate has at least one result (`missing` where there was nothing to judge), each shard one per gate of its
suite, and no result is dropped. A corpus without remaining documents fails its gates; it does not crash the audit. The
audit does not decide: `governance.gate.verdict` does. Tables of the stage "bias" are judged as they are. Price: the
columns other than text of raw documents and features, one pass over the token shards, and the import of Great
Expectations; docs/checks.md has figures.
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
from governance.checks.gx.own_expectations import source_digests
from governance.checks.shards import (
    AuditLocation,
    counted_token_shards,
    document_results,
    raw_results,
    read_values,
    shard_tables,
)
from governance.checks.suites import (
    SuiteTable,
    frame_of,
    licence_rows,
    pii_rows,
    quarantined_records,
    source_rows,
    token_rows,
)
from governance.checks.synthetic_share import synthetic_rows
from governance.checks.tokens import COLUMNS as TOKEN_COLUMNS
from governance.checks.tokens import TokenReaders
from governance.config import Section, canonical_json
from governance.errors import ManifestError, MissingInput
from governance.files import sha256_bytes, write_json
from governance.gate.decision import CheckResult
from governance.gate.policy import Gate, Policy
from governance.manifest import Manifest, Output, describe
from governance.parallel import close_pool
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.stage_order import STAGES

VERSION = 14
REQUIRED = tuple(row.name for row in STAGES if row.audited and not row.optional)
"""Artifacts that every audit requires, in order."""
OPTIONAL = tuple(row.name for row in STAGES if row.audited and row.optional)
"""Artifacts that are audited where the run has them."""
STATUSES = ("pass", "fail", "inconclusive", "error", "missing")


class AuditConfig(Section):
    """Settings of counting; the policy holds the thresholds."""

    min_documents: int = Field(default=30, ge=1)
    """Documents below which a share of the representation table is inconclusive."""
    reference: str = ""
    """A file of `assay governance freeze`, relative to the run's file, with which the suite `drift` compares the
    features; empty: no such table."""
    min_drift_documents: int = Field(default=500, ge=1)
    """Documents below which the table `drift` has no number: fewer differ by chance."""
    bias: BiasConfig = BiasConfig()
    """Settings of the bias audit, hashed by the stage "bias" instead of this one."""


class AuditSection(Section):
    """Settings that decide an audit's bytes."""

    audit: AuditConfig
    """The section without the path of the reference and the settings of "bias"."""
    policy: Policy
    """The whole policy: other rules give another audit."""
    reference_sha256: str
    """The digest of the reference's sketch; empty: none."""
    token_shards: bool
    """True where the token shards are counted again."""
    own_sources: dict[str, str]
    """Dotted path of a custom expectation -> SHA-256 of its source."""


@dataclass(frozen=True)
class AuditInputs:
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
    tables: dict[str, Any]
    """File name -> content, of the files other than `results.json`."""
    outputs: tuple[Output, ...]
    """Files of the workers."""


def audit(
    artifacts: Mapping[str, Manifest],
    policy: Policy,
    config: AuditConfig,
    runtime: Runtime,
    readers: TokenReaders | None = None,
    reference: Sketch | None = None,
) -> Manifest:
    """Judge the corpus of these artifacts by a policy.

    Outputs: `results.json` (every check result), `sources.json` (source x stage), `licences.json` (kept
    documents by source and licence), `representation.json`, `drift.json` and `token_shards.json` (the tables of those
    suites, empty where there is none); roles `raw`, `documents` (a worker's finding for each shard), `id_hashes`,
    `sketches`, `tokens_train`, `tokens_validation` (a shard's row).

    Args:
        artifacts: stage -> manifest: ingest, clean, dedup, redact, tokenizer, encode; others where the run has them.
        policy: the gates.
        config: settings.
        runtime: where to write.
        readers: readers of token shards; without them the suite `token_shards` has no table.
        reference: sketch for `drift`; without it that table has no rows, and gates on it are inconclusive.

    Raises:
        MissingInput: an artifact or one of its files is missing.
        ManifestError: a shard cannot be read.
    """
    if absent := [stage for stage in REQUIRED if stage not in artifacts]:
        raise MissingInput(f"audit: the artifacts {', '.join(absent)} are missing. Make them with: {runtime.command}")
    section = AuditSection(
        audit=config.model_copy(update={"reference": "", "bias": BiasConfig()}),
        policy=policy,
        reference_sha256="" if reference is None else sha256_bytes(canonical_json(reference)),
        token_shards=readers is not None,
        own_sources=source_digests(policy.gate),
    )
    given = AuditInputs(artifacts, policy.gates(), config, readers, reference)

    def make(folder: Path) -> Made:
        try:
            findings = find_all(given, AuditLocation(VERSION, folder, runtime))
        finally:
            close_pool()
        return _write(findings, folder, runtime.root)

    inputs = [artifacts[stage].as_input() for stage in (*REQUIRED, *OPTIONAL) if stage in artifacts]
    return run_stage(Recipe("audit", VERSION, section), inputs, runtime, make)


def _write(findings: Findings, folder: Path, root: Path) -> Made:
    files = {"results.json": [asdict(result) for result in findings.results], **findings.tables}
    for name, value in files.items():
        write_json(folder / name, value)
    counted = Counter(str(result.status) for result in findings.results)
    stats = {**{status: counted.get(status, 0) for status in STATUSES}, "expectations": len(findings.results)}
    return Made([*(describe(folder / name, root) for name in files), *findings.outputs], stats)


def find_all(given: AuditInputs, place: AuditLocation) -> Findings:
    """Judge the shards, then each table of the whole corpus."""
    artifacts, root = given.artifacts, place.root
    results: list[CheckResult] = []
    outputs: list[Output] = []
    if judging := given.of("raw"):
        raw = raw_results(place, artifacts["ingest"], judging)
        results, outputs = [*raw.results], [*raw.outputs]
    drift: list[dict[str, Any]] = []
    if given.of("documents") or given.reference is not None:
        documents, sketch = document_results(
            place, artifacts["clean"], given.of("documents"), given.reference is not None
        )
        results += documents.results
        outputs += documents.outputs
        if given.reference is not None:
            drift = drift_rows(sketch, given.reference, given.config.min_drift_documents)
    counted: list[dict[str, Any]] = []
    problem = ""
    if given.readers is not None:
        counted, problem, left = counted_token_shards(place, artifacts, given.readers)
        outputs += left
    tables = dict(corpus_tables(given, root))
    representation: dict[str, Any] = {}
    if "bias" in artifacts:
        representation = representation_of_bias(artifacts["bias"], bias_tables(artifacts, root), given.config)
    unmeasured = "" if given.reference is not None else _NO_REFERENCE
    tables["drift"] = SuiteTable("drift", frame_of(drift, DRIFT_COLUMNS), unmeasured=unmeasured)
    if given.readers is not None:
        tables["token_shards"] = SuiteTable("token_shards", frame_of(counted, TOKEN_COLUMNS), problem)
    for suite, table in tables.items():
        judging = given.of(suite)
        results += judge_table(table, judging) if judging else []
    files = {
        "sources.json": source_rows(artifacts),
        "licences.json": tables["licences"].frame.to_dict("records"),
        "representation.json": representation,
        "drift.json": drift,
        "token_shards.json": counted,
    }
    return Findings(_with_missing(given, results), files, tuple(outputs))


def _with_missing(given: AuditInputs, results: Sequence[CheckResult]) -> tuple[CheckResult, ...]:
    """The results, sorted, and one for each gate that has none."""
    judged = {result.gate for result in results}
    missing = [
        CheckResult(gate.id, gate.suite, "missing", None, 0, 0, f"there is no table for the suite {gate.suite}")
        for gate in given.gates
        if gate.id not in judged
    ]
    return tuple(sorted([*results, *missing], key=lambda item: (item.gate, item.subject)))


def corpus_tables(given: AuditInputs, root: Path) -> Iterator[tuple[str, SuiteTable]]:
    """Tables of the whole corpus by suite, from manifests and stage "bias"."""
    artifacts = given.artifacts
    records = quarantined_records(artifacts["ingest"], root)
    sources = [
        {**row, "quarantined_records": records.get(row["source"], "") if row["stage"] == "ingest" else ""}
        for row in source_rows(artifacts)
    ]
    yield "sources", SuiteTable("sources", frame_of(sources))
    yield "licences", SuiteTable("licences", frame_of(licence_rows(artifacts["redact"], root), _LICENCES))
    yield "tokens", SuiteTable("tokens", frame_of(token_rows(artifacts["encode"])))
    yield "synthetic", SuiteTable("synthetic", frame_of(synthetic_rows(artifacts)))
    yield "pii", SuiteTable("pii", frame_of(pii_rows(artifacts["redact"]), _PII))
    for suite, rows in bias_tables(artifacts, root).items():
        yield suite, SuiteTable(suite, frame_of(rows, INTERVAL_COLUMNS))


def tables_again(
    checked: Manifest, artifacts: Mapping[str, Manifest], policy: Policy, runtime: Runtime
) -> Iterator[tuple[str, SuiteTable]]:
    """Tables that an audit judged, with their suites, rebuilt one by one."""
    place = AuditLocation(VERSION, runtime.root / checked.folder, runtime)
    given = AuditInputs(artifacts, policy.gates(), AuditConfig())
    for suite, table in shard_tables(place, artifacts):
        if given.of(suite):
            yield suite, table
    tables = dict(corpus_tables(given, runtime.root))
    columns = {"drift": DRIFT_COLUMNS, "token_shards": TOKEN_COLUMNS}
    for suite in sorted(set(columns) - set(tables)):
        if rows := read_values(checked.named(f"{suite}.json"), runtime.root):
            tables[suite] = SuiteTable(suite, frame_of(rows, columns[suite]))
    yield from tables.items()


def bias_tables(artifacts: Mapping[str, Manifest], root: Path) -> dict[str, list[dict[str, Any]]]:
    """Tables of stage "bias", as suite -> rows.

    Empty where the run has no such stage.

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


_NO_REFERENCE = "there is no reference to compare with: audit.reference is not set"
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

    Each group has one row. `n` of a share counts the documents of its language, and `n` of a rate its words, so both
    counts come back as whole numbers.
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
