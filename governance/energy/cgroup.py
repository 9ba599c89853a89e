"""Shared nodes: processor time and allotment by control group.

A job to which Slurm gave fewer threads than the node has (SLURM_CPUS_ON_NODE), or a container with a quota, takes its
share:

    estimate       the allotted threads at the control group's utilisation
    RAPL           the node's energy x the group's processor time over the node's, in each sample interval; bounds reach
                   from the lesser to the greater of that and the allotted part of the threads
    GPUs           those of the job (SLURM_JOB_GPUS), whole

Where the group's time cannot be read, the allotted part is the figure, with nothing and everything as its bounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from governance.energy.counters import Clock
from governance.energy.cpu_model import cpu_model, cpu_power, cpu_times
from governance.energy.rapl import ESTIMATED_GROUP, EnergyPart, EnergySource, ProcessorModel

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Allotment:
    """The part of a node that this job may use."""

    threads: float
    of: int
    """Hardware threads of the node."""
    job: str | None
    """Slurm's job, where it is Slurm that allots."""
    seconds: Callable[[], float] | None
    """Processor seconds of the job's control group; None where they cannot be read."""

    @property
    def fraction(self) -> float:
        """The allotted part of the threads."""
        return self.threads / self.of

    def __str__(self) -> str:
        by = f"Slurm's job {self.job}" if self.job else "the control group's quota"
        return f"share: {self.threads:g} of {self.of} threads, by {by}"


def allotment(
    threads: int, values: Mapping[str, str] = os.environ, groups: Path = CGROUPS, own: Path = OWN_GROUPS
) -> Allotment | None:
    """Share of a node's threads for this process; None for all."""
    job, allotted = values.get("SLURM_JOB_ID"), values.get("SLURM_CPUS_ON_NODE", "")
    if job and allotted.isdecimal() and 0 < int(allotted) < threads:
        inner = process_cgroup(groups, own)
        around = () if inner is None else (inner, *inner.parents)
        # None without Slurm's groups
        job_folder = next((folder for folder in around if folder.name == f"job_{job}"), None)
        return Allotment(int(allotted), threads, job, usage(job_folder))
    group = process_cgroup(groups, own)
    quota = None if group is None else _quota(group, groups)
    return None if quota is None or quota >= threads else Allotment(quota, threads, None, usage(group))


def process_cgroup(groups: Path = CGROUPS, own: Path = OWN_GROUPS) -> Path | None:
    """The folder that counts this process's processor time.

    Version 2 goes before version 1; returns None where there is neither.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    paths = {names: path.lstrip("/") for _, names, path in lines}
    for names, path in paths.items():
        for mount in (["cpuacct", names] if "cpuacct" in names.split(",") else []) + ([""] if not names else []):
            folder = groups / mount / path
            if usage(folder) is not None:
                return folder
    return None


def usage(group: Path | None) -> Callable[[], float] | None:
    """Reader of a group's processor seconds; None if unreadable."""
    if group is None:
        return None

    def second_version() -> float:
        lines = (group / "cpu.stat").read_text(encoding="ascii").splitlines()
        return int(dict(line.split(" ", 1) for line in lines)["usage_usec"]) / 1e6

    def first_version() -> float:
        return int((group / "cpuacct.usage").read_text(encoding="ascii")) / 1e9

    for read in (second_version, first_version):
        try:
            read()
        except (OSError, ValueError, KeyError):
            continue
        return read
    return None


def _quota(group: Path, groups: Path) -> float | None:
    """Threads that the group's quota, or an enclosing one's, allows.

    Returns None where no quota is set.
    """
    found = []
    inside = [folder for folder in (group, *group.parents) if folder == groups or groups in folder.parents]
    for folder in inside:
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                words = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
                quota, period = int(words[0]), int(words[1])
            except (OSError, ValueError, IndexError):  # "max": no quota
                continue
            if quota > 0 and period > 0:
                found.append(quota / period)
    return min(found, default=None)


def group_times(
    allotted: Allotment, seconds: Callable[[], float], clock: Clock = time.monotonic
) -> Callable[[], tuple[int, int, int]]:
    """Times as `cpu_power.cpu_times` gives them, in microseconds.

    Times of the group's processes, and the number of threads that it may use.
    """
    began = clock()

    def times() -> tuple[int, int, int]:
        return int(1e6 * seconds()), int(1e6 * (clock() - began) * allotted.threads), max(1, round(allotted.threads))

    return times


class Shared:
    """The job's share of a whole node's counted energy."""

    def __init__(
        self, source: EnergySource, allotted: Allotment, node: Callable[[], tuple[int, int, int]] = cpu_times
    ) -> None:
        self._source, self._allotted, self._node = source, allotted, node
        self._last = {part.name: part for part in source.read()}
        self._sums = dict.fromkeys(self._last, (0.0, 0.0, 0.0))
        self._times = self._read_times()

    def _read_times(self) -> tuple[float, float] | None:
        """Processor seconds of (the group, the node)."""
        if self._allotted.seconds is None:
            return None
        try:
            return self._allotted.seconds(), self._node()[0] / _TICKS
        except (OSError, ValueError, KeyError):
            return None

    def _shares(self) -> tuple[float, float, float]:
        """(likely, low, high) since the last reading."""
        before, self._times, fraction = self._times, self._read_times(), self._allotted.fraction
        if before is None or self._times is None:
            return fraction, 0.0, 1.0
        ours, all_of = self._times[0] - before[0], self._times[1] - before[1]
        share = min(1.0, max(0.0, ours / all_of)) if all_of > 0 else fraction
        return share, min(share, fraction), max(share, fraction)

    def read(self) -> list[EnergyPart]:
        """The parts of the source, each as the job's share."""
        likely, low, high = self._shares()
        parts = []
        for part in self._source.read():
            before, sums = self._last[part.name], self._sums[part.name]
            more = (part.millijoules - before.millijoules, part.low - before.low, _top(part) - _top(before))
            sums = (sums[0] + more[0] * likely, sums[1] + more[1] * low, sums[2] + more[2] * high)
            self._last[part.name], self._sums[part.name] = part, sums
            bound = None if part.high is None else int(sums[2]) + 1
            parts.append(replace(part, millijoules=int(sums[0]), low=int(sums[1]), high=bound))
        return parts


def _top(part: EnergyPart) -> int:
    return part.millijoules if part.high is None else part.high


def open_processor_model(
    tdp_watts: float | None, allotted: Allotment | None = None
) -> tuple[ProcessorModel | None, str]:
    """The model of the node's processors, or of a share of them.

    Where there is none, the result is None and the reason in words.
    """
    try:
        threads = cpu_times()[2]
        if allotted is None:
            return ProcessorModel(cpu_power(cpu_model(), threads, tdp_watts)), ""
        power = cpu_power(cpu_model(), allotted.threads, tdp_watts and tdp_watts * allotted.fraction)
        if allotted.seconds is None:
            return ProcessorModel(power), ""
        return ProcessorModel(power, group_times(allotted, allotted.seconds), method=ESTIMATED_GROUP), ""
    except (OSError, ValueError, KeyError, StopIteration) as error:
        return None, f"processors: /proc/stat cannot be read ({error}), so not even an estimate"
