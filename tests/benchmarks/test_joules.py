"""The referee of the joules: shares, bounds, validity and the table, from planted runs and a planted process."""

import json
import sys
import tomllib

import pytest

from benchmarks.measures.children import whole
from benchmarks.measures.training import joules_to_loss
from benchmarks.measures.training.joules_to_loss import (
    FIRST,
    OURS,
    Match,
    Run,
    contestants,
    goals,
    refereed,
    write_table,
)
from governance.energy.ledger import read_ledger

METHOD = "RAPL"


def ran(name, seed=1, loss=1.7, joules=1000.0, width=0.1, others=0.0):
    low, high = (None, None) if joules is None else (joules * (1 - width), joules * (1 + width))
    return Run(name, seed, loss, joules, low, high, METHOD, 10.0, 15.0, others)


def lines(first, entry):
    return {goal.name.split("_seed_")[0].replace(f"_{OURS}", ""): goal for goal in goals(first, entry)}


def test_the_goals_of_a_pair():
    found = lines(ran(FIRST), ran(OURS, loss=1.69, joules=110.0))
    assert found["joules_share"].value == pytest.approx(0.11)
    assert found["joules_upper_bound_over_lower"].value == pytest.approx(121 / 900)
    assert all(goal.holds for goal in found.values())
    short = lines(ran(FIRST), ran(OURS, loss=1.71, joules=130.0, width=8.0, others=0.2))
    assert {name for name, goal in short.items() if not goal.holds} == {
        "joules_loss_difference", "joules_share", "joules_upper_bound_over_lower", "joules_other_processes"
    }  # fmt: skip
    dark = lines(ran(FIRST, joules=None), ran(OURS))
    assert not dark["joules_share"].holds
    assert all(goal.kind == "info" or "loss" in name or "other" in name
               for name, goal in lines(ran(FIRST), ran("rival", joules=5000.0)).items())  # fmt: skip


def test_the_table_ranks_valid_runs_and_names_what_is_wrong(tmp_path):
    runs = [ran(FIRST), ran("slow", joules=2000.0), ran("lazy", loss=1.8, joules=1.0), ran(OURS, joules=100.0),
            ran("loud", joules=5.0, others=0.06), ran("dark", joules=None), ran("alone", seed=2)]  # fmt: skip
    write_table(runs, tmp_path)
    rows = json.loads((tmp_path / "table.json").read_text())["runs"]
    assert [row["contestant"] for row in rows if row["valid"] == "yes"] == [OURS, FIRST, "slow"]
    assert {row["contestant"]: row["valid"] for row in rows if row["valid"] != "yes"} == {
        "lazy": "loss not reached", "loud": "other processes", "dark": "unmeasured", "alone": "unmeasured"
    }  # fmt: skip
    text = (tmp_path / "table.md").read_text().splitlines()
    assert text[2].startswith(f"| {OURS} | 1 | 1.7000 | 100.0 | 90.0 | 110.0 |")
    assert "<td" in (tmp_path / "page.html").read_text()


def test_the_referee_meters_a_whole_process_and_keeps_its_readings(tmp_path):
    code = "import json, time; time.sleep(0.3); print('noise'); print(json.dumps({'loss': 1.5}))"

    def start():
        ended = whole([sys.executable, "-c", code])
        return ended, json.loads(ended.printed.splitlines()[-1])["loss"]

    run = refereed("planted", 3, tmp_path / "energy.jsonl", start)
    assert (run.contestant, run.seed, run.loss) == ("planted", 3, 1.5)
    assert run.seconds >= 0.3
    assert 0 <= run.others <= 1
    [interval] = read_ledger(tmp_path / "energy.jsonl")
    assert (interval.stage, interval.outcome) == ("planted", "surviving")
    if run.joules is not None:
        assert interval.millijoules == round(1000 * run.joules)
        assert run.low <= run.joules


def test_a_match_runs_the_first_contestant_once_for_each_seed(tmp_path, monkeypatch):
    started = []

    def play(name, seed, ledger, start):
        started.append((name, seed))
        return ran(name, seed, joules={FIRST: 1000.0, OURS: 100.0}.get(name, 3000.0))

    monkeypatch.setattr(joules_to_loss, "refereed", play)
    monkeypatch.setattr(joules_to_loss, "prepare_text", lambda folder: folder)
    monkeypatch.setattr(joules_to_loss, "held_out_arrays", lambda path: [])
    monkeypatch.setattr(joules_to_loss.rivals, "environment", lambda name, packages: "python")
    match = Match(quick=False, target=tmp_path)
    found = [*match.against(OURS), *match.against("tuned_gpt")]
    assert [one for one in started if one[0] == FIRST] == [(FIRST, seed) for seed in (1, 2, 3, 4, 5)]
    assert len(started) == 15
    shares = {goal.name: goal for goal in found if goal.name.endswith("5_seeds")}
    assert shares[f"joules_share_{OURS}_5_seeds"].value == pytest.approx(0.1)
    assert shares["joules_share_tuned_gpt_5_seeds"].kind == "info"


def test_an_entry_lacks_nothing(tmp_path):
    entries = contestants()
    assert {FIRST, "tuned_gpt"} <= set(entries)
    file = tmp_path / "contestants.toml"
    file.write_text('[mine]\nabout = "x"\npackages = []\nenvironment = "e"\n')
    with pytest.raises(ValueError, match=r"\[mine\] lacks command"):
        contestants(file)
    file.write_text(file.read_text() + 'command = ["mine.py"]\n')
    with pytest.raises(ValueError, match=r"mine\.py, which is not in benchmarks/rivals"):
        contestants(file)
    assert tomllib.loads(file.read_text())["mine"]["command"] == ["mine.py"]
