"""Great Expectations: evaluate a policy's gates on one table, failing closed.

Promise: exactly one `CheckResult` for each gate, in the gates' order, whatever the table holds. Great Expectations (GX)
evaluates; it fails open in ways that were reproduced with 1.24, so the status is decided here:

    GX reports success when ...                       here
    results of several files collide on one key      each call validates one table, alone
    a stored suite loses an unknown expectation      the suite is built in code; each gate's own result must come back
    the table is empty                               inconclusive
    nearly every value is null                       inconclusive above `max_missing`, and with no value at all
    the suite is empty                               no result; the audit then records "missing"
    an expectation has no constraint (no bound ...)  error
    the table has columns that no gate names         it gets all columns where they matter
    a mean overflows                                 inconclusive: a pass needs an observed number
    an integer is rounded to a bound above 2^53      integers are compared as integers
    `$` matches before a final line feed             `$` is the end of the text

Intervals are judged by a custom expectation (`governance.checks.interval_rules`), and expectations that a gate names
(`gx`) by `governance.checks.gx.named_expectations`, through the same checks.

Nothing is sent, drawn or written: telemetry and progress bars are off, the context is in memory. Columns of document
text are never passed. Price: the import takes 3 to 4 s, so it happens on the first call.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from governance.checks.evaluations import EVALUATIONS
from governance.checks.gx import named_expectations
from governance.checks.gx.own_expectations import own_seconds
from governance.checks.interval_rules import COLUMNS, NOTE, Judged, judge_intervals
from governance.checks.judgeable import columns, exactly, unjudgeable, values_of, with_choices
from governance.checks.messages import describe, describe_intervals, rows_where, where_words
from governance.gate.decision import CheckResult, Status
from governance.gate.explanation import counted
from governance.gate.gate_expectations import NEEDS, bound_text
from governance.gate.policy import Gate
from governance.processes import time_limit

if TYPE_CHECKING:
    import pandas as pd

_ROW_COUNT = "expect_table_row_count_to_be_between"  # looks at no column
_COLUMN_SET = "expect_table_columns_to_match_set"
_MAX_CHARACTERS = 300  # characters of an engine's message that a detail keeps

Outcomes = Mapping[int, Sequence[Any]]
"""Index of a gate -> the results that came back for it: exactly one, or something is wrong."""


def run_suite(table: pd.DataFrame, gates: Sequence[Gate], subject: str) -> list[CheckResult]:
    """Judge one table by each gate.

    Args:
        table: the rows; null (None or NaN) is a missing value.
        gates: the rules.
        subject: for the reader: a file relative to the root, or the table's name.

    Returns:
        One result for each gate, in their order: `pass`; `fail`; `inconclusive` (too few values to judge, or a pass
        with too many missing); `error` (the gate could not be evaluated; the detail has the reason).
    """
    table = table.reset_index(drop=True)
    results: dict[int, CheckResult] = {}
    for where, indices in by_rows(gates):
        chosen = [gates[index] for index in indices]
        if detail := absent_columns(table, where):
            found = [_error(gate, subject, table, detail) for gate in chosen]
        else:
            found = _judge_part(rows_where(table, where), chosen, subject)
        results |= zip(indices, found, strict=True)
    return [results[index] for index in range(len(gates))]


def by_rows(gates: Sequence[Gate]) -> list[tuple[dict[str, str], list[int]]]:
    """Each `where`, and the positions of its gates."""
    parts: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, gate in enumerate(gates):
        parts.setdefault(tuple(sorted(gate.where.items())), []).append(index)
    return [(dict(where), indices) for where, indices in parts.items()]


def absent_columns(table: pd.DataFrame, where: Mapping[str, str]) -> str:
    """Reason why `where` cannot choose rows; "" if it can."""
    absent = [name for name in where if list(table.columns).count(name) != 1]
    return f"`where` names {', '.join(absent)}; the table's columns are {columns(table)}" if absent else ""


def _judge_part(table: pd.DataFrame, gates: Sequence[Gate], subject: str) -> list[CheckResult]:
    gates = [with_choices(gate, table) for gate in gates]
    refused = {index: reason for index, gate in enumerate(gates) if (reason := _unjudgeable(gate, table))}
    values = {index: _values_of(gate, table) for index, gate in enumerate(gates) if index not in refused}
    built: dict[int, Any] = {}
    for index, gate in enumerate(gates):
        if not values.get(index):
            continue  # GX has nothing to evaluate; `_result` reports it
        try:
            with time_limit(own_seconds(gate)):
                built[index] = build_expectation(gate, index)
        except (Exception, SystemExit) as error:  # any objection of the engine becomes the gate's result
            refused[index] = f"the expectation cannot be built: {_one_line(error)}"
    outcomes: dict[int, Sequence[Any]] = {}
    own = [[index] for index in built if own_seconds(gates[index])]  # each by itself, within its time
    by_gx = [index for index in built if [index] not in own]
    for part in filter(None, [by_gx, *own]):
        try:
            with time_limit(own_seconds(gates[part[0]])):
                outcomes |= _execute(table, {index: built[index] for index in part})
        except (Exception, SystemExit) as error:  # sys.exit() in own code would end with 0, as if the gate were open
            refused |= dict.fromkeys(part, f"the suite did not run: {_one_line(error)}")
    return [
        _error(gate, subject, table, refused[index])
        if index in refused
        else _result(gate, (subject, table, values[index]), built.get(index), outcomes.get(index, ()))
        for index, gate in enumerate(gates)
    ]


def _unjudgeable(gate: Gate, table: pd.DataFrame) -> str:
    if gate.expectation == "gx":
        return named_expectations.unjudgeable_values(gate, table)
    return unjudgeable(gate, table)


def _values_of(gate: Gate, table: pd.DataFrame) -> int:
    if gate.expectation == "gx":
        return named_expectations.judgeable_values(gate, table)
    return values_of(gate, table)


def build_expectation(gate: Gate, index: int = 0) -> Any:
    """Build the expectation of a gate; raises whatever GX raises."""
    _engine()  # quiet before the first import
    import great_expectations.expectations as gxe

    if gate.expectation == "gx":
        return named_expectations.build(gate, index)
    if NEEDS[gate.expectation].judges == "intervals":
        return _interval_expectation()(
            rule=gate.rule,
            min_value=gate.min,
            max_value=gate.max,
            min_n=gate.min_n,
            mostly=gate.mostly,
            max_missing=gate.max_missing,
            meta={"gate": str(index)},
        )
    evaluation = EVALUATIONS[gate.expectation]
    return getattr(gxe, evaluation.gx_class)(**evaluation.arguments(gate), meta={"gate": str(index)})


@functools.cache
def _interval_expectation() -> Any:
    """Custom expectation: each row of an interval table keeps the bounds.

    An undecidable table is never a success. The class is defined on first use because its parents are GX's. GX would
    lose it from a stored suite where this function was not called; no suite is ever stored.
    """
    from great_expectations.compatibility import pydantic
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.expectations.expectation import BatchExpectation
    from great_expectations.expectations.metrics.metric_provider import metric_value
    from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider

    arguments = ("rule", "min_value", "max_value", "min_n")

    class IntervalRows(TableMetricProvider):  # type: ignore[misc]
        metric_name = "table.assay_interval_rows"
        value_keys = arguments

        @metric_value(engine=PandasExecutionEngine)
        def _pandas(cls, execution_engine, metric_domain_kwargs, metric_value_kwargs, **_):  # type: ignore[no-untyped-def]  # noqa: N805
            table, _, _ = execution_engine.get_compute_domain(metric_domain_kwargs, domain_type="table")
            rule, low, high, min_n = (metric_value_kwargs[name] for name in arguments)
            return asdict(judge_intervals(table, rule, (low, high), min_n))

    class ExpectIntervalBetween(BatchExpectation):  # type: ignore[misc]
        """Expect each value, or an interval end, to lie between bounds."""

        rule: str
        min_value: float | None = None
        max_value: float | None = None
        min_n: int = 1
        mostly: float = 1.0
        max_missing: float = 0.0
        metric_dependencies = (IntervalRows.metric_name,)
        success_keys = (*arguments, "mostly", "max_missing")
        args_keys = success_keys
        library_metadata: ClassVar[dict[str, Any]] = {"maturity": "production", "tags": ["interval"]}
        _known: Any = pydantic.PrivateAttr(None)

        @property
        def configuration(self) -> Any:
            """The expectation as GX reads it.

            GX looks at it some 70 times in a validation, and would rebuild it each time.
            """
            if self._known is None:
                self._known = super().configuration
            return self._known

        def _validate(self, metrics, runtime_configuration=None, execution_engine=None):  # type: ignore[no-untyped-def]
            content = dict(metrics[IntervalRows.metric_name])
            found = Judged(**content)
            success = found.kept(self.mostly) and not found.biased and not found.missing_too_many(self.max_missing)
            counted = {"element_count": found.rows, "unexpected_count": found.outside}
            return {"success": success, "result": {**counted, "observed_value": found.worst, "details": content}}

    return ExpectIntervalBetween


def quiet_context() -> Any:
    """A GX context in memory, without telemetry or progress bars."""
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
    """GX batch definition for a table in memory, one per process."""
    asset = quiet_context().data_sources.add_pandas("memory").add_dataframe_asset("table")
    return asset.add_batch_definition_whole_dataframe("whole")


def built_expectations(table: pd.DataFrame, gates: Sequence[Gate]) -> list[Any]:
    """GX's expectations for the gates that it can evaluate on a table.

    The same ones that `run_suite` builds.
    """
    built = []
    for index, gate in enumerate(gates):
        if not _unjudgeable(gate, table) and _values_of(gate, table):
            refused = contextlib.suppress(Exception, SystemExit)  # the audit's own results have the error
            with refused, time_limit(own_seconds(gate)):
                built.append(build_expectation(with_choices(gate, table), index))
    return built


def _execute(table: pd.DataFrame, built: Mapping[int, Any]) -> Outcomes:
    """Run the built expectations on the table; return results by gate index.

    GX hashes every column of each batch it receives, so it gets only the columns that a gate names, and only once
    (`Batch.validate` would fetch them again).
    """
    definition = _engine()
    import great_expectations as gx
    from great_expectations.core.result_format import ResultFormat
    from great_expectations.validator.v1_validator import Validator

    named = [_columns_of(expectation, table) for expectation in built.values()]
    handed = exactly(table.loc[:, table.columns.isin(set().union(*named))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validator = Validator(
            batch_definition=definition, batch_parameters={"dataframe": handed}, result_format=ResultFormat.BASIC
        )
        suite = gx.ExpectationSuite(name="gates", expectations=list(built.values()))
        outcome = validator.validate_expectation_suite(suite)
    by_gate: dict[int, list[Any]] = {}
    for result in outcome.results:
        by_gate.setdefault(int(result.expectation_config.meta["gate"]), []).append(result)
    return by_gate


def _columns_of(expectation: Any, table: pd.DataFrame) -> set[Any]:
    """Columns that an expectation needs.

    These are all of the table's, unless the code is GX's, or that of intervals, and looks at the named ones alone.
    """
    if isinstance(expectation, _interval_expectation()):
        return {*COLUMNS, NOTE}
    kind, arguments = expectation.configuration.type, expectation.configuration.kwargs
    by_gx = type(expectation).__module__.startswith("great_expectations.")
    if by_gx and "column" in arguments and arguments.get("column_index") is None:
        return {arguments["column"]}
    if by_gx and kind == _COLUMN_SET and arguments.get("exact_match") is False:
        return set(arguments["column_set"])
    return set() if kind == _ROW_COUNT else set(table.columns)


def _result(gate: Gate, judged: tuple[str, pd.DataFrame, int], built: Any, outcomes: Sequence[Any]) -> CheckResult:
    """Result of a gate on (subject, table, judgeable values)."""
    (subject, table, values), rows = judged, len(judged[1])
    if built is None:
        return CheckResult(gate.id, subject, "inconclusive", None, rows, 0, _too_few(gate, rows, values))
    if len(outcomes) != 1 or not _same(built, outcomes[0].expectation_config):
        return _error(gate, subject, table, f"{len(outcomes)} result(s) came back for this gate, not its own one")
    outcome = outcomes[0]
    if raised := _raised(outcome.exception_info):
        return _error(gate, subject, table, raised)
    content = dict(outcome.result)
    judges = NEEDS[gate.expectation].judges
    if judges in ("rows", "intervals") and content.get("element_count") != rows:
        return _error(gate, subject, table, f"{content.get('element_count')} of {rows} rows were evaluated")
    if judges == "intervals":
        return _interval_result(gate, subject, table, Judged(**content["details"]), bool(outcome.success))
    if judges == "named":
        return named_expectations.judged(gate, subject, table, content, outcome.success)
    return _plain_result(gate, judged, content, bool(outcome.success))


def _plain_result(
    gate: Gate, judged: tuple[str, pd.DataFrame, int], content: Mapping[str, Any], success: bool
) -> CheckResult:
    """Result of a gate on values, rows or columns."""
    (subject, table, values), rows, counted = judged, len(judged[1]), NEEDS[gate.expectation].judges == "table"
    unexpected = int(content.get("unexpected_count") or 0)
    observed, detail = describe(gate, table, content, unexpected, values)
    missing = 1 - values / rows if rows else 0.0
    status: Status = "pass" if success else "fail"
    if not counted and values < gate.min_rows:
        status, detail = "inconclusive", f"{_too_few(gate, rows, values)}; {detail}"
    elif status == "pass" and counted and rows < gate.min_rows:
        status, detail = "inconclusive", f"{_too_few(gate, rows, rows)}; {detail}"
    elif status == "pass" and not counted and missing > gate.max_missing:
        detail = f"{missing:.4g} of the values are missing, at most {bound_text(gate.max_missing)} may be; {detail}"
        status = "inconclusive"
    elif status == "pass" and observed is None and NEEDS[gate.expectation].observes != "names":
        status, detail = "inconclusive", f"no finite number was observed; {detail}"
    return CheckResult(gate.id, subject, status, observed, rows, unexpected, detail)


def _interval_result(gate: Gate, subject: str, table: pd.DataFrame, found: Judged, success: bool) -> CheckResult:
    """Result of an interval gate: failures first, then undecidable rows."""
    observed, detail = describe_intervals(gate, table, found)
    status: Status = "pass"
    if found.judged < gate.min_rows:
        status, detail = "inconclusive", f"{_too_few(gate, found.rows, found.judged)}; {detail}"
    elif not found.kept(gate.mostly):
        status = "fail"
    elif found.biased or found.missing_too_many(gate.max_missing):
        status = "inconclusive"
    if success != (status == "pass") and found.judged >= gate.min_rows:
        return _error(gate, subject, table, f"the engine reports success = {success} for a result that is {status}")
    return CheckResult(gate.id, subject, status, observed, len(table), found.outside, detail)


def _same(built: Any, config: Any) -> bool:
    """Return whether a result is about the built expectation."""
    expected = built.configuration
    arguments = {name: value for name, value in config.kwargs.items() if name != "batch_id"}
    return bool(config.type == expected.type and arguments == dict(expected.kwargs))


def _raised(info: Any) -> str:
    """Message of an exception inside a GX result; "" if none."""
    entries = [info or {}, *(item for item in (info or {}).values() if isinstance(item, Mapping))]
    return "; ".join(sorted({_one_line(_with_type(item)) for item in entries if item.get("raised_exception")}))


def _with_type(raised: Mapping[str, Any]) -> str:
    """Message of an exception, after its type.

    GX gives the message of a metric's exception alone; its traceback begins with that exception.
    """
    message = str(raised.get("exception_message"))
    line = (": " if message else "") + re.escape(message.partition("\n")[0])
    found = re.search(rf"^(?:[\w<>]+\.)*(\w+){line}$", str(raised.get("exception_traceback")), re.M)
    return f"{found[1]}: {message}" if found else message


def _one_line(error: object) -> str:
    """One line for an exception, without memory addresses or a traceback."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return re.sub(r"0x[0-9a-fA-F]+", "0x…", " ".join(text.split()))[:_MAX_CHARACTERS]


def _error(gate: Gate, subject: str, table: pd.DataFrame, detail: str) -> CheckResult:
    return CheckResult(gate.id, subject, "error", None, len(table), 0, detail)


def _too_few(gate: Gate, rows: int, values: int) -> str:
    where = where_words(gate.where)
    if not rows:
        return f"the table has no row{where}"
    return f"{values} of {counted(rows, 'row')}{where} could be judged, at least {gate.min_rows} must be"
