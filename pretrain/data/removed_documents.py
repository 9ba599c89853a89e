"""Documents of token shards by identity: their rows, and rows without them.

A removed document keeps its places, so that no other token changes its own: they hold the end-of-document token,
predict nothing, and stay a segment. Attention stays within a segment, so nothing attends to them. What remains is a row
in which any text of that length may have stood (`tests/pretrain/test_replay.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from data_pipeline.tokens.packed_rows import PackedRows
from data_pipeline.tokens.token_shards import NO_TARGET, ShardRow, TokenShard

Integers = npt.NDArray[np.int64]


def places_in(shard: TokenShard, identities: frozenset[bytes]) -> Integers:
    """Places of these documents in a shard, ascending."""
    firsts = np.frombuffer(b"".join(identity[:8] for identity in sorted(identities)), dtype="<u8")
    near = np.flatnonzero(np.isin(shard.identities.view("<u8")[:, 0], firsts)) if len(firsts) else []
    places = [place for place in map(int, near) if shard.identities[place].tobytes() in identities]
    return np.array(places, dtype=np.int64)


def rows_of_stretches(shard: TokenShard, places: Integers, sequence_length: int) -> Integers:
    """Rows of a shard's stream that hold a token of these documents."""
    ends = shard.document_ends.astype(np.int64)
    begins = np.append(0, ends)[places]
    rows = [
        np.arange(first // sequence_length, (last - 1) // sequence_length + 1)
        for first, last in zip(begins.tolist(), ends[places].tolist(), strict=True)
    ]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *rows]))


def rows_of_pieces(index: PackedRows, held: Iterable[tuple[int, TokenShard, Integers]]) -> Integers:
    """Packed rows that hold a token of documents.

    `held` are number in the index, shard, and places of documents in it.
    """
    hit = np.zeros(len(index.pieces), dtype=bool)
    for number, shard, places in held:
        here = np.flatnonzero(index.pieces["shard"] == number)
        documents = np.searchsorted(shard.document_ends, index.pieces["start"][here], side="right")
        hit[here[np.isin(documents, places)]] = True
    rows = np.searchsorted(index.row_ends, np.flatnonzero(hit).astype(np.uint64), side="right")
    return np.unique(rows).astype(np.int64)


def without(row: ShardRow, shards: Sequence[TokenShard], removed: frozenset[bytes]) -> ShardRow:
    """A row with the pieces of removed documents turned into padding."""
    owners = zip(row.documents.tolist(), row.shards.tolist(), strict=True)
    pieces = [
        piece
        for piece, (document, shard) in enumerate(owners)
        if document >= 0 and shards[shard].identities[document].tobytes() in removed
    ]
    if not pieces:
        return row
    hidden, documents = np.isin(row.segments, pieces), row.documents.copy()
    documents[pieces] = -1
    tokens = np.where(hidden, shards[0].end_of_document, row.tokens)
    return replace(row, tokens=tokens, targets=np.where(hidden, NO_TARGET, row.targets), documents=documents)
