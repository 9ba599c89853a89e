"""KPI file: metrics, the effects that matter, and the experiment that decides.

[experiment]
name = "support-assistant"
unit = "ticket"
units_per_day = 400

[[kpi]]
name = "solved at first contact"
kind = "share"
column = "solved"
baseline = 0.62
smallest_effect = 0.03
value = 4.2

[money]
currency = "EUR"
price_per_kwh = 0.32
cost_per_unit = 0.02
served_units = 1000000
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from governance.config import Section, load_config


class KpiExperiment(Section):
    """Experiment that all KPIs of a file share."""

    name: str = Field(min_length=1)
    """Name, by which a changed file is compared with its plan."""
    unit: str = Field(default="unit", min_length=1)
    """Word for one unit, such as ticket, user or session."""
    design: Literal["ab", "paired"] = "ab"
    """ab: each unit is in one arm; paired: each pair has one row in each arm."""
    control: str = "control"
    """Name of the arm without the model."""
    treatment: str = "treatment"
    """Name of the arm with the model."""
    allocation: float = Field(default=0.5, gt=0, lt=1)
    """Share of the units in the treatment arm."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability that at least one KPI is found to change although none does."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """Probability that a KPI's smallest effect is found."""
    units_per_day: float | None = Field(default=None, gt=0)
    """Units that both arms together receive in a day."""
    cluster_size: float = Field(default=1, ge=1)
    """Mean number of units of a cluster; 1: units are independent."""
    cluster_correlation: float = Field(default=0, ge=0, lt=1)
    """Correlation of two units of one cluster."""

    @model_validator(mode="after")
    def _two_arms(self) -> KpiExperiment:
        if self.control == self.treatment:
            raise ValueError(f'control and treatment are both "{self.control}"; give each arm its own name')
        if self.design == "paired" and self.allocation != 0.5:
            raise ValueError("allocation is for design ab; a pair has one row in each arm, so remove it")
        return self


class KpiColumns(Section):
    """Columns of the outcomes."""

    unit: str = "unit"
    """Name of a unit."""
    arm: str = "arm"
    """Name of the arm."""
    pair: str = "pair"
    """Name of a pair; needed for design paired."""
    cluster: str = ""
    """Name of a cluster whose units are alike; empty: units are independent."""
    day: str = ""
    """Day of an outcome (YYYY-MM-DD), compared with the day of the plan; empty: not compared."""


class Kpi(Section):
    """One metric, and the change that matters."""

    name: str = Field(min_length=1)
    """Name in tables and sentences."""
    kind: Literal["share", "mean", "ratio"]
    """share: of units with value 1; mean: over units; ratio: sum of `column` over sum of `denominator`."""
    column: str = "value"
    """Column of the value; of a ratio its numerator."""
    denominator: str = ""
    """Column of a ratio's denominator."""
    covariate: str = ""
    """Column known before the experiment, which removes variance (CUPED); empty: none."""
    direction: Literal["up", "down"] = "up"
    """Direction of an improvement."""
    baseline: float | None = None
    """Value without the model."""
    smallest_effect: float = Field(gt=0)
    """Smallest change that matters, in the metric's own unit: 0.03 of a share is three points."""
    standard_deviation: float | None = Field(default=None, gt=0)
    """Standard deviation of a unit's value; of a ratio that of (numerator - baseline x denominator) / mean denominator.
    """
    correlation: float = Field(default=0, gt=-1, lt=1)
    """Expected correlation of the two values of a pair, or else of value and covariate."""
    value: float | None = Field(default=None, ge=0)
    """Money that an improvement by 1 is worth, for one unit; of a ratio for one of its denominator."""

    @model_validator(mode="after")
    def _complete(self) -> Kpi:
        if self.baseline is None:
            raise ValueError(
                f"{self.name}: has no baseline, so no effect can be planned; measure the metric without the model, "
                "over some weeks, and write baseline = ..."
            )
        if self.kind == "share":
            reached = self.baseline + (self.smallest_effect if self.direction == "up" else -self.smallest_effect)
            if not (0 < self.baseline < 1 and 0 < reached < 1):
                raise ValueError(
                    f"{self.name}: baseline {self.baseline:g} and baseline with the smallest effect {reached:g} must "
                    "be shares between 0 and 1; write 62 % as 0.62"
                )
            if self.standard_deviation is not None:
                raise ValueError(f"{self.name}: a share's standard_deviation follows from its baseline; remove it")
        elif self.standard_deviation is None:
            raise ValueError(
                f"{self.name}: has no standard_deviation, so its sample size is unknown; measure it on past units"
            )
        if (self.kind == "ratio") != bool(self.denominator):
            raise ValueError(f"{self.name}: a ratio, and nothing else, has a denominator column")
        if self.covariate and self.kind == "ratio":
            raise ValueError(f"{self.name}: a ratio takes no covariate; remove it")
        return self

    @property
    def sign(self) -> int:
        """1 where a rise is an improvement, else -1."""
        return 1 if self.direction == "up" else -1


class KpiMoney(Section):
    """Prices for the question whether it paid."""

    currency: str = Field(default="EUR", min_length=1)
    """Unit of all amounts."""
    price_per_kwh: float = Field(ge=0)
    """Price of the energy that corpus and training took."""
    cost_per_unit: float = Field(ge=0)
    """Cost of serving one unit with the model, above that of the control."""
    served_units: int = Field(gt=0)
    """Units that the model will serve in the time that is judged."""
    one_off: float = Field(default=0, ge=0)
    """Further cost of making the model: people, machines, licences."""


class KpiFile(Section):
    """Whole KPI file; its plan fixes every value."""

    experiment: KpiExperiment
    columns: KpiColumns = KpiColumns()
    kpi: tuple[Kpi, ...] = Field(min_length=1)
    money: KpiMoney | None = None

    @model_validator(mode="after")
    def _one_meaning(self) -> KpiFile:
        names = [kpi.name for kpi in self.kpi]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"kpi: two are called {twice[0]!r}; give each its own name")
        if self.money is not None and all(kpi.value is None for kpi in self.kpi):
            raise ValueError(
                "money: no KPI has a value; write value = ... (money for an improvement by 1), or no [money]"
            )
        if self.experiment.cluster_size > 1 and not self.columns.cluster:
            raise ValueError(
                'experiment.cluster_size is above 1; name the clusters\' column: [columns] cluster = "..."'
            )
        if self.experiment.design == "paired" and any(kpi.covariate for kpi in self.kpi):
            raise ValueError("kpi.covariate: pairs are compared within themselves; remove the covariate")
        return self

    @property
    def alpha_each(self) -> float:
        """Error probability of one KPI: alpha over their number."""
        return self.experiment.alpha / len(self.kpi)

    def shared_by(self, plans: int) -> KpiFile:
        """The file with its error probability shared by several plans (Bonferroni)."""
        alpha = self.experiment.alpha / plans
        return self.model_copy(update={"experiment": self.experiment.model_copy(update={"alpha": alpha})})


def load_kpis(path: Path) -> KpiFile:
    """KPI file, validated.

    Raises:
        ConfigError: a fault per line: field, value, fix.
    """
    return load_config(path, KpiFile)
