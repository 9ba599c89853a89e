"""The data pipeline's claims: speed beside its rivals, exactness against planted truth, memory, the same bytes.

    ASSAY_TEST_DATA=... python benchmarks/data.py [--quick] [GROUP ...]

Groups: chain truth_duplicates truth_personal_data truth_contamination truth_web rates memory same_digest. Rivals are
installed from the package index into `~/.cache/assay/rivals` (or $ASSAY_RIVALS). Rates are MB of UTF-8 text a
CPU-second, that is, a core; compare them within one run. Prints a line a goal and exits 1 when one falls short.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures import data_sameness, data_speed, data_truth
from benchmarks.measures.goals import Goal, run


def main() -> int:
    """Measure the groups that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller samples; at most 5 minutes")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="only these")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    groups: dict[str, Callable[[], list[Goal]]] = {
        "chain": lambda: data_speed.whole_chain(quick),
        "truth_duplicates": data_truth.duplicates,
        "truth_personal_data": data_truth.personal_data,
        "truth_contamination": data_truth.contamination,
        "truth_web": data_truth.web_pages,
        "rates": lambda: [*data_speed.personal_data_rate(), *data_speed.trafilatura()],
        "memory": lambda: data_sameness.memory(quick),
        "same_digest": lambda: data_sameness.same_digest(quick),
    }
    if unknown := sorted(set(arguments.groups) - set(groups)):
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(groups)}")
    return run(
        [(name, measure) for name, measure in groups.items() if not arguments.groups or name in arguments.groups]
    )


if __name__ == "__main__":
    raise SystemExit(main())
