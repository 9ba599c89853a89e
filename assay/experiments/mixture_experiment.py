"""Experiment on weights of sources: trainings, law, and report.

<root>/train/<key>/                        each training, as any other
<root>/mixture/<key>/report.html, mixture.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.corpus_gate import require_signed
from assay.experiments.scaling_experiment import train_all
from assay.training_recipe import training_rows
from governance.config import Section
from governance.manifest import Manifest
from governance.stage import Made, Recipe, Runtime, run_stage
from pretrain.data.dataset import open_rows
from pretrain.experiments.experiment_report import write_report
from pretrain.experiments.mixtures.mixture_law import MixtureFit, fit_mixtures
from pretrain.experiments.mixtures.mixture_page import mixture_page
from pretrain.experiments.mixtures.mixture_runs import MixtureExperimentConfig, MixturePlan, mixture_plan, rounded
from pretrain.experiments.scaling.ladder import Rung

VERSION = 2


class MixtureReport(Section):
    """Recipe of the report."""

    mixture: MixtureExperimentConfig
    rows: dict[str, int]
    """Training rows of each source."""
    run_rows: int


def plan_mixtures(run: LoadedRun, artifacts: Mapping[str, Manifest], root: Path, vocabulary: int) -> MixturePlan:
    """The trainings for the run's corpus.

    Raises:
        ConfigError: as `mixture_plan` does.
    """
    rows = open_rows(training_rows(artifacts), "train", root, run.config.train.sequence_length)
    counts = {source.name: source.count for source in rows.sources() if source.count}
    return mixture_plan(run.config.mixture, run.config.recipe, vocabulary, counts)


def run_mixtures(run: LoadedRun, plan: MixturePlan, runtime: Runtime, train: Callable[[Rung], Manifest]) -> Manifest:
    """Train every mixture, fit the law, and report the best weights.

    Finished trainings are reused.

    Raises:
        GateClosed: the verdict does not let this corpus through, or an artifact differs from its statement.
        PipelineError: a training has no validation loss, or all have the same.
    """
    trained = train_all("mixture", run, plan.rungs, runtime, train)
    section = MixtureReport(mixture=run.config.mixture, rows=plan.rows, run_rows=plan.run_rows)

    def make(target: Path) -> Made:
        facts = _report_facts(run, plan, trained)
        outputs = write_report(target, "mixture", facts, mixture_page, runtime.root)
        return Made(outputs, {"rungs": len(trained), "gain": facts["gain"]})

    made = run_stage(Recipe("mixture", VERSION, section), [manifest.as_input() for manifest in trained], runtime, make)
    require_signed(made, runtime.root, run.journal(runtime.root))
    return made


def _report_facts(run: LoadedRun, plan: MixturePlan, trained: Sequence[Manifest]) -> dict[str, Any]:
    """Everything that the report shows."""
    losses = [manifest.stats["validation_loss"] for manifest in trained]
    mixtures = [rung.weights for rung in plan.rungs]
    fit = fit_mixtures(mixtures, losses, plan.caps, run.config.mixture.resamples)
    joules = [manifest.run["energy"]["joules"] for manifest in trained]
    nats, low, high = fit.gain(plan.own)
    length = run.config.train.sequence_length
    columns = zip(
        plan.rows.items(), plan.own, rounded(fit.best), fit.intervals(), plan.caps, plan.epochs(fit.best), strict=True
    )
    return {
        "sources": [
            {"name": name, "tokens": count * length, "own": own, "best": best, "low": ends[0],
             "high": ends[1], "cap": cap, "epochs": epochs}
            for (name, count), own, best, ends, cap, epochs in columns
        ],
        "gain": {"nats": nats, "low": low, "high": high},
        "law": {"levels": fit.law.levels, "curves": fit.law.curves},
        "noise": fit.noise,
        "rungs": [
            {"weights": rung.weights, "steps": rung.steps, "tokens": rung.tokens, "share_of_run": rung.budget,
             "width": rung.model.hidden_size, "loss": loss, "fitted": fit.law.loss(rung.weights),
             "training": manifest.folder, "settings": list(rung.settings)}
            for rung, loss, manifest in zip(plan.rungs, losses, trained, strict=True)
        ],
        "joules": None if None in joules else sum(joules),
        "warnings": _warnings(run, plan, fit, (nats, low)),
    }  # fmt: skip


def _warnings(run: LoadedRun, plan: MixturePlan, fit: MixtureFit, gain: tuple[float, float]) -> list[str]:
    """Reasons to trust these weights less than their intervals."""
    warnings = []
    if gain[1] <= 0:
        warnings.append(
            f"The gain of {gain[0]:.4f} nats is within the noise: keep the run's weights, or raise mixture.budget."
        )
    held = [
        name
        for name, weight, cap in zip(plan.rows, fit.best, plan.caps, strict=True)
        if cap < 1 and weight > 0.999 * cap
    ]
    if held:
        warnings.append(
            f"At its cap: {', '.join(held)}. More readings (mixture.max_epochs) or more text of it may lower the loss."
        )
    if plan.rungs[0].model.hidden_size != run.config.model.hidden_size:
        warnings.append(
            "The trainings are narrower than the run, and a larger model gains less from repeated text; "
            "mixture.hidden_size = 0 trains the run's width."
        )
    return warnings
