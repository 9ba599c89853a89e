"""Merging of workers' findings: a lost, doubled, foreign or incomplete result never becomes a pass."""

from __future__ import annotations

import copy
import json
import random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.checks.gathering import Expected, SuiteSection, merge_findings, write_finding
from governance.checks.suites import SuiteTable
from governance.gate.policy import Gate

GATES = tuple(
    Gate(id=f"documents.{name}", suite="documents", owner="data", why="a reason for the test", **fields)
    for name, fields in {
        "words": {"expectation": "between", "column": "words", "min": 5.0},
        "rows": {"expectation": "row_count_between", "min": 1.0},
    }.items()
)
SECTION = SuiteSection(suite="documents", gates=GATES)
SHARDS = [Expected(f"clean/0/features/{number}.parquet", f"{number}" * 64) for number in range(3)]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """The findings of three workers that did their work."""
    folder = tmp_path_factory.mktemp("findings")
    paths = [folder / f"{number}.json" for number in range(3)]
    for shard, path in zip(SHARDS, paths, strict=True):
        write_finding(SECTION, SuiteTable(shard.subject, pd.DataFrame({"words": [9, 10]})), shard, path)
    return read_all(paths)


def read_all(paths):
    return [json.loads(path.read_bytes()) for path in paths]


def statuses(found, shards=SHARDS):
    return {(row.gate, row.subject): row.status for row in merge_findings(SECTION, shards, found, "clean/0/features")}


def test_work_that_was_done_is_believed_in_any_order(findings):
    right = statuses(findings)
    assert set(right.values()) == {"pass"}
    assert len(right) == 6
    assert statuses(findings[::-1]) == right


def test_a_dropped_finding_is_missing(findings):
    found = statuses(findings[:2])
    assert {row for row, status in found.items() if status != "pass"} == {(g.id, SHARDS[2].subject) for g in GATES}
    assert {found[gate.id, SHARDS[2].subject] for gate in GATES} == {"missing"}


def test_no_findings_at_all_are_missing():
    assert set(statuses([]).values()) == {"missing"}


def test_a_doubled_finding_is_an_error_even_when_both_say_the_same(findings):
    found = statuses([*findings, findings[0]])
    assert {found[gate.id, SHARDS[0].subject] for gate in GATES} == {"error"}


def test_a_finding_of_no_shard_is_an_error(findings):
    found = statuses([*findings, {**findings[0], "subject": "elsewhere"}])
    assert {found[gate.id, "elsewhere"] for gate in GATES} == {"error"}


def changed(finding, **fields):
    return {**copy.deepcopy(finding), **fields}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: changed(f, suite="raw"), "of suite 'raw'"),
        (lambda f: changed(f, sha256="f" * 64), "not this shard's"),
        (lambda f: changed(f, gates=f["gates"][:1]), "the finding has the gates"),
        (lambda f: changed(f, gates=f["gates"][:1], results=f["results"][:1]), "the finding has the gates"),
        (lambda f: changed(f, results=f["results"][:1]), "the results are for"),
        (lambda f: changed(f, results=[*f["results"], f["results"][0]]), "the results are for"),
        (lambda f: changed(f, results=f["results"][::-1]), "the results are for"),
        (lambda f: changed(f, results=[f["results"][0]] * 2), "the results are for"),
        (lambda f: changed(f, results=[]), "the results are for"),
        (lambda f: changed(f, judged=False), "it has rows but was not judged"),
        (lambda f: changed(f, judged=False, rows=0), "it has rows but was not judged"),
        (lambda f: changed(f, results=[changed(row, subject="other") for row in f["results"]]), "another subject"),
    ],
)
def test_results_of_other_work_than_requested_are_an_error(findings, change, words):
    results = merge_findings(SECTION, SHARDS, [change(findings[0]), *findings[1:]], "clean/0/features")
    bad = [row for row in results if row.status != "pass"]
    assert [(row.gate, row.subject, row.status) for row in bad] == [
        (gate.id, SHARDS[0].subject, "error") for gate in GATES
    ]
    assert all(words in row.detail for row in bad)


def test_a_shard_of_which_nothing_is_kept_has_nothing_to_judge_as_long_as_another_has(findings, tmp_path):
    write_finding(SECTION, SuiteTable(SHARDS[0].subject, pd.DataFrame({"words": []})), SHARDS[0], tmp_path / "0.json")
    [empty] = read_all([tmp_path / "0.json"])
    assert set(statuses([empty, *findings[1:]]).values()) == {"pass"}
    found = statuses([empty], SHARDS[:1])
    assert found == {
        ("documents.words", "clean/0/features"): "inconclusive",
        ("documents.rows", "clean/0/features"): "fail",
    }


def test_a_problem_is_an_error_of_each_gate(tmp_path):
    write_finding(SECTION, SuiteTable(SHARDS[0].subject, pd.DataFrame(), "is torn"), SHARDS[0], tmp_path / "0.json")
    assert set(statuses(read_all([tmp_path / "0.json"]), SHARDS[:1]).values()) == {"error"}


def test_without_gates_there_is_nothing_to_gather(findings):
    assert merge_findings(SuiteSection(suite="documents", gates=()), SHARDS, findings, "x") == []


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), copies=st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_everything_passes_only_when_each_came_exactly_once(findings, seed, copies):
    came = [finding for finding, times in zip(findings, copies, strict=True) for _ in range(times)]
    random.Random(seed).shuffle(came)
    found = statuses(came)
    assert len(found) == 6
    for shard, times in zip(SHARDS, copies, strict=True):
        wanted = {0: "missing", 1: "pass", 2: "error"}[times]
        assert {found[gate.id, shard.subject] for gate in GATES} == {wanted}
