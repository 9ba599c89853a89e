"""Claims on generation: memory of the key-value cache, speed against `transformers`.

    python benchmarks/inference.py [--quick] [GROUP ...]

Groups: cache speed. Prints a line per goal, exits 1 when one falls short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.goals import Goal, command_line
from benchmarks.measures.inference import generation_cost


def groups(quick: bool) -> dict[str, Callable[[], list[Goal]]]:
    """Measurements by name."""
    return {"cache": lambda: generation_cost.cache(quick), "speed": lambda: generation_cost.speed(quick)}


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
