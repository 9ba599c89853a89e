"""Certificates: an offline root key vouches for a job's key.

A certificate is an in-toto statement (`urn:assay:certificate:1`) that the root signs in a DSSE envelope of its own:

    {"_type": "https://in-toto.io/Statement/v1", "predicateType": "urn:assay:certificate:1",
     "subject": [{"name": "nightly", "digest": {"sha256": "<the job key's id>"}}],
     "predicate": {"name": "nightly", "role": "job", "public_key": "<base64 of the raw 32 bytes>",
                   "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-01-31T00:00:00Z"}}

Its file is next to the job's key (`<name>.cert`), and each signature of that key carries it, so a reader who trusts the
root's public key needs nothing else. Promise: a certificate has no effect outside its validity and certifies no further
certificate: the chain has two links. Limit: the time is the signer's own claim. A stolen job key can backdate a
statement, but not a journal line (`journal.py`), which is between others.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.errors import ConfigError

PREDICATE_TYPE = "urn:assay:certificate:1"
_FORM = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Certificate:
    """Owner and validity of a key."""

    name: str
    public_key: bytes
    """The raw 32 bytes of an Ed25519 key."""
    not_before: datetime.datetime
    not_after: datetime.datetime

    def covers(self, moment: str) -> bool:
        """Return whether a signature made at `moment` is covered.

        `moment` is ISO 8601 in UTC, to the second; an invalid time is not covered.
        """
        try:
            return self.not_before <= datetime.datetime.strptime(moment, _FORM) <= self.not_after
        except (TypeError, ValueError):
            return False

    @property
    def validity(self) -> str:
        """The period as text."""
        return f"from {self.not_before.strftime(_FORM)} to {self.not_after.strftime(_FORM)}"


def certificate_path(path: Path) -> Path:
    """Path of a key's certificate."""
    return path.with_name(path.name + ".cert")


def certificate_predicate(name: str, public_key: bytes, days: int, start: datetime.datetime) -> dict[str, Any]:
    """Statement of a root about a job's key.

    Raises:
        ConfigError: the name is empty.
    """
    if not name.strip():
        raise ConfigError("--name: a certificate needs the name of its job or person, for example --name nightly")
    return {
        "name": name,
        "role": "job",
        "public_key": base64.b64encode(public_key).decode("ascii"),
        "not_before": start.strftime(_FORM),
        "not_after": (start + datetime.timedelta(days=days)).strftime(_FORM),
    }


def read_certificate(statement: Mapping[str, Any]) -> Certificate | None:
    """The certificate in a verified statement, or None."""
    try:
        predicate = statement["predicate"]
        if statement["predicateType"] != PREDICATE_TYPE:
            return None
        return Certificate(
            name=str(predicate["name"]),
            public_key=base64.b64decode(predicate["public_key"], validate=True),
            not_before=datetime.datetime.strptime(predicate["not_before"], _FORM),
            not_after=datetime.datetime.strptime(predicate["not_after"], _FORM),
        )
    except (KeyError, TypeError, ValueError):
        return None
