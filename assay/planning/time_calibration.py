"""Calibration: the forecast's parts against published and measured runs.

A roofline is what perfect overlap and peak rates would give. `Calibration` says how much longer each part takes;
its values for GPUs are fitted to the H100 rows of benchmarks/published.toml, and those for CPUs to seven runs of Assay
on one machine, from which another differs (benchmarks/RESULTS.md). `benchmarks/scale.py planning` fits them again,
compares, and prints how far each row is off when its model is left out of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.training import EngineConfig
from pretrain.engine.deepspeed_config import compiles_blocks
from pretrain.preflight.forecast import Forecast


@dataclass(frozen=True)
class Calibration:
    """Factors of a forecast's parts."""

    products: float = 0.89
    attention: float = 2.26
    eager: float = 2.30
    """Norms, activations and residuals where nothing is compiled; with compilation the forecast's bytes hold."""
    hidden: float = 1.04
    """Cost of overlapped communication, per second of it: it shares multiprocessors and memory with computation."""
    rest: float = 1.0
    """Further factor of all parts but products and attention; a CPU's."""
    low: float = 0.8
    """The least of the predicted time, by the errors of rows left out."""
    high: float = 1.25

    def seconds(self, found: Forecast, compiled: bool) -> dict[str, float]:
        """Seconds of a step by part."""
        parts = dict(found.seconds)
        parts["products"] *= self.products
        parts["attention"] *= self.attention
        parts["between"] *= 1.0 if compiled else self.eager
        parts["loss"] *= 1.0 if compiled else self.eager
        parts["communication"] += self.hidden * found.hidden
        return {name: part if name in ("products", "attention") else self.rest * part for name, part in parts.items()}


GPU = Calibration()
CPU = Calibration(products=1.29, attention=2.6, eager=1.0, hidden=1.0, low=0.7)


def compiled(engine: EngineConfig) -> bool:
    """Return whether the operations between products are compiled."""
    return engine.compile or compiles_blocks(engine)
