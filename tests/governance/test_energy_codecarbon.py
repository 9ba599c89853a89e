"""codecarbon as a meter: its figures in parts, guesses marked, bounds, one per node, and no network."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from governance.energy import codecarbon as codecarbon_tracker
from governance.energy import meters
from governance.energy.codecarbon import CodeCarbon
from governance.energy.ledger import read_ledger
from governance.energy.meters import EnergyConfig, meter
from governance.energy.rapl import EnergyPart
from governance.errors import ConfigError, PipelineError

CONFIG = EnergyConfig(method="codecarbon", sample_seconds=0.2)
installed = pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None, reason="codecarbon is not installed (pip install '.[codecarbon]')"
)


@pytest.fixture(autouse=True)
def own_node(tmp_path, monkeypatch):
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))


def test_where_it_is_not_installed_the_meter_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"codecarbon.*pip install"):
        meter(CONFIG, tmp_path / "energy.jsonl")


class Fixed:
    def read(self):
        return [EnergyPart("processors", "estimated: TDP", 5_000, 2_000, 9_000)]


class Tracker:
    """Planted answers of codecarbon: kWh since it was started."""

    def __init__(self, mode):
        self.cpu_energy = self.ram_energy = self.gpu_energy = 1.0
        self._hardware = [type(name, (), {"_mode": mode})() for name in ("CPU", "RAM", "GPU")]
        self.total, self.works = self, True

    def flush(self):
        if not self.works:
            return
        self.total = self
        self.cpu_energy += 1e-6  # 3.6 J
        self.ram_energy += 2e-6
        self.gpu_energy += 3e-6


@pytest.mark.parametrize(
    ("mode", "method", "low", "high"),
    [
        ("cpu_load", "codecarbon: cpu_load, estimated", 2_000, 9_000),
        ("constant", "codecarbon: constant, estimated", 2_000, 9_000),
        ("intel_rapl", "codecarbon: RAPL", 3_240, 3_960),
    ],
)
def test_what_it_guesses_is_reported_and_has_bounds_of_its_own(monkeypatch, mode, method, low, high):
    tracker = Tracker(mode)
    monkeypatch.setattr(codecarbon_tracker, "_tracker", lambda: (tracker, tracker))
    processors, memory, gpus = CodeCarbon(Fixed()).read()
    assert processors.millijoules == pytest.approx(3_600, abs=1)
    assert processors.method == method
    assert (processors.low, processors.high) == pytest.approx((low, high), abs=2)
    assert (memory.name, memory.method, memory.low) == ("memory", "codecarbon: memory, estimated", 0)
    assert memory.high == 2 * memory.millijoules
    assert memory.millijoules == pytest.approx(7_200, abs=1)
    assert (gpus.method, gpus.millijoules) == ("codecarbon: NVML", pytest.approx(10_800, abs=1))


def test_without_our_model_its_guess_has_no_upper_bound_and_without_figures_it_is_an_error(monkeypatch):
    tracker = Tracker("cpu_load")
    monkeypatch.setattr(codecarbon_tracker, "_tracker", lambda: (tracker, tracker))
    assert CodeCarbon(None).read()[0].high is None
    counting = CodeCarbon(Fixed())
    before = counting.read()
    tracker.works = False  # it swallows its errors
    assert [part.high for part in counting.read()] == [None, None, None]
    assert [part.millijoules for part in counting.read()] == [part.millijoules for part in before]
    with pytest.raises(PipelineError, match="codecarbon gives no figures"):
        CodeCarbon(None)


@pytest.mark.parametrize(
    ("hardware", "nvml", "missing"),
    [
        (("CPU", "RAM", "GPU"), (types.SimpleNamespace(devices=[0]), ""), None),
        (("CPU", "RAM"), (None, ""), None),
        (("CPU", "RAM"), (types.SimpleNamespace(devices=[0, 1]), ""), "GPU: codecarbon found none, NVML reports 2"),
        (("CPU", "RAM"), (None, "GPU: NVML answers: Driver Not Loaded"), "GPU: NVML answers: Driver Not Loaded"),
    ],
)
def test_gpus_that_it_does_not_count_are_missing_and_not_zero(tmp_path, monkeypatch, hardware, nvml, missing):
    tracker = Tracker("intel_rapl")
    tracker._hardware = [type(name, (), {"_mode": "intel_rapl"})() for name in hardware]
    monkeypatch.setattr(codecarbon_tracker, "_tracker", lambda: (tracker, tracker))
    monkeypatch.setattr(codecarbon_tracker, "open_nvml", lambda: nvml)
    monkeypatch.setattr(meters, "require_codecarbon", lambda: None)
    with meter(CONFIG, tmp_path / "energy.jsonl")("clean") as energy:
        pass
    assert energy["joules"] > 0
    assert (energy["high"] is None) == (missing is not None)
    assert [text for text in energy["coverage"]["missing"] if text.startswith("GPU")] == [missing] * bool(missing)


@installed
def test_it_counts_all_gpus_of_the_node_whatever_one_rank_sees(monkeypatch):
    import codecarbon

    output = []

    class Took(codecarbon.OfflineEmissionsTracker):
        """The real one, up to the settings that it adopted."""

        def start(self):
            output.append(self._conf["gpu_ids"])

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", Took)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    for nvml in (types.SimpleNamespace(devices=["a", "b", "c"]), None):
        monkeypatch.setattr(codecarbon_tracker, "open_nvml", lambda nvml=nvml: (nvml, ""))
        codecarbon_tracker._tracker.__wrapped__()
    assert [[int(number) for number in numbers] for numbers in output] == [[0, 1, 2], [1]]


@installed
def test_the_installed_tracker_measures_this_node_without_a_network(tmp_path, monkeypatch):
    def refuse(*given):
        raise AssertionError(f"codecarbon opened a connection: {given}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("CODECARBON_SAVE_TO_API", "true")
    monkeypatch.setenv("CODECARBON_ELECTRICITYMAPS_API_TOKEN", "token")
    monkeypatch.setenv("CODECARBON_PUE", "7.0")
    monkeypatch.chdir(tmp_path)
    measure = meter(CONFIG, tmp_path / "energy.jsonl")
    began = time.monotonic()
    with measure("clean") as energy:
        time.sleep(1.2)
    lasted = time.monotonic() - began
    assert energy["scope"] == "node"
    assert 0 < energy["low"] <= energy["joules"] <= energy["high"]
    parts = {part["name"]: part for part in energy["parts"]}
    assert parts["memory"]["joules"] == pytest.approx(parts["memory"]["high"] / 2, rel=0.01)
    assert energy["coverage"]["estimated"] == ["processors", "memory"]
    assert parts["memory"]["joules"] < 100 * lasted  # no PUE of 7, and about 20 W
    with measure("dedup") as second:
        time.sleep(0.3)
    of_memory = [part["joules"] for part in (*energy["parts"], *second["parts"]) if part["name"] == "memory"]
    since_its_start = 3_600_000 * codecarbon_tracker._tracker()[1].total.ram_energy
    assert 0 < sum(of_memory) < since_its_start + 0.01  # the same tracker, counted from the begin of each
    assert second["joules"] > 0
    assert [interval.method for interval in read_ledger(tmp_path / "energy.jsonl")] == [energy["method"]] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["energy.jsonl", "runtime"]  # no emissions.csv


@installed
@pytest.mark.slow
def test_two_ranks_of_a_node_are_measured_once(tmp_path):
    program = """
import sys, time
from pathlib import Path
from governance.energy.meters import EnergyConfig, meter
with meter(EnergyConfig(method="codecarbon"), Path(sys.argv[1]))("train") as energy:
    time.sleep(1.5)
    print(energy["running"]["method"], flush=True)
    sys.stdin.read()
print(energy["joules"], energy["method"])
"""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-c", program, str(tmp_path / "energy.jsonl")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, **pipes) for _ in range(2)]
    methods = {rank: rank.stdout.readline() for rank in ranks}  # at this moment both are at work
    other, holder = sorted(ranks, key=lambda rank: not methods[rank].startswith("shared"))
    output = [rank.communicate(timeout=300)[0].strip() for rank in (other, holder)]  # the holder leaves last
    assert output[0].startswith("None shared")
    assert float(output[1].split()[0]) > 0
    assert len(read_ledger(tmp_path / "energy.jsonl")) == 1
