import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from governance.config import Section
from governance.energy import meters, nvml
from governance.energy.cpu_model import cpu_power, cpu_times, estimated_watts, thread_watts
from governance.energy.ledger import read_ledger
from governance.energy.meters import EnergyConfig, meter
from governance.energy.node_lock import node_turn
from governance.energy.nvml import WHOLE_DEVICE, Nvml
from governance.energy.rapl import ESTIMATED, ProcessorModel, open_rapl
from governance.errors import Preempted
from governance.hooks import Hooks
from governance.stage import Made, Recipe, Runtime, ShareDone, run_stage
from pretrain.distributed.preemption import StopNow

FAST = EnergyConfig(sample_seconds=0.1)


@pytest.fixture(autouse=True)
def own_node(tmp_path, monkeypatch):
    """A separate node for each test, so that no other meter of this machine can hold the lock."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))


def rapl_zone(folder: Path, name: str, energy: int, maximum: int = 1_000_000) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{maximum}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    return folder


def test_rapl_counts_packages_and_memory_once_and_follows_a_wrap(tmp_path):
    package = rapl_zone(tmp_path / "intel-rapl:0", "package-0", 900_000)
    memory = rapl_zone(package / "intel-rapl:0:1", "dram", 5_000)
    core = rapl_zone(package / "intel-rapl:0:0", "core", 0)
    rapl_zone(tmp_path / "intel-rapl:1", "psys", 0)
    (tmp_path / "intel-rapl:0:1").symlink_to(memory)
    (tmp_path / "intel-rapl:0:0").symlink_to(core)
    rapl, reason = open_rapl(tmp_path)
    assert reason == ""
    (package / "energy_uj").write_text("50000\n")  # wrapped: 100,000 to the top, 50,000 from zero
    (memory / "energy_uj").write_text("25000\n")
    (core / "energy_uj").write_text("999999\n")
    parts = rapl.read()
    assert [(part.name, part.millijoules) for part in parts] == [("package-0", 150), ("dram", 20)]
    assert all(part.low <= part.millijoules <= part.high and part.method == "RAPL" for part in parts)
    (package / "energy_uj").unlink()
    broken = rapl.read()[0]
    assert broken.millijoules == 150
    assert broken.high is None
    assert "missed a reading" in broken.detail


def test_rapl_says_that_permission_is_refused(tmp_path, monkeypatch):
    zone = rapl_zone(tmp_path / "intel-rapl:0", "package-0", 1)
    text = Path.read_text

    def refuse(path, *args, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return text(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    rapl, reason = open_rapl(tmp_path)
    assert rapl is None
    assert "permission refused" in reason
    assert str(zone) in reason
    assert open_rapl(tmp_path / "none")[0] is None


def test_the_model_integrates_the_linear_law():
    power = cpu_power("AMD EPYC 7763 64-Core Processor", 128)
    ticks, clock = [(0, 0, 128)], [0.0]
    model = ProcessorModel(power, lambda: ticks[-1], lambda: clock[-1])
    assert model.read()[0].millijoules == 0
    ticks.append((500, 1000, 128))
    clock.append(10.0)
    part = model.read()[0]
    assert part.millijoules == int(1000 * 10 * 280 * (0.25 + 0.75 * 0.5))
    assert part.low < part.millijoules < part.high
    assert "estimated" in part.method
    ticks.append((500, 2000, 128))
    clock.append(20.0)
    assert model.read()[0].millijoules - part.millijoules == 10_000 * 70


def test_model_survives_a_reading_that_fails():
    answers = iter([(0, 0, 1), OSError(24, "Too many open files"), (10, 20, 1)])

    def times():
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    clock = iter([0.0, 10.0])
    model = ProcessorModel(cpu_power("", 1, 8.0), times, lambda: next(clock))
    assert model.read()[0].millijoules == 0
    assert model.read()[0].millijoules == int(10_000 * 8 * (0.25 + 0.75 * 0.5))


def test_tdp_by_name_by_thread_and_by_override():
    assert cpu_power("AMD EPYC 9654 96-Core Processor", 384).watts == 720  # two sockets
    assert cpu_power("Intel(R) Xeon(R) Platinum 8480+", 28).watts == 350 / 4  # a virtual machine with a quarter
    low, middle, high = thread_watts()
    unknown = cpu_power("Something New", 2)
    assert (unknown.low, unknown.watts, unknown.high) == (2 * low, 2 * middle, 2 * high)
    assert "not in the table" in unknown.source
    assert cpu_power("Something New", 2, 35.0).watts == 35
    for utilisation in (0.0, 0.3, 1.0):
        lowest, watts, highest = estimated_watts(unknown, utilisation)
        assert 0 < lowest < watts < highest


def test_cpu_times_reads_the_first_lines_only(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 1 5 100 4 2 3 7 0 0\ncpu0 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1\nintr 9 9\ncpu9 x\n")
    assert cpu_times(stat) == (21, 132, 2)


class FakeNvml:
    class NVMLError(Exception):
        pass

    def __init__(self):
        self.energy = {0: 1000}
        self.power = {1: 100_000}
        self.broken = False

    def nvmlDeviceGetName(self, device):  # noqa: N802
        return b"Card" if device else "Card"

    def nvmlDeviceGetTotalEnergyConsumption(self, device):  # noqa: N802
        if device not in self.energy or self.broken:
            raise self.NVMLError("not supported")
        return self.energy[device]

    def nvmlDeviceGetPowerUsage(self, device):  # noqa: N802
        return self.power[device]


def test_nvml_counts_from_its_begin_and_falls_back_to_power():
    clock = [100.0]
    fake = FakeNvml()
    gpus = Nvml(fake, [0, 1], lambda: clock[0])
    fake.energy[0] = 5000
    fake.power[1] = 300_000
    clock[0] = 102.0
    first, second = gpus.read()
    assert (first.millijoules, first.method, first.low, first.high) == (4000, "NVML", 3800, 4200)
    assert (second.millijoules, second.method) == (400_000, "NVML power, sampled")
    fake.broken = True
    failed = gpus.read()[0]
    assert (failed.millijoules, failed.high) == (4000, None)
    fake.broken = False
    fake.energy[0] = 9000
    again = gpus.read()[0]
    assert (again.millijoules, again.high) == (8000, 8400)  # the next reading makes up for it


def test_a_divided_gpu_says_that_the_energy_is_the_whole_devices():
    fake = FakeNvml()
    fake.nvmlDeviceGetMigMode = lambda device: [1, 1]
    [part] = Nvml(fake, [0]).read()
    assert part.detail == WHOLE_DEVICE


def test_a_measurement_reports_method_bounds_and_what_it_lacks(tmp_path):
    ledger = tmp_path / "energy.jsonl"
    with meter(FAST, ledger)("clean") as energy:
        assert energy["joules"] is None
        while len(read_ledger(ledger)[0].samples) < 3:
            time.sleep(0.02)
    assert energy["low"] <= energy["joules"]
    assert energy["scope"] == "node"
    assert energy["coverage"]["missing"]
    assert sum(round(1000 * part["joules"]) for part in energy["parts"]) == round(1000 * energy["joules"])
    if energy["coverage"]["estimated"]:
        assert "estimated" in energy["method"]
    [interval] = read_ledger(ledger)
    assert (interval.stage, interval.outcome) == ("clean", "surviving")
    assert interval.millijoules == round(1000 * energy["joules"])
    assert len(interval.samples) >= 4
    json.dumps(energy, allow_nan=False)


def test_the_running_joules_are_those_of_the_last_sample(tmp_path):
    with meter(FAST, tmp_path / "energy.jsonl")("train") as energy:
        first = energy["running"]["joules"]
        deadline = time.monotonic() + 300
        while energy["running"]["joules"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        running = energy["running"]["joules"]
        assert running > first
        assert energy["running"]["method"] != "unknown"
        with meter(FAST, tmp_path / "energy.jsonl")("beside") as other:
            assert other["running"]["joules"] is None  # the node is measured already
            assert other["running"]["method"].startswith("shared")
    assert energy["joules"] >= running
    assert "running" not in energy
    [interval] = read_ledger(tmp_path / "energy.jsonl")
    assert round(running * 1000) in [sample.millijoules for sample in interval.samples]


def test_work_of_nodes_without_a_meter_leaves_no_upper_bound(tmp_path):
    def make(folder):
        runtime.notes.elsewhere[f"clean/{folder.name}"] = {"node-b", "node-a"}
        return Made([], {})

    runtime = Runtime(tmp_path, hooks=Hooks(meter=meter(FAST, tmp_path / "energy.jsonl")))
    energy = run_stage(Recipe("clean", 1, Section()), [], runtime, make).run["energy"]
    assert energy["joules"] is not None
    assert (energy["high"], "unmeasured" in energy) == (None, False)
    missing = [f"Ray node {node}: no meter runs there" for node in ("node-a", "node-b")]
    assert energy["coverage"]["missing"][-2:] == missing
    [interval] = read_ledger(tmp_path / "energy.jsonl")
    assert interval.samples[-1].high is None


def test_disabled_is_unknown_and_writes_nothing(tmp_path):
    with meter(EnergyConfig(enabled=False), tmp_path / "energy.jsonl")("clean") as energy:
        pass
    assert energy["joules"] is None
    assert not (tmp_path / "energy.jsonl").exists()


def test_a_body_that_raises_is_wasted_but_not_one_that_saved_its_work_and_left(tmp_path):
    ledger = tmp_path / "energy.jsonl"
    measure = meter(FAST, ledger)
    with pytest.raises(KeyError), measure("clean") as energy:
        raise KeyError("x")
    assert energy["joules"] is not None
    with pytest.raises(Preempted), measure("train"):
        raise Preempted("saved")
    with pytest.raises(ShareDone), measure("clean"):
        raise ShareDone("clean", "3 shards made", made=3)
    with pytest.raises(StopNow), measure("train"):  # a signal before there is anything to save
        raise StopNow
    outcomes = [(interval.outcome, interval.cause) for interval in read_ledger(ledger)]
    assert outcomes == [
        ("wasted", "KeyError"),
        ("surviving", "preempted"),
        ("surviving", "left"),
        ("wasted", "preempted"),
    ]


def test_a_second_meter_on_the_node_counts_nothing(tmp_path):
    """Rank 1 of the same run stays out of the ledger; another run records that it knows nothing."""
    ledger, other = tmp_path / "a" / "energy.jsonl", tmp_path / "b" / "energy.jsonl"
    with meter(FAST, ledger)("train") as first:
        with meter(FAST, ledger)("train") as rank_one:
            pass
        with meter(FAST, other)("clean") as another:
            pass
    for shared in (rank_one, another):
        assert shared["joules"] is None
        assert shared["method"] == f"shared: measured by pid {os.getpid()}"
    assert first["joules"] is not None
    assert len(read_ledger(ledger)) == 1
    [unmeasured] = read_ledger(other)
    assert unmeasured.millijoules is None
    with meter(FAST, other)("clean") as free:
        pass
    assert free["joules"] is not None


def test_a_job_of_a_shared_node_takes_its_share_next_to_another_meter(tmp_path, monkeypatch):
    threads = cpu_times()[2]
    if threads < 2:
        pytest.skip("a node of one thread cannot be shared by allotment")
    with meter(FAST, tmp_path / "a" / "energy.jsonl")("train") as whole:
        monkeypatch.setenv("SLURM_JOB_ID", "4711")
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
        with meter(FAST, tmp_path / "b" / "energy.jsonl")("train") as share:
            time.sleep(0.15)
        with meter(EnergyConfig(scope="node"), tmp_path / "c" / "energy.jsonl")("train") as refused:
            pass
    assert (whole["scope"], share["scope"]) == ("node", f"share: 1 of {threads} threads, by Slurm's job 4711")
    assert 0 < share["joules"] < whole["joules"]
    assert refused["method"].startswith("shared")


def test_a_kill_loses_at_most_one_sample_and_frees_the_node(tmp_path):
    ledger = tmp_path / "energy.jsonl"
    program = (
        "import sys, time; from pathlib import Path\n"
        "from governance.energy.meters import EnergyConfig, meter\n"
        "with meter(EnergyConfig(sample_seconds=0.1), Path(sys.argv[1]))('train') as energy:\n"
        "    energy['step'] = 7; print('on', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(ledger)], stdout=subprocess.PIPE)
    child.stdout.readline()
    while len(read_ledger(ledger)[0].samples) < 4:
        time.sleep(0.05)
    [running] = read_ledger(ledger)
    assert running.outcome == "unknown"
    child.kill()
    child.wait()
    child.stdout.close()
    [killed] = read_ledger(ledger)
    assert (killed.outcome, killed.cause) == ("wasted", "killed")
    assert killed.millijoules > 0
    assert killed.samples[-1].marks["step"] == 7
    assert killed.samples[-1].marks["phases"]["start-up"] >= 200
    assert killed.unseen_seconds == 0.1
    with node_turn(ledger) as turn:
        assert turn.ours


def test_a_ledger_that_refuses_never_stops_the_run(tmp_path):
    ledger = tmp_path / "energy.jsonl"
    ledger.mkdir()
    with meter(FAST, ledger)("clean") as energy:
        pass
    assert energy["joules"] is not None


def test_the_estimate_is_reported_to_be_one():
    assert ESTIMATED.startswith("estimated")


def test_no_gpu_reason_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert nvml.open_nvml() == (None, "")
    monkeypatch.setattr(Path, "exists", lambda path: path.name == "nvidiactl")
    assert "not installed" in nvml.open_nvml()[1]
    assert meters._total([], ["GPU: x"]) == (None, None, None)
