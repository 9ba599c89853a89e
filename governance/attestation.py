"""What a run signs as it goes: its journal opened, and the hook that the stages call with each artifact.

The journal's keys are those of `[governance]`: it is signed with `signing_key`, and believed when signed by that key or
by one of `trusted_keys`, or by a job's key that one of them certified.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from governance.anchors import anchor
from governance.gate import GovernanceConfig
from governance.journal import Journal
from governance.manifest import Manifest
from governance.model_signature import default_model_key_path, model_key, sign_model
from governance.signing import private_key, public_key
from governance.stage import Attest

if TYPE_CHECKING:
    from governance.signing import PublicKey

MODEL_SIGNATURE = "model-signature"


def believed(config: GovernanceConfig, folder: Path) -> Sequence[PublicKey]:
    """The keys whose statements count: the trusted ones, and the signing key's own where it is there."""
    keys = [public_key(folder / name) for name in config.trusted_keys]
    own = config.key_path(folder)
    return [*keys, private_key(own).public_key()] if own.exists() else keys


def open_journal(config: GovernanceConfig, folder: Path, root: Path) -> Journal:
    """The journal of `root`; paths of `config` are relative to `folder`. Nothing is read or made yet."""
    return Journal(
        root,
        lambda: private_key(config.key_path(folder)),
        lambda: believed(config, folder),
        anchor(root, folder if config.git_note else None),
    )


def attest_with(journal: Journal, config: GovernanceConfig, folder: Path, root: Path) -> Attest:
    """The hook: state each artifact in the journal; sign each checkpoint as a model where that is asked for."""

    def attest(manifest: Manifest) -> None:
        journal.state_artifact(manifest)
        if config.model_signing and manifest.stage == "checkpoint":
            state_model_signature(journal, manifest, model_key_path(config, folder), root)

    return attest


def model_key_path(config: GovernanceConfig, folder: Path) -> Path:
    """Where the model key lies."""
    return folder / config.model_key if config.model_key else default_model_key_path()


def state_model_signature(journal: Journal, manifest: Manifest, key: Path, root: Path) -> str:
    """Write a checkpoint's `model.sig` and state it; returns its path below the root."""
    name, digest = sign_model(manifest, model_key(key), root)
    journal.state(MODEL_SIGNATURE, {name: digest}, [manifest.as_input()])
    return name
