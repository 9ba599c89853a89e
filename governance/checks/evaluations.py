"""Evaluations: GX class, broken rows and wording of each expectation.

What an expectation needs of a gate is in `governance/gate/gate_expectations.py`. Intervals and expectations by GX's own
names have evaluations of their own (`interval_rules.py`, `gx/named_expectations.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from governance.checks.judgeable import anchored, limits, number, shown
from governance.gate.explanation import counted
from governance.gate.gate_expectations import Expectation
from governance.gate.policy import Gate

if TYPE_CHECKING:
    import pandas as pd

Observed = tuple[float | str | None, str]
"""Observed value, and the result as text."""


@dataclass(frozen=True)
class RowEvaluation:
    """An expectation of each value in a column."""

    gx_class: str
    sentence: Callable[[Gate], str]
    """Verb phrase of a value that fulfils it."""
    broken: Callable[[Gate, pd.Series], pd.Series]
    """Values that do not, for display; a missing one counts only where the expectation judges missing values."""
    extra: Callable[[Gate], dict[str, Any]] = lambda gate: {}
    """Arguments of the class beyond `column` and `mostly`."""

    def arguments(self, gate: Gate) -> dict[str, Any]:
        """Arguments of the class."""
        return {"column": gate.column, "mostly": gate.mostly, **self.extra(gate)}


@dataclass(frozen=True)
class TableEvaluation:
    """An expectation of a statistic, or of the table itself."""

    gx_class: str
    arguments: Callable[[Gate], dict[str, Any]]
    observe: Callable[[Gate, pd.DataFrame, Mapping[str, Any]], Observed]
    """From the gate, its table and GX's result."""


def _bounds(gate: Gate) -> dict[str, Any]:
    return {"min_value": gate.min, "max_value": gate.max}


def _beyond_bounds(gate: Gate, column: pd.Series) -> pd.Series:
    below = column < gate.min if gate.min is not None else False
    return below | (column > gate.max if gate.max is not None else False)


def _quantile(gate: Gate, table: pd.DataFrame, content: Mapping[str, Any]) -> Observed:
    value = number(content["observed_value"]["values"][0])
    return value, f"quantile {gate.quantile:g} of {gate.column} {shown(value)}, required {limits(gate)}"


def _mean(gate: Gate, table: pd.DataFrame, content: Mapping[str, Any]) -> Observed:
    mean = number(content["observed_value"])
    return mean, f"mean of {gate.column} {shown(mean)}, required {limits(gate)}"


def _row_count(gate: Gate, table: pd.DataFrame, content: Mapping[str, Any]) -> Observed:
    return len(table), f"{len(table)} rows, required {limits(gate)}"


def _columns(gate: Gate, table: pd.DataFrame, content: Mapping[str, Any]) -> Observed:
    absent = ", ".join(sorted(set(gate.values) - set(map(str, table.columns))))
    return absent or None, f"missing columns: {absent or 'none'}"


EVALUATIONS: Mapping[Expectation, RowEvaluation | TableEvaluation] = {
    "between": RowEvaluation(
        "ExpectColumnValuesToBeBetween", lambda gate: f"is {limits(gate)}", _beyond_bounds, _bounds
    ),
    "not_null": RowEvaluation(
        "ExpectColumnValuesToNotBeNull", lambda gate: "has a value", lambda gate, column: column.isna()
    ),
    "in_set": RowEvaluation(
        "ExpectColumnValuesToBeInSet",
        lambda gate: f"is one of {counted(len(gate.values), 'allowed value')}",
        lambda gate, column: ~column.isin(list(gate.values)),
        lambda gate: {"value_set": list(gate.values)},
    ),
    "unique": RowEvaluation(
        "ExpectColumnValuesToBeUnique", lambda gate: "is unique", lambda gate, column: column.duplicated(keep=False)
    ),
    "match_regex": RowEvaluation(
        "ExpectColumnValuesToMatchRegex",
        lambda gate: f"matches /{gate.regex}/",
        lambda gate, column: ~column.astype("string").str.contains(anchored(gate.regex), regex=True).fillna(True),
        lambda gate: {"regex": anchored(gate.regex)},
    ),
    "mean_between": TableEvaluation(
        "ExpectColumnMeanToBeBetween", lambda gate: {"column": gate.column, **_bounds(gate)}, _mean
    ),
    "quantile_between": TableEvaluation(
        "ExpectColumnQuantileValuesToBeBetween",
        lambda gate: {
            "column": gate.column,
            "quantile_ranges": {"quantiles": [gate.quantile], "value_ranges": [[gate.min, gate.max]]},
        },
        _quantile,
    ),
    "row_count_between": TableEvaluation(
        "ExpectTableRowCountToBeBetween",
        lambda gate: {
            "min_value": None if gate.min is None else math.ceil(gate.min),
            "max_value": None if gate.max is None else math.floor(gate.max),
        },
        _row_count,
    ),
    "columns_present": TableEvaluation(
        "ExpectTableColumnsToMatchSet", lambda gate: {"column_set": list(gate.values), "exact_match": False}, _columns
    ),
}
