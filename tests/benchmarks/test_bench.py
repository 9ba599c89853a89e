"""`make bench`: printed goals are read back, and the README's numbers are those of its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measures import bench
from benchmarks.measures.bench_page import bench_page, margin, with_section
from benchmarks.measures.goals import Goal, read_line

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = st.from_regex(r"[a-z0-9_.]{1,20}", fullmatch=True)
VALUES = st.floats(-1e9, 1e9).map(lambda value: float(f"{value:.6g}"))


@given(NAMES, VALUES, VALUES, st.sampled_from([">=", "<=", "info"]), st.from_regex(r"[ -~]{0,30}", fullmatch=True))
def test_a_printed_goal_is_read_back(name, value, bound, kind, note):
    goal = Goal(name, value, 0.0 if kind == "info" else bound, kind, note.strip())
    assert read_line(goal.line() + "\n") == goal


@pytest.mark.parametrize("line", ["", "# EPYC, 2 cores", "chain failed: ValueError: x", "a b c d", "a one - info"])
def test_other_lines_are_no_goals(line):
    assert read_line(line) is None


def test_every_number_of_the_readme_has_a_source_that_results_lists():
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert len(bench.readme_numbers(README)) == len(bench.SOURCES)
    listed = results.replace("public.*.", "public.held_out_half.")
    assert [one.name for one in bench.SOURCES if one.name not in listed] == []


def test_numbers_are_compared_and_a_new_one_is_named():
    right = dict(zip((one.name for one in bench.SOURCES), bench.readme_numbers(README), strict=True))
    assert all(agrees for agrees, _ in bench.readme_lines(README, right))
    wrong = {**right, "training_times_gpt_bf16_compiled": 2 * right["training_times_gpt_bf16_compiled"]}
    [line] = [line for agrees, line in bench.readme_lines(README, wrong) if not agrees]
    assert line.startswith("readme training_times_gpt_bf16_compiled 1.45 is 2.9")
    assert line.endswith("falls short")
    assert {agrees for agrees, _ in bench.readme_lines(README, {})} == {None}
    with pytest.raises(ValueError, match=f"{len(bench.SOURCES) + 1} numbers"):
        list(bench.readme_lines(README.replace(": .916; 8.6 |", ": .916; 8.6; 7 |"), right))


@given(st.floats(0.001, 1e6), st.floats(0.001, 1e6), st.sampled_from([">=", "<="]))
def test_a_mark_is_right_of_the_line_where_a_goal_holds(value, bound, kind):
    at = margin(value, bound, kind)
    assert -1 <= at <= 1
    assert (at >= 0) == Goal("x", value, bound, kind).holds or value == pytest.approx(bound)


def test_scripts_run_and_a_fall_and_a_failure_are_counted(tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "README.md").write_text(README)
    holds = 'print("a.rate 3 >=2 holds  (of 5)")\nprint("a.count 7 - info")\n'
    (tmp_path / "benchmarks" / "one.py").write_text(holds)
    (tmp_path / "benchmarks" / "two.py").write_text('import sys\nprint("b 1 >=2 falls short"); sys.exit(1)\n')
    (tmp_path / "benchmarks" / "three.py").write_text('raise SystemExit("no corpus")\n')
    monkeypatch.setattr(bench, "HERE", tmp_path)
    results = tmp_path / "benchmarks" / "RESULTS.md"
    results.write_text("# Results\n\n### make bench\n\nold\n\n## Suites\n\nkept\n")

    def run(*words):
        monkeypatch.setattr("sys.argv", ["bench", *words])
        status = bench.main()
        return status, json.loads((tmp_path / "build" / "bench" / "figures.json").read_text())

    status, found = run("one:x,y")
    assert status == 0
    assert found["scripts"][0]["command"] == "python benchmarks/one.py --quick x y"
    assert found["scripts"][0]["figures"][0] == {
        "name": "a.rate", "value": 3.0, "kind": ">=", "goal": 2.0, "holds": True, "note": "of 5"
    }  # fmt: skip
    status, found = run()
    assert status == 1
    assert [one["script"] for one in found["scripts"]] == ["one", "three", "two"]
    assert found["scripts"][1]["failed"] == ["three failed: exit status 1"]
    assert "2 goals, 1 short; 1 failed; 11 numbers of the README, 11 short" in capsys.readouterr().out
    page = (tmp_path / "build" / "bench" / "page.html").read_text()
    assert "1 of 2 goals hold; 1 measurements failed" in page
    assert re.search(r"b: 1, goal &gt;= 2|b: 1, goal >= 2", page)
    section = results.read_text()
    assert "old" not in section
    assert section.endswith("\n\n## Suites\n\nkept\n")
    assert "| `python benchmarks/two.py --quick` | 0.0 | 1 | `b` 1, >= 2 |" in section
    assert "| 0 | three failed: exit status 1 |" in section
    assert run("one")[0] == 0  # numbers that were not asked for fail nothing
    with pytest.raises(SystemExit):
        run("four")
    assert results.read_text() == section  # only a run of all scripts renews it
    assert "no script four; there are one, three, two" in capsys.readouterr().err


def test_a_page_of_nothing_says_so():
    empty = {"machine": "m", "started": "s", "readme": [], "scripts": []}
    once = with_section("# Results\n", empty)
    assert once.startswith("# Results\n\n### make bench\n")
    assert with_section(once, empty) == once
    assert "0 of 0 goals hold" in bench_page(empty)
