"""The Great Expectations door: judge one table by the policy's gates, and never pass by accident.

Promise: exactly one `CheckResult` for each gate, in the gates' order, whatever the table holds. Great Expectations (GX)
is the engine that evaluates; it fails open in ways that were reproduced with 1.24, so the status is decided here:

    GX says success when ...                         here
    results of several files collide on one key      each call validates one table, alone
    a stored suite loses an unknown expectation      the suite is built in code; each gate's own result must come back
    the table is empty                               inconclusive
    nearly every value is null                       inconclusive above `max_missing`, and with no value at all
    the suite is empty                               nothing is returned; the audit then says "missing"
    an expectation demands nothing (no bound ...)    error

Nothing is sent, drawn or written: telemetry and progress bars are off, the context lives in memory. No column of
document text is ever handed over. Cost: the import takes 3 to 4 s, so it happens on the first call.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from governance.gate import CheckResult, Status
from governance.policy import Gate

if TYPE_CHECKING:
    import pandas as pd

_NUMERIC = {"between", "mean_between", "quantile_between"}
_ROW_WISE = {"between", "not_null", "in_set", "unique", "match_regex"}
_WHOLE_TABLE = {"row_count_between", "columns_present"}
_ROW_COUNT = "expect_table_row_count_to_be_between"  # looks at no column
_LABELS = ("stage", "source", "language", "axis", "group", "id")  # columns that name a row for the reader
_SHOWN = 3  # offending rows that a detail names
_WORDS = 300  # characters of an engine's message that a detail keeps

Outcomes = Mapping[int, Sequence[Any]]
"""Index of a gate -> the results that came back for it: exactly one, or something is wrong."""


def run_suite(table: pd.DataFrame, gates: Sequence[Gate], subject: str) -> list[CheckResult]:
    """Judge one table by each gate.

    Args:
        table: the rows, judged by themselves; null (None or NaN) means that a value is missing.
        gates: the rules, in any number.
        subject: what the table is, for the reader: a file relative to the root, or the table's name.

    Returns:
        One result for each gate, in their order: `pass`; `fail`; `inconclusive` (too few values to judge, or a pass
        with too many missing); `error` (the gate could not be evaluated; the detail has the words).
    """
    table = table.reset_index(drop=True)
    refused = {index: words for index, gate in enumerate(gates) if (words := _unjudgeable(gate, table))}
    built: dict[int, Any] = {}
    for index, gate in enumerate(gates):
        if index in refused or _values(gate, table) == 0:
            continue  # GX has nothing to evaluate; `_result` says so
        try:
            built[index] = _build(gate, index)
        except Exception as error:  # whatever the engine says against a gate is that gate's result
            refused[index] = f"the expectation cannot be built: {_words(error)}"
    try:
        outcomes = _execute(table, built) if built else {}
    except Exception as error:
        refused |= dict.fromkeys(built, f"the suite did not run: {_words(error)}")
        outcomes = {}
    return [
        _error(gate, subject, table, refused[index])
        if index in refused
        else _result(gate, subject, table, built.get(index), outcomes.get(index, ()))
        for index, gate in enumerate(gates)
    ]


def _unjudgeable(gate: Gate, table: pd.DataFrame) -> str:
    """Why this gate cannot be evaluated on this table; empty when it can."""
    kind = gate.expectation
    if kind not in _BUILDERS:
        return f"unknown expectation {kind!r}; known are {', '.join(sorted(_BUILDERS))}"
    if idle := _demands_nothing(gate):
        return idle
    if kind in _WHOLE_TABLE:
        return ""
    found = list(table.columns).count(gate.column)
    if found != 1:
        names = ", ".join(sorted(map(str, table.columns)))
        return f"column {gate.column!r} stands {found} times in the table; its columns are {names}"
    infinite = _infinite(table[gate.column]) if kind in _NUMERIC else 0
    return f"column {gate.column!r} holds {infinite} infinite value(s)" if infinite else ""


def _demands_nothing(gate: Gate) -> str:
    """GX passes an expectation without a demand; the policy refuses such a gate, and so does this door."""
    kind = gate.expectation
    if kind in _NUMERIC | {"row_count_between"} and gate.min is None and gate.max is None:
        return f"{kind} without min or max demands nothing"
    if kind == "quantile_between" and gate.quantile is None:
        return "quantile_between without a quantile"
    if kind in {"in_set", "columns_present"} and not gate.values:
        return f"{kind} without values demands nothing"
    if kind == "match_regex" and not gate.regex:
        return "match_regex without a regex matches everything"
    if not 0 < gate.mostly <= 1:
        return f"mostly = {gate.mostly:g} is no share of rows above 0"
    return ""


def _infinite(column: pd.Series) -> int:
    import numpy as np

    return int(np.isinf(column.to_numpy()).sum()) if column.dtype.kind == "f" else 0


def _values(gate: Gate, table: pd.DataFrame) -> int:
    """How many values the gate can judge: its column's that are not missing; for a missing-value rule all rows."""
    if gate.expectation in _WHOLE_TABLE:
        return max(1, len(table))  # an empty table has a row count and columns, too
    if gate.expectation == "not_null":
        return len(table)
    return int(table[gate.column].notna().sum())


def _build(gate: Gate, index: int) -> Any:
    _engine()  # quiet before the first import
    import great_expectations.expectations as gxe

    return _BUILDERS[gate.expectation](gxe, gate, {"gate": str(index)})


def _quantile(gxe: Any, gate: Gate, meta: dict[str, str]) -> Any:
    ranges = {"quantiles": [gate.quantile], "value_ranges": [[gate.min, gate.max]]}
    return gxe.ExpectColumnQuantileValuesToBeBetween(column=gate.column, quantile_ranges=ranges, meta=meta)


_BUILDERS: dict[str, Callable[[Any, Gate, dict[str, str]], Any]] = {
    "between": lambda gxe, gate, meta: gxe.ExpectColumnValuesToBeBetween(
        column=gate.column, min_value=gate.min, max_value=gate.max, mostly=gate.mostly, meta=meta
    ),
    "not_null": lambda gxe, gate, meta: gxe.ExpectColumnValuesToNotBeNull(
        column=gate.column, mostly=gate.mostly, meta=meta
    ),
    "in_set": lambda gxe, gate, meta: gxe.ExpectColumnValuesToBeInSet(
        column=gate.column, value_set=list(gate.values), mostly=gate.mostly, meta=meta
    ),
    "unique": lambda gxe, gate, meta: gxe.ExpectColumnValuesToBeUnique(
        column=gate.column, mostly=gate.mostly, meta=meta
    ),
    "match_regex": lambda gxe, gate, meta: gxe.ExpectColumnValuesToMatchRegex(
        column=gate.column, regex=gate.regex, mostly=gate.mostly, meta=meta
    ),
    "mean_between": lambda gxe, gate, meta: gxe.ExpectColumnMeanToBeBetween(
        column=gate.column, min_value=gate.min, max_value=gate.max, meta=meta
    ),
    "quantile_between": _quantile,
    "row_count_between": lambda gxe, gate, meta: gxe.ExpectTableRowCountToBeBetween(
        min_value=None if gate.min is None else math.ceil(gate.min),
        max_value=None if gate.max is None else math.floor(gate.max),
        meta=meta,
    ),
    "columns_present": lambda gxe, gate, meta: gxe.ExpectTableColumnsToMatchSet(
        column_set=list(gate.values), exact_match=False, meta=meta
    ),
}


def quiet_context() -> Any:
    """A new context of GX that lives in memory, sends nothing and draws nothing."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # versions before 1.24 read it when they are imported
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)  # its exceptions come back in the results
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    return context


@functools.cache
def _engine() -> Any:
    """GX's way in for a table in memory; made once a process."""
    asset = quiet_context().data_sources.add_pandas("memory").add_dataframe_asset("table")
    return asset.add_batch_definition_whole_dataframe("whole")


def built_expectations(table: pd.DataFrame, gates: Sequence[Gate]) -> list[Any]:
    """GX's expectations for the gates that it can evaluate on a table: what `run_suite` would hand it."""
    built = []
    for index, gate in enumerate(gates):
        if not _unjudgeable(gate, table) and _values(gate, table):
            with contextlib.suppress(Exception):  # what the engine refuses is an error in the audit's own results
                built.append(_build(gate, index))
    return built


def _execute(table: pd.DataFrame, built: Mapping[int, Any]) -> Outcomes:
    """Run the built expectations on the table; the results by the gate that each says it is for.

    GX makes a fingerprint of every column that it is given, each time that it is given a batch: so it gets the columns
    that a gate names, and gets them once (`Batch.validate` would fetch them again).
    """
    definition = _engine()
    import great_expectations as gx
    from great_expectations.core.result_format import ResultFormat
    from great_expectations.validator.v1_validator import Validator

    named = [_columns_of(expectation, table) for expectation in built.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validator = Validator(
            batch_definition=definition,
            batch_parameters={"dataframe": table.loc[:, table.columns.isin(set().union(*named))]},
            result_format=ResultFormat.BASIC,
        )
        suite = gx.ExpectationSuite(name="gates", expectations=list(built.values()))
        outcome = validator.validate_expectation_suite(suite)
    found: dict[int, list[Any]] = {}
    for result in outcome.results:
        found.setdefault(int(result.expectation_config.meta["gate"]), []).append(result)
    return found


def _columns_of(expectation: Any, table: pd.DataFrame) -> set[Any]:
    """The columns that an expectation looks at; all of them where it does not say so in a way that is known here."""
    arguments = expectation.configuration.kwargs
    if "column" in arguments:
        return {arguments["column"]}
    if "column_set" in arguments:
        return set(arguments["column_set"])
    return set() if expectation.configuration.type == _ROW_COUNT else set(table.columns)


def _result(gate: Gate, subject: str, table: pd.DataFrame, built: Any, outcomes: Sequence[Any]) -> CheckResult:
    rows, values = len(table), _values(gate, table)
    counted = gate.expectation in _WHOLE_TABLE
    if built is None:
        return CheckResult(gate.id, subject, "inconclusive", None, rows, 0, _too_few(gate, rows, values))
    if len(outcomes) != 1 or not _same(built, outcomes[0].expectation_config):
        return _error(gate, subject, table, f"{len(outcomes)} result(s) came back for this gate, not its own one")
    outcome = outcomes[0]
    if raised := _raised(outcome.exception_info):
        return _error(gate, subject, table, raised)
    content = dict(outcome.result)
    if gate.expectation in _ROW_WISE and content.get("element_count") != rows:
        return _error(gate, subject, table, f"{content.get('element_count')} of {rows} rows were evaluated")
    unexpected = int(content.get("unexpected_count") or 0)
    observed, detail = _describe(gate, table, content, unexpected, values)
    missing = 1 - values / rows if rows else 0.0
    status: Status = "pass" if bool(outcome.success) else "fail"  # numpy.bool from quantiles and means
    if not counted and values < gate.min_rows:
        status, detail = "inconclusive", f"{_too_few(gate, rows, values)}; {detail}"
    elif status == "pass" and counted and rows < gate.min_rows:
        status, detail = "inconclusive", f"{_too_few(gate, rows, rows)}; {detail}"
    elif status == "pass" and not counted and missing > gate.max_missing:
        detail = f"{missing:.4g} of the values are missing, at most {gate.max_missing:g} may be; {detail}"
        status = "inconclusive"
    return CheckResult(gate.id, subject, status, observed, rows, unexpected, detail)


def _same(built: Any, config: Any) -> bool:
    """Whether a result is about the very expectation that was built: its type, column and limits."""
    wanted = built.configuration
    arguments = {name: value for name, value in config.kwargs.items() if name != "batch_id"}
    return bool(config.type == wanted.type and arguments == dict(wanted.kwargs))


def _raised(info: Any) -> str:
    """The words of an exception inside GX's result, which is flat or keyed by metric; empty when there was none."""
    entries = [info or {}, *(item for item in (info or {}).values() if isinstance(item, Mapping))]
    messages = {str(item.get("exception_message")) for item in entries if item.get("raised_exception")}
    return "; ".join(_words(message) for message in sorted(messages))


def _words(error: object) -> str:
    """An exception in one line that is the same on every machine: no addresses, no paths of a traceback."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    return re.sub(r"0x[0-9a-fA-F]+", "0x…", " ".join(text.split()))[:_WORDS]


def _error(gate: Gate, subject: str, table: pd.DataFrame, words: str) -> CheckResult:
    return CheckResult(gate.id, subject, "error", None, len(table), 0, words)


def _too_few(gate: Gate, rows: int, values: int) -> str:
    return f"{values} value(s) in {rows} row(s), at least {gate.min_rows} are wanted"


def _describe(
    gate: Gate, table: pd.DataFrame, content: Mapping[str, Any], unexpected: int, values: int
) -> tuple[float | str | None, str]:
    """The telling number, and the finding in words with the threshold."""
    kind, limits = gate.expectation, _limits(gate)
    if kind == "row_count_between":
        return len(table), f"{len(table)} rows, wanted {limits}"
    if kind == "columns_present":
        absent = sorted(set(gate.values) - set(map(str, table.columns)))
        return (", ".join(absent) or None), f"missing columns: {', '.join(absent) or 'none'}"
    if kind == "mean_between":
        mean = _number(content["observed_value"])
        return mean, f"mean of {gate.column} {_shown(mean)}, wanted {limits}"
    if kind == "quantile_between":
        value = _number(content["observed_value"]["values"][0])
        return value, f"quantile {gate.quantile:g} of {gate.column} {_shown(value)}, wanted {limits}"
    share = _number(1 - unexpected / values)
    observed = _worst(gate, table) if kind == "between" and gate.mostly == 1 else share
    wish = {"between": limits, "in_set": f"one of {len(gate.values)} value(s)", "match_regex": f"/{gate.regex}/"}
    detail = (
        f"{gate.column}: {values - unexpected} of {values} rows fulfil {kind}"
        f"{' ' + wish[kind] if kind in wish else ''}, wanted a share of {gate.mostly:g}"
    )
    if kind == "between":
        detail += f"; worst {_shown(_worst(gate, table))}"
    offenders = _offenders(gate, table, content) if unexpected else ""
    return observed, f"{detail}; such as {offenders}" if offenders else detail


def _worst(gate: Gate, table: pd.DataFrame) -> float | None:
    """The value that lies farthest beyond a limit, or nearest to one when all keep it."""
    column = table[gate.column]
    least, greatest = _number(column.min()), _number(column.max())
    if gate.max is None or least is None or greatest is None:
        return least
    return least if gate.min is not None and gate.min - least > greatest - gate.max else greatest


def _offenders(gate: Gate, table: pd.DataFrame, content: Mapping[str, Any]) -> str:
    """The first few values that do not fulfil the gate, each with the names of its row."""
    seen = []
    for value in content.get("partial_unexpected_list") or ():
        if value not in seen:
            seen.append(value)
    if gate.expectation == "not_null":
        places = table.index[table[gate.column].isna()][:_SHOWN]
        return ", ".join(filter(None, (_label(gate, table, place) for place in places)))
    lines = []
    for value in seen[:_SHOWN]:
        label = _label(gate, table, (table[gate.column] == value).idxmax())
        text = _shown(value) if isinstance(value, (int, float)) else repr(str(value)[:60])
        lines.append(f"{label}: {text}" if label else text)
    return ", ".join(lines)


def _label(gate: Gate, table: pd.DataFrame, place: Any) -> str:
    names = [name for name in _LABELS if name in table.columns and name != gate.column]
    return "/".join(str(table.at[place, name]) for name in names)


def _limits(gate: Gate) -> str:
    low = "" if gate.min is None else f"at least {gate.min:g}"
    high = "" if gate.max is None else f"at most {gate.max:g}"
    return " and ".join(filter(None, (low, high)))


def _number(value: Any) -> float | None:
    """A plain float of 12 significant digits, so that the last bits of a sum do not differ between processors."""
    number = float(value)
    return float(f"{number:.12g}") if math.isfinite(number) else None


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6g}"
