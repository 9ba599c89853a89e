"""Attestation: signed journal entries for each artifact of a run.

The journal's keys are those of `[governance]`: it is signed with `signing_key`, and trusted when signed by that key or
by one of `trusted_keys`, or by a job's key that one of them certified.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.config import canonical_json
from governance.errors import ConfigError, GateClosed, ManifestError
from governance.files import sha256_bytes
from governance.gate.site_policy import site_keys, sites
from governance.gate.verdict import GovernanceConfig
from governance.hooks import Attest
from governance.log import get_logger
from governance.manifest import Manifest, describe_folder
from governance.signed_notes import NoteSigner
from governance.signing.dsse import SigningKey, private_key, public_key, sign, statement, verify_envelope
from governance.signing.git_anchor import anchor
from governance.signing.home_anchor import HomeAnchor
from governance.signing.journal import Journal
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.signing.journal_lines import lines_of, parse_line
from governance.signing.openssf import default_model_key_path, model_key, sign_model
from governance.stage import now

if TYPE_CHECKING:
    from governance.signing.dsse import PublicKey

MODEL_SIGNATURE = "model-signature"
MIRROR = "wandb"
SHOWN_RUNS = "shown.json"
"""Statement on the files of W&B's runs of the data and of the gate, and the folder that holds them."""
NOTE = "urn:assay:note:1"


def journal_keys(config: GovernanceConfig, folder: Path) -> Sequence[PublicKey]:
    """The keys whose statements count.

    They are the trusted ones and, except on a site, the signing key's own if it exists.
    """
    keys = [public_key(folder / name) for name in config.trusted_keys]
    if bound := sites():
        return keys or site_keys(bound)
    own = config.key_path(folder)
    return [*keys, private_key(own).public_key()] if own.exists() else keys


def open_journal(config: GovernanceConfig, folder: Path, root: Path) -> Journal:
    """The journal of `root`; paths of `config` are relative to `folder`.

    Nothing is read or made yet.
    """
    return Journal(
        root,
        lambda: private_key(config.key_path(folder)),
        lambda: journal_keys(config, folder),
        anchor(root, folder if config.git_note else None),
        HomeAnchor(root),
    )


def refuse_strange_key(config: GovernanceConfig, folder: Path, root: Path) -> None:
    """Raise where no line of the journal is by our keys.

    Readers that trust the other lines' keys would refuse the whole journal for the next line.

    Raises:
        ConfigError: the journal has lines, and none is by one of these keys.
    """
    path, own = root / JOURNAL, config.key_path(folder)
    if own.exists() and private_key(own).certificate is not None:
        return  # its root's other lines need not be by this job
    lines = lines_of(path.read_bytes()) if path.exists() else []
    keys = journal_keys(config, folder)
    for line in lines:
        with contextlib.suppress(ManifestError, ValueError, KeyError, TypeError):
            verify_envelope(json.loads(line)["envelope"], keys, JOURNAL)
            return
    if lines:
        raise ConfigError(
            f"{path}: none of its {len(lines)} lines is signed with {own}; a line by this key would "
            "close the gate for all who do not trust it. Give the key that the run signs with: --signing-key PATH"
        )


def refuse_unstated(checkpoint: Manifest, config: GovernanceConfig, folder: Path, root: Path) -> None:
    """Raise where the journal does not state this checkpoint.

    Only lines by our keys count. A copy without its root's journal has nothing to compare.

    Raises:
        GateClosed: the checkpoint was altered, or stated by another key.
    """
    path, keys = root / JOURNAL, journal_keys(config, folder)
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


def attest_with(journal: Journal, config: GovernanceConfig, folder: Path, root: Path) -> Attest:
    """The hook: state each artifact in the journal.

    It also signs each checkpoint as a model if `model_signing` is set.
    """

    def attest(manifest: Manifest) -> None:
        journal.state_artifact(manifest)
        if config.model_signing and manifest.stage == "checkpoint":
            state_model_signature(journal, manifest, model_key_path(config, folder), root)

    return attest


def model_key_path(config: GovernanceConfig, folder: Path) -> Path:
    """Path of the model key."""
    return folder / config.model_key if config.model_key else default_model_key_path()


class KeySigner(NoteSigner):
    """Signs notes with the run's key.

    Accepts notes of every key that its journal trusts.

    It is pickled to worker processes without its keys, which are read on first use.

    Args:
        config: names the keys.
        folder: where its paths start.
    """

    def __init__(self, config: GovernanceConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._key: SigningKey | None = None
        self._trusted: tuple[bool, Sequence[PublicKey]] | None = None  # with or without the own key, made meanwhile

    def sign(self, name: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Sign content and time under the note's name."""
        self._key = self._key or private_key(self._config.key_path(self._folder))
        subject = {name: sha256_bytes(canonical_json(content))}
        return sign(statement(subject, NOTE, {"content": content, "signed_at": now()}), self._key)

    def open(self, name: str, written: Any) -> Any:
        """Content of a valid signed note; None otherwise."""
        own = self._config.key_path(self._folder).exists()
        if self._trusted is None or self._trusted[0] != own:
            self._trusted = (own, journal_keys(self._config, self._folder))
        try:
            found, _ = verify_envelope(written, self._trusted[1], name)
        except ManifestError:
            return None
        named = [item["name"] for item in found["subject"]] == [name]
        return found["predicate"]["content"] if named and found["predicateType"] == NOTE else None

    def __reduce__(self) -> tuple[type[KeySigner], tuple[GovernanceConfig, Path]]:
        return KeySigner, (self._config, self._folder)


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
