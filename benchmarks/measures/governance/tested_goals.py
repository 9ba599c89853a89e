"""Goals that tests state: attacks refused, one wrong clock, waste after a kill, SCI's boundary, symmetry, words.

Each is the share of its tests that pass; the note has the number. The tests run in one process of pytest. A quick run
has no time for the attacks on whole projects.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.measures.goals import Goal

_HERE = Path(__file__).resolve().parents[3]
_TESTS = {
    "attacks.engine_verdict_and_waivers": ("test_fail_open.py",),
    "attacks.after_the_verdict": ("test_fail_open_after.py",),
    "attacks.before_the_verdict": ("test_fail_open_before.py",),
    "attacks.races_links_and_odd_files": ("test_fail_open_races.py",),
    "attacks.rules_of_the_site_and_edges": ("test_fail_open_rules.py",),
    "attacks.on_what_was_trained": ("test_fail_open_trained.py",),
    "clock.one_wrong_one_locks_no_root": ("test_fail_open_clock.py",),
    "energy.restart_after_a_kill_is_waste": (
        "test_energy_ledger.py::test_a_restart_is_wasted_up_to_its_first_step_and_one_start_up_is_not",
        "test_energy_histories.py",
    ),
    "energy.sci_of_one_training": (
        "test_reports_energy.py::test_sci_is_of_one_training_however_many_share_the_root",
    ),
    "lists.symmetry": ("test_bias_balance.py",),
    "page.words_of_the_field": ("test_reports_look.py::test_the_page_has_the_words_of_the_field",),
    "page.ten_seconds_are_enough": ("test_reports_front.py",),
}  # fmt: skip
"""Goal -> test files of `tests/governance`, or single tests of them."""


_LONG = frozenset({"attacks.engine_verdict_and_waivers", "attacks.after_the_verdict", "attacks.before_the_verdict",
                   "attacks.races_links_and_odd_files", "attacks.on_what_was_trained"})  # fmt: skip


def tested(quick: bool) -> list[Goal]:
    """The share of each goal's tests that pass, in one process."""
    chosen = {name: tests for name, tests in _TESTS.items() if not quick or name not in _LONG}
    outcomes = _outcomes([test for tests in chosen.values() for test in tests])
    goals = []
    for name, tests in chosen.items():
        mine = [passed for test, passed in outcomes if any(_is_of(test, wanted) for wanted in tests)]
        note = f"{sum(mine)} of {len(mine)} tests passed: {', '.join(test.partition('::')[0] for test in tests)}"
        goals.append(Goal(name, sum(mine) / len(mine) if mine else 0.0, 1.0, note=note))
    return goals


def _is_of(test: tuple[str, str], wanted: str) -> bool:
    file, _, name = wanted.partition("::")
    return test[0] == file and name in ("", test[1].partition("[")[0])


def _outcomes(tests: list[str]) -> list[tuple[tuple[str, str], bool]]:
    """File and name of each test that ran, and whether it passed; one that was skipped is not counted.

    Raises:
        RuntimeError: pytest could not run them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / "tests.xml"
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={listed}",
                 *(f"tests/governance/{test}" for test in tests)]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=_HERE, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-600:]}{done.stderr[-600:]}")
        cases = ElementTree.parse(listed).getroot().iter("testcase")
        return [
            ((f"{case.get('classname', '').rpartition('.')[2]}.py", case.get("name", "")),
             case.find("failure") is None and case.find("error") is None)
            for case in cases if case.find("skipped") is None
        ]  # fmt: skip
