"""Handlers of `assay experiment`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from assay.cli.output import artifact, say
from assay.cli.run_commands import Arguments, argv_of, load
from assay.config import LoadedRun, load_run
from assay.experiments.claims_experiment import run_claims
from assay.experiments.mixture_experiment import plan_mixtures, run_mixtures
from assay.experiments.scaling_experiment import run_scaling
from assay.training_recipe import training_folder
from governance.manifest import FILE_NAME, Manifest
from governance.stage import Runtime
from pretrain.experiments.experiment_report import read_report
from pretrain.experiments.mixtures.mixture_page import proposal
from pretrain.experiments.scaling.coordinates import part_in_words
from pretrain.experiments.scaling.ladder import Rung, ladder, multiplied, tokens_of


def claims(arguments: Arguments) -> None:
    """Test the Transformer's claims on the run's own tokens."""
    from assay.pipeline import corpus

    loaded, runtime = load(arguments, "data prepare")
    config = loaded.config.claims.quick() if arguments.quick else loaded.config.claims
    if arguments.dry_run:
        from assay.start_preflight import vocabulary_of
        from pretrain.distributed.process_group import Ranks, threads_of
        from pretrain.experiments.claims import plan

        vocabulary, source = vocabulary_of(loaded, runtime)
        say(f"vocabulary  {vocabulary:,} {source}", plan=[f"vocabulary  {vocabulary:,} {source}"])
        for line in plan(config, vocabulary, threads_of(Ranks(), loaded.config.engine.threads)):
            say(line, plan=[line])
        return
    artifacts = corpus(loaded, replace(runtime, make=False))
    made = run_claims(loaded, artifacts, config, runtime)
    found = read_report(runtime.root / made.folder, "claims")
    for claim in found["claims"]:
        against = claim["against"]
        held = sum(row["verdict"] == "held" for row in against)
        line = f"{claim['verdict']:<13} {claim['claim']} (held against {held} of {len(against)})"
        say(line, claims=[{"id": claim["id"], "verdict": claim["verdict"], "against": against}])
    _say_report(made, runtime)


def scaling(arguments: Arguments) -> None:
    """Predict the loss of the run from a ladder of small trainings."""
    from assay.pipeline import corpus
    from assay.start_preflight import vocabulary_of

    loaded, runtime = load(arguments, "data prepare")
    vocabulary, _ = vocabulary_of(loaded, runtime)
    recipe = loaded.config.recipe
    rungs = ladder(loaded.config.scaling, recipe, vocabulary)
    if arguments.dry_run:
        for rung in rungs:
            line = (
                f"width {rung.model.hidden_size:,}, {rung.model.num_hidden_layers} layer(s), {rung.parameters:,} "
                f"parameters, {rung.steps:,} steps, {rung.tokens:,} tokens, seed {rung.seed}"
            )
            say(line, plan=[line])
        work = sum(rung.parameters * rung.tokens for rung in rungs)
        share = work / (multiplied(recipe.model, vocabulary) * tokens_of(recipe))
        say(f"{len(rungs)} trainings: {100 * share:.2g} % of the run's FLOPs", share_of_run=share)
        return
    artifacts = corpus(loaded, replace(runtime, make=False))
    made = run_scaling(loaded, artifacts, rungs, runtime, _trainer(arguments, loaded, artifacts, runtime))
    found = read_report(runtime.root / made.folder, "scaling")
    target, best = found["target"], found["best"]
    say(
        f"loss        {target['loss']:.3f} ({target['low']:.3f} to {target['high']:.3f}) nats per token for this run, "
        f"{target['parameters']:.3g} parameters and {target['tokens']:.3g} tokens",
        target=target,
    )
    say(
        f"best        {best['loss']:.3f} for as many FLOPs, with {best['parameters']:.3g} parameters and "
        f"{best['tokens']:.3g} tokens",
        best=best,
    )
    if check := found["coordinates"]:
        answer = "transfers" if check["transfers"] else "does not transfer"
        grows = f"{part_in_words(check['worst'])} grows as width^{check['largest']:.2f}"
        say(f"rate        {answer} from width to width: {grows}", coordinates=check)
    for words in found["warnings"]:
        say(f"note        {words}", warnings=[words])
    _say_report(made, runtime)


def mixture(arguments: Arguments) -> None:
    """Choose the weights of the sources by small trainings."""
    from assay.pipeline import corpus
    from assay.start_preflight import vocabulary_of

    loaded, runtime = load(arguments, "data prepare")
    artifacts = corpus(loaded, replace(runtime, make=False))
    vocabulary, _ = vocabulary_of(loaded, runtime)
    plan = plan_mixtures(loaded, artifacts, runtime.root, vocabulary)
    if arguments.dry_run:
        for rung in plan.rungs:
            weights = ", ".join(f"{name} {weight:.4f}" for name, weight in zip(plan.rows, rung.weights, strict=True))
            line = f"{weights}: {rung.steps:,} steps, {rung.tokens:,} tokens"
            say(line, plan=[line])
        share = sum(rung.budget for rung in plan.rungs)
        say(f"{len(plan.rungs)} trainings: {100 * share:.2g} % of the run's tokens", share_of_run=share)
        return
    made = run_mixtures(loaded, plan, runtime, _trainer(arguments, loaded, artifacts, runtime))
    found = read_report(runtime.root / made.folder, "mixture")
    for row in found["sources"]:
        say(
            f"{row['name']:<11} {row['best']:.4f} ({row['low']:.4f} to {row['high']:.4f}), now {row['own']:.4f}; read "
            f"{row['epochs']:.2g} times in the run",
            sources=[row],
        )
    gain = found["gain"]
    say(f"gain        {gain['nats']:.4f} ({gain['low']:.4f} to {gain['high']:.4f}) nats per token", gain=gain)
    for words in found["warnings"]:
        say(f"note        {words}", warnings=[words])
    for line in proposal(found["sources"]):
        say(line, proposal=[line])
    _say_report(made, runtime)


def _say_report(made: Manifest, runtime: Runtime) -> None:
    page = runtime.root / made.folder / "report.html"
    say(f"report: {page}", report=page, **artifact(made, runtime.root))


def _trainer(
    arguments: Arguments, loaded: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime
) -> Callable[[Rung], Manifest]:
    """Training of a rung behind the gate, with its settings.

    One that is finished starts no ranks.
    """
    from assay.pipeline import training

    def train(rung: Rung) -> Manifest:
        settings = [*arguments.overrides, *rung.settings]
        smaller = replace(load_run(arguments.config, settings, arguments.more), journals=loaded.journals)
        argv = argv_of(Arguments(**{**vars(arguments), "overrides": settings}), runtime)
        finished = (training_folder(smaller, artifacts, runtime) / FILE_NAME).exists()
        return training(smaller, artifacts, runtime, 1 if finished else arguments.nproc, argv)

    return train
