"""Handlers of `assay experiment`."""

from __future__ import annotations

import json
from dataclasses import replace

from assay.cli.output import artifact, say
from assay.cli.run_commands import Arguments, argv_of, load
from assay.config import load_run
from governance.manifest import Manifest


def claims(arguments: Arguments) -> None:
    """Test the Transformer's claims on the run's own tokens."""
    from assay.claims_experiment import run_claims
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
    folder = runtime.root / made.folder
    found = json.loads((folder / "claims.json").read_bytes())
    for claim in found["claims"]:
        against = claim["against"]
        held = sum(row["verdict"] == "held" for row in against)
        line = f"{claim['verdict']:<13} {claim['claim']} (held against {held} of {len(against)})"
        say(line, claims=[{"id": claim["id"], "verdict": claim["verdict"], "against": against}])
    say(f"report: {folder / 'report.html'}", report=folder / "report.html", **artifact(made, runtime.root))


def scaling(arguments: Arguments) -> None:
    """Predict the loss of the run from a ladder of small trainings."""
    from assay.pipeline import corpus, training
    from assay.scaling_experiment import read_scaling, run_scaling
    from assay.start_preflight import vocabulary_of
    from pretrain.experiments.scaling.ladder import Rung, ladder, multiplied, tokens_of

    loaded, runtime = load(arguments, "data prepare")
    vocabulary, _ = vocabulary_of(loaded, runtime)
    recipe = loaded.config.recipe
    rungs = ladder(loaded.config.scaling, recipe, vocabulary)
    if arguments.dry_run:
        for rung in rungs:
            line = (
                f"width {rung.model.hidden_size:,}, {rung.model.num_hidden_layers} layers, {rung.parameters:,} "
                f"parameters, {rung.steps:,} steps, {rung.tokens:,} tokens, seed {rung.seed}"
            )
            say(line, plan=[line])
        work = sum(rung.parameters * rung.tokens for rung in rungs)
        share = work / (multiplied(recipe.model, vocabulary) * tokens_of(recipe))
        say(f"{len(rungs)} trainings: {100 * share:.2g} % of the run's FLOPs", share_of_run=share)
        return
    artifacts = corpus(loaded, replace(runtime, make=False))

    def train(rung: Rung) -> Manifest:
        settings = [*arguments.overrides, *rung.settings]
        smaller = replace(load_run(arguments.config, settings, arguments.more), journals=loaded.journals)
        argv = argv_of(Arguments(**{**vars(arguments), "overrides": settings}), runtime)
        return training(smaller, artifacts, runtime, arguments.nproc, argv)

    made = run_scaling(loaded, artifacts, rungs, runtime, train)
    found = read_scaling(runtime.root / made.folder)
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
    for words in found["warnings"]:
        say(f"note        {words}", warnings=[words])
    page = runtime.root / made.folder / "report.html"
    say(f"report: {page}", report=page, **artifact(made, runtime.root))
