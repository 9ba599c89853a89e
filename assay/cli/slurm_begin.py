"""Start time of a run that waits for greener hours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from assay.cli.run_commands import Arguments
from governance.errors import ConfigError
from slurm.config import SlurmConfig

_LATEST_HOURS = 24.0
"""Default limit of the wait for greener hours: forecasts rarely reach further."""


@dataclass(frozen=True)
class Begin:
    """Start time of a run that waits for greener hours."""

    begin: datetime | None
    """None: at once."""
    words: str
    evidence: dict[str, Any]


def begin_of(arguments: Arguments, config: SlurmConfig) -> Begin | None:
    """Start time by the given forecast; None without one.

    Raises:
        ConfigError: an option goes with another, or the forecast is wrong or too short.
    """
    if arguments.carbon_aware is None:
        if arguments.latest or arguments.expected:
            raise ConfigError("--latest and --expected go with --carbon-aware FORECAST.csv")
        return None
    from governance.energy.intensity import read_intensity
    from slurm.carbon_aware import greenest, in_words
    from slurm.config import minutes

    limit = minutes(config.time_limit) * config.chain
    if arguments.expected is None and limit in (0, float("inf")):
        raise ConfigError(
            f"slurm.time_limit = {config.time_limit!r} says nothing of how long the run lasts: give --expected HOURS"
        )
    lasts = timedelta(hours=arguments.expected) if arguments.expected else timedelta(minutes=limit)
    forecast = read_intensity(arguments.carbon_aware)
    now = datetime.now(UTC).replace(microsecond=0)
    latest = now + timedelta(hours=arguments.latest or _LATEST_HOURS)
    start = greenest(forecast.start, forecast.step, forecast.grams_per_kwh, now, latest, lasts)
    evidence = {
        "asked": now.isoformat(),
        "at_once_grams_per_kwh": start.at_once_grams_per_kwh,
        "begin": start.begin.isoformat(),
        "expected_hours": lasts / timedelta(hours=1),
        "forecast": arguments.carbon_aware.name,
        "forecast_sha256": forecast.sha256,
        "grams_per_kwh": start.grams_per_kwh,
        "latest": latest.isoformat(),
        "latest_covered": start.last.isoformat(),
    }
    return Begin(start.begin if start.begin > now else None, in_words(start, now), evidence)
