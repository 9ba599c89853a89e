"""Trainings of the mixture experiment: weights and shares of the sources.

A training is the run with other weights and fewer steps. It reads each source's rows in the share that its
steps are of the run's (`train.source_share`), so with the same weights each source is repeated as often as in the whole
run. Without that a scarce source looks better in small trainings than it is: they hardly repeat it (arXiv:2606.07597).

The first mixture is the run's own. Each further one is the candidate that is farthest from those chosen (in
shares of the caps), so the corners come first and then the points between them. A cap is the share of the run's rows
that `max_epochs` readings of a source are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from governance.config import Section
from governance.errors import ConfigError
from pretrain.config.training import TrainRecipe
from pretrain.experiments.scaling.ladder import (
    MIN_STEPS,
    Rung,
    multiplied,
    narrowed,
    refuse_other_runs,
    schedule_of,
    settings_of,
    two_digits_up,
)
from pretrain.experiments.scaling.scaling_law import Floats

MIN_ROWS = 8
"""Fewer rows of a source are not repeated as in the run: rounding changes their number by more than a sixteenth."""
_CANDIDATES = 4096


class MixtureExperimentConfig(Section):
    """`[mixture]`: the trainings of `assay experiment mixture`."""

    budget: float = Field(default=1 / 16, gt=0, le=1)
    """Tokens of all trainings together, as a share of the run's."""
    trainings: int = Field(default=0, ge=0)
    """Number of mixtures; 0: three for each source, and three more."""
    hidden_size: int = Field(default=0, ge=0)
    """Width of the models; 0: the run's."""
    max_epochs: float = Field(default=16.0, gt=0)
    """The most readings of a source in the run; 15 to 20 of a scarce one can be best (arXiv:2605.12715)."""
    max_epochs_of: dict[str, float] = Field(default_factory=dict)
    """The same for single sources; 0 leaves one out."""
    resamples: int = Field(default=400, ge=100)
    """Resamples of the bootstrap."""


@dataclass(frozen=True)
class MixturePlan:
    """Sources and trainings of an experiment."""

    rows: dict[str, int]
    """Training rows of each source that may be read."""
    run_rows: int
    """Rows that the whole run reads."""
    caps: tuple[float, ...]
    """The most of each source, as a share of the run's rows."""
    rungs: tuple[Rung, ...]

    @property
    def own(self) -> tuple[float, ...]:
        """Weights of the run itself."""
        return self.rungs[0].weights

    def epochs(self, weights: Sequence[float]) -> tuple[float, ...]:
        """Readings of each source in the run."""
        return tuple(weight * self.run_rows / rows for weight, rows in zip(weights, self.rows.values(), strict=True))


def mixture_plan(
    config: MixtureExperimentConfig, recipe: TrainRecipe, vocabulary_size: int, rows: Mapping[str, int]
) -> MixturePlan:
    """The trainings, the run's own mixture first.

    Args:
        config: the section.
        recipe: the run.
        vocabulary_size: its number of tokens.
        rows: training rows of each source.

    Raises:
        ConfigError: the run is of another kind, a source is unknown or there is only one, the sources cannot fill the
            run, or the budget is too small.
    """
    refuse_other_runs(recipe, "mixture")
    if recipe.train.mixture and recipe.train.mixture[0].from_step > 1:
        raise ConfigError(
            "mixture: train.mixture begins after the first step; set its from_step = 1 for the experiment"
        )
    if unknown := sorted({*config.max_epochs_of} - {*rows}):
        raise ConfigError(
            f"mixture.max_epochs_of names {', '.join(map(repr, unknown))}; the sources with training rows are "
            f"{', '.join(sorted(rows))}"
        )
    read = {name: round(recipe.train.source_share * count) for name, count in rows.items()}
    kept = {name: count for name, count in read.items() if config.max_epochs_of.get(name, config.max_epochs) and count}
    if len(kept) < 2:
        raise ConfigError(
            f"mixture: the rows are of {', '.join(kept) or 'no source'} alone, and one source has no weights to "
            f"choose. Give [[data.sources]] a second one and prepare again, or raise mixture.max_epochs_of"
        )
    steps, count = recipe.train.steps, config.trainings or 3 * len(kept) + 3
    if count <= 2 * len(kept):
        raise ConfigError(
            f"mixture.trainings = {count}: {len(kept)} sources have {2 * len(kept)} coefficients; name at least "
            f"{2 * len(kept) + 1}, or leave it out for {3 * len(kept) + 3}"
        )
    each = round(config.budget * steps / count)
    run_rows = steps * recipe.train.global_batch_size
    scarce = min(kept, key=lambda name: kept[name])
    if each < MIN_STEPS or kept[scarce] * each / steps < MIN_ROWS:
        least = max(MIN_STEPS, math.ceil(MIN_ROWS * steps / kept[scarce]))
        fix = _enough(steps, least, count, kept, scarce)
        if least > MIN_STEPS and len(kept) > 2:
            fix += f", or leave {scarce!r} out: mixture.max_epochs_of = {{ {scarce} = 0 }}"
        raise ConfigError(
            f"mixture.budget: {config.budget:g} of this run's tokens are {each} steps for each of {count} trainings, "
            f"with {kept[scarce] * each / steps:.1f} rows of {scarce!r}; a training needs {MIN_STEPS} steps and "
            f"{MIN_ROWS} rows of each source. {fix}"
        )
    caps = [min(1.0, config.max_epochs_of.get(name, config.max_epochs) * had / run_rows) for name, had in kept.items()]
    if sum(caps) < 1:
        raise ConfigError(
            f"mixture.max_epochs: {config.max_epochs:g} readings of every source are {sum(caps):.2g} of the run's "
            f"rows. Raise it to {two_digits_up(config.max_epochs / sum(caps)):g}, or shorten the run"
        )
    stated = recipe.train.mixture[0].weights if recipe.train.mixture else {}
    own = [float(stated.get(name, 0)) for name in kept]
    mixtures = spread_mixtures(own if any(own) else [float(had) for had in kept.values()], caps, count)
    return MixturePlan(
        kept, run_rows, tuple(caps), tuple(_rungs(config, recipe, vocabulary_size, kept, mixtures, each))
    )


def _enough(steps: int, least: int, count: int, kept: Mapping[str, int], scarce: str) -> str:
    """Settings with which trainings of `least` steps fit into the run's steps."""
    fewest, possible = 2 * len(kept) + 1, steps // least
    if possible < fewest and least > MIN_STEPS:
        return (
            f"No budget suffices: {fewest} trainings, the fewest for {len(kept)} sources, need "
            f"{fewest * MIN_ROWS} rows of {scarce!r}, and it has {kept[scarce]}"
        )
    if possible < fewest:
        return (
            f"No budget suffices: {fewest} trainings, the fewest for {len(kept)} sources, need a run of "
            f"{fewest * least:,} steps"
        )
    trainings = min(count, possible)
    budget = f"mixture.budget = {min(1.0, two_digits_up(trainings * least / steps)):g}"
    return f"Set {budget}" if trainings == count else f"Set mixture.trainings = {trainings} and {budget}"


def _rungs(
    config: MixtureExperimentConfig,
    recipe: TrainRecipe,
    vocabulary_size: int,
    rows: Mapping[str, int],
    mixtures: Sequence[tuple[float, ...]],
    steps: int,
) -> list[Rung]:
    model, share = recipe.model, steps / recipe.train.steps
    settings = [*schedule_of(recipe, steps), f"train.source_share={share * recipe.train.source_share:.6g}"]
    if config.hidden_size:
        model = narrowed(model, config.hidden_size, "mixture.hidden_size")
        settings += settings_of(model)
    parameters = multiplied(model, vocabulary_size)
    tokens = steps * recipe.train.global_batch_size * recipe.train.sequence_length
    return [
        Rung(model, parameters, steps, tokens, share, recipe.train.seed, (*settings, mixture_word(rows, one)), one)
        for one in mixtures
    ]


def mixture_word(names: Mapping[str, int] | Sequence[str], weights: Sequence[float]) -> str:
    """The mixture as a word of `--set`."""
    parts = ", ".join(f'"{name}"={weight:g}' for name, weight in zip(names, weights, strict=True))
    return f"train.mixture=[{{from_step=1, weights={{{parts}}}}}]"


def within(weights: Floats, caps: Floats) -> Floats:
    """Weights [..., sources] of sum 1 below the caps.

    What a cap refuses goes to the others, by their room.
    """
    held = np.minimum(weights, caps)
    room = caps - held
    whole = room.sum(-1, keepdims=True)
    return held + (1 - held.sum(-1, keepdims=True)) * room / np.where(whole > 0, whole, 1)


def spread_mixtures(own: Sequence[float], caps: Sequence[float], count: int) -> list[tuple[float, ...]]:
    """Mixtures far from each other, the run's own first, to four decimals."""
    most, first = np.array(caps), np.array(own) / sum(own)
    drawn = np.random.default_rng(0).dirichlet(np.ones(len(caps)), _CANDIDATES)
    candidates = np.vstack([first, within(np.eye(len(caps)), most), within(drawn, most)])
    chosen, distance = [0], np.full(len(candidates), np.inf)
    while len(chosen) < count:
        last = candidates[chosen[-1]]
        distance = np.minimum(distance, (((candidates - last) / most) ** 2).sum(1))
        chosen.append(int(distance.argmax()))
    return [rounded(candidates[at].tolist()) for at in chosen]


def rounded(weights: Sequence[float]) -> tuple[float, ...]:
    """Four decimals with a sum of 1, as the loader divides rows."""
    found = [round(weight, 4) for weight in weights]
    largest = found.index(max(found))
    found[largest] = round(1 - sum(found[:largest] + found[largest + 1 :]), 4)
    return tuple(found)
