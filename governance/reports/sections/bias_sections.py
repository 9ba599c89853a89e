"""Significant differences between groups.

A row is significant when it was tested, its q is below 0.05, and its whole 95 % interval is on one side of "no
difference": 1 for a ratio, 0 for a gap. A row without a p was not tested and is not a finding. Shares describe the
corpus; there is no value that they should have, so they are never tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from governance.checks.bias import findings
from governance.checks.bias.interval_rows import ALL

NEUTRAL = {**findings.NEUTRAL, "keep_ratio": 1.0, "premium": 1.0, "instrument_bias": 0.0}
"""Metric -> its value when groups do not differ."""
FOUR_FIFTHS = 0.8
SUITES = ("impact", "tone", "association", "intersections", "parity", "instruments")
"""Suites with tested rows, the most serious first."""


def significant_rows(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Significant rows by suite, those that concern the most text first (`extent`).

    Keep rates count only where adjusted and only for groups kept less often: a raw ratio mostly shows that sources
    differ, and being kept more often does no harm. A difference that several rows state is one row.
    """
    found = {}
    for suite in SUITES:
        rows = [row for row in tables.get(suite, ()) if is_significant(row)]
        if suite == "impact":
            rows = [row for row in rows if row["metric"] == "keep_ratio_adjusted" and row["upper"] < 1]
        if rows:
            found[suite] = _distinct(sorted(rows, key=lambda row: (-extent(row), -distance(row), _order(row))))
    return found


def _distinct(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Drop rows that repeat another.

    The only filter that removed a group's documents has the ratio of all filters, which stays; and a group that one
    language alone mentions has the same row for all languages, where the language stays.
    """
    seen: set[tuple[Any, ...]] = set()
    kept = set()
    for place in sorted(range(len(rows)), key=lambda at: (rows[at]["language"] == ALL, rows[at]["stage"] != ALL)):
        row = rows[place]
        names = tuple(row[name] for name in ("metric", "instrument", "axis", "group", "against"))
        one = (*names, row["language"], row["value"])
        pooled = (*names, *(row[name] for name in ("value", "lower", "upper", "n")))
        if one not in seen and not (row["language"] == ALL and pooled in seen):
            kept.add(place)
        seen |= {one, pooled}
    return [row for place, row in enumerate(rows) if place in kept]


def is_significant(row: Mapping[str, Any]) -> bool:
    """Return whether test and interval both exclude "no difference"."""
    if row["metric"] == "instrument_bias" and not str(row["note"] or "").startswith("biased"):
        return False  # the check has its own bounds
    return findings.is_significant(row, NEUTRAL)


def distance(row: Mapping[str, Any]) -> float:
    """Distance of the interval's nearer end from equality.

    It is 0 where the interval contains equality or is unknown.
    """
    if row["metric"] == "instrument_bias":
        return abs(float(row["value"] or 0.0))
    neutral, lower, upper = NEUTRAL.get(row["metric"]), row["lower"], row["upper"]
    if neutral is None or lower is None or upper is None or lower <= neutral <= upper:
        return 0.0
    near = lower if lower > neutral else upper
    if neutral == 1.0:
        return abs(math.log(max(near, 1e-9)))
    return abs(float(near))


def extent(row: Mapping[str, Any]) -> float:
    """The least size of a difference (`distance`) times its n.

    A difference of ten sentences is large by chance more often than one of ten thousand, and concerns less text.
    """
    return distance(row) * (row["n"] or 0)


def _order(row: Mapping[str, Any]) -> str:
    named = (row[name] for name in ("stage", "instrument", "language", "axis", "group", "against"))
    return " · ".join(str(value) for value in named if value)
