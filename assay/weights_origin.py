"""Origin of the weights that a training starts from: who stated them.

A parent checkpoint (`train.continue_from`) is checked against the journal of its own root, by the keys that this run
trusts; so are checkpoints that are evaluated or exported. A folder of weights (`train.initial_weights`) has no journal:
it counts where this root's journal states it as the export of a checkpoint of this root, where the statement that
`assay export` left in it for other roots does so by those keys, or where the hub listed its files. Anything else
trains, and the training's record (`run.origin`) and page one of the report name it as not verified; a policy with
`verified_origin` refuses it.

The checkpoint of an export goes with the origin (`exports`, by the folder's digest), so that lineage and energy of the
child reach it.

An origin goes with the weights. Each checkpoint's signed `run` block has the origin of the weights that its training
started from, and each export's statement that of its checkpoint, so one unverified ancestor is enough. It enters no key
and no digest.

It is decided before the first step. A training that is finished, or that resumes, takes it from its own signed records:
its key holds the digest of what it started from, so the parent's root is not needed again.

Limit: an account that can write into another root can also remove its journal. Its checkpoints are then not verified,
which only `verified_origin` refuses.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.training_recipe import pinned
from governance.errors import GateClosed, ManifestError, MissingInput
from governance.gate.chain import require_stated, require_whole
from governance.gate.verdict import Keyring
from governance.lineage.attest import journal_keys, open_journal
from governance.manifest import EXPORTS, FILE_NAME, Input, Manifest, read_manifest
from governance.regular_files import read_whole
from governance.signing.dsse import verify_envelope
from governance.signing.journal import Journal
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.signing.journal_lines import JournalEntry
from governance.stage import Runtime
from pretrain.checkpoint.load import parent_of
from pretrain.distillation.teacher import named_teacher
from pretrain.initial_weights.folder import STATEMENT
from pretrain.initial_weights.hub_weights import HUB
from pretrain.initial_weights.start import InitialWeights, open_weights

EXPORT = "export"
"""Kind of the statement on exported weights."""
_CHECKPOINT = re.compile(r"checkpoint/[0-9a-f]+/manifest\.json")


def weights_origin(run: LoadedRun, runtime: Runtime, folder: Path | None = None) -> dict[str, Any] | None:
    """Origin of a run's first weights and of its teacher.

    Returns None where the weights are random and there is no teacher, and the unverified one of two origins, if
    any. `folder` is that of the training, if its key is known.

    Raises:
        GateClosed: the journal of the parent's root does not state it, or no trusted key signed that journal; or the
            origin is not verified, and the policy demands it.
        MissingInput: the parent checkpoint, the folder of weights, or the teacher is missing.
        CheckpointError: it is torn, or not a checkpoint.
        ConfigError: the weights belong to another model.
    """
    recipe = pinned(run)
    named = (parent_of(recipe.train, runtime.root), open_weights(recipe, runtime), named_teacher(recipe, runtime))
    held = [one for one in named if one is not None]
    if not held:
        return None

    def decide() -> dict[str, Any]:
        found = [
            _folder_origin(run, one, runtime.root)
            if isinstance(one, InitialWeights)
            else checkpoint_origin(run, one.manifest, one.root, runtime.root)
            for one in held
        ]
        exports = {digest: inputs for origin in found for digest, inputs in origin.get(EXPORTS, {}).items()}
        chosen = next((origin for origin in found if not origin["verified"]), found[0])
        return chosen | {EXPORTS: exports} if exports else chosen

    earlier = list(_recorded(run, runtime.root, folder)) if folder is not None else []
    known = next((origin for origin in earlier if origin["verified"]), None)
    if known is not None:
        return known
    if earlier and not run.policy.verified_origin:
        return earlier[0]
    found = decide()
    refuse_unverified(run, found)
    return found


def refuse_unverified(run: LoadedRun, origin: dict[str, Any]) -> None:
    """Raise where the policy demands an origin that is not verified.

    Raises:
        GateClosed: names the policy.
    """
    if run.policy.verified_origin and not origin["verified"]:
        raise GateClosed(
            f"the origin of {origin['from']} is not verified ({origin['why']}), and the policy {run.policy.name} "
            "demands it (verified_origin). Take a checkpoint whose root, and those of its ancestors, have a journal by "
            f"a trusted key, an export of one from this root, or a model that {HUB} lists"
        )


def checkpoint_origin(run: LoadedRun, checkpoint: Manifest, root: Path, own_root: Path) -> dict[str, Any]:
    """Origin of a checkpoint of `root`, by the journal there.

    Raises:
        GateClosed: that journal does not state it, or no trusted key signed that journal.
    """
    name, own = checkpoint.path, root.resolve() == own_root.resolve()
    journal = run.journal(own_root) if own else open_journal(_parents_keyring(run), root)
    if not journal.path.exists():
        return _origin(name, False, f"its root has no {JOURNAL}")
    try:
        require_whole(journal)
        require_stated([checkpoint], root, journal)
        before = _signed_origin(checkpoint, journal)
    except ManifestError as error:
        raise GateClosed(
            f"{root / checkpoint.folder}: the journal of its root cannot be trusted: {error}. Restore the journal, or, "
            "if you trust its signer's trainings, add the public key to governance.parent_keys"
        ) from error
    if len(checkpoint.inputs) < 2:  # the token shards alone: its training started from random weights
        return _origin(name, True, f"stated by the {JOURNAL} of its root")
    if before is None:
        return _origin(name, False, "no signed record has the origin of the weights that its training started from")
    if not before["verified"]:
        return _origin(name, False, f"its training started from {before['from']}: {before['why']}")
    return _origin(name, True, f"stated by the {JOURNAL} of its root, and so are its ancestors")


def _signed_origin(manifest: Manifest, journal: Journal) -> dict[str, Any] | None:
    """Origin in a manifest's `run` block, if a statement holds its seal."""
    seals = {line.seal for line in journal.verified() if line.subjects.get(manifest.path) == manifest.digest}
    return manifest.run.get("origin") if manifest.seal in seals else None


def _recorded(run: LoadedRun, root: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Origins in the signed records of this training."""
    journal = run.journal(root)
    for path in (folder / FILE_NAME, *sorted(root.glob(f"checkpoint/*/{FILE_NAME}"))):
        with contextlib.suppress(ManifestError, MissingInput):
            record = read_manifest(path)
            of_key = record.key if record.stage == "train" else str(record.config.get("train_key", ""))
            if of_key.startswith(folder.name) and (origin := _signed_origin(record, journal)):
                yield origin


def _folder_origin(run: LoadedRun, weights: InitialWeights, root: Path) -> dict[str, Any]:
    """Origin of a folder of weights."""
    name, files = weights.folder.name, weights.folder.files
    try:
        entries = run.journal(root).verified()
    except ManifestError as error:
        raise GateClosed(f"the journal cannot be trusted: {error}") from error
    digests = {digest for file, digest in files.items() if file.endswith(".safetensors")}
    ours = {digest for entry in entries if entry.kind == "checkpoint" for digest in entry.subjects.values()}
    exports = [
        entry
        for entry in entries
        if entry.kind == EXPORT and _exports(entry, digests) and any(item.digest in ours for item in entry.materials)
    ]
    unstated = f"no line of this root's {JOURNAL} states an export of these files"
    stated, fault = f"the {JOURNAL} of this root", ""
    if not exports and (weights.folder.path / STATEMENT).exists():
        try:
            exports, stated = [_carried(run, weights.folder.path / STATEMENT, digests)], f"its {STATEMENT}"
        except ManifestError as error:
            fault = f", and {error}"
    if not exports:
        if (of_hub := weights.of_hub) is not None:
            why = of_hub.unverified(files)
            return _origin(name, not why, (why or f"listed by {HUB} as {of_hub.address}") + fault)
        return _origin(name, False, unstated + fault)
    entry = next((one for one in exports if one.statement["predicate"]["origin"]["verified"]), exports[0])
    origin, made_from = entry.statement["predicate"]["origin"], filter(_is_checkpoint, entry.materials)
    why = f"stated by {stated} as an export"
    if not origin["verified"]:
        why = f"an export of {origin['from']}: {origin['why']}"
    behind = {weights.folder.digest: [item.model_dump(mode="json") for item in made_from]}
    return _origin(name, origin["verified"], why) | {EXPORTS: behind}


def _exports(entry: JournalEntry, digests: set[str]) -> bool:
    """Return whether a line states these files of weights as a checkpoint's."""
    return bool(digests) and digests <= set(entry.subjects.values()) and any(map(_is_checkpoint, entry.materials))


def _carried(run: LoadedRun, path: Path, digests: set[str]) -> JournalEntry:
    """The statement from another root that came with an export.

    Raises:
        ManifestError: it was altered, its signer is not trusted, it states other files, or is of another version.
    """
    try:
        envelope = json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path.name} cannot be read ({error})") from error
    content, _ = verify_envelope(envelope, journal_keys(_parents_keyring(run)), path.name)
    entry = JournalEntry(0, "", EXPORT, "", content)
    try:
        stated = content["predicate"].get("stage") == EXPORT and _exports(entry, digests)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path.name} was written by another version") from error
    if not stated:
        raise ManifestError(f"{path.name} states other files")
    origin, made_from = entry.statement["predicate"].get("origin"), filter(_is_checkpoint, entry.materials)
    types = {"from": str, "verified": bool, "why": str}
    known = isinstance(origin, Mapping) and all(isinstance(origin.get(name), type_) for name, type_ in types.items())
    if not known or not all(_CHECKPOINT.fullmatch(item.path) for item in made_from):
        raise ManifestError(f"{path.name} was written by another version")
    return entry


def _parents_keyring(run: LoadedRun) -> Keyring:
    """The run's keys, and those whose trainings it may go on from."""
    config = run.config.governance
    keys = (*config.trusted_keys, *config.parent_keys)
    return Keyring(config.model_copy(update={"trusted_keys": keys}), run.folder)


def _is_checkpoint(item: Input) -> bool:
    return item.stage == "checkpoint"


def _origin(name: str, verified: bool, why: str) -> dict[str, Any]:
    return {"from": name, "verified": verified, "why": why}
