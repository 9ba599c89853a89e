"""Error rates of the KPI tests by simulation: false alarms without an effect, power at the planned sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.measures.goals import Goal
from governance.kpi.effects import estimate, holm, influence, p_of_shares
from governance.kpi.kpi_file import Kpi, KpiColumns, KpiExperiment, KpiFile
from governance.kpi.outcomes import Outcomes
from governance.kpi.power_analysis import by_score, plan_facts, split

Draw = Callable[[np.random.Generator, KpiFile, int, bool], Outcomes]
"""Outcomes of so many groups, with the smallest effect or without any."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of test, and how its outcomes come about."""

    name: str
    file: KpiFile
    draw: Draw


def kpi(kind: str, **more: Any) -> Kpi:
    """A KPI with a column of its own."""
    return Kpi(**{"name": "one", "kind": kind, "column": "value", **more})


def case(name: str, draw: Draw, *kpis: Kpi, cluster: bool = False, **more: Any) -> Case:
    """A case whose file is made of its parts."""
    file = KpiFile(
        experiment=KpiExperiment(name=name, **more), kpi=kpis, columns=KpiColumns(cluster="shop" if cluster else "")
    )
    return Case(name, file, draw)


def _arms(file: KpiFile, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Treated and group of each row of independent units."""
    treated, _ = split(groups, file)
    return np.arange(groups) < treated, np.arange(groups)


def shares(draw: np.random.Generator, file: KpiFile, groups: int, effect: bool) -> Outcomes:
    """Units of two shares."""
    one, (treated, codes) = file.kpi[0], _arms(file, groups)
    chance = one.baseline + treated * (one.sign * one.smallest_effect if effect else 0)
    return Outcomes(treated, codes, {"value": (draw.random(groups) < chance).astype(float)})


def means(draw: np.random.Generator, file: KpiFile, groups: int, effect: bool) -> Outcomes:
    """Units of skewed values (gamma), each KPI in a column of its own."""
    treated, codes = _arms(file, groups)
    columns = {}
    for one in file.kpi:
        shape = (one.baseline / one.standard_deviation) ** 2
        values = draw.gamma(shape, one.baseline / shape, groups)
        columns[one.column] = values + treated * (one.sign * one.smallest_effect if effect else 0)
    return Outcomes(treated, codes, columns)


def covaried(draw: np.random.Generator, file: KpiFile, groups: int, effect: bool) -> Outcomes:
    """Units whose value is known in part before."""
    one, (treated, codes) = file.kpi[0], _arms(file, groups)
    before, chance = draw.standard_normal((2, groups))
    noise = one.correlation * before + math.sqrt(1 - one.correlation**2) * chance
    values = one.baseline + one.standard_deviation * noise + treated * (one.smallest_effect if effect else 0)
    return Outcomes(treated, codes, {"value": values, "before": before})


def ratios(draw: np.random.Generator, file: KpiFile, groups: int, effect: bool) -> Outcomes:
    """Users with some sessions each, and a user's own rate of orders per session."""
    one, (treated, codes) = file.kpi[0], _arms(file, groups)
    sessions = 1 + draw.poisson(3.0, groups)
    rate = draw.beta(2.0, 6.0, groups) + treated * (one.smallest_effect if effect else 0)
    orders = draw.binomial(sessions, np.minimum(rate, 1.0)).astype(float)
    return Outcomes(treated, codes, {"value": orders, "sessions": sessions.astype(float)})


def clusters(draw: np.random.Generator, file: KpiFile, groups: int, effect: bool) -> Outcomes:
    """Shops whose customers are alike; sizes differ about their mean."""
    one, experiment = file.kpi[0], file.experiment
    treated, _ = split(groups, file)
    half = int(experiment.cluster_size // 4)
    codes = np.repeat(
        np.arange(groups), draw.integers(experiment.cluster_size - half, experiment.cluster_size + half + 1, groups)
    )
    shop = math.sqrt(experiment.cluster_correlation) * draw.standard_normal(groups)[codes]
    own = math.sqrt(1 - experiment.cluster_correlation) * draw.standard_normal(len(codes))
    values = one.baseline + one.standard_deviation * (shop + own)
    return Outcomes(
        codes < treated, codes, {"value": values + (codes < treated) * (one.smallest_effect if effect else 0)}
    )


def paired_means(draw: np.random.Generator, file: KpiFile, groups: int, effect: bool) -> Outcomes:
    """Pairs of correlated values."""
    one = file.kpi[0]
    shared, first, second = draw.standard_normal((3, groups))
    mixed = [math.sqrt(one.correlation) * shared + math.sqrt(1 - one.correlation) * own for own in (first, second)]
    values = one.baseline + one.standard_deviation * np.concatenate(mixed)
    return _paired(values, groups, one.smallest_effect if effect else 0)


def paired_shares(draw: np.random.Generator, file: KpiFile, groups: int, effect: bool) -> Outcomes:
    """Pairs that have an event together with the correlation of the plan."""
    one = file.kpi[0]
    before, after = one.baseline, one.baseline + (one.smallest_effect if effect else 0)
    both = before * after + one.correlation * math.sqrt(before * (1 - before) * after * (1 - after))
    chance = draw.random(groups)
    first = chance < before
    second = (chance < both) | ((chance >= before) & (chance < before + after - both))
    return _paired(np.concatenate([first, second]).astype(float), groups, 0)


def _paired(values: np.ndarray, groups: int, effect: float) -> Outcomes:
    treated = np.repeat([False, True], groups)
    return Outcomes(treated, np.tile(np.arange(groups), 2), {"value": values + treated * effect})


def ratio_deviation() -> float:
    """Standard deviation of a user's (orders - rate x sessions) / mean sessions, in closed form."""
    mean, variance = 0.25, 0.25 * 0.75 / 9  # of beta(2, 6)
    first, second = 4.0, 19.0  # moments of 1 + Poisson(3)
    inner = first * (mean * (1 - mean) - variance)  # binomial, mean over the rate
    return math.sqrt(inner + second * variance) / first


_NORMAL = {"baseline": 5.0, "smallest_effect": 0.3, "standard_deviation": 1.0}
_SKEWED = {"baseline": 30.0, "smallest_effect": 4.0, "standard_deviation": 20.0}
_RATE = {"baseline": 0.25, "smallest_effect": 0.04, "standard_deviation": ratio_deviation(), "denominator": "sessions"}
_THREE = [kpi("mean", **{**_SKEWED, "name": name, "column": name, "smallest_effect": 6.0}) for name in ("a", "b", "c")]
_SHOPS = {"cluster_size": 20, "cluster_correlation": 0.1}
CASES = (
    case("share", shares, kpi("share", baseline=0.62, smallest_effect=0.06)),
    case("share_rare", shares, kpi("share", baseline=0.03, smallest_effect=0.02), allocation=0.3),
    case("mean", means, kpi("mean", **_SKEWED, direction="down")),
    case("mean_covariate", covaried, kpi("mean", **_NORMAL, covariate="before", correlation=0.7)),
    case("ratio", ratios, kpi("ratio", **_RATE)),
    case("clusters", clusters, kpi("mean", **_NORMAL), cluster=True, **_SHOPS),
    case("pairs_mean", paired_means, kpi("mean", **_NORMAL, correlation=0.5), design="paired"),
    case(
        "pairs_share", paired_shares, kpi("share", baseline=0.5, smallest_effect=0.1, correlation=0.4), design="paired"
    ),
    case("holm_of_three", means, *_THREE),
)


def rejected(found: Case, outcomes: Outcomes) -> list[bool]:
    """Decisions of the product's own tests, Holm's correction included."""
    p_values = []
    for one in found.file.kpi:
        if by_score(one, found.file):
            p_values.append(p_of_shares(one, outcomes))
        else:
            p_values.append(estimate([influence(one, outcomes)], [1.0], outcomes, one.name).p_value())
    corrected = holm(p_values) if len(p_values) > 1 else p_values
    return [p <= found.file.experiment.alpha for p in corrected]


def rates(found: Case, repeats: int, seed: int) -> tuple[float, float, float]:
    """False alarms, power of the first KPI, and the power of the plan."""
    draw, planned = np.random.default_rng(seed), plan_facts(found.file)
    groups = planned["groups"]
    alarms = sum(any(rejected(found, found.draw(draw, found.file, groups, False))) for _ in range(repeats))
    several = len(found.file.kpi) > 1
    hits = 0
    for _ in range(repeats):
        outcomes = found.draw(draw, found.file, groups, True)
        if several:  # the plan is of one KPI by itself, at alpha over their number
            one = found.file.kpi[0]
            p = estimate([influence(one, outcomes)], [1.0], outcomes, one.name).p_value()
            hits += p <= found.file.alpha_each
        else:
            hits += rejected(found, outcomes)[0]
    return alarms / repeats, hits / repeats, planned["kpis"][0]["power"]


def statistics(quick: bool) -> Iterator[Goal]:
    """Goals of issue 18: 4 to 6 % false alarms, power within two points."""
    for number, found in enumerate(CASES):
        alarms, power, planned = rates(found, 4_000 if quick else 20_000, number)
        yield Goal(f"{found.name}_false_alarms_from_5_percent", abs(alarms - 0.05), 0.01, "<=", f"{100 * alarms:.2f} %")
        note = f"{100 * power:.1f} %, planned {100 * planned:.1f} %"
        yield Goal(f"{found.name}_power_from_plan", abs(power - planned), 0.02, "<=", note)
