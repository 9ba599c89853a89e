"""codecarbon's offline tracker as a meter.

It is read at each sample: the energy of processors, memory and GPUs. What it reads (RAPL, NVML) keeps the bounds of
those meters. What it guesses is marked as estimated, and is a part of its own:

    processors   TDP x load: bounds from the lesser to the greater of its figure and the bounds of our own model
    memory       from its size alone, whatever it does: bounds from nothing to twice the figure

Its traps that are avoided: one tracker per node, by the meter's own election (it counts a node once for each rank); no
network, whatever its own configuration files and environment set; all GPUs of the node, not those that
CUDA_VISIBLE_DEVICES names, and where it finds none though there is one, that is missing, not 0; no PUE; no CO2, and no
water, which it gives as 0 where it has no figure. Price: about three seconds at the first start in a process, and a
thread that wakes each second.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from typing import Any

from governance.energy.ledger import MILLIJOULES_PER_KWH
from governance.energy.nvml import NVML_ALLOWANCE_PERCENT, open_nvml
from governance.energy.rapl import RAPL_ALLOWANCE_PERCENT, EnergyPart, EnergySource
from governance.errors import ConfigError, PipelineError

_NEVER_SECONDS = 10**8  # it is read when we ask


def require_codecarbon() -> None:
    """Raise with the way to install it where it is missing.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("codecarbon") is None:
        raise ConfigError(
            '[energy] method = "codecarbon": it is not installed. Install it with: pip install '
            '"assay-pretrain[codecarbon]", or set method = "auto"'
        )


@functools.cache
def _tracker() -> tuple[Any, Any]:
    """This process's started tracker, and the output that keeps its last totals."""
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.base_output import BaseOutput

    gpus, _ = open_nvml()

    class Last(BaseOutput):  # type: ignore[misc]
        """Keep the values that the tracker would write to a file."""

        total: Any = None

        def out(self, total: Any, delta: Any) -> None:
            self.total = total

        def live_out(self, total: Any, delta: Any) -> None:
            self.total = total

    last = Last()
    tracker = OfflineEmissionsTracker(
        country_iso_code="SWE",  # required; its CO2 is not read
        force_carbon_intensity_g_co2e_kwh=1.0,  # so that it queries no service
        electricitymaps_api_token=None,
        emissions_endpoint=None,
        output_methods=[],
        output_handlers=[last],
        measure_power_secs=_NEVER_SECONDS,
        api_call_interval=-1,
        # All of the node: left to itself it takes those of CUDA_VISIBLE_DEVICES, one rank's.
        gpu_ids=list(range(len(gpus.devices))) if gpus else None,
        allow_multiple_runs=True,  # else it takes a lock of its own, and measures nothing where another has it
        tracking_mode="machine",
        pue=1.0,
        wue=0.0,
        log_level="error",
    )
    tracker.start()
    return tracker, last


class CodeCarbon:
    """Energy counted by codecarbon since opening, with our bounds."""

    def __init__(self, model: EnergySource | None):
        self._tracker, self._last = _tracker()
        self._model = model
        self._modes = {
            type(hardware).__name__: str(getattr(hardware, "_mode", ""))
            for hardware in getattr(self._tracker, "_hardware", ())
        }
        began = self._totals()
        if began is None:
            raise PipelineError('codecarbon gives no figures; [energy] method = "auto" does without it')
        self._began = self._now = began

    def _totals(self) -> dict[str, int] | None:
        """Millijoules of (processors, memory, GPUs) since the tracker was started.

        Returns None where the tracker swallowed an error.
        """
        self._last.total = None
        self._tracker.flush()
        if self._last.total is None:
            return None
        return {
            name: round(MILLIJOULES_PER_KWH * getattr(self._last.total, f"{name}_energy"))
            for name in ("cpu", "ram", "gpu")
        }

    def missing(self) -> list[str]:
        """GPUs that it does not count, in words."""
        gpus, reason = open_nvml()
        if gpus is not None and "GPU" not in self._modes:
            reason = f"GPU: codecarbon found none, NVML reports {len(gpus.devices)}"
        return [reason] if reason else []

    def read(self) -> list[EnergyPart]:
        """Parts for processors, memory and GPUs."""
        found = self._totals()
        self._now = found or self._now
        counts = {name: value - self._began[name] for name, value in self._now.items()}
        parts = [self._processors(counts["cpu"]), self._memory(counts["ram"])]
        if "GPU" in self._modes:
            parts.append(_measured("GPUs", "codecarbon: NVML", counts["gpu"], NVML_ALLOWANCE_PERCENT))
        return parts if found else [replace(part, high=None, detail="missed a reading") for part in parts]

    def _processors(self, millijoules: int) -> EnergyPart:
        mode = self._modes.get("CPU", "unknown")
        if mode == "intel_rapl":
            return _measured("processors", "codecarbon: RAPL", millijoules, RAPL_ALLOWANCE_PERCENT)
        detail = "TDP x load, by codecarbon's table of processors"
        part = EnergyPart("processors", f"codecarbon: {mode}, estimated", millijoules, 0, None, detail)
        ours = self._model.read() if self._model else []
        if not ours or None in (high := [one.high for one in ours]):
            return part
        low = min(millijoules, sum(one.low for one in ours))
        return replace(part, low=low, high=max(millijoules, sum(value or 0 for value in high)))

    def _memory(self, millijoules: int) -> EnergyPart:
        detail = "codecarbon's guess from the size of memory, not from its use"
        return EnergyPart("memory", "codecarbon: memory, estimated", millijoules, 0, 2 * millijoules, detail)


def _measured(name: str, method: str, millijoules: int, percent: int) -> EnergyPart:
    low, high = millijoules * (100 - percent) // 100, -(-millijoules * (100 + percent) // 100)
    return EnergyPart(name, method, millijoules, low, high, "")
