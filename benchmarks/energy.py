"""The claims on energy: what the meters cost, how true they are, and what codecarbon and carbontracker say.

    python benchmarks/energy.py [--quick] [GROUP ...]

Groups: sampling counters ranks control_group gpu. Prints a line a goal and exits 1 when one falls short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures import energy_meters
from benchmarks.measures.goals import Goal, command_line


def groups(quick: bool) -> dict[str, Callable[[], list[Goal]]]:
    """What can be measured, by name."""
    return {
        "sampling": lambda: energy_meters.sampling(quick),
        "counters": lambda: energy_meters.counters(quick),
        "ranks": lambda: energy_meters.ranks(quick),
        "control_group": lambda: energy_meters.groups_of_control(quick),
        "gpu": lambda: energy_meters.gpu(quick),
    }


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
