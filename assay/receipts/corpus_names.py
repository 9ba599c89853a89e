"""Names of a token corpus: its texts, URLs and ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.documents import read_groups
from data_pipeline.tokens.encode import FEATURES_SCHEMA, SPLITS
from data_pipeline.tokens.token_shards import IDENTITY_BYTES, SUFFIX, TokenShard
from data_pipeline.trace import documents_of
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

_NAMED = ("id", "split", "tokens", "licence", "content", "raw", "address")
_SCHEMA = pa.schema([FEATURES_SCHEMA.field(name) for name in _NAMED])
_SINCE = 6  # the version of `encode` that writes them


def corpus_tree(tokens: Manifest, runtime: Runtime, journal: Journal) -> Manifest:
    """Find or make a corpus's tree, and state its head.

    What it is made of is hashed as it is read. A tree that was found counts only as the journal states it: else
    whoever writes into a root could leave a document out, and its head would be stated here.

    Raises:
        MissingInput: the corpus has no documents, or an older version encoded it.
        AlteredFile: a file is not as its manifest says.
        GateClosed: the tree, or an artifact that it was made from, is not as the journal states it.
    """
    documents, problem = documents_of(tokens, runtime.root)
    if documents is None:
        raise MissingInput(f"receipts: {problem}")
    if tokens.version < _SINCE:
        raise MissingInput(
            f"receipts: {tokens.folder} was encoded by version {tokens.version} of its stage, which kept no names of "
            f"documents; version {_SINCE} does. Prepare the corpus again: assay data prepare CONFIG"
        )
    names = guarded(lambda root: read_names(tokens, root), tokens.listed("token_features"), runtime.root)
    made = name_tree(tokens, lambda: names(runtime.root), runtime)
    require_chain((made,), runtime.root, journal)
    head = head_of(made)
    journal.state("receipts-head", {head.path: head.sha256}, [made.as_input()])
    return made


def read_names(tokens: Manifest, root: Path) -> CorpusNames:
    """Read the names of the documents that the token shards hold.

    Raises:
        ManifestError: a file is torn.
        MissingInput: a file is gone.
    """
    licence_words: dict[str, int] = {}
    identities, held, names, licences, shard_tokens = [], [], [], [], []
    count = 0
    for path in tokens.files("token_features", root):
        table = pa.concat_tables(read_groups(path, _SCHEMA)).combine_chunks()
        trains = pc.equal(table["split"], SPLITS[0]).to_numpy()
        shard_tokens.append(int(table["tokens"].to_numpy()[trains].sum()))
        ids = np.ascontiguousarray(sha256_lanes(*text_buffers(table["id"]))[:, :IDENTITY_BYTES])
        copies = np.stack([trains, ~trains], axis=1).astype(np.int64)
        # By the first 8 bytes: two documents of a shard that share them (once in 10^9 shards) would count as copies.
        heads = ids.view("<u8")[:, 0]
        ordered = np.sort(heads)
        if np.any(ordered[1:] == ordered[:-1]):  # rare, and dear
            _, firsts, rows = np.unique(heads, return_index=True, return_inverse=True)
            copies = np.stack([np.bincount(rows[of], minlength=len(firsts)) for of in (trains, ~trains)], axis=1)
            ids, table = np.take(ids, firsts, axis=0), table.take(pa.array(firsts))
        held.append(copies)
        identities.append(ids)
        coded = pc.dictionary_encode(table["licence"].combine_chunks())
        known = [licence_words.setdefault(word, len(licence_words)) for word in coded.dictionary.to_pylist()]
        licences.append(np.array(known, np.int64)[coded.indices.to_numpy()])
        numbers = np.arange(count, count + len(ids))
        contents, raw, addresses = (_bytes_of(table[name]) for name in ("content", "raw", "address"))
        given = np.flatnonzero(np.bitwise_or(*addresses.view("<u8").T))
        names += [
            (KINDS["id"], ids, numbers),
            (KINDS["text"], contents, numbers),
            (KINDS["raw text"], raw, numbers),
            (KINDS["url"], np.take(addresses, given, axis=0), numbers[given]),
        ]
        count += len(ids)
    kinds = [np.full(len(found), kind, np.uint8) for kind, found, _ in names]
    copies = np.concatenate(held)
    return CorpusNames(
        identities=np.concatenate(identities),
        copies=copies[:, 0],
        held_out=copies[:, 1],
        licences=np.concatenate(licences),
        licence_words=tuple(licence_words),
        kinds=np.concatenate(kinds),
        names=np.concatenate([found for _, found, _ in names]),
        documents=np.concatenate([numbers for _, _, numbers in names]),
        shard_tokens=tuple(shard_tokens),
    )


def _bytes_of(column: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    held = pa.concat_arrays([pa.array([], column.type), *column.chunks])
    return np.frombuffer(held.buffers()[1] or b"", np.uint8).reshape(-1, IDENTITY_BYTES)


def shards_of(tokens: Manifest, root: Path, split: str) -> Iterator[tuple[Output, TokenShard]]:
    """The token shards of a split, in order, with their outputs."""
    listed = (output for output in tokens.listed(split) if output.path.endswith(SUFFIX))
    yield from ((output, TokenShard.open(root / output.path)) for output in listed)
