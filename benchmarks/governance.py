"""Claims on governance: speed and share of the checks, attacks refused, findings that hold, a report that is read.

    ASSAY_TEST_DATA=... python benchmarks/governance.py [--quick] [GROUP ...]

Groups: suites identities tokens drift fail_opens lost_shards share verified bias bias_null bias_policies
        bias_sources bias_few_sites bias_classifiers journal lines hashing receipts order trace_text edits page tested.
Seconds are CPU time, after the import of Great Expectations, which has its own line. Prints a line per goal and
exits 1 when one falls short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.goals import Goal, command_line
from benchmarks.measures.governance import (
    bias_classifiers,
    bias_few_sites,
    bias_null,
    bias_policies,
    bias_sources,
    governance_bias,
    governance_closed,
    governance_edits,
    governance_gate,
    governance_speed,
    lineage_speed,
    order_speed,
    receipt_speed,
    report_look,
    tested_goals,
    trace_speed,
)


def groups(quick: bool) -> dict[str, Callable[[], list[Goal]]]:
    """Measurements by name."""
    return {
        "suites": governance_speed.suites,
        "identities": lambda: governance_speed.identities(quick),
        "tokens": lambda: governance_speed.tokens(quick),
        "drift": lambda: governance_speed.drift(quick),
        "fail_opens": governance_closed.fail_opens,
        "lost_shards": governance_closed.lost_shards,
        "share": lambda: governance_speed.share(quick),
        "verified": lambda: governance_gate.verified(quick),
        "bias": lambda: governance_bias.bias(quick),
        "bias_null": lambda: bias_null.bias_null(quick),
        "bias_policies": lambda: bias_policies.policies(quick),
        "bias_sources": lambda: bias_sources.sources(quick),
        "bias_few_sites": lambda: bias_few_sites.few_sites(quick),
        "bias_classifiers": lambda: bias_classifiers.classifiers(quick),
        "journal": lambda: lineage_speed.journal(quick),
        "lines": lambda: lineage_speed.lines(quick),
        "hashing": lambda: lineage_speed.hashing(quick),
        "receipts": lambda: receipt_speed.receipts(quick),
        "trace_text": lambda: trace_speed.trace_text(quick),
        "order": lambda: order_speed.order(quick),
        "edits": lambda: governance_edits.all_files(quick),
        "page": lambda: report_look.page(quick),
        "tested": lambda: tested_goals.tested(quick),
    }


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
