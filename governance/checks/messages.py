"""Messages of check results: observed value, threshold, first failing rows.

Messages are equal on every machine: numbers have 12 significant digits, rows the table's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from governance.checks.interval_rules import NUMBER, Judged, judge
from governance.checks.judgeable import EXACT, anchored, exactly
from governance.gate.policy import Gate

if TYPE_CHECKING:
    import pandas as pd

_LABELS = ("metric", "stage", "source", "language", "axis", "group", "against", "instrument", "id")
"""Columns that name a row for the reader."""
_SHOWN = 3  # offending rows that a detail names


def rows_where(table: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    """Rows whose columns have these values; "" is a missing one."""
    for name, value in where.items():
        column = table[name]
        table = table[column.eq(value).fillna(False) | (column.isna() if value == "" else False)]
    return table.reset_index(drop=True)


def offending_rows(gate: Gate, table: pd.DataFrame) -> list[int]:
    """Positions of rows that break a gate, in table order.

    For display only; the engine's own result decides.
    """
    kind = gate.expectation
    if kind == "interval_between":
        return sorted(judge(table, gate.rule, (gate.min, gate.max), gate.min_n).places)
    if kind not in ("between", "not_null", "in_set", "unique", "match_regex"):
        return []
    column = exactly(table[[gate.column]])[gate.column]
    if kind == "not_null":
        broken = column.isna()
    elif kind == "in_set":
        broken = ~column.isin(list(gate.values))
    elif kind == "unique":
        broken = column.duplicated(keep=False)
    elif kind == "match_regex":
        broken = ~column.astype("string").str.contains(anchored(gate.regex), regex=True).fillna(True)
    else:
        below = column < gate.min if gate.min is not None else False
        broken = below | (column > gate.max if gate.max is not None else False)
    if kind != "not_null":
        broken = broken & column.notna()
    return [int(place) for place in table.index[broken.astype(bool)]]


def row_text(gate: Gate, table: pd.DataFrame, place: int) -> str:
    """One row as text: labels and compared value."""
    if gate.expectation == "interval_between":
        return _interval(gate, table, place)
    name, value = label(gate, table, place), table.at[place, gate.column]
    text = shown(value) if isinstance(value, Real) else repr(str(value)[:60])
    return f"{name}: {text}" if name else text


def describe(
    gate: Gate, table: pd.DataFrame, content: Mapping[str, Any], unexpected: int, values: int
) -> tuple[float | str | None, str]:
    """Observed number, and the result as text with the threshold."""
    kind, bounds = gate.expectation, limits(gate)
    if kind == "row_count_between":
        return len(table), f"{len(table)} rows, required {bounds}"
    if kind == "columns_present":
        absent = sorted(set(gate.values) - set(map(str, table.columns)))
        return (", ".join(absent) or None), f"missing columns: {', '.join(absent) or 'none'}"
    if kind == "mean_between":
        mean = number(content["observed_value"])
        return mean, f"mean of {gate.column} {shown(mean)}, required {bounds}"
    if kind == "quantile_between":
        value = number(content["observed_value"]["values"][0])
        return value, f"quantile {gate.quantile:g} of {gate.column} {shown(value)}, required {bounds}"
    share = number(1 - unexpected / values)
    observed = _worst(gate, table) if kind == "between" and gate.mostly == 1 else share
    constraint = {"between": bounds, "in_set": f"one of {len(gate.values)} value(s)", "match_regex": f"/{gate.regex}/"}
    detail = (
        f"{gate.column}: {values - unexpected} of {values} rows satisfy {kind}"
        f"{' ' + constraint[kind] if kind in constraint else ''}, required share {gate.mostly:g}"
    )
    if kind == "between":
        detail += f"; worst {shown(_worst(gate, table))}"
    offenders = _offenders(gate, table, content) if unexpected else ""
    return observed, f"{detail}; for example {offenders}" if offenders else detail


def _worst(gate: Gate, table: pd.DataFrame) -> float | None:
    """Value furthest beyond a limit, or nearest to one."""
    column = table[gate.column]
    least, greatest = number(column.min()), number(column.max())
    if gate.max is None or least is None or greatest is None:
        return least
    return least if gate.min is not None and gate.min - least > greatest - gate.max else greatest


def _offenders(gate: Gate, table: pd.DataFrame, content: Mapping[str, Any]) -> str:
    """First values that break the gate, with their row names."""
    seen = []
    for value in content.get("partial_unexpected_list") or ():
        if value not in seen:
            seen.append(value)
    if gate.expectation == "not_null":
        places = table.index[table[gate.column].isna()][:_SHOWN]
        return ", ".join(filter(None, (label(gate, table, place) for place in places)))
    lines = []
    for value in seen[:_SHOWN]:
        name = label(gate, table, (table[gate.column] == value).idxmax())
        text = shown(value) if isinstance(value, Real) else repr(str(value)[:60])
        lines.append(f"{name}: {text}" if name else text)
    return ", ".join(lines)


def label(gate: Gate, table: pd.DataFrame, place: Any) -> str:
    """Labels of a row, if any."""
    names = [name for name in _LABELS if name in table.columns and name != gate.column]
    values = [table.at[place, name] for name in names]
    return "/".join(str(value) for value in values if value is not None and value == value)


def describe_intervals(gate: Gate, table: pd.DataFrame, found: Judged) -> tuple[float | None, str]:
    """Worst compared number, and the result as text."""
    column = NUMBER[gate.rule]
    lines = [
        f"{found.judged - found.outside} of {found.judged} judged rows have {column} {limits(gate)},"
        f" required share {gate.mostly:g}"
    ]
    if found.worst is not None:
        lines.append(f"worst {shown(number(found.worst))}")
    if found.instruments:
        lines.append(f"{found.biased} row(s) measured by a biased instrument: {', '.join(found.instruments)}")
    if found.thin:
        lines.append(f"{found.thin} row(s) have fewer than {gate.min_n} units, or an unknown number")
    if found.bare:
        lines.append(f"{found.bare} row(s) have no {'interval' if gate.rule == 'whole_ci' else column}")
    if found.cut:
        named = ", ".join(_with_note(gate, table, place) for place in found.cut_places[:_SHOWN])
        lines.append(f"{found.cut} interval(s) contain a bound: {named}")
    if found.places:
        lines.append("for example " + ", ".join(_interval(gate, table, place) for place in found.places[:_SHOWN]))
    return (None if found.worst is None else number(found.worst)), "; ".join(lines)


def _interval(gate: Gate, table: pd.DataFrame, place: int) -> str:
    value, lower, upper, count = (number(table.at[place, name]) for name in ("value", "lower", "upper", "n"))
    name = label(gate, table, place)
    text = f"{shown(value)} [{shown(lower)}, {shown(upper)}], n {shown(count)}"
    return f"{name}: {text}" if name else text


def _with_note(gate: Gate, table: pd.DataFrame, place: int) -> str:
    note = table.at[place, "note"] if "note" in table.columns else None
    text = _interval(gate, table, place)
    return f"{text} ({note})" if isinstance(note, str) and note else text


def limits(gate: Gate) -> str:
    """Bounds as text."""
    low = "" if gate.min is None else f"at least {gate.min:g}"
    high = "" if gate.max is None else f"at most {gate.max:g}"
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
