"""Experiment on the Transformer's claims: trainings, and the report on them.

    <root>/claim_language/<key>/losses.json, times.json   a training on the run's tokens: curve, loss by position
    <root>/claim_recall/<key>/losses.json, times.json     a training on planted facts: recall by distance
    <root>/claims/<key>/report.html, claims.json

Each (model, budget, seed) is an artifact of its own, so that a kill costs at most one training, and the same command
goes on. Losses enter digests, times and energy do not: `times.json` and the `run` block hold them, and the report's key
has their digests. All models of a seed and a budget are trained one after the other, so that a slow hour of the machine
falls on all of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.config import Section
from governance.errors import ManifestError, PipelineError
from governance.files import sha256_file, write_json
from governance.log import progress
from governance.manifest import FILE_NAME, KEY_LENGTH, Manifest, describe, output_fault
from governance.stage import Made, Recipe, Runtime, find, run_stage
from governance.workers import turn_alone
from pretrain.data.dataset import Rows, holds_validation, open_rows, refuse_small
from pretrain.experiments.claim_findings import findings
from pretrain.experiments.claims_config import (
    NAMES,
    Architecture,
    ClaimsConfig,
    LanguageTraining,
    Matching,
    RecallTraining,
    Shape,
)
from pretrain.experiments.claims_page import claims_page
from pretrain.experiments.experiment_report import write_report

LANGUAGE_VERSION, RECALL_VERSION, REPORT_VERSION = 1, 1, 8
"""One for each artifact: a change of the report's words remakes no training."""
_LOSSES, _TIMES = "losses.json", "times.json"
_TIMED_STEPS = 2
Advance = Callable[..., None]
Check = Callable[[Sequence[Manifest]], None]
Model = tuple[Architecture, Matching]


class ClaimsReport(Section):
    """Recipe of the report."""

    claims: ClaimsConfig
    times: tuple[str, ...]
    """SHA-256 of each training's times, energy included, in the order of the inputs."""


@dataclass(frozen=True)
class Sized:
    """A model at its width."""

    architecture: Architecture
    matching: Matching
    shape: Shape
    parameters: int
    flops: int
    """Forward and backward, per token."""


def sized_models(config: ClaimsConfig, vocabulary_size: int) -> list[Sized]:
    """Every model at the width that matches the Transformer best.

    Raises:
        ConfigError: the package of xlstm is missing.
    """
    own = Shape(width=config.width, layers=config.layers, heads=config.heads)
    length = config.sequence_length
    target = _sized("transformer", config.matching[0], own, vocabulary_size, length)
    return [
        target if architecture == "transformer" else _matched(architecture, matching, target, vocabulary_size, length)
        for architecture, matching in config.models()
    ]


def _sized(architecture: Architecture, matching: Matching, shape: Shape, vocabulary_size: int, length: int) -> Sized:
    from pretrain.experiments.recurrent import build, flops_of, parameters_of

    model = build(architecture, shape, vocabulary_size)
    return Sized(architecture, matching, shape, parameters_of(model), flops_of(model, length))


def _matched(architecture: Architecture, matching: Matching, target: Sized, vocabulary_size: int, length: int) -> Sized:
    """Width by bisection, in steps that its heads divide."""
    step = target.shape.heads

    def at(steps: int) -> Sized:
        shape = target.shape.model_copy(update={"width": steps * step})
        return _sized(architecture, matching, shape, vocabulary_size, length)

    def size(one: Sized) -> int:
        return one.parameters if matching == "parameters" else one.flops

    low, high = 1, 2
    while size(at(high)) < size(target):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(at(middle)) < size(target) else (low, middle)
    return min(at(low), at(high), key=lambda one: abs(size(one) - size(target)))


def claims(
    tokens: Manifest, config: ClaimsConfig, threads: int, runtime: Runtime, check: Check = lambda manifests: None
) -> Manifest:
    """Train every model, and report what held; finished trainings are found.

    Args:
        tokens: token shards.
        config: the models, budgets and seeds.
        threads: of the CPU.
        runtime: root, meter, energy budget, journal.
        check: called with all trainings before their losses are read.

    Raises:
        ConfigError: the package of xlstm is missing.
        PipelineError: too few rows, no validation documents, or a training diverged (of those that choose a rate, all).
        ManifestError: a training's file was altered.
    """
    from pretrain.experiments.claim_training import arithmetic, train_language, train_recall

    rows, validation = _open(tokens, config, runtime.root)
    models = sized_models(config, rows.vocabulary_size)
    work = _tokens_of(config, models)
    with arithmetic(threads), progress("claims", work, "tokens") as advance:

        def language(recipe: LanguageTraining) -> Manifest:
            return _made(Recipe("claim_language", LANGUAGE_VERSION, recipe), tokens, runtime, advance, (
                lambda tell: train_language(recipe, rows, validation, tell)
            ), recipe.steps * recipe.batch_rows * recipe.sequence_length)  # fmt: skip

        def recall(recipe: RecallTraining) -> Manifest:
            return _made(Recipe("claim_recall", RECALL_VERSION, recipe), tokens, runtime, advance, (
                lambda tell: train_recall(recipe, rows.shards, tell)
            ), _recall_tokens(config))  # fmt: skip

        tried = {
            (model.architecture, model.matching, rate): language(_language(config, model, config.budgets[0], rate, 0))
            for model in models
            for rate in config.tried_rates
        }
        check(list(tried.values()))
        rates = {
            (model.architecture, model.matching): _best_rate(model, config, tried, runtime.root) for model in models
        }
        trained: list[tuple[dict[str, Any], Manifest]] = []
        for seed in range(1, config.seeds + 1):
            for budget in config.budgets:
                for model in models:
                    rate = rates[model.architecture, model.matching]
                    facts = {
                        "architecture": model.architecture,
                        "matching": model.matching,
                        "budget": budget,
                        "seed": seed,
                    }
                    trained.append((facts, language(_language(config, model, budget, rate, seed))))
                    _refuse_diverged(*trained[-1])
        for seed in range(1, config.seeds + 1):
            for model in (model for model in models if _learns_recall(config, model)):
                recipe = RecallTraining(
                    architecture=model.architecture, shape=model.shape, recall=config.recall,
                    optimizer=config.optimizer, learning_rate=rates[model.architecture, model.matching], seed=seed,
                )  # fmt: skip
                trained.append(({"architecture": model.architecture, "seed": seed}, recall(recipe)))
                _refuse_diverged(*trained[-1])
    made = [*tried.values(), *(manifest for _, manifest in trained)]
    check(made)
    return _report(config, models, rates, trained, made, runtime)


def _open(tokens: Manifest, config: ClaimsConfig, root: Path) -> tuple[Rows, Rows]:
    rows = open_rows(tokens, "train", root, config.sequence_length)
    refuse_small(rows.count, rows.sequence_length, config.batch_rows)
    if not holds_validation(tokens, root):
        raise PipelineError(
            f"{tokens.folder} has no validation documents, so no loss could be compared. Raise "
            f"data.encode.validation_share and prepare again."
        )
    return rows, open_rows(tokens, "validation", root, config.sequence_length)


def _language(config: ClaimsConfig, one: Sized, budget: int, rate: float, seed: int) -> LanguageTraining:
    return LanguageTraining(
        architecture=one.architecture, shape=one.shape, sequence_length=config.sequence_length,
        batch_rows=config.batch_rows, steps=config.steps(budget), evaluations=config.evaluations,
        validation_rows=config.validation_rows, optimizer=config.optimizer, learning_rate=rate, seed=seed,
    )  # fmt: skip


def _made(
    recipe: Recipe,
    tokens: Manifest,
    runtime: Runtime,
    advance: Advance,
    train: Callable[[Advance], tuple[dict[str, Any], list[float]]],
    amount: int,
) -> Manifest:
    """Find or make the artifact of one training.

    One process makes it: its times differ each time, and another one's would not be those that its manifest lists.
    """
    shown, found = 0, True

    def tell(count: int) -> None:
        nonlocal shown
        shown += count
        advance(count, f"{NAMES[recipe.section.architecture]}, seed {recipe.section.seed}")  # type: ignore[attr-defined]

    def make(target: Path) -> Made:
        nonlocal found
        found = False
        losses, seconds = train(tell)
        write_json(target / _LOSSES, losses)
        write_json(target / _TIMES, {"seconds": seconds})
        noted = describe(target / _TIMES, runtime.root)
        runtime.notes.beside.setdefault(recipe.stage, {})[noted.path] = noted
        result = losses["recall"] if "recall" in losses else losses["curve"][-1]["loss"]
        return Made([describe(target / _LOSSES, runtime.root)], {"diverged": result is None})

    key = recipe.key([tokens.digest])
    lock = runtime.root / f"{recipe.stage}-{key[:KEY_LENGTH]}.lock"
    with contextlib.nullcontext() if find(recipe.stage, key, runtime.root) else turn_alone(lock):
        manifest = run_stage(recipe, [tokens.as_input()], runtime, make)
    advance(max(0, amount - shown), found=found)
    return manifest


def _best_rate(one: Sized, config: ClaimsConfig, tried: Mapping[tuple[str, str, float], Manifest], root: Path) -> float:
    """Rate of the lowest loss on the tuning seed.

    Raises:
        PipelineError: the model diverged at every rate.
    """
    if not tried:
        return config.learning_rates[0]
    losses = {}
    for rate in config.learning_rates:
        loss = _read(tried[one.architecture, one.matching, rate], root)["curve"][-1]["loss"]
        losses[rate] = math.inf if loss is None else loss
    best = min(losses, key=lambda rate: losses[rate])
    if math.isinf(losses[best]):
        raise PipelineError(
            f"claims: {NAMES[one.architecture]} diverged at every rate of claims.learning_rates = "
            f"{list(config.learning_rates)}; add a lower one"
        )
    return best


def _read(manifest: Manifest, root: Path) -> dict[str, Any]:
    """Losses of a training, with the seconds and joules of each.

    Raises:
        ManifestError: a file of it is missing or was altered.
    """
    for listed in (*manifest.outputs, *(manifest.beside or ())):
        if fault := output_fault(listed, root):
            raise ManifestError(f"{root / listed.path}: {fault}. Remove {manifest.folder}, then run the command again.")
    folder = root / manifest.folder
    found: dict[str, Any] = json.loads((folder / _LOSSES).read_bytes())
    seconds = json.loads((folder / _TIMES).read_bytes())["seconds"]
    energy = manifest.run["energy"]
    joules, whole = energy["joules"], energy.get("seconds")
    watts = joules / whole if joules and whole else None
    found["seconds"], found["method"] = seconds[-1], energy["method"]
    found["joules"] = None if watts is None else watts * seconds[-1]
    for point, at in zip(found.get("curve", ()), seconds, strict=False):
        point |= {"seconds": at, "joules": None if watts is None else watts * at}
    return found


def _refuse_diverged(facts: Mapping[str, Any], made: Manifest) -> None:
    """Raise where a training diverged; the report needs all.

    Raises:
        PipelineError: names the model, its seed and its budget.
    """
    if made.stats["diverged"]:
        what = f"{facts['budget']:,} tokens" if "budget" in facts else "planted facts"
        raise PipelineError(
            f"claims: {NAMES[facts['architecture']]} diverged on {what} with seed {facts['seed']} ({made.folder}); "
            f"lower the rates of claims.learning_rates"
        )


def _report(
    config: ClaimsConfig,
    models: Sequence[Sized],
    rates: Mapping[Model, float],
    trained: Sequence[tuple[dict[str, Any], Manifest]],
    made: Sequence[Manifest],
    runtime: Runtime,
) -> Manifest:
    root = runtime.root

    def make(target: Path) -> Made:
        read = [{**facts, **_read(manifest, root)} for facts, manifest in trained]
        sizes = [
            {
                "architecture": one.architecture, "matching": one.matching, **one.shape.model_dump(),
                "parameters": one.parameters, "flops": one.flops,
                "learning_rate": rates[one.architecture, one.matching],
            }
            for one in models
        ]  # fmt: skip
        language, recall = ([one for one in read if kind in one] for kind in ("curve", "recall"))
        found = findings(config, sizes, language, recall)
        outputs = write_report(target, "claims", found, claims_page, root)
        verdicts = {claim["id"]: claim["verdict"] for claim in found["claims"]}
        return Made(outputs, {"seeds": config.seeds, "trainings": len(made), "verdicts": verdicts})

    times = tuple(sha256_file(root / one.folder / FILE_NAME) for one in made)  # its run block has energy and times
    recipe = Recipe("claims", REPORT_VERSION, ClaimsReport(claims=config, times=times))
    return run_stage(recipe, [one.as_input() for one in made], runtime, make)


def _recall_tokens(config: ClaimsConfig) -> int:
    from pretrain.experiments.planted_recall import longest_distance, row_length

    recall, total = config.recall, 0
    for step in range(1, recall.steps + 1):
        length = row_length(longest_distance(step, recall.steps, recall.distances))
        total += max(1, recall.batch_tokens // length) * length
    return total


def _learns_recall(config: ClaimsConfig, one: Sized) -> bool:
    """Return whether a model is trained on planted facts, too."""
    return bool(config.recall.distances) and one.matching == config.matching[0]


def _tokens_of(config: ClaimsConfig, models: Sequence[Sized]) -> int:
    """Tokens of all trainings."""
    each = config.budgets[0] * len(config.tried_rates) + config.seeds * sum(config.budgets)
    planted = [model for model in models if _learns_recall(config, model)]
    return len(models) * each + len(planted) * config.seeds * (_recall_tokens(config) if planted else 0)


def plan(config: ClaimsConfig, vocabulary_size: int, threads: int) -> Iterator[str]:
    """Lines of a dry run: models, trainings, and their time here.

    It measures some steps of each model, on random tokens.

    Raises:
        ConfigError: the package of xlstm is missing.
    """
    from pretrain.experiments.claim_training import arithmetic, seconds_of

    models = sized_models(config, vocabulary_size)
    own = next(model for model in models if model.architecture == "transformer")
    for model in models:
        how = "" if model.architecture == "transformer" else f", matched by {model.matching}"
        yield (
            f"model       {NAMES[model.architecture]}{how}: width {model.shape.width}, {model.parameters:,} parameters "
            f"({model.parameters / own.parameters:.3f}), {model.flops:,} FLOPs per token "
            f"({model.flops / own.flops:.3f})"
        )
    languages = len(models) * config.seeds * len(config.budgets)
    tuning = len(models) * len(config.tried_rates)
    recalls = sum(_learns_recall(config, model) for model in models) * config.seeds
    yield (
        f"trainings   {languages} on the run's tokens ({config.seeds} seeds, budgets of "
        f"{', '.join(f'{budget:,}' for budget in config.budgets)} tokens), {tuning} to choose rates, {recalls} on "
        f"planted facts; {_tokens_of(config, models):,} tokens"
    )
    begun, total = time.monotonic(), 0.0
    with arithmetic(threads), progress("dry run", len(models), "models") as advance:
        for model in models:
            planted = _learns_recall(config, model)
            total += seconds_of(config, model.architecture, model.shape, vocabulary_size, planted=planted)
            advance(1)
    minutes = total / 60
    yield (
        f"time        about {f'{minutes:.0f} minutes' if minutes < 90 else f'{minutes / 60:.1f} hours'} on "
        f"{threads} thread(s) of this machine, by {_TIMED_STEPS} steps of each model ({time.monotonic() - begun:.0f} s)"
    )
