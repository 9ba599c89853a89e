"""The whole run as a call graph: corpus, audit, verdict, training, report.

Each function takes a `LoadedRun` and a `Runtime`, and finds or makes its part of the run. The order of the run and its
gates are here; the work of a step is in the module that it calls.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.config import LoadedRun
from assay.start_preflight import here, refuse_start, under_site, warn_of_expectations, warn_of_licences
from assay.teacher_draws import teacher_logits
from assay.training_recipe import pinned, training_folder
from assay.weights_origin import weights_origin
from data_pipeline.prepare import prepare, stage_names
from governance.config import validate
from governance.energy.factors import resolve
from governance.errors import (
    AlteredFile,
    BudgetReached,
    CheckpointError,
    ConfigError,
    GateClosed,
    ManifestError,
    MissingInput,
    PipelineError,
    Preempted,
)
from governance.files import sha256_file
from governance.gate.chain import latest_statements, require_chain, require_stated, unstated
from governance.gate.decision import CheckResult, decide
from governance.gate.explanation import explain
from governance.gate.gate_actions import GateEvent, run_actions
from governance.gate.verdict import give_verdict, read_verdict, require_open, settled_papers, trusted, verdict_path
from governance.log import get_logger, run_steps
from governance.manifest import FILE_NAME, Input, Manifest, output_fault, read_manifest, verify
from governance.signing.journal import Journal
from governance.stage import Runtime, earlier_seconds, now
from governance.stage_order import CORPUS_STAGES, STAGES
from governance.verification import require_growing
from governance.verified_files import intact
from pretrain.distributed.launcher import launch, progress_in
from pretrain.distributed.process_group import Ranks, read_ranks
from pretrain.evaluation.tasks import open_tasks
from pretrain.loss_spikes import Diverged

if TYPE_CHECKING:
    from governance.checks.bias.bias import Models
    from governance.checks.drift import Sketch
    from governance.checks.tokens import TokenReaders
    from pretrain.evaluation.scores import Suite
    from pretrain.evaluation.validation import Measurement
    from pretrain.metrics.run_identity import MirrorTable


def corpus(run: LoadedRun, runtime: Runtime) -> dict[str, Manifest]:
    """Every artifact of the corpus, by stage.

    Files that later sections name are read now, so that a mistake in them fails before hours of work.
    """
    if runtime.make:
        under_site(run)
        warn_of_licences(run)
        if runtime.mode != "share":  # once, not in each task of an array
            warn_of_expectations(run, runtime)
        bias = run.config.audit.bias
        if bias != type(bias)():  # only what a run names can be wrong, and our lists cost each task 0.4 CPU-s
            from governance.checks.bias.bias import sentence_scorers
            from governance.checks.bias.word_lists.lexicons import load_lexicons

            sentence_scorers(bias, load_lexicons(bias, run.folder), _tone_models(run, runtime))
        _reference(run)
        resolve(run.config.energy.factors, run.folder)
        open_tasks(run.config.evaluation, run.folder)
    return prepare(run.config.data, run.folder, runtime)


def judge_corpus(run: LoadedRun, artifacts: dict[str, Manifest], runtime: Runtime) -> tuple[Manifest, dict[str, Any]]:
    """Audit the corpus, decide, and sign: the audit's manifest and the verdict.

    The bias count tables are added to `artifacts`.

    Raises:
        GateClosed: a manifest is not as it was stated; a file that a check reads, or of the audit, was altered; or the
            run is not under its site's rules.
    """
    with _reported(run, artifacts, runtime, opens=False):
        checked, verdict = _judge(run, artifacts, runtime)
    if runtime.make and run.config.tracking.mode != "disabled":
        from assay.wandb_runs import show_data_and_gate

        show_data_and_gate(run, {**artifacts, "audit": checked}, verdict, runtime, run.journal(runtime.root))
    return checked, verdict


def _judge(run: LoadedRun, artifacts: dict[str, Manifest], runtime: Runtime) -> tuple[Manifest, dict[str, Any]]:
    from governance.checks.audit import audit

    journal, tokens = run.journal(runtime.root), artifacts["encode"]
    if runtime.make:
        under_site(run)
        require_chain((tokens, *_packed(artifacts)), runtime.root, journal)  # before hours of checks
    try:
        artifacts["bias"] = bias_counts(run, artifacts, runtime)
        if runtime.make:
            require_chain((artifacts["bias"],), runtime.root, journal)  # its tables are read as they are
        checked = audit(artifacts, run.policy, run.config.audit, runtime, _token_readers(), _reference(run))
    except AlteredFile as error:
        raise GateClosed(f"the audit cannot judge a file that is not as it was written: {error}") from error
    if not runtime.make:
        path = verdict_path(tokens, run.policy, runtime.root)
        if not path.exists():
            raise MissingInput(f"verdict: not given yet. Make it with: {runtime.command}")
        return checked, read_verdict(path, run.config.governance, run.folder)
    _refuse_altered((artifacts["bias"], checked), runtime.root)
    with intact(checked.named("results.json"), runtime.root) as path:
        results = [CheckResult(**row) for row in json.loads(path.read_bytes())]
    today = datetime.datetime.now(datetime.UTC).date()
    keys_of = (run.config.governance, run.folder)
    papers = settled_papers(keys_of, run.policy, tokens.digest, runtime.root, journal)
    judgement = decide(run.policy, results, tokens.digest, today, papers)
    return checked, give_verdict(judgement, tokens, checked, run.policy, keys_of, runtime.root, journal)


_MADE = {"report": ("report was", "write it"), "documents": ("documents were", "write them")}
_MADE |= dict.fromkeys(("bias", "audit"), ("audit's results were", "audit"))
"""Stage -> subject of its fault, and command that makes it."""


def _refuse_altered(made: Sequence[Manifest], root: Path) -> None:
    for manifest in made:
        if problems := verify(manifest, root):
            raise GateClosed(
                f"the {_MADE[manifest.stage][0]} altered: "
                + "; ".join(problems)
                + f". Remove {root / manifest.folder}, then {_MADE[manifest.stage][1]} again"
            )


def _packed(artifacts: Mapping[str, Manifest]) -> tuple[Manifest, ...]:
    """The packed rows, where the run has them."""
    return (artifacts["pack"],) if "pack" in artifacts else ()


def pass_gate(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, *, again: bool = False
) -> dict[str, Any]:
    """The verdict that lets exactly these token shards through, now.

    `again` states that it was open before, so that actions report only that it has closed.

    Raises:
        GateClosed: no verdict lets these shards through.
    """
    with _reported(run, artifacts, runtime, opens=not again):
        return _require_open(run, artifacts, runtime)


def _require_open(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime) -> dict[str, Any]:
    return require_open(
        artifacts["encode"],
        run.policy,
        (run.config.governance, run.folder),
        runtime.root,
        run.journal(runtime.root),
        _packed(artifacts),
        states=runtime.make,
    )


@contextlib.contextmanager
def _reported(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, *, opens: bool = True
) -> Iterator[None]:
    """Report the gate's decision by the run file's actions and W&B.

    An altered file closes the gate too. The decision is reported once for all ranks; a look-up reports nothing. `opens`
    states whether the context's success opens the gate. W&B already shows a verdict that does not open
    (`judge_corpus`), so here its alert is for every other cause.
    """
    first = runtime.make and read_ranks().first
    actions = run.config.governance.actions if first else ()

    def report(decision: str, message: str) -> None:
        if actions:
            event = GateEvent(
                decision, str(run.path), str(runtime.root), artifacts["encode"].digest, run.policy.name,
                socket.gethostname(), now(), message,
            )  # fmt: skip
            run_actions(actions, event)

    try:
        yield
    except (GateClosed, AlteredFile) as error:
        report("closed", str(error))
        if first and not getattr(error, "by_verdict", False) and run.config.tracking.mode != "disabled":
            from assay.wandb_runs import show_closing

            journal = partial(run.journal, runtime.root)
            show_closing(run.config.tracking, artifacts["encode"], str(error), runtime.root, journal)
        raise
    if opens:
        report("open", "the verdict lets this corpus through")


def bias_counts(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime) -> Manifest:
    """Make or find the bias count tables."""
    from governance.checks.bias.bias import bias_audit

    models = _classifiers(artifacts, runtime.root)
    tone = _tone_models(run, runtime)
    return bias_audit(artifacts, run.config.audit.bias, runtime, folder=run.folder, models=models, tone=tone)


def _classifiers(artifacts: Mapping[str, Manifest], root: Path) -> Models:
    """The models that judged this corpus, by name."""
    from data_pipeline.filters.classifier import scores_of

    inputs = artifacts["classify"].inputs if "classify" in artifacts else ()
    models = [read_manifest(root / item.path) for item in inputs if item.stage == "classifier"]
    return {str(model.config["model"]["name"]): (model, partial(scores_of, model, root)) for model in models}


def _tone_models(run: LoadedRun, runtime: Runtime) -> Models:
    """Make or find the models of `[audit.bias.classifiers]`, by name."""
    from data_pipeline.filters.classifier import ClassifierConfig, scores_of, train_classifier

    models = {}
    for name, of in sorted(run.config.audit.bias.classifiers.items()):
        values = {"name": name, "model": of.model, "positive": list(of.positive), "negative": list(of.negative)}
        config = validate(values, ClassifierConfig, f"{run.path}: audit.bias.classifiers.{name}")
        model = train_classifier(config, run.folder, runtime)
        models[name] = (model, partial(scores_of, model, runtime.root))
    return models


def _reference(run: LoadedRun) -> Sketch | None:
    """The reference of the suite `drift`, if the run names one."""
    from governance.checks.drift import read_reference

    if not run.config.audit.reference:
        return None
    return read_reference(run.folder / run.config.audit.reference, trusted(run.config.governance, run.folder))


def _token_readers() -> TokenReaders:
    """Readers of the data pipeline's formats, for governance."""
    from data_pipeline.tokens.token_shards import TokenShard
    from data_pipeline.tokens.tokenizer import load_encoder
    from governance.checks.tokens import TokenReaders

    return TokenReaders(TokenShard.open, load_encoder)


def training(
    run: LoadedRun,
    artifacts: Mapping[str, Manifest],
    runtime: Runtime,
    processes: int = 1,
    words: Sequence[str] = (),
) -> Manifest:
    """Train after the gate has opened, or find the finished run.

    One process is this one (one rank of several under torchrun); more are launched, and `words` repeat the
    configuration on their command line. The verdict is on the token shards. Packed rows are an index of them: the
    trainer opens the shards that the index was made from, and compares both with their digests.

    Raises:
        GateClosed: the verdict does not let this corpus through, the journal never stated a checkpoint as it is, or
            the origin of the parent is refused (`weights_origin.py`); no step is computed.
    """
    from pretrain.train import train

    tokens, origin = artifacts.get("pack", artifacts["encode"]), None
    with _reported(run, artifacts, runtime):
        _require_open(run, artifacts, runtime)
        if tokens.stage == "pack" and [item.digest for item in tokens.inputs] != [artifacts["encode"].digest]:
            raise GateClosed(
                f"{tokens.path}: its rows are from other token shards than those of the verdict. Remove its folder, "
                "then: assay data prepare CONFIG"
            )
        if runtime.make:
            if read_ranks().world_size == 1:  # several ranks only look it up
                teacher_logits(run, artifacts, runtime)
            require_stated(_checkpoints(run, artifacts, runtime), runtime.root, run.journal(runtime.root))
            origin = weights_origin(run, runtime, training_folder(run, artifacts, runtime))
    if processes > 1:
        _launch(run, artifacts, runtime, processes, words)
        pass_gate(run, artifacts, runtime, again=True)  # hours later: a verdict may have been revoked
        runtime = replace(runtime, make=False)
    recipe = pinned(run)
    suite = partial(_suite, run, artifacts, runtime, run.config.train.sequence_length)
    verdict = verdict_path(artifacts["encode"], run.policy, runtime.root)
    evidence = Input(stage="verdict", digest=sha256_file(verdict), path=str(verdict.relative_to(runtime.root)))
    tables = partial(_tables, run, artifacts, runtime)
    settings = replace(run.settings, origin=origin)
    with _reported(run, artifacts, runtime, opens=False):
        return train(tokens, recipe, settings, runtime, suite=suite, evidence=(evidence,), tables=tables)


def _checkpoints(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime) -> Iterator[Manifest]:
    """Readable checkpoints and native shards that this training may read.

    They are its own, the one that it continues from, and its teacher.
    """
    from pretrain.train import folder_of

    files = sorted(runtime.root.glob(f"checkpoint*/*/{FILE_NAME}"))
    if not files:
        return  # the digests of the recipe's files are not needed
    recipe = pinned(run)
    folder = folder_of(artifacts.get("pack", artifacts["encode"]), recipe, runtime)
    taught_by = recipe.train.distillation.teacher if recipe.train.distillation else ""
    others = {(runtime.root / named).resolve() for named in (recipe.train.continue_from, taught_by) if named}
    for path in files:
        with contextlib.suppress(ManifestError, MissingInput):
            manifest = read_manifest(path)
            key = str(manifest.config.get("train_key", ""))
            if key.startswith(folder.name) or others & {path.resolve(), path.parent.resolve()}:
                yield manifest


def _tables(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime
) -> dict[str, MirrorTable | float | None]:
    """Tables that W&B shows next to the charts."""
    from assay.wandb_tables import mirror_tables

    try:
        bias = {"bias": bias_counts(run, artifacts, replace(runtime, make=False))}
    except MissingInput:
        bias = {}
    return mirror_tables({**artifacts, **bias}, runtime.root)


def require_corpus(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, role: str = "") -> None:
    """Raise unless the token shards are as stated.

    Their manifests are compared with the journal, the shards of `role` with their manifests.

    Raises:
        GateClosed: names each manifest or shard that differs.
    """
    require_chain((artifacts["encode"], *_packed(artifacts)), runtime.root, run.journal(runtime.root))
    listed = [output for one in (artifacts["encode"], *_packed(artifacts)) for output in one.listed(role)]
    if faults := [f"{one.path}: {fault}" for one in listed if (fault := output_fault(one, runtime.root))]:
        raise GateClosed("\n  ".join(["the token shards are not as they were written:", *faults]))


def _suite(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, window: int) -> Suite:
    """The questions of the run, encoded with its tokenizer."""
    from data_pipeline.tokens.tokenizer import load_encoder
    from pretrain.evaluation.scores import encode_tasks

    encode = load_encoder(artifacts["tokenizer"], runtime.root).encode
    return encode_tasks(open_tasks(run.config.evaluation, run.folder), encode, window)


def evaluation(
    run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Path, runtime: Runtime, others: Sequence[Manifest]
) -> tuple[Measurement, list[dict[str, Any]]]:
    """Validation loss and task scores of a checkpoint's mean with `others`.

    Raises:
        GateClosed: the validation shards are not as the journal states them.
    """
    from pretrain.evaluation.validation import evaluate

    require_corpus(run, artifacts, runtime, "validation")
    tokens = artifacts.get("pack", artifacts["encode"])
    suite = partial(_suite, run, artifacts, runtime) if run.config.evaluation.tasks else None
    return evaluate(checkpoint, tokens, run.config.engine, runtime.root, suite, others)


def _launch(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, processes: int, words: Sequence[str]
) -> None:
    """Train in `processes` ranks of this machine, and raise as they do.

    The ranks run no actions of the gate: this process does, once for all of them and their restarts.
    """
    folder = training_folder(run, artifacts, runtime)
    restarts = run.config.engine.restarts
    words = ["train", *words, "--set", "governance.actions=[]"]
    status = launch(processes, words, restarts=restarts, progress_of=partial(progress_in, folder))
    if status == GateClosed.exit_code:
        pass_gate(run, artifacts, runtime, again=True)
    if status == AlteredFile.exit_code:
        from pretrain.data.dataset import altered_shards, refuse_altered

        with _reported(run, artifacts, runtime, opens=False):
            refuse_altered(altered_shards(artifacts.get("pack", artifacts["encode"]), runtime.root, 0, 1))
    if status == Preempted.exit_code:
        raise Preempted("a signal stopped the training processes; what they learned is saved")
    if status == BudgetReached.exit_code:
        raise BudgetReached("the training processes stopped for the energy budget; see their message above")
    if status == Diverged.exit_code:
        raise Diverged("the training diverged; the messages above name the steps and what to do")
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if status != 0:
        failed = PipelineError(f"the training processes ended with status {status}; see their messages above")
        failed.exit_code = status
        raise failed


def model_audit(run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Path, runtime: Runtime) -> Manifest:
    """Make or find a checkpoint's bias measurement."""
    from data_pipeline.tokens.tokenizer import load_encoder
    from pretrain.checkpoint.format import identity_of, read_checkpoint
    from pretrain.evaluation.model_bias import Score, audit_model, scorer_of

    verified = read_checkpoint(checkpoint, runtime.root)
    tokenizer = artifacts["tokenizer"]

    def scorer() -> Score:
        window = identity_of(verified).recipe.train.sequence_length
        encode = load_encoder(tokenizer, runtime.root).encode
        return scorer_of(verified, encode, window, runtime.root, run.config.engine.device)

    bias_of = partial(bias_counts, run, dict(artifacts), runtime)
    return audit_model(verified, tokenizer, scorer, run.config.model_audit, run.folder, runtime, bias_of)


def memorisation(run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Path, runtime: Runtime) -> Manifest:
    """Make or find a checkpoint's memorisation probe.

    Raises:
        GateClosed: a token shard is not as the journal states it.
        CheckpointError: the checkpoint was not trained on the run's token shards.
    """
    from pretrain.checkpoint.format import read_checkpoint
    from pretrain.data.tokenizer_check import refuse_foreign_tokenizer
    from pretrain.inference.loaded_model import load_model
    from pretrain.inference.memorisation import probe_memorisation

    for role in ("train", "validation"):
        require_corpus(run, artifacts, runtime, role)
    verified = read_checkpoint(checkpoint, runtime.root)
    refuse_foreign_tokenizer(verified, artifacts["encode"], runtime.root)
    model = partial(load_model, verified, run.config.engine, runtime.root)
    return probe_memorisation(verified, artifacts["encode"], run.config.memorisation, model, runtime)


def write_report(run: LoadedRun, runtime: Runtime) -> Path:
    """Report on the existing artifacts; the corpus must be complete."""
    _, made = _make_report(run, runtime)
    return runtime.root / made.folder / "report.html"


def write_documents(run: LoadedRun, runtime: Runtime) -> tuple[Path, Path]:
    """Paths of the report's page and of the documents' folder."""
    from governance.reports.documents.all_documents import documents

    artifacts, reported = _make_report(run, runtime)
    made = documents(artifacts, reported, runtime)
    _require_signed((made,), run, runtime)
    return runtime.root / reported.folder / "report.html", runtime.root / made.folder


def corpus_card(run: LoadedRun, runtime: Runtime) -> tuple[str, Manifest]:
    """Card of an admitted corpus, and the artifact of its documents.

    Raises:
        GateClosed: the verdict does not admit the corpus, or a file of it is not what its manifest lists.
        ConfigError: documents are mixed, or hold columns of their rows, which are not redacted.
    """
    from governance.reports.documents.all_documents import read_report
    from governance.reports.documents.corpus_documents import dataset_card
    from governance.reports.documents.evidence import Evidence

    if run.config.data.mix is not None:
        raise ConfigError(
            "data.mix: the mixture repeats and leaves out documents, so the card would count others than are sent. "
            "Push the corpus of a run without [data.mix]"
        )
    if any(source.fields.columns for source in run.config.data.sources):
        raise ConfigError(
            "columns of sources are kept and not redacted, so they are not sent. Push the corpus of a run without "
            "`columns`"
        )
    look = replace(runtime, make=False)
    pass_gate(run, corpus(run, look), look)
    artifacts, reported = _make_report(run, runtime)
    evidence = Evidence(read_report(reported, runtime.root), artifacts, runtime.root)
    if problems := verify(evidence.corpus, runtime.root):
        raise GateClosed(f"the corpus was altered: {'; '.join(problems)}. Remove its folder, then prepare it again")
    return dataset_card(evidence), evidence.corpus


def _make_report(run: LoadedRun, runtime: Runtime) -> tuple[dict[str, Manifest], Manifest]:
    """The artifacts that are there, and the report on them.

    Raises:
        GateClosed: an artifact is not as the journal states it, or a table of the audit, or a shard whose documents it
            shows, was altered: the report, which is signed, would rest on it.
        ManifestError: the energy ledger or the record of a training is not as the journal states it.
    """
    from data_pipeline.pii.detect import replace_all
    from governance.kpi.other_plans import PLAN as KPI_PLAN
    from governance.kpi.other_plans import TEST as KPI_TEST
    from governance.reports.facts.energy_totals import look_up
    from governance.reports.report import report
    from pretrain.inference.memorisation import VERSION as MEMORISATION

    look = replace(runtime, make=False)
    artifacts = corpus(run, look)
    artifacts["audit"], verdict = judge_corpus(run, artifacts, look)
    journal = run.journal(runtime.root)
    artifacts |= _latest_on("data_docs", {artifacts["audit"].as_input()}, runtime.root, journal)
    begun = ""
    try:
        begun = training_folder(run, artifacts, runtime).relative_to(runtime.root).as_posix()
        artifacts["train"] = training(run, artifacts, look)
    except (GateClosed, MissingInput, CheckpointError, ConfigError) as error:
        # Its file may name other files than when it was trained.
        why = "the gate is closed" if isinstance(error, GateClosed) else str(error).splitlines()[0]
        if isinstance(error, MissingInput):
            why = str(error)  # with the trainings that were found
        get_logger(__name__).warning("the report has no training: %s", why)
    if (last := artifacts["train"].stats.get("checkpoint") if "train" in artifacts else None) is not None:
        of_last = Input(stage="checkpoint", digest=last["digest"], path=last["path"])
        probed = _latest_on("memorisation", {of_last, artifacts["encode"].as_input()}, runtime.root, journal)
        artifacts |= {stage: found for stage, found in probed.items() if found.version == MEMORISATION}
        artifacts |= _latest_on(KPI_TEST, {of_last}, runtime.root, journal)
    if KPI_TEST not in artifacts:
        artifacts |= _latest_on(KPI_PLAN, set(), runtime.root, journal)
    require_chain(list(artifacts.values()), runtime.root, journal)
    require_growing(list(artifacts.values()), runtime.root, journal)
    _refuse_altered((artifacts["bias"], artifacts["audit"]), runtime.root)
    factors = look_up(run.config.energy.factors, run.folder, runtime.root)
    try:
        made = report(artifacts, verdict, runtime.root, runtime, replace_all, factors, begun)
    except AlteredFile as error:
        raise GateClosed(f"the report cannot show a file that is not as it was written: {error}") from error
    _require_signed((made,), run, runtime)
    return artifacts, made


def _require_signed(made: Sequence[Manifest], run: LoadedRun, runtime: Runtime) -> None:
    """Raise unless artifacts, made now or before, are as stated."""
    require_chain(made, runtime.root, run.journal(runtime.root))
    _refuse_altered(made, runtime.root)


def _latest_on(kind: str, subjects: set[Input], root: Path, journal: Journal) -> dict[str, Manifest]:
    """The newest stated artifact of a kind on all `subjects`."""
    try:
        stated = latest_statements(journal.verified())
        for path, entry in reversed(list(stated.items())):
            if entry.kind == kind and subjects.issubset(entry.materials) and (root / path).exists():
                found = read_manifest(root / path)
                if faults := [*unstated(found, stated), *verify(found, root)]:
                    raise ManifestError(f"{root / path}: {faults[0]}")
                return {found.stage: found}
    except ManifestError as error:
        get_logger(__name__).warning("the report leaves out %s: %s", kind, error)
    return {}


def whole_way(run: LoadedRun, runtime: Runtime, processes: int, words: Sequence[str]) -> Path:
    """Run everything, from the corpus to the report.

    The report is written even when the gate is closed, training diverges, or its energy budget is exhausted; but not
    of artifacts that are not as they were signed.

    Whatever would refuse the training on this machine is refused before the corpus is made (`start_preflight.py`).

    Raises:
        ConfigError: the settings do not work on so many processes of this machine.
        PipelineError: the model does not fit.
        GateClosed: after the report was written.
        Diverged: after the report was written.
        BudgetReached: after the report was written, if in training; without corpus and verdict there is no report.
    """
    ranks = Ranks(0, processes, 0, processes) if processes > 1 else read_ranks()
    refuse_start(run, runtime, partial(here, run.config.engine, ranks))
    steps = (*stage_names(run.config.data), *(row.name for row in STAGES[len(CORPUS_STAGES) :]))
    with run_steps(steps, earlier_seconds(runtime.root, steps)):
        artifacts = corpus(run, runtime)
        _, verdict = judge_corpus(run, artifacts, runtime)
        if verdict["verdict"] in ("PASS", "WAIVED"):  # a closed gate is explained by the error
            get_logger(__name__).info("%s", explain(verdict))
        try:
            training(run, artifacts, runtime, processes, words)
        except (GateClosed, BudgetReached, Diverged):
            get_logger(__name__).info("report: %s", write_report(run, runtime))
            raise
        return write_report(run, runtime)
