"""Factors from energy to carbon and water, with source and year.

A whole example; everything is optional, and what is not set stays unknown:

    [energy.factors]
    country = "SWE"                   # ISO 3166-1, three letters
    grid = { value = 41.0, low = 25.0, high = 60.0, source = "the grid operator's yearly mean", year = 2025 }
    by_hour = { path = "grid.csv", source = "the grid operator", year = 2026 }
    contract = { value = 12.0, source = "the supplier's disclosure", year = 2025 }
    pue = { value = 1.2, low = 1.15, high = 1.3, source = "the data centre's yearly report", year = 2025 }
    wue = { value = 0.4, source = "the data centre's yearly report", year = 2025 }
    grid_water = { value = 1.6, source = "...", year = 2024 }
    embodied = { value = 1500.0, low = 1000.0, high = 2500.0, source = "the maker's declaration", year = 2024 }
    lifetime = { value = 5.0, source = "our purchasing policy", year = 2025 }
    reserved = { value = 0.25, source = "16 of 64 cores", year = 2026 }

Where `grid` is not set, the yearly mean of `country` is used (`grid_intensity.toml`, with year and source), or
without a country the world's mean; where `pue` is not set, the industry's average. Such a default is marked in its
source, has a band, and is listed in `Factors.defaults`. `defaults = false` leaves what is not set unknown.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from governance.config import Section
from governance.energy.band import Bounded
from governance.energy.intensity import IntensitySeries, read_intensity
from governance.files import shipped_table

UNITS = {
    "grid": "g CO2e/kWh",
    "by_hour": "g CO2e/kWh",
    "contract": "g CO2e/kWh",
    "pue": "kWh/kWh",
    "wue": "l/kWh",
    "grid_water": "l/kWh",
    "embodied": "kg CO2e",
    "lifetime": "years",
    "reserved": "of a node",
}
_TABLE = "grid_intensity.toml"
_DEFAULTS = {"grid": "world", "pue": "pue"}
"""Factor -> its entry in the table: the world's mean, the data centres' average."""


class _Sourced(Section):
    source: str = Field(min_length=3)
    """The source of the figure: institution and document."""
    year: int = Field(ge=1990, le=2100)
    """The year that the figure holds for, or was published in."""

    @model_validator(mode="after")
    def _source_says_something(self) -> _Sourced:
        if not self.source.strip():
            raise ValueError("source is blank: name the institution and document")
        return self


class Factor(Bounded, _Sourced):
    """A figure with its source.

    The band is the figure itself where no bounds are given.
    """


class HourlyFile(_Sourced):
    """A CSV of intensities (`governance.energy.intensity`)."""

    path: str
    """Relative to the configuration, or absolute."""


class HourlySeries(_Sourced):
    """Rows of a CSV that cover a run, for the report."""

    start: str
    step_seconds: float = Field(gt=0)
    grams_per_kwh: tuple[float, ...]
    sha256: str
    """Digest of the whole file."""

    @property
    def series(self) -> IntensitySeries:
        """Intensity by time."""
        start = datetime.fromisoformat(self.start)
        return IntensitySeries(start, timedelta(seconds=self.step_seconds), self.grams_per_kwh, self.sha256)


class _Common(Section):
    country: str | None = Field(default=None, pattern=r"^[A-Z]{3}$")
    """Country of the grid that feeds the nodes: ISO 3166-1, three letters."""
    grid: Factor | None = None
    """Mean carbon intensity of the grid (location-based), g CO2e per kWh."""
    contract: Factor | None = None
    """Carbon intensity of the electricity that was bought (market-based), g CO2e per kWh."""
    pue: Factor | None = None
    """Power usage effectiveness of the data centre: its energy over that of its computers (ISO/IEC 30134-2:2016)."""
    wue: Factor | None = None
    """Water usage effectiveness: litres on site per kWh of the computers (ISO/IEC 30134-9:2022)."""
    grid_water: Factor | None = None
    """Litres that making a kWh of electricity takes."""
    embodied: Factor | None = None
    """kg CO2e of making one node, GPUs included."""
    lifetime: Factor | None = None
    """Years that a node serves."""
    reserved: Factor | None = None
    """The part of a node that was reserved for this work; the whole where nodes are not shared."""

    @model_validator(mode="after")
    def _within_reason(self) -> _Common:
        if self.pue is not None and self.pue.bounds[0] < 1:
            raise ValueError(f"pue is {self.pue.bounds[0]:g}: a data centre takes at least what its computers take, 1")
        if self.reserved is not None and not 0 < self.reserved.bounds[0] <= self.reserved.bounds[2] <= 1:
            raise ValueError(f"reserved is {self.reserved.value:g}: a part of a node is above 0 and at most 1")
        if self.lifetime is not None and self.lifetime.bounds[0] <= 0:
            raise ValueError("lifetime is 0: a node serves longer than that")
        if (self.embodied is None) != (self.lifetime is None):
            raise ValueError("embodied and lifetime require each other: give both, or neither")
        return self


class FactorsConfig(_Common):
    """`[energy.factors]`; nothing here changes a measurement."""

    by_hour: HourlyFile | None = None
    """The grid's intensity by the hour; it goes before `grid` for the time that it covers."""
    defaults: bool = True
    """Public averages replace `grid` and `pue` where these are not set; False leaves them unknown."""

    @model_validator(mode="after")
    def _country_is_in_the_table(self) -> FactorsConfig:
        if self.country is not None and self.grid is None and country_mean(self.country) is None:
            raise ValueError(
                f"country {self.country} has no figure in Assay's table of grid intensities: set grid with value,"
                " source and year, or leave country out for the world's mean"
            )
        return self


class Factors(_Common):
    """Factors of a report, with country mean and CSV rows resolved."""

    by_hour: HourlySeries | None = None
    defaults: tuple[str, ...] = ()
    """Factors from public averages, because the run sets none."""


def resolve(config: FactorsConfig, folder: Path, span: tuple[datetime, datetime] | None = None) -> Factors:
    """Look up the factors that the settings name.

    Args:
        config: the settings.
        folder: of the configuration file.
        span: the time for which rows of the CSV are kept; None keeps none.

    Raises:
        ConfigError: the CSV cannot be read.
    """
    values: dict[str, Any] = config.model_dump(exclude={"by_hour", "defaults"})
    if config.grid is None and config.country is not None:
        values["grid"] = country_mean(config.country)
    if config.defaults:
        table = shipped_table(__package__, _TABLE)
        defaults = {name: Factor(**table[of]) for name, of in _DEFAULTS.items() if values[name] is None}
        values |= {**defaults, "defaults": tuple(defaults)}
    hourly = None
    if config.by_hour is not None:
        read = read_intensity(folder / config.by_hour.path)
        first, last = (0, 0) if span is None else ((time - read.start) // read.step for time in span)
        first, stop = max(0, first), max(0, last + 1) if span is not None else 0
        hourly = HourlySeries(
            source=config.by_hour.source,
            year=config.by_hour.year,
            start=(read.start + first * read.step).isoformat(),
            step_seconds=read.step.total_seconds(),
            grams_per_kwh=read.grams_per_kwh[first:stop],
            sha256=read.sha256,
        )
    return Factors(**values, by_hour=hourly)


def country_mean(country: str) -> Factor | None:
    """The newest yearly mean of a country's grid.

    Returns None where the table has no figure.
    """
    table = shipped_table(__package__, _TABLE)
    years = (name for name in table if name.isdecimal() and country in table[name])
    return next((Factor(value=table[y][country], source=table["source"], year=int(y)) for y in years), None)
