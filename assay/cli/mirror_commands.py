"""Handlers of `assay mirror ...`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from assay.cli.output import say
from data_pipeline.readers.remote import public_url


def push(arguments: argparse.Namespace) -> None:
    """Send a root to a store."""
    from assay.mirror.root_mirror import push_root

    done = push_root(arguments.folder, arguments.url)
    say(
        f"{public_url(arguments.url)}: {done.files:,} files, {done.bytes / 1e6:,.1f} MB; "
        f"sent {done.sent:,}, {done.sent_bytes / 1e6:,.1f} MB",
        **asdict(done),
    )


def pull(arguments: argparse.Namespace) -> None:
    """Fetch a root from a store."""
    from assay.mirror.root_mirror import pull_root

    done = pull_root(arguments.url, arguments.target)
    say(
        f"{arguments.target}: {done.files:,} files, {done.bytes / 1e6:,.1f} MB, each verified; "
        f"fetched {done.sent:,}, {done.sent_bytes / 1e6:,.1f} MB",
        **asdict(done),
    )
