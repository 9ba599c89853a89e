"""Claims beyond pretraining: what transfer, distillation and the tests of their worth reach.

    python benchmarks/transfer.py [--quick] [GROUP ...]

Groups: statistics recipes claims interpretability finetuning lora distillation translation. Prints a line per goal,
exits 1 when one falls short. With --quick two groups run at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.goals import Goal, command_line
from benchmarks.measures.transfer import (
    adapter_loss,
    claims_law,
    distilled_students,
    finetuned_classifiers,
    interpreted_models,
    kpi_errors,
    recipes,
    translated_strings,
)


def groups(quick: bool) -> dict[str, Callable[[], Iterable[Goal]]]:
    """Measurements by name, those that take longest first."""
    return {
        "distillation": lambda: distilled_students.students(quick),
        "recipes": lambda: recipes.recipes(quick),
        "finetuning": lambda: finetuned_classifiers.curve(quick),
        "lora": lambda: adapter_loss.lora(quick),
        "translation": lambda: translated_strings.translation(quick),
        "claims": lambda: claims_law.claims(quick),
        "statistics": lambda: kpi_errors.statistics(quick),
        "interpretability": lambda: interpreted_models.inside(quick),
    }


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups, at_once=2))
