"""A training under an energy budget: saved and ended before it is exceeded, on all ranks at once, and for good."""

import json
import shutil

import pytest

from governance.energy.ledger import read_ledger
from governance.errors import BudgetReached
from governance.files import read_lines
from governance.hooks import Watched
from pretrain import loop
from pretrain.metrics.wandb_reader import read_offline
from tests.pretrain import budget_ranks
from tests.pretrain.budget_ranks import SETTINGS, Planted, options
from tests.pretrain.rank_runs import run_ranks


@pytest.fixture
def planted(tmp_path, monkeypatch):
    (tmp_path / "runtime").mkdir()
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(Planted, "watts", 100)
    budget_ranks.plant(monkeypatch)


def events(root, name):
    [path] = (root / "train").glob("*/metrics.jsonl")
    return [line for line in read_lines(path) if line["event"] == name]


def test_it_saves_and_leaves_before_the_budget_is_exceeded_and_stays_away(tmp_path, run_training, planted):
    root = tmp_path / "root"
    with pytest.raises(BudgetReached, match=r"training stopped after step \d+, which is saved") as output:
        run_training(root, mode="offline", **options(root, 2500), **SETTINGS)
    assert output.value.exit_code == 71
    [folder] = (root / "train").iterdir()
    alerts = [(alert["title"], alert["level"]) for alert in read_offline(folder / "wandb").alerts]
    assert alerts == [("Energy budget used up", "WARN")]
    [left] = events(root, "budget")
    [interval] = read_ledger(root / "energy.jsonl")
    assert (interval.outcome, interval.cause) == ("surviving", "energy budget")
    assert interval.samples[-1].high == 100_000 * left["step"] <= 2_500_000
    assert interval.samples[-1].marks["checkpoint"] == left["step"] < 25
    assert events(root, "checkpoint")[-1]["step"] == left["step"]
    assert left["used_kilowatt_hours"] + left["reserve_kilowatt_hours"] > left["kilowatt_hours"] == 2500 / 3_600_000
    assert (left["scope"], left["bound"], events(root, "left")) == ("root", "upper", [])
    before = Planted.steps
    for _ in range(2):
        with pytest.raises(BudgetReached, match=r"train is not started.*raise kilowatt_hours"):
            run_training(root, **options(root, 2500), **SETTINGS)
    assert Planted.steps == before
    assert len(read_ledger(root / "energy.jsonl")) == 1
    whole = run_training(root, **options(root, 1e6), **SETTINGS)
    assert whole.stats["steps"] == 40
    shutil.copytree(root / "encode", tmp_path / "other" / "encode")
    other = tmp_path / "other"
    assert run_training(other, **options(other, 1e6), **SETTINGS).digest == whole.digest
    # a finished run is found, whatever the budget
    assert run_training(root, **options(root, 1), **SETTINGS) == whole


def test_earlier_attempts_count_and_another_trainings_do_where_the_scope_is_the_root(tmp_path, run_training, planted):
    class Crash(Exception):
        pass

    def crash(step, steps, config, rate=loop.rate_factor):
        if Planted.steps >= 12:
            raise Crash
        return rate(step, steps, config)

    root = tmp_path / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "rate_factor", crash)
        with pytest.raises(Crash):
            run_training(root, **options(root, 1e6), **SETTINGS)
    assert read_ledger(root / "energy.jsonl")[0].outcome == "wasted"
    with pytest.raises(BudgetReached, match="stopped after step"):
        run_training(root, **options(root, 2500), **SETTINGS)
    used = sum(interval.samples[-1].high for interval in read_ledger(root / "energy.jsonl"))
    assert 1_200_000 < used <= 2_500_000
    before = Planted.steps
    with pytest.raises(BudgetReached, match="stopped after step"):  # the need of another training is unknown
        run_training(root, **options(root, 2500), seed=2, **SETTINGS)
    assert Planted.steps - before <= 2
    assert sum(interval.samples[-1].high for interval in read_ledger(root / "energy.jsonl")) <= 2_500_000
    with pytest.raises(BudgetReached, match="train is not started"):
        run_training(root, **options(root, 2500), seed=2, **SETTINGS)
    before = Planted.steps
    with pytest.raises(BudgetReached, match=r"this training; .*stopped after step"):
        run_training(root, **options(root, 2500, scope="training"), seed=2, **SETTINGS)
    assert Planted.steps - before > 10


def test_a_signal_is_honoured_as_ever(tmp_path, run_training, planted, monkeypatch):
    from governance.errors import Preempted
    from pretrain.distributed.preemption import StopRequested

    monkeypatch.setattr(StopRequested, "__call__", lambda self: Planted.steps >= 5)
    with pytest.raises(Preempted, match="after step 5"):
        run_training(tmp_path, **options(tmp_path, 1e6), **SETTINGS)


def test_unknown_energy_is_refused_before_an_engine_is_opened(tmp_path, run_training, planted, monkeypatch):
    from governance.energy import meters

    monkeypatch.setattr(meters, "_open_sources", lambda config, allotted: ([], ["no meter"]))
    monkeypatch.setattr(loop, "open_engine", None)
    with pytest.raises(BudgetReached, match="gives no bound"):
        run_training(tmp_path, **options(tmp_path, 1e6), **SETTINGS)


def test_a_rank_that_measures_nothing_adds_nothing(tmp_path, planted):
    keeper = options(tmp_path, 10)["budget"]
    watch = keeper.watch(Watched({}, "train/0", measures=False, first=False))
    assert watch.words(100.0) == [0, 0, 0, 0, 0]
    assert watch.over([0, 0, 10_001, 0, 0])
    assert not watch.over([0, 0, 10_000, 0, 0])


@pytest.mark.slow
def test_two_nodes_add_up_and_leave_after_the_same_step(tmp_path):
    """100 W and 300 W: of 6,000 J at most fifteen steps; either alone would have continued."""
    well, log = run_ranks(tmp_path, [budget_ranks.__file__, str(tmp_path)], 2)
    assert well, log[-6000:]
    output = [json.loads((tmp_path / f"outcome{rank}.json").read_text()) for rank in (0, 1)]
    (first, again), (other, other_again) = output
    assert first == other
    assert again == other_again
    assert "stopped after step" in first["error"]
    assert 1 <= first["steps"] < 15
    assert "train is not started" in again["error"]
    assert again["steps"] == 0
    intervals = read_ledger(tmp_path / "root" / "energy.jsonl")
    assert sum(interval.samples[-1].high for interval in intervals) == 400_000 * first["steps"] <= 6_000_000
    assert {interval.samples[-1].marks["checkpoint"] for interval in intervals} == {first["steps"]}
