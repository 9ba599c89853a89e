"""The door to Great Expectations: each way in which the engine passes by accident is closed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from governance.checks import expectations
from governance.checks.evaluations import EVALUATIONS, RowEvaluation
from governance.checks.expectations import run_suite
from governance.gate.decision import CheckResult
from governance.gate.gate_expectations import NEEDS, Expectation
from governance.gate.policy import Gate


def gate(expectation: str, column: str = "x", **fields: object) -> Gate:
    if expectation in ("row_count_between", "columns_present"):
        column = ""
    known = {"id": "a.b", "suite": "documents", "owner": "data", "why": "a reason for the test"}
    return Gate(**{**known, "expectation": expectation, "column": column, **fields})


def one(table: pd.DataFrame, rule: Gate) -> CheckResult:
    (result,) = run_suite(table, [rule], "table")
    assert (result.gate, result.subject, result.rows) == (rule.id, "table", len(table))
    return result


def naive(table: pd.DataFrame, *built: object) -> bool:
    """Great Expectations' own answer."""
    import great_expectations as gx

    batch = expectations._engine().get_batch(batch_parameters={"dataframe": table})
    return bool(batch.validate(gx.ExpectationSuite(name="naive", expectations=list(built))).success)


def between(**arguments: object) -> object:
    expectations._engine()
    import great_expectations.expectations as gxe

    return gxe.ExpectColumnValuesToBeBetween(column="x", **arguments)


# --- the five ways, and expectations without effect


def test_several_tables_never_collide():
    import great_expectations as gx

    expectations._engine()
    tables = [pd.DataFrame({"x": values}) for values in ([1.0], [99.0], [1.0])]
    context = gx.get_context(mode="ephemeral")
    asset = context.data_sources.add_pandas("m").add_dataframe_asset("a")
    suite = context.suites.add(gx.ExpectationSuite(name="s", expectations=[between(max_value=5)]))
    definitions = [
        context.validation_definitions.add(
            gx.ValidationDefinition(
                name=f"v{index}", data=asset.add_batch_definition_whole_dataframe(f"b{index}"), suite=suite
            )
        )
        for index in range(3)
    ]
    checkpoint = context.checkpoints.add(gx.Checkpoint(name="c", validation_definitions=definitions))
    assert len(checkpoint.run(batch_parameters={"dataframe": tables[0]}).run_results) < 3, "one key for three tables"

    statuses = [one(table, gate("between", max=5.0)).status for table in tables]
    assert statuses == ["pass", "fail", "pass"]


def test_a_lost_expectation_is_an_error(monkeypatch):
    table = pd.DataFrame({"x": [99.0], "y": [1.0]})
    assert naive(table), "the only failing expectation was lost, and the suite is green"
    execute = expectations._execute
    monkeypatch.setattr(expectations, "_execute", lambda t, built: execute(t, {1: built[1]}))
    lost, kept = run_suite(table, [gate("between", max=5.0), gate("between", "y", max=5.0)], "table")
    assert (lost.status, kept.status) == ("error", "pass")
    assert "0 result(s) came back" in lost.detail


def test_the_right_number_of_the_wrong_results_is_an_error(monkeypatch):
    execute = expectations._execute

    def swapped(table, built):
        found = execute(table, built)
        return {0: found[1], 1: found[1]}

    monkeypatch.setattr(expectations, "_execute", swapped)
    rules = [gate("between", max=5.0), gate("between", "y", max=5.0)]
    assert [r.status for r in run_suite(pd.DataFrame({"x": [99.0], "y": [1.0]}), rules, "t")] == ["error", "pass"]


def test_the_same_rule_twice_gives_two_results():
    rules = [gate("between", min=2.0), gate("between", min=2.0, id="c.d")]
    results = run_suite(pd.DataFrame({"x": [1.0, 2.0]}), rules, "t")
    assert [(result.gate, result.status) for result in results] == [("a.b", "fail"), ("c.d", "fail")]


def test_an_empty_table_is_inconclusive():
    table = pd.DataFrame({"x": pd.Series([], dtype=float)})
    assert naive(table, between(max_value=5))
    for rule in (gate("between", max=5.0), gate("not_null"), gate("unique"), gate("mean_between", min=0.0)):
        assert one(table, rule).status == "inconclusive"
    assert one(table, gate("columns_present", values=("x",))).status == "inconclusive"
    assert one(table, gate("row_count_between", max=5.0)).status == "inconclusive"
    assert one(table, gate("row_count_between", min=1.0)).status == "fail"
    assert one(pd.DataFrame(), gate("columns_present", values=("x",))).status == "fail"


def test_mostly_null_is_inconclusive():
    table = pd.DataFrame({"x": [None] * 99 + [1.0]})
    assert naive(table, between(max_value=5))
    assert one(table, gate("between", max=5.0, max_missing=0.5)).status == "inconclusive"
    assert one(table, gate("between", max=5.0, max_missing=0.99)).status == "pass"
    assert one(table, gate("between", max=0.0, max_missing=0.5)).status == "fail"


def test_all_null_is_inconclusive_whatever_may_be_missing():
    for column in ([None, None], [math.nan, math.nan]):
        assert one(pd.DataFrame({"x": column}), gate("between", max=5.0, max_missing=1.0)).status == "inconclusive"


def test_an_empty_suite_is_no_success():
    table = pd.DataFrame({"x": [1.0]})
    assert naive(table)
    assert run_suite(table, [], "t") == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"expectation": "between"}, "has no constraint"),
        ({"expectation": "mean_between"}, "has no constraint"),
        ({"expectation": "row_count_between", "column": ""}, "has no constraint"),
        ({"expectation": "in_set"}, "has no constraint"),
        ({"expectation": "columns_present", "column": ""}, "has no constraint"),
        ({"expectation": "match_regex"}, "has no constraint"),
        ({"expectation": "quantile_between", "min": 0.0}, "without quantile has no constraint"),
        ({"expectation": "not_null", "mostly": 0.0}, "not a share of rows"),
        ({"expectation": "not_nul"}, "unknown expectation 'not_nul'"),
    ],
)
def test_an_idle_or_unknown_rule_is_an_error(fields, words):
    rule = gate("unique").model_copy(update=fields)  # the policy refuses these; this door does not rely on that
    result = one(pd.DataFrame({"x": [1.0]}), rule)
    assert result.status == "error"
    assert words in result.detail


def test_each_expectation_has_its_needs_and_its_evaluation():
    assert set(get_args(Expectation)) == set(NEEDS)
    judged_apart = {name for name, needs in NEEDS.items() if needs.judges in ("intervals", "named")}
    assert set(EVALUATIONS) == set(NEEDS) - judged_apart
    for name, evaluation in EVALUATIONS.items():
        assert isinstance(evaluation, RowEvaluation) == (NEEDS[name].judges == "rows"), name


# --- each kind: pass, fail, inconclusive, error

NUMBERS = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0]})
TEXTS = pd.DataFrame({"x": ["a", "b", "b", "c"]})


@pytest.mark.parametrize(
    ("table", "passing", "failing", "observed"),
    [
        (NUMBERS, gate("between", min=1.0, max=4.0), gate("between", max=3.5), 4.0),
        (NUMBERS, gate("between", max=3.5, mostly=0.75), gate("between", max=2.5, mostly=0.75), 0.5),
        (NUMBERS, gate("between", min=1.0), gate("between", min=1.5), 1.0),
        (NUMBERS, gate("mean_between", min=2.5), gate("mean_between", max=2.4), 2.5),
        (
            NUMBERS,
            gate("quantile_between", quantile=1.0, max=4.0),
            gate("quantile_between", quantile=1.0, max=3.0),
            4.0,
        ),
        (TEXTS, gate("in_set", values=("a", "b", "c")), gate("in_set", values=("a", "b")), 0.75),
        (NUMBERS, gate("unique"), gate("unique").model_copy(update={"column": "y"}), 0.0),
        (TEXTS, gate("match_regex", regex="^[abc]$"), gate("match_regex", regex="^[ab]$"), 0.75),
        (NUMBERS, gate("row_count_between", min=4.0), gate("row_count_between", max=3.0), 4.0),
        (TEXTS, gate("not_null"), gate("not_null").model_copy(update={"column": "z"}), 0.25),
        (NUMBERS, gate("columns_present", values=("x",)), gate("columns_present", values=("x", "q")), "q"),
    ],
)
def test_kinds_pass_and_fail(table, passing, failing, observed):
    table = table.assign(y=1.0, z=[1.0, None, None, None])
    assert one(table, passing).status == "pass"
    result = one(table, failing)
    assert (result.status, result.observed) == ("fail", observed)


def test_too_few_values_are_inconclusive_even_when_they_fail():
    for rule in (gate("between", max=9.0, min_rows=5), gate("mean_between", max=0.0, min_rows=5)):
        result = one(NUMBERS, rule)
        assert result.status == "inconclusive"
        assert "at least 5" in result.detail


@pytest.mark.parametrize(
    ("column", "rule", "words"),
    [
        (["a", "b"], gate("between", max=5.0), "same type"),
        (["a", "b"], gate("mean_between", max=5.0), "string dtype"),
        (["a", "b"], gate("match_regex", regex="("), "ArrowInvalid: Invalid regular expression: missing ): ("),
        ([1.0, -math.inf], gate("between", max=5.0), "1 infinite value"),
        ([1.0, math.inf], gate("mean_between", min=0.0), "1 infinite value"),
        ([1.0, 2.0], gate("between", "nowhere", max=5.0), "'nowhere' is not in the table; its columns are x"),
        ([1.0, 2.0], gate("not_null", "nowhere"), "columns are x"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error_with_its_words(column, rule, words):
    result = one(pd.DataFrame({"x": column}), rule)
    assert result.status == "error"
    assert words in result.detail


def test_a_rule_in_error_leaves_its_neighbours_alone():
    rules = [gate("between", max=5.0), gate("match_regex", regex="(", column="y"), gate("not_null")]
    table = pd.DataFrame({"x": [1.0], "y": ["a"]})
    assert [result.status for result in run_suite(table, rules, "t")] == ["pass", "error", "pass"]


def test_a_column_that_occurs_twice_is_an_error():
    assert one(pd.DataFrame([[1.0, 9.0]], columns=["x", "x"]), gate("between", max=5.0)).status == "error"


def test_an_engine_that_breaks_is_an_error_of_each_rule(monkeypatch):
    def broken(table, built):
        raise RuntimeError("no engine at <0x7f00dead>")

    monkeypatch.setattr(expectations, "_execute", broken)
    results = run_suite(NUMBERS, [gate("unique"), gate("not_null")], "t")
    assert [result.status for result in results] == ["error", "error"]
    assert "no engine at <0x…>" in results[0].detail


def test_a_repeated_index_is_no_trouble():
    assert one(NUMBERS.set_axis([7, 7, 7, 7]), gate("between", max=3.5)).unexpected == 1


def test_the_detail_names_the_offending_row():
    table = pd.DataFrame({"stage": ["clean", "clean"], "source": ["wiki", "news"], "x": [0.1, 0.7]})
    result = one(table, gate("between", max=0.5))
    assert result.detail == ("x is at most 0.5 in 1 of 2 rows, required in all; worst 0.7; for example clean/news: 0.7")
    sums = pd.DataFrame({"stage": "ingest", "source": ["(all)", "wiki", "(all)", "news"], "x": [2.0, 1.0, 3.0, 3.0]})
    assert one(sums, gate("between", max=0.5)).detail.endswith("for example ingest/wiki: 1, ingest/news: 3")
    assert one(sums[:1], gate("between", max=0.5)).detail.endswith("for example ingest/(all): 2")
    of_types = pd.DataFrame({"type": ["name", "place"], "x": [0.1, 0.7]})
    assert one(of_types, gate("between", max=0.5)).detail.endswith("for example place: 0.7")


VALUES = st.one_of(st.none(), st.floats(), st.integers(-(10**6), 10**6), st.text(max_size=3), st.booleans())
RULES = [
    gate("between", min=0.0, max=5.0),
    gate("between", "absent", max=1.0),
    gate("mean_between", max=5.0),
    gate("quantile_between", quantile=0.5, min=0.0),
    gate("not_null", mostly=0.5),
    gate("in_set", values=("a", "1")),
    gate("unique"),
    gate("match_regex", regex="a"),
    gate("row_count_between", min=2.0),
    gate("columns_present", values=("x", "y")),
]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(column=st.lists(VALUES, max_size=6), rules=st.lists(st.sampled_from(RULES), max_size=6))
def test_exactly_one_result_for_each_rule(column, rules):
    table = pd.DataFrame({"x": pd.Series(column, dtype=object)})
    results = run_suite(table, rules, "t")
    assert [result.gate for result in results] == [rule.id for rule in rules]
    for rule, result in zip(rules, results, strict=True):
        assert result.status in ("pass", "fail", "inconclusive", "error")
        assert result.rows == len(table)
        assert not isinstance(result.observed, float) or math.isfinite(result.observed)
        if not column:
            assert result.status != "pass"
        if result.status == "pass" and rule.expectation == "between":
            assert all(0 <= value <= 5 for value in column)
        if result.status == "pass" and rule.expectation == "in_set":
            assert set(column) <= {"a", "1"}


def test_the_door_is_silent_and_writes_nothing(tmp_path: Path):
    program = """
        import sys
        import governance.checks.expectations as door
        assert "great_expectations" not in sys.modules, "imported before it is needed"
        import pandas as pd
        from governance.gate.policy import Gate
        rule = Gate(id="a.b", suite="documents", expectation="between", column="x", max=5.0, owner="o", why="x" * 10)
        results = door.run_suite(pd.DataFrame({"x": [1.0, 9.0], "y": ["a", None]}), [rule], "t")
        sys.stdout.write(results[0].status)
    """
    import governance

    root = str(Path(governance.__file__).parent.parent)
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "fail", "")
    assert list(tmp_path.rglob("*")) == []
