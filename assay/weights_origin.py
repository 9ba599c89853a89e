"""Origin of the weights that a training starts from: who stated them.

A parent checkpoint (`train.continue_from`) is checked against the journal of its own root, by the keys that this run
trusts; so are the checkpoints of other roots that are evaluated or exported. A folder of weights
(`train.initial_weights`) has no journal: it counts where this root's journal states it as the export of a checkpoint
of this root, or where the hub listed its files. Anything else trains, and the training's record (`run.origin`) and page
one of the report name it as not verified; a policy with `verified_origin` refuses it.

Limit: an account that can write into another root can also remove its journal. Its checkpoints are then not verified,
which only `verified_origin` refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.training_recipe import pinned
from governance.errors import GateClosed, ManifestError
from governance.gate.chain import require_stated
from governance.lineage.attest import open_journal
from governance.manifest import Manifest
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.stage import Runtime
from pretrain.checkpoint.load import parent_of
from pretrain.initial_weights.start import open_weights

EXPORT = "export"
"""Kind of the statement on exported weights."""


def weights_origin(run: LoadedRun, runtime: Runtime) -> dict[str, Any] | None:
    """Origin of a run's first weights; None: they are random.

    Raises:
        GateClosed: the journal of the parent's root does not state it, or no trusted key signed that journal; or the
            origin is not verified, and the policy demands it.
        MissingInput: the parent checkpoint, or the folder of weights, is missing.
        CheckpointError: it is torn, or no checkpoint.
        ConfigError: the weights are of another model.
    """
    recipe = pinned(run)
    if (parent := parent_of(recipe.train, runtime.root)) is not None:
        found = checkpoint_origin(run, parent.manifest, parent.root)
    elif (weights := open_weights(recipe, runtime)) is not None:
        digests = {digest for name, digest in weights.folder.files.items() if name.endswith(".safetensors")}
        found = _of_folder(run, weights.folder.name, weights.folder.address, digests, runtime.root)
    else:
        return None
    if run.policy.verified_origin and not found["verified"]:
        raise GateClosed(
            f"the origin of {found['from']} is not verified ({found['why']}), and the policy {run.policy.name} demands "
            "it (verified_origin). Start from a checkpoint whose root has a journal by a trusted key, from an export "
            "of this root, or from hf://"
        )
    return found


def checkpoint_origin(run: LoadedRun, checkpoint: Manifest, root: Path) -> dict[str, Any]:
    """Origin of a checkpoint by the journal of its own root.

    Raises:
        GateClosed: that journal does not state it, or no trusted key signed that journal.
    """
    name, journal = checkpoint.path, open_journal(run.config.governance, run.folder, root)
    if not journal.path.exists():
        return _origin(name, False, f"its root has no {JOURNAL}")
    try:
        if fault := journal.behind():
            raise GateClosed(f"{journal.path} is behind its anchor: {fault}")
        require_stated([checkpoint], root, journal)
    except ManifestError as error:
        raise GateClosed(
            f"{root / checkpoint.folder}: the journal of its root cannot be trusted: {error}. Add the public key of "
            "its signer to governance.trusted_keys, or restore the journal"
        ) from error
    return _origin(name, True, f"stated by the {JOURNAL} of its root")


def _of_folder(run: LoadedRun, name: str, address: str, digests: set[str], root: Path) -> dict[str, Any]:
    if address:
        return _origin(name, True, f"listed by the hub as {address}")
    try:
        entries = open_journal(run.config.governance, run.folder, root).verified()
    except ManifestError as error:
        raise GateClosed(f"the journal cannot be trusted: {error}") from error
    ours = {digest for entry in entries if entry.kind == "checkpoint" for digest in entry.subjects.values()}
    for entry in entries:
        of_ours = any(item.stage == "checkpoint" and item.digest in ours for item in entry.materials)
        if entry.kind == EXPORT and of_ours and digests and digests <= set(entry.subjects.values()):
            return _origin(name, True, f"stated by the {JOURNAL} of this root as an export")
    return _origin(name, False, f"no line of this root's {JOURNAL} states an export of these files")


def _origin(name: str, verified: bool, why: str) -> dict[str, Any]:
    return {"from": name, "verified": verified, "why": why}
