"""Merging of workers' results: one for each shard and gate.

A worker judges one shard by a suite and writes a *finding*, a JSON file with the judged shard (name and digest), the
gates and the results. Each finding is verified:

    a shard has no finding                            each gate gets `missing` for this shard
    a shard has two findings, or a finding no shard   each gate gets `error`
    the finding belongs to another suite, other bytes,     each gate gets `error`
      other gates, or does not have one result per gate
    no shard has a row                                one empty table is judged, which no gate can pass

Work that was omitted, repeated or applied to another shard therefore closes the gate. If a worker dies, the audit ends
without a manifest, and without an audit there is no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from governance.checks.expectations import run_suite
from governance.checks.suites import SuiteTable, frame_of
from governance.config import Section
from governance.files import write_json
from governance.gate.decision import CheckResult
from governance.gate.policy import Gate


class SuiteSection(Section):
    """Settings of a suite over shards, part of its record's key."""

    suite: str
    gates: tuple[Gate, ...]
    own_sources: dict[str, str] = Field(default={})
    """Dotted path of a custom expectation -> SHA-256 of its source."""


@dataclass(frozen=True)
class Expected:
    """A shard that must be judged."""

    subject: str
    """Its path relative to the root."""
    sha256: str


def judge_table(table: SuiteTable, gates: Sequence[Gate]) -> list[CheckResult]:
    """One result for each gate.

    The result is the engine's, or an error where the table has a problem.
    """
    if not table.problem:
        results = run_suite(table.frame, gates, table.subject)
        if table.unmeasured and table.frame.empty:
            return [replace(one, detail=table.unmeasured) if one.status == "inconclusive" else one for one in results]
        return results
    return [CheckResult(gate.id, table.subject, "error", None, len(table.frame), 0, table.problem) for gate in gates]


def write_finding(section: SuiteSection, table: SuiteTable, shard: Expected, path: Path) -> None:
    """Judge a shard's table, unless it is empty, and write the finding."""
    judged = bool(len(table.frame) or table.problem)
    finding = {
        "suite": section.suite,
        "subject": shard.subject,
        "sha256": shard.sha256,
        "rows": len(table.frame),
        "judged": judged,
        "gates": [gate.id for gate in section.gates],
        "results": [asdict(result) for result in judge_table(table, section.gates)] if judged else [],
    }
    write_json(path, finding)


def merge_findings(
    section: SuiteSection, expected: Sequence[Expected], findings: Iterable[Mapping[str, Any]], place: str
) -> list[CheckResult]:
    """Merge all shards' results; missing and foreign findings are results too.

    Args:
        section: the suite and its gates.
        expected: the shards, each once.
        findings: the workers' findings, in any order.
        place: subject of results that concern no single shard.
    """
    if not section.gates:
        return []
    by_subject: dict[str, list[Mapping[str, Any]]] = {}
    for finding in findings:
        by_subject.setdefault(str(finding.get("subject")), []).append(finding)
    results: list[CheckResult] = []
    empty = 0
    for shard in expected:
        own = by_subject.pop(shard.subject, [])
        if problem := _problem(section, shard, own):
            status: Any = "error" if own else "missing"
            results += [CheckResult(gate.id, shard.subject, status, None, 0, 0, problem) for gate in section.gates]
        elif own[0]["judged"]:
            results += [CheckResult(**row) for row in own[0]["results"]]
        else:
            empty += 1
    for subject in sorted(by_subject):
        detail = "a result was received for a shard that is not part of this corpus"
        results += [CheckResult(gate.id, subject, "error", None, 0, 0, detail) for gate in section.gates]
    if empty and not results:
        columns = sorted({gate.column for gate in section.gates if gate.column})
        results += judge_table(SuiteTable(place, frame_of([], columns)), section.gates)
    return results


def _problem(section: SuiteSection, shard: Expected, own: Sequence[Mapping[str, Any]]) -> str:
    """Reason to distrust a worker's result; "" for none."""
    gates = [gate.id for gate in section.gates]
    if len(own) != 1:
        return f"{len(own)} findings were received for this shard, not one"
    [finding] = own
    if finding["suite"] != section.suite or finding["sha256"] != shard.sha256:
        return f"the finding is of suite {finding['suite']!r} and bytes {finding['sha256'][:16]}…, not this shard's"
    if finding["gates"] != gates:
        return f"the finding has the gates {finding['gates']}, the suite {gates}"
    if not finding["judged"]:
        return "it has rows but was not judged" if finding["rows"] or finding["results"] else ""
    if [row["gate"] for row in finding["results"]] != gates:
        return f"the results are for {[row['gate'] for row in finding['results']]}, expected are {gates}"
    if any(row["subject"] != shard.subject for row in finding["results"]):
        return "a result names another subject"
    return ""
