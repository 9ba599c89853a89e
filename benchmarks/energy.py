"""Claims on energy and the report: their cost, the meters' accuracy, the readings of codecarbon and carbontracker.

    python benchmarks/energy.py [--quick] [GROUP ...]

Groups: sampling counters election ranks control_group gpu report. Prints a line per goal, exits 1 when one falls short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.goals import Goal, command_line
from benchmarks.measures.governance import energy_meters, report_speed


def groups(quick: bool) -> dict[str, Callable[[], list[Goal]]]:
    """Measurements by name."""
    return {
        "sampling": lambda: energy_meters.sampling(quick),
        "counters": lambda: energy_meters.counters(quick),
        "election": lambda: energy_meters.election(quick),
        "ranks": lambda: energy_meters.ranks(quick),
        "control_group": lambda: energy_meters.groups_of_control(quick),
        "gpu": lambda: energy_meters.gpu(quick),
        "report": lambda: report_speed.report_of_a_large_run(quick),
    }


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
