"""Messages of check results: observed value, threshold, first failing rows.

Messages are equal on every machine: numbers have 12 significant digits, rows the table's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from governance.checks.evaluations import EVALUATIONS, RowEvaluation, TableEvaluation
from governance.checks.interval_rules import Judged, judge_intervals
from governance.checks.judgeable import exactly, limits, number, shown, with_choices
from governance.gate.explanation import IN_CORPUS, counted
from governance.gate.gate_expectations import NEEDS, bound_text
from governance.gate.policy import Gate

if TYPE_CHECKING:
    import pandas as pd

_LABELS = ("metric", "stage", "type", "source", "language", "axis", "group", "against", "instrument", "id")
"""Columns that name a row for the reader."""
_TOTAL = "(all)"
"""Label of a row that sums up others, which say more."""
EXPLAINED = {"quarantined_share": "quarantined_records"}
"""Judged column -> the column that explains its value, where the table has one."""
_COMPARED = {
    "point": "the value",
    "lower_ci": "the lower end of the interval",
    "upper_ci": "the upper end of the interval",
    "whole_ci": "the whole interval",
}
_SHOWN = 3  # offending rows that a detail names


def rows_where(table: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    """Rows whose columns have these values; "" is a missing one."""
    import numpy as np

    chosen = np.full(len(table), True)
    for name, value in where.items():
        column = table[name]
        chosen &= (column.eq(value).fillna(False) | (column.isna() if value == "" else False)).to_numpy(dtype=bool)
    return table[chosen].reset_index(drop=True) if where else table


def where_words(where: Mapping[str, str]) -> str:
    """The rows that a gate judges, in words; "" for all."""
    words = " and ".join(f"{name} = {value or '(missing)'}" for name, value in sorted(where.items()))
    return f" where {words}" if words else ""


def offending_rows(gate: Gate, table: pd.DataFrame) -> list[int]:
    """Positions of rows that break a gate, in table order.

    For display only; the engine's own result decides.
    """
    needs, evaluation = NEEDS[gate.expectation], EVALUATIONS.get(gate.expectation)
    if needs.judges == "intervals":
        return sorted(judge_intervals(table, gate.rule, (gate.min, gate.max), gate.min_n).places)
    if not isinstance(evaluation, RowEvaluation):
        return []
    column = exactly(table[[gate.column]])[gate.column]
    broken = evaluation.broken(with_choices(gate, table), column)
    if not needs.missing:
        broken = broken & column.notna()
    return [int(place) for place in table.index[broken.astype(bool)]]


def row_text(gate: Gate, table: pd.DataFrame, place: int) -> str:
    """One row as text: labels and compared value."""
    if NEEDS[gate.expectation].judges == "intervals":
        return _interval(gate, table, place)
    name, value = label(gate, table, place), table.at[place, gate.column]
    text = shown(value) if isinstance(value, Real) else repr(str(value)[:60])
    return f"{name}: {text}" if name else text


def describe(
    gate: Gate, table: pd.DataFrame, content: Mapping[str, Any], unexpected: int, values: int
) -> tuple[float | str | None, str]:
    """Observed number, and the result as text with the threshold."""
    evaluation = EVALUATIONS[gate.expectation]
    if isinstance(evaluation, TableEvaluation):
        return evaluation.observe(gate, table, content)
    of_numbers = NEEDS[gate.expectation].observes == "number"
    observed = _worst(gate, table) if of_numbers and gate.mostly == 1 else number(1 - unexpected / values)
    if (
        unexpected
        and NEEDS[gate.expectation].allows_values
        and gate.column == "licence"
        and {"source", "documents"} <= set(table.columns)
    ):
        return observed, _refused_licences(table.iloc[offending_rows(gate, table)])
    fulfilled = f"in {values - unexpected} of {counted(values, 'row')}"
    detail = f"{gate.column} {evaluation.sentence(gate)} {fulfilled}, {_required(gate)}"
    if of_numbers:
        detail += f"; worst {shown(_worst(gate, table))}"
    offenders = _offenders(gate, table, content) if unexpected else ""
    return observed, f"{detail}; for example {offenders}" if offenders else detail


def _required(gate: Gate) -> str:
    share = float(f"{100 * gate.mostly:.12g}")  # 100 * 0.07 is 7.000000000000001
    return "required in all" if gate.mostly == 1 else f"required in {bound_text(share)} %"


def _refused_licences(rows: pd.DataFrame) -> str:
    """A sentence: documents, source and licence of rows of the suite `licences`."""
    several = sorted(rows.to_dict("records"), key=lambda row: (-row["documents"], row["source"], row["licence"]))
    parts = []
    for row in several[:_SHOWN]:
        verb = "is" if row["documents"] == 1 else "are"
        documents = counted(row["documents"], "document")
        parts.append(f"{documents} of source {row['source']} {verb} {IN_CORPUS} {row['licence']}")
    more = f" and {counted(len(several) - _SHOWN, 'more source')}" if len(several) > _SHOWN else ""
    return f"{', '.join(parts)}{more}, which the policy does not allow"


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
    if NEEDS[gate.expectation].missing:
        places = table.index[table[gate.column].isna()][:_SHOWN]
        return ", ".join(filter(None, (label(gate, table, place) for place in places)))
    found = [(_place_of(gate, table, value), value) for value in seen]
    parts = [(place, value) for place, value in found if not _is_total(gate, table, place)]
    lines = []
    for place, value in (parts or found)[:_SHOWN]:
        name = label(gate, table, place)
        text = shown(value) if isinstance(value, Real) else repr(str(value)[:60])
        note = table.at[place, EXPLAINED[gate.column]] if EXPLAINED.get(gate.column) in table.columns else ""
        text = f"{text} ({note})" if note else text
        lines.append(f"{name}: {text}" if name else text)
    return ", ".join(lines)


def _place_of(gate: Gate, table: pd.DataFrame, value: Any) -> Any:
    """First row with a value.

    It is a total's only where no other row has the value.
    """
    same = table[gate.column] == value
    return next((place for place in table.index[same] if not _is_total(gate, table, place)), same.idxmax())


def _is_total(gate: Gate, table: pd.DataFrame, place: Any) -> bool:
    return _TOTAL in label(gate, table, place).split("/")


def label(gate: Gate, table: pd.DataFrame, place: Any) -> str:
    """Labels of a row, if any."""
    names = [name for name in _LABELS if name in table.columns and name != gate.column]
    values = [table.at[place, name] for name in names]
    return "/".join(str(value) for value in values if value is not None and value == value)


def describe_intervals(gate: Gate, table: pd.DataFrame, found: Judged) -> tuple[float | None, str]:
    """Worst compared number, and the result as text."""
    lines = []
    if found.judged:
        could = "" if found.judged == found.rows else " that could be judged"
        rows = counted(found.judged, "row")
        lines.append(
            f"{_COMPARED[gate.rule]} is {limits(gate)} in {found.judged - found.outside} of {rows}{could}, "
            f"{_required(gate)}"
        )
    if found.worst is not None:
        lines.append(f"worst {shown(number(found.worst))}")
    if found.instruments:
        lines.append(f"{counted(found.biased, 'row')} measured by a biased instrument: {', '.join(found.instruments)}")
    if found.thin:
        lines.append(
            f"{counted(found.thin, 'row')} with fewer than {counted(gate.min_n, 'unit')}, or an unknown number"
        )
    if found.bare:
        lines.append(
            f"{counted(found.bare, 'row')} without {'an interval' if gate.rule == 'whole_ci' else _COMPARED[gate.rule]}"
        )
    if found.cut:
        named = ", ".join(_with_note(gate, table, place) for place in found.cut_places[:_SHOWN])
        lines.append(f"{counted(found.cut, 'interval')} on both sides of a bound: {named}")
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
