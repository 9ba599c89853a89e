"""Experiment on scaling: trainings behind the gate, law, and report.

<root>/train/<key>/                        each rung, a training as any other
<root>/scaling/<key>/report.html, scaling.json
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.corpus_gate import require_signed
from assay.training_recipe import training_rows
from governance.config import Section
from governance.errors import ManifestError, MissingInput, PipelineError
from governance.gate.chain import require_chain
from governance.log import get_logger
from governance.manifest import FILE_NAME, Manifest, read_manifest, verify
from governance.stage import Made, Recipe, Runtime, run_stage
from pretrain.data.dataset import open_rows
from pretrain.experiments.experiment_report import read_report, write_report
from pretrain.experiments.scaling.coordinates import CoordinateCheck, coordinate_check, part_in_words, rows_for_check
from pretrain.experiments.scaling.ladder import Rung, ScalingConfig, curves_of, multiplied, other_start, tokens_of
from pretrain.experiments.scaling.scaling_law import Fit, ScalingLaw, Trained, fit_law, parabola_exponent
from pretrain.experiments.scaling.scaling_page import scaling_page

VERSION = 4


class ScalingReport(Section):
    """Recipe of the report."""

    scaling: ScalingConfig
    parameters: int
    """Weights that a token of the predicted run multiplies."""
    tokens: int


def run_scaling(
    run: LoadedRun,
    artifacts: Mapping[str, Manifest],
    rungs: Sequence[Rung],
    runtime: Runtime,
    train: Callable[[Rung], Manifest],
) -> Manifest:
    """Train every rung, fit the law, and report its prediction.

    Finished rungs are found.

    Args:
        run: the run that is predicted.
        artifacts: its corpus.
        rungs: the ladder.
        runtime: root, meter, energy budget, journal.
        train: trains a rung behind the gate.

    Raises:
        GateClosed: the verdict does not let this corpus through, or an artifact differs from its statement.
        PipelineError: a rung has no validation loss, or the losses show no law.
    """
    trained = train_all("scaling", run, rungs, runtime, train)
    vocabulary = trained[0].stats["vocabulary_size"]
    recipe = run.config.recipe
    section = ScalingReport(
        scaling=run.config.scaling, parameters=multiplied(recipe.model, vocabulary), tokens=tokens_of(recipe)
    )

    def make(target: Path) -> Made:
        found = _found(run, artifacts, section, list(zip(rungs, trained, strict=True)), runtime.root)
        outputs = write_report(target, "scaling", found, scaling_page, runtime.root)
        return Made(outputs, {"rungs": len(rungs), "target": found["target"]})

    made = run_stage(Recipe("scaling", VERSION, section), [one.as_input() for one in trained], runtime, make)
    require_signed(made, runtime.root, run.journal(runtime.root))
    return made


def train_all(
    experiment: str, run: LoadedRun, rungs: Sequence[Rung], runtime: Runtime, train: Callable[[Rung], Manifest]
) -> list[Manifest]:
    """Train every rung, or find it, and compare it with its statement.

    Raises:
        GateClosed: the verdict does not let this corpus through, or an artifact differs from its statement.
        PipelineError: a rung has no validation loss.
    """
    trained = []
    for number, rung in enumerate(rungs, 1):
        get_logger(__name__).info(
            "%s: rung %d of %d: width %d, %d layer(s), %s parameters, %s tokens, seed %d%s", experiment, number,
            len(rungs), rung.model.hidden_size, rung.model.num_hidden_layers, f"{rung.parameters:,}",
            f"{rung.tokens:,}", rung.seed,
            f", weights {', '.join(f'{weight:g}' for weight in rung.weights)}" if rung.weights else "",
        )  # fmt: skip
        trained.append(train(rung))
        if trained[-1].stats["validation_loss"] is None:
            raise PipelineError(
                f"{experiment}: {trained[-1].folder} has no validation loss: without validation documents nothing can "
                f"be compared. Raise data.encode.validation_share and prepare again."
            )
    require_chain(trained, runtime.root, run.journal(runtime.root))
    return trained


def _found(
    run: LoadedRun,
    artifacts: Mapping[str, Manifest],
    section: ScalingReport,
    trained: Sequence[tuple[Rung, Manifest]],
    root: Path,
) -> dict[str, Any]:
    """Everything that the report shows.

    Raises:
        PipelineError: the losses show no law.
    """
    points = [Trained(rung.parameters, rung.tokens, manifest.stats["validation_loss"]) for rung, manifest in trained]
    fit = fit_law(points, section.scaling.resamples)
    curves = [[points[at] for at in curve] for curve in curves_of([rung for rung, _ in trained])]
    joules = [manifest.run["energy"]["joules"] for _, manifest in trained]
    target = _predicted(fit, section.parameters, section.tokens)
    best = _predicted(fit, *fit.law.best(target["flops"]))
    vocabulary = trained[0][1].stats["vocabulary_size"]
    rows = open_rows(training_rows(artifacts), "train", root, run.config.train.sequence_length)
    check = coordinate_check(run.config.recipe, vocabulary, rows_for_check(rows), run.folder)
    return {
        "target": target,
        "best": best,
        "law": {
            **asdict(fit.law),
            "size_exponent": fit.law.size_exponent,
            "intervals": {name: fit.interval_of(name) for name in (*asdict(fit.law), "size_exponent")},
        },
        "noise": fit.noise,
        "approach_2_exponent": parabola_exponent(curves),
        "resamples": {"drawn": fit.resamples, "determined": len(fit.draws)},
        "rungs": [
            {
                "width": rung.model.hidden_size, "layers": rung.model.num_hidden_layers, "parameters": rung.parameters,
                "tokens": rung.tokens, "steps": rung.steps, "budget": rung.budget, "seed": rung.seed,
                "loss": point.loss, "fitted": fit.law.loss(rung.parameters, rung.tokens), "training": manifest.folder,
                "settings": list(rung.settings),
            }
            for (rung, manifest), point in zip(trained, points, strict=True)
        ],
        "joules": None if None in joules else sum(joules),
        "coordinates": check and check.as_dict(),
        "warnings": [
            *_warnings(artifacts["encode"], section, fit, [rung for rung, _ in trained], check),
            *_best_at_an_edge(curves),
        ],
        "fitted": astuple(fit.law),
        "vocabulary_size": vocabulary,
        "draws": [astuple(law) for law in fit.draws],
    }  # fmt: skip


def _predicted(fit: Fit, parameters: float, tokens: float) -> dict[str, float]:
    """Loss of a model with its interval."""
    low, high = fit.interval(parameters, tokens)
    return {
        "parameters": parameters, "tokens": tokens, "flops": 6 * parameters * tokens,
        "loss": fit.law.loss(parameters, tokens), "low": low, "high": high,
    }  # fmt: skip


def _best_at_an_edge(curves: Sequence[Sequence[Trained]]) -> list[str]:
    """A warning where the best size is beyond the ladder.

    Every curve of equal FLOPs then has its least loss at the same end.
    """
    best = [min(curve, key=lambda point: point.loss).parameters for curve in curves]
    for end, word, other in ((min, "smallest", "smaller"), (max, "largest", "larger")):
        if all(size == end(point.parameters for point in curve) for size, curve in zip(best, curves, strict=True)):
            return [
                f"At every budget the {word} model has the lowest loss, so the best size is beyond the ladder and is "
                f"only extrapolated. Add {other} widths to scaling.hidden_sizes."
            ]
    return []


def _warnings(
    tokens: Manifest, section: ScalingReport, fit: Fit, rungs: Sequence[Rung], check: CoordinateCheck | None
) -> list[str]:
    """Reasons to trust this prediction less than its interval."""
    found = []
    beyond = section.parameters * section.tokens / max(rung.parameters * rung.tokens for rung in rungs)
    if beyond > 100:
        found.append(
            f"The run has {beyond:,.0f} times the FLOPs of the largest rung. The interval assumes that the law holds "
            f"that far; a larger budget in scaling.budgets tests it."
        )
    if check is not None and not check.transfers:
        found.append(
            f"All widths learn at the run's rate, which is not the best one of each: after a few steps the output of "
            f"one part ({part_in_words(check.worst)}) grows as width^{check.exponents[check.worst]:.2f}. The exponents "
            f"hold for this rate; model.initialisation = 'mup' transfers it."
        )
    text = tokens.stats.get("train_tokens") or 0
    for what, read in (("the run", section.tokens), ("the longest rung", max(rung.tokens for rung in rungs))):
        if text and read > text:
            found.append(
                f"The corpus has {text:,} training tokens, and {what} reads it {read / text:.1f} times. The law is of "
                f"new tokens; repeated ones teach less (arXiv:2305.16264)."
            )
    if (lost := fit.resamples - len(fit.draws)) > fit.resamples / 20:
        found.append(
            f"{lost} of {fit.resamples} resamples determined no law and are left out: the ladder is too short for its "
            f"noise. Add sizes, budgets or seeds."
        )
    return found


def expected_loss(run: LoadedRun, vocabulary_size: int, root: Path, tokens: str = "") -> dict[str, Any] | None:
    """Loss of a run by the newest scaling law of its root.

    `tokens` is the digest of the run's token shards, "" without them; a law that was fitted on others says so.

    None where there is none of this size of vocabulary, or the run does not train a decoder from random weights.

    Raises:
        ManifestError: the law's report was altered.
        GateClosed: it is not as the journal states it.
    """
    recipe = run.config.recipe
    laws = [] if other_start(recipe) else sorted(root.glob(f"scaling/*/{FILE_NAME}"), key=os.path.getmtime)
    for path in reversed(laws):
        made = read_manifest(path)
        if problems := verify(made, root):
            raise ManifestError(
                f"{'; '.join(problems)}. Remove {root / made.folder}, then: assay experiment scaling CONFIG"
            )
        require_chain([made], root, run.journal(root))
        found = read_report(root / made.folder, "scaling")
        if found["vocabulary_size"] != vocabulary_size:
            continue  # losses per token of two tokenizers do not compare
        law, *draws = (ScalingLaw(*values) for values in (found["fitted"], *found["draws"]))
        fit = Fit(law, found["noise"], tuple(draws), found["resamples"]["drawn"])
        predicted = _predicted(fit, multiplied(recipe.model, vocabulary_size), tokens_of(recipe))
        return {**predicted, "law": made.folder, "other_corpus": _of_others(made, tokens, root)}
    return None


def _of_others(law: Manifest, tokens: str, root: Path) -> bool:
    """Return whether a law's trainings read other token shards, where known."""
    try:
        read = read_manifest(root / law.inputs[0].path).inputs  # token shards, or the rows packed of them
        read += tuple(of for one in read if one.stage == "pack" for of in read_manifest(root / one.path).inputs)
    except MissingInput:  # it was removed
        return False
    return bool(tokens) and all(one.digest != tokens for one in read)
