"""Training under an energy budget with planted meters; as a script: one of two ranks, each on its own node.

Power is planted on a clock that only steps move, by a second each. The energy of a step is therefore known, whatever
else the machine does meanwhile; saves take real time, in which no energy is counted, except that kept.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from governance.energy import budget, ledger, meters
from governance.energy.meters import EnergyConfig, meter
from governance.energy.rapl import EnergyPart
from governance.errors import BudgetReached
from governance.gate.policy import EnergyBudget
from pretrain import energy_budget, loop

SETTINGS = {"steps": 40, "decay_steps": 10, "every_steps": 16, "validate_every_steps": 0}


class Planted:
    """A meter of `watts` at most, nine tenths of it likely; `steps` seconds have passed."""

    watts = 100
    steps = 0.0

    def __init__(self) -> None:
        self.began = Planted.steps

    def read(self) -> list[EnergyPart]:
        most = round(1000 * Planted.watts * (Planted.steps - self.began))
        return [EnergyPart("planted", "planted", 9 * most // 10, 8 * most // 10, most)]


def plant(patch: pytest.MonkeyPatch) -> None:
    """Every meter of this process, and every clock of the budget."""
    Planted.steps = 0.0
    clock = lambda: Planted.steps  # noqa: E731
    rate = loop.rate_factor

    def second(step: int, steps: int, config: Any) -> float:
        Planted.steps += 1.0
        return rate(step, steps, config)

    patch.setattr(loop, "rate_factor", second)
    patch.setattr(ledger, "time_text", lambda: f"2026-01-01T00:{int(clock()) // 60:02d}:{int(clock()) % 60:02d}.000Z")
    patch.setattr(meters, "_open_sources", lambda config, allotted: ([Planted()], []))
    patch.setattr(meters, "time", SimpleNamespace(monotonic=clock))
    patch.setattr(budget, "Keeper", partial(budget.Keeper, clock=clock))
    patch.setattr(energy_budget.BudgetGuard.__init__, "__defaults__", (None, clock))


def options(root: Path, joules: float, **more: Any) -> dict[str, Any]:
    """The arguments of a training in `root`: its meter, and a budget of so many joules."""
    path = root / "energy.jsonl"
    limit = EnergyBudget(kilowatt_hours=joules / 3_600_000, **more)
    config = EnergyConfig(sample_seconds=60.0, scope="node")
    return {"meter": meter(config, path), "budget": budget.open_budget(limit, path, "policy.toml")}


def _run(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", XDG_RUNTIME_DIR=str(folder / f"node{rank}"))
    (folder / f"node{rank}").mkdir()
    spec = importlib.util.spec_from_file_location("conftest", Path(__file__).parent / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    output = []
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        Planted.watts = (100, 300)[rank]
        for joules in (6000, 6000):
            before = Planted.steps
            try:
                conftest._run_training(folder / "root", **options(folder / "root", joules), **SETTINGS)
            except BudgetReached as error:
                output.append({"error": str(error), "steps": Planted.steps - before})
            (folder / f"ended{rank}").touch()
            while not (
                folder / f"ended{1 - rank}"
            ).exists():  # as a launcher does, which starts again when all have ended
                time.sleep(0.05)
    (folder / f"outcome{rank}.json").write_text(json.dumps(output))


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
