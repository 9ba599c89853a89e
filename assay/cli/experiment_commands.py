"""Function behind `assay experiment claims`."""

from __future__ import annotations

import json
from dataclasses import replace

from assay.cli.output import artifact, say
from assay.cli.run_commands import Arguments, load


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
