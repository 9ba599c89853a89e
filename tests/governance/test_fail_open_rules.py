"""Rules that must not be passed by accident: edges of the engine, and whose rules a run is under."""

from __future__ import annotations

import decimal
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.checks.expectations import run_suite
from governance.checks.findings import offending_rows
from governance.checks.judgeable import EXACT, anchored
from governance.config import validate
from governance.errors import ConfigError
from governance.policy import Gate

WIDE = EXACT + 1


def gate(expectation, column="x", **fields):
    known = {"id": "a.b", "suite": "documents", "owner": "data", "why": "a reason for the test"}
    return Gate(**{**known, "expectation": expectation, "column": column, **fields})


def judged(values, rule, dtype=object):
    [result] = run_suite(pd.DataFrame({"x": pd.Series(values, dtype=dtype)}), [rule], "table")
    return result


# --- the engine's edges: each of these passed, or broke the audit, before


@pytest.mark.parametrize(
    ("values", "rule", "dtype", "status", "words"),
    [
        ([1.0, -math.inf], gate("between", max=5.0), object, "error", "1 infinite value"),
        ([1.0, math.inf], gate("between", min=0.0), "category", "error", "1 infinite value"),
        ([decimal.Decimal("-Infinity")], gate("between", max=5.0), object, "error", "1 infinite value"),
        ([-1e308] * 20, gate("mean_between", max=5.0), float, "inconclusive", "no finite number was observed"),
        ([10**400], gate("between", min=0.0), object, "inconclusive", "no finite number was observed"),
        ([10**400], gate("between", max=5.0), object, "fail", "0 of 1 rows"),
        ([WIDE], gate("between", max=float(EXACT)), "int64", "fail", f"such as {WIDE}"),
        ([-WIDE], gate("between", min=-float(EXACT)), "int64", "fail", f"such as -{WIDE}"),
        ([2**64 - 1], gate("between", max=float(2**63)), "uint64", "fail", f"such as {2**64 - 1}"),
        ([WIDE], gate("mean_between", max=float(EXACT)), "int64", "error", "integers beyond 2^53"),
        ([WIDE], gate("quantile_between", quantile=1.0, max=float(EXACT)), "int64", "error", "integers beyond 2^53"),
        (["a\n"], gate("match_regex", regex="^a+$"), object, "fail", "0 of 1 rows"),
        (["a\n"], gate("match_regex", regex="^(a+$|b$)"), "str", "fail", "0 of 1 rows"),
    ],
)
def test_an_edge_of_the_engine_does_not_pass(values, rule, dtype, status, words):
    result = judged(values, rule, dtype)
    assert (result.status, words in result.detail) == (status, True), result.detail


@pytest.mark.parametrize("bounds", [{"max": 9.0}, {"min": 0.0}])
def test_an_estimate_outside_its_own_interval_is_an_error(bounds):
    table = pd.DataFrame([{"value": value, "lower": 0.81, "upper": 0.95, "n": 9} for value in (0.9, 99.0, 0.1)])
    for rule in ("point", "lower_ci", "upper_ci"):
        [result] = run_suite(table, [gate("interval_between", column="", rule=rule, **bounds)], "table")
        assert (result.status, "2 row(s) whose value lies outside" in result.detail) == ("error", True), result.detail
    [result] = run_suite(table[:1], [gate("interval_between", column="", max=1.0)], "table")
    assert result.status == "pass"


_NEAR = st.integers(EXACT - 4, EXACT + 64)


@given(value=_NEAR, bound=_NEAR.filter(lambda number: int(float(number)) == number), sign=st.sampled_from([1, -1]))
def test_integers_are_compared_with_a_bound_as_integers(value, bound, sign):
    """By the engine for the verdict, and by the reader's list of offending rows."""
    value, bound = sign * value, sign * bound
    for rule, kept in (
        (gate("between", max=float(bound)), value <= bound),
        (gate("between", min=bound), value >= bound),
    ):
        assert (judged([value], rule, "int64").status == "pass") == kept
        assert (offending_rows(rule, pd.DataFrame({"x": [value]})) == []) == kept


def test_a_bound_that_no_float_holds_is_refused():
    values = gate("between", max=1.0).model_dump(mode="json")
    with pytest.raises(ConfigError, match="no 64-bit float holds this integer"):
        validate({**values, "max": WIDE}, Gate, "gate")
    assert validate({**values, "max": EXACT}, Gate, "gate").max == EXACT


@pytest.mark.parametrize(
    ("written", "handed"),
    [
        ("^a+$", r"^a+\Z"),
        ("a$|b$", r"a\Z|b\Z"),
        (r"a\$", r"a\$"),
        ("[$]$", r"[$]\Z"),
        ("[]$]$", r"[]$]\Z"),
        ("[^]$]", "[^]$]"),
        (r"[\]$]$", r"[\]$]\Z"),
        (r"\\$", r"\\\Z"),
        ("(?m)^a$", "(?m)^a$"),
    ],
)
def test_the_dollar_is_the_end_of_the_text(written, handed):
    assert anchored(written) == handed
