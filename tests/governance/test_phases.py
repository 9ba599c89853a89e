import subprocess
import sys
import time

import pytest

from governance.energy.ledger import read_ledger
from governance.energy.meters import EnergyConfig, meter
from governance.phases import COMPUTE, EVALUATION, HANG, IDLE, PhaseClock, begin, during, report_hang


@pytest.fixture(autouse=True)
def own_node(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_phases_add_up_to_the_time():
    now = [0.0]
    clock = PhaseClock("start-up", lambda: now[0])
    energy = {"clock": clock}
    now[0] = 2.0
    begin(energy, COMPUTE)
    now[0] = 5.0
    with during(energy, EVALUATION):
        now[0] = 6.0
        with during(energy, IDLE):
            now[0] = 6.5
        now[0] = 7.0
    now[0] = 10.0
    assert clock.milliseconds() == {"start-up": 2000, COMPUTE: 6000, EVALUATION: 1500, IDLE: 500}


def test_the_silence_before_a_hang_was_found_is_hang_and_a_sign_of_life_ends_it():
    now = [0.0]
    clock = PhaseClock(COMPUTE, lambda: now[0])
    now[0] = 100.0
    report_hang({"clock": clock}, 30.0)
    assert clock.hung.is_set()
    now[0] = 110.0
    report_hang({"clock": clock}, 40.0)  # the same phase continues to count
    assert clock.milliseconds() == {COMPUTE: 70_000, HANG: 40_000}
    with during({"clock": clock}, IDLE):
        now[0] = 112.0
    now[0] = 113.0
    assert clock.milliseconds() == {COMPUTE: 71_000, HANG: 40_000, IDLE: 2000}


def test_without_a_meter_nothing_is_reported():
    energy = {"joules": None}
    begin(energy, COMPUTE)
    with during(energy, IDLE):
        report_hang(energy, 5.0)
    assert energy == {"joules": None}


def test_the_meter_writes_phases_and_its_dictionary_ends_without_the_clock(tmp_path):
    began = time.monotonic()
    with meter(EnergyConfig(sample_seconds=0.1), tmp_path / "energy.jsonl")("train") as energy:
        begin(energy, COMPUTE)
        time.sleep(0.25)
        with during(energy, EVALUATION):
            time.sleep(0.15)
    assert "clock" not in energy
    [interval] = read_ledger(tmp_path / "energy.jsonl")
    phases = interval.samples[-1].marks["phases"]
    assert phases[COMPUTE] >= 240
    assert phases[EVALUATION] >= 140
    assert sum(phases.values()) <= 1000 * (time.monotonic() - began)


def test_a_process_that_a_watchdog_ends_was_a_hang_and_its_energy_is_there(tmp_path):
    """The line is written at once, long before the next sample and before the process ends."""
    ledger = tmp_path / "energy.jsonl"
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from governance.energy.ledger import read_ledger\n"
        "from governance.energy.meters import EnergyConfig, meter\n"
        "from governance.phases import begin, report_hang\n"
        "with meter(EnergyConfig(sample_seconds=60), Path(sys.argv[1]))('train') as energy:\n"
        "    begin(energy, 'compute'); time.sleep(0.5); report_hang(energy, 0.4)\n"
        "    while 'hang' not in read_ledger(Path(sys.argv[1]))[0].samples[-1].marks['phases']: time.sleep(0.02)\n"
        "    os._exit(70)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(ledger)], check=False, timeout=300)
    assert done.returncode == 70
    [interval] = read_ledger(ledger)
    assert (interval.outcome, interval.cause) == ("wasted", "hang")
    assert interval.millijoules > 0
    assert interval.samples[-1].marks["phases"]["hang"] >= 350
