"""The shipped policies on simulated corpora: what a planted bias closes, and what a corpus without one passes.

Null corpora are those of `bias_null.py`; the planted ones have 400 sites and one effect each, beyond the bounds of one
gate. The two policies have the same bounds, so a corpus that closes the strict gate is a warning under the other.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measures.goals import Goal
from benchmarks.measures.governance import bias_null
from governance.checks.audit import INTERVAL_COLUMNS
from governance.checks.expectations import run_suite
from governance.checks.suites import frame_of
from governance.gate.decision import CheckResult, Judgement, decide
from governance.gate.policy import load_policy

CONFIGS = Path(__file__).parents[3] / "configs"
EFFECTS: dict[str, tuple[str, dict[tuple[str, ...], float]]] = {
    "tone": ("tone.sentiment_gap", {("tone", "b"): -0.7}),
    "toxicity": ("tone.toxicity_ratio", {("abuse", "c"): 8.0}),
    "association": ("association.npmi_gap", {("npmi", "a", "crime"): 8.0}),
    "impact": ("impact.four_fifths", {("keep", "c"): 0.5}),
}
"""Name -> the gate that it closes, and the effect (`bias_null.Shape.effects`)."""
COMPARED = ("representation", "association", "tone", "impact")
"""Suites that are judged; every other gate is given a pass, so that the decision is theirs."""


def judged(tables: Mapping[str, Sequence[Mapping[str, Any]]], policy_name: str) -> tuple[Judgement, dict[str, str]]:
    """The decision under `configs/<policy_name>.toml`, and the status of each judged gate."""
    policy, results = load_policy(CONFIGS / f"{policy_name}.toml"), []
    for suite in COMPARED:
        gates = [gate for gate in policy.gates() if gate.suite == suite]
        results += run_suite(frame_of([dict(row) for row in tables[suite]], INTERVAL_COLUMNS), gates, suite)
    statuses: dict[str, str] = {result.gate: result.status for result in results}
    results += [
        CheckResult(gate.id, gate.suite, "pass", 0.0, 1, 0, "not judged here")
        for gate in policy.gates()
        if gate.suite not in COMPARED
    ]
    return decide(policy, results, "0" * 64, datetime.date(2026, 1, 1)), statuses


def policies(quick: bool) -> list[Goal]:
    """Corpora of 100 (10 when quick) that the strict policy closes, without bias by shape and with a planted one."""
    number, goals = 10 if quick else 100, []
    for name, shape in bias_null.SHAPES.items():
        if not shape.crossed:
            closed = sum(_failed(bias_null.tables(seed, shape)) != set() for seed in range(number))
            goals.append(Goal(f"bias_policies.{name}.closed", closed / number, 0.05, "<=", "no bias planted"))
    for name, (gate, effects) in EFFECTS.items():
        shape = bias_null.Shape(effects=effects, density=0.9)
        found = [_failed(bias_null.tables(seed, shape)) for seed in range(number)]
        others = sorted(set().union(*found) - {gate})
        note = f"by {gate}; other gates that failed: {', '.join(others) or 'none'}"
        goals.append(Goal(f"bias_policies.{name}.closed", sum(gate in one for one in found) / number, 0.95, note=note))
    return goals


def _failed(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> set[str]:
    return {gate for gate, status in judged(tables, "policy-strict")[1].items() if status == "fail"}
