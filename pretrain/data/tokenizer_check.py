"""Check that token shards and checkpoint share a tokenizer.

Two tokenizers of one size read the same ids as different texts: nothing fails, and every figure is nonsense. So digests
are compared, not sizes, along the inputs that manifests record:

    checkpoint -> [pack] -> encode -> tokenizer

Two artifacts are the same tokenizer if `tokenizer.json` has the same bytes and the same id ends a document: a tokenizer
reused for another corpus is another artifact. Price: `tokenizer.json` is hashed.
"""

from __future__ import annotations

from pathlib import Path

from governance.errors import CheckpointError, ManifestError, MissingInput
from governance.log import get_logger
from governance.manifest import Input, Manifest, read_manifest, verify
from pretrain.data.dataset import Rows, packed_from

_TOKENIZER, _FILE = "tokenizer", "/tokenizer.json"
_ONWARD, _TOKENS = ("checkpoint", "pack"), ("pack", "encode")  # a checkpoint that it continues is an input too
_ENCODE_AGAIN = "Remove that folder and run: assay data prepare CONFIG"


def refuse_foreign_vocabulary(tokens: Manifest, rows: Rows, root: Path) -> None:
    """Raise unless shards, manifest and tokenizer agree on the vocabulary.

    The model takes its vocabulary from the shards. A tokenizer whose folder is gone is not compared.

    Raises:
        ManifestError: names the two that differ, and the fix.
    """
    source = packed_from(tokens, root) if tokens.stage == "pack" else tokens
    manifests = [source]
    for item in source.inputs:
        if item.stage == _TOKENIZER and (root / item.path).exists():
            manifests.append(read_manifest(root / item.path))
            if manifests[-1].digest != item.digest:
                raise ManifestError(
                    f"{source.folder}: was encoded by the tokenizer of digest {item.digest[:16]}…; the one in "
                    f"{manifests[-1].folder} has {manifests[-1].digest[:16]}…. {_ENCODE_AGAIN}"
                )
    found = {"vocabulary_size": rows.vocabulary_size, "end_of_document": rows.shards[0].end_of_document}
    for manifest in manifests:
        for name, value in found.items():
            if manifest.stats.get(name, value) != value:
                raise ManifestError(
                    f"{source.folder}: its shards have {name} {value}, {manifest.folder} says {manifest.stats[name]}: "
                    f"they come from different tokenizers. {_ENCODE_AGAIN}"
                )


def tokenizer_of(artifact: Manifest, root: Path) -> Input:
    """Tokenizer of a checkpoint, packed rows or token shards.

    Raises:
        MissingInput: a manifest on the way is gone or replaced by another, or none records a tokenizer.
    """
    while artifact.stage in _ONWARD:
        [behind] = [item for item in artifact.inputs if item.stage in _TOKENS]
        artifact = _recorded(behind, root)
    if artifact.stage == _TOKENIZER:
        return artifact.as_input()
    named = [item for item in artifact.inputs if item.stage == _TOKENIZER]
    if not named:
        raise MissingInput(f"{artifact.path} names no tokenizer")
    return named[0]


def refuse_foreign_tokenizer(checkpoint: Manifest, given: Manifest, root: Path, home: Path | None = None) -> None:
    """Raise if `given` does not use the checkpoint's tokenizer.

    Where a manifest on the way is gone, as for a checkpoint that was copied alone, only a warning is possible. `home`
    is the checkpoint's root, where it is another than that of `given`.

    Raises:
        CheckpointError: another tokenizer, or another vocabulary.
        ManifestError: the tokenizer's files differ from its manifest.
    """
    try:
        requested = tokenizer_of(given, root)
        ours = _whole(requested, root)
        _refuse_other_size(checkpoint, ours)
        learned = tokenizer_of(checkpoint, home or root)
    except MissingInput as error:
        if given.as_input() not in checkpoint.inputs:  # these very shards trained it: nothing to compare
            get_logger(__name__).warning(
                "%s: cannot verify that this is the tokenizer it was trained with: %s. Use the checkpoint in the root "
                "that it was trained in, if there is one; with another tokenizer every result is meaningless.",
                checkpoint.folder, error,
            )  # fmt: skip
        return
    if learned.digest == requested.digest:
        return
    theirs = _read(learned, home or root)
    if theirs is not None and ours is not None and _identity(theirs) == _identity(ours):
        return
    gone = f" If both have the same tokenizer.json, restore {learned.path} to prove it." * (theirs is None)
    raise CheckpointError(
        f"{checkpoint.folder}: was trained with the tokenizer of digest {learned.digest[:16]}… ({learned.path}), "
        f"but was given {requested.digest[:16]}… ({requested.path}), whose ids mean other texts. Give the "
        f"configuration that it was trained with.{gone}"
    )


def _refuse_other_size(checkpoint: Manifest, tokenizer: Manifest | None) -> None:
    """Check that works even for a copied checkpoint."""
    known = checkpoint.config["vocabulary_size"]
    if tokenizer is not None and tokenizer.stats["vocabulary_size"] != known:
        raise CheckpointError(
            f"{checkpoint.folder}: has a vocabulary of {known} tokens, the tokenizer in {tokenizer.folder} has "
            f"{tokenizer.stats['vocabulary_size']}; give the configuration that it was trained with"
        )


def _recorded(item: Input, root: Path) -> Manifest:
    """The artifact that a manifest names as its input."""
    found = _read(item, root)
    if found is None:
        raise MissingInput(f"{root / item.path}, of digest {item.digest[:16]}…, is missing")
    return found


def _read(item: Input, root: Path) -> Manifest | None:
    """Manifest of the tokenizer; None if gone or replaced."""
    try:
        found = read_manifest(root / item.path)
    except MissingInput:
        return None
    return found if found.digest == item.digest else None


def _whole(item: Input, root: Path) -> Manifest | None:
    """Verified tokenizer.

    The result is None where it is gone, which is allowed where only shards are read.
    """
    found = _read(item, root)
    if found is not None and (problems := verify(found, root)):
        raise ManifestError("; ".join(problems) + f". Remove {root / found.folder} and run: assay data prepare CONFIG")
    return found


def _identity(tokenizer: Manifest) -> tuple[object, ...]:
    """Identity of a tokenizer: `tokenizer.json`, end and begin tokens."""
    files = [output.sha256 for output in tokenizer.outputs if output.path.endswith(_FILE)]
    return (*files, tokenizer.stats["end_of_document"], tokenizer.stats.get("begin_of_document"))
