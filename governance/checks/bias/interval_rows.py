"""Rows of bias tables: q values, rounding, order.

    {"metric": "keep_ratio", "language": "en", "axis": "gender", "group": "female", "against": "no group of the axis",
     "stage": "dedup", "instrument": None, "value": 0.91, "lower": 0.85, "upper": 0.97, "n": 1200, "p": 0.004, "q": 0.3,
     "note": None}

Intervals are of 95 %. `n` is the number of units behind the value. None means: not applicable or unknown.
q is the false discovery rate of Benjamini & Hochberg 1995 ("Controlling the False Discovery Rate", Journal of the Royal
Statistical Society B 57(1), 289-300), over all rows of a table that have a p.

Promise: equal counts give equal bytes; numbers are rounded to 9 decimal places, rows are sorted by names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from governance.checks.bias.statistics import Estimates

NAMES = ("metric", "language", "axis", "group", "against", "stage", "instrument")
COLUMNS = (*NAMES, "value", "lower", "upper", "n", "p", "q", "note")
ALL = "(all)"
"""All languages, or all stages, taken together."""
OTHERS = "other groups"
NOBODY = "nobody"
NO_GROUP = "no group of the axis"

Row = dict[str, Any]


def interval_row(names: Mapping[str, str | None], numbers: Mapping[str, Any], note: str | None = None) -> Row:
    """One row: some of NAMES, some of value, lower, upper, n, p.

    Other columns and non-finite numbers are None.
    """
    known = {name: _rounded(number) for name, number in numbers.items()}
    return {**dict.fromkeys(COLUMNS), **names, **known, "note": note or None}


def interval_rows(
    names: Sequence[Mapping[str, str | None]],
    found: Estimates,
    n: Sequence[int] | npt.NDArray[np.int64],
    notes: Sequence[str] = (),
) -> list[Row]:
    """A row for each estimate, in order."""
    rows = []
    for place, name in enumerate(names):
        numbers = {part: float(getattr(found, part)[place]) for part in ("value", "lower", "upper", "p")}
        rows.append(interval_row(name, {**numbers, "n": int(n[place])}, notes[place] if notes else None))
    return rows


def false_discovery_rates(p: Sequence[float]) -> list[float]:
    """False discovery rate of each p, in order."""
    from scipy.stats import false_discovery_control

    return [float(value) for value in false_discovery_control(p)] if p else []


def finished(rows: Sequence[Row]) -> list[Row]:
    """Sort the rows and add q where there is a p."""
    table = sorted((dict(row) for row in rows), key=lambda row: tuple(str(row[name] or "") for name in NAMES))
    tested = [row for row in table if row["p"] is not None]
    for row, q in zip(tested, false_discovery_rates([row["p"] for row in tested]), strict=True):
        row["q"] = _rounded(q)
    return table


def _rounded(value: float | int | None) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return round(value, 9) + 0.0 if math.isfinite(value) else None  # + 0.0: no "-0.0"
