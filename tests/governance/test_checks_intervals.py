"""Interval gates: the compared number, the rows that cannot be judged, and the checks they pass through."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from governance.checks import expectations
from governance.checks.expectations import run_suite
from governance.checks.interval_rules import judge_intervals
from governance.checks.messages import offending_rows
from governance.gate.gate_expectations import bound_text
from governance.gate.policy import Gate


def gate(**fields):
    known = {"id": "a.b", "suite": "impact", "expectation": "interval_between", "owner": "f", "why": "a reason for it"}
    return Gate(**{**known, **fields})


def row(value, lower, upper, n=100, note=None, **names):
    known = {"metric": "keep_ratio", "stage": "clean", "axis": "gender", "group": "women"}
    return {**known, "value": value, "lower": lower, "upper": upper, "n": n, "note": note, **names}


def one(rows, rule):
    (result,) = run_suite(pd.DataFrame(rows), [rule], "impact")
    return result


STRADDLES = [row(0.75, 0.6, 0.9)]


@pytest.mark.parametrize(
    ("rule", "bounds", "status", "observed"),
    [
        ("point", {"min": 0.8}, "fail", 0.75),
        ("upper_ci", {"min": 0.8}, "pass", 0.9),
        ("lower_ci", {"min": 0.8}, "fail", 0.6),
        ("upper_ci", {"min": 0.91}, "fail", 0.9),
        ("point", {"max": 0.75}, "pass", 0.75),
        ("upper_ci", {"max": 0.8}, "fail", 0.9),
        ("lower_ci", {"max": 0.8}, "pass", 0.6),
        ("point", {"min": 0.7, "max": 0.8}, "pass", 0.75),
        ("whole_ci", {"min": 0.5, "max": 0.9}, "pass", 0.75),
        ("whole_ci", {"min": 0.95}, "fail", 0.75),
        ("whole_ci", {"max": 0.5}, "fail", 0.75),
    ],
)
def test_the_rule_says_which_number_is_compared(rule, bounds, status, observed):
    result = one(STRADDLES, gate(rule=rule, **bounds))
    assert (result.status, result.observed) == (status, observed)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_bound_is_written_as_the_shortest_decimal_that_is_exact(bound):
    assert float(bound_text(bound)) == bound


def test_the_detail_names_the_row_with_its_interval():
    assert "the value is at least 0.12345678 and at most 12345678 in" in one(
        STRADDLES, gate(min=0.12345678, max=12345678)).detail  # fmt: skip
    result = one([row(1.0, 0.9, 1.1, group="men"), *STRADDLES], gate(min=0.8))
    assert result.unexpected == 1
    assert result.detail == (
        "the value is at least 0.8 in 1 of 2 rows, required in all; worst 0.75; "
        "for example keep_ratio/clean/gender/women: 0.75 [0.6, 0.9], n 100"
    )


@pytest.mark.parametrize(
    ("rows", "rule", "words"),
    [
        ([row(1.0, 0.9, 1.1, n=9)], gate(min=0.8, min_n=10), "fewer than 10 units"),
        ([row(1.0, 0.9, 1.1, n=None)], gate(min=0.8), "an unknown number"),
        ([row(1.0, None, None)], gate(min=0.8, rule="lower_ci"), "1 row without the lower end of the interval"),
        ([row(None, 0.9, 1.1)], gate(min=0.8), "1 row without the value"),
        ([row(1.0, 0.9, 1.1), row(None, None, None)], gate(min=0.8), "1 row without the value"),
        (
            [row(1.0, 0.9, 1.1), row(1.0, 0.9, 1.1, note="biased instrument: sentiment")],
            gate(min=0.8, max_missing=1.0),
            "1 row measured by a biased instrument: sentiment",
        ),
        (
            [row(0.1, 0.0, 0.2, note="biased instrument: sentiment; see instruments")],
            gate(min=0.8),
            "biased instrument: sentiment",
        ),
        (STRADDLES, gate(min=0.8, where={"axis": "age"}), "the table has no row where axis = age"),
        ([row(0.75, 0.6, 0.9, note="why")], gate(min=0.8, rule="whole_ci"), "n 100 (why)"),
        ([*STRADDLES, row(1.0, 0.9, 1.1)], gate(min=0.8, rule="whole_ci"), "1 interval on both sides of a bound"),
        (STRADDLES, gate(min=0.1, min_rows=2), "1 of 1 row could be judged, at least 2 must be"),
    ],
)
def test_what_cannot_be_judged_is_inconclusive_and_named(rows, rule, words):
    result = one(rows, rule)
    assert result.status == "inconclusive"
    assert words in result.detail


def test_a_row_outside_weighs_more_than_a_biased_instrument():
    rows = [row(0.5, 0.4, 0.6), row(0.1, 0.0, 0.2, note="biased instrument: toxicity")]
    result = one(rows, gate(min=0.8))
    assert (result.status, result.unexpected) == ("fail", 1)
    assert "toxicity" in result.detail


def test_some_rows_may_be_missing_or_outside_where_the_gate_says_so():
    rows = [row(1.0, 0.9, 1.1)] * 8 + [row(0.5, 0.4, 0.6), row(None, None, None)]
    assert one(rows, gate(min=0.8, max_missing=0.1)).status == "fail"
    assert one(rows, gate(min=0.8, max_missing=0.1, mostly=0.88)).status == "pass"
    assert one(rows, gate(min=0.8, max_missing=0.05, mostly=0.88)).status == "inconclusive"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(1.0, 1.1, 0.9)], "lower end above"),
        ([row(math.inf, 0.9, 1.1)], "infinite"),
        ([row(1.0, 0.9, math.inf)], "infinite"),
        ([row("many", 0.9, 1.1)], "not a number"),
        ([{"value": 1.0, "lower": 0.9, "n": 5}], "'upper' is not in the table"),
    ],
)
def test_what_no_estimate_can_be_is_an_error(rows, words):
    result = one(rows, gate(min=0.0))
    assert result.status == "error"
    assert words in result.detail


def test_where_selects_rows_of_any_table_and_an_unknown_column_is_an_error():
    table = pd.DataFrame({"stage": ["clean", "dedup", None], "x": [0.1, 0.9, 5.0]})
    known = {"id": "a.b", "suite": "sources", "expectation": "between", "column": "x", "owner": "d", "why": "a" * 10}
    rules = [
        Gate(**known, max=0.2, where={"stage": "clean"}),
        Gate(**known, max=0.2, where={"stage": "dedup"}),
        Gate(**known, max=0.2, where={"stage": "redact"}),
        Gate(**known, max=9.0, where={"stage": ""}),
        Gate(**known, max=0.2, where={"step": "clean"}),
    ]
    results = run_suite(table, rules, "sources")
    assert [result.status for result in results] == ["pass", "fail", "inconclusive", "pass", "error"]
    assert [result.rows for result in results] == [1, 1, 0, 1, 3]
    assert "the table has no row where stage = redact" in results[2].detail


def test_a_lost_or_exchanged_result_is_an_error(monkeypatch):
    execute = expectations._execute
    rules = [gate(min=0.8), gate(min=0.1)]
    table = pd.DataFrame(STRADDLES)
    assert [result.status for result in run_suite(table, rules, "t")] == ["fail", "pass"]
    monkeypatch.setattr(expectations, "_execute", lambda t, built: execute(t, {1: built[1]}))
    assert [result.status for result in run_suite(table, rules, "t")] == ["error", "pass"]

    def swapped(part, built):
        found = execute(part, built)
        return {0: found[1], 1: found[1]}

    monkeypatch.setattr(expectations, "_execute", swapped)
    assert [result.status for result in run_suite(table, rules, "t")] == ["error", "pass"]


def test_an_engine_that_says_success_of_a_failure_is_an_error(monkeypatch):
    execute = expectations._execute

    def kind(part, built):
        found = execute(part, built)
        for outcomes in found.values():
            outcomes[0].success = True
        return found

    monkeypatch.setattr(expectations, "_execute", kind)
    result = one(STRADDLES, gate(min=0.8))
    assert result.status == "error"
    assert "success = True for a result that is fail" in result.detail


NUMBER = st.one_of(st.none(), st.floats(0, 2))
ROWS = st.lists(
    st.builds(
        lambda value, half, n, note: row(
            value, None if value is None or half is None else value - half,
            None if value is None or half is None else value + half, n, note,
        ),
        NUMBER, st.one_of(st.none(), st.floats(0, 1)), st.one_of(st.none(), st.integers(0, 60)),
        st.sampled_from([None, None, "as expected", "biased instrument: x"]),
    ),
    max_size=8,
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(rows=ROWS, rule=st.sampled_from(["point", "lower_ci", "upper_ci", "whole_ci"]), low=NUMBER, high=NUMBER)
def test_the_rows_are_those_of_a_plain_loop(rows, rule, low, high):
    columns = list(row(0, 0, 0))
    found = judge_intervals(pd.DataFrame(rows, columns=columns), rule, (low, high), 10)
    name = {"point": "value", "lower_ci": "lower", "upper_ci": "upper", "whole_ci": "value"}[rule]
    biased = thin = bare = cut = 0
    outside = []
    for place, line in enumerate(rows):
        number = line[name]
        if (line["note"] or "").startswith("biased instrument"):
            biased += 1
        elif line["n"] is None or line["n"] < 10:
            thin += 1
        elif number is None or (rule == "whole_ci" and line["lower"] is None):
            bare += 1
        elif rule == "whole_ci":
            below, above = (low is not None and line["upper"] < low), (high is not None and line["lower"] > high)
            inside = (low is None or line["lower"] >= low) and (high is None or line["upper"] <= high)
            outside += [place] * (below or above)
            cut += not (below or above or inside)
        elif (low is not None and number < low) or (high is not None and number > high):
            outside.append(place)
    assert (found.biased, found.thin, found.bare, found.outside) == (biased, thin, bare, len(outside))
    assert found.cut == cut
    assert sorted(found.places) == outside
    assert found.judged == len(rows) - biased - thin - bare - cut
    if (low, high) != (None, None) and (low is None or high is None or low <= high):
        assert (
            offending_rows(gate(rule=rule, min=low, max=high, min_n=10), pd.DataFrame(rows, columns=columns)) == outside
        )


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(rows=ROWS, rule=st.sampled_from(["point", "lower_ci", "upper_ci", "whole_ci"]))
def test_a_pass_means_that_every_row_was_judged_and_kept(rows, rule):
    table = pd.DataFrame(rows, columns=list(row(0, 0, 0)))
    (result,) = run_suite(table, [gate(rule=rule, min=0.5, min_n=10)], "t")
    found = judge_intervals(table, rule, (0.5, None), 10)
    assert (result.status == "pass") == (found.judged == len(rows) > 0 and found.outside == 0)


def test_a_gate_on_a_gap_fails_the_group_that_is_spoken_of_worse_and_no_other():
    low, others = (-0.91, -0.98, -0.84), (0.30, 0.26, 0.34)
    table = pd.DataFrame([row(value, lower, upper, 500) for value, lower, upper in (low, others, others, others)])
    both = {"rule": "whole_ci", "min": -0.5, "max": 0.5, "min_n": 100, "max_missing": 1.0}
    (result,) = run_suite(table, [gate(**both)], "tone")
    assert (result.status, result.observed) == ("fail", -0.91)
    assert judge_intervals(table, "whole_ci", (-0.5, 0.5), 100).places == (0,)
    cut = pd.DataFrame([row(-0.91, -1.4, -0.3, 500), row(*others, 500)])
    ruled = [gate(**both), gate(**{**both, "max_missing": 0.0})]
    assert [result.status for result in run_suite(cut, ruled, "tone")] == ["pass", "inconclusive"]
