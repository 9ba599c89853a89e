"""A run is stopped before its energy budget is exceeded: power by chance, kills, unknown energy, the policy."""

import datetime
import functools
import itertools
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance import parallel
from governance.config import Section, canonical_json
from governance.energy import budget, meters
from governance.energy import ledger_tail as spending
from governance.energy.budget import Keeper, limit_millijoules, open_budget
from governance.energy.counters import GreatestPower
from governance.energy.ledger import NEEDS, host_ledger, read_ledger
from governance.energy.ledger_tail import Spending
from governance.energy.meters import READ, RUNNING, EnergyConfig, meter
from governance.energy.rapl import EnergyPart
from governance.errors import BudgetReached
from governance.files import append_line, sha256_bytes, write_text
from governance.gate.policy import EnergyBudget, load_policy
from governance.hooks import Budget, Hooks, Watched
from governance.parallel import Shard, ShardMade, map_shards
from governance.stage import Made, Recipe, Runtime, run_stage
from pretrain.energy_budget import BudgetGuard


def kilowatt_hours(joules):
    return joules / 3_600_000


@pytest.fixture(autouse=True)
def own_node(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))


class Node:
    """A node with planted power; its meter is read every `every` seconds, and on request."""

    def __init__(self, powers, every):
        self.powers, self.every, self.at, self.millijoules = powers, every, 0.0, 0
        self.power = GreatestPower(1.0)
        self.energy = {READ: self.read}
        self.read()

    def read(self):
        self.power.note(self.at, self.millijoules)
        bounds = (self.millijoules, self.power.milliwatts)
        self.energy[RUNNING] = {"at": self.at, "method": "planted", "elsewhere": False, "bounds": {"upper": bounds}}

    def pass_by(self, seconds, watts):
        """`seconds` at this power."""
        left = seconds
        while left > 0:
            until = min(left, self.every - self.at % self.every)
            self.millijoules += round(1000 * watts * until)
            self.at += until
            left -= until
            if abs(self.at % self.every) < 1e-9 or abs(self.at % self.every - self.every) < 1e-9:
                self.read()


@settings(max_examples=100)
@given(data=st.data())
def test_the_upper_bound_never_exceeds_the_budget_while_the_assumption_holds(data, tmp_path_factory):
    """Steps and saves of one or two nodes; none exceeds the earlier ones in time or energy by more than a tenth."""
    most = data.draw(st.integers(1, 3000))
    save = data.draw(st.floats(0.0, 60.0))
    longest = data.draw(st.floats(0.1, 30.0))
    joules = data.draw(st.integers(10 * most, 3000 * most))
    limit = EnergyBudget(kilowatt_hours=kilowatt_hours(joules))
    nodes = [Node(None, data.draw(st.sampled_from([1.0, 5.0, 60.0]))) for _ in range(data.draw(st.integers(1, 2)))]
    for node in nodes:
        node.pass_by(120.0, most / 1.1)  # the greatest mean so far
    ledger = tmp_path_factory.getbasetemp() / "none.jsonl"
    ranks = []
    for number, node in enumerate(nodes):
        keeper = Keeper(limit, ledger, "policy.toml", clock=lambda node=node: node.at)
        watch = keeper.watch(Watched(node.energy, "train/0", first=number == 0))
        ranks.append(BudgetGuard(watch, clock=lambda node=node: node.at))
    begun = sum(node.millijoules for node in nodes)

    def everywhere(seconds):
        for node in nodes:
            node.pass_by(seconds, most * data.draw(st.sampled_from([1.0, 1.0, 1.0, 0.4, 0.0])))

    def summed():
        return [sum(values) for values in zip(*(rank.payload(save) for rank in ranks), strict=True)]

    over, steps = [rank.should_stop(words) for words in [summed()] for rank in ranks], 0
    if not over[0]:
        everywhere(longest)  # the first step, the longest
    while not over[0] and steps < 60:
        words = summed()
        over = [rank.should_stop(words) for rank in ranks]
        assert len(set(over)) == 1  # every rank answers alike
        if not over[0]:
            steps += 1
            everywhere(longest * data.draw(st.sampled_from([1.0, 1.0, 0.3])))
    everywhere(save)  # a save that was under way
    everywhere(save)
    used = sum(node.millijoules for node in nodes)
    if begun + 1000 * len(nodes) * most * (longest + 2 * save) * 1.1 <= limit_millijoules(limit):
        assert used <= limit_millijoules(limit) + 2 * len(nodes) * (steps + 4)  # halves of millijoules in this test
    if over[0] and steps:  # and it is not stopped much earlier
        assert used + 1000 * 1.1 * len(nodes) * most * (longest + 2 * save + 1) >= limit_millijoules(limit)


def line(kind, at, millijoules, **more):
    about = {"interval": "a.1", "attempt": "a", "stage": "train", "host": "gone", "process": [1, 1], "every": 5.0}
    return {"kind": kind, **about, "at": at, "millijoules": millijoules, "low": 0, "high": millijoules, **more}


@settings(max_examples=200)
@given(
    powers=st.lists(st.integers(0, 2000), min_size=1, max_size=20),
    kill=st.sampled_from([0.0, 0.5, 1.0]),
    beats=st.integers(200, 5000).map(lambda milliseconds: milliseconds / 1000),
)
def test_a_kill_at_any_moment_leaves_a_bound_on_what_was_used(powers, kill, beats, tmp_path_factory):
    """Power rises by at most a tenth over the ledger's; the rest of the last interval is in no line."""
    began = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    seen, total, lines = 0, 0, [line("begin", time_text_of(began), 0)]
    for number, watts in enumerate(powers):
        watts = watts if number == 0 else min(watts, int(1.1 * seen))
        seen = max(seen, watts)
        total += round(1000 * watts * beats)
        lines.append(line("beat", time_text_of(began + datetime.timedelta(seconds=beats * (number + 1))), total))
    unseen = round(1000 * 1.1 * seen * beats * kill)  # after the last line
    ledger = tmp_path_factory.mktemp("kill") / "energy.jsonl"
    host_ledger(ledger, "gone")
    for each in lines:
        append_raw(ledger, {**each, "every": beats})
    reading = Spending(ledger)
    reading.read()
    use = reading.use("upper", lambda line: True)
    assert use.unknown == ()
    assert total + unseen <= use.millijoules + len(lines)
    assert use.millijoules <= total + 1.1 * 1000 * (seen + 1) * beats + 1


def time_text_of(moment):
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def append_raw(path, values):
    with path.open("ab") as file:
        file.write(canonical_json(values) + b"\n")


def test_each_look_reads_only_what_was_appended_and_a_torn_line_waits(tmp_path):
    ledger = tmp_path / "energy.jsonl"
    host_ledger(ledger, "gone")
    reading = Spending(ledger)
    reading.read()
    assert reading.use("upper", lambda line: True).millijoules == 0
    append_raw(ledger, line("begin", "2026-01-01T00:00:00.000Z", 0))
    whole = canonical_json(line("end", "2026-01-01T00:00:05.000Z", 5000, outcome="surviving", cause=""))
    with ledger.open("ab") as file:
        file.write(whole[:40])
    reading.read()
    with ledger.open("ab") as file:
        file.write(whole[40:] + b"\n")
    reading.read()
    assert reading.use("upper", lambda line: True).millijoules == 5000
    other = ledger.with_name("energy.node2.jsonl")
    host_ledger(ledger, "node2")
    append_raw(other, line("end", "2026-01-01T00:00:07.000Z", 700, interval="b.1", marks={NEEDS: 12}))
    reading.read()
    assert reading.use("upper", lambda line: True).millijoules == 5700
    assert reading.use("upper", lambda line: True).needs == 12
    assert reading.use("upper", lambda line: True, frozenset({"b.1"})).millijoules == 5000


def test_a_reading_that_fails_is_made_up_for_and_a_meter_that_is_silent_for_long_is_unknown(tmp_path):
    ledger = tmp_path / "energy.jsonl"
    host_ledger(ledger, "gone")
    append_raw(ledger, line("begin", "2026-01-01T00:00:00.000Z", 0))
    append_raw(ledger, line("beat", "2026-01-01T00:00:10.000Z", 1_000_000))
    for second in (20, 30):
        append_raw(ledger, {**line("beat", f"2026-01-01T00:00:{second}.000Z", 1_000_000), "high": None})
    reading = Spending(ledger)
    reading.read()
    assert reading.use("upper", lambda line: True).millijoules == 3_750_001  # 25 s more at 110 W
    append_raw(ledger, {**line("end", "2026-01-01T00:06:00.000Z", 1_000_000), "high": None})
    reading.read()
    assert len(reading.use("upper", lambda line: True).unknown) == 1
    assert reading.use("central", lambda line: True) == spending.Use(1_000_000)


class Planted:
    """A meter of 100 W: 90 likely, 100 at most; time passes only by `seconds`."""

    seconds = 0.0
    beside = staticmethod(lambda: None)
    """What happens during a shard."""

    def __init__(self):
        self.began = Planted.seconds

    def read(self):
        joules = round(1000 * (Planted.seconds - self.began))
        return [EnergyPart("planted", "planted", 90 * joules, 80 * joules, 100 * joules)]


@pytest.fixture
def planted(monkeypatch):
    """Every node's meter is planted, on a clock of its own."""
    monkeypatch.setattr(meters, "_open_sources", lambda config, allotted: ([Planted()], []))
    for module in (meters, parallel):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: Planted.seconds))
    monkeypatch.setattr(budget, "Keeper", partial(Keeper, clock=lambda: Planted.seconds))
    Planted.seconds = 0.0


class Nothing(Section):
    pass


RECIPE = Recipe("work", 1, Nothing())


def one_shard(section, payload, path_of):
    """A shard of ten seconds."""
    Planted.beside()
    Planted.seconds += 10.0
    write_text(path_of("made"), payload)
    return ShardMade({"made": path_of("made")}, {"shards": 1})


def work(runtime, shards=8, recipe=RECIPE):
    def make(folder):
        wanted = [Shard(f"{number:03d}", (str(number),), str(number)) for number in range(shards)]
        done = map_shards(recipe, one_shard, wanted, folder, runtime)
        return Made([output for shard in done for output in shard.outputs.values()], {"shards": len(done)})

    return run_stage(recipe, [], runtime, make)


SLOW = EnergyConfig(sample_seconds=60.0)


def runtime_of(root, config=SLOW, **values):
    ledger = root / "energy.jsonl"
    limit = EnergyBudget(**values)
    return Runtime(root, hooks=Hooks(meter=meter(config, ledger), budget=open_budget(limit, ledger, "policy.toml")))


def test_a_data_stage_stops_between_shards_stays_stopped_and_goes_on(tmp_path, planted):
    """A shard takes 1,000 J: of a budget of 4,500 J four are made, since 1.1 of a fifth would not be left."""
    with pytest.raises(
        BudgetReached, match=r"0\.0\d+ of 0\.00125 kWh are used by the meters' upper bound.*kept"
    ) as message:
        work(runtime_of(tmp_path, kilowatt_hours=kilowatt_hours(4500)))
    assert "raise kilowatt_hours in [energy_budget] of policy.toml" in str(message.value)
    assert message.value.exit_code == 71
    made = sorted((tmp_path / "work").glob("*/made/*"))
    assert (len(made), Planted.seconds) == (4, 40.0)
    [interval] = read_ledger(tmp_path / "energy.jsonl")
    assert (interval.outcome, interval.cause) == ("surviving", "energy budget")
    assert interval.samples[-1].high == 4_000_000
    before = Planted.seconds
    for _ in range(3):
        with pytest.raises(BudgetReached, match="work is not started, and it would use about"):
            work(runtime_of(tmp_path, kilowatt_hours=kilowatt_hours(4500)))
    assert Planted.seconds == before
    assert len(read_ledger(tmp_path / "energy.jsonl")) == 1  # nothing was measured at all
    done = work(runtime_of(tmp_path, kilowatt_hours=kilowatt_hours(20_000)))
    assert done.stats == {"shards": 8}
    assert Planted.seconds == 80.0  # finished shards were found


def test_what_the_pool_has_in_hand_when_the_budget_ends_is_finished_and_measured(tmp_path, planted, monkeypatch):
    """Threads in place of processes share the planted clock. A shard takes 1,000 J; a kept one is never free."""
    begun = itertools.count()
    monkeypatch.setattr(Planted, "beside", lambda: time.sleep((0.05, 0.3)[next(begun) % 2]))
    tally = tmp_path / "tally"
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(parallel, "_pool", lambda workers: (pool, threading.Event()))
        runtime = runtime_of(tmp_path, kilowatt_hours=kilowatt_hours(9500))
        hooks = replace(runtime.hooks, tally=functools.partial(append_line, tally))
        with pytest.raises(BudgetReached, match="kept"):
            work(replace(runtime, workers=2, hooks=hooks), shards=40)
    made = len(list((tmp_path / "work").glob("*/made/*")))
    [interval] = read_ledger(tmp_path / "energy.jsonl")
    assert 2 <= made < 40
    assert interval.samples[-1].high == 1_000_000 * made
    assert len(tally.read_text().splitlines()) == made


def test_scope_training_bounds_no_data_stage_and_reports_are_always_made(tmp_path, planted):
    tiny = kilowatt_hours(1)
    assert work(runtime_of(tmp_path / "a", kilowatt_hours=tiny, scope="training")).stats == {"shards": 8}
    work(runtime_of(tmp_path / "b", kilowatt_hours=kilowatt_hours(1e6)))
    closed = runtime_of(tmp_path / "b", kilowatt_hours=tiny)
    with pytest.raises(BudgetReached, match="other is not started"):
        work(closed, recipe=Recipe("other", 1, Nothing()))
    assert work(closed, recipe=Recipe("report", 1, Nothing())).stats == {"shards": 8}


def test_the_central_figure_counts_only_where_the_policy_says_so(tmp_path, planted):
    """80 s: 8,000 J at most, 7,200 J likely; before the last shard 1.1 of one is required."""
    limit = kilowatt_hours(7600)
    with pytest.raises(BudgetReached, match="upper bound"):
        work(runtime_of(tmp_path / "a", kilowatt_hours=limit))
    assert work(runtime_of(tmp_path / "b", kilowatt_hours=limit, bound="central")).stats == {"shards": 8}


def test_unknown_energy_refuses_to_start_unless_the_policy_allows_it(tmp_path, monkeypatch):
    off = EnergyConfig(enabled=False)
    with pytest.raises(BudgetReached, match=r"the energy used is unknown: no meter.*enabled = true") as message:
        work(runtime_of(tmp_path / "a", off, kilowatt_hours=1))
    assert 'unknown = "allow" in [energy_budget] of policy.toml' in str(message.value)
    assert not list((tmp_path / "a").glob("work/*/made/*"))
    assert work(runtime_of(tmp_path / "a", off, kilowatt_hours=1, unknown="allow")).stats == {"shards": 8}
    monkeypatch.setattr(meters, "_open_sources", lambda config, allotted: ([], ["nothing here has a meter"]))
    with pytest.raises(BudgetReached, match="gives no bound"):
        work(runtime_of(tmp_path / "b", kilowatt_hours=1))
    with pytest.raises(BudgetReached, match=r"is unknown: work on .* at 20"):  # the use of the first try is not known
        work(runtime_of(tmp_path / "b", kilowatt_hours=1))
    assert work(runtime_of(tmp_path / "b", kilowatt_hours=1, unknown="allow")).stats == {"shards": 8}


def test_what_others_spend_meanwhile_counts(tmp_path, planted, monkeypatch):
    """Another node of the same root takes 1,000 J in each of our shards, and records that in its own file."""
    ledger, message = tmp_path / "energy.jsonl", []
    monkeypatch.setattr(spending, "still_runs", lambda line: line["host"] == "node2" and line["kind"] != "end")

    def other():
        number, file = len(message), host_ledger(ledger, "node2")
        at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=10.0 * (8 - number))
        about = {"interval": "n.1", "host": "node2", "stage": "other"}
        append_raw(file, {**line("beat" if number else "begin", time_text_of(at), 1_000_000 * number), **about})
        message.append(number)

    monkeypatch.setattr(Planted, "beside", other)
    with pytest.raises(BudgetReached):
        work(runtime_of(tmp_path, kilowatt_hours=kilowatt_hours(12_000)))
    assert 2 <= len(message) < 8  # alone, eight would have fitted


def test_no_budget_checks_nothing(tmp_path, planted):
    assert type(open_budget(None, tmp_path / "energy.jsonl")) is Budget
    assert type(Runtime(root=tmp_path).hooks.budget) is Budget
    assert work(Runtime(root=tmp_path)).stats == {"shards": 8}


POLICY = Path(__file__).parents[2] / "configs" / "policy.toml"


def test_the_budget_is_part_of_the_policys_digest_and_its_absence_is_not(tmp_path):
    def policy(text):
        path = tmp_path / "policy.toml"
        path.write_text(POLICY.read_text() + text)
        return load_policy(path)

    without = policy("")
    values = without.model_dump(mode="json")
    assert "energy_budget" not in values  # a policy of an earlier release keeps its digest
    assert without.digest == sha256_bytes(canonical_json(values))
    texts = ["", "\n[energy_budget]\nkilowatt_hours = 1.0\n", "\n[energy_budget]\nkilowatt_hours = 1.5\n"]
    texts += ['\n[energy_budget]\nkilowatt_hours = 1.0\nbound = "central"\n']
    texts += ['\n[energy_budget]\nkilowatt_hours = 1.0\nunknown = "allow"\n']
    texts += ['\n[energy_budget]\nkilowatt_hours = 1.0\nscope = "training"\n']
    assert len({policy(text).digest for text in texts}) == len(texts)


def test_the_meters_own_thread_reports_the_bounds_that_the_budget_reads(tmp_path):
    """No stand-in: the meter of this machine, whichever it has."""
    with meter(EnergyConfig(sample_seconds=0.1), tmp_path / "energy.jsonl")("train") as energy:
        first = energy[RUNNING]
        time.sleep(0.3)
        energy[READ]()
        second = energy[RUNNING]
    assert second["at"] > first["at"]
    assert second["bounds"]["central"][0] >= first["bounds"]["central"][0]
    assert set(energy).isdisjoint({READ, RUNNING, "interval"})
