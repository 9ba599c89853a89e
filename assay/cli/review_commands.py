"""Function behind `assay governance review`."""

from __future__ import annotations

import argparse
import datetime
import sys
from dataclasses import replace

from assay.cli.output import say
from assay.cli.run_commands import command_line, load


def review(arguments: argparse.Namespace) -> None:
    """Walk the reviewer through the open gates of a run's verdict."""
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
