"""Check that token shards and checkpoint share a tokenizer.

To two tokenizers of one size the same ids are other texts: nothing fails, and every figure is nonsense. So no sizes are
compared but digests, along what the manifests record:

    checkpoint -> [pack] -> encode -> tokenizer

Two artifacts are the same tokenizer where `tokenizer.json` has the same bytes and the same id ends a document: one that
is taken over for another corpus is another artifact. Price: `tokenizer.json` is hashed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from governance.errors import CheckpointError, ManifestError, MissingInput
from governance.log import get_logger
from governance.manifest import Input, Manifest, read_manifest, verify
from pretrain.data.dataset import packed_from

if TYPE_CHECKING:
    from pretrain.data.dataset import Rows

_TOKENIZER, _FILE = "tokenizer", "/tokenizer.json"
_ONWARD, _TOKENS = ("checkpoint", "pack"), ("pack", "encode")  # what a checkpoint goes on from is an input of it too
_ENCODE_AGAIN = "Remove that folder and run: assay data prepare CONFIG"


def refuse_foreign_vocabulary(tokens: Manifest, rows: Rows, root: Path) -> None:
    """Raise unless shards, manifest and tokenizer agree on the vocabulary.

    The model's vocabulary is made from the shards', so it fits whatever passes here. A tokenizer whose folder is gone
    is not asked.

    Raises:
        ManifestError: names the two that differ, and the mend.
    """
    source = packed_from(tokens, root) if tokens.stage == "pack" else tokens
    told = [source]
    for item in source.inputs:
        if item.stage == _TOKENIZER and (root / item.path).exists():
            told.append(read_manifest(root / item.path))
            if told[-1].digest != item.digest:
                raise ManifestError(
                    f"{source.folder}: was encoded by the tokenizer of digest {item.digest[:16]}…; the one in "
                    f"{told[-1].folder} has {told[-1].digest[:16]}…. {_ENCODE_AGAIN}"
                )
    found = {"vocabulary_size": rows.vocabulary_size, "end_of_document": rows.shards[0].end_of_document}
    for manifest in told:
        for name, value in found.items():
            if manifest.stats.get(name, value) != value:
                raise ManifestError(
                    f"{source.folder}: its shards have {name} {value}, {manifest.folder} says {manifest.stats[name]}: "
                    f"they are of different tokenizers. {_ENCODE_AGAIN}"
                )


def tokenizer_of(artifact: Manifest, root: Path) -> Input:
    """Tokenizer of a checkpoint, packed rows or token shards.

    Raises:
        MissingInput: a manifest on the way is not there, or another one lies in its place; or none records a tokenizer.
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


def refuse_foreign_tokenizer(checkpoint: Manifest, given: Manifest, root: Path) -> None:
    """Raise if `given` does not use the checkpoint's tokenizer.

    Where a manifest on the way is gone, as of a checkpoint that was copied alone, nobody can tell: a warning says so.

    Raises:
        CheckpointError: it is of another tokenizer, or of another vocabulary.
        ManifestError: the tokenizer's files are not what its manifest says.
    """
    try:
        asked = tokenizer_of(given, root)
        ours = _whole(asked, root)
        _refuse_other_size(checkpoint, ours)
        learned = tokenizer_of(checkpoint, root)
    except MissingInput as error:
        if given.as_input() not in checkpoint.inputs:  # of the very shards that it learned from, nobody need tell
            get_logger(__name__).warning(
                "%s: whether this is the tokenizer that it was trained with cannot be told: %s. Use it in the root "
                "that it was trained in, where there is one; by another tokenizer, all that comes of it is nonsense.",
                checkpoint.folder, error,
            )  # fmt: skip
        return
    if learned.digest == asked.digest:
        return
    theirs = _read(learned, root)
    if theirs is not None and ours is not None and _decisive(theirs) == _decisive(ours):
        return
    gone = f" If they are the same tokenizer.json, bring {learned.path} back, which would tell." * (theirs is None)
    raise CheckpointError(
        f"{checkpoint.folder}: was trained with the tokenizer of digest {learned.digest[:16]}… ({learned.path}), and "
        f"is given {asked.digest[:16]}… ({asked.path}), to which its ids are other texts. Give the configuration that "
        f"it was trained with.{gone}"
    )


def _refuse_other_size(checkpoint: Manifest, tokenizer: Manifest | None) -> None:
    """Check that works even for a copied checkpoint."""
    known = checkpoint.config["vocabulary_size"]
    if tokenizer is not None and tokenizer.stats["vocabulary_size"] != known:
        raise CheckpointError(
            f"{checkpoint.folder}: knows {known} tokens, the tokenizer in {tokenizer.folder} has "
            f"{tokenizer.stats['vocabulary_size']}; give the configuration that it was trained with"
        )


def _recorded(item: Input, root: Path) -> Manifest:
    """The artifact that a manifest names as its input."""
    found = _read(item, root)
    if found is None:
        raise MissingInput(f"{root / item.path}, of digest {item.digest[:16]}…, is not there")
    return found


def _read(item: Input, root: Path) -> Manifest | None:
    """Manifest of the tokenizer; None if gone or replaced."""
    try:
        found = read_manifest(root / item.path)
    except MissingInput:
        return None
    return found if found.digest == item.digest else None


def _whole(item: Input, root: Path) -> Manifest | None:
    """A tokenizer whose files are those of its manifest.

    None: it is gone, as it may be where shards alone are read.
    """
    found = _read(item, root)
    if found is not None and (problems := verify(found, root)):
        raise ManifestError("; ".join(problems) + f". Remove {root / found.folder} and run: assay data prepare CONFIG")
    return found


def _decisive(tokenizer: Manifest) -> tuple[object, ...]:
    """Deciding facts of a tokenizer: `tokenizer.json`, end and begin tokens."""
    files = [output.sha256 for output in tokenizer.outputs if output.path.endswith(_FILE)]
    return (*files, tokenizer.stats["end_of_document"], tokenizer.stats.get("begin_of_document"))
