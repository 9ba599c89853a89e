"""Power analysis: sample size, detectable effect and duration of an experiment.

Groups are what is independent: units, clusters or pairs. The tests planned for are those of `effects.py`: the score
test of two shares, else a t test over groups (statsmodels computes the power of both). Of several KPIs each is planned
at alpha over their number, the first step of Holm's procedure, so that each has at least the planned power.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from governance.errors import ConfigError
from governance.kpi.kpi_file import Kpi, KpiFile

_MAX_GROUPS = 1 << 40
_DAYS = (7, 14, 28, 56, 84)
_STEPS = 60  # steps of a bisection over effects


def plan_facts(file: KpiFile) -> dict[str, Any]:
    """Sample size, duration and detectable effects of each KPI.

    Raises:
        ConfigError: an effect is too small for any sample.
    """
    experiment, size = file.experiment, file.experiment.cluster_size
    each = [smallest_sample(kpi, file) for kpi in file.kpi]
    groups = max(each)
    units = math.ceil(groups * size)
    treated, untreated = split(groups, file)
    daily = experiment.units_per_day
    rows = [
        {
            "name": kpi.name,
            "groups": needed,
            "power": _rounded(power_of(kpi, file, groups, kpi.smallest_effect)),
            "detectable": _rounded(detectable(kpi, file, groups)),
            "by_days": [
                {"days": days, "detectable": _rounded(detectable(kpi, file, reached))}
                for days in (_DAYS if daily else ())
                if (reached := math.floor(days * (daily or 0) / size)) >= _MIN_GROUPS
            ],
        }
        for kpi, needed in zip(file.kpi, each, strict=True)
    ]
    return {
        "experiment": experiment.name,
        "groups": groups,
        "treatment_groups": treated,
        "control_groups": untreated,
        "units": units,
        "days": math.ceil(units / daily) if daily else None,
        "alpha_each": _rounded(file.alpha_each),
        "kpis": rows,
    }


_MIN_GROUPS = 4  # groups: two an arm


def split(groups: int, file: KpiFile) -> tuple[int, int]:
    """Groups of the treatment and the control arm; pairs are in both."""
    if file.experiment.design == "paired":
        return groups, groups
    treated = min(max(round(groups * file.experiment.allocation), 2), groups - 2)
    return treated, groups - treated


def power_of(kpi: Kpi, file: KpiFile, groups: int, effect: float) -> float:
    """Probability that this many groups find a change of this size."""
    import warnings

    from statsmodels.stats.power import TTestIndPower, TTestPower
    from statsmodels.stats.proportion import power_proportions_2indep

    assert kpi.baseline is not None  # validated
    alpha, (treated, untreated) = file.alpha_each, split(groups, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a power that is 1 overflows on the way
        if by_score(kpi, file):
            power = power_proportions_2indep(
                kpi.sign * effect, kpi.baseline, treated, ratio=untreated / treated, alpha=alpha, return_results=False
            )
        elif file.experiment.design == "paired":
            power = TTestPower().power(effect / spread(kpi, file, effect), groups, alpha)
        else:
            power = TTestIndPower().power(effect / spread(kpi, file, effect), treated, alpha, untreated / treated)
    return 1.0 if math.isnan(power) else float(power)


def by_score(kpi: Kpi, file: KpiFile) -> bool:
    """Return whether the score test of two shares is used."""
    return kpi.kind == "share" and file.experiment.design == "ab" and not (kpi.covariate or file.columns.cluster)


def spread(kpi: Kpi, file: KpiFile, effect: float) -> float:
    """Expected standard deviation of a group's mean, or of a pair's difference."""
    experiment = file.experiment
    if kpi.kind == "share":
        assert kpi.baseline is not None
        reached = min(max(kpi.baseline + kpi.sign * effect, 0.0), 1.0)
        before, after = kpi.baseline * (1 - kpi.baseline), reached * (1 - reached)
    else:
        before = after = (kpi.standard_deviation or 0.0) ** 2
    if experiment.design == "paired":
        variance = before + after - 2 * kpi.correlation * math.sqrt(before * after)
    else:
        variance = (before + after) / 2 * (1 - (kpi.correlation**2 if kpi.covariate else 0))
    size = experiment.cluster_size
    return math.sqrt(variance * (1 + (size - 1) * experiment.cluster_correlation) / size)


def smallest_sample(kpi: Kpi, file: KpiFile) -> int:
    """Fewest groups that find a KPI's smallest effect with the planned power."""
    enough = _first(lambda groups: power_of(kpi, file, groups, kpi.smallest_effect) >= file.experiment.power)
    if enough is None:
        raise ConfigError(
            f"kpi {kpi.name}: smallest_effect = {kpi.smallest_effect:g} would need more than 10^12 groups; "
            "give a larger effect"
        )
    return enough


def _first(enough: Callable[[int], bool]) -> int | None:
    """Smallest number from `_MIN_GROUPS` up that is enough."""
    high = _MIN_GROUPS
    while not enough(high):
        high *= 2
        if high > _MAX_GROUPS:
            return None
    low = max(high // 2, _MIN_GROUPS - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def detectable(kpi: Kpi, file: KpiFile, groups: int) -> float | None:
    """Effect that this many groups find with the planned power.

    Returns None where not even the largest possible effect would be found.
    """
    assert kpi.baseline is not None
    room = (1 - kpi.baseline if kpi.sign > 0 else kpi.baseline) if kpi.kind == "share" else math.inf
    low, high, power = 0.0, kpi.smallest_effect, file.experiment.power
    while power_of(kpi, file, groups, min(high, room * (1 - 1e-9))) < power:
        if high >= room:
            return None
        low, high = high, 2 * high
    high = min(high, room * (1 - 1e-9))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(kpi, file, groups, middle) >= power else (middle, high)
    return high


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
