"""Validity of a verdict: same shards, same policy, latest.

Each function returns the fault as text, or "". A verdict is a file: an account that can write files can restore an
older one, set the clock back, or list a shard twice. So the time is compared with what was signed, the verdict
with the journal, and each shard with the manifest's list. The verdict's digest is that of the bytes that were read: the
file may have been exchanged since.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.errors import ManifestError
from governance.manifest import Manifest
from governance.signing.journal import VERDICT, Journal
from governance.signing.journal_lines import SKEW, JournalEntry, since_clock, stamp

_HEADER_BYTES = 64  # a token shard without a document is its header alone, and equals every other


def clock_fault(moment: datetime.datetime, signed_at: str, journal: Journal) -> str:
    """Fault of a clock that is before something already signed.

    Either this clock is behind, or the signer's was ahead.
    """
    here = f"this machine's clock shows {stamp(moment)}: a clock was moved (see: assay governance clock CONFIG)"
    latest = stamp(moment + SKEW)
    if latest < signed_at:
        return f"it was signed at {signed_at} and {here}"
    last = journal.last_time()
    if latest < last:
        return f"the journal's last line is dated {last} and {here}"
    return ""


def correction_fault(path: Path, digest: str, root: Path, journal: Journal) -> str:
    """Fault of a verdict (its file's digest) before a clock correction."""
    try:
        put_right, since = since_clock(journal.verified())
    except ManifestError as error:
        return f"the journal cannot be trusted: {error}"
    if put_right is None or _stated_in(since, path, root) == digest:
        return ""
    return f"{put_right.place} undid a wrong clock, and it was given before that"


def shard_faults(tokens: Manifest, root: Path) -> str:
    """Fault of token shards: one is missing, or is listed twice."""
    for name, count in Counter(output.path for output in tokens.outputs).items():
        if count > 1:
            return f"{name} is listed {count} times"
    shards = [output for output in tokens.outputs if output.path.endswith(".tokens")]
    if not shards:
        return "it lists no token shard"
    for digest, count in Counter(output.sha256 for output in shards if output.bytes > _HEADER_BYTES).items():
        if count > 1:
            names = ", ".join(output.path for output in shards if output.sha256 == digest)
            return f"{names} are one shard, {count} times"
    for output in tokens.outputs:
        path = root / output.path
        if not path.is_file():
            return f"{output.path} is missing"
        if (found := path.stat().st_size) != output.bytes:
            return f"{output.path} has {found} bytes, the manifest states {output.bytes}"
    return ""


def staleness(verdict: Mapping[str, Any], tokens: Manifest, policy_digest: str, moment: datetime.datetime) -> str:
    """Fault of a verdict that is about something else, or has expired."""
    expected = {tokens.path: tokens.digest, **{output.path: output.sha256 for output in tokens.outputs}}
    if verdict["subjects"] != expected:
        return "it was given for other token shards"
    if verdict["policy"]["digest"] != policy_digest:
        return "it was given under another policy"
    if verdict["expires"] <= stamp(moment):
        return f"it expired on {verdict['expires']}"
    lapsed = [
        item["gate"] for item in verdict["waivers"] if moment.date() > datetime.date.fromisoformat(item["expires"])
    ]
    return f"the waiver of {', '.join(lapsed)} has expired" if lapsed else ""


def replay_fault(path: Path, digest: str, root: Path, journal: Journal) -> str:
    """Fault of a verdict (its file's digest) that another followed."""
    try:
        stated = last_stated(path, root, journal)
    except ManifestError as error:
        return f"the journal cannot be trusted: {error}"
    if not stated:
        return "it is not in the journal"
    return "" if stated == digest else "the journal has a newer one: an older verdict was restored"


def last_stated(path: Path, root: Path, journal: Journal) -> str:
    """The last stated digest of a verdict's file; "" if none."""
    return _stated_in(journal.verified(), path, root)


def _stated_in(entries: Sequence[JournalEntry], path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    stated = (entry.subjects for entry in reversed(entries) if entry.kind == VERDICT)
    return next((subjects[name] for subjects in stated if name in subjects), "")
