"""The claims on training: speed against other trainers, what instruments cost, time to a loss, the stall of a save.

    ASSAY_TEST_DATA=... python benchmarks/training.py [--quick] [GROUP ...]

Groups: speed instruments saves tax time_to_loss gpu. Rivals are installed from the package index into an environment of
their own, and all take their steps in turn. Prints a line a goal and exits 1 when one falls short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures import training_cost, training_gpu, training_speed, training_to_loss
from benchmarks.measures.goals import Goal, command_line


def groups(quick: bool) -> dict[str, Callable[[], list[Goal]]]:
    """What can be measured, by name."""
    return {
        "speed": lambda: training_speed.speed(quick),
        "instruments": lambda: training_cost.instruments(quick),
        "saves": lambda: training_cost.saves(quick),
        "tax": lambda: training_cost.engine_tax(quick),
        "time_to_loss": lambda: training_to_loss.time_to_loss(quick),
        "gpu": lambda: training_gpu.gpu(quick),
    }


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
