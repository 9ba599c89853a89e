"""Coverage: a corpus in languages without word lists never passes as audited."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.checks.audit import INTERVAL_COLUMNS
from governance.checks.bias.representation import coverage_rows, uncovered_note
from governance.checks.expectations import run_suite
from governance.checks.suites import frame_of
from governance.gate.policy import load_policy
from tests.governance.bias_counts import table_of

LISTED = ("en", "de")


def covered(sizes, scored=None):
    """The coverage rows of a corpus with so many documents for each language."""
    rows = [
        (code, "web", bucket, number, 9, 1, 99)
        for code, number in sizes.items()
        for bucket, number in enumerate([number])
    ]
    return coverage_rows(table_of("documents", rows), LISTED, scored or {})


def by_default(rows):
    """The result of the default policy's gate on these rows."""
    policy = load_policy(Path(__file__).parents[2] / "configs" / "policy.toml")
    [gate] = [gate for gate in policy.gates() if gate.id == "representation.measured"]
    [result] = run_suite(frame_of(rows, INTERVAL_COLUMNS), [gate], "representation")
    return result


@given(st.dictionaries(st.sampled_from(["en", "de", "xx", "yy", "und"]), st.integers(1, 10**6), min_size=1))
def test_coverage_is_the_share_of_documents_in_listed_languages(sizes):
    [row] = covered(sizes)
    inside = sum(number for code, number in sizes.items() if code in LISTED)
    assert row["value"] == row["lower"] == pytest.approx(inside / sum(sizes.values()), abs=1e-8)
    assert (row["upper"], row["n"]) == (1.0, sum(sizes.values()))
    named = {code for code in sizes if code not in LISTED}
    assert (row["note"] is None) == (not named)
    assert all((code if code != "und" else "language unknown") in row["note"] for code in named)


def test_each_list_that_scores_sentences_has_its_own_row():
    rows = covered({"en": 60, "de": 30, "xx": 10}, {"sentiment": ("en",), "toxicity": ("en", "de")})
    assert {row["instrument"]: row["value"] for row in rows} == {None: 0.9, "sentiment": 0.6, "toxicity": 0.9}
    assert rows[1]["note"] == "40 % of documents are in languages that no sentiment list covers: de 30 %, xx 10 %"


@pytest.mark.parametrize(
    ("sizes", "status"),
    [({"en": 1000}, "pass"), ({"en": 970, "xx": 30}, "pass"), ({"xx": 1000, "en": 1}, "inconclusive"),
     ({"en": 90, "und": 10}, "inconclusive"), ({"xx": 5}, "inconclusive"), ({}, "inconclusive")],
)  # fmt: skip
def test_the_default_gate_needs_coverage_and_not_a_row(sizes, status):
    assert by_default(covered(sizes)).status == status


def test_the_gate_says_in_words_what_was_not_counted():
    detail = by_default(covered({"en": 57, "xx": 40, "yy": 3})).detail
    assert "43 % of documents are in languages that no word list covers: xx 40 %, yy 3.0 %" in detail


def test_what_is_little_is_not_called_none_nor_nearly_all_called_all():
    words = uncovered_note({"aa": 9_997, "bb": 1}, 10_000)
    assert words == "> 99.9 % of documents are in languages that no word list covers: aa > 99.9 %, bb < 0.1 %"
    many = uncovered_note({f"a{number:02}": 2 for number in range(20)}, 100)
    assert many.endswith("a06 2.0 %, a07 2.0 %, 12 more 24 %")
