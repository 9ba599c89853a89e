"""hwmon counters and board meters, less trusted than RAPL.

    hwmon counters   amd_energy: microjoules of each socket                      processors
    hwmon power      ACPI power_meter: the mean watts at the plug                the whole node
    IPMI             `ipmitool dcmi power reading`, where /dev/ipmi0 is ours     the whole node
    Slurm            CurrentWatts of `scontrol show node`, within a job          the whole node

A board meter holds everything, GPUs too: nothing else is added to it. Power is integrated over samples. What has to
be queried from another program is queried at most every `ASK_SECONDS`, and its last answer counts meanwhile: the
price stays below that of the other samples, but a change of power shows late. A meter that answers 0 W does not
measure.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from governance.energy.counters import Clock, Counter, Integral
from governance.energy.rapl import Metered, Meters, whole_number

HWMON = Path("/sys/class/hwmon")
BOARD_ALLOWANCE_PERCENT = 10
"""Our allowance: neither ACPI nor DCMI guarantees an error, and single readings count for up to `ASK_SECONDS`."""
ASK_SECONDS = 30.0
BOARD_MAX_WATTS = 20_000
"""More than a node takes; an upper bound over gaps."""
NODE = "whole node"
_PATIENCE_SECONDS = 10


def open_hwmon(hwmon: Path = HWMON) -> Meters | None:
    """The processors' own counters.

    Returns None where no counter is readable.
    """
    found = []
    for label in sorted(hwmon.glob("hwmon*/energy*_label")):
        try:
            name = label.read_text(encoding="ascii").strip()
            if name.startswith("Esocket"):  # Ecore zones are within their socket
                energy = label.with_name(label.name.replace("_label", "_input"))
                count = Counter(functools.partial(whole_number, energy), None, time.monotonic)
                found.append(Metered(f"socket {name.removeprefix('Esocket')}", "hwmon", count, BOARD_ALLOWANCE_PERCENT))
        except (OSError, ValueError):
            return None  # one socket without the others would be mistaken for the whole
    return Meters(found) if found else None


def open_board(
    hwmon: Path = HWMON, values: Mapping[str, str] = os.environ, clock: Clock = time.monotonic
) -> Meters | None:
    """The first board meter that answers; None where none does."""
    meters: list[tuple[str, Callable[[], float]]] = [
        ("hwmon power, sampled", functools.partial(_acpi_watts, hwmon)),
        ("IPMI power, sampled", _CachedReading(_ipmi_watts, clock)),
        ("Slurm power, sampled", _CachedReading(functools.partial(_slurm_watts, values), clock)),
    ]
    for method, watts in meters:
        try:
            return Meters([Metered(NODE, method, Integral(watts, clock, BOARD_MAX_WATTS), BOARD_ALLOWANCE_PERCENT)])
        except (OSError, ValueError):
            continue
    return None


class _CachedReading:
    """The last answer of a meter, queried again when it is old."""

    def __init__(self, ask: Callable[[], float], clock: Clock):
        self._ask, self._clock = ask, clock
        self._watts, self._at = 0.0, float("-inf")

    def __call__(self) -> float:
        now = self._clock()
        if now - self._at >= ASK_SECONDS:
            self._at, self._watts = now, 0.0
            self._watts = self._ask()
        if not self._watts:
            raise OSError("it did not answer the last query")
        return self._watts


def _acpi_watts(hwmon: Path) -> float:
    for name in sorted(hwmon.glob("hwmon*/name")):
        if name.read_text(encoding="ascii").strip() == "power_meter":
            for reading in ("power1_average", "power1_input"):
                file = name.with_name(reading)
                if file.exists():
                    return _positive(whole_number(file) / 1e6)
    raise FileNotFoundError("no ACPI power meter")


def _ipmi_watts() -> float:
    if not any(os.access(device, os.R_OK | os.W_OK) for device in ("/dev/ipmi0", "/dev/ipmi/0", "/dev/ipmidev/0")):
        raise FileNotFoundError("no IPMI device that we may use")
    return _watts_of(_output("ipmitool", "dcmi", "power", "reading"), r"Instantaneous power reading:\s*(\d+) Watts")


def _slurm_watts(values: Mapping[str, str]) -> float:
    node = values.get("SLURMD_NODENAME")
    if not node or "SLURM_JOB_ID" not in values:
        raise FileNotFoundError("not within a job of Slurm")
    return _watts_of(_output("scontrol", "show", "node", node, "--oneliner"), r"\bCurrentWatts=(\d+)\b")


def _watts_of(output: str, pattern: str) -> float:
    found = re.search(pattern, output)
    return _positive(float(found[1]) if found else 0.0)


def _positive(watts: float) -> float:
    if watts <= 0:
        raise ValueError("the meter does not measure")
    return watts


def _output(*words: str) -> str:
    """Output of a program.

    Raises:
        OSError: it is missing, fails, or does not answer in time.
    """
    if shutil.which(words[0]) is None:
        raise FileNotFoundError(f"{words[0]} is not installed")
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=True)
    except subprocess.SubprocessError as error:
        raise OSError(f"{words[0]}: {error}") from error
    return done.stdout
