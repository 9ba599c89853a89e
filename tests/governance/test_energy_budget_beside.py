"""A budget on a node whose meter another run of the root holds: unmeasured gaps are not treated as free."""

import contextlib
import itertools
import socket
import time
import types

import pytest

from governance.energy import ledger_tail as spending
from governance.energy import meters
from governance.energy.budget import Keeper
from governance.energy.ledger import host_ledger, read_ledger
from governance.energy.meters import READ, RUNNING, meter
from governance.errors import BudgetReached
from governance.gate.policy import EnergyBudget
from governance.hooks import Watched
from tests.governance.test_energy_budget import (  # noqa: F401
    SLOW,
    Planted,
    append_raw,
    line,
    own_node,
    planted,
    runtime_of,
    work,
)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("takes_over", [True, False])
def test_a_node_whose_meter_was_anothers_is_not_taken_for_free_when_that_ends(tmp_path, monkeypatch, takes_over):
    """Another run of the root holds the node's meter, and ends during our third shard, of ten seconds each."""
    other, begun, ledger = contextlib.ExitStack(), itertools.count(1), tmp_path / "energy.jsonl"
    for name in ("_FIRST_SECONDS", "_STAND_SECONDS"):
        monkeypatch.setattr(meters, name, 0.01 if takes_over else 60.0)

    def beside():
        if next(begun) == 3:
            other.close()
            while takes_over and all(interval.stage != "work" for interval in read_ledger(ledger)):
                time.sleep(0.01)

    monkeypatch.setattr(Planted, "beside", beside)
    runtime = runtime_of(tmp_path, kilowatt_hours=100)  # enough for planted joules in real seconds
    other.enter_context(meter(SLOW, ledger)("other"))
    if takes_over:
        assert work(runtime, shards=30).stats == {"shards": 30}
        [theirs, ours] = read_ledger(ledger)
        assert (theirs.stage, ours.stage, ours.method) == ("other", "work", "planted")
        assert theirs.millijoules + ours.millijoules == Planted.seconds * 90_000
        return
    with pytest.raises(BudgetReached, match=r"the meter that had this node has ended.*shards that are made are kept"):
        work(runtime, shards=60)  # of which more than 300 s of silence are not filled in
    assert 3 < len(list((tmp_path / "work").glob("*/made/*"))) < 60
    assert work(runtime, shards=60).stats == {"shards": 60}  # this start holds the meter


def test_gaps_between_the_intervals_of_anothers_meter_are_counted_at_the_greatest_power(tmp_path, monkeypatch):
    """The other's stages took 100 W; between them we count 20 s of 110 W, and then there is no third."""
    ledger, host, clock = tmp_path / "energy.jsonl", socket.gethostname(), types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(spending, "still_runs", lambda line: line["kind"] != "end")
    host_ledger(ledger)

    def tell(kind, interval, second, joules):
        at = f"2026-01-01T00:00:{second:02d}.000Z"
        more = {"interval": interval, "host": host, "stage": "other", "outcome": "surviving", "cause": ""}
        append_raw(ledger, {**line(kind, at, 1000 * joules), **more})

    energy = {RUNNING: {"elsewhere": True, "method": "shared", "at": 0.0, "bounds": {"upper": (None, 0)}}}
    keeper = Keeper(EnergyBudget(kilowatt_hours=1), ledger, "policy.toml", clock=lambda: clock.now)
    tell("begin", "o.1", 0, 0)
    watch = keeper.watch(Watched(energy, "work/0", first=False))  # the ledger itself belongs to the first rank

    def look(seconds):
        clock.now += seconds
        now, _, _, _, unknown = watch.words(0.0)
        return now // 1000, unknown

    assert look(0) == (0, 0)
    tell("end", "o.1", 10, 1000)
    assert look(10) == (10 * 110, 0)  # seen last ten seconds ago, in part counted twice
    tell("begin", "o.2", 20, 0)
    assert look(5) == (15 * 110, 0)  # not read yet
    assert look(5) == look(0) == look(3) == (20 * 110, 0)
    tell("end", "o.2", 30, 1000)
    assert look(7) == (30 * 110, 0)
    assert look(290) == (320 * 110, 0)
    assert look(1)[1] == 1
    tell("begin", "o.3", 40, 0)
    assert look(10) == (331 * 110, 0)
    energy[RUNNING].update(elsewhere=False, began=clock.now + 3)  # then it ended, and 3 s later this process measures
    energy[READ] = lambda: None
    energy[RUNNING].update(at=clock.now + 3, bounds={"upper": (0, 90_000)})
    assert look(3) == (334 * 110, 0)
    energy[RUNNING]["bounds"] = {"upper": (500_000, 90_000)}
    assert look(0) == (334 * 110 + 500, 0)
    energy.clear()  # a rank that does not measure needs none of this
    assert keeper.watch(Watched(energy, "work/0", measures=False, first=False)).words(0.0)[0] == 0
