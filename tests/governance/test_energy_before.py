"""Time before meters opened: its length, its greatest possible energy, and that no figure includes it."""

import datetime
import itertools
import socket
import subprocess
import sys
import time

from hypothesis import given
from hypothesis import strategies as st

from governance.energy.attribution import unmetered
from governance.energy.ledger import EnergySample, Interval, read_ledger

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def stamp(second):
    return (EPOCH + datetime.timedelta(seconds=second)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def interval(begin, end, before, watts=100, host="n1", metered=True):
    samples = tuple(
        EnergySample(stamp(second), *([1000 * watts * (second - begin)] * 3 if metered else [None] * 3))
        for second in sorted({begin, *range(begin, end, 5), end})
    )
    return Interval(f"{host}.{begin}.{end}", "a", "train", host, "RAPL", "surviving", "", samples, 0.0, before)


def test_imports_and_gaps_are_counted_once_at_the_greatest_power():
    found = unmetered([
        interval(10, 60, 4.0),  # 4 s of imports
        interval(61, 90, 1.0, watts=300),  # a second between two stages
        interval(70, 80, 8.0),  # another process, whose imports the first one's meter saw
        interval(10, 30, 3.0, watts=50, host="n2"),
    ])  # fmt: skip
    assert (found.seconds, found.millijoules) == (8.0, 5 * 300_000 + 3 * 50_000)
    assert unmetered([interval(10, 60, 4.0, metered=False)]).millijoules is None
    assert unmetered([interval(10, 60, 0.0, metered=False)]).millijoules == 0


spans = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=6)


@given(spans)
def test_it_is_what_a_count_of_seconds_gives(planned):
    found = unmetered([interval(begin, begin + lasts, float(before)) for begin, lasts, before in planned])
    measured = {second for begin, lasts, _ in planned for second in range(begin, begin + lasts)}
    before = {second for begin, _, ran in planned for second in range(begin - ran, begin)}
    assert found.seconds == len(before - measured)


PROGRAM = """
import sys, time
from pathlib import Path
time.sleep(float(sys.argv[2]))
from governance.energy.meters import EnergyConfig, meter
from governance.energy.node_lock import seconds_alive
measure, within = meter(EnergyConfig(sample_seconds=0.1), Path(sys.argv[1])), 0.0
for stage in ("clean", "train"):
    within -= seconds_alive()
    with measure(stage):
        within += seconds_alive()
        time.sleep(0.1)
        within -= seconds_alive()
    within += seconds_alive()
    time.sleep(float(sys.argv[2]) * (stage == "clean"))
print(time.monotonic(), seconds_alive(), within)
"""


def test_a_process_says_how_long_it_ran_without_a_meter(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    began = time.monotonic()
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "energy.jsonl"), "0.7"]
    output = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout
    ended, alive, within = map(float, output.split())  # the last: seconds that the meter took to begin and to end
    lasted = ended - began
    first, second = read_ledger(tmp_path / "energy.jsonl")
    assert first.host == socket.gethostname()
    assert 0.7 <= first.before_seconds <= lasted
    assert 0.7 <= second.before_seconds <= lasted - first.before_seconds
    assert all(one.millijoules >= 0 for one in (first, second))
    total = sum(one.seconds for one in (first, second)) + first.before_seconds + second.before_seconds
    assert alive - within - 0.05 <= total <= alive + 0.05


def test_the_greatest_power_is_of_whole_seconds():
    burst = interval(0, 10, 2.0)
    samples = list(itertools.chain(burst.samples, [EnergySample(stamp(10.01), 1_500_000, 1_500_000, 1_500_000)]))
    assert unmetered([Interval(**{**vars(burst), "samples": tuple(samples)})]).millijoules == 200_000


def test_a_clock_that_was_set_back_makes_no_power():
    """Between two readings such a clock shows little time, in which the energy of much more would seem to be spent."""
    steady = [(0, 0), (5, 500_000), (10, 1_000_000), (5.1, 1_500_000), (10.1, 2_000_000), (15.1, 2_500_000)]
    samples = tuple(EnergySample(stamp(second), *[energy] * 3) for second, energy in steady)
    assert unmetered([Interval(**{**vars(interval(0, 10, 2.0)), "samples": samples})]).millijoules == 200_000
