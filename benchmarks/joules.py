"""Joules to a loss on a public text, refereed by the ledger.

    python benchmarks/joules.py [--quick] [GROUP ...]

Groups: assay, and the further entries of contestants.toml. Each entry runs after nanoGPT's recipe with the same seed,
whose loss it has to reach; five seeds, with --quick one, of `assay` alone. The table is written to build/joules as
JSON, Markdown and HTML. Prints a line per goal and exits 1 when one falls short. The rules are in docs/joules.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.goals import Goal, command_line
from benchmarks.measures.training import joules_to_loss


def groups(quick: bool) -> dict[str, Callable[[], Iterable[Goal]]]:
    """Measurements by name."""
    entries = [joules_to_loss.OURS, *joules_to_loss.rivals_but_the_first()]
    match = joules_to_loss.Match(quick)
    return {name: partial(match.against, name) for name in (entries[:1] if quick else entries)}


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
