"""W&B runs of the data and of the gate's decision.

A corpus that the gate stopped thus appears at W&B, next to those that were trained on, in one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.training_recipe import training_rows
from assay.wandb_tables import mirror_tables
from governance.config import canonical_json
from governance.files import sha256_bytes
from governance.gate.explanation import reason_words
from governance.lineage.attest import state_mirror
from governance.log import get_logger
from governance.manifest import Manifest
from governance.signing.journal import Journal
from governance.stage import Runtime
from pretrain.config.training import TrackingConfig
from pretrain.metrics.run_identity import MirrorTable
from pretrain.metrics.wandb import FOLDER, FinishedRun, group_of, show_finished


def show_data_and_gate(
    run: LoadedRun, artifacts: Mapping[str, Manifest], verdict: Mapping[str, Any], runtime: Runtime, journal: Journal
) -> None:
    """Show the corpus with its tables, and the verdict with its reasons.

    A closed gate alerts. The journal states the files that W&B wrote. A fault is a warning: no mirror stops a run.
    """
    try:
        if _show(run, artifacts, verdict, runtime):
            state_mirror(journal, artifacts["audit"], runtime.root)
    except Exception as error:
        get_logger(__name__).warning("W&B does not show the data and the gate (%s)", error)


def show_closing(
    tracking: TrackingConfig, tokens: Manifest, message: str, root: Path, open_journal: Callable[[], Journal]
) -> None:
    """Show a gate that is closed for another cause than its verdict.

    An altered file or a waiver that no longer holds closes it. The same message on the same corpus is shown once. A
    fault is a warning.
    """
    identity = sha256_bytes(canonical_json({"closed": message, "of": tokens.digest}))
    shards = {"digest": tokens.digest, "path": tokens.path}
    summary: dict[str, MirrorTable | float | str | None] = {
        "gate/verdict": "CLOSED",
        "gate/open": 0.0,
        "gate/reasons": MirrorTable(("reason",), [(message,)]),
    }
    closing = FinishedRun("gate", f"gate-{tokens.digest[:8]}", identity, {"tokens": shards}, summary, message)
    try:
        if show_finished(root / FOLDER, tracking, group_of(tokens.digest), [closing]):
            state_mirror(open_journal(), tokens, root)
    except Exception as error:
        get_logger(__name__).warning("W&B does not show that the gate is closed (%s)", error)


def _show(run: LoadedRun, artifacts: Mapping[str, Manifest], verdict: Mapping[str, Any], runtime: Runtime) -> bool:
    tokens = training_rows(artifacts)
    tables = mirror_tables(artifacts, runtime.root)
    data: dict[str, MirrorTable | float | str | None] = {
        name: value for name, value in tables.items() if not name.startswith("bias/")
    }
    shards = {"digest": tokens.digest, "path": tokens.path}
    decision = str(verdict["verdict"])
    reasons = [reason_words(reason) for reason in verdict["reasons"]]
    closing = [reason_words(reason) for reason in verdict["reasons"] if reason["closes"]]
    opened = decision in ("PASS", "WAIVED")
    gate: dict[str, MirrorTable | float | str | None] = {
        "gate/verdict": decision,
        "gate/open": float(opened),
        "gate/reasons": MirrorTable(("reason",), [(reason,) for reason in reasons]),
        **{name: value for name, value in tables.items() if name.startswith("bias/")},
    }
    identity = sha256_bytes(canonical_json({"policy": verdict["policy"], "verdict": decision, "of": tokens.digest}))
    return show_finished(
        runtime.root / FOLDER,
        run.config.tracking,
        group_of(tokens.digest),
        [
            FinishedRun("data", f"data-{tokens.digest[:8]}", tokens.digest, {"tokens": shards}, data),
            FinishedRun(
                "gate",
                f"gate-{tokens.digest[:8]}",
                identity,
                {"tokens": shards, "policy": verdict["policy"], "audit": verdict["audit"]},
                gate,
                "" if opened else f"{decision}: {'; '.join(closing)}",
            ),
        ],
    )
