"""Ladder of small trainings: sizes and tokens of each rung.

A rung is the run with fewer and narrower layers and fewer steps, so anybody can train one with `--set`. Each budget of
FLOPs is spent on each width: D = C / 6N tokens (curves of equal FLOPs, arXiv:2203.15556). Heads keep their width; the
feed-forward width and the number of layers keep their ratio to the width. Warm-up and decay keep their share of the
steps, because a schedule that is cut off has not reached its loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from governance.config import Section
from governance.errors import ConfigError
from pretrain.config.model import ModelConfig
from pretrain.config.training import TrainRecipe
from pretrain.experiments.scaling.scaling_law import MIN_TRAININGS, MIN_VALUES, PARAMETERS
from pretrain.model.flops import flops_per_token

MIN_STEPS = 30
"""A training of fewer steps measures its warm-up."""
_SHARES = (1 / 8, 3 / 16, 1 / 4, 3 / 8)


class ScalingConfig(Section):
    """`[scaling]`: the ladder of `assay experiment scaling`."""

    hidden_sizes: tuple[int, ...] = ()
    """Widths of the models; none: 1/8, 3/16, 1/4 and 3/8 of the run's, in whole heads, or one to three heads."""
    budgets: tuple[float, ...] = (0.001, 0.003, 0.01)
    """FLOPs of a rung, as shares of the run's."""
    seeds: int = Field(default=1, gt=0)
    """Trainings of each rung; the first has the run's seed."""
    resamples: int = Field(default=400, ge=100)
    """Resamples of the bootstrap."""

    @model_validator(mode="after")
    def _check(self) -> ScalingConfig:
        for name, values in (("hidden_sizes", self.hidden_sizes), ("budgets", self.budgets)):
            if any(value <= 0 for value in values) or len({*values}) < len(values):
                raise ValueError(f"{name} = {list(values)}: each must be above 0 and named once")
        if self.hidden_sizes and len(self.hidden_sizes) < MIN_VALUES:
            raise ValueError(f"hidden_sizes = {list(self.hidden_sizes)}: two sizes show no curve; name three or more")
        if len(self.budgets) < 2:
            raise ValueError(f"budgets = {list(self.budgets)}: one budget shows no growth; name two or more")
        return self


@dataclass(frozen=True)
class Rung:
    """One training of the ladder."""

    model: ModelConfig
    parameters: int
    """Weights that a token multiplies (`multiplied`)."""
    steps: int
    tokens: int
    budget: float
    """Share of the run's FLOPs that it was made for."""
    seed: int
    settings: tuple[str, ...]
    """Differences from the run, as words of `--set`."""
    weights: tuple[float, ...] = ()
    """Share of each source, where the mixture is what differs."""


def multiplied(model: ModelConfig, vocabulary_size: int) -> int:
    """Weights that a token multiplies, the output projection included, look-ups not."""
    return flops_per_token(model, vocabulary_size, 0) // 6


def tokens_of(recipe: TrainRecipe) -> int:
    """Tokens of the whole run."""
    return recipe.train.steps * recipe.train.global_batch_size * recipe.train.sequence_length


def ladder(config: ScalingConfig, recipe: TrainRecipe, vocabulary_size: int) -> list[Rung]:
    """Every rung, cheapest first.

    Raises:
        ConfigError: the run does not train from scratch in one stretch, a width does not consist of whole heads, or a
            budget is too small for a rung.
    """
    refuse_other_runs(recipe, "scaling")
    widths = config.hidden_sizes or _default_widths(recipe.model)
    models = [narrowed(recipe.model, width) for width in sorted(widths)]
    whole = multiplied(recipe.model, vocabulary_size) * tokens_of(recipe)
    a_step = recipe.train.global_batch_size * recipe.train.sequence_length
    if (count := len(models) * len(config.budgets) * config.seeds) < MIN_TRAININGS:
        raise ConfigError(
            f"scaling: {len(models)} widths, {len(config.budgets)} budgets and {config.seeds} seed(s) are {count} "
            f"trainings, and the law has {PARAMETERS} parameters and needs {MIN_TRAININGS}. Add to "
            f"scaling.hidden_sizes or scaling.budgets, or set scaling.seeds = 2"
        )
    least, most = min(config.budgets), multiplied(models[-1], vocabulary_size)
    if (steps := round(least * whole / most / a_step)) < MIN_STEPS:
        enough = two_digits_up(MIN_STEPS * most * a_step / whole)
        named = [enough, *(budget for budget in sorted(config.budgets) if budget > enough)]
        while len(named) < len(config.budgets):
            named.append(two_digits_up(2 * named[-1]))
        fewer = len(models) - 1
        enough_without = fewer >= MIN_VALUES and fewer * len(config.budgets) * config.seeds >= MIN_TRAININGS
        raise ConfigError(
            f"scaling.budgets: {least:g} of this run's FLOPs are {steps} steps at width {models[-1].hidden_size}, and "
            f"a schedule needs {MIN_STEPS}. Set scaling.budgets = {[float(f'{budget:g}') for budget in named]}"
            + (", or leave out this width" if enough_without else "")
            + (
                "; the last of them costs more than this short run, so rather raise train.steps"
                if named[-1] > 1
                else ""
            )
        )
    found = []
    for budget in sorted(config.budgets):
        for model in models:
            parameters = multiplied(model, vocabulary_size)
            steps = round(budget * whole / parameters / a_step)
            for seed in range(recipe.train.seed, recipe.train.seed + config.seeds):
                settings = (*settings_of(model), *schedule_of(recipe, steps), f"train.seed={seed}")
                found.append(Rung(model, parameters, steps, steps * a_step, budget, seed, settings))
    return found


def other_start(recipe: TrainRecipe) -> str:
    """The setting that rules out a decoder from random weights.

    "" if there is none.
    """
    train, model = recipe.train, recipe.model
    other = {
        "train.initial_weights": train.initial_weights, "train.continue_from": train.continue_from,
        "train.adapter": train.adapter, "train.trained": train.trained, "train.distillation": train.distillation,
        "model.num_labels": model.num_labels, "model.encoder_layers": model.encoder_layers,
    }  # fmt: skip
    return next((name for name, value in other.items() if value), "")


def refuse_other_runs(recipe: TrainRecipe, experiment: str) -> None:
    """Refuse runs that small trainings do not represent."""
    if name := other_start(recipe):
        raise ConfigError(
            f"{experiment}: {name} is set, and its trainings are of decoders from random weights. Leave it out for the "
            f"experiment"
        )
    if recipe.train.batch_size_ramp or len(recipe.train.mixture) > 1:
        raise ConfigError(
            f"{experiment}: the batch or the mixture changes during the run (train.batch_size_ramp, train.mixture), "
            f"and each training would see another share of that. Leave one batch size and one mixture for the "
            f"experiment"
        )


def _default_widths(model: ModelConfig) -> tuple[int, ...]:
    heads, head = model.num_attention_heads, model.hidden_size // model.num_attention_heads
    counts = {max(1, round(share * heads)) for share in _SHARES}
    if len(counts) < MIN_VALUES:
        counts = {1, 2, 3}
    if heads <= max(counts):
        raise ConfigError(
            f"scaling.hidden_sizes: a model of {heads} heads has no three smaller sizes in whole heads. Name three or "
            f"more widths, each a multiple of {head}"
        )
    return tuple(count * head for count in counts)


def narrowed(model: ModelConfig, width: int, setting: str = "scaling.hidden_sizes") -> ModelConfig:
    """The model at another width, with its proportions."""
    heads, rest = divmod(width * model.num_attention_heads, model.hidden_size)
    if rest or not heads:
        head = model.hidden_size / model.num_attention_heads
        raise ConfigError(f"{setting}: {width} is not a multiple of the run's width per head, {head:g}")
    share = width / model.hidden_size
    shared = model.num_attention_heads // model.num_key_value_heads
    keys = next(count for count in range(max(1, heads // shared), 0, -1) if heads % count == 0)
    values = {
        "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": model.head_dim,
        "num_hidden_layers": max(1, round(share * model.num_hidden_layers)),
        "intermediate_size": max(8, 8 * round(share * model.intermediate_size / 8)),
    }  # fmt: skip
    return ModelConfig.model_validate({**model.model_dump(), **values})


def settings_of(model: ModelConfig) -> list[str]:
    """Sizes of a narrowed model, as words of `--set`."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim",
    )  # fmt: skip
    return [f"model.{name}={getattr(model, name)}" for name in names]


def schedule_of(recipe: TrainRecipe, steps: int) -> list[str]:
    """Steps, warm-up and decay in proportion, and one checkpoint."""
    share, optim = steps / recipe.train.steps, recipe.optim
    parts: dict[str, Any] = {"train.steps": steps, "train.validate_every_steps": 0, "train.patience": 0}
    for name in ("warmup_steps", "decay_steps"):
        if before := getattr(optim, name):
            parts[f"optim.{name}"] = max(1, round(share * before))
    parts |= {"checkpoint.every_steps": steps, "checkpoint.keep_last": 1, "checkpoint.keep_best": 0}
    return [f"{name}={json.dumps(value)}" for name, value in parts.items()]


def curves_of(rungs: Sequence[Rung]) -> list[list[int]]:
    """Indices of the rungs of each budget."""
    return [[at for at, rung in enumerate(rungs) if rung.budget == budget]
            for budget in sorted({rung.budget for rung in rungs})]  # fmt: skip


def two_digits_up(value: float) -> float:
    """The least number of two significant digits above a value."""
    unit = 10 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit
