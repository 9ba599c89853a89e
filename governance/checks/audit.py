"""Audit a corpus: run every gate of the policy on every table that it names, and record what was found.

Promise: each gate has at least one result (`missing` where there was nothing to judge), and no result is dropped. A
corpus of which nothing is left fails its gates; it does not crash the audit. The audit decides nothing: that is
`governance.gate`. Price: one pass over the texts that stay, about 0.5 s a feature shard of 100,000 documents, and the
import of Great Expectations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from governance.checks.bias.representation import (
    Counts,
    Terms,
    count_shard,
    documents_by_language,
    load_terms,
    representation_rows,
)
from governance.checks.expectations import run_suite
from governance.checks.suites import Table, document_tables, frame_of, licence_rows, pii_rows, source_rows, token_rows
from governance.config import Section
from governance.errors import MissingInput
from governance.files import write_json
from governance.gate import CheckResult
from governance.log import progress
from governance.manifest import Manifest, describe
from governance.policy import Gate, Policy
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 3
STAGES = ("ingest", "clean", "dedup", "redact", "tokenizer", "encode")
"""The artifacts that every audit is of, in their order."""
OPTIONAL_STAGES = ("classify", "paragraphs", "decontaminate", "mix")
"""Those that it is of as well where the run has them."""
STATUSES = ("pass", "fail", "inconclusive", "error", "missing")


class AuditConfig(Section):
    """How an audit counts; what it demands stands in the policy."""

    min_documents: int = Field(default=30, ge=1)
    """Documents without which a share of the representation table is inconclusive."""


class AuditSection(Section):
    """All that decides an audit's bytes beside its inputs."""

    audit: AuditConfig
    policy: Policy
    """The rules, whole: other rules give another audit."""
    terms_sha256: str
    """The digest of the term lists."""


@dataclass(frozen=True)
class Findings:
    """What an audit records."""

    results: tuple[CheckResult, ...]
    """Sorted by gate, then subject."""
    sources: list[dict[str, Any]]
    representation: dict[str, Any]


def audit(artifacts: Mapping[str, Manifest], policy: Policy, config: AuditConfig, runtime: Runtime) -> Manifest:
    """Judge the corpus of these artifacts by a policy.

    Outputs: `results.json` (every check result), `sources.json` (source x stage), `representation.json`.

    Args:
        artifacts: stage -> manifest: ingest, clean, dedup, redact, tokenizer, encode.
        policy: the gates.
        config: how to count.
        runtime: where.

    Raises:
        MissingInput: an artifact is not given, or one of its files is gone.
        ManifestError: a shard cannot be read.
    """
    if absent := [stage for stage in STAGES if stage not in artifacts]:
        raise MissingInput(f"audit: wants the artifacts {', '.join(absent)}. Make them with: {runtime.command}")
    terms = load_terms()
    section = AuditSection(audit=config, policy=policy, terms_sha256=terms.sha256)

    def make(folder: Path) -> Made:
        findings = find_all(artifacts, policy.gates(), config, terms, runtime.root)
        return _write(findings, folder, runtime.root)

    inputs = [artifacts[stage].as_input() for stage in (*STAGES, *OPTIONAL_STAGES) if stage in artifacts]
    return run_stage(Recipe("audit", VERSION, section), inputs, runtime, make)


def _write(findings: Findings, folder: Path, root: Path) -> Made:
    files = {
        "results.json": [asdict(result) for result in findings.results],
        "sources.json": findings.sources,
        "representation.json": findings.representation,
    }
    for name, value in files.items():
        write_json(folder / name, value)
    counted = Counter(str(result.status) for result in findings.results)
    stats = {**{status: counted.get(status, 0) for status in STATUSES}, "expectations": len(findings.results)}
    return Made([describe(folder / name, root) for name in files], stats)


def find_all(
    artifacts: Mapping[str, Manifest], gates: Sequence[Gate], config: AuditConfig, terms: Terms, root: Path
) -> Findings:
    """Build each suite's tables and judge them, one at a time, in this process."""
    sources = source_rows(artifacts)
    representation = _representation(artifacts["redact"], terms, config, root)
    results: list[CheckResult] = []
    suites: dict[str, Iterator[Table]] = {
        "documents": document_tables(artifacts["clean"], root),
        "sources": iter([Table("sources", frame_of(sources))]),
        "licences": iter([Table("licences", frame_of(licence_rows(artifacts["redact"], root), _LICENCES))]),
        "tokens": iter([Table("tokens", frame_of(token_rows(artifacts["encode"])))]),
        "pii": iter([Table("pii", frame_of(pii_rows(artifacts["redact"]), _PII))]),
        "representation": iter([Table("representation", frame_of(representation["rows"], _REPRESENTATION))]),
    }
    for suite, tables in suites.items():
        judging = [gate for gate in gates if gate.suite == suite]
        for table in tables if judging else ():
            results += _judge(table, judging)
    judged = {result.gate for result in results}
    results += [
        CheckResult(gate.id, gate.suite, "missing", None, 0, 0, f"there is no table for the suite {gate.suite}")
        for gate in gates
        if gate.id not in judged
    ]
    return Findings(tuple(sorted(results, key=lambda item: (item.gate, item.subject))), sources, representation)


_LICENCES = ("source", "licence", "documents")
_PII = ("type", "planted", "found", "canary_recall")
_REPRESENTATION = (
    "language", "axis", "group", "documents", "mentions", "share", "share_low", "share_high", "axis_share",
    "per_million_words", "conclusive",
)  # fmt: skip


def _judge(table: Table, gates: Sequence[Gate]) -> list[CheckResult]:
    if not table.problem:
        return run_suite(table.frame, gates, table.subject)
    return [CheckResult(gate.id, table.subject, "error", None, len(table.frame), 0, table.problem) for gate in gates]


def _representation(final: Manifest, terms: Terms, config: AuditConfig, root: Path) -> dict[str, Any]:
    counts = Counts()
    shards = final.files("documents", root)
    with progress("audit: representation", len(shards), "shards") as advance:
        for path in shards:
            counts = counts.add(count_shard(path, terms))
            advance(1)
    documents = documents_by_language(counts)
    return {
        "terms": {"version": terms.version, "sha256": terms.sha256},
        "min_documents": config.min_documents,
        "documents": documents,
        "documents_without_terms": sum(number for name, number in documents.items() if name not in terms.languages),
        "rows": representation_rows(counts, terms, config.min_documents),
    }
