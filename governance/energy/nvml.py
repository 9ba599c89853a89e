"""NVIDIA GPUs through NVML (`nvidia-ml-py`, optional); this is the door to it.

A GPU's own energy counter (Volta and later) is followed, else its power is integrated over the samples. Both are of
the whole device: where it is divided (MIG), the other instances' energy is in the figure, as the part's detail states.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from governance.energy.counters import Clock, Counter, Glitch, Integral
from governance.energy.rapl import EnergyPart, counter_part

NVML_ALLOWANCE_PERCENT = 5
"""Bounds of an NVML reading: the error of the sensor that Yang, Adamek and Armour measured (arXiv:2312.02741), who also
show that A100 and H100 sample a quarter of the time: short bursts can be missed or overstated."""

WHOLE_DEVICE = "MIG is on: the energy is the whole device's, other instances included"


class Nvml:
    """The GPUs of this node, each by the best of its meters."""

    def __init__(self, nvml: Any, devices: list[Any], clock: Clock = time.monotonic):
        self.nvml, self.devices = nvml, devices
        self.names = [f"GPU {index}: {_text(nvml.nvmlDeviceGetName(device))}" for index, device in enumerate(devices)]
        self.divided = [self._divided(device) for device in devices]
        self.counts = [self._count(device, clock) for device in devices]

    def _count(self, device: Any, clock: Clock) -> tuple[str, Counter | Integral]:
        """Method of reading this GPU, and its counter."""
        nvml = self.nvml
        try:
            return "NVML", Counter(lambda: 1000 * int(nvml.nvmlDeviceGetTotalEnergyConsumption(device)), None, clock)
        except nvml.NVMLError:
            return "NVML power, sampled", Integral(lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1000, clock)

    def _divided(self, device: Any) -> bool:
        """Return whether the device is divided into instances.

        A device without MIG is not divided.
        """
        ask: Callable[[Any], Any] | None = getattr(self.nvml, "nvmlDeviceGetMigMode", None)
        try:
            return ask is not None and bool(ask(device)[0])
        except self.nvml.NVMLError:
            return False

    def read(self) -> list[EnergyPart]:
        """One part a GPU."""
        parts = []
        for name, divided, (method, count) in zip(self.names, self.divided, self.counts, strict=True):
            failure = ""
            try:
                count.read()
            except (self.nvml.NVMLError, Glitch) as error:
                failure = f"missed a reading: {error}"
            part = counter_part(name, method, count, NVML_ALLOWANCE_PERCENT, failure)
            parts.append(
                replace(part, detail="; ".join(filter(None, (WHOLE_DEVICE, part.detail)))) if divided else part
            )
        return parts


def open_nvml(job_gpus: str | None = None) -> tuple[Nvml | None, str]:
    """Open the NVIDIA GPUs of this node, or give the reason.

    `job_gpus` lists the numbers of the GPUs to count, as in "0,1"; with None all that are seen count.
    """
    devices = Path("/dev/nvidiactl").exists()
    if Path("/dev/kfd").exists() and not devices:
        return None, "GPU: AMD, which no meter here can read"
    try:
        import pynvml
    except ImportError:
        return None, "GPU: nvidia-ml-py is not installed (pip install 'assay-pretrain[nvml]')" if devices else ""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        named = [int(word) for word in (job_gpus or "").split(",") if word.isdecimal()]
        # Where Slurm constrains devices, NVML sees the job's alone and renumbers them.
        numbers = named if named and len(named) < count and max(named) < count else range(count)
        return (Nvml(pynvml, [pynvml.nvmlDeviceGetHandleByIndex(i) for i in numbers]) if count else None), ""
    except pynvml.NVMLError as error:
        return None, f"GPU: NVML answers: {error}" if devices else ""


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
