"""Meters: their cost, faulty counters, one reading per node, the control group, a GPU; against codecarbon and
carbontracker, which run in a virtual environment of their own (`rivals/meters.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.measures.goals import Goal, cpu_seconds, figure
from benchmarks.measures.rivals import HERE, environment

METERS = ("codecarbon==3.3.2", "carbontracker==2.4.7", "setuptools<81")
_RANGES = (65_532_610_987, 262_143_328_850)  # microjoules, of RAPL packages: they wrap after minutes


@contextlib.contextmanager
def _own_node() -> Iterator[Path]:
    """A node's lock and a ledger that nothing else uses."""
    with tempfile.TemporaryDirectory() as scratch, patch.dict(os.environ, XDG_RUNTIME_DIR=scratch):
        yield Path(scratch)


def sampling(quick: bool) -> list[Goal]:
    """Processor seconds of a sample, with all that it reads and writes, and their share of a core at the default."""
    from governance.energy.meters import READ, EnergyConfig, meter

    config, times = EnergyConfig(), 200 if quick else 2000
    with _own_node() as scratch, meter(config, scratch / "energy.jsonl")("clean") as energy:
        for _ in range(10):
            energy[READ]()
        started = cpu_seconds()
        for _ in range(times):
            energy[READ]()
        read = (cpu_seconds() - started) / times
        method = energy["running"]["method"]
    with _own_node() as scratch, meter(EnergyConfig(sample_seconds=0.1), scratch / "energy.jsonl")("clean"):
        started = cpu_seconds()
        time.sleep(5 if quick else 30)
        beats = (5 if quick else 30) / 0.1
        sample = (cpu_seconds() - started) / beats
    return [
        Goal("sampling.percent_of_a_core", 100 * sample / config.sample_seconds, 0.1, "<=", f"{method}; a line each"),
        figure("sampling.milliseconds_a_sample", 1000 * sample, "processor time, at ten a second, with its line"),
        figure(
            "sampling.milliseconds_a_reading",
            1000 * read,
            "processor time; the rate of an energy budget near its end",
        ),
    ]


def counters(quick: bool) -> list[Goal]:
    """RAPL trees by chance, with wraps, resets and gaps: the error against the energy that was planted.

    A reset within a gap, or where what is left to the top could be used within a sample, looks like a wrap
    (`governance.energy.counters`): traces with such jumps are reported separately.
    """
    traces = range(20 if quick else 200)
    found = [_trace(seed, apart=True) for seed in traces]
    worst, wraps = max(error for error, _ in found), sum(wrapped for _, wrapped in found)
    in_gaps = max(error for error, _ in (_trace(seed, apart=False) for seed in traces))
    note = f"{len(traces)} hours with two resets and gaps of up to a minute each, {wraps} wraps"
    return [
        Goal("counters.worst_error_percent", 100 * worst, 0.5, "<=", note),
        Goal("counters.worst_error_percent_with_glitches", 100 * max(_stumbling(seed) for seed in traces), 0.5, "<=",
             "hours in which a counter of megajoules falls or jumps ten times for a reading, or for good"),
        figure(
            "counters.worst_error_percent_with_hidden_resets", 100 * in_gaps, "resets that look like wraps among them"
        ),
    ]  # fmt: skip


def _stumbling(seed: int) -> float:
    """The relative error of one hour of a counter without a range, as NVML's, that shows ten impossible readings."""
    from governance.energy.counters import Counter, Glitch

    chance = random.Random(seed)
    now, truth, offset = 0.0, 0.0, chance.uniform(1e12, 6e12)
    shown = [int(offset)]
    count = Counter(lambda: shown[0], None, lambda: now)
    at = {10 * chance.randrange(2, 71) for _ in range(10)}
    level = chance.uniform(60, 700)
    for beat in range(720):
        now, truth = now + 5.0, truth + 5e6 * level * chance.uniform(0.8, 1.2)
        before = shown[0]
        shown[0] = int(offset + truth)
        if beat in at:
            fall = chance.choice([1, chance.randrange(1, 10**7), before // 10, -(10**12)])
            if chance.random() < 0.2:
                offset -= 2e10
                shown[0] = int(offset + truth)
            else:
                shown[0] = before - fall
        with contextlib.suppress(Glitch):
            count.read()
    return abs(count.microjoules - truth) / truth


def _trace(seed: int, *, apart: bool) -> tuple[float, int]:
    """The relative error of one hour, and how often its counter wrapped; `apart`: no reset looks like a wrap."""
    from governance.energy.counters import MAX_WATTS
    from governance.energy.rapl import open_rapl

    chance = random.Random(seed)
    maximum = chance.choice(_RANGES)
    now, truth, wraps, gap = 0.0, 0.0, 0, 0.0
    resets = sorted(chance.sample(range(10, 700), 2))
    with tempfile.TemporaryDirectory() as scratch:
        zone = Path(scratch) / "intel-rapl:0"
        zone.mkdir()
        value = chance.randrange(maximum // 2)
        (zone / "name").write_text("package-0\n")
        (zone / "max_energy_range_uj").write_text(f"{maximum}\n")
        (zone / "energy_uj").write_text(f"{value}\n")
        rapl, reason = open_rapl(Path(scratch), lambda: now)
        assert rapl is not None, reason
        level = chance.uniform(60, 350)
        for beat in range(720):
            watts = level * chance.uniform(0.95, 1.05)
            now += 5.0
            truth += 5.0 * watts
            before, value = value, value + int(5e6 * watts)
            hidden = apart and maximum - before < MAX_WATTS * 5e6  # what is left to the top could be used in a sample
            if hidden and beat in resets:
                resets[resets.index(beat)] = beat + 1
            wraps, value = wraps + value // maximum, value % maximum
            if beat in resets:
                value = int(2.5e6 * watts)  # half-way through this beat it began again
            if gap <= 0 and chance.random() < 0.005:
                gap = chance.uniform(5, 60)
            (zone / "energy_uj").unlink(missing_ok=True)
            gap -= 5.0
            near = apart and any(beat - reset in (-1, 0) for reset in resets)
            if gap <= 0 or near or beat == 719:
                (zone / "energy_uj").write_text(f"{value}\n")
            [part] = rapl.read()
        return abs(part.millijoules / 1000 - truth) / truth, wraps


_HOLDER = """
import sys, time
from pathlib import Path
from governance.energy import meters; from governance.energy import rapl as sources
meters.open_rapl = lambda: sources.open_rapl(Path(sys.argv[2]))
meters.open_nvml = lambda of_job: (None, "")
with meters.meter(meters.EnergyConfig(sample_seconds=0.5, scope="node"), Path(sys.argv[1]))("train"):
    print("on", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def election(quick: bool) -> list[Goal]:
    """A counter of 100 W; five processes want the node's meter and the holder is killed again and again."""
    from governance.energy.attribution import add, settle
    from governance.energy.ledger import read_ledger

    watts, lasts, processes = 100.0, 4.0 if quick else 20.0, 5
    with _own_node() as scratch:
        zone = scratch / "powercap" / "intel-rapl:0"
        zone.mkdir(parents=True)
        for name, text in {"name": "package-0", "max_energy_range_uj": "262143328850", "energy_uj": "1000"}.items():
            (zone / name).write_text(f"{text}\n")
        ended = threading.Event()

        def spend() -> None:
            began = time.monotonic()
            while not ended.wait(0.02):
                (zone / "new").write_text(f"{1000 + int(1e6 * watts * (time.monotonic() - began))}\n")
                (zone / "new").replace(zone / "energy_uj")

        words = [sys.executable, "-c", _HOLDER, str(scratch / "energy.jsonl"), str(zone.parent), "600"]
        pipes = {"env": {**os.environ, "PYTHONPATH": str(HERE.parent)}, "stdout": subprocess.PIPE}
        running = [subprocess.Popen(words, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
        for process in running:
            process.stdout.readline()
        spending = threading.Thread(target=spend)
        spending.start()
        began = time.monotonic()
        while running:
            time.sleep(lasts)
            holder = json.loads(next(scratch.glob("assay-*/meter-*/meter.lock")).read_bytes())["pid"]
            process = next(process for process in running if process.pid == holder)
            process.kill()
            process.wait()
            running.remove(process)
        true = watts * (time.monotonic() - began)
        ended.set()
        spending.join()
        measured = (add(settle(read_ledger(scratch / "energy.jsonl"))).measured or 0) / 1000
    lost = (true - measured) / watts / processes
    note = f"{measured:.0f} of {true:.0f} J; each kill loses a sample of 0.5 s; elections are 1 s apart"
    return [
        Goal("election.seconds_without_a_meter_a_kill", lost, 2.0, "<=", note),
        Goal("election.joules_counted_twice", max(0.0, measured - true), 0.0, "<=", note),
    ]


_RANK = """
import sys, time
from pathlib import Path
from governance.energy.meters import EnergyConfig, meter
with meter(EnergyConfig(sample_seconds=0.5), Path(sys.argv[1]))("train") as energy:
    time.sleep(float(sys.argv[2]))
print(energy["joules"] or 0.0)
"""


def _ours(ranks: int, seconds: float) -> float:
    """Watts of this node, as all ranks together say."""
    with _own_node() as scratch:
        words = [sys.executable, "-c", _RANK, str(scratch / "energy.jsonl"), str(seconds)]
        paths = {"PYTHONPATH": str(HERE.parent)}
        running = [subprocess.Popen(words, env={**os.environ, **paths}, stdout=subprocess.PIPE) for _ in range(ranks)]
        return sum(float(rank.communicate()[0]) for rank in running) / seconds


def _theirs(name: str, ranks: int, seconds: float) -> dict[str, float]:
    """Watts that all ranks together say, and processor seconds per sample, by one of the rivals."""
    python = environment("meters", METERS)
    with tempfile.TemporaryDirectory() as scratch:
        words = [str(python), str(HERE / "rivals" / "meters.py"), name, str(seconds), scratch]
        running = [
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(ranks)
        ]
        found: list[dict[str, Any]] = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in running]
    return {
        "watts": sum(one["joules"] for one in found) / seconds,
        "cpu_seconds": found[0]["cpu_seconds"],
        "samples": found[0]["samples"],
    }


def ranks(quick: bool) -> list[Goal]:
    """A sleeping node with 1 and with 4 ranks: the same reading, and what the rivals say."""
    seconds = 15.0 if quick else 60.0
    one, four = _ours(1, seconds), _ours(4, seconds)
    goals = [
        Goal("ranks.four_over_one", four / one, 1.5, "<=", f"{one:.1f} W and {four:.1f} W by our meter"),
        Goal("ranks.one_over_four", one / four, 1.5, "<=", "neither counts the node once for each rank"),
    ]
    for name in ("codecarbon", "carbontracker"):
        alone, together = _theirs(name, 1, seconds), _theirs(name, 4, seconds)
        goals += [
            figure(f"ranks.{name}_four_over_one", together["watts"] / alone["watts"], f"{alone['watts']:.1f} W and "
                 f"{together['watts']:.1f} W"),
            figure(f"ranks.{name}_milliseconds_a_sample", 1000 * alone["cpu_seconds"] / max(alone["samples"], 1),
                 f"processor time of its threads, {alone['samples']:.0f} samples"),
        ]  # fmt: skip
    return goals


def groups_of_control(quick: bool) -> list[Goal]:
    """Processor seconds of /proc/stat against those of the control group, while nothing else may run."""
    from governance.energy.cgroup import process_cgroup, usage
    from governance.energy.cpu_model import cpu_times

    seconds = usage(process_cgroup())
    if seconds is None:
        return [
            figure("control_group.difference_percent", -1, "not run: this process has no group that counts its time")
        ]
    ticks, ended = os.sysconf("SC_CLK_TCK"), threading.Event()
    words = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(words) for _ in range(os.cpu_count() or 1)]
    try:
        before = cpu_times()[0] / ticks, seconds()
        ended.wait(10 if quick else 30)
        node, group = cpu_times()[0] / ticks - before[0], seconds() - before[1]
    finally:
        for process in running:
            process.kill()
            process.wait()
    note = f"{node:.2f} s by /proc/stat, {group:.2f} s by the group; others' work on this machine is in the first"
    return [Goal("control_group.difference_percent", 100 * abs(node - group) / node, 2.0, "<=", note)]


def gpu(quick: bool) -> list[Goal]:
    """A GPU's energy counter against its power, integrated ten times a second, under load by turns."""
    from governance.energy.counters import Integral
    from governance.energy.nvml import Nvml

    name = "gpu.counter_against_power_percent"
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        if not torch.cuda.is_available():
            raise OSError("torch sees no GPU")
    except Exception as error:  # NVML's own errors are direct children of it
        return [figure(name, -1, f"not run: no GPU ({type(error).__name__})")]
    counter = Nvml(pynvml, [device])
    integral = Integral(lambda: pynvml.nvmlDeviceGetPowerUsage(device) / 1000)
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    until = time.monotonic() + (30 if quick else 120)
    while time.monotonic() < until:
        busy = int(time.monotonic()) % 10 < 6
        for _ in range(5 if busy else 0):
            square @ square
        torch.cuda.synchronize()
        time.sleep(0.0 if busy else 0.05)
        integral.read()
    [part] = counter.read()
    power = integral.microjoules / 1000
    note = f"{part.millijoules / 1000:.0f} J by the counter, {power / 1000:.0f} J by power; {part.name}"
    return [Goal(name, 100 * abs(part.millijoules - power) / power, 5.0, "<=", note)]
