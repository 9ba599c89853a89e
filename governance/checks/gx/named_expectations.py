"""Expectations of Great Expectations by their own names and arguments.

    [[gate]]
    id = "documents.language_code"
    suite = "documents"
    gx = "expect_column_value_lengths_to_be_between"
    kwargs = { column = "language", min_value = 2, max_value = 3, mostly = 0.99 }

Any registered expectation, or a custom class by dotted path (`own_expectations.py`), with GX's arguments. The
gate's `where`, `severity`, `min_rows`, `max_missing` and `why` apply as they do to every gate. GX validates names and
arguments; whatever it refuses or raises becomes an error of the gate, and so do cases in which GX passes an expectation
without a constraint, rounds integers beyond 2^53, or has looked at other rows than the table's. A pass needs an
observed value or counted rows.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from governance.checks.gx.own_expectations import own_class
from governance.checks.judgeable import anchored, beyond_exact, infinite_values, not_one_column, number, shown
from governance.gate.decision import CheckResult, Status
from governance.gate.gate_expectations import bound_text
from governance.gate.policy import Gate

if TYPE_CHECKING:
    import pandas as pd

RESERVED = {
    "id", "meta", "notes", "result_format", "description", "catch_exceptions", "rendered_content", "severity",
    "windows", "batch_id", "row_condition", "condition_parser",
}  # fmt: skip
"""Arguments of GX that a gate has fields for (`where`, `severity`, `why`), or that the audit sets."""
_COLUMNS = ("column", "column_A", "column_B")
_LISTS = ("value_set", "column_set", "column_list", "type_list", "regex_list", "like_pattern_list", "value_pairs_set")
_OF_NULLS = {
    "expect_column_values_to_be_null", "expect_column_values_to_not_be_null",
    "expect_column_proportion_of_non_null_values_to_be_between",
}  # fmt: skip
_EXISTS = "expect_column_to_exist"
_Z_SCORES = "expect_column_value_z_scores_to_be_less_than"
_ANY_TEXT = ("", "(?s).*")  # the second is GX's default
_MAX_CHARACTERS = 200


def build(gate: Gate, index: int) -> Any:
    """Build the gate's expectation.

    Raises:
        ValueError: GX does not know the name or refuses an argument, or there is no constraint.
    """
    from great_expectations.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )

    arguments = dict(gate.kwargs)
    if taken := sorted(set(arguments) & RESERVED):
        raise ValueError(f"kwargs {', '.join(taken)}: use the gate's own fields (`where`, `severity`, `why`)")
    try:
        kind = own_class(gate) if ":" in gate.gx else get_expectation_impl(gate.gx)
    except ExpectationNotFoundError as error:
        near = difflib.get_close_matches(gate.gx, list_registered_expectation_implementations(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Great Expectations has no expectation {gate.gx!r}{hint}") from error
    fields = set(kind.__fields__)
    if gate.column:
        arguments["column"] = gate.column
    if "mostly" in fields:
        arguments.setdefault("mostly", gate.mostly)
    elif gate.mostly != 1:
        raise ValueError(f"{gate.gx} has no argument `mostly`")
    forbids = "not_match" in f"{gate.gx} {getattr(kind, 'map_metric', '')}"
    if not forbids and isinstance(arguments.get("regex"), str):
        arguments["regex"] = anchored(arguments["regex"])
    if not forbids and isinstance(arguments.get("regex_list"), list):
        arguments["regex_list"] = [anchored(str(regex)) for regex in arguments["regex_list"]]
    built = kind(**arguments, meta={"gate": str(index)})
    if reason := _without_constraint({name: getattr(built, name) for name in fields}, forbids):
        raise ValueError(f"{gate.gx} {reason} has no constraint")
    return built


def _without_constraint(fields: Mapping[str, Any], forbids: bool) -> str:
    """Reason why the built expectation holds for every table; "" for none.

    `forbids` states that its patterns are the ones that no value may match.
    """
    mostly = fields.get("mostly", 1)
    if not (isinstance(mostly, (int, float)) and 0 < mostly <= 1):
        return f"with mostly = {mostly}, which is not a share of rows above 0,"
    for name in _LISTS:
        if name in fields and not fields[name]:
            return f"with an empty {name}"
    patterns = [*([fields["regex"]] if "regex" in fields else []), *(fields.get("regex_list") or ())]
    if not forbids and any(pattern in _ANY_TEXT for pattern in patterns):
        return "with a regex that every text matches"
    bounds = ("threshold",) if "threshold" in fields else ("min_value", "max_value")
    if all(name in fields for name in bounds) and all(fields[name] is None for name in bounds):
        return f"without {' or '.join(bounds)}"
    if "quantile_ranges" in fields:
        ranges = dict(fields["quantile_ranges"])
        rows = list(zip(ranges["quantiles"], ranges["value_ranges"], strict=True))
        if not rows or any(all(bound is None for bound in between) for _, between in rows):
            return "with a quantile without bounds"
    return "with column_index = 0, which Great Expectations ignores," if fields.get("column_index") == 0 else ""


def columns_of(gate: Gate) -> list[str]:
    """Columns that the arguments name, if any."""
    named = [gate.column, *(gate.kwargs.get(name) for name in _COLUMNS)]
    several = gate.kwargs.get("column_list")
    return [str(name) for name in (*named, *(several if isinstance(several, list) else ())) if name]


def unjudgeable_values(gate: Gate, table: pd.DataFrame) -> str:
    """Reason why the named columns cannot be judged exactly; "" for none."""
    may_be_absent = ":" in gate.gx or gate.gx == _EXISTS or gate.gx.startswith("expect_table_")
    for name in columns_of(gate):
        found = list(table.columns).count(name)
        if found > 1 or not (found or may_be_absent):
            return not_one_column(name, table)
        if found and (infinite := infinite_values(table[name])):
            return f"column {name!r} contains {infinite} infinite value(s)"
        if found and beyond_exact(table[name]):
            return f"column {name!r} contains integers beyond 2^53: {gate.gx} may round them"
    return ""


def judgeable_values(gate: Gate, table: pd.DataFrame) -> int:
    """Judgeable values: rows with a value in each named column.

    All rows count where no column is named, or where the gate is on nulls or on the columns themselves.
    """
    named = [name for name in columns_of(gate) if name in table.columns]
    if not named or gate.gx in {*_OF_NULLS, _EXISTS} or gate.gx.startswith("expect_table_"):
        return len(table)
    if gate.gx == _Z_SCORES and table[named[0]].nunique() < 2:
        return 0  # no deviation, so no score: GX passes each NaN
    return int(table[named].notna().all(axis=1).sum())


def judged(gate: Gate, subject: str, table: pd.DataFrame, content: Mapping[str, Any], success: Any) -> CheckResult:
    """Result of a gate from GX's own, failing closed."""
    rows, values, unexpected = len(table), judgeable_values(gate, table), int(content.get("unexpected_count") or 0)
    counted, seen = content.get("element_count"), content.get("observed_value")
    several = counted is not None and len(columns_of(gate)) > 1  # GX judges rows with some values missing, too
    judged_rows = int(counted or 0) - int(content.get("missing_count") or 0) if several else values
    observed: float | str | None = None
    if isinstance(seen, Real) and not isinstance(seen, bool):
        observed = number(seen)
    elif counted is not None and judged_rows:
        observed = number(1 - unexpected / judged_rows)
    text = shown(observed) if isinstance(observed, float) else " ".join(str(seen).split())[:_MAX_CHARACTERS]
    detail = (
        f"{gate.gx}: observed {text}"
        if seen is not None
        else f"{judged_rows - unexpected} of {judged_rows} rows fulfil {gate.gx}"
    )
    status: Status = "pass" if bool(success) else "fail"
    if success is None:
        status, detail = "error", f"{gate.gx} returned no verdict"
    elif counted is not None and len(columns_of(gate)) == 1 and counted != rows:
        status, detail = "error", f"{counted} of {rows} rows were evaluated"
    elif min(rows, values) < gate.min_rows:
        status = "inconclusive"
        detail = f"{min(rows, values)} of {rows} rows could be judged, at least {gate.min_rows} must be; {detail}"
    elif status == "pass" and rows and 1 - values / rows > gate.max_missing:
        status = "inconclusive"
        most = bound_text(gate.max_missing)
        detail = f"{1 - values / rows:.4g} of the values are missing, at most {most} may be; {detail}"
    elif status == "pass" and gate.gx != _EXISTS and not _has_evidence(counted, seen):
        status, detail = "inconclusive", f"nothing was observed; {detail}"
    return CheckResult(gate.id, subject, status, observed, rows, unexpected, detail)


def _has_evidence(counted: Any, seen: Any) -> bool:
    """Return whether a pass has counted rows or a finite observed value."""
    if isinstance(seen, Real) and not isinstance(seen, bool):
        return math.isfinite(float(seen))
    return counted is not None or seen is not None
