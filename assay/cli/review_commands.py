"""Function behind `assay governance review`."""

from __future__ import annotations

import argparse
import datetime
import sys
from dataclasses import replace

from assay.cli.output import say
from assay.cli.run_commands import command_line, load
from governance.errors import MissingInput


def review(arguments: argparse.Namespace) -> None:
    """Walk the reviewer through the open gates, or withdraw a refusal."""
    if arguments.withdraw:
        _withdraw(arguments)
        return
    from assay.cli.review import Bench, kept_tables, reviewer_key
    from assay.cli.review import review as walk
    from assay.pipeline import corpus, judge_corpus
    from governance.gate.verdict import load_papers
    from governance.gate.waivers import Case

    loaded, runtime = load(arguments, "governance check")
    look = replace(runtime, make=False)
    key = reviewer_key(arguments.key)
    artifacts = corpus(loaded, look)
    checked, verdict = judge_corpus(loaded, artifacts, look)
    config, digest = loaded.config.governance, artifacts["encode"].digest
    papers = load_papers(config, loaded.folder, runtime.root)
    today = datetime.datetime.now(datetime.UTC).date()
    bias = artifacts.get("bias")
    bench = Bench(
        case=Case(loaded.policy, digest, today, papers.submitters, verdict["key_id"]),
        verdict=verdict,
        tables=kept_tables(runtime.root / checked.folder, runtime.root / bias.folder if bias else None),
        root=runtime.root,
        waivers=loaded.folder / config.waivers,
        approvals=loaded.folder / config.approvals,
    )
    if walk(bench, key, sys.stdin, sys.stdout):
        say(f"next: {command_line(arguments, 'governance check')}")


def _withdraw(arguments: argparse.Namespace) -> None:
    """Withdraw a refusal of the run's corpus, by file name."""
    from assay.cli.review import reviewer_key, withdraw
    from assay.pipeline import corpus, journal_of
    from governance.gate.refusals import refusals_of
    from governance.gate.verdict import load_papers
    from governance.gate.waivers import Case

    loaded, runtime = load(arguments, "governance check")
    look = replace(runtime, make=False)
    key, digest = reviewer_key(arguments.key), corpus(loaded, look)["encode"].digest
    papers = load_papers(loaded.config.governance, loaded.folder, runtime.root)
    known = refusals_of(digest, papers, journal_of(loaded, look).verified())
    chosen = [refused for refused in known if refused.name == arguments.withdraw]
    if not chosen:
        names = ", ".join(refused.name for refused in known) or "none"
        raise MissingInput(f"--withdraw {arguments.withdraw}: no such refusal of this corpus; its refusals: {names}")
    case = Case(loaded.policy, digest, datetime.datetime.now(datetime.UTC).date(), papers.submitters)
    for refused in chosen:
        say(f"signed: {withdraw(case, refused, key, arguments.reason, runtime.root)}")
    say(f"next: {command_line(arguments, 'governance check')}")
