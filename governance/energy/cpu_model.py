"""Processor power estimated from utilisation, with bounds.

    watts = TDP x (idle + (full - idle) x utilisation)

The linear law in utilisation is that of Fan, Weber and Barroso, "Power Provisioning for a Warehouse-sized Computer"
(ISCA 2007). TDP is the maker's thermal design power. Only processors are modelled: memory, disks, mainboard, fans and
power supply are not, and the measurement states it. The bounds are an allowance, not a confidence interval: a processor
idles between 10 % and 50 % of its TDP (Barroso and Hölzle, "The Case for Energy-Proportional Computing", IEEE Computer
40(12), 2007, describe servers at half of their peak when idle; present ones do better) and at full load takes between
70 % (memory-bound code) and 125 % of it (Intel's short-term limit PL2 is commonly 1.25 x TDP).

A virtual machine sees a part of a chip, so TDP is counted per hardware thread: TDP / threads of the chip x the
threads that this system sees. Two sockets then count twice by themselves.
"""

from __future__ import annotations

import itertools
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from governance.files import shipped_table

IDLE_FRACTION = 0.25
IDLE_FRACTION_LOW, IDLE_FRACTION_HIGH = 0.10, 0.50
FULL_FRACTION_LOW, FULL_FRACTION_HIGH = 0.70, 1.25


@dataclass(frozen=True)
class CpuPower:
    """Thermal design power of all processors in watts, and its source."""

    watts: float
    low: float
    high: float
    source: str


def thread_watts() -> tuple[float, float, float]:
    """TDP per hardware thread of an unknown chip: low, middle, high."""
    values = [chip["watts"] / chip["threads"] for chip in shipped_table(__package__, "processors.toml")["processors"]]
    return min(values), statistics.median(values), max(values)


def cpu_power(model: str, threads: float, override_watts: float | None = None) -> CpuPower:
    """The TDP of `threads` hardware threads of a processor named `model`.

    `override_watts` is the TDP of the whole node.
    """
    if override_watts is not None:
        return CpuPower(override_watts, override_watts, override_watts, f"TDP {override_watts:g} W as configured")
    for chip in shipped_table(__package__, "processors.toml")["processors"]:
        if re.search(chip["pattern"], model):
            total = chip["watts"] / chip["threads"] * threads
            source = f"TDP {total:.1f} W: {threads:g} threads of {model}, {chip['watts']} W for {chip['threads']}"
            return CpuPower(total, total, total, source)
    low, middle, high = (value * threads for value in thread_watts())
    name = model or "a processor without a name"
    source = f"TDP {middle:.1f} W: {name} is not in the table; {threads:g} threads at the table's median"
    return CpuPower(middle, low, high, source)


def estimated_watts(power: CpuPower, utilisation: float) -> tuple[float, float, float]:
    """Watts at a utilisation from 0 to 1, as (low, middle, high)."""

    def line(tdp: float, idle: float, full: float) -> float:
        return tdp * (idle + (full - idle) * utilisation)

    return (
        line(power.low, IDLE_FRACTION_LOW, FULL_FRACTION_LOW),
        line(power.watts, IDLE_FRACTION, 1.0),
        line(power.high, IDLE_FRACTION_HIGH, FULL_FRACTION_HIGH),
    )


def cpu_model() -> str:
    """The processor's name as the kernel gives it.

    Returns "" where the kernel gives none (many ARM systems).
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return ""


def cpu_times(stat: Path = Path("/proc/stat")) -> tuple[int, int, int]:
    """Processor times of the node: (busy, total, threads).

    The first two are clock ticks of all threads since start; `threads` is how many there are.

    Busy leaves out idle, waiting for input or output, and ticks that the hypervisor gave to others (steal).

    Raises:
        OSError: the file is missing (not Linux).
    """
    with stat.open(encoding="ascii", errors="replace") as lines:
        user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in next(lines).split()[1:9])
        threads = sum(1 for _ in itertools.takewhile(lambda line: line.startswith("cpu"), lines))
    busy = user + nice + system + irq + softirq
    return busy, busy + idle + iowait + steal, threads
