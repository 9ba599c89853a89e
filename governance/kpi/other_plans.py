"""Other signed plans that could decide on the same outcomes.

With several plans the best of their tests could be chosen. Plans are rivals if they have the experiment's name or a
metric (kind, column, denominator) in common, whatever else differs; each gets its part of the error probability
(Bonferroni), which bounds false alarms over all of them. A plan whose test had decided before this one was signed is no
rival: outcomes of this one must follow it. Plans that share neither name nor metric are known by the units that they
tested: the smallest digests of the units' names tell the share of units that two tests have in common (bottom-k
sketches, Broder 1997).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.config import Section
from governance.kpi.kpi_file import KpiFile
from governance.kpi.outcomes import SKETCH, Outcomes
from governance.manifest import Manifest, read_manifest
from governance.signing.journal_lines import JournalEntry

PLAN, TEST = "kpi_plan", "kpi_test"
SAME_UNITS = 0.5
"""Share of common units from which two tests are of the same ones."""


class OtherPlan(Section):
    """Another plan of the same experiment or metric."""

    plan: str
    """Its folder below the root."""
    experiment: str
    """Its experiment; empty where its manifest is gone or altered, so that it may be a rival."""
    decision: str
    """Decision of its test so far; empty: none."""


def rival_plans(file: KpiFile, plan: Manifest, entries: Sequence[JournalEntry], root: Path) -> tuple[OtherPlan, ...]:
    """Signed plans that share this one's experiment or a metric.

    Plans come in the order of signing.
    """
    signed = next(place for place, entry in enumerate(entries) if entry.subjects.get(plan.path) == plan.digest)
    rivals = {}
    for entry in entries:
        for name, digest in entry.subjects.items() if entry.kind == PLAN else ():
            other = stated_manifest(root / name, digest)
            if name == plan.path or not (other is None or _related(file.model_dump(mode="json"), other.config)):
                continue
            decided = [
                (place, test.stats["decision"])
                for place, test in _tests(entries, root)
                if any(material.path == name for material in entries[place].materials)
                and test.stats["decision"] != "undecided"
            ]
            if not any(place < signed for place, _ in decided):
                experiment = "" if other is None else other.config["experiment"]["name"]
                decision = next((decision for _, decision in decided), "")
                rivals[name] = OtherPlan(plan=name.rpartition("/")[0], experiment=experiment, decision=decision)
    return tuple(rivals.values())


def judged_units(
    outcomes: Outcomes, rivals: Sequence[OtherPlan], plan: Manifest, after: Sequence[JournalEntry], root: Path
) -> Iterator[str]:
    """Faults of outcomes whose units another plan's test has decided on.

    The other plan shares neither name nor metrics. `after` holds the journal's lines since this plan was signed.
    """
    own = {plan.folder, *(other.plan for other in rivals)}
    for place, test in _tests(after, root):
        plans = {item.path.rpartition("/")[0] for item in after[place].materials if item.stage == PLAN}
        share = common_units(test.stats.get("unit_sketch", ()), outcomes.unit_sketch)
        if share >= SAME_UNITS and test.stats["decision"] != "undecided" and not plans & own:
            yield (
                f"{test.folder} tested about {100 * share:.0f} % of these units as {test.stats['experiment']!r}, and "
                f"its decision counts: {test.stats['decision']}; name all KPIs of an experiment in one file"
            )


def common_units(one: Sequence[str], other: Sequence[str]) -> float:
    """Estimate of the units in common, as a share of all."""
    smallest = sorted({*one, *other})[:SKETCH]
    return sum(name in one and name in other for name in smallest) / max(len(smallest), 1)


def stated_manifest(path: Path, digest: str) -> Manifest | None:
    """Manifest of a plan or test; None unless it is as stated."""
    manifest = read_manifest(path) if path.exists() else None
    return manifest if manifest is not None and manifest.digest == digest else None


def _tests(entries: Sequence[JournalEntry], root: Path) -> list[tuple[int, Manifest]]:
    """Place in the journal, and manifest, of each test."""
    named = [(place, *pair) for place, entry in enumerate(entries) if entry.kind == TEST
             for pair in entry.subjects.items()]  # fmt: skip
    found = [(place, stated_manifest(root / name, digest)) for place, name, digest in named]
    return [(place, test) for place, test in found if test is not None]


def _related(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return _name(one) == _name(other) or bool(_metrics(one) & _metrics(other))


def _name(values: Mapping[str, Any]) -> str:
    return " ".join(values["experiment"]["name"].casefold().split())


def _metrics(values: Mapping[str, Any]) -> set[tuple[str, ...]]:
    return {tuple(kpi[name].casefold() for name in ("kind", "column", "denominator")) for kpi in values["kpi"]}
