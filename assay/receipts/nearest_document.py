"""Nearest kept document of a text, by shared word sequences."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.documents import DOCUMENT_SCHEMA, read_groups
from data_pipeline.kernels.minhash import shingle_sets
from data_pipeline.normalised_text import normalise
from data_pipeline.tokens.token_shards import IDENTITY_BYTES
from data_pipeline.trace import documents_of
from governance.errors import MissingInput
from governance.kernels.buffers import text_buffers
from governance.kernels.sha256_lanes import sha256_lanes
from governance.manifest import Manifest
from governance.verified_files import intact

WORDS = 5
"""Words of a sequence, as in the stage `dedup`."""
_COLUMNS = pa.schema([DOCUMENT_SCHEMA.field(name) for name in ("id", "text")])


def nearest_document(
    text: str, tokens: Manifest, root: Path, kept: Collection[bytes], itself: Collection[bytes]
) -> dict[str, Any]:
    """Similarity of the nearest document of the token shards.

    It is the share of all distinct sequences of five words of two texts that both have (Jaccard), computed for every
    document; a sequence stands for its hash of 64 bits.

    Args:
        text: as it was given.
        tokens: the token corpus.
        root: where.
        kept: identities of the documents of the token shards.
        itself: those that the text is itself, which do not count.

    Raises:
        MissingInput: the documents that were encoded are gone.
        AlteredFile: a shard of them was altered.
    """
    documents, problem = documents_of(tokens, root)
    if documents is None:
        raise MissingInput(f"receipts: {problem}")
    own, _ = shingle_sets(pa.array([normalise(text)], pa.large_string()), WORDS)
    counted = np.frombuffer(b"".join(sorted(set(kept) - set(itself))), f"V{IDENTITY_BYTES}")
    best, compared = 0.0, 0
    for output in documents.listed("documents"):
        with intact(output, root) as path:
            for table in read_groups(path, _COLUMNS):
                names = np.ascontiguousarray(sha256_lanes(*text_buffers(table["id"]))[:, :IDENTITY_BYTES])
                chosen = np.isin(names.view(f"V{IDENTITY_BYTES}")[:, 0], counted)
                sets, ends = shingle_sets(table["text"].filter(pa.array(chosen)), WORDS)
                shared = np.concatenate([[0], np.cumsum(np.isin(sets, own))])
                both = shared[ends[1:]] - shared[ends[:-1]]
                either = len(own) + np.diff(ends) - both
                best = max(best, float((both / np.maximum(either, 1)).max(initial=0.0)))
                compared += int(chosen.sum())
    return {"similarity": round(best, 4), "documents": compared}
