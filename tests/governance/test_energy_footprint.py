"""Carbon, water and SCI: computed by hand, monotone in every factor, and unknown with the missing setting named."""

import importlib.util
import json
import tomllib
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.config import validate
from governance.energy import factors
from governance.energy.band import Band
from governance.energy.factors import Factor, Factors, FactorsConfig, country_mean, resolve
from governance.energy.footprint import Usage, factors_used, footprint, intensity_of, node_seconds
from governance.energy.ledger import EnergySample, Interval
from governance.errors import ConfigError

SAID = {"source": "the operator", "year": 2025}
CSV = "time,grams_per_kwh\n2026-01-01T00:00:00Z,100\n2026-01-01T01:00:00Z,10\n2026-01-01T02:00:00Z,50\n"


def factor(value, low=None, high=None):
    return Factor(value=value, low=low, high=high, **SAID)


ALL = Factors(
    country="SWE", grid=factor(100, 50, 200), contract=factor(10), pue=factor(1.2, 1.1, 1.4), wue=factor(0.5),
    grid_water=factor(2), embodied=factor(876.6, 438.3, 1753.2), lifetime=factor(5, 4, 8), reserved=factor(0.5),
)  # fmt: skip
KWH = 3.6e6
ENERGY = Band(1 * KWH, 2 * KWH, 4 * KWH)


def figures(factors, energy=ENERGY, seconds=43_830.0, whole=True, tokens=500_000_000):
    everything = Usage(energy, seconds, intensity_of([], factors))
    return footprint(everything, replace(everything, tokens=tokens), factors, whole)


def band(low, value, high):
    return Band(*(pytest.approx(x) if x is not None else None for x in (low, value, high)))


def test_every_figure_by_hand():
    found = {name: figure.band for name, figure in figures(ALL).items()}
    assert found["electricity"] == band(1, 2, 4)
    assert found["electricity_building"] == band(1.1, 2.4, 5.6)
    assert found["carbon_location"] == band(55, 240, 1120)
    assert found["carbon_market"] == band(11, 24, 56)
    # 43,830 s are 1/3600 of 5 years of 365.25 days, and half of the node was reserved
    assert found["carbon_embodied"] == band(
        438.3e3 * 43_830 / (8 * 31_557_600) / 2, 876.6e3 / 3600 / 2, 1753.2e3 / 5760
    )
    assert found["carbon_total"].value == pytest.approx(240 + 121.75)
    assert found["sci"].value == pytest.approx(2 * (240 + 121.75))
    assert found["water_on_site"] == band(0.5, 1, 2)
    assert found["water_of_electricity"] == band(2.2, 4.8, 11.2)
    assert not any(figure.needs or figure.at_least for figure in figures(ALL).values())
    output = factors_used(ALL, intensity_of([], ALL))
    assert set(output) == {*ALL.model_dump(exclude_none=True)} - {"country", "defaults"}
    assert all(row["source"] and row["year"] == 2025 and row["unit"] for row in output.values())


SETTINGS = ("grid", "contract", "pue", "wue", "grid_water", "embodied", "lifetime")


@given(st.frozensets(st.sampled_from(SETTINGS)), st.sampled_from([None, 500_000_000]), st.booleans())
def test_what_is_not_set_is_unknown_and_says_what_to_set(without, tokens, metered):
    lacking = {*without, *({"embodied", "lifetime"} if {"embodied", "lifetime"} & without else ())}
    found = figures(
        ALL.model_copy(update=dict.fromkeys(lacking)), ENERGY if metered else Band(None, None, None), tokens=tokens
    )
    neither = {"contract", "grid"}
    needed = {
        "carbon_location": {"grid"}, "carbon_market": neither if neither <= lacking else set(),
        "carbon_embodied": {"embodied"}, "carbon_total": {"grid"}, "sci": {"grid"}, "water_on_site": {"wue"},
        "water_of_electricity": {"grid_water"}, "electricity": set(), "electricity_building": {"pue"},
    }  # fmt: skip
    parts = {name: {"pue"} for name in needed if name not in ("electricity", "carbon_embodied", "water_on_site")}
    parts |= {"carbon_total": {"pue", "embodied"}, "sci": {"pue", "embodied"}}
    assert set(found) == set(needed)
    for name, figure in found.items():
        unknown = bool(needed[name] & lacking) or (name == "sci" and tokens is None)
        unknown = unknown or (not metered and name != "carbon_embodied")
        assert (figure.band.value is None) == unknown, name
        assert figure.band.value != 0
        if unknown:
            assert figure.needs, name
            assert figure.band.high is None
        elif name in parts:  # of the nodes alone, or of the electricity alone
            assert figure.at_least == bool(parts[name] & lacking)
            assert (figure.band.high is None) == bool(parts[name] & lacking)
        for setting in (needed[name] & lacking) - {"contract"} if metered and (tokens or name != "sci") else ():
            assert any(f"energy.factors.{setting}" in text for text in figure.needs), (name, setting)


@given(st.floats(0, 1e9), st.floats(1, 3), st.floats(1, 3), st.floats(0.01, 1000))
def test_low_central_and_high_go_upwards(low, rise, more, intensity):
    energy = Band(low, low * rise, low * rise * more)
    factors = ALL.model_copy(update={"grid": factor(intensity, intensity / 2, intensity * 2)})
    for figure in figures(factors, energy).values():
        assert figure.band.low <= figure.band.value <= figure.band.high


def test_a_meter_without_an_upper_bound_gives_none():
    found = figures(ALL, Band(1 * KWH, 2 * KWH, None))
    assert all((figure.band.high is None) == (name != "carbon_embodied") for name, figure in found.items())
    assert found["sci"].band.value is not None


def test_shared_nodes_need_the_part_that_was_reserved():
    assert "reserved" in figures(ALL.model_copy(update={"reserved": None}), whole=False)["carbon_embodied"].needs[0]
    assert figures(ALL.model_copy(update={"reserved": None}))["carbon_embodied"].band.value == pytest.approx(243.5)


def interval(name, host, *samples, stage="train"):
    output = tuple(EnergySample(f"2026-01-01T{at}:00.000Z", energy, energy, energy) for at, energy in samples)
    return Interval(name, name, stage, host, "RAPL", "surviving", "", output)


def test_energy_is_weighed_by_its_hours(tmp_path):
    (tmp_path / "grid.csv").write_text(CSV)
    config = FactorsConfig(by_hour={"path": "grid.csv", **SAID})
    ran = [
        interval("a", "n1", ("00:00", 0), ("01:00", 3000), ("01:30", 4000)),  # 3 J at 100, 1 J at 10
        interval("b", "n2", ("00:30", 0), ("01:30", 2000)),  # 2 J at the mean of an hour across: 55
        interval("c", "n2", ("01:40", 0), ("01:50", None)),
    ]
    span = (datetime.fromisoformat("2026-01-01T00:00Z"), datetime.fromisoformat("2026-01-01T01:50Z"))
    factors = resolve(config, tmp_path, span)
    assert factors.by_hour.grams_per_kwh == (100.0, 10.0)  # the third hour does not belong to the run
    grid = intensity_of(ran, factors)
    assert (grid.band.value, grid.covered, grid.used) == (pytest.approx((300 + 10 + 110) / 6), 1.0, ("by_hour",))
    assert factors_used(factors, grid)["by_hour"]["value"] == grid.band.value
    again = Factors.model_validate(json.loads(json.dumps(factors.model_dump(mode="json"))))
    assert intensity_of(ran, again) == grid


def test_energy_outside_the_rows_is_weighed_with_the_mean_or_unknown(tmp_path):
    (tmp_path / "grid.csv").write_text(CSV)
    ran = [interval("a", "n1", ("02:00", 0), ("03:00", 3000)), interval("b", "n1", ("04:00", 0), ("05:00", 1000))]
    span = (datetime.fromisoformat("2026-01-01T02:00Z"), datetime.fromisoformat("2026-01-01T05:00Z"))
    factors = resolve(FactorsConfig(by_hour={"path": "grid.csv", **SAID}, defaults=False), tmp_path, span)
    grid = intensity_of(ran, factors)
    assert (grid.band.value, grid.covered) == (None, 0.75)
    assert "25.0%" in grid.needs[0]
    grid = intensity_of(ran, factors.model_copy(update={"grid": factor(10, 2, 30)}))
    assert grid.band == band((150 + 2) / 4, (150 + 10) / 4, (150 + 30) / 4)
    assert intensity_of([], factors).needs
    assert resolve(FactorsConfig(by_hour={"path": "grid.csv", **SAID}), tmp_path).by_hour.grams_per_kwh == ()
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(FactorsConfig(by_hour={"path": "none.csv", **SAID}), tmp_path)


def test_a_node_that_is_measured_twice_at_once_counts_once():
    ran = [
        interval("a", "n1", ("00:00", 0), ("01:00", 1)),
        interval("b", "n1", ("00:10", 0), ("00:20", 1)),
        interval("c", "n1", ("00:50", 0), ("01:10", 1)),
        interval("d", "n2", ("00:00", 0), ("00:30", 1)),
        interval("e", "n1", ("02:00", 0), ("02:05", 1)),
    ]
    assert node_seconds(ran) == timedelta(minutes=70 + 30 + 5).total_seconds()


@pytest.mark.parametrize(
    ("values", "output"),
    [
        ({"grid": {"value": 30.0}}, "grid.source: is missing"),
        ({"grid": {"value": 30.0, "source": "the operator"}}, "grid.year: is missing"),
        ({"grid": {"value": 30.0, "source": "    ", "year": 2025}}, "source is blank"),
        ({"grid": {"value": -1.0, **SAID}}, "must be at least 0"),
        ({"grid": {"value": 30.0, "low": 40.0, **SAID}}, "must go upwards"),
        ({"pue": {"value": 0.9, **SAID}}, "pue is 0.9"),
        ({"reserved": {"value": 1.5, **SAID}}, "reserved is 1.5"),
        ({"lifetime": {"value": 0.0, **SAID}, "embodied": {"value": 1.0, **SAID}}, "lifetime is 0"),
        ({"embodied": {"value": 1500.0, **SAID}}, "embodied and lifetime require each other"),
        ({"country": "Sweden"}, "country"),
        ({"country": "ATA"}, "country ATA has no figure"),
        ({"gird": {"value": 30.0, **SAID}}, "did you mean 'grid'"),
    ],
)
def test_a_figure_without_a_source_or_out_of_reason_is_refused(values, output):
    with pytest.raises(ConfigError, match=output):
        validate(values, FactorsConfig, "run.toml")


def test_a_country_replaces_its_grid_and_the_world_a_country(tmp_path):
    found = resolve(FactorsConfig(country="SWE"), tmp_path)
    assert (found.grid.value, found.grid.year, found.defaults) == (41, 2023, ("pue",))
    assert "Ember" in found.grid.source
    assert resolve(FactorsConfig(country="ATA", grid=factor(7)), tmp_path).grid.value == 7
    found = resolve(FactorsConfig(), tmp_path)
    assert found.defaults == ("grid", "pue")
    assert found.grid.source.startswith("world average, not your grid")
    assert found.grid.low < found.grid.value < found.grid.high
    assert found.pue.low == 1 < found.pue.value < found.pue.high
    output = figures(found)
    assert output["carbon_location"].band == band(
        1 * found.grid.low, 2 * found.pue.value * found.grid.value, 4 * found.pue.high * found.grid.high
    )
    assert output["carbon_market"].band == output["carbon_location"].band
    assert output["carbon_total"].at_least
    assert {name for name, figure in output.items() if figure.band.value is None} == {
        "carbon_embodied", "water_on_site", "water_of_electricity"
    }  # fmt: skip
    unknown = resolve(FactorsConfig(defaults=False), tmp_path)
    assert (unknown.grid, unknown.pue, unknown.defaults) == (None, None, ())


@pytest.mark.skipif(importlib.util.find_spec("codecarbon") is None, reason="codecarbon is not installed")
def test_the_table_is_that_of_public_statistics():
    """Compared with codecarbon's copy of them; the world's mean and its band follow from the same figures."""
    package = Path(importlib.util.find_spec("codecarbon").origin).parent
    theirs = json.loads((package / "data" / "private_infra" / "global_energy_mix.json").read_bytes())
    table = tomllib.loads((Path(factors.__file__).parent / "grid_intensity.toml").read_text(encoding="utf-8"))
    ours = {country: (value, int(year)) for year in table if year.isdecimal() for country, value in table[year].items()}
    assert len(ours) == sum(len(table[year]) for year in table if year.isdecimal()) > 180
    for country, (value, year) in ours.items():
        assert year >= theirs[country]["year"], country
        if year == theirs[country]["year"]:
            assert value == pytest.approx(theirs[country]["carbon_intensity"], abs=0.5), country
        assert country_mean(country).value == value > 0
    made = sum(row["total_TWh"] for row in theirs.values())
    mean = sum(row["carbon_intensity"] * row["total_TWh"] for row in theirs.values()) / made
    assert table["world"]["value"] == pytest.approx(mean, rel=0.01)
    within = sum(table["world"]["low"] <= value <= table["world"]["high"] for value, _ in ours.values())
    assert within / len(ours) == pytest.approx(0.9, abs=0.03)
