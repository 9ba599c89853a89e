"""Report on a run's artifacts, and the documents filled from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.corpus_gate import refuse_altered, require_signed
from governance.errors import AlteredFile, GateClosed, ManifestError
from governance.gate.chain import latest_statements, require_chain, unstated
from governance.kpi.other_plans import PLAN, TEST
from governance.log import get_logger
from governance.manifest import Input, Manifest, read_manifest, verify
from governance.replay.replay_statement import replays
from governance.reports.facts.energy_totals import look_up
from governance.signing.journal import Journal
from governance.stage import Runtime
from governance.verification import require_growing
from pretrain.inference.memorisation import VERSION as MEMORISATION
from pretrain.inference.verbatim_generations import VERSION as VERBATIM


def make_report(
    run: LoadedRun, artifacts: dict[str, Manifest], verdict: Mapping[str, Any], begun: str, runtime: Runtime
) -> Manifest:
    """Report on the artifacts of a run.

    What was measured of the audit and of the last checkpoint is added to `artifacts`. `begun` is the training's folder
    below the root, whether it ended or not.

    Raises:
        GateClosed: an artifact is not as the journal states it, or a table of the audit, or a shard whose documents it
            shows, was altered: the report, which is signed, would rest on it.
        ManifestError: the energy ledger or the record of a training is not as the journal states it.
    """
    from data_pipeline.pii.detect import replace_all
    from governance.reports.facts.report_facts import ReportInputs
    from governance.reports.report import report

    journal = run.journal(runtime.root)
    artifacts |= _measured(artifacts, runtime.root, journal)
    require_chain(list(artifacts.values()), runtime.root, journal)
    require_growing(list(artifacts.values()), runtime.root, journal)
    refuse_altered((artifacts["bias"], artifacts["audit"]), runtime.root)
    factors = look_up(run.config.energy.factors, run.folder, runtime.root)
    try:
        extra = ReportInputs(factors, begun, replays=_replays(artifacts.get("train"), journal))
        made = report(artifacts, verdict, runtime.root, runtime, replace_all, extra)
    except AlteredFile as error:
        raise GateClosed(f"the report cannot show a file that is not as it was written: {error}") from error
    require_signed(made, runtime.root, journal)
    return made


def make_documents(run: LoadedRun, artifacts: Mapping[str, Manifest], reported: Manifest, runtime: Runtime) -> Manifest:
    """Fill the documents from a report.

    Raises:
        GateClosed: they are not as the journal states them.
    """
    from governance.reports.documents.all_documents import documents

    made = documents(artifacts, reported, runtime)
    require_signed(made, runtime.root, run.journal(runtime.root))
    return made


def _replays(train: Manifest | None, journal: Journal) -> tuple[str, ...]:
    """Trainings that the journal states as repetitions of this one."""
    if train is None:
        return ()
    repeated = [facts for facts in replays(journal.verified()) if facts["training"] == train.folder]
    return tuple(dict.fromkeys(Path(facts["replayed"]["path"]).parent.as_posix() for facts in repeated))


def _measured(artifacts: Mapping[str, Manifest], root: Path, journal: Journal) -> dict[str, Manifest]:
    """Newest measurements of the audit and the last checkpoint.

    Data Docs, the memorisation probe, the verbatim share of generations, and the test of KPIs
    (that which decided, if any), or else their plan.
    """
    found = _latest_on("data_docs", {artifacts["audit"].as_input()}, root, journal)
    last = artifacts["train"].stats.get("checkpoint") if "train" in artifacts else None
    if last is not None:
        checkpoint = Input(stage="checkpoint", digest=last["digest"], path=last["path"])
        probed = _latest_on("memorisation", {checkpoint, artifacts["encode"].as_input()}, root, journal)
        traced = _latest_on("verbatim", {checkpoint, artifacts["encode"].as_input()}, root, journal)
        found |= {stage: one for stage, one in probed.items() if one.version == MEMORISATION}
        found |= {stage: one for stage, one in traced.items() if one.version == VERBATIM}
        tested = _latest_on(TEST, {checkpoint}, root, journal, lambda test: test.stats["decision"] != "undecided")
        found |= tested or _latest_on(TEST, {checkpoint}, root, journal)
        found |= _latest_on("training_audit", {checkpoint}, root, journal)
    return found if TEST in found else found | _latest_on(PLAN, set(), root, journal)


def _latest_on(
    kind: str,
    subjects: set[Input],
    root: Path,
    journal: Journal,
    wanted: Callable[[Manifest], bool] = lambda made: True,
) -> dict[str, Manifest]:
    """The newest `wanted` artifact of a kind, stated on all `subjects`."""
    try:
        stated = latest_statements(journal.verified())
        for path, entry in reversed(list(stated.items())):
            if entry.kind == kind and subjects.issubset(entry.materials) and (root / path).exists():
                found = read_manifest(root / path)
                if faults := [*unstated(found, stated), *verify(found, root)]:
                    raise ManifestError(f"{root / path}: {faults[0]}")
                if wanted(found):
                    return {found.stage: found}
    except ManifestError as error:
        get_logger(__name__).warning("the report leaves out %s: %s", kind, error)
    return {}
