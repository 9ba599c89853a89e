"""Hourly carbon intensity of the grid, from a CSV.

A whole example (a country's operator and services such as ENTSO-E or Electricity Maps give such figures):

    time,grams_per_kwh
    2026-01-05T00:00:00+01:00,41.5
    2026-01-05T01:00:00+01:00,39.0
    2026-01-05T02:00:00+01:00,40.2

A row holds from its time until the next row's; the last one as long as the others. Rows come in order and in equal
steps of at most a day, and each time has its offset from UTC, so an hour is never read as another. Further columns
are skipped. Grams are CO2e per kWh. Outside its rows a series has no value: unknown, never zero and never the
nearest row.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from governance.errors import ConfigError
from governance.files import sha256_bytes

COLUMNS = ("time", "grams_per_kwh")
_LONGEST_STEP = timedelta(days=1)


@dataclass(frozen=True)
class IntensitySeries:
    """Equal steps of time with an intensity each; the steps touch."""

    start: datetime
    """Begin of the first, in UTC."""
    step: timedelta
    grams_per_kwh: tuple[float, ...]
    """As read: at least two."""
    sha256: str
    """Digest of the file that it was read from."""

    @property
    def end(self) -> datetime:
        """End of the last hour, in UTC."""
        return self.start + len(self.grams_per_kwh) * self.step


def read_intensity(path: Path) -> IntensitySeries:
    """Read a series.

    Raises:
        ConfigError: the file cannot be read, a column is missing, or a row (named by its line) has a time that is not
            ISO 8601 or has no offset, a figure that is not a number from 0 upwards, or is not one step after the row
            before it.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. Give the path of a CSV of intensities."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    times: list[datetime] = []
    grams: list[float] = []
    try:
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise ConfigError(f"{path}: has no column {missing[0]!r}; its first line must name {', '.join(COLUMNS)}.")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            time = _time(row["time"], where)
            if times:
                _follows(time, times, where)
            times.append(time)
            grams.append(_grams(row["grams_per_kwh"], where))
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.reader.line_num}: is not CSV: {error}.") from error
    if len(times) < 2:
        raise ConfigError(f"{path}: has {len(times)} row(s); at least two are needed to know how long a row holds.")
    return IntensitySeries(times[0], times[1] - times[0], tuple(grams), sha256_bytes(raw))


def _time(text: str | None, where: str) -> datetime:
    try:
        time = datetime.fromisoformat((text or "").strip())
    except ValueError:
        raise ConfigError(f"{where}: time {text!r} is not ISO 8601; write 2026-01-05T01:00:00+01:00.") from None
    if time.utcoffset() is None:
        raise ConfigError(f"{where}: time {text!r} has no offset from UTC; write {text}Z or {text}+01:00.")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ConfigError(f"{where}: time {text!r} is outside the calendar.") from None


def _grams(text: str | None, where: str) -> float:
    try:
        grams = float(text or "")
    except ValueError:
        raise ConfigError(f"{where}: grams_per_kwh {text!r} is not a number; leave out unknown hours.") from None
    if not math.isfinite(grams) or grams < 0:
        raise ConfigError(f"{where}: grams_per_kwh {text!r} must be a finite number from 0 upwards.")
    return grams


def _follows(time: datetime, before: list[datetime], where: str) -> None:
    """Raise unless `time` is one step after the last."""
    if time <= before[-1]:
        raise ConfigError(f"{where}: {time.isoformat()} is not after {before[-1].isoformat()}; sort the rows by time.")
    if len(before) == 1 and time - before[0] > _LONGEST_STEP:
        raise ConfigError(f"{where}: rows are {time - before[0]} apart; an hourly series has steps of at most a day.")
    if len(before) > 1 and (due := before[-1] + (before[1] - before[0])) != time:
        raise ConfigError(
            f"{where}: {time.isoformat()}, where {due.isoformat()} is expected (rows are "
            f"{before[1] - before[0]} apart): the series has a gap. Give every row, or a file for each whole stretch."
        )


def intensity_at(series: IntensitySeries, time: datetime) -> float | None:
    """Grams CO2e per kWh at a time with an offset.

    Returns None outside the series.

    Raises:
        ValueError: `time` has no offset.
    """
    place = (_utc(time) - series.start) // series.step
    return series.grams_per_kwh[place] if 0 <= place < len(series.grams_per_kwh) else None


def mean_intensity(series: IntensitySeries, begin: datetime, end: datetime) -> float | None:
    """The mean over a stretch of time, weighted by time.

    For a stretch of no length it is the value at `begin`.

    The result is None where any of the stretch is outside the series. It is meant for steady power: energy in kWh times
    it is grams.

    Raises:
        ValueError: a time has no offset, or `end` is before `begin`.
    """
    begin, end = _utc(begin), _utc(end)
    if end < begin:
        raise ValueError(f"{end.isoformat()} is before {begin.isoformat()}")
    if begin == end:
        return intensity_at(series, begin)
    if begin < series.start or end > series.end:
        return None
    first, last = (begin - series.start) // series.step, -((series.start - end) // series.step)
    total = 0.0
    for place in range(first, last):
        starts = series.start + place * series.step
        inside = min(end, starts + series.step) - max(begin, starts)
        total += series.grams_per_kwh[place] * inside.total_seconds()
    return total / (end - begin).total_seconds()


def _utc(time: datetime) -> datetime:
    if time.utcoffset() is None:
        raise ValueError(f"{time.isoformat()} has no offset from UTC")
    return time.astimezone(UTC)
