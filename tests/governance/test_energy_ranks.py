"""Several ranks on one node count as one would."""

import json
import os
import subprocess
import sys
import time

import pytest

from governance.energy import node_lock
from governance.energy.attribution import add, settle
from governance.energy.ledger import read_ledger
from governance.energy.node_lock import LOCK_FILE, node_turn, runtime_folder
from tests.governance.test_energy_meters import rapl_zone

RANK = """
import sys
from pathlib import Path
from governance.energy import meters; from governance.energy import rapl as sources
meters.open_rapl = lambda: sources.open_rapl(Path(sys.argv[1]))
meters.open_nvml = lambda of_job: (None, "")
with meters.meter(meters.EnergyConfig(sample_seconds=0.1, scope="node"), Path(sys.argv[2]))("train"):
    print("on", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def own_node(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.parametrize("ranks", [1, 4])
def test_ranks_of_one_node_count_its_energy_once(tmp_path, ranks):
    zone = rapl_zone(tmp_path / "powercap" / "intel-rapl:0", "package-0", 262_000_000_000, 262_143_328_850)
    ledger = tmp_path / "energy.jsonl"
    command = [sys.executable, "-c", RANK, str(zone.parent), str(ledger)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(ranks)]
    try:
        assert [process.stdout.readline() for process in processes] == ["on\n"] * ranks
        for microjoules in (99_000_000, 123_456_000):  # by a rename: no sample finds the file empty
            (zone / "new").write_text(f"{262_000_000_000 + microjoules}\n")
            (zone / "new").replace(zone / "energy_uj")
            time.sleep(0.2)
        for process in reversed(processes):
            process.communicate("leave\n", timeout=300)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    total = add(settle(read_ledger(ledger)))
    assert (total.measured, total.surviving, total.methods) == (123_456, 123_456, ("RAPL",))


_LATE_NOTE = """
import json, os, sys, time
from pathlib import Path
from governance.files import held
lock, stale, ledger = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with held(lock, stale):
    print("held", flush=True)
    time.sleep(0.3)
    again = open(lock, "r+")  # never closed: a record lock ends with any handle of its file
    again.truncate(0)
    again.write(json.dumps({"pid": os.getpid(), "ledger": ledger}))
    again.flush()
    sys.stdin.read()
"""


def test_the_note_of_an_earlier_holder_does_not_count(tmp_path, monkeypatch):
    """One rank has the lock and has not written its note yet: the others wait for it."""
    monkeypatch.setattr(node_lock, "_NOTE_SECONDS", 60.0)
    ledger = tmp_path / "energy.jsonl"
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = json.dumps({"pid": ended.pid, "ledger": "/elsewhere"})
    words = [sys.executable, "-c", _LATE_NOTE, str(runtime_folder() / LOCK_FILE), stale, str(ledger)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with node_turn(ledger) as other:
            assert (other.ours, other.pid, other.ledger) == (False, holder.pid, str(ledger))
        holder.stdin.close()


def test_a_second_meter_of_one_process_leaves_the_node_to_the_first(tmp_path):
    with node_turn(tmp_path / "a") as first:
        with node_turn(tmp_path / "b") as second:
            assert (first.ours, second.ours, second.pid) == (True, False, os.getpid())
        with node_turn(tmp_path / "c") as third:
            assert not third.ours, "the second one's end does not end the first's lock"
