r"""Preconditions of an expectation on a table, and column conversion.

Promise: the engine's input has the meaning that the policy gives it. Great Expectations stores every bound as a 64-bit
float and pandas compares an integer column with it after rounding, so that 2^53 + 1 is "at most 2^53"; a mean or a
quantile of such integers is rounded too. Python's `$` matches before a final line feed, so `^a+$` finds "a\n".

Numbers and bounds of results are texts that are equal on every machine.
"""

from __future__ import annotations

import difflib
import math
import re
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from governance.checks.interval_rules import COLUMNS
from governance.gate.gate_expectations import NEEDS, bound_text
from governance.gate.licence_choices import widened
from governance.gate.policy import Gate

if TYPE_CHECKING:
    import pandas as pd

EXACT = 2**53
"""Integers up to here are exact as 64-bit floats."""
_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$", re.DOTALL)
_BY_LINE = re.compile(r"\(\?[aiLsux]*m")


def unjudgeable(gate: Gate, table: pd.DataFrame) -> str:
    """Reason why a gate cannot be evaluated; "" for none."""
    kind = gate.expectation
    if kind not in NEEDS:
        return f"unknown expectation {kind!r}; known are {', '.join(sorted(NEEDS))}"
    needs = NEEDS[kind]
    if reason := _without_constraint(gate):
        return reason
    if needs.judges == "table":
        return ""
    for name in COLUMNS if needs.judges == "intervals" else (gate.column,):
        if reason := not_one_column(name, table):
            return reason
    return _not_exact(gate, table[gate.column]) if needs.numbers else ""


def with_choices(gate: Gate, table: pd.DataFrame) -> Gate:
    """The gate, wider by the expressions that its licences meet."""
    if (gate.suite, gate.expectation, gate.column) != ("licences", "in_set", "licence"):
        return gate
    if not_one_column("licence", table):
        return gate
    found = table["licence"].dropna()
    return gate.model_copy(update={"values": widened(gate.values, map(str, found))})


def not_one_column(name: str, table: pd.DataFrame) -> str:
    """Reason why a table lacks exactly this column, or "".

    It names the nearest column and all others.
    """
    names = list(map(str, table.columns))
    if (found := names.count(name)) == 1:
        return ""
    if found:
        return f"column {name!r} occurs {found} times in the table; its columns are {columns(table)}"
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? Its" if near else "its"
    return f"column {name!r} is not in the table; {hint} columns are {columns(table)}"


def columns(table: pd.DataFrame) -> str:
    """The names of a table's columns, sorted."""
    return ", ".join(sorted(map(str, table.columns)))


def _without_constraint(gate: Gate) -> str:
    """Reason if a gate has no constraint; "" otherwise."""
    kind, needs = gate.expectation, NEEDS[gate.expectation]
    if needs.bounds and gate.min is None and gate.max is None:
        return f"{kind} without min or max has no constraint"
    if needs.field and getattr(gate, needs.field) in (None, "", ()):
        return f"{kind} without {needs.field} has no constraint"
    if not 0 < gate.mostly <= 1:
        return f"mostly = {gate.mostly:g} is not a share of rows above 0"
    return ""


def _not_exact(gate: Gate, column: pd.Series) -> str:
    """Reason if values cannot be compared exactly: infinite ones, or rounded integers."""
    if infinite := infinite_values(column):
        return f"column {gate.column!r} contains {infinite} infinite value(s)"
    if NEEDS[gate.expectation].numbers == "computed" and beyond_exact(column):
        return f"column {gate.column!r} contains integers beyond 2^53: {gate.expectation} would round them"
    return ""


def infinite_values(column: pd.Series) -> int:
    """Number of infinite values, of any type."""
    import numpy as np

    if column.dtype.kind == "f":
        return int(np.isinf(column.to_numpy(dtype="float64", na_value=np.nan)).sum())
    if column.dtype.kind != "O":
        return 0
    return sum(_is_infinite(value) for value in column)


def _is_infinite(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value.is_infinite()
    return isinstance(value, Real) and not isinstance(value, Integral) and math.isinf(value)


def beyond_exact(column: pd.Series) -> bool:
    """Return whether a column has integers that float64 rounds."""
    if column.dtype.kind in "iu":
        values = column.dropna()
        return len(values) > 0 and (int(values.min()) < -EXACT or int(values.max()) > EXACT)
    return column.dtype.kind == "O" and any(isinstance(item, Integral) and abs(int(item)) > EXACT for item in column)


def exactly(table: pd.DataFrame) -> pd.DataFrame:
    """The table with integers beyond 2^53 as exact Python integers."""
    wide = [name for name in table.columns if table[name].ndim == 1 and table[name].dtype.kind in "iu"]
    rounded = [name for name in wide if beyond_exact(table[name])]
    return table.astype(dict.fromkeys(rounded, object)) if rounded else table  # pandas makes every column again


def values_of(gate: Gate, table: pd.DataFrame) -> int:
    """Number of judgeable values: non-missing ones of the column, or all rows."""
    needs = NEEDS[gate.expectation]
    if needs.judges == "table":
        return max(1, len(table))  # an empty table also has a row count and columns
    if needs.missing or needs.judges == "intervals":
        return len(table)
    return int(table[gate.column].notna().sum())


def anchored(regex: str) -> str:
    r"""A regular expression whose `$` is the end of the text (`\Z`).

    A multi-line one (`(?m)`) is unchanged.
    """
    if _BY_LINE.search(regex):
        return regex
    return _TOKENS.sub(lambda found: r"\Z" if found[0] == "$" else found[0], regex)


def limits(gate: Gate) -> str:
    """Bounds as text."""
    low = "" if gate.min is None else f"at least {bound_text(gate.min)}"
    high = "" if gate.max is None else f"at most {bound_text(gate.max)}"
    return " and ".join(filter(None, (low, high)))


def number(value: Any) -> float | None:
    """A float of 12 significant digits, equal on all processors."""
    if value is None:
        return None
    try:
        plain = float(value)
    except OverflowError:  # an integer beyond the range of floats
        return None
    return float(f"{plain:.12g}") if math.isfinite(plain) else None


def shown(value: Real | float | None) -> str:
    """A number as text; integers that a float would round are exact."""
    if isinstance(value, Integral) and abs(int(value)) > EXACT:
        return str(value)
    return "none" if value is None else f"{float(value):.6g}"
