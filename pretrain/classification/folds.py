"""Cross-validation: mean of the folds, with its interval.

Training sets of k folds share most of their documents, so their figures are not independent and the usual interval of
a mean is too short. The variance is therefore s^2 (1/k + n_test / n_train), on k - 1 degrees of freedom (Nadeau and
Bengio 2003, Inference for the Generalization Error, section 5).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from governance.config import Section
from governance.files import write_text
from governance.manifest import Manifest, describe
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 2


class FoldsRecipe(Section):
    """Number of folds."""

    folds: int


def mean_of_folds(values: Sequence[float], test: int, train: int) -> dict[str, Any]:
    """Mean of at least two folds, with its 95 % interval.

    `test` and `train` are documents of all folds together. Equal folds say nothing about their variation: None, None.
    """
    from scipy import stats

    count = len(values)
    mean = math.fsum(values) / count
    if min(values) == max(values):  # their mean is rounded, so the sum of squares need not be 0
        return {"value": round(mean, 6), "lower": None, "upper": None}
    spread = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    margin = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(spread * (1 / count + test / train))
    return {"value": round(mean, 6), "lower": round(mean - margin, 6), "upper": round(mean + margin, 6)}


def join_folds(evaluated: Sequence[Manifest], trained: Sequence[int], runtime: Runtime) -> Manifest:
    """Figures of all folds together, as an artifact.

    Args:
        evaluated: the evaluation of each fold's held-out part.
        trained: training documents of each fold.
        runtime: where.
    """

    def make(folder: Any) -> Made:
        rows = [
            {
                "fold": number, "train": documents, "test": one.stats["documents"],
                "accuracy": one.stats["accuracy"]["value"], "macro_f1": one.stats["macro_f1"]["value"],
                "ece_before": one.stats["calibration"]["before"]["ece"]["value"],
                "ece_after": one.stats["calibration"]["after"]["ece"]["value"],
            }
            for number, (one, documents) in enumerate(zip(evaluated, trained, strict=True))
        ]  # fmt: skip
        sizes = sum(row["test"] for row in rows), sum(trained)
        names = ("accuracy", "macro_f1", "ece_before", "ece_after")
        means = {name: _within_one(mean_of_folds([row[name] for row in rows], *sizes)) for name in names}
        stats = {"folds": rows, "mean": means}
        write_text(folder / "folds.json", json.dumps(stats, indent=1) + "\n")
        return Made([describe(folder / "folds.json", runtime.root)], stats)

    recipe = Recipe("cross_validation", VERSION, FoldsRecipe(folds=len(evaluated)))
    return run_stage(recipe, [one.as_input() for one in evaluated], runtime, make)


def _within_one(row: dict[str, Any]) -> dict[str, Any]:
    """The interval of a share, which is between 0 and 1."""
    return {name: value if value is None else min(max(value, 0.0), 1.0) for name, value in row.items()}
