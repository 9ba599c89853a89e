"""Interval rules: rows inside, outside or undecidable for a gate's bounds.

A row is an estimate: `value` with its 95 % interval [`lower`, `upper`], based on `n` units. The rule selects which of
these is compared with the bounds: `upper_ci` with a minimum fails only if the whole interval is below it (surely bad),
`lower_ci` with the same minimum unless the whole interval is above it (surely good).
`whole_ci` compares both ends: an interval within the bounds is kept, one beyond them is outside, one that a bound cuts
is not judged. Promise: a row is kept, outside, or not judged, and the three add up. Not judged, in this order:

    biased   its `note` begins "biased instrument": the instrument that measured it cannot decide
    thin     `n` is missing or below the gate's
    bare     a compared number is missing
    cut      a bound is within the interval (`whole_ci`)

Impossible numbers (infinite, lower above upper, a value outside its own interval) raise. The module needs no engine, so
tests compare it with a plain loop, and the expectation with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from governance.gate.policy import Rule

if TYPE_CHECKING:
    import pandas as pd

COLUMNS, NOTE = ("value", "lower", "upper", "n"), "note"
NUMBER: dict[str, str] = {"point": "value", "lower_ci": "lower", "upper_ci": "upper", "whole_ci": "value"}
"""Rule -> the compared column; for `whole_ci` the displayed one."""
BIASED = "biased instrument"
_UNNAMED = "(unnamed)"
_SLACK = 1e-9  # relative: an end is rounded by itself, and an interval may be as narrow as its value


@dataclass(frozen=True)
class Judged:
    """Rows of a table by outcome under one gate."""

    rows: int
    outside: int
    """Rows that break a bound."""
    biased: int
    thin: int
    bare: int
    cut: int
    cut_places: tuple[int, ...]
    """Positions of the rows that a bound cuts, in the table's order."""
    instruments: tuple[str, ...]
    """The biased instruments, by name, sorted."""
    worst: float | None
    """The compared number furthest beyond a bound, or nearest to one when all keep it."""
    places: tuple[int, ...]
    """Positions of the rows outside, the furthest first."""

    @property
    def judged(self) -> int:
        """Rows that could be judged."""
        return self.rows - self.biased - self.thin - self.bare - self.cut

    def kept(self, mostly: float) -> bool:
        """Return whether rows were judged, and enough of them are inside."""
        return self.judged > 0 and self.outside <= (1 - mostly) * self.judged + 1e-9

    def missing_too_many(self, max_missing: float) -> bool:
        """Return whether a greater share of the rows could not be judged."""
        return self.rows - self.judged > max_missing * self.rows + 1e-9


def judge_intervals(table: pd.DataFrame, rule: Rule, limits: tuple[float | None, float | None], min_n: int) -> Judged:
    """Compare each interval with a minimum, a maximum or both.

    Args:
        table: columns `value, lower, upper, n`, and `note` if any row has one; missing is None or NaN.
        rule: the compared number.
        limits: minimum and maximum; None for no limit.
        min_n: a row with fewer units is not judged.

    Raises:
        ValueError: a number is infinite, an interval ends before it begins or does not hold its own value, or a
            column holds no numbers.
    """
    import numpy as np

    numbers = {name: _numbers(table, name) for name in COLUMNS}
    with np.errstate(invalid="ignore"):
        if crossed := int((numbers["lower"] > numbers["upper"]).sum()):
            raise ValueError(f"{crossed} row(s) with a lower end above the upper end")
        slack = _SLACK * np.abs(numbers["value"])
        below, above = numbers["value"] < numbers["lower"] - slack, numbers["value"] > numbers["upper"] + slack
        if astray := int((below | above).sum()):
            raise ValueError(f"{astray} row(s) with a value outside its own interval")
    names = instruments(table)
    biased = np.array([bool(name) for name in names], dtype=bool)
    thin = ~biased & ~(numbers["n"] >= min_n)
    compared = numbers[NUMBER[rule]]
    ends = (numbers["lower"], numbers["upper"]) if rule == "whole_ci" else (compared, compared)
    bare = ~biased & ~thin & (np.isnan(compared) | np.isnan(ends[0]) | np.isnan(ends[1]))
    nearest, furthest = _beyond(ends, limits)
    cut = ~(biased | thin | bare) & (nearest <= 0) & (furthest > 0)
    judged = ~(biased | thin | bare | cut)
    beyond = np.where(judged, nearest, -np.inf)
    order = np.argsort(-beyond, kind="stable")
    outside = int((beyond > 0).sum())
    return Judged(
        rows=len(table),
        outside=outside,
        biased=int(biased.sum()),
        thin=int(thin.sum()),
        bare=int(bare.sum()),
        cut=int(cut.sum()),
        cut_places=tuple(int(place) for place in np.flatnonzero(cut)),
        instruments=tuple(sorted(set(filter(None, names)))),
        worst=float(compared[order[0]]) if judged.any() else None,
        places=tuple(int(place) for place in order[:outside]),
    )


def _numbers(table: pd.DataFrame, name: str) -> Any:
    import numpy as np
    import pandas as pd

    try:
        numbers = pd.to_numeric(table[name]).to_numpy(dtype="float64", na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} contains a value that is not a number ({error})") from error
    if infinite := int(np.isinf(numbers).sum()):
        raise ValueError(f"column {name!r} contains {infinite} infinite value(s)")
    return numbers


def _beyond(ends: tuple[Any, Any], limits: tuple[float | None, float | None]) -> tuple[Any, Any]:
    """Distance of each interval and its worse end beyond a limit."""
    import numpy as np

    (lower, upper), (low, high) = ends, limits
    none = np.full(len(lower), -np.inf)
    whole = np.maximum(none if low is None else low - upper, none if high is None else lower - high)
    worse = np.maximum(none if low is None else low - lower, none if high is None else upper - high)
    return whole, worse


def instruments(table: pd.DataFrame) -> list[str]:
    """The biased instrument named by each row's note; "" for none."""
    if NOTE not in table.columns:
        return [""] * len(table)
    return [_instrument(note) for note in table[NOTE]]


def _instrument(note: Any) -> str:
    if not isinstance(note, str) or not note.startswith(BIASED):
        return ""
    name = note.removeprefix(BIASED).removeprefix(":").partition(";")[0].strip()
    return name or _UNNAMED
