"""What governance costs beside what it stands on.

    python benchmarks/governance.py [--quick] [GROUP ...]

Groups: hashing journal. Compare ratios within one run. Prints a line a goal and exits 1 when one falls short.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures import lineage_speed
from benchmarks.measures.goals import Goal, run


def main() -> int:
    """Measure the groups that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller samples; at most a minute")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="only these")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    groups: dict[str, Callable[[], list[Goal]]] = {
        "hashing": lambda: lineage_speed.hashing(quick),
        "journal": lambda: lineage_speed.journal(quick),
    }
    if unknown := sorted(set(arguments.groups) - set(groups)):
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(groups)}")
    return run(
        [(name, measure) for name, measure in groups.items() if not arguments.groups or name in arguments.groups]
    )


if __name__ == "__main__":
    raise SystemExit(main())
