"""Signed statements: waivers, refusals, withdrawals, policy approvals; one file each.

A signed statement is an in-toto statement in a DSSE envelope (`governance.signing.dsse`) about one digest; its
predicate names the person and carries the person's public key. Promise: reading a folder hides none. A statement whose
signature does not hold, or that cannot be read, comes back with its fault, and the reader decides what that closes.

The key in the statement only identifies the key that signed it. The policy decides whether it is the person's: it must
be the key that `[people]` gives to the name.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from governance.config import Section, validate
from governance.errors import ConfigError, GateClosed, ManifestError
from governance.files import write_json
from governance.signing.dsse import key_id, public_key_of, read_envelope, sign, statement, verify_envelope
from governance.stage import now


class Signed(Section):
    """Fields of every signed statement: who, why, when."""

    approver: str = Field(min_length=1)
    """The person, by name in `[people]`."""
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The person's public key, raw, in hexadecimal."""
    reason: str = Field(min_length=10)
    """For the reader of the report."""
    signed_at: str = Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")
    """UTC."""


@dataclass(frozen=True)
class SignedStatement:
    """One file of a folder of statements."""

    name: str
    """The file's name."""
    sha256: str
    kind: str
    """The predicate's type; empty when it cannot be read."""
    subject: str
    """The digest that it is about; empty when it cannot be read."""
    content: Signed | None
    """None when it cannot be read."""
    signer: str
    """The id of the key that signed it; empty when the signature does not hold."""
    fault: str
    """Reason why it cannot be read or trusted; empty when it can."""
    folder: Path = Path()
    """The folder that it was read from."""


def write_statement(path: Path, kind: str, subject: tuple[str, str], content: Signed, key: Any) -> None:
    """Sign `content` about `subject` with a private key and write it."""
    name, digest = subject
    write_json(path, sign(statement({name: digest}, kind, content.model_dump(mode="json")), key))


def signature_fields(approver: str, reason: str, key: Any) -> dict[str, str]:
    """The fields of `Signed` for a statement that is written now."""
    return {
        "approver": approver,
        "reason": reason,
        "key": key.public_key().public_bytes_raw().hex(),
        "signed_at": now(),
    }


def read_statements(folder: Path, kinds: Mapping[str, type[Signed]]) -> tuple[SignedStatement, ...]:
    """Every `*.json` (or `*.JSON`) of a folder, in name order.

    A missing folder holds none.

    Args:
        folder: the folder of statements.
        kinds: the types of this folder -> the shape of each.

    Raises:
        GateClosed: the folder cannot be read; it may hold a refusal.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".json"))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise GateClosed(f"{folder}: cannot be read ({error.strerror}); it may hold a refusal") from error
    return tuple(replace(_read(folder / name, kinds), folder=folder) for name in names)


def _read(path: Path, kinds: Mapping[str, type[Signed]]) -> SignedStatement:
    name = path.name.encode("utf-8", "backslashreplace").decode("utf-8")  # it may hold bytes that are not UTF-8
    sha256 = ""
    try:
        envelope, sha256 = read_envelope(path)
        kind, subject, content = _parsed(envelope, kinds, name)
    except (ConfigError, ManifestError) as error:
        words = str(error).removeprefix(f"{path}: ")
        return SignedStatement(name, sha256, "", "", None, "", f"cannot be read: {' '.join(words.split())}")
    try:
        _, signer = verify_envelope(envelope, [public_key_of(bytes.fromhex(content.key))], name)
    except (ManifestError, ConfigError):
        return SignedStatement(name, sha256, kind, subject, content, "", "its signature does not hold")
    return SignedStatement(name, sha256, kind, subject, content, signer, "")


def _parsed(envelope: Any, kinds: Mapping[str, type[Signed]], name: str) -> tuple[str, str, Signed]:
    """Claims of a statement before its signature is verified."""
    try:
        claimed = json.loads(base64.b64decode(envelope["payload"], validate=True))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"is not a signed envelope ({type(error).__name__})") from error
    try:
        kind, predicate = claimed["predicateType"], claimed["predicate"]
        [subject] = [item["digest"]["sha256"] for item in claimed["subject"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("is not a statement about one digest") from error
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"is a {kind!r}; this folder holds {', '.join(sorted(kinds))}")
    if not isinstance(predicate, Mapping) or not isinstance(subject, str):
        raise ConfigError("is not a statement about one digest")
    return kind, subject, validate(predicate, kinds[kind], name)


def person_fault(
    signed: SignedStatement, content: Signed, people: Mapping[str, str], submitters: tuple[str, ...]
) -> str:
    """Reason why a statement does not count as its person's; else ""."""
    person = content.approver
    if signed.fault:
        return signed.fault
    if person not in people:
        return f"{person} is not in [people] of the policy"
    if people[person] != signed.signer:
        return f"it is signed by the key {signed.signer[:16]}…, which is not {person}'s own"
    if person in submitters:
        return f"{person} submitted this run, and must not approve it"
    return ""


def submitters(named: str) -> tuple[str, ...]:
    """Submitters of this run: the configured name and the running account.

    A name in the configuration is added, it does not replace the account: otherwise the writer of the file could name
    another person. In a Slurm job the account comes from Slurm.
    """
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without a name for this number
        account = f"uid {os.getuid()}"
    names = (named, account, os.environ.get("SLURM_JOB_USER", ""))
    return tuple(sorted({name for name in names if name}))


def signer_id(key: Any) -> str:
    """The id of a private key's public half."""
    return key_id(key.public_key())
