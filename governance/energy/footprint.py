"""Carbon, water and SCI of measured energy, with bounds.

    electricity of the building    E x PUE                            ISO/IEC 30134-2:2016
    CO2e, location-based           E x PUE x grid intensity           GHG Protocol Scope 2 Guidance, 2015
    CO2e, market-based             E x PUE x contract intensity       the same
    embodied CO2e                  M = TE x time used / lifetime x part reserved     ISO/IEC 21031:2024
    SCI                            (E x PUE x I + M) / R, with I location-based      ISO/IEC 21031:2024
                                   R = 10^9 tokens that a training was shown, E and M of all its attempts and of
                                   nothing else
    water on site                  E x WUE                            ISO/IEC 30134-9:2022
    water of the electricity       E x PUE x litres per kWh           Li et al., arXiv:2304.03271, 2023

E is in kWh. Low, central and high multiply low, central and high of each term: a band of scenarios, no confidence
interval. A factor without bounds adds nothing to the band.

A factor that is not set makes its figures unknown, and they name what to set; nothing is treated as zero. Two are not
unknown, for they have a least value: a PUE is at least 1, and embodied carbon is above 0. Without them carbon, water
and SCI are marked "at least" and have no upper bound. Without a contract the market-based figure is that of the grid's
average, the last method in the Scope 2 Guidance's hierarchy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from governance.energy.band import UNKNOWN, Band
from governance.energy.factors import UNITS, Factor, Factors
from governance.energy.intensity import mean_intensity
from governance.energy.ledger import Interval, seconds_covered

JOULES_PER_KWH = 3.6e6
TOKENS = 1e9
"""The functional unit of SCI: a billion tokens."""
_SECONDS_PER_YEAR = 365.25 * 86400


@dataclass(frozen=True)
class Figure:
    """One figure of the footprint."""

    name: str
    unit: str
    band: Band
    factors: tuple[str, ...]
    """Settings of the calculation."""
    needs: tuple[str, ...]
    """Settings without which it is unknown, or is only a part."""

    @property
    def at_least(self) -> bool:
        """Return whether its value may leave a part out.

        That is so where no meter measured a part, or the PUE is not set.
        """
        return self.band.value is not None and self.band.high is None


@dataclass(frozen=True)
class Grid:
    """Carbon intensity used, and the share covered by a CSV."""

    band: Band
    covered: float | None
    """Part of the energy in the rows; None where no CSV is given."""
    in_rows: float | None
    """The mean over that part."""
    used: tuple[str, ...]
    needs: tuple[str, ...]


def intensity_of(intervals: Sequence[Interval], factors: Factors) -> Grid:
    """Mean grid intensity, weighted by the energy of each sample.

    Time outside the rows is weighed with `grid`; where that is not set either the mean is unknown.
    """
    grid = UNKNOWN if factors.grid is None else factors.grid.band
    if factors.by_hour is None:
        needs = () if factors.grid else ("energy.factors.grid (or country)",)
        return Grid(grid, None, None, ("grid",) if factors.grid else (), needs)
    covered = total = grams = 0.0
    for begin, end, millijoules in _samples(intervals):
        total += millijoules
        intensity = mean_intensity(factors.by_hour.series, begin, end)
        if intensity is not None:
            covered += millijoules
            grams += millijoules * intensity
    if not total:
        return Grid(UNKNOWN, None, None, (), ("a ledger of the energy, to know the hours",))
    intensity = grams / total
    inside = Band(intensity, intensity, intensity)
    part, mean = covered / total, grams / covered if covered else None
    if covered == total:
        return Grid(inside, part, mean, ("by_hour",), ())
    if factors.grid is None:
        return Grid(UNKNOWN, part, mean, (), (f"energy.factors.grid, for {1 - part:.1%} of it outside the CSV's rows",))
    rest = grid.each(1 - part, "*")
    return Grid(inside.each(rest, "+"), part, mean, ("by_hour", "grid") if covered else ("grid",), ())


def _samples(intervals: Iterable[Interval]) -> Iterable[tuple[datetime, datetime, int]]:
    """(begin, end, millijoules) between two lines of the ledger.

    The energy that the first line counted is placed at its moment.
    """
    for interval in intervals:
        before, spent = datetime.fromisoformat(interval.started), 0
        for sample in interval.samples:
            at = datetime.fromisoformat(sample.at)
            if sample.millijoules is not None and sample.millijoules > spent:
                yield min(before, at), at, sample.millijoules - spent
                spent = sample.millijoules
            before = at


def node_seconds(intervals: Iterable[Interval]) -> float:
    """Seconds of nodes that were in use.

    Overlapping measurements of one node count once.
    """
    spans: dict[str, list[tuple[datetime, datetime]]] = {}
    for interval in intervals:
        spans.setdefault(interval.host, []).append(interval.span)
    return sum(map(seconds_covered, spans.values()), 0.0)


def carbon(energy: Band, grid: Grid, factors: Factors) -> Figure:
    """Location-based CO2e in grams of some energy in joules."""
    building, needs = _building(_kwh(energy), factors)
    used = ("pue",) if factors.pue else ()
    known = grid.band.value is not None
    return Figure(
        "CO2e, location-based", "g CO2e", building.each(grid.band, "*"), (*used, *grid.used),
        (*needs, *grid.needs) if known else grid.needs,
    )  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """Measured work: all under a root, or all attempts of one training."""

    energy: Band
    """Joules, with the meter's bounds."""
    seconds: float | None
    """Seconds of nodes in use (`node_seconds`); None is unknown."""
    grid: Grid
    """The grid's intensity for this work (`intensity_of`)."""
    tokens: int | None = None
    """That the training was shown by these attempts."""


def footprint(root: Usage, training: Usage | None, factors: Factors, whole_nodes: bool) -> dict[str, Figure]:
    """Every figure by its id.

    Args:
        root: all that was measured; every figure but SCI is of it.
        training: all attempts of the training that is reported on, for SCI; None without one.
        factors: what else is known.
        whole_nodes: whether the scope of every measurement was the node.
    """
    energy, grid = root.energy, root.grid
    nodes = _kwh(energy)
    building, needs = _building(nodes, factors)
    pue = ("pue",) if factors.pue else ()

    def electric_figure(name: str, unit: str, setting: str) -> Figure:
        factor = getattr(factors, setting)
        if factor is None:
            return Figure(name, unit, UNKNOWN, (), (f"energy.factors.{setting}",))
        return Figure(name, unit, building.each(factor.band, "*"), (*pue, setting), needs)

    location = carbon(energy, grid, factors)
    made = _embodied(factors, root.seconds, whole_nodes)
    averaged = replace(location, name="CO2e, market-based (no contract is set: the grid's average)")
    wue = factors.wue.band if factors.wue else UNKNOWN
    figures = {
        "electricity": Figure("Electricity of the nodes", "kWh", nodes, (), ()),
        "electricity_building": Figure(
            "Electricity with the building", "kWh", building if factors.pue else Band(nodes.low, None, None), pue, needs
        ),
        "carbon_location": location,
        "carbon_market": electric_figure("CO2e, market-based", "g CO2e", "contract") if factors.contract else averaged,
        "carbon_embodied": made,
        "carbon_total": _with_embodied(location, made),
        "sci": _sci(training, factors, whole_nodes),
        "water_on_site": Figure(
            "Water on site", "l", nodes.each(wue, "*"), ("wue",) if factors.wue else (),
            () if factors.wue else ("energy.factors.wue",),
        ),
        "water_of_electricity": electric_figure("Water of the electricity", "l", "grid_water"),
    }  # fmt: skip
    if energy.value is None:
        unmeasured = ("a meter: no energy was measured",)
        return {
            name: figure
            if name in ("carbon_embodied", "sci")
            else Figure(figure.name, figure.unit, UNKNOWN, (), unmeasured)
            for name, figure in figures.items()
        }
    return figures


def _with_embodied(location: Figure, made: Figure) -> Figure:
    """Sum of operational and embodied; unknown embodied leaves a lower bound."""
    operation = location.band
    both = Band(operation.low, operation.value, None) if made.band.value is None else operation.each(made.band, "+")
    return Figure(
        "CO2e, location-based and embodied", "g CO2e", both,
        tuple(dict.fromkeys((*location.factors, *made.factors))), tuple(dict.fromkeys((*location.needs, *made.needs))),
    )  # fmt: skip


def _kwh(energy: Band) -> Band:
    return energy.each(JOULES_PER_KWH, "/")


def _building(nodes: Band, factors: Factors) -> tuple[Band, tuple[str, ...]]:
    """Energy of the data centre; without PUE no upper bound."""
    if factors.pue is None:
        return Band(nodes.low, nodes.value, None), ("energy.factors.pue",)
    return nodes.each(factors.pue.band, "*"), ()


def _embodied(factors: Factors, seconds: float | None, whole_nodes: bool) -> Figure:
    name, unit = "Embodied CO2e of the nodes", "g CO2e"
    if factors.embodied is None or factors.lifetime is None:
        return Figure(name, unit, UNKNOWN, (), ("energy.factors.embodied", "energy.factors.lifetime"))
    if factors.reserved is None and not whole_nodes:
        return Figure(name, unit, UNKNOWN, (), ("energy.factors.reserved: nodes were shared",))
    if seconds is None:
        return Figure(name, unit, UNKNOWN, (), ("a ledger of the energy, to know the time",))
    used = ("embodied", "lifetime", *(("reserved",) if factors.reserved else ()))
    lifetime = factors.lifetime.band.each(_SECONDS_PER_YEAR, "*")
    time = Band(seconds, seconds, seconds).each(lifetime, "/")
    grams = factors.embodied.band.each(1000, "*").each(time, "*")
    return Figure(name, unit, grams.each(factors.reserved.band, "*") if factors.reserved else grams, used, ())


def _sci(training: Usage | None, factors: Factors, whole_nodes: bool) -> Figure:
    name, unit = "SCI of the training, for a billion tokens (ISO/IEC 21031:2024)", "g CO2e per 10^9 tokens"
    if training is None or not training.tokens:
        return Figure(name, unit, UNKNOWN, (), ("a training",))
    if training.energy.value is None:
        return Figure(name, unit, UNKNOWN, (), ("a meter: no energy of this training was measured",))
    made = _embodied(factors, training.seconds, whole_nodes)
    total = _with_embodied(carbon(training.energy, training.grid, factors), made)
    units = training.tokens / TOKENS
    return Figure(name, unit, total.band.each(units, "/"), total.factors, total.needs)


def factors_used(factors: Factors, grid: Grid) -> Mapping[str, Mapping[str, object]]:
    """Each factor that is set: value, bounds, unit, source and year.

    The value of the CSV is its mean over the energy.
    """
    inputs: dict[str, Mapping[str, object]] = {}
    for name, unit in UNITS.items():
        factor = getattr(factors, name)
        if isinstance(factor, Factor):
            inputs[name] = {**factor.model_dump(mode="json"), "unit": unit}
        elif factor is not None:
            about = {"source": factor.source, "year": factor.year, "sha256": factor.sha256, "covered": grid.covered}
            inputs[name] = {"value": grid.in_rows, "low": None, "high": None, **about, "unit": unit}
    return inputs
