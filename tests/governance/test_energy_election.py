"""The election of a node's meter is repeated: real processes, a holder that leaves or is killed, no joule twice."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from governance.energy import meters
from governance.energy.attribution import add, settle
from governance.energy.ledger import MAX_SAMPLE_SECONDS, read_ledger
from governance.energy.node_lock import LOCK_FILE, runtime_folder
from governance.files import held
from tests.governance.test_energy_meters import rapl_zone

BEGIN, RANGE = 1_000_000_000, 262_143_328_850
PROCESS = """
import json, sys
from pathlib import Path
from governance.energy import meters; from governance.energy import rapl as sources
meters.open_rapl = lambda: sources.open_rapl(Path(sys.argv[1]))
meters.open_nvml = lambda of_job: (None, "")
config = meters.EnergyConfig(sample_seconds=0.1, scope="node")
with meters.meter(config, Path(sys.argv[2]))(sys.argv[3]) as energy:
    energy["artifact"] = f"{sys.argv[3]}/0"
    for line in sys.stdin:
        word, _, step = line.partition(" ")
        if word == "leave":
            break
        if step:
            energy[word] = int(step)
        energy["read"]()
        print(energy["running"]["method"], flush=True)
print(json.dumps(energy), flush=True)
"""


class Node:
    """A node with a fake counter, and processes that measure it."""

    def __init__(self, folder):
        self.folder, self.joules, self.processes = folder, 0, []
        self.zone = rapl_zone(folder / "powercap" / "intel-rapl:0", "package-0", BEGIN, RANGE)

    def start(self, stage, root="root"):
        (self.folder / root).mkdir(exist_ok=True)
        words = [sys.executable, "-c", PROCESS, self.zone.parent, self.folder / root / "energy.jsonl", stage]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(list(map(str, words)), **pipes)
        self.processes.append(process)
        return process

    def spend(self, joules):
        self.joules += joules
        file = self.zone / "new"
        file.write_text(f"{BEGIN + 1_000_000 * self.joules}\n")
        file.replace(self.zone / "energy_uj")


def ask(process, words="read"):
    process.stdin.write(f"{words}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def leave(process):
    return json.loads(process.communicate("leave\n", timeout=300)[0].splitlines()[-1])


def until(holds, missing):
    """The value of `holds()` once it is true."""
    end = time.monotonic() + 300
    while not (found := holds()):
        assert time.monotonic() < end, missing
        time.sleep(0.02)
    return found


def until_recorded(ledger, stage, holds):
    """Wait until the newest sample of a stage is such a one, so that a kill does not lose it."""

    def recorded():
        return any(piece.stage == stage and holds(piece.samples[-1]) for piece in read_ledger(ledger))

    until(recorded, f"{ledger} lacks a sample of {stage}")


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    node = Node(tmp_path)
    yield node
    for process in node.processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("root", ["root", "another root"])
def test_who_waited_measures_when_the_holder_ends(node, root, killed):
    """A short command holds the meter when a training starts; each joule is in one of their readings."""
    short = node.start("audit", root)
    assert ask(short) == "RAPL"
    training = node.start("train")
    assert ask(training, "step 1") == f"shared: measured by pid {short.pid}"
    node.spend(100)
    assert ask(short) == "RAPL"
    until_recorded(node.folder / root / "energy.jsonl", "audit", lambda sample: sample.millijoules == 100_000)
    time.sleep(0.3)  # the seconds that `unmeasured_seconds` has below
    if killed:
        short.kill()
        short.wait()
    else:
        leave(short)
    until(lambda: ask(training) == "RAPL", "the meter was not taken over")
    node.spend(25)
    ask(training, "step 10")
    ask(training, "checkpoint 10")
    until_recorded(node.folder / "root" / "energy.jsonl", "train", lambda sample: sample.marks.get("checkpoint") == 10)
    node.spend(7)
    ask(training, "step 12")
    output = leave(training)
    assert (output["joules"], output["low"], output["high"], output["method"]) == (32.0, 28.8, None, "RAPL")
    assert "another process measured the node" in " ".join(output["coverage"]["missing"])
    ledgers = dict.fromkeys([node.folder / "root" / "energy.jsonl", node.folder / root / "energy.jsonl"])
    pieces = [piece for ledger in ledgers for piece in settle(read_ledger(ledger))]
    total = add(pieces)
    assert total.measured == total.surviving + total.wasted == 1000 * node.joules
    assert total.wasted == (100_000 if killed else 0)
    own = add(piece for piece in pieces if piece.stage == "train")
    assert own.surviving == 32_000
    assert (own.unmeasured_seconds > 0.2) == (own.high is None) == (root != "root")  # else the audit's line holds it
    spent = {piece.checkpoint: piece.millijoules for piece in pieces if piece.stage == "train" and piece.millijoules}
    assert spent == {10: 25_000, 12: 7_000}


def test_a_meter_with_rare_samples_takes_over_at_once(tmp_path, monkeypatch):
    """A training of 20 seconds between two samples has its energy, though a short command held the meter at first."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    config = meters.EnergyConfig(sample_seconds=MAX_SAMPLE_SECONDS, cpu_tdp_watts=100.0, scope="node")
    with ExitStack() as short:
        assert short.enter_context(held(runtime_folder() / LOCK_FILE, "a short command")) is None
        with meters.meter(config, tmp_path / "energy.jsonl")("train") as energy:
            assert energy[meters.RUNNING]["method"].startswith("shared")
            short.close()
            until(lambda: not energy[meters.RUNNING]["method"].startswith("shared"), "the meter was not taken over")
            sum(range(3_000_000))  # work for the estimate
    assert energy["joules"] > 0
    assert "another process measured the node" in " ".join(energy["coverage"]["missing"])


def test_of_many_who_wait_one_measures(node):
    """Three wait; each holder is killed in turn, and every joule is in exactly one line."""
    waiting = [node.start(f"stage{number}") for number in range(4)]
    for count in range(4, 0, -1):
        holders = until(lambda: [one for one in waiting if ask(one) == "RAPL"], "nobody measures")
        assert len(holders) == 1
        node.spend(10 * count)
        ask(holders[0])
        stage = f"stage{node.processes.index(holders[0])}"
        until_recorded(
            node.folder / "root" / "energy.jsonl",
            stage,
            lambda sample, count=count: sample.millijoules == 10_000 * count,
        )
        assert [one for one in waiting if ask(one) == "RAPL"] == holders
        os.kill(holders[0].pid, 9)
        holders[0].wait()
        waiting.remove(holders[0])
    total = add(settle(read_ledger(node.folder / "root" / "energy.jsonl")))
    assert (total.measured, total.wasted) == (100_000, 100_000)
    assert total.unmeasured_seconds == 0


def test_who_waits_leaves_its_marks_when_it_is_killed(node):
    """Its energy is unknown, but not its artifact and step: the attempt that continues from there is a restart."""
    holder = node.start("audit", "another root")
    assert ask(holder) == "RAPL"  # it holds the meter before the training starts
    training = node.start("train")
    ask(training, "resumed_from 0")
    ask(training, "step 12")
    until_recorded(node.folder / "root" / "energy.jsonl", "train", lambda sample: sample.marks.get("step") == 12)
    training.kill()
    training.wait()
    [killed] = read_ledger(node.folder / "root" / "energy.jsonl")
    assert (killed.outcome, killed.millijoules, killed.samples[-1].marks["step"]) == ("wasted", None, 12)
    assert killed.samples[-1].marks["artifact"] == "train/0"
