"""Gaps of a classifier's scores without a true difference, by simulation.

400 sites in 64 buckets; two large groups and 20 of 5 to 69 sentences, whose scores are drawn alike: a classifier that
praises 95 % of all sentences and blames the others ("praise"), one that is clear about 6 % ("neutral"), and evenly
spread scores ("spread").
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.measures.goals import Goal
from governance.checks.bias.count_tables import schema_of
from governance.checks.bias.interval_rows import Row, finished
from governance.checks.bias.sentence_tables import CLEAR
from governance.checks.bias.sentiment import tone_rows

SHAPES = ("praise", "neutral", "spread")
_NOISE = 0.03
_LARGE = (1500, 400)
LEVEL = 0.05


def _scores(shape: str, rng: np.random.Generator, number: int) -> npt.NDArray[np.int64]:
    """Thousandths of a point."""
    if shape == "spread":
        scores = rng.uniform(-0.6, 0.8, number)
    else:
        values, chances = {
            "praise": ([-0.93, 0.93], [0.05, 0.95]),
            "neutral": ([-0.9, 0.0, 0.9], [0.03, 0.94, 0.03]),
        }[shape]
        scores = rng.choice(values, number, p=chances) + rng.normal(0, _NOISE, number)
    return np.rint(1000 * np.clip(scores, -1, 1)).astype(np.int64)


def rows_of(shape: str, seed: int) -> list[Row]:
    """The rows of `tone` of one corpus."""
    rng = np.random.default_rng(seed)
    sites = rng.integers(0, 64, 400)
    counts = []
    for group, number in enumerate([*_LARGE, *rng.integers(5, 70, 20).tolist()]):
        buckets, scores = sites[rng.integers(0, 400, number)], _scores(shape, rng, number)
        for bucket in np.unique(buckets).tolist():
            mine = scores[buckets == bucket]
            sums = (len(mine), mine.sum(), (mine**2).sum(), (np.abs(mine) >= 1000 * CLEAR).sum())
            counts.append(("en", "s", bucket, "axis", f"g{group:02}", "sentiment:model", *map(int, sums)))
    schema = schema_of("scores")
    columns = [pa.array(of, field.type) for of, field in zip(zip(*counts, strict=True), schema, strict=True)]
    return finished(tone_rows(pa.table(columns, schema=schema)))


def classifiers(quick: bool) -> list[Goal]:
    """Coverage of the gap over 300 corpora (20 when quick), and corpora with an alarm."""
    corpora, goals = 20 if quick else 300, []
    bound = LEVEL + 2 * (LEVEL * (1 - LEVEL) / corpora) ** 0.5  # two standard errors
    for shape in SHAPES:
        held = known = alarms = untested = 0
        for seed in range(corpora):
            rows = rows_of(shape, seed)
            with_interval = [row for row in rows if row["lower"] is not None]
            covered = [row["lower"] <= 0 <= row["upper"] for row in with_interval]
            held, known, untested = held + sum(covered), known + len(covered), untested + len(rows) - len(covered)
            found = zip(with_interval, covered, strict=True)
            alarms += any(row["q"] is not None and row["q"] < LEVEL and not inside for row, inside in found)
        name, note = f"bias_classifiers.{shape}", f"{known:,} intervals, {untested:,} rows too few to say"
        goals.append(Goal(f"{name}.coverage_at_least", held / known, 0.93, note=note))
        goals.append(Goal(f"{name}.alarms", alarms / corpora, bound, "<="))
    return goals
