"""A series of intensities is read as written, or refused with the line; outside its rows it has no value."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.energy.intensity import IntensitySeries, intensity_at, mean_intensity, read_intensity
from governance.errors import ConfigError

START = datetime(2026, 1, 5, tzinfo=UTC)
SERIES = IntensitySeries(START, timedelta(hours=1), (40.0, 10.0, 70.0), "")


def written(tmp_path, *lines):
    path = tmp_path / "grid.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_series_is_read_with_its_offsets_and_other_columns(tmp_path):
    path = written(
        tmp_path,
        "zone,time,grams_per_kwh",
        "SE,2026-01-05T01:00:00+01:00,40",
        "SE,2026-01-05T01:00:00Z,10.0",
        "SE,2026-01-05T03:00:00+01:00,7e1",
    )
    found = read_intensity(path)
    assert (found.start, found.step, found.grams_per_kwh) == (START, timedelta(hours=1), SERIES.grams_per_kwh)
    assert found.end == START + timedelta(hours=3)
    assert len(found.sha256) == 64


def test_an_hour_that_summer_time_repeats_is_no_fault(tmp_path):
    lines = ["2026-10-25T02:00:00+02:00,1", "2026-10-25T02:00:00+01:00,2", "2026-10-25T03:00:00+01:00,3"]
    assert read_intensity(written(tmp_path, "time,grams_per_kwh", *lines)).grams_per_kwh == (1.0, 2.0, 3.0)


HOURS = ["2026-01-05T00:00:00Z,1", "2026-01-05T01:00:00Z,2"]


@pytest.mark.parametrize(
    ("lines", "output"),
    [
        (["when,grams_per_kwh", *HOURS], "no column 'time'"),
        (["time,grams_per_kwh", *HOURS, "tomorrow,3"], "line 4: time 'tomorrow' is not ISO 8601"),
        (["time,grams_per_kwh", "2026-01-05T00:00:00,1"], "line 2: .* has no offset from UTC"),
        (["time,grams_per_kwh", *HOURS, "2026-01-05T02:00:00Z,"], "line 4: grams_per_kwh '' is not a number"),
        (["time,grams_per_kwh", *HOURS, "2026-01-05T02:00:00Z"], "line 4: grams_per_kwh None is not a number"),
        (["time,grams_per_kwh", "2026-01-05T00:00:00Z,nan"], "line 2: .*finite number from 0"),
        (["time,grams_per_kwh", "2026-01-05T00:00:00Z,-1"], "line 2: .*finite number from 0"),
        (["time,grams_per_kwh", *HOURS, "2026-01-05T03:00:00Z,3"], "line 4: .* where 2026-01-05T02.* a gap"),
        (["time,grams_per_kwh", *HOURS, "2026-01-05T01:00:00Z,3"], "line 4: .* is not after"),
        (["time,grams_per_kwh", HOURS[1], HOURS[0]], "line 3: .* is not after"),
        (["time,grams_per_kwh", "2026-01-05T00:00:00Z,1", "2026-01-09T00:00:00Z,2"], "line 3: .*at most a day"),
        (["time,grams_per_kwh", HOURS[0]], r"has 1 row\(s\)"),
        (["time,grams_per_kwh", "0001-01-01T00:00:00+14:00,1"], "line 2: .* outside the calendar"),
        (["time,grams_per_kwh", '"2026,1'], "line 2: is not CSV"),
        ([""], "no column 'time'"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, lines, output):
    with pytest.raises(ConfigError, match=output):
        read_intensity(written(tmp_path, *lines))


def test_a_file_that_is_not_there_or_no_text_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_intensity(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"time,grams_per_kwh\n\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_intensity(tmp_path / "latin.csv")


def test_outside_its_rows_a_series_says_nothing():
    at = [START + timedelta(minutes=minutes) for minutes in (-1, 0, 59, 60, 179, 180)]
    assert [intensity_at(SERIES, time) for time in at] == [None, 40.0, 40.0, 10.0, 70.0, None]
    assert mean_intensity(SERIES, at[0], at[1]) is None
    assert mean_intensity(SERIES, at[4], at[5] + timedelta(seconds=1)) is None
    with pytest.raises(ValueError, match="no offset"):
        intensity_at(SERIES, datetime(2026, 1, 5))
    with pytest.raises(ValueError, match="before"):
        mean_intensity(SERIES, at[1], at[0])


def test_the_mean_of_a_stretch_is_weighted_by_time():
    half = timedelta(minutes=30)
    assert mean_intensity(SERIES, START + half, START + 3 * half) == pytest.approx(25.0)
    assert mean_intensity(SERIES, START, SERIES.end) == pytest.approx(40.0)
    assert mean_intensity(SERIES, START + half, START + half) == 40.0


@given(
    st.lists(st.floats(0, 2000), min_size=2, max_size=30),
    st.integers(0, 30 * 3600),
    st.integers(0, 30 * 3600),
    st.floats(0, 1),
)
def test_a_stretch_is_the_sum_of_its_parts(grams, first, second, where):
    series = IntensitySeries(START, timedelta(hours=1), tuple(grams), "")
    begin, end = (START + timedelta(seconds=min(value, len(grams) * 3600)) for value in sorted((first, second)))
    between = begin + (end - begin) * where
    parts = [
        mean_intensity(series, one, other) * (other - one).total_seconds()
        for one, other in ((begin, between), (between, end))
        if other > one
    ]
    whole = mean_intensity(series, begin, end)
    if end > begin:
        assert math.isclose(sum(parts), whole * (end - begin).total_seconds(), rel_tol=1e-9, abs_tol=1e-6)
