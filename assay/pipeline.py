"""The whole run as a call graph: corpus, audit, verdict, training, report.

Each function takes a `LoadedRun` and a `Runtime`, and finds or makes its part of the run. Only the order of the parts
is here; the work is in the modules that are called: `data_pipeline/prepare.py`, `corpus_audit.py`, `corpus_gate.py`,
`pretrain/train.py` and `run_report.py`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from assay.checkpoint_evaluation import task_suite
from assay.config import LoadedRun
from assay.corpus_audit import audit_and_decide, bias_counts, check_audit_inputs
from assay.corpus_gate import report_decision, require_verdict
from assay.planning.first_estimate import expected_seconds
from assay.run_report import make_report
from assay.start_preflight import (
    local_hardware,
    refuse_start,
    require_site_rules,
    warn_of_expectations,
    warn_of_licences,
)
from assay.teacher_draws import teacher_logits
from assay.training_recipe import pinned, refuse_few_rows, training_folder, training_rows
from assay.weights_origin import weights_origin
from data_pipeline.prepare import prepare, stage_names
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
from governance.gate.chain import require_stated
from governance.gate.explanation import explain
from governance.gate.verdict import verdict_path
from governance.lineage.attest import model_key_path
from governance.log import get_logger, run_steps
from governance.manifest import FILE_NAME, Input, Manifest, read_manifest
from governance.stage import Runtime
from governance.stage_order import CORPUS_STAGES, STAGES
from pretrain.distributed.launcher import launch, progress_in
from pretrain.distributed.process_group import Ranks, read_ranks
from pretrain.evaluation.tasks import open_tasks
from pretrain.loss_spikes import Diverged
from pretrain.metrics.run_identity import MirrorTable
from pretrain.preflight.compatibility import faults_of
from pretrain.preflight.hardware import Hardware
from pretrain.train import folder_of, train


def run_all(run: LoadedRun, runtime: Runtime, processes: int, argv: Sequence[str]) -> Path:
    """Run everything, from the corpus to the report.

    The report is written even if the gate is closed, the training diverges or its energy budget is exhausted; but not
    if an artifact differs from what was signed.

    Checks that would refuse the training on this machine run before the corpus is made (`start_preflight.py`).

    Raises:
        ConfigError: the settings do not work on this many processes of this machine.
        PipelineError: the model does not fit.
        GateClosed: after the report was written.
        Diverged: after the report was written.
        BudgetReached: after the report was written, if in training; without corpus and verdict there is no report.
    """
    ranks = Ranks(0, processes, 0, processes) if processes > 1 else read_ranks()
    refuse_start(run, runtime, partial(local_hardware, run.config.engine, ranks))
    steps = (*stage_names(run.config.data), *(row.name for row in STAGES[len(CORPUS_STAGES) :]))
    with run_steps(steps, expected_seconds(run, runtime, steps, ranks)):
        artifacts = corpus(run, runtime)
        refuse_few_rows(run, artifacts)
        _, verdict = judge_corpus(run, artifacts, runtime)
        if verdict["verdict"] in ("PASS", "WAIVED"):  # a closed gate is explained by the error
            get_logger(__name__).info("%s", explain(verdict))
        try:
            training(run, artifacts, runtime, processes, argv)
        except (GateClosed, BudgetReached, Diverged):
            get_logger(__name__).info("report: %s", write_report(run, runtime))
            raise
        return write_report(run, runtime)


def corpus(run: LoadedRun, runtime: Runtime) -> dict[str, Manifest]:
    """Every artifact of the corpus, by stage.

    Files that later sections name are read now, so that a mistake in them fails before hours of work.
    """
    if runtime.make:
        require_site_rules(run)
        warn_of_licences(run)
        if runtime.mode != "share":  # once, not in each task of an array
            warn_of_expectations(run, runtime)
        check_audit_inputs(run, runtime)
        resolve(run.config.energy.factors, run.folder)
        open_tasks(run.config.evaluation, run.folder)
    artifacts = prepare(run.config.data, run.folder, runtime)
    if run.config.governance.receipts and runtime.make and runtime.mode != "share":
        from assay.receipts.corpus_names import corpus_tree

        corpus_tree(artifacts["encode"], runtime, run.journal(runtime.root))
    return artifacts


def judge_corpus(run: LoadedRun, artifacts: dict[str, Manifest], runtime: Runtime) -> tuple[Manifest, dict[str, Any]]:
    """Audit the corpus, decide, and sign: the audit's manifest and the verdict.

    The bias count tables are added to `artifacts`.

    Raises:
        GateClosed: a manifest is not as it was stated; a file that a check reads, or of the audit, was altered; or the
            run is not under its site's rules.
    """
    with report_decision(run, artifacts, runtime, when_open=False):
        checked, verdict = audit_and_decide(run, artifacts, runtime)
    if runtime.make and run.config.tracking.mode != "disabled":
        from assay.wandb_runs import show_data_and_gate

        show_data_and_gate(run, {**artifacts, "audit": checked}, verdict, runtime, run.journal(runtime.root))
    return checked, verdict


def training(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, processes: int = 1, argv: Sequence[str] = ()
) -> Manifest:
    """Train after the gate has opened, or find the finished run.

    A single process trains here (as one rank of several under torchrun). More processes are launched, with `argv` as
    their configuration. The verdict covers the token shards. Packed rows are an index of them: the trainer opens the
    shards from which the index was made, and compares both with their digests.

    Raises:
        GateClosed: the verdict does not let this corpus through, the journal never stated a checkpoint as it is, or
            the origin of the parent is refused (`weights_origin.py`); no step is computed.
    """
    verdict, origin = _admit(run, artifacts, runtime)
    if processes > 1:
        _launch(run, artifacts, runtime, processes, argv)
        runtime = replace(runtime, make=False)
    recipe = pinned(run)
    suite = partial(task_suite, run, artifacts, runtime, recipe.evaluation, run.config.train.sequence_length)
    path = verdict_path(artifacts["encode"], run.policy, runtime.root)
    evidence = Input(stage="verdict", digest=verdict["file_sha256"], path=str(path.relative_to(runtime.root)))
    tables = partial(_tables, run, artifacts, runtime)
    settings = replace(run.settings, origin=origin)
    with report_decision(run, artifacts, runtime, when_open=False):
        return train(
            training_rows(artifacts), recipe, settings, runtime, suite=suite, evidence=(evidence,), tables=tables
        )


def _admit(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The opening verdict, and the weights' origin (None in a look-up)."""
    tokens, origin = training_rows(artifacts), None
    with report_decision(run, artifacts, runtime):
        verdict = require_verdict(run, artifacts, runtime)
        if tokens.stage == "pack" and [item.digest for item in tokens.inputs] != [artifacts["encode"].digest]:
            raise GateClosed(
                f"{tokens.path}: its rows are from other token shards than those of the verdict. Remove its folder, "
                "then: assay data prepare CONFIG"
            )
        if runtime.make:
            model_key_path(run.keyring)  # a mistyped one would end the training at its first checkpoint
            alone = read_ranks().world_size == 1  # several ranks only look the draws up
            teacher_logits(run, artifacts, replace(runtime, make=alone))
            require_stated(_checkpoints(run, artifacts, runtime), runtime.root, run.journal(runtime.root))
            origin = weights_origin(run, runtime, training_folder(run, artifacts, runtime))
    return verdict, origin


def _checkpoints(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime) -> Iterator[Manifest]:
    """Readable checkpoints and native shards that this training may read.

    These are its own, the one that it continues from, and its teacher.
    """
    files = sorted(runtime.root.glob(f"checkpoint*/*/{FILE_NAME}"))
    if not files:
        return  # the digests of the recipe's files are not needed
    recipe = pinned(run)
    folder = folder_of(training_rows(artifacts), recipe, runtime)
    taught_by = recipe.train.distillation.teacher if recipe.train.distillation else ""
    others = {(runtime.root / named).resolve() for named in (recipe.train.continue_from, taught_by) if named}
    for path in files:
        with contextlib.suppress(ManifestError, MissingInput):
            manifest = read_manifest(path)
            key = str(manifest.config.get("train_key", ""))
            if key.startswith(folder.name) or others & {path.resolve(), path.parent.resolve()}:
                yield manifest


_STOPS: dict[type[PipelineError], str] = {
    Preempted: "a signal stopped the training processes; their progress is saved",
    BudgetReached: "the training processes stopped for the energy budget; see their message above",
    Diverged: "the training diverged; the messages above name the steps and what to do",
}
"""Ways in which a training ends that its ranks have explained already."""


def _launch(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, processes: int, argv: Sequence[str]
) -> None:
    """Train in `processes` ranks of this machine, and raise as they do.

    This process runs the gate's actions, once for all ranks and restarts; the ranks run none.
    """
    folder = training_folder(run, artifacts, runtime)
    if not (folder / FILE_NAME).exists():
        _refuse_ranks(run, processes)
    argv = ["train", *argv, "--set", "governance.actions=[]"]
    status = launch(processes, argv, restarts=run.config.engine.restarts, progress_of=partial(progress_in, folder))
    with report_decision(run, artifacts, runtime, when_open=False):
        if status in (0, GateClosed.exit_code):
            require_verdict(run, artifacts, runtime)  # hours later: a verdict may have been revoked
        if status == GateClosed.exit_code:  # for another cause than the verdict, such as an altered checkpoint
            raise GateClosed("the training processes found the gate closed; see their messages above")
        if status == AlteredFile.exit_code:
            from pretrain.data.dataset import altered_shards, refuse_altered

            refuse_altered(altered_shards(training_rows(artifacts), runtime.root, 0, 1))
    for stop, message in _STOPS.items():
        if status == stop.exit_code:
            raise stop(message)
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if status != 0:
        failed = PipelineError(f"the training processes ended with status {status}; see their messages above")
        failed.exit_code = status
        raise failed


def _refuse_ranks(run: LoadedRun, processes: int) -> None:
    """Refuse settings that the ranks would refuse, before they import torch.

    Raises:
        ConfigError: such as a batch that does not divide.
    """
    device = run.config.engine.device
    place = Hardware(Ranks(0, processes, 0, processes), None if device == "auto" else device)
    if faults := faults_of(run.config.recipe, run.settings, place):
        raise ConfigError("\n".join(faults))


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


def write_report(run: LoadedRun, runtime: Runtime) -> Path:
    """Report on the existing artifacts; the corpus must be complete.

    Returns the path of its page.

    Raises:
        GateClosed, ManifestError: as `make_report`.
    """
    _, reported = report_run(run, runtime)
    return runtime.root / reported.folder / "report.html"


def report_run(run: LoadedRun, runtime: Runtime) -> tuple[dict[str, Manifest], Manifest]:
    """Find a run's artifacts and report on them; return both.

    Without a training, the report is on the corpus and the verdict.

    Raises:
        GateClosed, ManifestError: as `make_report`.
        MissingInput: a stage of the corpus, or the verdict, is missing.
    """
    look = replace(runtime, make=False)
    artifacts = corpus(run, look)
    artifacts["audit"], verdict = judge_corpus(run, artifacts, look)
    begun = ""
    if not run.source.has_model:
        return artifacts, make_report(run, artifacts, verdict, begun, runtime)
    try:
        begun = training_folder(run, artifacts, runtime).relative_to(runtime.root).as_posix()
        artifacts["train"] = training(run, artifacts, look)
    except (GateClosed, MissingInput, CheckpointError, ConfigError) as error:
        # The run's file may name other files than when it was trained.
        if isinstance(error, GateClosed):
            why = "the gate is closed"
        elif isinstance(error, MissingInput):
            why = str(error)  # with the trainings that were found
        else:
            why = str(error).splitlines()[0]
        get_logger(__name__).warning("the report has no training: %s", why)
    return artifacts, make_report(run, artifacts, verdict, begun, runtime)
