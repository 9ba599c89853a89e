"""RAPL counters and processor model of a node.

A source is read every few seconds. It returns parts: what was counted, by which method, with bounds. Where a counter
fails on the way, its part keeps its last value and reports the failure; the whole then has no upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from governance.energy.counters import Clock, Counter, Integral
from governance.energy.cpu_model import CpuPower, cpu_times, estimated_watts

POWERCAP = Path("/sys/class/powercap")
ESTIMATED = "estimated: TDP x utilisation (/proc/stat)"
ESTIMATED_GROUP = "estimated: TDP x utilisation (control group)"

RAPL_ALLOWANCE_PERCENT = 10
"""Bounds of a RAPL reading. Intel measures since Haswell (Khan et al., "RAPL in Action", ACM TOMPECS 3(2), 2018), AMD
models (Schöne et al., "Energy Efficiency Aspects of the AMD Zen 2 Architecture", IEEE CLUSTER 2021); neither
guarantees an error, so this is our allowance, not theirs."""


@dataclass(frozen=True)
class EnergyPart:
    """Millijoules of one source since it began; `high` None: unbounded."""

    name: str
    method: str
    millijoules: int
    low: int
    high: int | None
    detail: str = ""


class EnergySource(Protocol):
    """A meter of part of a node."""

    def read(self) -> list[EnergyPart]:
        """Everything counted since the source was opened."""
        ...


def counter_part(name: str, method: str, count: Counter | Integral, percent: int, failure: str) -> EnergyPart:
    """A part of a counter: its doubts, and `percent` to each side.

    `failure` is that of the last reading, where it was missed.
    """
    low = count.low * (100 - percent) // 100_000
    high = -(-count.high * (100 + percent) // 100_000)
    detail = "; ".join(text for text in (count.detail, failure) if text)
    return EnergyPart(name, method, count.microjoules // 1000, low, None if failure else high, detail)


class Metered:
    """One counter with its name, read again and again.

    A failed reading is reported until the next one.
    """

    def __init__(self, name: str, method: str, count: Counter | Integral, percent: int):
        self.name, self.method, self.count, self.percent = name, method, count, percent

    def read(self) -> EnergyPart:
        """Read counters; an unreadable one keeps its value, unbounded."""
        failure = ""
        try:
            self.count.read()
        except (OSError, ValueError) as error:
            failure = f"missed a reading: {error}"
        return counter_part(self.name, self.method, self.count, self.percent, failure)


def whole_number(file: Path) -> int:
    """The number in a file of the kernel's."""
    return int(file.read_text(encoding="ascii"))


def rapl_zone(folder: Path, clock: Clock) -> Metered:
    """One energy counter below /sys/class/powercap.

    It wraps at its range, for some after two minutes at 500 W.
    """
    name = (folder / "name").read_text(encoding="ascii").strip()
    count = Counter(lambda: whole_number(folder / "energy_uj"), whole_number(folder / "max_energy_range_uj"), clock)
    return Metered(name, "RAPL", count, RAPL_ALLOWANCE_PERCENT)


class Meters:
    """Several counters as one source."""

    def __init__(self, meters: list[Metered]):
        self.meters = meters

    def read(self) -> list[EnergyPart]:
        """One part a counter."""
        return [meter.read() for meter in self.meters]


def open_rapl(powercap: Path = POWERCAP, clock: Clock = time.monotonic) -> tuple[Meters | None, str]:
    """Open RAPL packages and memory, or give the reason.

    Zones named "core" and "uncore" lie within their package and "psys" contains it: they would count twice.
    """
    folders = []
    for package in sorted(powercap.glob("intel-rapl:*")):
        name = package / "name"
        if package.name.count(":") == 1 and name.is_file() and name.read_text().startswith("package"):
            folders += [package, *_memory(package)]
    if not folders:
        return None, "RAPL: this system shows no counters (a virtual machine, or the intel_rapl driver is not loaded)"
    try:
        return Meters([rapl_zone(folder, clock) for folder in folders]), ""
    except PermissionError as error:
        return None, (
            f"RAPL: permission refused for {error.filename}; only root may read it since CVE-2020-8694. "
            "An administrator can allow it: chmod a+r on energy_uj"
        )
    except (OSError, ValueError) as error:
        return None, f"RAPL: cannot be read: {error}"


def _memory(package: Path) -> list[Path]:
    """The zones of a package that count its memory.

    Sysfs nests them, and lists them beside it as well.
    """
    zones = sorted({zone.resolve() for zone in package.glob(f"{package.name}:*")})
    return [zone for zone in zones if (zone / "name").read_text(encoding="ascii").strip() == "dram"]


class ProcessorModel:
    """Processor energy estimated from the node's utilisation; see `governance.energy.cpu_model`."""

    def __init__(
        self,
        power: CpuPower,
        times: Callable[[], tuple[int, int, int]] = cpu_times,
        clock: Callable[[], float] = time.monotonic,
        method: str = ESTIMATED,
    ):
        self.method = method
        self.power, self.times, self.clock = power, times, clock
        self.busy, self.total, _ = times()
        self.at = clock()
        self.joules = (0.0, 0.0, 0.0)

    def read(self) -> list[EnergyPart]:
        """One part: all processors."""
        try:
            busy, total, _ = self.times()
        except (OSError, ValueError, KeyError):  # e.g. too few descriptors: the next reading covers this one's time
            return [self._part()]
        at = self.clock()
        ticks = total - self.total
        utilisation = min(1.0, max(0.0, (busy - self.busy) / ticks)) if ticks > 0 else 0.0
        watts = estimated_watts(self.power, utilisation)
        low, middle, high = (sum(pair) for pair in zip(self.joules, (w * (at - self.at) for w in watts), strict=True))
        self.joules = (low, middle, high)
        self.busy, self.total, self.at = busy, total, at
        return [self._part()]

    def _part(self) -> EnergyPart:
        low, middle, high = (int(1000 * joules) for joules in self.joules)
        return EnergyPart("processors", self.method, middle, low, high + 1, self.power.source)
