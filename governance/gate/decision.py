"""The decision on a corpus from results, policy and signed statements.

Pure: nothing is read, written or signed here; `governance.gate.verdict` does that. Promise: every result other than a
pass, every statement that closes or cannot be understood, and every loosened gate that lacks approvals is a reason, and
PASS means that no reason closes and none was waived.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from governance.gate.approvals import all_differences, approvers, unapproved
from governance.gate.policy import Gate, Policy
from governance.gate.signed_statements import SignedStatement
from governance.gate.waivers import Case, Refusal, Ruled, deviation, rule_on

Status = Literal["pass", "fail", "inconclusive", "error", "missing"]
Decision = Literal["PASS", "WAIVED", "BLOCK", "INCONCLUSIVE", "ERROR", "NOT_RUN"]


@dataclass(frozen=True)
class CheckResult:
    """Result of one gate on one subject."""

    gate: str
    subject: str
    """The file or table that was checked, relative to the root."""
    status: Status
    observed: float | str | None
    """The observed number: a share, a mean, a quantile, a worst value."""
    rows: int
    unexpected: int
    """Rows that did not fulfil a row-wise expectation."""
    detail: str
    """Explanation with the threshold."""


@dataclass(frozen=True)
class SignedStatements:
    """Signed statements, and the people who may not sign."""

    rulings: tuple[SignedStatement, ...] = ()
    """Waivers, refusals and withdrawals."""
    approvals: tuple[SignedStatement, ...] = ()
    submitters: tuple[str, ...] = ()
    verdict_key: str = ""
    """The id of the key that signs the verdict."""
    refusal_faults: tuple[tuple[str, str, str], ...] = ()
    """Gate, file and fault of refusals that are gone, and of withdrawals that do not hold; each closes."""


@dataclass(frozen=True)
class Judgement:
    """The decision on one corpus under one policy, before it is signed."""

    decision: Decision
    reasons: tuple[dict[str, Any], ...]
    """One for each result other than a pass, each statement that closes, and each loosened gate without approval: gate,
    subject, status, severity, owner, detail, deviation, waived, closes."""
    summary: dict[str, int]
    waivers: tuple[dict[str, Any], ...]
    differences: tuple[str, ...]
    """Differences of the policy from its parent, as text."""
    submitters: tuple[str, ...]
    approvers: tuple[str, ...] = ()
    """People whose approval of the policy against a parent counts."""


def decide(
    policy: Policy,
    results: Sequence[CheckResult],
    corpus: str,
    today: datetime.date,
    statements: SignedStatements | None = None,
) -> Judgement:
    """Judge the results of one corpus (its digest) under a policy.

    A failed or inconclusive result can be waived; an error or a missing result cannot, because nothing is known. A
    result or a statement for a gate that the policy does not have is an error too.
    """
    statements = statements or SignedStatements()
    case = Case(policy, corpus, today, statements.submitters, statements.verdict_key)
    gates = {gate.id: gate for gate in policy.gates()}
    seen = {result.gate for result in results}
    absent = [CheckResult(name, "-", "missing", None, 0, 0, "no result") for name in gates if name not in seen]
    waivers, reasons = [], []
    for result in sorted([*results, *absent], key=lambda item: (item.gate, item.subject)):
        gate = gates.get(result.gate)
        ruled = Ruled(None, ())
        if gate is not None:
            ruled = rule_on(case, gate, (result.subject, result.status, result.observed), statements.rulings)
        if result.status == "pass" and gate is not None and not ruled.faults:
            continue
        if ruled.waiver is not None:
            waivers.append({**ruled.waiver, "subject": corpus})
        reasons.append(_reason(result, gate, ruled))
    reasons += [*statement_reasons(statements, gates), *_loosened(policy, statements)]
    summary: dict[str, int] = dict(sorted(Counter(str(result.status) for result in [*results, *absent]).items()))
    differences = tuple(all_differences(policy))
    approved = approvers(policy, statements.approvals, statements.submitters)
    decision = _decision(reasons)
    return Judgement(decision, tuple(reasons), summary, tuple(waivers), differences, statements.submitters, approved)


def _reason(result: CheckResult, gate: Gate | None, ruled: Ruled) -> dict[str, Any]:
    if gate is None:
        known: dict[str, Any] = {"severity": "critical", "owner": "unknown", "why": "no such gate in the policy"}
        return {**asdict(result), **known, "status": "error", "deviation": None, "waived": False, "closes": True}
    waived = ruled.waiver is not None
    shown = gate.severity == "warning" or (result.status == "inconclusive" and gate.on_inconclusive == "show")
    grave = result.status in ("error", "missing")
    details = [result.detail, *ruled.faults]
    if result.status == "pass":  # only a signed statement closes the gate, so it is named first
        details = [*ruled.faults, f"the check itself passed: {result.detail}"]
    return {
        **asdict(result),
        "status": "fail" if ruled.faults and not grave else result.status,
        "detail": "; ".join(details),
        "severity": gate.severity,
        "owner": gate.owner,
        "why": gate.why,
        "deviation": deviation(gate, result.observed),
        "waived": waived,
        "closes": not waived and (grave or bool(ruled.faults) or not shown),
    }


def statement_reasons(statements: SignedStatements, gates: Mapping[str, Gate]) -> Iterator[dict[str, Any]]:
    """Unreadable statements, those on unknown gates, and faults of refusals."""
    for gate, name, words in statements.refusal_faults:
        owner = gates[gate].owner if gate in gates else "unknown"
        yield {**_own_reason(name, gate, "fail", words), "owner": owner}  # a line of its own, next to its gate's
    for signed in (*statements.rulings, *statements.approvals):
        gate = signed.content.gate if isinstance(signed.content, Refusal) else ""
        if signed.content is None:
            yield _own_reason("papers", signed.name, "error", f"{signed.fault}; remove the file if it is not yours")
        elif gate and gate not in gates:
            words = "names a gate that is not in the policy; remove the file, or sign it for one of its gates"
            yield _own_reason(gate, signed.name, "error", words)


def _loosened(policy: Policy, statements: SignedStatements) -> Iterator[dict[str, Any]]:
    for item in unapproved(policy, statements.approvals, statements.submitters):
        yield {**_own_reason(item.gate, "policy", "fail", item.words), "owner": item.owner}


def _own_reason(gate: str, subject: str, status: Status, detail: str) -> dict[str, Any]:
    """A reason without a check result."""
    known = {"severity": "critical", "owner": "unknown", "why": "only what people signed lets a corpus through"}
    result = CheckResult(gate, subject, status, None, 0, 0, detail)
    return {**asdict(result), **known, "deviation": None, "waived": False, "closes": True}


def _decision(reasons: Sequence[Mapping[str, Any]]) -> Decision:
    closing = {reason["status"] for reason in reasons if reason["closes"]}
    for status, decision in _CLOSING:
        if status in closing:
            return decision
    return "WAIVED" if any(reason["waived"] for reason in reasons) else "PASS"


_CLOSING: tuple[tuple[Status, Decision], ...] = (
    ("fail", "BLOCK"),
    ("error", "ERROR"),
    ("missing", "NOT_RUN"),
    ("inconclusive", "INCONCLUSIVE"),
)
