"""Effects on KPIs with intervals: units, pairs, clusters, ratios.

One estimator serves all kinds. A metric of an arm is a ratio of sums (a mean has denominators of 1); its variance is
that of the sums of influences over independent groups, the sandwich estimator. With units as groups it is Welch's t
test, with pairs the paired t test, with a denominator the delta method (Deng et al., KDD 2018), with clusters the
cluster-robust test. A covariate removes its linear part first (CUPED: Deng et al., WSDM 2013). Two plain shares are
compared by the score test (Miettinen and Nurminen 1985) with Newcombe's interval (1998, method 10; statsmodels), which
hold for few events too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from governance.errors import ConfigError
from governance.kpi.kpi_file import Kpi, KpiFile
from governance.kpi.outcomes import Floats, Outcomes
from governance.kpi.power_analysis import by_score

SAMPLE_RATIO_ALPHA = 0.001
"""p value below which the arms' sizes contradict the allocation (Fabijan et al., KDD 2019)."""


@dataclass(frozen=True)
class EffectEstimate:
    """A difference with its uncertainty."""

    value: float
    error: float
    """Standard error."""
    freedom: float
    """Degrees of freedom of the t distribution."""

    def p_value(self) -> float:
        """Two-sided p value of no difference."""
        from scipy import stats

        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Interval that holds with probability 1 - alpha."""
        from scipy import stats

        reach = float(stats.t.isf(alpha / 2, self.freedom)) * self.error
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class Influence:
    """One KPI's arms, and each group's influence on them."""

    control: float
    treatment: float
    of_groups: npt.NDArray[np.float64]
    """Shape (2, groups): influence on the control's and on the treatment's value."""
    denominators: float
    """Mean denominator of a row: 1 unless the KPI is a ratio."""

    @property
    def effect(self) -> float:
        """Difference, treatment minus control."""
        return self.treatment - self.control


def influence(kpi: Kpi, outcomes: Outcomes) -> Influence:
    """Values of both arms, with the influence of each group."""
    values, treated = outcomes.columns[kpi.column], outcomes.treated
    below = outcomes.columns[kpi.denominator] if kpi.denominator else np.ones_like(values)
    if kpi.covariate:
        values = without_covariate(values, outcomes.columns[kpi.covariate], treated)
    arms: list[float] = []
    parts = []
    for mask in (~treated, treated):
        whole = below[mask].sum()
        arms.append(float(values[mask].sum() / whole))
        each = (values[mask] - arms[-1] * below[mask]) / whole
        parts.append(np.bincount(outcomes.groups[mask], weights=each, minlength=outcomes.count))
    return Influence(arms[0], arms[1], np.stack(parts), float(below.mean()))


def without_covariate(values: Floats, covariate: Floats, treated: npt.NDArray[np.bool_]) -> Floats:
    """Values less a covariate's prediction; means over both arms stay."""
    inner, outer = 0.0, 0.0
    for mask in (~treated, treated):
        centred = covariate[mask] - covariate[mask].mean()
        inner += float(centred @ values[mask])
        outer += float(centred @ centred)
    adjusted: Floats = values - (inner / outer if outer else 0.0) * (covariate - covariate.mean())
    return adjusted


def estimate(found: Sequence[Influence], weights: Sequence[float], outcomes: Outcomes, name: str) -> EffectEstimate:
    """Weighted sum of effects, with the covariance that shared groups give them.

    Raises:
        ConfigError: an arm has fewer than two groups, or nothing varies.
    """
    value = sum(weight * one.effect for weight, one in zip(weights, found, strict=True))
    control, treatment = np.tensordot(np.asarray(weights), np.stack([one.of_groups for one in found]), 1)
    there = _present(outcomes)
    if there.all(axis=0).any():  # pairs, or clusters of both arms
        groups = outcomes.count
        squares = float(((treatment - control) ** 2).sum())
        variance, freedom = groups / max(groups - 1, 1) * squares, groups - 1.0
    else:
        counts = there.sum(axis=1)
        parts = [n / max(n - 1, 1) * float((one**2).sum()) for n, one in zip(counts, (control, treatment), strict=True)]
        variance = sum(parts)
        spread = sum(part**2 / max(n - 1, 1) for part, n in zip(parts, counts, strict=True))
        freedom = variance**2 / spread if spread else 0.0  # Welch and Satterthwaite
        groups = int(counts.min())
    if groups < 2:
        raise ConfigError(f"{name}: an arm has fewer than two independent groups, so its chance variation is unknown")
    if not variance > 1e-24 * max(abs(one.control) for one in found) ** 2:
        raise ConfigError(f"{name}: every group has the same value, so there is nothing to test. Check the column")
    return EffectEstimate(value, math.sqrt(variance), freedom)


def _present(outcomes: Outcomes) -> npt.NDArray[np.bool_]:
    """Groups of each arm: shape (2, groups)."""
    masks = (~outcomes.treated, outcomes.treated)
    return np.stack([np.bincount(outcomes.groups[mask], minlength=outcomes.count) > 0 for mask in masks])


def arm_sizes(outcomes: Outcomes) -> tuple[int, int]:
    """Groups of the control and of the treatment arm."""
    control, treatment = _present(outcomes).sum(axis=1).tolist()
    return control, treatment


def p_and_interval(
    kpi: Kpi, file: KpiFile, outcomes: Outcomes, found: Influence, alpha: float
) -> tuple[float, float, float]:
    """Two-sided p value, and the interval's ends."""
    if by_score(kpi, file):
        from statsmodels.stats.proportion import confint_proportions_2indep

        ends = confint_proportions_2indep(*_events(kpi, outcomes), method="newcomb", alpha=alpha)
        return p_of_shares(kpi, outcomes), max(float(ends[0]), -1.0), min(float(ends[1]), 1.0)
    one = estimate([found], [1.0], outcomes, kpi.name)
    return (one.p_value(), *one.interval(alpha))


def p_of_shares(kpi: Kpi, outcomes: Outcomes) -> float:
    """Two-sided p value of the score test of two shares."""
    from scipy import stats

    events, units, others, rest = _events(kpi, outcomes)
    whole = units + rest
    pooled = (events + others) / whole
    error = math.sqrt(pooled * (1 - pooled) * (1 / units + 1 / rest) * whole / (whole - 1))
    return float(2 * stats.norm.sf(abs(events / units - others / rest) / error))


def _events(kpi: Kpi, outcomes: Outcomes) -> tuple[float, int, float, int]:
    """Events and units, of the treatment and of the control arm.

    Raises:
        ConfigError: all units, or none, have the event.
    """
    values, treated = outcomes.columns[kpi.column], outcomes.treated
    if values.min() == values.max():
        raise ConfigError(
            f"{kpi.name}: every unit has the value {values[0]:g}, so there is nothing to test. Check the column"
        )
    return values[treated].sum(), int(treated.sum()), values[~treated].sum(), int((~treated).sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979)."""
    order, count = np.argsort(p_values), len(p_values)
    raised = np.asarray(p_values)[order] * (count - np.arange(count))
    corrected = np.empty(count)
    corrected[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(p) for p in corrected]


def sample_ratio(file: KpiFile, outcomes: Outcomes) -> float | None:
    """P value that the arms have the planned sizes; None for pairs."""
    from scipy import stats

    if file.experiment.design == "paired":
        return None
    straddling = _present(outcomes).all(axis=0).any()
    masks = (~outcomes.treated, outcomes.treated)
    counts = [int(mask.sum()) for mask in masks] if straddling else list(arm_sizes(outcomes))
    shares = (1 - file.experiment.allocation, file.experiment.allocation)
    return float(stats.chisquare(counts, [share * sum(counts) for share in shares]).pvalue)
