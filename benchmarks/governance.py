"""The claims on governance: speed of the checks, their share of the pipeline, and that none of them fails open.

    ASSAY_TEST_DATA=... python benchmarks/governance.py [--quick] [GROUP ...]

Groups: suites identities tokens drift hashing fail_opens lost_shards share bias. Seconds are those of the CPU,
after the import of Great Expectations, whose own line is told. Prints a line a goal and exits 1 when one falls short.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures import governance_bias, governance_closed, governance_speed
from benchmarks.measures.goals import Goal, run


def main() -> int:
    """Measure the groups that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller samples; at most 5 minutes")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="only these")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    groups: dict[str, Callable[[], list[Goal]]] = {
        "suites": governance_speed.suites,
        "identities": lambda: governance_speed.identities(quick),
        "tokens": lambda: governance_speed.tokens(quick),
        "drift": lambda: governance_speed.drift(quick),
        "hashing": lambda: governance_speed.hashing(quick),
        "fail_opens": governance_closed.fail_opens,
        "lost_shards": governance_closed.lost_shards,
        "share": lambda: governance_speed.share(quick),
        "bias": lambda: governance_bias.bias(quick),
    }
    if unknown := sorted(set(arguments.groups) - set(groups)):
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(groups)}")
    return run(
        [(name, measure) for name, measure in groups.items() if not arguments.groups or name in arguments.groups]
    )


if __name__ == "__main__":
    raise SystemExit(main())
