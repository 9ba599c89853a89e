"""Names of a token corpus: its texts, URLs and ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.documents import DOCUMENT_SCHEMA, read_groups
from data_pipeline.tokens.labels import content_digests
from data_pipeline.tokens.token_shards import SUFFIX, TokenShard
from data_pipeline.trace import documents_of
from data_pipeline.urls import normalise_url
from governance.errors import MissingInput
from governance.gate.chain import require_chain
from governance.kernels.buffers import text_buffers
from governance.kernels.sha256_lanes import sha256_lanes
from governance.manifest import Manifest, Output
from governance.receipts.name_tree import CorpusNames, head_of, name_tree
from governance.receipts.verify_receipt import KINDS
from governance.signing.journal import Journal
from governance.stage import Runtime
from governance.verified_files import guarded

_COLUMNS = pa.schema([DOCUMENT_SCHEMA.field(name) for name in ("id", "text", "url", "licence", "sha256")])
_HALF = 16

Bytes = npt.NDArray[np.uint8]


def corpus_tree(tokens: Manifest, runtime: Runtime, journal: Journal) -> Manifest:
    """Find or make a corpus's tree, and state its head.

    What it is made of is hashed as it is read. A tree that was found counts only as the journal states it: else
    whoever writes into a root could leave a document out, and its head would be stated here.

    Raises:
        MissingInput: the documents that were encoded are gone.
        AlteredFile: a shard is not as its manifest says.
        GateClosed: the tree, or an artifact that it was made from, is not as the journal states it.
    """
    documents, problem = documents_of(tokens, runtime.root)
    if documents is None:
        raise MissingInput(f"receipts: {problem}")
    read = [*tokens.listed("train"), *tokens.listed("validation"), *documents.listed("documents")]
    names = guarded(lambda root: read_names(tokens, documents, root), read, runtime.root)
    made = name_tree(tokens, documents, lambda: names(runtime.root), runtime)
    require_chain((made,), runtime.root, journal)
    head = head_of(made)
    journal.state("receipts-head", {head.path: head.sha256}, [made.as_input()])
    return made


def read_names(tokens: Manifest, documents: Manifest, root: Path) -> CorpusNames:
    """Read the names of the documents that the token shards hold.

    Raises:
        ManifestError: a shard is torn.
        MissingInput: a shard is gone, or documents are not those that were encoded.
    """
    splits = [_counted(tokens, root, split) for split in ("train", "validation")]
    identities, copies, names = [], [], []
    licence_words: dict[str, int] = {}
    licences, count = [], 0
    for path in documents.files("documents", root):
        for table in read_groups(path, _COLUMNS):
            ids = sha256_lanes(*text_buffers(table["id"]))[:, :_HALF]
            held = np.stack([_count_of(ids, *split) for split in splits], axis=1)
            kept = held.any(axis=1)
            table, ids = table.filter(pa.array(kept)), np.ascontiguousarray(ids[kept])
            identities.append(ids)
            copies.append(held[kept])
            licences += [licence_words.setdefault(word, len(licence_words)) for word in table["licence"].to_pylist()]
            numbers = np.arange(count, count + len(ids))
            urls = [normalise_url(url) if url else "" for url in table["url"].to_pylist()]
            given = np.array([bool(url) for url in urls], bool)
            canonical = pa.array([url for url in urls if url], pa.string())
            names += [
                (KINDS["id"], ids, numbers),
                (KINDS["text"], _unhexed(content_digests(table["text"])), numbers),
                (KINDS["raw text"], _unhexed(table["sha256"].to_pylist()), numbers),
                (KINDS["url"], sha256_lanes(*text_buffers(canonical))[:, :_HALF], numbers[given]),
            ]
            count += len(ids)
    missing = sum(len(split[0]) for split in splits) and not count
    if missing:
        raise MissingInput(f"receipts: {documents.folder} holds none of the documents of {tokens.folder}")
    empty = np.zeros((0, _HALF), np.uint8)
    held = np.concatenate([np.zeros((0, 2), np.int64), *copies])
    kinds = [np.full(len(found), kind, np.uint8) for kind, found, _ in names]
    return CorpusNames(
        identities=np.concatenate([empty, *identities]),
        copies=held[:, 0],
        held_out=held[:, 1],
        licences=np.array(licences, np.int64),
        licence_words=tuple(licence_words),
        kinds=np.concatenate([np.zeros(0, np.uint8), *kinds]),
        names=np.concatenate([empty, *(found for _, found, _ in names)]),
        documents=np.concatenate([np.zeros(0, np.int64), *(numbers for _, _, numbers in names)]),
        shard_tokens=tuple(len(shard.tokens) for _, shard in shards_of(tokens, root, "train")),
    )


def shards_of(tokens: Manifest, root: Path, split: str) -> Iterator[tuple[Output, TokenShard]]:
    """The token shards of a split, in order, with their outputs."""
    listed = (output for output in tokens.listed(split) if output.path.endswith(SUFFIX))
    yield from ((output, TokenShard.open(root / output.path)) for output in listed)


def _unhexed(digests: list[str]) -> Bytes:
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)[:, :_HALF]


def _counted(tokens: Manifest, root: Path, split: str) -> tuple[Any, Any]:
    """Distinct identities of a split, ascending, and the copies of each."""
    parts = [shard.identities for _, shard in shards_of(tokens, root, split)]
    return np.unique(_keys(np.concatenate([np.zeros((0, _HALF), np.uint8), *parts])), return_counts=True)


def _keys(identities: Bytes) -> npt.NDArray[np.uint64]:
    """The first 8 bytes of each.

    Two documents that share them (once in 4 x 10^5 corpora of 10^7) would count as copies.
    """
    return np.ascontiguousarray(identities).view("<u8")[:, 0]


def _count_of(identities: Bytes, keys: Any, counts: Any) -> Any:
    if not len(keys):
        return np.zeros(len(identities), np.int64)
    wanted = _keys(identities)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, counts[places], 0)
