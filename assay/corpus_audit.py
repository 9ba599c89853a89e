"""Audit and verdict of a run's corpus, and the audit's inputs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.corpus_gate import packed_rows, refuse_altered
from assay.start_preflight import require_site_rules
from data_pipeline.filters.classifier import ClassifierConfig, scores_of, train_classifier
from data_pipeline.tokens.token_shards import TokenShard
from data_pipeline.tokens.tokenizer import load_encoder
from governance.checks.audit import audit
from governance.checks.bias.bias import Models, bias_audit
from governance.checks.drift import Sketch, read_reference
from governance.checks.tokens import TokenReaders
from governance.config import validate
from governance.errors import AlteredFile, GateClosed, MissingInput
from governance.gate.chain import require_chain
from governance.gate.decision import CheckResult, decide
from governance.gate.verdict import give_verdict, read_verdict, statements_in_effect, verdict_path
from governance.manifest import Manifest, read_manifest
from governance.stage import Runtime
from governance.verified_files import intact


def check_audit_inputs(run: LoadedRun, runtime: Runtime) -> None:
    """Read the word lists, classifiers and reference of the audit.

    Raises:
        ConfigError: one of them is wrong.
    """
    bias = run.config.audit.bias
    if bias != type(bias)():  # only what a run names can be wrong, and our lists cost each task 0.4 CPU-s
        from governance.checks.bias.bias import sentence_scorers
        from governance.checks.bias.word_lists.lexicons import load_lexicons

        sentence_scorers(bias, load_lexicons(bias, run.folder), _tone_models(run, runtime))
    _reference(run)


def audit_and_decide(
    run: LoadedRun, artifacts: dict[str, Manifest], runtime: Runtime
) -> tuple[Manifest, dict[str, Any]]:
    """Make or find the audit's manifest and the verdict.

    The bias count tables are added to `artifacts`.

    Raises:
        GateClosed: a manifest is not as it was stated, or a file that a check reads, or of the audit, was altered.
        MissingInput: in a look-up, there is no audit or no verdict.
    """
    journal, tokens = run.journal(runtime.root), artifacts["encode"]
    if runtime.make:
        require_site_rules(run)
        require_chain((tokens, *packed_rows(artifacts)), runtime.root, journal)  # before hours of checks
    try:
        artifacts["bias"] = bias_counts(run, artifacts, runtime)
        if runtime.make:
            require_chain((artifacts["bias"],), runtime.root, journal)  # its tables are read as they are
        checked = audit(artifacts, run.policy, run.config.audit, runtime, token_readers(), _reference(run))
    except AlteredFile as error:
        raise GateClosed(f"the audit cannot judge a file that is not as it was written: {error}") from error
    if not runtime.make:
        path = verdict_path(tokens, run.policy, runtime.root)
        if not path.exists():
            raise MissingInput(f"verdict: not given yet. Make it with: {runtime.command}")
        return checked, read_verdict(path, run.keyring)
    refuse_altered((artifacts["bias"], checked), runtime.root)
    with intact(checked.named("results.json"), runtime.root) as path:
        results = [CheckResult(**row) for row in json.loads(path.read_bytes())]
    today = datetime.datetime.now(datetime.UTC).date()
    gate = run.gate(runtime.root)
    statements = statements_in_effect(gate, run.policy, tokens.digest)
    judgement = decide(run.policy, results, tokens.digest, today, statements)
    return checked, give_verdict(judgement, tokens, checked, run.policy, gate)


def bias_counts(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime) -> Manifest:
    """Make or find the bias count tables."""
    models = _classifiers(artifacts, runtime.root)
    tone = _tone_models(run, runtime)
    return bias_audit(artifacts, run.config.audit.bias, runtime, folder=run.folder, models=models, tone=tone)


def _classifiers(artifacts: Mapping[str, Manifest], root: Path) -> Models:
    """The models that judged this corpus, by name."""
    inputs = artifacts["classify"].inputs if "classify" in artifacts else ()
    models = [read_manifest(root / item.path) for item in inputs if item.stage == "classifier"]
    return {str(model.config["model"]["name"]): (model, partial(scores_of, model, root)) for model in models}


def _tone_models(run: LoadedRun, runtime: Runtime) -> Models:
    """Make or find the models of `[audit.bias.classifiers]`, by name."""
    models = {}
    for name, of in sorted(run.config.audit.bias.classifiers.items()):
        values = {"name": name, "model": of.model, "positive": list(of.positive), "negative": list(of.negative)}
        config = validate(values, ClassifierConfig, f"{run.path}: audit.bias.classifiers.{name}")
        model = train_classifier(config, run.folder, runtime)
        models[name] = (model, partial(scores_of, model, runtime.root))
    return models


def _reference(run: LoadedRun) -> Sketch | None:
    """The reference of the suite `drift`, if the run names one."""
    if not run.config.audit.reference:
        return None
    return read_reference(run.folder / run.config.audit.reference, run.keyring.trusted())


def token_readers() -> TokenReaders:
    """Readers of the data pipeline's formats, for governance."""
    return TokenReaders(TokenShard.open, load_encoder)
