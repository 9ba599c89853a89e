"""The report on differences between groups: only those that the interval supports, harm first."""

from governance.checks.bias.interval_rows import COLUMNS
from governance.reports.html.markup import join
from governance.reports.sections.bias_sections import significant_rows
from governance.reports.sections.group_sections import groups, groups_folded


def row(metric, lower, value, upper, **more):
    fields = dict.fromkeys(COLUMNS) | {"metric": metric, "language": "en", "axis": "gender", "group": "female"}
    tested = {"p": 0.001, "q": 0.01}
    return {**fields, "lower": lower, "value": value, "upper": upper, "n": 100, **tested, **more}


def found(**suites):
    return {"bias": suites, "representation": None}


def test_only_whole_intervals_on_one_side_are_findings():
    rows = [
        row("sentiment_gap", -0.4, -0.3, -0.1, group="far"),
        row("sentiment_gap", -0.2, -0.1, -0.05, group="near"),
        row("sentiment_gap", -0.4, -0.1, 0.2, group="astride"),
        row("sentiment_gap", None, -0.9, None, group="unknown"),
        row("sentiment_gap", -0.9, -0.8, -0.7, group="untrusted", note="biased instrument: sentiment"),
        row("sentiment_gap", -2.0, -1.5, -1.0, group="not tested", p=None, q=None),
        row("npmi_gap", 0.1, 0.2, 0.3, group="by chance", q=0.2),
    ]
    assert [r["group"] for r in significant_rows({"tone": rows})["tone"]] == ["far", "near"]
    assert significant_rows({"association": rows[-1:]}) == {}


def test_of_keep_rates_only_the_adjusted_ones_that_fell_are_findings():
    rows = [
        row("keep_ratio", 0.1, 0.2, 0.3, group="raw"),
        row("keep_ratio_adjusted", 1.5, 2.0, 3.0, group="kept more"),
        row("keep_ratio_adjusted", 0.5, 0.6, 0.7, group="harmed", p=0.01, q=0.02),
    ]
    assert [r["group"] for r in significant_rows({"impact": rows})["impact"]] == ["harmed"]
    page = str(groups(found(impact=rows)))
    assert "adverse impact, ratio below four fifths" in page
    assert "<script" not in page


def test_instruments_are_findings_where_their_own_check_and_a_test_say_so():
    rows = [
        row("instrument_bias", 0.4, 0.5, 0.6, group="planted", note='biased: furthest term "x" +0.5'),
        row("instrument_bias", -0.1, 0.1, 0.3, group="one term", note='biased: furthest term "y" +0.9'),
        row("instrument_bias", 0.5, 0.5, 0.5, group="untested", p=None, q=None, note='biased: furthest term "v" +0.5'),
        row("instrument_bias", 0.009, 0.01, 0.011, group="sound", note='not biased: furthest term "z" +0.01'),
    ]
    assert [r["group"] for r in significant_rows({"instruments": rows})["instruments"]] == ["planted"]


def test_hostile_names_reach_the_page_as_text_and_nothing_is_reported_aloud():
    hostile = found(tone=[row("sentiment_gap", -0.4, -0.3, -0.1, group="<script>alert(1)</script>", p=0.01, q=0.02)])
    page = join([groups(hostile), *groups_folded(hostile)])
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 3
    assert "no bias audit" in str(groups(found()))
