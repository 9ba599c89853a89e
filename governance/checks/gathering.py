"""Merging of workers' results: one for each shard and gate.

A worker judges one shard by a suite and leaves a *finding*, a JSON file that says what was judged (the shard's name and
digest), by which gates, and the results. Nothing is believed of it without a look:

    a shard has no finding                            each gate gets `missing` for this shard
    a shard has two findings, or a finding no shard   each gate gets `error`
    the finding is of another suite, other bytes,     each gate gets `error`
      other gates, or has not one result a gate
    no shard has a row                                one empty table is judged, which no gate can pass

So what a worker did not do, did twice or did to something else closes the gate. A worker that dies ends the audit
without a manifest, and without an audit there is no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from governance.checks.expectations import run_suite
from governance.checks.suites import Table, frame_of
from governance.config import Section
from governance.files import write_json
from governance.gate.policy import Gate
from governance.gate.verdict import CheckResult


class SuiteSection(Section):
    """Settings of a suite over shards, part of its record's key."""

    suite: str
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class Expected:
    """A shard that must have been judged."""

    subject: str
    """Its path relative to the root."""
    sha256: str


def judge_table(table: Table, gates: Sequence[Gate]) -> list[CheckResult]:
    """One result for each gate.

    The engine's, or an error where the table has a problem.
    """
    if not table.problem:
        return run_suite(table.frame, gates, table.subject)
    return [CheckResult(gate.id, table.subject, "error", None, len(table.frame), 0, table.problem) for gate in gates]


def write_finding(section: SuiteSection, table: Table, shard: Expected, path: Path) -> None:
    """Judge a shard's table and write what was found.

    A table without rows is not judged, but told.
    """
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


def gather(
    section: SuiteSection, expected: Sequence[Expected], findings: Iterable[Mapping[str, Any]], place: str
) -> list[CheckResult]:
    """The results of all shards.

    Whatever is missing, doubled or foreign is a result of its own.

    Args:
        section: the suite and its gates.
        expected: the shards, each once.
        findings: what came back, in any order.
        place: the subject of what concerns no single shard.
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
        words = "a result came back for a shard that is not of this corpus"
        results += [CheckResult(gate.id, subject, "error", None, 0, 0, words) for gate in section.gates]
    if empty and not results:
        results += judge_table(Table(place, frame_of([], _columns(section))), section.gates)
    return results


def _problem(section: SuiteSection, shard: Expected, own: Sequence[Mapping[str, Any]]) -> str:
    """Reason to distrust a worker's result; "" for none."""
    gates = [gate.id for gate in section.gates]
    if len(own) != 1:
        return f"{len(own)} findings came back for this shard, not one"
    [finding] = own
    if finding["suite"] != section.suite or finding["sha256"] != shard.sha256:
        return f"what came back is of suite {finding['suite']!r} and bytes {finding['sha256'][:16]}…, not this shard's"
    if finding["gates"] != gates:
        return f"the suite that was run has the gates {finding['gates']}, the one that was built {gates}"
    if not finding["judged"]:
        return "it has rows, and was not judged" if finding["rows"] or finding["results"] else ""
    if [row["gate"] for row in finding["results"]] != gates:
        return f"results came back for {[row['gate'] for row in finding['results']]}, wanted are {gates}"
    if any(row["subject"] != shard.subject for row in finding["results"]):
        return "a result that came back names another subject"
    return ""


def _columns(section: SuiteSection) -> list[str]:
    """The columns of an empty table.

    Those that the gates ask for, so that they find no value instead of no column.
    """
    return sorted({gate.column for gate in section.gates if gate.column})
