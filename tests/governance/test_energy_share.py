"""A job's share of a node, against trees laid out as the kernel lays them out."""

import os
import subprocess
import sys
import time

import pytest

from governance.energy.cgroup import Allotment, Shared, allotment, group_times, process_cgroup, usage
from governance.energy.cpu_model import cpu_power, cpu_times
from governance.energy.rapl import ESTIMATED_GROUP, EnergyPart, ProcessorModel

TICKS = os.sysconf("SC_CLK_TCK")


def second_version(root, path, seconds=0.0, quota=None):
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.stat").write_text(f"usage_usec {int(1e6 * seconds)}\nuser_usec 1\nsystem_usec 2\n")
    if quota is not None:
        (folder / "cpu.max").write_text(f"{quota}\n")
    own = root / "own"
    own.write_text(f"0::/{path}\n")
    return folder, own


def test_slurm_gave_fewer_threads_than_the_node_has(tmp_path):
    values = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "4"}
    task, own = second_version(tmp_path, "system.slice/job_7/step_0/user/task_0", 5.0)
    job = tmp_path / "system.slice/job_7"
    (job / "cpu.stat").write_text("usage_usec 20000000\n")
    found = allotment(64, values, tmp_path, own)
    assert (found.threads, found.job, found.seconds()) == (4, "7", 20.0)  # the whole job's, not one task's
    assert str(found) == "share: 4 of 64 threads, by Slurm's job 7"
    assert allotment(4, values, tmp_path, own) is None  # the whole node
    second_version(tmp_path, "user.slice")
    assert allotment(64, values, tmp_path, own).seconds is None  # no group of the job's own
    assert task.is_dir()


def test_a_quota_is_the_least_of_all_around(tmp_path):
    second_version(tmp_path, "pods", 9.0, "150000 100000")
    _, own = second_version(tmp_path, "pods/one", 3.0, "max 100000")
    found = allotment(8, {}, tmp_path, own)
    assert (found.threads, found.job, found.seconds()) == (1.5, None, 3.0)
    assert "control group's quota" in str(found)
    second_version(tmp_path, "pods", 9.0, "max 100000")
    assert allotment(8, {}, tmp_path, own) is None


def test_the_first_version_of_groups(tmp_path):
    folder = tmp_path / "cpu,cpuacct" / "box"
    folder.mkdir(parents=True)
    (folder / "cpuacct.usage").write_text("2500000000\n")
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    own = tmp_path / "own"
    own.write_text("4:cpu,cpuacct:/box\n0::/\n")
    found = allotment(16, {}, tmp_path, own)
    assert (found.threads, found.seconds()) == (2.0, 2.5)
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert allotment(16, {}, tmp_path, own) is None
    own.unlink()
    assert process_cgroup(tmp_path, own) is None


def test_the_estimate_by_proc_stat_and_by_the_control_group_agree():
    """The same load seen by both: 3 of 8 threads busy for an hour, ticks cut off as the kernel cuts them."""
    now = [0.0]
    whole = Allotment(8, 8, None, lambda: 3 * now[0])
    power = cpu_power("AMD EPYC 7763 64-Core Processor", 8)
    stat = ProcessorModel(power, lambda: (int(3 * now[0] * 100), int(8 * now[0] * 100), 8), lambda: now[0])
    times = group_times(whole, whole.seconds, lambda: now[0])
    group = ProcessorModel(power, times, lambda: now[0], ESTIMATED_GROUP)
    for beat in range(1, 721):
        now[0] = beat * 5.003
        [by_stat], [by_group] = stat.read(), group.read()
    assert by_group.millijoules == pytest.approx(by_stat.millijoules, rel=0.02)
    assert by_group.method == ESTIMATED_GROUP


def test_seconds_of_proc_stat_are_those_of_the_control_group():
    group = process_cgroup()
    if group is None or group.name not in ("cpu", "cpuacct", "cpu,cpuacct", "cgroup", "unified"):
        pytest.skip(f"the control group {group} is not the whole node's, so /proc/stat counts others")
    seconds = usage(group)

    def both():
        """Both counts at one moment: a reading between which the other count moved by more than a tick is repeated."""
        for _ in range(100_000):
            stat, of_group = cpu_times()[0], seconds()
            if cpu_times()[0] - stat <= 1:
                break
        return stat / TICKS, of_group

    before = both()
    burn = "import time\nwhile time.process_time() < 2: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    after = both()
    by_stat, by_group = after[0] - before[0], after[1] - before[1]
    assert by_stat >= 1.9
    assert by_group == pytest.approx(
        by_stat, rel=0.05, abs=min(0.5, 0.04 * cpu_times()[2])
    )  # two ticks per thread, twice


class Rapl:
    joules = 0

    def read(self) -> list[EnergyPart]:
        return [EnergyPart("package-0", "RAPL", 1000 * self.joules, 900 * self.joules, 1100 * self.joules)]


def test_the_shares_of_all_jobs_of_a_node_are_the_nodes_energy():
    source, node, ours = Rapl(), [0], [0.0, 0.0]
    jobs = [
        Shared(source, Allotment(4, 16, str(job), lambda job=job: ours[job]), lambda: (int(node[0] * TICKS), 0, 16))
        for job in (0, 1)
    ]
    for busy in ((3.0, 1.0), (0.5, 1.5), (2.0, 2.0)):
        ours = [ours[0] + busy[0], ours[1] + busy[1]]
        node[0] += sum(busy)
        source.joules += 100
        parts = [job.read()[0] for job in jobs]
    assert [part.millijoules for part in parts] == [75_000 + 25_000 + 50_000, 25_000 + 75_000 + 50_000]
    assert all(part.low < part.millijoules < part.high for part in parts)
    blind = Shared(source, Allotment(4, 16, "2", None))
    source.joules += 100
    [part] = blind.read()
    assert (part.millijoules, part.low, part.high) == (25_000, 0, 110_001)


def test_time_passes():  # the group's threads are counted from the begin of the meter
    allotted = Allotment(2, 8, None, lambda: 1.0)
    times = group_times(allotted, allotted.seconds)
    time.sleep(0.05)
    assert times()[1] >= 100_000
