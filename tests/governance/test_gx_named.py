"""Gates that name any expectation of Great Expectations: each verdict is GX's, and every failure closes."""

from __future__ import annotations

import datetime
import json
import re
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from governance.checks.data_docs import write_data_docs
from governance.checks.expectations import built_expectations, run_suite
from governance.checks.gx.own_expectations import source_digests
from governance.checks.gx.suite_files import gates_toml, read_suite, write_suites
from governance.checks.suites import SuiteTable
from governance.config import validate
from governance.errors import ConfigError, PipelineError
from governance.gate import site_policy
from governance.gate.approvals import policy_differences
from governance.gate.policy import Gate, Policy, load_policy
from governance.gate.site_policy import VARIABLE
from tests.governance.yard import Yard

TABLE = pd.DataFrame({
    "language": ["en", "de", "eng", None],
    "words": [10, 20, 30, 40],
    "kept": [5, 20, 29, 38],
    "big": [2**60, 1, 2, 3],
    "score": [0.5, float("inf"), 0.1, 0.2],
})  # fmt: skip


def gate(gx, more=None, **kwargs):
    return Gate(id="a.b", suite="documents", gx=gx, kwargs=kwargs, owner="data", why="a reason for it", **(more or {}))


def judged(one, table=TABLE):
    [found] = run_suite(table, [one], "subject")
    return found


@pytest.mark.parametrize(
    ("one", "status", "observed"),
    [
        (gate("expect_column_value_lengths_to_be_between", {"max_missing": 0.3}, column="language", min_value=2,
              max_value=3), "pass", 1.0),
        (gate("expect_column_value_lengths_to_be_between", column="language", min_value=2, max_value=3),
         "inconclusive", 1.0),  # a quarter is missing
        (gate("expect_column_value_lengths_to_be_between", column="language", max_value=2), "fail", 2 / 3),
        (gate("expect_column_value_lengths_to_be_between", {"max_missing": 0.3, "mostly": 0.6}, column="language",
              max_value=2), "pass", 2 / 3),
        (gate("expect_column_value_lengths_to_be_between", {"max_missing": 0.3}, column="language", max_value=2,
              mostly=0.6), "pass", 2 / 3),
        (gate("expect_column_median_to_be_between", column="words", min_value=25, max_value=25), "pass", 25.0),
        (gate("expect_column_sum_to_be_between", column="words", max_value=99), "fail", 100.0),
        (gate("expect_column_pair_values_a_to_be_greater_than_b", column_A="words", column_B="kept", or_equal=True),
         "pass", 1.0),
        (gate("expect_table_column_count_to_equal", value=5), "pass", 5.0),
        (gate("expect_table_columns_to_match_ordered_list", column_list=["words"]), "fail", None),
        (gate("expect_column_to_exist", column="words"), "pass", None),
        (gate("expect_column_to_exist", column="nowhere"), "fail", None),
        (gate("expect_column_values_to_not_be_in_set", {"where": {"language": "en"}}, column="words", value_set=[20]),
         "pass", 1.0),
        (gate("expect_column_values_to_be_null", column="language", mostly=0.2), "pass", 0.25),
    ],
)  # fmt: skip
def test_gx_judges_with_its_own_arguments(one, status, observed):
    found = judged(one)
    assert (found.status, found.observed) == (
        status,
        pytest.approx(observed) if observed is not None else found.observed,
    )


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (gate("expect_nothing"), "has no expectation 'expect_nothing'"),
        (gate("expect_column_sum_to_be_betwen"), "did you mean 'expect_column_sum_to_be_between'"),
        (gate("expect_column_sum_to_be_between", column="words", min_value=1, bogus=2), "extra fields not permitted"),
        (gate("expect_column_sum_to_be_between", column="words", min_value="much"), "min_value"),
        (gate("expect_column_sum_to_be_between", min_value=1), "column"),
        (gate("expect_column_sum_to_be_between", column="wrods", min_value=1), "did you mean 'words'?"),
        (gate("expect_column_sum_to_be_between", column="words"), "has no constraint"),
        (gate("expect_column_values_to_be_in_set", column="words", value_set=[]), "has no constraint"),
        (gate("expect_column_sum_to_be_between", {"mostly": 0.5}, column="words", min_value=1), "no argument `mostly`"),
        (gate("expect_column_sum_to_be_between", column="words", min_value=1, row_condition="words"), "own fields"),
        (gate("expect_column_max_to_be_between", column="big", max_value=2**60), "beyond 2^53"),
        (gate("expect_column_max_to_be_between", column="score", max_value=2), "infinite"),
        (gate("expect_column_values_to_match_strftime_format", column="words", strftime_format="%Y"), ""),
        (gate("expect_query_results_to_match_comparison", base_query="SELECT 1", comparison_data_source_name="x",
              comparison_query="SELECT 1"), ""),
        (gate("no.such.module:ExpectIt"), "cannot be imported"),
        (gate("expect_column_values_to_not_be_null", column="words", mostly=0), "has no constraint"),
        (gate("expect_column_values_to_not_be_null", column="words", mostly=1.5), "mostly"),
        (gate("expect_column_quantile_values_to_be_between", column="words",
              quantile_ranges={"quantiles": [0.5], "value_ranges": [[None, None]]}), "has no constraint"),
        (gate("expect_column_quantile_values_to_be_between", column="words",
              quantile_ranges={"quantiles": [], "value_ranges": []}), "has no constraint"),
        (gate("expect_column_values_to_be_in_type_list", column="words"), "has no constraint"),
        (gate("expect_table_columns_to_match_ordered_list"), "has no constraint"),
        (gate("expect_table_columns_to_match_set"), "has no constraint"),
        (gate("expect_column_to_exist", column="words", column_index=0), "ignores"),
        (gate("expect_column_values_to_match_regex", column="language"), "has no constraint"),
        (gate("expect_column_values_to_match_regex_list", column="language", regex_list=["a", ""]), "every text"),
        (gate("expect_column_kl_divergence_to_be_less_than", column="words",
              partition_object={"values": [10], "weights": [1.0]}), "has no constraint"),
        (gate("json:JSONDecoder"), "is not a class of expectations"),
    ],
)  # fmt: skip
def test_whatever_gx_refuses_or_raises_is_an_error_of_the_gate(one, words):
    found = judged(one)
    assert found.status == "error", found
    assert words in found.detail


@pytest.mark.parametrize(
    "one",
    [
        gate("expect_column_sum_to_be_between", column="words", max_value=99),
        gate("expect_table_row_count_to_be_between", min_value=0),
        gate("expect_column_values_to_be_unique", column="words"),
    ],
)
def test_no_gate_passes_over_an_empty_table(one):
    assert judged(one, TABLE[:0]).status == "inconclusive"


def test_a_pattern_ends_where_the_text_ends():
    table = pd.DataFrame({"x": ["a\n"]})
    assert judged(gate("expect_column_values_to_match_regex", column="x", regex="^a$"), table).status == "fail"
    assert (
        judged(gate("expect_column_values_to_match_regex_list", column="x", regex_list=["^a$"]), table).status == "fail"
    )


def test_a_forbidden_pattern_keeps_its_final_line_feed():
    table = pd.DataFrame({"x": ["bad\n"]})
    assert judged(gate("expect_column_values_to_not_match_regex", column="x", regex="bad$"), table).status == "fail"
    listed = gate("expect_column_values_to_not_match_regex_list", column="x", regex_list=["bad$"])
    assert judged(listed, table).status == "fail"


def test_a_gate_on_the_table_sees_all_its_columns_whatever_is_judged_with_it():
    exact = gate("expect_table_columns_to_match_set", column_set=["words"])
    part = gate("expect_table_columns_to_match_set", column_set=["words"], exact_match=False)
    second = gate("expect_column_to_exist", column="words", column_index=1)
    third = gate("expect_column_to_exist", column="words", column_index=2)
    alone = [judged(one).status for one in (exact, part, second, third)]
    assert alone == ["fail", "pass", "pass", "fail"]
    assert [found.status for found in run_suite(TABLE, [exact, part, second, third], "subject")] == alone


PAIR = {"column_A": "a", "column_B": "b"}
SEVERAL = [
    gate("expect_column_pair_values_to_be_equal", **PAIR),
    gate("expect_column_pair_values_a_to_be_greater_than_b", or_equal=True, **PAIR),
    gate("expect_compound_columns_to_be_unique", column_list=["a", "b"]),
    gate("expect_select_column_values_to_be_unique_within_record", column_list=["a", "b"]),
    gate("expect_multicolumn_sum_to_equal", column_list=["a", "b"], sum_total=2),
]


@pytest.mark.parametrize("one", SEVERAL, ids=lambda one: one.gx)
def test_several_columns_without_values_are_inconclusive(one):
    table = pd.DataFrame({"a": [1.0, 1.0] * 2, "b": [1.0, 1.0] * 2})
    table[["a", "b"]] = float("nan")
    assert judged(one, table).status == "inconclusive"


def test_missing_values_and_few_rows_count_on_several_columns():
    table = pd.DataFrame({"a": [1.0, 2.0, None, None], "b": [1.0, 2.0, None, None]})
    equal = SEVERAL[0]
    assert judged(equal, table).status == "inconclusive"
    assert judged(equal.model_copy(update={"max_missing": 0.5}), table).status == "pass"
    assert judged(equal.model_copy(update={"max_missing": 0.5, "min_rows": 3}), table).status == "inconclusive"
    lopsided = judged(equal, pd.DataFrame({"a": [1.0, 2.0, None], "b": [1.0, 3.0, 4.0]}))
    assert (lopsided.status, lopsided.observed) == ("fail", pytest.approx(1 / 3))


def test_a_column_without_deviation_has_no_z_scores():
    one = gate("expect_column_value_z_scores_to_be_less_than", column="x", threshold=1, double_sided=True)
    assert judged(one, pd.DataFrame({"x": [5.0, 5.0, 5.0]})).status == "inconclusive"
    assert judged(one, pd.DataFrame({"x": [5.0, 5.0, 5.0, 90.0]})).status == "fail"


OWN = """
    import great_expectations.expectations as gxe

    class ExpectShortWords(gxe.ExpectColumnValueLengthsToBeBetween):
        min_value: int = {least}
        max_value: int = 3

    class ExpectTrouble(gxe.ExpectColumnValuesToNotBeNull):
        def _validate(self, *arguments, **more):
            raise RuntimeError("trouble of its own")
"""


def test_own_expectations_come_by_dotted_path_and_their_source_is_digested(tmp_path, monkeypatch):
    source = tmp_path / "assay_own_rules.py"
    source.write_text(textwrap.dedent(OWN.format(least=1)))
    monkeypatch.syspath_prepend(tmp_path)
    short = gate("assay_own_rules:ExpectShortWords", {"max_missing": 0.3}, column="language")
    assert judged(short).status == "pass", judged(short).detail
    trouble = judged(gate("assay_own_rules:ExpectTrouble", column="language"))
    assert (trouble.status, "trouble of its own" in trouble.detail) == ("error", True)
    before = source_digests([short])
    source.write_text(textwrap.dedent(OWN.format(least=2)))
    assert before["assay_own_rules:ExpectShortWords"] != source_digests([short])["assay_own_rules:ExpectShortWords"]
    assert source_digests([gate("no.such.module:X")]) == {"no.such.module:X": ""}


def test_the_example_of_the_page_judges_as_shown(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "own_code.md").read_text(encoding="utf-8")
    part = page.partition("\n## An expectation of a gate")[2].partition("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", part, re.S)
    [section] = re.findall(r"```toml\n(.*?)```", part, re.S)
    assert len(code.splitlines()) <= 15
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "expectations.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    [values] = tomllib.loads(section)["gate"]
    one = validate(values, Gate, "policy.toml")
    try:
        good, bad = (
            judged(one, pd.DataFrame({"language": languages}))
            for languages in (["en", "sr-Latn", "ceb"], ["en", "English", "sr-latn"])
        )
        assert (good.status, good.observed) == ("pass", 1.0), good.detail
        assert (bad.status, bad.observed) == ("fail", pytest.approx(1 / 3))
        assert set(source_digests([one])) == {"mylab.expectations:ExpectLanguageCode"}
    finally:
        for name in ("mylab.expectations", "mylab"):
            sys.modules.pop(name, None)


@pytest.fixture
def own_rules(tmp_path, monkeypatch):
    """The path of a module with a custom expectation, on Python's path."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(site_policy, "SYSTEM", tmp_path / "none" / "policy.toml")
    monkeypatch.syspath_prepend(tmp_path)
    name = f"assay_rules_{tmp_path.name.translate(str.maketrans('[]-', '___'))}"
    path = tmp_path / f"{name}.py"
    path.write_text(textwrap.dedent(OWN.format(least=1)))
    return path


def own_gate(path, **more):
    return gate(f"{path.stem}:ExpectShortWords", {"max_missing": 0.3, **more}, column="language")


LOOPS = """
    import great_expectations.expectations as gxe

    class ExpectForEver(gxe.ExpectColumnValuesToNotBeNull):
        def _validate(self, *arguments, **more):
            while True:
                sum(range(1000))
"""


def test_an_own_expectation_that_loops_is_ended_and_leaves_its_neighbours_alone(own_rules):
    own_rules.write_text(textwrap.dedent(LOOPS))
    loops = gate(f"{own_rules.stem}:ExpectForEver", {"seconds": 0.2, "max_missing": 0.3}, column="language")
    plain = gate("expect_column_to_exist", column="language")
    found = run_suite(TABLE, [loops, plain], "table")
    assert [result.status for result in found] == ["error", "pass"]
    own_rules.with_name(f"{own_rules.stem}_2.py").write_text("while True:\n    pass\n")
    [stuck] = run_suite(TABLE, [gate(f"{own_rules.stem}_2:X", {"seconds": 0.2}, column="language")], "table")
    assert (stuck.status, "no answer after 0.2 seconds" in stuck.detail) == ("error", True), stuck.detail
    assert built_expectations(TABLE, [gate(f"{own_rules.stem}_2:X", {"seconds": 0.2}, column="language")]) == []
    with pytest.raises(ValueError, match="`seconds` belong to a custom class"):
        gate("expect_column_to_exist", {"seconds": 1}, column="language")
    assert "seconds" not in plain.model_dump()


@pytest.mark.parametrize("judging", [False, True])
def test_an_own_expectation_that_exits_is_an_error_of_its_gate(own_rules, judging, tmp_path):
    loops, exits = "while True:\n                sum(range(1000))", "raise SystemExit(0)"
    own_rules.write_text(textwrap.dedent(LOOPS.replace(loops, exits)) if judging else f"{exits}\n")
    one = gate(f"{own_rules.stem}:ExpectForEver", {"max_missing": 0.3}, column="language")
    found = run_suite(TABLE, [one, gate("expect_column_to_exist", column="language")], "table")
    assert [result.status for result in found] == ["error", "pass"]
    assert "SystemExit: 0" in found[0].detail
    assert "PYTHONPATH" not in found[0].detail
    assert len(built_expectations(TABLE, [one])) == judging
    if judging:
        with pytest.raises(PipelineError, match=r"custom expectation of suite .*: SystemExit: 0"):
            write_data_docs([(one.suite, SuiteTable("table", TABLE))], [one], tmp_path / "docs")


def test_another_source_than_the_pinned_one_is_an_error_and_is_not_run(own_rules):
    [digest] = source_digests([own_gate(own_rules)]).values()
    own_rules.write_text(f"raise SystemExit\n{own_rules.read_text()}")
    found = judged(own_gate(own_rules, sha256=digest))
    assert (found.status, f"the gate pins {digest}" in found.detail) == ("error", True), found.detail
    assert own_rules.stem not in sys.modules
    own_rules.write_text(textwrap.dedent(OWN.format(least=1)))
    assert judged(own_gate(own_rules, sha256=digest)).status == "pass"


def test_a_site_requires_the_digest_of_own_code(own_rules, monkeypatch):
    open_there = source_digests([own_gate(own_rules)])
    monkeypatch.setenv(VARIABLE, "/somewhere/policy.toml")
    found = judged(own_gate(own_rules))
    [digest] = open_there.values()
    assert (found.status, digest in found.detail) == ("error", True), found.detail
    assert own_rules.stem not in sys.modules
    assert source_digests([own_gate(own_rules)]) != open_there, "no audit from outside the site is reused"
    pinned = own_gate(own_rules, sha256=digest)
    assert source_digests([pinned]) == open_there
    assert judged(pinned).status == "pass"


@pytest.mark.parametrize("package", [False, True])
def test_code_in_an_archive_has_no_digest_and_is_not_run(own_rules, tmp_path, monkeypatch, package):
    name = f"{own_rules.stem}_zipped"
    with zipfile.ZipFile(tmp_path / "rules.zip", "w") as archive:
        archive.writestr(f"{name}/__init__.py" if package else f"{name}.py", own_rules.read_text())
    monkeypatch.syspath_prepend(tmp_path / "rules.zip")
    one = gate(f"{name}:ExpectShortWords", {"max_missing": 0.3}, column="language")
    found = judged(one)
    assert (found.status, "cannot be imported from files" in found.detail) == ("error", True), found.detail
    assert list(source_digests([one]).values()) == [""]


def test_suites_go_out_as_gx_json_and_come_back(tmp_path):
    between = Gate(id="documents.words", suite="documents", expectation="between", column="words", min=5.0,
                   mostly=0.9, owner="data", why="a reason for it")  # fmt: skip
    lengths = gate("expect_column_value_lengths_to_be_between", {"severity": "warning"}, column="language", min_value=2)
    [path] = write_suites([between, lengths], tmp_path / "out")
    rows = json.loads(path.read_bytes())["expectations"]
    assert [(row["type"], row["severity"]) for row in rows] == [
        ("expect_column_values_to_be_between", "critical"), ("expect_column_value_lengths_to_be_between", "warning"),
    ]  # fmt: skip
    assert rows[0]["kwargs"] == {"column": "words", "min_value": 5.0, "mostly": 0.9}
    import great_expectations as gx

    assert len(gx.ExpectationSuite(**json.loads(path.read_bytes())).expectations) == 2  # GX reads its own form
    assert read_suite(path, "documents", "data") == [between, lengths]
    with pytest.raises(ConfigError, match="not empty"):
        write_suites([between], tmp_path / "out")


def test_a_suite_of_others_becomes_gates_of_a_policy(tmp_path):
    path = tmp_path / "suite.json"
    old = {"expectation_type": "expect_column_values_to_not_be_null", "kwargs": {"column": "words"}}
    new = {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 1}, "severity": "info",
           "description": "there are rows"}  # fmt: skip
    path.write_text(json.dumps({"name": "mine", "expectations": [old, old, new]}))
    gates = read_suite(path, "documents", "data")
    assert [one.id for one in gates] == [
        "documents.words_column_values_to_not_be_null", "documents.words_column_values_to_not_be_null_2",
        "documents.table_row_count_to_be_between",
    ]  # fmt: skip
    assert [one.severity for one in gates] == ["critical", "critical", "warning"]
    assert {one.status for one in run_suite(TABLE, gates, "subject")} == {"pass"}
    policy = tmp_path / "policy.toml"
    policy.write_text(f'name = "p"\nowners = {{ data = ["x"] }}\nlicences = {{ allowed = [] }}\n\n{gates_toml(gates)}')
    assert load_policy(policy).gates() == tuple(gates)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="is not a suite"):
        read_suite(path, "documents", "data")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"quantile_ranges": {"quantiles": [0.5], "value_ranges": [[1, None]]}}, "quantile_ranges.value_ranges.0.1"),
        ({"min_value": float("inf")}, "has no inf"),
        ({"min_value": 1, "row_condition": 'language == "en"'}, "row_condition"),
        ({"min_value": 1, "condition_parser": "pandas"}, "condition_parser"),
    ],
)
def test_a_suite_that_no_gate_can_hold_is_refused(tmp_path, kwargs, words):
    path = tmp_path / "suite.json"
    row = {"type": "expect_column_sum_to_be_between", "kwargs": {"column": "words", **kwargs}}
    path.write_text(json.dumps({"name": "mine", "expectations": [row]}))
    with pytest.raises(ConfigError, match=words):
        read_suite(path, "documents", "data")


def test_what_says_how_gx_reports_is_dropped_from_a_suite(tmp_path):
    path = tmp_path / "suite.json"
    kwargs = {"column": "words", "min_value": 1, "result_format": "BASIC", "batch_id": "x", "max_value": None}
    path.write_text(json.dumps({"expectations": [{"type": "expect_column_sum_to_be_between", "kwargs": kwargs}]}))
    [one] = read_suite(path, "documents", "data")
    assert one.kwargs == {"column": "words", "min_value": 1}
    assert judged(one).status == "pass"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gx": "expect_column_to_exist", "expectation": "not_null", "column": "x"}, "either"),
        ({"gx": "Not A Name"}, "gx"),
        ({"gx": "expect_column_to_exist", "min": 1.0}, "kwargs"),
        ({"gx": "expect_column_to_exist", "column": "x", "kwargs": {"column": "y"}}, "column"),
        ({"kwargs": {"column": "y"}, "expectation": "not_null", "column": "y"}, "kwargs"),
        ({}, "expectation"),
        ({"gx": "expect_column_to_exist", "sha256": "0" * 64}, "sha256"),
        ({"gx": "mylab.rules:ExpectIt", "sha256": "0"}, "sha256"),
        ({"gx": "expect_column_to_exist", "kwargs": {"column": float("inf")}}, "kwargs"),
        ({"gx": "expect_column_to_exist", "kwargs": {"column": datetime.date(2026, 1, 1)}}, "kwargs"),
    ],
)
def test_a_policy_refuses_a_gate_of_two_minds(values, words):
    with pytest.raises(ValueError, match=words):
        Gate(**{"id": "a.b", "suite": "documents", "owner": "data", "why": "a reason for it", **values})


def test_a_policy_without_such_gates_keeps_its_digest():
    plain = Gate(id="a.b", suite="documents", expectation="not_null", column="x", owner="data", why="a reason for it")
    assert not {"gx", "kwargs", "sha256"} & set(plain.model_dump())


def test_another_pin_loosens_a_policy_and_a_first_one_does_not():
    def policy(digest):
        one = gate("mylab.rules:ExpectIt", {"sha256": digest})
        return Policy(name="p", owners={"data": ("ann",)}, licences={"allowed": ()}, gate=(one,))

    bare, pinned, other = policy(""), policy("1" * 64), policy("2" * 64)
    loosened = [policy_differences(*pair)[0].loosened for pair in ((pinned, bare), (bare, pinned), (other, pinned))]
    assert loosened == [False, True, True]


def test_a_verdict_names_own_sources_and_is_the_same_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(site_policy, "SYSTEM", tmp_path / "none" / "policy.toml")
    monkeypatch.delenv(VARIABLE, raising=False)
    yard = Yard(tmp_path)
    assert "own_sources" not in yard.judge()
    yard.audit = yard.audit.model_copy(update={"config": {"own_sources": {}}})
    assert "own_sources" not in yard.judge()
    sources = {"mylab.rules:ExpectIt": "5" * 64}
    yard.audit = yard.audit.model_copy(update={"config": {"own_sources": sources}})
    assert yard.judge()["own_sources"] == sources
    assert yard.open()["own_sources"] == sources
