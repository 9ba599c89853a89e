"""Receipts on request: was this document used for a checkpoint?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from assay.impact import steps_that_read
from assay.receipts.corpus_names import corpus_tree, shards_of
from assay.receipts.nearest_document import WORDS, nearest_document
from assay.receipts.unknown_ids import id_note
from data_pipeline.documents import DOCUMENT_SCHEMA, REMOVED_SCHEMA, read_table
from data_pipeline.trace import documents_of
from data_pipeline.urls import normalise_url
from governance.errors import AlteredFile, ConfigError, GateClosed, ManifestError, MissingInput
from governance.files import sha256_bytes
from governance.gate.chain import require_whole
from governance.gate.verdict import Keyring
from governance.hooks import Hooks
from governance.lineage.attest import KeySigner, attest_with, open_journal, refuse_strange_key, refuse_unstated
from governance.log import get_logger
from governance.manifest import KEY_LENGTH, Manifest, Output, read_manifest
from governance.receipts import verify_receipt
from governance.receipts.name_tree import NameTree, head_of, open_names
from governance.receipts.receipt import receipt
from governance.receipts.verify_receipt import name_of
from governance.replay.replay_statement import replays
from governance.signing.dsse import private_key
from governance.signing.journal import Journal
from governance.signing.journal_lines import JournalEntry
from governance.stage import Runtime, root_of
from governance.verified_files import all_intact, intact
from pretrain.checkpoint.format import identity_of, open_checkpoint
from pretrain.data.removed_documents import places_in

_LONGEST_FILE = 1 << 30
_COLUMNS = {"id": "id", "url": "url", "text": "sha256"}


@dataclass(frozen=True)
class ReceiptRequest:
    """A name by which a document is asked for."""

    kind: str
    """ "text", "raw text", "url" or "id"."""
    value: str
    """The text, the canonical URL, or the id."""


def read_request(asked: str, root: Path) -> ReceiptRequest:
    """The question behind a file, a URL or an id.

    An id that its source states has any form, which a path has, too: it counts as an id if a source of the root holds
    it.

    Raises:
        ConfigError: it is none of these; the text is empty, too long, or not UTF-8.
    """
    path = Path(asked)
    if "://" not in asked and _is_file(path):
        if (size := path.stat().st_size) > _LONGEST_FILE:
            raise ConfigError(f"{path}: has {size:,} bytes; a document has at most {_LONGEST_FILE:,}. Ask by its URL")
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: is not text in UTF-8 ({error}). Give the text of the document") from error
        if name_of("text", text) == name_of("text", ""):
            raise ConfigError(f"{path}: has no text: every empty document would match. Give the document's text")
        return ReceiptRequest("text", text)
    if any("\ud800" <= letter <= "\udfff" for letter in asked):  # bytes of the command line that are not UTF-8
        raise ConfigError(f"{asked!r}: is not text in UTF-8. Give the document's id or URL in UTF-8")
    if url := normalise_url(asked):
        return ReceiptRequest("url", url)
    if not asked.strip() or ("#" not in asked and id_note(asked, root)):
        raise ConfigError(
            f"{asked!r}: is not a file, a URL or an id, which reads <source>/<file>#<record>, or as the source states "
            "it and this root holds it. Give one of them"
        )
    return ReceiptRequest("id", asked)


def _is_file(path: Path) -> bool:
    """Return whether a file exists.

    An id may be longer than any path.
    """
    try:
        return path.is_file()
    except OSError:
        return False


def prove(asked: str, checkpoint: Path, keyring: Keyring, near: bool = False) -> dict[str, Any]:
    """Make the receipt of a document for a checkpoint.

    The tree of the corpus is made if it was not yet. With `near`, the similarity of the nearest other document is
    stated, too.

    Raises:
        ConfigError: the question is not one, or is not text where the nearest document is asked for, or the key cannot
            sign.
        MissingInput: the checkpoint, its token corpus or its documents are gone.
        GateClosed: the journal was cut, or does not state this checkpoint, or the tree and its corpus as they are.
        ManifestError: the journal or the tree was altered.
        AlteredFile: a shard that the answer rests on was altered.
    """
    manifest, root = open_checkpoint(checkpoint), root_of(checkpoint)
    request = read_request(asked, root)
    if near and request.kind != "text":
        raise ConfigError(f"--nearest compares a text, and {asked!r} is not a file. Give a file with the text")
    journal = own_journal(manifest, keyring, root)
    tokens = tokens_of(manifest, root)
    hooks = Hooks(attest=attest_with(journal, keyring, root), signer=KeySigner(keyring))
    made = corpus_tree(tokens, Runtime(root, hooks=hooks), journal)
    names = open_names(made, root)
    form, place = _form_found(names, request, asked)
    identities = names.identities_of(place) if place is not None else frozenset()
    steps: list[int] = []
    if place is not None:
        with _intact_shards(identities, names.found(place), manifest, tokens, made, root):
            steps = steps_that_read(identities, manifest, tokens, root)
    identity = identity_of(manifest)
    taken_down = next(takedowns(identities, manifest, journal.verified()), "")
    facts = {
        "checkpoint": manifest.digest,
        "step": identity.step,
        "builds_on": _builds_on(manifest),
        "journal": _line_of(made, journal),
        "filters": " ".join([made.stage for made in _corpora(tokens, root)][::-1]),
        "removed": taken_down if place is not None else next(_removals(request, tokens, root), ""),
    }
    if near:
        kept = set(map(bytes, names.identities))
        facts["nearest"] = nearest_document(request.value, tokens, root, kept, identities)
    key = private_key(keyring.own, make=False)
    found = receipt(names, (form.kind, form.value), steps, facts, key)
    if faults := verify_receipt.faults(found, key.public_key()):
        raise ManifestError(f"{root / made.folder}: was altered: {'; '.join(faults)}. Remove it, and ask again")
    return found


@contextlib.contextmanager
def _intact_shards(
    identities: frozenset[bytes],
    found: Mapping[str, Any],
    checkpoint: Manifest,
    tokens: Manifest,
    made: Manifest,
    root: Path,
) -> Iterator[None]:
    """Shards of the tree, guarded while the context lasts.

    Hashed are the shards that hold the documents, packed rows, and all shards where sources order the rows. Of the
    others, the numbers of tokens count, which number the rows.

    Raises:
        AlteredFile: names the shard.
    """
    train = identity_of(checkpoint).recipe.train
    held = _held(identities, tokens, root)
    everything = bool(train.mixture or train.late_sources)
    packed = [] if checkpoint.inputs[0].stage != "pack" else read_manifest(root / checkpoint.inputs[0].path).outputs
    read = [output for of in held.values() for output, places, _ in of if everything or places]
    with all_intact((*packed, *read), root):
        _refuse_other_counts(_held(identities, tokens, root), found, tokens, made, root)  # the shards as they are now
        yield


_Held = dict[str, list[tuple[Output, int, int]]]
"""Split -> each shard, its copies of a document, and its tokens."""


def _held(identities: frozenset[bytes], tokens: Manifest, root: Path) -> _Held:
    return {
        split: [
            (output, len(places_in(shard, identities)), len(shard.tokens))
            for output, shard in shards_of(tokens, root, split)
        ]
        for split in ("train", "validation")
    }


def _refuse_other_counts(held: _Held, found: Mapping[str, Any], tokens: Manifest, made: Manifest, root: Path) -> None:
    """Raise where shards hold a document or tokens otherwise than the tree."""
    counts = [sum(places for _, places, _ in held[split]) for split in ("train", "validation")]
    if counts != [found["copies"], found["held_out"]]:
        raise AlteredFile(
            f"{root / tokens.folder}: its shards hold the document {counts[0]} time(s) for training and {counts[1]} "
            f"held out, and the tree of its names says {found['copies']} and {found['held_out']}: a shard was altered. "
            "Find it with: assay governance verify ROOT"
        )
    if [size for _, _, size in held["train"]] != made.stats["shard_tokens"]:
        raise AlteredFile(
            f"{root / tokens.folder}: a shard has another number of tokens than the tree of its names states: it was "
            "altered. Find it with: assay governance verify ROOT"
        )


def own_journal(checkpoint: Manifest, keyring: Keyring, root: Path) -> Journal:
    """The journal of a root that states the checkpoint."""
    journal = open_journal(keyring, root)
    if not journal.path.exists():
        raise GateClosed(f"{journal.path}: is missing, so nothing states this checkpoint. Give one in its root")
    refuse_strange_key(keyring, root)
    refuse_unstated(checkpoint, keyring, root)
    require_whole(journal)
    journal.keep()
    return journal


def tokens_of(checkpoint: Manifest, root: Path) -> Manifest:
    """The token corpus of a checkpoint."""
    item = checkpoint.inputs[0]
    try:
        made = read_manifest(root / item.path)
        if made.digest != item.digest:
            raise ManifestError(f"{root / item.path}: is not the artifact that {checkpoint.folder} was trained on")
        return read_manifest(root / made.inputs[0].path) if made.stage == "pack" else made
    except MissingInput as error:
        raise MissingInput(
            f"{error}; the token corpus of {checkpoint.folder} is not in the root {root}. Give the checkpoint in the "
            "root of its training"
        ) from error


def _form_found(names: NameTree, request: ReceiptRequest, asked: str) -> tuple[ReceiptRequest, int | None]:
    """The form in which the corpus holds the name, and its place.

    A text may be held in its raw form only. A URL may be asked for in the canonical form that a receipt prints, and the
    canonical form of that may be another (`http://h:443`).
    """
    others = {"text": ReceiptRequest("raw text", request.value), "url": ReceiptRequest("url", asked)}
    for form in (request, others.get(request.kind, request)):
        place = names.tree.place(names.tag_of(form.kind, name_of(form.kind, form.value)))
        if place is not None:
            return form, place
    return request, None


def _builds_on(checkpoint: Manifest) -> list[str]:
    """Weights or a teacher that a training began with.

    The steps of a parent that it continues are its own.
    """
    others = [item for item in checkpoint.inputs[1:] if item.stage != "verdict"]
    return [item.digest for item in others if item.stage != "checkpoint" or "continued" not in checkpoint.stats]


def _line_of(made: Manifest, journal: Journal) -> int:
    """The journal's line that states a tree's head."""
    head = head_of(made)
    return next(entry.index for entry in journal.verified() if entry.subjects.get(head.path) == head.sha256)


def takedowns(identities: frozenset[bytes], checkpoint: Manifest, entries: Sequence[JournalEntry]) -> Iterator[str]:
    """Words on the replay that removed a document.

    The replay is this checkpoint's own, or another of its training.
    """
    names = {identity.hex() for identity in identities}
    identity = identity_of(checkpoint)
    training = f"train/{identity.train_key[:KEY_LENGTH]}"
    own = names & set(identity.recipe.train.removed_documents)
    for facts in replays(entries):
        if names & set(facts["documents"]) and (own or facts["training"] == training):
            yield f"takedown: {Path(facts['replayed']['path']).parent} repeats {facts['training']} without it"
    if own:
        yield "takedown: its places are masked in this training"


def _corpora(tokens: Manifest, root: Path) -> Iterator[Manifest]:
    """Artifacts that documents passed, from the last to the first."""
    found, _ = documents_of(tokens, root)
    while found is not None:
        yield found
        try:
            found = read_manifest(root / found.inputs[0].path) if found.stage != "ingest" and found.inputs else None
        except MissingInput:
            return


def _removals(request: ReceiptRequest, tokens: Manifest, root: Path) -> Iterator[str]:
    """Stage and reason of each removed document that matches.

    The evidence may name another document. A document that was kept and not encoded is one of which the mixture has no
    copy, or one of a test set.
    """
    for made in _corpora(tokens, root):
        for output in made.listed("removed"):
            for row in _matches(request, output, root, ["reason"]):
                yield f"{made.stage}: {row['reason']}"
    reasons = [reason for reason, count in tokens.stats.get("removed", {}).items() if count]
    encoded = documents_of(tokens, root)[0]
    stage = "mix" if any(item.stage == "mix" for item in tokens.inputs) else tokens.stage
    for output in encoded.listed("documents") if encoded is not None and reasons else ():
        for _ in _matches(request, output, root, []):
            yield f"{stage}: {' or '.join(reasons)}"


def _matches(request: ReceiptRequest, output: Output, root: Path, more: list[str]) -> list[dict[str, Any]]:
    """Rows of a shard's documents that the request names."""
    column = _COLUMNS[request.kind]
    value = sha256_bytes(request.value.encode("utf-8")) if column == "sha256" else request.value
    if not (root / output.path).exists():
        get_logger(__name__).warning("%s: is gone; it may have held the document", root / output.path)
        return []
    with intact(output, root) as path:
        table = read_table(path, REMOVED_SCHEMA if more else DOCUMENT_SCHEMA, [column, *more])
    if column == "url":
        host = value.partition("://")[2].partition("/")[0]
        table = table.filter(pc.match_substring(table["url"], host, ignore_case=True))
        return [row for row in table.to_pylist() if normalise_url(row["url"]) == value]
    found: list[dict[str, Any]] = table.filter(pc.equal(table[column], value)).to_pylist()
    return found


def explain(found: dict[str, Any], note: str = "") -> str:
    """A receipt, and a note on it, in lines for a terminal."""
    said = found["statement"]
    held, read = said["found"], said["read"]
    asked = said["asked"].get("value") or said["asked"]["name"]
    lines = [f"{said['answer']}: {said['asked']['kind']} {asked}, by the checkpoint of step {said['step']}"]
    if held is not None:
        lines.append(
            f"the corpus holds it: {held['copies']} time(s) for training, {held['held_out']} held out for validation; "
            f"licence {held['licence']}; after {said['filters']}"
        )
    else:
        lines.append(f"the corpus of {said['names']:,} names does not hold it")
    if read["times"]:
        more = f" and {read['times'] - len(read['steps'])} more" if read["times"] > len(read["steps"]) else ""
        lines.append(f"read {read['times']} time(s), at step(s) {', '.join(map(str, read['steps']))}{more}")
    elif held is not None and held["copies"]:
        lines.append(f"not read up to step {said['step']}")
    if note:
        lines.append(note)
    if said.get("removed"):
        lines.append(f"removed by {said['removed']}")
    if near := said.get("nearest"):
        lines.append(
            f"nearest other document, of {near['documents']:,} that were compared: {100 * near['similarity']:.4g} % of "
            f"the distinct sequences of {WORDS} words of both are in both"
        )
    if said.get("builds_on"):
        lines.append(f"the training began with other weights or a teacher: {', '.join(said['builds_on'])}")
    return "\n".join([*lines, said["words"]])


def verifier_text() -> str:
    """Source of the verifier."""
    return Path(verify_receipt.__file__).read_text(encoding="utf-8")
