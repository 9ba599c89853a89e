"""The claims on energy and the report: what they cost, and that a report of a large run stays small.

    python benchmarks/energy.py [--quick] [GROUP ...]

Groups: report. Prints a line a goal and exits 1 when one falls short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures import report_speed
from benchmarks.measures.goals import Goal, command_line


def groups(quick: bool) -> dict[str, Callable[[], list[Goal]]]:
    """What can be measured, by name."""
    return {
        "report": lambda: report_speed.report_of_a_large_run(quick),
    }


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
