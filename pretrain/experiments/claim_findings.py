"""Figures of the experiment with 95 % intervals, and which claims held.

An interval is Student's over the seeds, of differences between models within each seed (paired: same order of rows). A
claim holds against an opponent where its interval lies on the claim's side, and did not hold where it lies on the
other. It holds as a whole only where it holds against every opponent, which needs no correction for several tests
(an intersection-union test). It did not hold where one opponent reverses it; with k opponents one of them does so by
chance more often, so a reversal is read from the interval at 100 - 5 / k % (Bonferroni). Else it is undecided.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pretrain.experiments.claims_config import ClaimsConfig

HELD, NOT_HELD, UNDECIDED = "held", "did not hold", "undecided"
Run = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def interval(values: Sequence[float | None], level: float = 0.95) -> dict[str, Any] | None:
    """Mean with Student's interval.

    None where a value is unknown or there are fewer than two.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2 or len(known) < len(values):
        return None
    from scipy.stats import t

    mean = statistics.fmean(known)
    half = float(t.ppf((1 + level) / 2, len(known) - 1)) * statistics.stdev(known) / math.sqrt(len(known))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(known)}


def verdict_of(found: Mapping[str, Any] | None, neutral: float) -> str:
    """Side of the neutral value on which an interval lies."""
    if found is None:
        return UNDECIDED
    return HELD if found["low"] > neutral else NOT_HELD if found["high"] < neutral else UNDECIDED


def loss_by(runs: Iterable[Run], axis: str, amount: float) -> float:
    """Lowest loss that some training had reached by then.

    `amount` is in seconds or joules, as `axis` says. Between two points of a curve the loss is interpolated. Trainings
    of all budgets count, since a short one has lowered its rate where a long one has not yet.
    """
    best = math.inf
    for run in runs:
        curve = run["curve"]
        for before, after in itertools.pairwise(curve):
            if after[axis] <= amount:
                best = min(best, after["loss"])
            elif before[axis] < amount:
                share = (amount - before[axis]) / (after[axis] - before[axis])
                best = min(best, before["loss"] + share * (after["loss"] - before["loss"]))
        best = min(best, curve[0]["loss"])
    return best


def slope(rows: Rows) -> float:
    """Change of recall with each doubling of the distance, by least squares."""
    xs = [math.log2(row["distance"]) for row in rows]
    ys = [row["right"] / row["asked"] for row in rows]
    middle = statistics.fmean(xs)
    return sum((x - middle) * y for x, y in zip(xs, ys, strict=True)) / sum((x - middle) ** 2 for x in xs)


def farthest(rows: Rows) -> float:
    """Recall at the longest distance."""
    return float(rows[-1]["right"] / rows[-1]["asked"])


def attends(architecture: str) -> bool:
    """Return whether a model has attention."""
    return architecture == "transformer" or architecture.endswith("_attention")


def law_holds(recall: Mapping[str, Rows]) -> dict[str, bool]:
    """Map each architecture of a seed to whether it follows the law.

    Without attention recall falls with the distance; with it, recall at the longest distance is above that of the same
    network without (of the Transformer: of the best network of fixed state).
    """
    fixed = {name: farthest(rows) for name, rows in recall.items() if not attends(name)}
    holds = {}
    for name, rows in recall.items():
        if attends(name):
            other = fixed.get(name.removesuffix("_attention"), max(fixed.values(), default=0.0))
            holds[name] = farthest(rows) > other
        else:
            holds[name] = slope(rows) < 0
    return holds


class _Results:
    """Trainings by model, budget and seed."""

    def __init__(self, config: ClaimsConfig, language: Sequence[Run], recall: Sequence[Run]) -> None:
        self.config = config
        self.language = {(run["architecture"], run["matching"], run["budget"], run["seed"]): run for run in language}
        self.recall = {(run["architecture"], run["seed"]): run["recall"] for run in recall}
        self.seeds = range(1, config.seeds + 1)
        self.own = ("transformer", config.matching[0])
        self.last = config.budgets[-1]

    def runs(self, model: tuple[str, str], seed: int) -> list[Run]:
        return [self.language[(*model, budget, seed)] for budget in self.config.budgets]

    def over_seeds(self, of: Callable[[int], float | None], level: float = 0.95) -> dict[str, Any] | None:
        return interval([of(seed) for seed in self.seeds], level)

    def final(self, model: tuple[str, str], seed: int, budget: int | None = None) -> Run:
        return self.language[(*model, budget or self.last, seed)]


def findings(config: ClaimsConfig, models: Rows, language: Sequence[Run], recall: Sequence[Run]) -> dict[str, Any]:
    """Everything that the report shows.

    Args:
        config: the experiment.
        models: sizes, rates and names.
        language: trainings on the run's tokens, with seconds and joules at each point.
        recall: trainings on planted facts.
    """
    results = _Results(config, language, recall)
    keys = [(row["architecture"], row["matching"]) for row in models]
    meters = sorted({str(run["method"]) for run in [*language, *recall]})
    return {
        "claims": _claims(results, keys),
        "models": list(models),
        "figures": [_figures(results, key, budget) for budget in config.budgets for key in keys],
        "curves": [_curve(results, key) for key in keys],
        "positions": [_positions(results, key) for key in keys],
        "recall": _recall(results),
        "seeds": [_seed_row(run) for run in language],
        "recall_seeds": [
            {"architecture": run["architecture"], "seed": run["seed"], "recall": run["recall"]} for run in recall
        ],
        "method": {"config": config.model_dump(mode="json"), "meters": meters, "interval": "Student, 95 %, paired"},
    }


_CLAIMS = (
    ("speed", "It trains faster: more tokens a second.", "times as many tokens a second", 1.0),
    ("tokens", "It learns more from the same tokens.", "nats per token lower loss", 0.0),
    ("time", "It has a lower loss after the same time.", "nats per token lower loss", 0.0),
    ("energy", "It has a lower loss for the same energy.", "nats per token lower loss", 0.0),
    ("context", "It gains more from a longer context.", "nats per token more gained", 0.0),
    ("recall", "It recalls facts from farther back.", "points more of the facts recalled", 0.0),
    ("attention", "Attention lowers a recurrent network's loss.", "nats per token lower loss", 0.0),
    ("attention_recall", "Attention makes a recurrent network recall.", "points more of the facts recalled", 0.0),
)
"""Name, sentence (about the Transformer where it says "it"), unit of its figure, and the figure of no difference."""


def _claims(results: _Results, keys: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    others = [key for key in keys if key != results.own]
    with_attention = [key for key in keys if key[0].endswith("_attention")]
    without = [(name.removesuffix("_attention"), matching) for name, matching in with_attention]
    pairs = {
        **{name: [(results.own, key) for key in others] for name in ("speed", "tokens", "time", "energy", "context")},
        "attention": [pair for pair in zip(with_attention, without, strict=True) if pair[1] in keys],
    }
    matching = results.own[1] if results.recall else None  # facts are planted for the first matching only
    pairs["recall"] = [pair for pair in pairs["tokens"] if pair[1][1] == matching]
    pairs["attention_recall"] = [pair for pair in pairs["attention"] if pair[1][1] == matching]
    claims = []
    for name, sentence, unit, neutral in _CLAIMS:
        level = 1 - 0.05 / max(1, len(pairs[name]))
        against = [_against(results, name, pair, neutral, level) for pair in pairs[name]]
        if not against:
            continue
        every = all(row["verdict"] == HELD for row in against)
        whole = HELD if every else NOT_HELD if any(row["reverses"] for row in against) else UNDECIDED
        claims.append({"id": name, "claim": sentence, "unit": unit, "neutral": neutral, "verdict": whole,
                      "against": against})  # fmt: skip
    return claims


def _against(
    results: _Results, name: str, pair: tuple[tuple[str, str], tuple[str, str]], neutral: float, level: float
) -> dict[str, Any]:
    """One claim about one pair of models.

    A reversal is decided at `level`.
    """
    ours, theirs = pair

    def advantage(seed: int) -> float | None:
        mine, other = results.final(ours, seed), results.final(theirs, seed)
        if name == "speed":
            return math.log((_tokens(mine) / mine["seconds"]) / (_tokens(other) / other["seconds"]))
        if name in ("tokens", "attention"):
            return _loss(other) - _loss(mine)
        if name in ("time", "energy"):
            axis = "seconds" if name == "time" else "joules"
            both = results.runs(ours, seed), results.runs(theirs, seed)
            if any(run[axis] is None for runs in both for run in runs):
                return None
            amount = min(mine[axis], other[axis])
            return loss_by(both[1], axis, amount) - loss_by(both[0], axis, amount)
        if name == "context":
            return _gain(mine) - _gain(other)
        return farthest(results.recall[ours[0], seed]) - farthest(results.recall[theirs[0], seed])

    narrow, wider = (results.over_seeds(advantage, at) for at in (0.95, level))
    for bounds in (narrow, wider):
        if bounds is not None and name == "speed":  # the mean of logarithms, as a ratio
            bounds |= {part: math.exp(bounds[part]) for part in ("mean", "low", "high")}
    return {"ours": ours[0], "architecture": theirs[0], "matching": theirs[1], "difference": narrow,
            "verdict": verdict_of(narrow, neutral), "reverses": verdict_of(wider, neutral) == NOT_HELD}  # fmt: skip


def _tokens(run: Run) -> int:
    return int(run["curve"][-1]["tokens"])


def _loss(run: Run) -> float:
    return float(run["curve"][-1]["loss"])


def _gain(run: Run) -> float:
    """Gain from context along a row.

    The loss of the row's first sixteenth minus the loss of its second half.
    """
    places = run["positions"]
    length = places[-1]["to"]

    def mean(rows: Rows) -> float:
        return sum(row["loss"] * row["targets"] for row in rows) / sum(row["targets"] for row in rows)

    early = [row for row in places if row["to"] <= max(1, length // 16)] or [places[0]]
    return mean(early) - mean([row for row in places if row["from"] >= length // 2] or [places[-1]])


def _figures(results: _Results, key: tuple[str, str], budget: int) -> dict[str, Any]:
    """Loss, speed, time and energy of a model at one budget."""

    def of(value: Callable[[Run], float | None]) -> dict[str, Any] | None:
        return results.over_seeds(lambda seed: value(results.final(key, seed, budget)))

    return {
        "architecture": key[0], "matching": key[1], "budget": budget, "loss": of(_loss),
        "tokens_per_second": of(lambda run: _tokens(run) / run["seconds"]),
        "seconds": of(lambda run: run["seconds"]), "joules": of(lambda run: run["joules"]),
    }  # fmt: skip


def _curve(results: _Results, key: tuple[str, str]) -> dict[str, Any]:
    """Learning curve of the largest budget."""
    runs = [results.final(key, seed) for seed in results.seeds]
    points = []
    for at in zip(*(run["curve"] for run in runs), strict=True):
        joules = [point["joules"] for point in at]
        points.append({
            "tokens": at[0]["tokens"], "loss": interval([point["loss"] for point in at]),
            "seconds": statistics.fmean(point["seconds"] for point in at),
            "joules": None if None in joules else statistics.fmean(joules),
        })  # fmt: skip
    return {"architecture": key[0], "matching": key[1], "points": points}


def _positions(results: _Results, key: tuple[str, str]) -> dict[str, Any]:
    runs = [results.final(key, seed) for seed in results.seeds]
    rows = [
        {"from": at[0]["from"], "to": at[0]["to"], "loss": interval([place["loss"] for place in at])}
        for at in zip(*(run["positions"] for run in runs), strict=True)
    ]
    return {"architecture": key[0], "matching": key[1], "rows": rows, "gain": interval([_gain(run) for run in runs])}


def _recall(results: _Results) -> list[dict[str, Any]]:
    """Recall by distance, and its slope, of each architecture."""
    laws = {
        seed: law_holds({name: rows for (name, of), rows in results.recall.items() if of == seed})
        for seed in results.seeds
        if results.recall
    }
    found = []
    for name in dict.fromkeys(name for name, _ in results.recall):
        runs = [results.recall[name, seed] for seed in results.seeds]
        rows = [
            {"distance": at[0]["distance"], "asked": sum(row["asked"] for row in at),
             "recall": interval([row["right"] / row["asked"] for row in at])}
            for at in zip(*runs, strict=True)
        ]  # fmt: skip
        follows = sum(law[name] for law in laws.values())
        found.append({"architecture": name, "rows": rows, "slope": interval([slope(run) for run in runs]),
                      "follows_law": follows, "seeds": len(runs)})  # fmt: skip
    return found


def _seed_row(run: Run) -> dict[str, Any]:
    kept = ("architecture", "matching", "budget", "seed", "seconds", "joules", "curve", "positions")
    return {
        **{name: run[name] for name in kept},
        "loss": _loss(run),
        "tokens_per_second": _tokens(run) / run["seconds"],
    }
