"""Gate of a run: the verdict, its report, and checks for alterations."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from governance.errors import AlteredFile, GateClosed
from governance.gate.chain import require_chain
from governance.gate.gate_actions import GateEvent, run_actions
from governance.gate.verdict import require_open
from governance.manifest import Manifest, output_fault, verify
from governance.signing.journal import Journal
from governance.stage import Runtime, now
from pretrain.distributed.process_group import read_ranks


def pass_gate(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime) -> dict[str, Any]:
    """The verdict that lets exactly these token shards through, now.

    Raises:
        GateClosed: no verdict lets these shards through.
    """
    with report_decision(run, artifacts, runtime):
        return require_verdict(run, artifacts, runtime)


def require_verdict(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime) -> dict[str, Any]:
    """The verdict as `pass_gate` gives it, without a report.

    Raises:
        GateClosed: no verdict lets these shards through.
    """
    return require_open(
        artifacts["encode"], run.policy, run.gate(runtime.root), packed_rows(artifacts), record=runtime.make
    )


@contextlib.contextmanager
def report_decision(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, *, when_open: bool = True
) -> Iterator[None]:
    """Report the gate's decision by the run file's actions and W&B.

    A `GateClosed` or an `AlteredFile` of the context closes the gate; its success opens it, which is reported unless
    `when_open` is false. The first rank reports for all; a look-up reports nothing. W&B already shows a verdict that
    does not open (`judge_corpus`), so here its alert is for every other cause.
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
    if when_open:
        report("open", "the verdict lets this corpus through")


def packed_rows(artifacts: Mapping[str, Manifest]) -> tuple[Manifest, ...]:
    """The packed rows, where the run has them."""
    return (artifacts["pack"],) if "pack" in artifacts else ()


def require_corpus(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, *roles: str) -> None:
    """Raise unless the token shards are as stated.

    Their manifests are compared with the journal, the shards of `roles` with their manifests.

    Raises:
        GateClosed: names each manifest or shard that differs.
    """
    stated = (artifacts["encode"], *packed_rows(artifacts))
    require_chain(stated, runtime.root, run.journal(runtime.root))
    listed = [output for manifest in stated for role in roles for output in manifest.listed(role)]
    if faults := [f"{one.path}: {fault}" for one in listed if (fault := output_fault(one, runtime.root))]:
        raise GateClosed("\n  ".join(["the token shards are not as they were written:", *faults]))


_REMEDIES = {"report": ("report was", "write it"), "documents": ("documents were", "write them")}
_REMEDIES |= dict.fromkeys(("bias", "audit"), ("audit's results were", "audit"))
_REMEDIES |= {stage: (f"report on {stage} was", "run the command") for stage in ("claims", "scaling", "mixture")}
"""Stage -> subject of its fault, and what to do again."""


def refuse_altered(made: Sequence[Manifest], root: Path) -> None:
    """Refuse artifacts of the audit or the report whose files were altered.

    Raises:
        GateClosed: a file differs from its manifest.
    """
    for manifest in made:
        if problems := verify(manifest, root):
            subject, remedy = _REMEDIES[manifest.stage]
            raise GateClosed(
                f"the {subject} altered: {'; '.join(problems)}. Remove {root / manifest.folder}, then {remedy} again"
            )


def require_signed(made: Manifest, root: Path, journal: Journal) -> None:
    """Raise unless an artifact, made now or before, is as stated.

    Raises:
        GateClosed: it or a file of it differs.
    """
    require_chain((made,), root, journal)
    refuse_altered((made,), root)
