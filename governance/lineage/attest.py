"""Attestation: signed journal entries for each artifact of a run.

The journal's keys are those of `[governance]`: it is signed with `signing_key`, and trusted when signed by that key or
by one of `trusted_keys`, or by a job's key that one of them certified.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.errors import ConfigError, GateClosed, ManifestError
from governance.files import sha256_bytes
from governance.gate.site_policy import site_keys, sites
from governance.gate.verdict import Keyring
from governance.hooks import Attest
from governance.log import get_logger
from governance.manifest import Manifest, describe_folder
from governance.signed_notes import NoteSigner
from governance.signing.dsse import (
    PublicKey,
    SigningKey,
    key_bytes,
    key_id,
    private_key,
    sign,
    statement,
    trusted_key,
    verify_envelope,
)
from governance.signing.git_anchor import anchor
from governance.signing.home_anchor import HomeAnchor
from governance.signing.journal import Journal
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.signing.journal_lines import lines_of, parse_line
from governance.signing.openssf import default_model_key_path, model_key, sign_model
from governance.stage import now

MODEL_SIGNATURE = "model-signature"
MIRROR = "wandb"
SHOWN_RUNS = "shown.json"
"""Statement on the files of W&B's runs of the data and of the gate, and the folder that holds them."""
NOTE = "urn:assay:note:1"


def journal_keys(keyring: Keyring) -> Sequence[PublicKey]:
    """Keys whose statements count.

    The trusted ones and, except on a site, the own one if it exists; it must, if it is named and the only one.
    """
    keys = [trusted_key(keyring.folder / name) for name in keyring.config.trusted_keys]
    if bound := sites():
        return keys or site_keys(bound)
    return [*keys, *keyring.own_trusted()] if keyring.own.exists() or not keys else keys


def open_journal(keyring: Keyring, root: Path) -> Journal:
    """The journal of `root`; nothing is read or made yet."""
    return Journal(
        root,
        keyring.signer,
        lambda: journal_keys(keyring),
        anchor(root, keyring.folder if keyring.config.git_note else None),
        HomeAnchor(root),
    )


def refuse_strange_key(keyring: Keyring, root: Path) -> None:
    """Raise where no line of the journal is by our keys.

    Readers that trust the other lines' keys would refuse the whole journal for the next line.

    Raises:
        ConfigError: the journal has lines, and none is by one of these keys.
    """
    path, own = root / JOURNAL, keyring.own
    if own.exists() and private_key(own).certificate is not None:
        return  # its root's other lines need not be by this job
    lines = lines_of(path.read_bytes()) if path.exists() else []
    keys = journal_keys(keyring)
    for line in lines:
        with contextlib.suppress(ManifestError, ValueError, KeyError, TypeError):
            verify_envelope(json.loads(line)["envelope"], keys, JOURNAL)
            return
    if lines:
        there = "" if own.exists() else " (no such file)"
        raise ConfigError(
            f"{path}: none of its {len(lines)} lines is signed with {own}{there}; a line by this key would "
            "close the gate for all who do not trust it. Give the key that the run signs with: --signing-key PATH"
        )


def refuse_unstated(checkpoint: Manifest, keyring: Keyring, root: Path) -> None:
    """Raise where the journal does not state this checkpoint.

    Only lines by our keys count. A copy without its root's journal has nothing to compare.

    Raises:
        GateClosed: the checkpoint was altered, or stated by another key.
    """
    path, keys = root / JOURNAL, journal_keys(keyring)
    lines = lines_of(path.read_bytes()) if path.exists() else []
    for index, line in enumerate(lines):
        entry = parse_line(line, index)
        if entry is not None and entry.subjects.get(checkpoint.path) == checkpoint.digest and entry.states_files:
            with contextlib.suppress(ManifestError):
                verify_envelope(json.loads(line)["envelope"], keys, JOURNAL)
                if entry.seal == checkpoint.seal:
                    return
    if lines:
        raise GateClosed(
            f"{root / checkpoint.folder}: no line of {path} by this key states it as it is. Restore its files, or sign "
            "it with the key that the run signs with: --signing-key PATH"
        )


def attest_with(journal: Journal, keyring: Keyring, root: Path) -> Attest:
    """Hook that states each artifact in the journal.

    Also signs each checkpoint as a model if `model_signing` is set.
    """

    def attest(manifest: Manifest) -> None:
        journal.state_artifact(manifest)
        if manifest.stage == "checkpoint" and (key := model_key_path(keyring)):
            state_model_signature(journal, manifest, key, root)

    return attest


def model_key_path(keyring: Keyring) -> Path | None:
    """Path of the key that signs checkpoints; None: they are not signed.

    Raises:
        ConfigError: the run names a key that does not exist; only the user's own is made on first use.
    """
    config = keyring.config
    if not config.model_signing or not config.model_key:
        return default_model_key_path() if config.model_signing else None
    path = keyring.folder / config.model_key
    key_bytes(path, " Make one: assay governance keygen --model PATH")
    return path


class KeySigner(NoteSigner):
    """Signs notes with the run's key.

    Accepts notes of every key that its journal trusts. Pickled to worker processes without its keys, which are read on
    first use; there, `signer` is the id of the only key that may sign.
    """

    def __init__(self, keyring: Keyring, signer: str = "") -> None:
        self._keyring = keyring
        self._signer = signer
        self._key: SigningKey | None = None
        self._trusted: tuple[bool, Sequence[PublicKey]] | None = None  # with or without the own key, made meanwhile

    def sign(self, name: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Sign content and time under the note's name."""
        subject = {name: sha256_bytes(canonical_json(content))}
        return sign(statement(subject, NOTE, {"content": content, "signed_at": now()}), self._own_key())

    def _own_key(self) -> SigningKey:
        """The run's key, read once.

        Raises:
            ConfigError: this is a worker of another host, which has no key at this path, or another one.
        """
        if self._key is None:
            key = private_key(self._keyring.own, make=False) if self._signer else self._keyring.signer()
            if self._signer and key_id(key.public_key()) != self._signer:
                raise ConfigError(
                    f"{self._keyring.own}: {socket.gethostname()} has another key there than the process that started "
                    "this work. Set governance.signing_key to a file that all nodes see"
                )
            self._key = key
        return self._key

    def open(self, name: str, written: Any) -> Any:
        """Content of a valid signed note; None otherwise."""
        own = self._keyring.own.exists()
        if self._trusted is None or self._trusted[0] != own:
            self._trusted = (own, journal_keys(self._keyring))
        try:
            found, _ = verify_envelope(written, self._trusted[1], name)
        except ManifestError:
            return None
        named = [item["name"] for item in found["subject"]] == [name]
        return found["predicate"]["content"] if named and found["predicateType"] == NOTE else None

    def __reduce__(self) -> tuple[type[KeySigner], tuple[Keyring, str]]:
        return KeySigner, (self._keyring, key_id(self._own_key().public_key()))


def state_model_signature(journal: Journal, manifest: Manifest, key: Path, root: Path) -> str:
    """Write a checkpoint's `model.sig` and state it.

    Returns its path below the root.
    """
    name, digest = sign_model(manifest, model_key(key), root)
    journal.state(MODEL_SIGNATURE, {name: digest}, [manifest.as_input()])
    return name


def state_mirror(journal: Journal, shown: Manifest, root: Path) -> None:
    """State the files of W&B's runs of data and gate.

    `shown` is the artifact that they show: the audit, or the token shards. W&B's process has ended, so they no longer
    change. A file that differs from its statement is not stated again, which would hide the change; only the list of
    shown runs grows.
    """
    known = {
        name: digest for entry in journal.verified() if entry.kind == MIRROR for name, digest in entry.subjects.items()
    }
    files = {file.path: file.sha256 for file in describe_folder(root / MIRROR, root)}
    grown = f"{MIRROR}/{SHOWN_RUNS}"
    if altered := sorted(name for name in files if name != grown and known.get(name, files[name]) != files[name]):
        get_logger(__name__).warning(
            "%d file(s) of W&B's runs differ from their statement in the journal: %s",
            len(altered),
            ", ".join(altered[:3]),
        )
    if new := {name: digest for name, digest in files.items() if known.get(name) != digest and name not in altered}:
        journal.state(MIRROR, new, [shown.as_input()])
