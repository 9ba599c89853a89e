"""Claims on training: speed against other trainers, cost of instruments, saves and DeepSpeed, time to a loss; and
that an exported model scores the same under lm-evaluation-harness as here.

    ASSAY_TEST_DATA=... python benchmarks/training.py [--quick] [GROUP ...]

Groups: speed instruments saves blocks tax update kernels time_to_loss memory lm_eval gpu gpu_look.
`gpu_look` is the first ten minutes of `gpu`. Rivals are installed from the package index into venvs of their own,
and those that are timed take their steps in turn. Prints a line per goal and exits 1 when one falls short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.goals import Goal, command_line
from benchmarks.measures.training import (
    gpu_first_look,
    training_cost,
    training_harness,
    training_kernels,
    training_memory,
    training_speed,
    training_to_loss,
    training_update,
)


def groups(quick: bool) -> dict[str, Callable[[], Iterable[Goal]]]:
    """Measurements by name."""
    return {
        "speed": lambda: training_speed.speed(quick),
        "instruments": lambda: training_cost.instruments(quick),
        "saves": lambda: training_cost.saves(quick),
        "blocks": lambda: training_cost.blocks(quick),
        "tax": lambda: training_cost.engine_tax(quick),
        "update": lambda: training_update.update(quick),
        "kernels": lambda: training_kernels.kernels(quick),
        "time_to_loss": lambda: training_to_loss.time_to_loss(quick),
        "memory": lambda: training_memory.memory(quick),
        "lm_eval": lambda: training_harness.lm_eval(quick),
        "gpu": lambda: gpu_first_look.gpu(quick),
        "gpu_look": lambda: gpu_first_look.look(quick),
    }


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
