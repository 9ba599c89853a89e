"""The best start for a forecast of the grid's intensity: no allowed one is greener."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ConfigError
from slurm.carbon_aware import greenest, in_words

FIRST = datetime(2026, 1, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)


def slow_mean(grams, start, lasts):
    """Minute by minute."""
    by_minute = [value for value in grams for _ in range(60)]
    begin, length = ((moment // timedelta(minutes=1)) for moment in (start - FIRST, lasts))
    return sum(by_minute[begin : begin + length]) / length


@given(
    grams=st.lists(st.integers(0, 900), min_size=4, max_size=30),
    now=st.integers(0, 90),
    wait=st.integers(0, 1500),
    lasts=st.integers(1, 400),
)
def test_no_allowed_start_is_greener(grams, now, wait, lasts):
    now, lasts = FIRST + timedelta(minutes=now), timedelta(minutes=lasts)
    latest, end = now + timedelta(minutes=wait), FIRST + len(grams) * HOUR
    if now + lasts > end:
        with pytest.raises(ConfigError, match="the forecast covers"):
            greenest(FIRST, HOUR, grams, now, latest, lasts)
        return
    found = greenest(FIRST, HOUR, grams, now, latest, lasts)
    assert now <= found.begin <= min(latest, end - lasts)
    assert found.grams_per_kwh == pytest.approx(slow_mean(grams, found.begin, lasts))
    assert found.at_once_grams_per_kwh == pytest.approx(slow_mean(grams, now, lasts))
    last = int((min(latest, end - lasts) - now).total_seconds() // 60)
    others = {minute: slow_mean(grams, now + timedelta(minutes=minute), lasts) for minute in range(0, last + 1, 7)}
    assert found.grams_per_kwh <= min(others.values()) + 1e-6
    assert 0 <= found.saved <= 1


def test_the_words_say_what_is_saved():
    grams = [400, 400, 100, 100, 400, 400]
    found = greenest(FIRST, HOUR, grams, FIRST, FIRST + 4 * HOUR, 2 * HOUR)
    assert found.begin == FIRST + 2 * HOUR
    assert found.saved == 0.75
    assert "100 g CO2e/kWh by the forecast, 400 if it began now (75% less)" in in_words(found, FIRST)
    at_once = greenest(FIRST, HOUR, grams, FIRST + 2 * HOUR, FIRST + 9 * HOUR, 2 * HOUR)
    assert in_words(at_once, FIRST + 2 * HOUR).startswith("begins at once: no start until ")
    assert greenest(FIRST, HOUR, [0, 0, 0], FIRST, FIRST + HOUR, HOUR).saved == 0


def test_a_start_is_never_later_than_it_may_be():
    found = greenest(FIRST, HOUR, [400, 300, 200, 100], FIRST, FIRST + timedelta(minutes=90), HOUR)
    assert found.begin == FIRST + timedelta(minutes=90)
    assert found.grams_per_kwh == pytest.approx(250)


def test_a_forecast_of_another_day_is_refused():
    for now in (FIRST - timedelta(minutes=1), FIRST + timedelta(hours=3.5)):
        with pytest.raises(ConfigError, match=r"covers 2026-01-05 .*Give one that does"):
            greenest(FIRST, HOUR, [1, 2, 3, 4], now, now + HOUR, HOUR)
