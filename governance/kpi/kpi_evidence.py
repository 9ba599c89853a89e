"""Artifacts `kpi_plan` and `kpi_test`: plan before outcomes, then decision.

The journal states both, signed and dated. A test finds its plan by the KPI file's values: a file that was changed has
none. A test of fewer groups than planned is refused, or on request marked as an early look; only the first test at full
size decides, and only where the outcomes follow the plan and the arms have the planned sizes. `alpha` is that of the
plan over the number of plans that could decide (`other_plans`). `stats.faults` has every reason why a test decides
nothing, `stats.decision` is "paid", "lost", "open" or "undecided".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from governance.config import Section, flat
from governance.errors import ConfigError, GateClosed, MissingInput
from governance.kpi.effects import (
    SAMPLE_RATIO_ALPHA,
    Influence,
    arm_sizes,
    estimate,
    holm,
    influence,
    p_and_interval,
    sample_ratio,
)
from governance.kpi.kpi_file import Kpi, KpiFile, KpiMoney
from governance.kpi.other_plans import PLAN, TEST, OtherPlan, judged_units, rival_plans, stated_manifest
from governance.kpi.outcomes import Outcomes, read_outcomes
from governance.kpi.power_analysis import plan_facts
from governance.manifest import FILE_NAME, Input, Manifest, read_manifest
from governance.signing.journal_lines import JournalEntry
from governance.stage import Made, Recipe, Runtime, run_stage

PLAN_VERSION, TEST_VERSION = 1, 3
FEW_GROUPS = 10
"""Groups of an arm below which an interval rests on the normal distribution of their means."""
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class ModelEnergy:
    """Energy of everything that made the model, in joules; None is unknown."""

    joules: float | None
    low: float | None
    high: float | None


class KpiTestSection(Section):
    """Circumstances of a test."""

    planned_at: str
    """Time at which the journal states the plan."""
    looks: tuple[str, ...]
    """Earlier tests of other outcomes under the plan."""
    other_plans: tuple[OtherPlan, ...] = ()
    """Plans of the same experiment or metric that could decide as well."""
    joules: float | None
    low_joules: float | None
    high_joules: float | None


def make_plan(file: KpiFile, runtime: Runtime, entries: Sequence[JournalEntry] = ()) -> Manifest:
    """Make or find the plan of a KPI file.

    `entries` are the journal's.

    Raises:
        ConfigError: outcomes were tested before, and those of this plan would have no days.
    """

    def make(folder: Path) -> Made:
        tested = [name for entry in entries if entry.kind == TEST for name in entry.subjects]
        if tested and not file.columns.day:
            raise ConfigError(
                f"{tested[-1].rpartition('/')[0]} tested outcomes already, and those of a new plan must be shown to "
                f"come later: record the day of each outcome, and name its column, [columns] day. Nothing was signed"
            )
        return Made([], plan_facts(file))

    return run_stage(Recipe(PLAN, PLAN_VERSION, file), [], runtime, make)


def find_plan(file: KpiFile, path: Path, runtime: Runtime) -> Manifest:
    """Plan of a KPI file.

    Raises:
        GateClosed: a plan of this experiment has other values; they are named.
        MissingInput: there is no plan.
    """
    try:
        return make_plan(file, replace(runtime, make=False))
    except MissingInput as error:
        for plan in sorted(runtime.root.glob(f"{PLAN}/*/{FILE_NAME}")):
            planned = read_manifest(plan)
            if planned.config["experiment"]["name"] == file.experiment.name:
                raise GateClosed(
                    f"{path}: differs from {planned.folder}, the signed plan of {file.experiment.name!r}: "
                    f"{_changes(planned.config, file)}. Restore these values; a new plan needs outcomes that follow it"
                ) from None
        raise MissingInput(
            f"{path}: has no plan yet, so nothing says which outcomes decide. Sign it before the outcomes come in: "
            f"{runtime.command}"
        ) from error


def _changes(planned: Mapping[str, Any], file: KpiFile) -> str:
    before, after = (dict(_named(values)) for values in (planned, file.model_dump(mode="json")))
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return ", ".join(
        f"{name} {json.dumps(before.get(name))} there, {json.dumps(after.get(name))} here" for name in names
    )


def _named(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    yield from flat({name: value for name, value in values.items() if name != "kpi"})
    for kpi in values["kpi"]:
        yield from flat({f"kpi {kpi['name']}": kpi})


@dataclass(frozen=True)
class KpiRequest:
    """Outcomes to test, and the model behind them."""

    file: KpiFile
    """As planned."""
    data: Path
    """File of the outcomes."""
    plan: Manifest
    model: Manifest
    """Checkpoint that the treatment arm met."""
    energy: ModelEnergy
    early: bool
    """Allow fewer groups than planned."""


def make_test(asked: KpiRequest, entries: Sequence[JournalEntry], runtime: Runtime) -> Manifest:
    """Make or find the test of outcomes; `entries` are the journal's.

    Raises:
        ConfigError: the outcomes do not fit the plan.
        GateClosed: they are fewer than planned, or the journal does not state the plan.
    """
    plan, energy = asked.plan, asked.energy
    outcomes = read_outcomes(asked.data, asked.file)
    stated = next((entry for entry in entries if entry.subjects.get(plan.path) == plan.digest), None)
    if stated is None:
        raise GateClosed(
            f"{runtime.root / plan.path}: no line of the journal states this plan. Remove it, and plan again"
        )
    source = Input(stage="file", digest=outcomes.sha256, path=asked.data.name)
    inputs = [plan.as_input(), asked.model.as_input(), source]
    if outcomes.count < plan.stats["groups"] and not asked.early:
        raise GateClosed(_too_few(asked, outcomes.count))
    looks: dict[str, Manifest | None] = {}
    for entry in entries:
        if entry.kind == TEST and plan.as_input() in entry.materials:
            [(name, digest)] = entry.subjects.items()
            looks[name] = found = stated_manifest(runtime.root / name, digest)
            if found is not None and set(inputs) <= set(entry.materials):
                if found.version == TEST_VERSION:
                    return found
                del looks[name]  # of the same outcomes, by an earlier version
    section = KpiTestSection(
        planned_at=stated.time,
        looks=tuple(looks),
        other_plans=rival_plans(asked.file, plan, entries, runtime.root),
        joules=energy.joules,
        low_joules=energy.low,
        high_joules=energy.high,
    )

    def make(folder: Path) -> Made:
        signed = entries.index(stated)
        known = [
            *_known_before(asked, source, entries[:signed]),
            *judged_units(outcomes, section.other_plans, plan, entries[signed:], runtime.root),
        ]
        return Made([], facts_of_test(asked, outcomes, section, looks, known))

    return run_stage(Recipe(TEST, TEST_VERSION, section), inputs, runtime, make)


def _known_before(asked: KpiRequest, source: Input, before: Sequence[JournalEntry]) -> list[str]:
    """Faults of outcomes that may be older than the plan.

    `before` are the lines of the journal before it. The name of an experiment decides nothing: it can be changed.
    """
    tests = [(*entry.subjects, {(one.stage, one.digest) for one in entry.materials}) for entry in before
             if entry.kind == TEST]  # fmt: skip
    same = [name for name, materials in tests if (source.stage, source.digest) in materials]
    if same:
        return [f"{same[0]} tested these outcomes before the plan was signed; a new plan needs new outcomes"]
    if tests and not asked.file.columns.day:
        return [
            f"{tests[-1][0]} tested outcomes before the plan was signed, and these outcomes have no days that show "
            f"that they came later; name their column: [columns] day"
        ]
    return []


def _too_few(asked: KpiRequest, groups: int) -> str:
    file, planned = asked.file, asked.plan.stats["groups"]
    lacking, daily = planned - groups, file.experiment.units_per_day
    wait = f", about {lacking * file.experiment.cluster_size / daily:,.0f} more day(s)" if daily else ""
    return (
        f"{asked.data}: has {groups:,} of the {planned:,} planned {group_word(file)}{wait}. A test now would find "
        "effects that are chance; wait, or look without a decision: --early"
    )


def group_word(file: KpiFile) -> str:
    """Word for several independent groups."""
    if file.columns.cluster:
        return "clusters"
    return "pairs" if file.experiment.design == "paired" else f"{file.experiment.unit}s"


def facts_of_test(
    asked: KpiRequest,
    outcomes: Outcomes,
    section: KpiTestSection,
    looks: Mapping[str, Manifest | None],
    known: Sequence[str] = (),
) -> dict[str, Any]:
    """Content of a test's `stats`.

    `looks` are the earlier tests, None where one is gone; `known` are the faults of `_known_before`.
    """
    file, planned = asked.file.shared_by(1 + len(section.other_plans)), asked.plan.stats["groups"]
    sizes, ratio, words = arm_sizes(outcomes), sample_ratio(file, outcomes), group_word(file)
    faults = [*_faults_of_outcomes(file, planned, section.planned_at[:10], outcomes), *known, *_decided_before(looks)]
    found = [influence(kpi, outcomes) for kpi in file.kpi]
    rows = kpi_rows(file, outcomes, found)
    money = None if file.money is None else money_facts(file, file.money, outcomes, found, section)
    return {
        "experiment": file.experiment.name,
        "unit": file.experiment.unit,
        "design": file.experiment.design,
        "group_words": words,
        "planned_at": section.planned_at,
        "planned_groups": planned,
        "groups": outcomes.count,
        "rows": len(outcomes.treated),
        "arms": [
            {"name": name, "groups": size}
            for name, size in zip((file.experiment.control, file.experiment.treatment), sizes, strict=True)
        ],
        "few_groups": min(sizes) < FEW_GROUPS,
        "first_day": outcomes.first_day,
        "earlier_looks": len(section.looks),
        "other_plans": [other.model_dump(mode="json") for other in section.other_plans],
        "unit_sketch": list(outcomes.unit_sketch),
        "sample_ratio_p": _rounded(ratio),
        "alpha": file.experiment.alpha,
        "power": file.experiment.power,
        "confidence": _rounded(1 - file.alpha_each),
        "kpis": rows,
        "money": money,
        "faults": faults,
        "decision": "undecided" if faults else decision(rows, money),
    }


def _faults_of_outcomes(file: KpiFile, planned: int, planned_on: str, outcomes: Outcomes) -> Iterator[str]:
    """Reasons why these outcomes do not decide."""
    sizes, ratio, words = arm_sizes(outcomes), sample_ratio(file, outcomes), group_word(file)
    if outcomes.count < planned:
        yield f"an early look at {outcomes.count:,} of the {planned:,} planned {words}"
    if outcomes.first_day and outcomes.first_day < planned_on:
        yield f"the outcomes begin on {outcomes.first_day}, before the plan was signed ({planned_on})"
    if ratio is not None and ratio < SAMPLE_RATIO_ALPHA:
        yield (
            f"sample-ratio mismatch: {sizes[1]:,} {words} with the model and {sizes[0]:,} without it, where the plan "
            f"has {100 * file.experiment.allocation:.3g} % with it; find what assigns or loses units by arm"
        )


def _decided_before(looks: Mapping[str, Manifest | None]) -> Iterator[str]:
    """Earlier tests that decided, or may have."""
    for name, test in looks.items():
        if test is None:
            yield f"{name}, an earlier test of this plan, is gone or altered; restore it, as it may have decided"
        elif test.stats["decision"] != "undecided":
            yield f"{test.folder} tested this plan before, and its decision counts: {test.stats['decision']}"


def kpi_rows(file: KpiFile, outcomes: Outcomes, found: Sequence[Influence]) -> list[dict[str, Any]]:
    """Effect of each KPI with interval, p value and finding.

    Intervals hold together: each has the confidence 1 - alpha over their number.
    """
    tests = [
        p_and_interval(kpi, file, outcomes, one, file.alpha_each) for kpi, one in zip(file.kpi, found, strict=True)
    ]
    corrected = holm([p for p, _, _ in tests])
    return [
        {
            "name": kpi.name,
            "kind": kpi.kind,
            "direction": kpi.direction,
            "control": _rounded(one.control),
            "treatment": _rounded(one.treatment),
            "effect": _rounded(one.effect),
            "lower": _rounded(low),
            "upper": _rounded(high),
            "p": _rounded(p),
            "holm_p": _rounded(adjusted),
            "baseline": kpi.baseline,
            "smallest_effect": kpi.smallest_effect,
            "finding": _finding(kpi, (low, one.effect, high), adjusted <= file.experiment.alpha),
        }
        for kpi, one, (p, low, high), adjusted in zip(file.kpi, found, tests, corrected, strict=True)
    ]


def _finding(kpi: Kpi, interval: tuple[float, float, float], significant: bool) -> str:
    """Finding on a KPI.

    "reached": improved, surely by what matters; "improved": whether by what matters is open; "small": improved, surely
    by less; "worse"; "none": no improvement that matters; "open".
    """
    least, value, most = interval if kpi.sign > 0 else [-end for end in reversed(interval)]
    if significant and value < 0:
        return "worse"
    if most < kpi.smallest_effect:
        return "small" if significant else "none"
    if not significant:
        return "open"
    return "reached" if least >= kpi.smallest_effect else "improved"


def money_facts(
    file: KpiFile, money: KpiMoney, outcomes: Outcomes, found: Sequence[Influence], section: KpiTestSection
) -> dict[str, Any]:
    """Value of the change against the cost of the model, with interval.

    The interval is that of the outcomes, widened by the bounds of the energy. Energy that is unknown is at least none,
    and has no upper bound: the net value and its lower end are then unknown (None), unless energy costs nothing.
    """
    valued = [(kpi, one) for kpi, one in zip(file.kpi, found, strict=True) if kpi.value is not None]
    weights = [kpi.sign * (kpi.value or 0.0) * one.denominators for kpi, one in valued]
    gain = estimate([one for _, one in valued], weights, outcomes, "money")
    low, high = gain.interval(file.experiment.alpha)
    served = money.served_units
    energy = [
        None if joules is None and money.price_per_kwh else (joules or 0.0) / _JOULES_PER_KWH * money.price_per_kwh
        for joules in (section.low_joules, section.joules, section.high_joules)
    ]
    other = money.one_off + served * money.cost_per_unit

    def net(gain_per_unit: float, energy: float | None) -> float | None:
        return None if energy is None else _rounded(served * gain_per_unit - other - energy)

    return {
        "currency": money.currency,
        "served_units": served,
        "gain_per_unit": _rounded(gain.value),
        "gain_per_unit_low": _rounded(low),
        "gain_per_unit_high": _rounded(high),
        "gain": _rounded(served * gain.value),
        "gain_low": _rounded(served * low),
        "gain_high": _rounded(served * high),
        "serving": _rounded(served * money.cost_per_unit),
        "one_off": money.one_off,
        "kwh": None if section.joules is None else _rounded(section.joules / _JOULES_PER_KWH),
        "energy": _rounded(energy[1]),
        "energy_low": _rounded(energy[0]),
        "energy_high": _rounded(energy[2]),
        "net": net(gain.value, energy[1]),
        "net_low": net(low, energy[2]),
        "net_high": net(high, energy[0] or 0.0),
    }


def decision(rows: Sequence[Mapping[str, Any]], money: Mapping[str, Any] | None) -> str:
    """Answer of a valid test, by net value or the first KPI."""
    if money is not None:
        surely = money["net_low"] is not None and money["net_low"] > 0
        return "paid" if surely else "lost" if money["net_high"] < 0 else "open"
    finding = rows[0]["finding"]
    return "paid" if finding == "reached" else "lost" if finding in ("worse", "none", "small") else "open"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.9g}")
