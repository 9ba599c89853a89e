"""Handlers of `assay governance review`."""

from __future__ import annotations

import argparse
import datetime
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from assay.cli.output import say
from assay.cli.review import Bench, kept_tables, reviewer_key, withdraw
from assay.cli.run_commands import command_line, load
from assay.config import LoadedRun
from governance.errors import MissingInput
from governance.gate.refusals import refusals_of, unstated_refusals
from governance.gate.verdict import load_statements, statements_in_effect
from governance.gate.waivers import Case
from governance.log import get_logger


def review(arguments: argparse.Namespace) -> None:
    """Walk the reviewer through the open gates, or withdraw a refusal."""
    if arguments.withdraw:
        _withdraw(arguments)
        return
    from assay.cli.review import review as walk
    from assay.pipeline import corpus, judge_corpus

    loaded, runtime = load(arguments, "governance check")
    look = replace(runtime, make=False)
    key = reviewer_key(arguments.key)
    artifacts = corpus(loaded, look)
    checked, verdict = judge_corpus(loaded, artifacts, look)
    config, digest = loaded.config.governance, artifacts["encode"].digest
    statements = load_statements(loaded.gate(runtime.root))
    today = datetime.datetime.now(datetime.UTC).date()
    bias = artifacts.get("bias")
    bench = Bench(
        case=Case(loaded.policy, digest, today, statements.submitters, verdict["key_id"]),
        verdict=verdict,
        tables=kept_tables(runtime.root / checked.folder, runtime.root / bias.folder if bias else None),
        root=runtime.root,
        waivers=loaded.folder / config.waivers,
        approvals=loaded.folder / config.approvals,
    )
    line = command_line(arguments, "governance check")
    talk = sys.stderr if arguments.json else sys.stdout  # a program reads the result alone
    signed = walk(bench, key, sys.stdin, talk, partial(_state, loaded, runtime.root, digest, line))
    if signed or arguments.json:
        say(f"next: {line}", verdict=verdict["verdict"], signed=signed, next=line)


def _state(loaded: LoadedRun, root: Path, corpus: str, line: str, path: Path) -> None:
    """State a new refusal or withdrawal, where this account may."""
    journal = loaded.journal(root)
    gate = loaded.gate(root)
    statements_in_effect(gate, loaded.policy, corpus)
    statements = load_statements(gate)
    if path.name in unstated_refusals(statements, loaded.policy, corpus, journal.verified()):
        get_logger(__name__).warning(
            "%s: the journal does not state it, because the run does not trust this account's key (%s). Until a check "
            "by the run's account has read it, its removal goes unnoticed. Have that account run: %s",
            path.name,
            loaded.keyring.own,
            line,
        )


def _withdraw(arguments: argparse.Namespace) -> None:
    """Withdraw a refusal of the run's corpus, by file name."""
    from assay.pipeline import corpus

    loaded, runtime = load(arguments, "governance check")
    look = replace(runtime, make=False)
    key, digest = reviewer_key(arguments.key), corpus(loaded, look)["encode"].digest
    statements = load_statements(loaded.gate(runtime.root))
    known = refusals_of(digest, statements, loaded.journal(runtime.root).verified())
    chosen = [refused for refused in known if refused.name == arguments.withdraw]
    if not chosen:
        names = ", ".join(refused.name for refused in known) or "none"
        raise MissingInput(f"--withdraw {arguments.withdraw}: no such refusal of this corpus; its refusals: {names}")
    case = Case(loaded.policy, digest, datetime.datetime.now(datetime.UTC).date(), statements.submitters)
    line = command_line(arguments, "governance check")
    for refused in chosen:
        path = withdraw(case, refused, key, arguments.reason, runtime.root)
        say(f"signed: {path}", signed=[path])
        _state(loaded, runtime.root, digest, line, path)
    say(f"next: {line}", next=line)
