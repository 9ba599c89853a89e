"""Outlook on the gates: what the documents would close.

Three causes are known before a corpus is made: shares of the sources (of records that cannot be read, of duplicates),
licences that the policy does not allow, and languages without word lists, whose documents are not audited for bias. The
audit decides; it judges all documents, an inspection perhaps a sample.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from assay.inspect.inspection_page import ClosingCause, InspectTable
from governance.checks.bias.bias import TABLES_FILE
from governance.checks.bias.representation import COVERAGE
from governance.checks.judgeable import limits
from governance.checks.messages import EXPLAINED
from governance.checks.suites import quarantined_records, source_rows
from governance.gate.policy import Policy
from governance.manifest import Manifest

_NAMED = 5
_NO_CORPUS = (
    "Choose other rules for these texts (data.clean.presets, or bounds of data.clean), or another field as the text"
)


def closing_causes(
    policy: Policy, made: Sequence[Manifest], redacted: Manifest, counted: Manifest, root: Path
) -> list[ClosingCause]:
    """Causes in the sources, and in the documents that stay.

    `made` are the first stages, `redacted` and `counted` are `redact` and `bias`.
    """
    if not redacted.stats["documents_kept"]:
        stage = next(one.stage for one in (*made, redacted) if not one.stats["documents_kept"])
        emptied = ClosingCause("no corpus", f"{stage} removes every document", _NO_CORPUS)
        return [*_sources(policy, made, root), emptied]
    return [*_sources(policy, made, root), *_licences(policy, redacted, root), *_languages(policy, counted, root)]


def _sources(policy: Policy, made: Sequence[Manifest], root: Path) -> Iterator[ClosingCause]:
    rows = source_rows({one.stage: one for one in made})
    for gate in policy.gates():
        if (gate.suite, gate.expectation, gate.severity, gate.mostly) != ("sources", "between", "critical", 1.0):
            continue
        for row in rows:
            value = row.get(gate.column)
            low, high = (bound if bound is not None else value for bound in (gate.min, gate.max))
            if value is None or not all(row.get(name) == of for name, of in gate.where.items()) or low <= value <= high:
                continue
            records = ""
            if gate.column in EXPLAINED:
                records = f" ({quarantined_records(made[0], root).get(row['source'], '')})"
            yield ClosingCause(
                gate.id,
                f"{gate.column} at {row['stage']} is {value:.3g}{records}, and {limits(gate)} is allowed",
                f"Correct or remove what causes it, or let the gate's owner ({gate.owner}) change the bound in a "
                "policy next to the run's file (assay init --from policy)",
            )
            break


def _licences(policy: Policy, redacted: Manifest, root: Path) -> Iterator[ClosingCause]:
    counts: Counter[tuple[str, str]] = Counter()
    for file in redacted.files("documents", root):
        table = pq.read_table(file, columns=["source", "licence"], partitioning=None)
        for row in table.group_by(["source", "licence"]).aggregate([([], "count_all")]).to_pylist():
            counts[(str(row["source"]), str(row["licence"]))] += row["count_all"]
    closing: dict[str, Counter[str]] = {}
    for (source, licence), number in counts.items():
        for gate in policy.closed_by_licence(source, licence):
            closing.setdefault(gate, Counter())[licence] += number
    for gate, licences in sorted(closing.items()):
        named = [f"{licence} ({number:,} documents)" for licence, number in licences.most_common(_NAMED)]
        named += [f"{len(licences) - _NAMED} more"] * (len(licences) > _NAMED)
        unknown = list(licences) == ["NOASSERTION"]
        state = "State the documents' licence in the run's file"
        fix = (
            "Refuse them (data.clean.refuse_licences), have legal allow them in a policy next to the run's file (assay "
            "init --from policy), or state another licence for the source, without licence_field"
        )
        yield ClosingCause(gate, f"the policy does not allow {', '.join(named)}", state if unknown else fix)


def _languages(policy: Policy, counted: Manifest, root: Path) -> Iterator[ClosingCause]:
    tables = json.loads((root / counted.folder / TABLES_FILE).read_bytes())
    coverage = {row["instrument"]: row for row in tables["representation"] if row["metric"] == COVERAGE}
    for gate in policy.gates():
        row = coverage.get(gate.where.get("instrument") or None)
        if (
            row is not None
            and (gate.suite, gate.where.get("metric")) == ("representation", COVERAGE)
            and (gate.severity, gate.on_inconclusive) == ("critical", "block")
            and gate.min is not None
            and row["lower"] < gate.min
        ):
            fix = (
                f"Keep other languages only (data.clean.languages), or let {gate.owner} lower its min in a policy next "
                "to the run's file (assay init --from policy)"
            )
            yield ClosingCause(gate.id, str(row["note"]), fix)


def outlook_table(causes: Sequence[ClosingCause]) -> InspectTable:
    """The causes, one per row."""
    rows = tuple((cause.gate, cause.cause, cause.fix) for cause in causes)
    note = "While a gate is closed nothing is trained. The audit decides (assay governance check)." if rows else ""
    return InspectTable("Gates that would close", ("gate", "cause", "fix"), rows, note, whole=True)
