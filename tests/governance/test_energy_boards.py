"""hwmon trees and programs that answer as ipmitool and scontrol do; a meter that does not measure is not zero."""

import os

import pytest

from governance.energy import hwmon as boards
from governance.energy import meters
from governance.energy.hwmon import open_board, open_hwmon
from governance.energy.meters import EnergyConfig, meter

IPMI = """
    Instantaneous power reading:                   {watts} Watts
    Minimum during sampling period:                 16 Watts
    Maximum during sampling period:                880 Watts
    Average power reading over sample period:      301 Watts
    Power reading state is:                   activated
"""
SLURM = "NodeName=n1 Arch=x86_64 CoresPerSocket=32 CurrentWatts={watts} AveWatts=310 ExtSensorsJoules=n/a State=MIXED"


def device(hwmon, number, name, **files):
    folder = hwmon / f"hwmon{number}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in {"name": name, **files}.items():
        (folder / file).write_text(f"{text}\n")
    return folder


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder for programs that take precedence over all others; write one with `programs(name, answer)`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name, answer, status=0):
        (folder / name).write_text(
            f"#!/bin/sh\necho x >> {folder}/{name}.asked\ncat <<'E'\n{answer}\nE\nexit {status}\n"
        )
        (folder / name).chmod(0o755)

    write.asked = lambda name: len((folder / f"{name}.asked").read_text().split())
    return write


def test_sockets_are_counted_and_their_cores_are_not(tmp_path):
    files = {"energy1_label": "Ecore000", "energy1_input": 7, "energy2_label": "Esocket0", "energy2_input": 1_000_000}
    folder = device(tmp_path, 3, "amd_energy", **files)
    source = open_hwmon(tmp_path)
    (folder / "energy2_input").write_text("6000000\n")
    [part] = source.read()
    assert (part.name, part.method, part.millijoules, part.low, part.high) == ("socket 0", "hwmon", 5000, 4500, 5500)
    (folder / "energy2_input").unlink()
    assert source.read()[0].high is None
    assert open_hwmon(tmp_path) is None  # a socket that cannot be read is not left out of a sum
    assert open_hwmon(tmp_path / "none") is None


def test_the_acpi_meter_is_the_whole_node(tmp_path):
    now = [0.0]
    folder = device(tmp_path, 0, "power_meter", power1_average=300_000_000)
    board = open_board(tmp_path, {}, lambda: now[0])
    now[0] = 10.0
    (folder / "power1_average").write_text("500000000\n")
    [part] = board.read()
    assert (part.name, part.method, part.millijoules) == ("whole node", "hwmon power, sampled", 4_000_000)
    (folder / "power1_average").write_text("0\n")
    assert board.read()[0].high is None
    assert open_board(tmp_path, {}) is None


def test_ipmi_is_queried_rarely_and_not_again_at_once_after_a_failure(tmp_path, monkeypatch, programs):
    now = [0.0]
    programs("ipmitool", IPMI.format(watts=220))
    assert open_board(tmp_path, {}) is None or os.path.exists("/dev/ipmi0")
    access = os.access
    monkeypatch.setattr(boards.os, "access", lambda path, mode: str(path) == "/dev/ipmi0" or access(path, mode))
    board = open_board(tmp_path, {}, lambda: now[0])
    for _ in range(12):
        now[0] += 5.0
        [part] = board.read()
    assert (part.method, part.millijoules) == ("IPMI power, sampled", 60 * 220_000)
    assert programs.asked("ipmitool") == 3
    programs("ipmitool", "", status=1)
    now[0] += 30.0
    for _ in range(3):
        assert board.read()[0].high is None
        now[0] += 5.0
    assert programs.asked("ipmitool") == 4


@pytest.mark.parametrize(("watts", "method"), [("240", "Slurm power, sampled"), ("0", None), ("n/s", None)])
def test_slurm_is_queried_within_a_job_and_zero_is_not_a_measurement(tmp_path, programs, watts, method):
    programs("scontrol", SLURM.format(watts=watts))
    assert open_board(tmp_path, {"SLURMD_NODENAME": "n1"}) is None
    board = open_board(tmp_path, {"SLURMD_NODENAME": "n1", "SLURM_JOB_ID": "7"})
    assert (board and board.read()[0].method) == method


def test_a_board_counts_alone_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    device(tmp_path / "hwmon", 0, "power_meter", power1_average=300_000_000)
    monkeypatch.setattr(meters, "open_rapl", lambda: (None, "RAPL: none here"))
    monkeypatch.setattr(meters, "open_hwmon", lambda: None)
    monkeypatch.setattr(meters, "open_board", lambda: open_board(tmp_path / "hwmon"))
    monkeypatch.setattr(meters, "open_nvml", lambda of_job: pytest.fail("a GPU would count twice"))
    with meter(EnergyConfig(scope="node"), tmp_path / "energy.jsonl")("clean") as energy:
        pass
    assert energy["method"] == "hwmon power, sampled"
    assert energy["coverage"]["measured"] == ["whole node"]
    assert energy["coverage"]["missing"] == ["RAPL: none here", "network and cooling outside the node: no meter"]
