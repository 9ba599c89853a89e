"""Differences between groups that stand out.

A row stands out when it was tested, its q is below 0.05, and its whole 95 % interval lies on one side of what "no
difference" would be: 1 for a ratio, 0 for a gap. A row without a p was not tested: it shows a number and is no finding.
Shares have no such value: they say who is there, and nobody here knows who should be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from governance.checks.bias import findings

NEUTRAL = {
    "npmi_gap": 0.0,
    "sentiment_gap": 0.0,
    "toxicity_ratio": 1.0,
    "keep_ratio": 1.0,
    "keep_ratio_adjusted": 1.0,
    "premium": 1.0,
    "instrument_bias": 0.0,
}
"""Metric -> what it is where groups do not differ."""
FOUR_FIFTHS = 0.8
LEVEL = 0.05
"""Below this q a tested row may stand out."""
SUITES = ("impact", "tone", "association", "intersections", "parity", "instruments")
"""Suites of which rows can stand out, the gravest first."""


def standing_out(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by suite whose interval excludes equality, farthest first.

    Of keep rates only the adjusted ones, and only groups that are kept less often: a raw ratio mostly says that sources
    differ, and being kept more often is no harm.
    """
    found = {}
    for suite in SUITES:
        rows = [row for row in tables.get(suite, ()) if stands_out(row)]
        if suite == "impact":
            rows = [row for row in rows if row["metric"] == "keep_ratio_adjusted" and row["upper"] < 1]
        if rows:
            found[suite] = sorted(rows, key=lambda row: (-_distance(row), _order(row)))
    return found


def stands_out(row: Mapping[str, Any]) -> bool:
    """Its interval leaves out "no difference", and the test says so too."""
    if row["metric"] in findings.NEUTRAL:
        return findings.stands_out(row)
    neutral, note = NEUTRAL.get(row["metric"]), str(row["note"] or "")
    if row["metric"] == "instrument_bias":  # the check has its own bounds, of a group and of a single term
        return note.startswith("biased")
    if neutral is None or None in (row["lower"], row["upper"]) or note.startswith("biased instrument"):
        return False
    if row["p"] is None or row["q"] is None or row["q"] >= LEVEL:
        return False
    return bool(row["lower"] > neutral or row["upper"] < neutral)


def _distance(row: Mapping[str, Any]) -> float:
    """Distance of the interval's nearer end from equality."""
    neutral = NEUTRAL[row["metric"]]
    if row["metric"] == "instrument_bias":
        return abs(float(row["value"]))
    near = row["lower"] if row["lower"] > neutral else row["upper"]
    if neutral == 1.0:
        return abs(math.log(max(near, 1e-9)))
    return abs(float(near))


def _place(row: Mapping[str, Any]) -> str:
    named = (row[name] for name in ("stage", "instrument", "language", "axis", "group", "against"))
    return " · ".join(str(value) for value in named if value)


def _order(row: Mapping[str, Any]) -> str:
    named = (row[name] for name in ("stage", "instrument", "language", "axis", "group", "against"))
    return " · ".join(str(value) for value in named if value)
