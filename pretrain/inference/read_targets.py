"""Tokens that a checkpoint's training has predicted.

The order of rows is a function of seed, step and recipe (`sampler.py`), so they are computed from the checkpoint's
manifest. The steps of `continue_from` are the first of the recipe, on the same rows: they count as its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from governance.errors import CheckpointError
from governance.manifest import Manifest, read_manifest
from pretrain.config.training import TrainConfig
from pretrain.data.dataset import Rows, packed_from
from pretrain.data.removed_documents import places_in
from pretrain.data.sampler import sampler_of

Marks = npt.NDArray[np.int8]
"""[tokens] of a shard, 1 where a token is predicted."""


def tokens_read(checkpoint: Manifest, shards: Manifest, root: Path) -> Manifest:
    """Artifact of the checkpoint's rows: `shards`, or rows packed from them.

    Raises:
        CheckpointError: it was trained on other rows.
        MissingInput: its packed rows are gone.
    """
    [trained] = [item for item in checkpoint.inputs if item.stage in ("pack", shards.stage)]
    found = read_manifest(root / trained.path) if trained.stage == "pack" else shards
    source = packed_from(found, root) if trained.stage == "pack" else shards
    if (found.digest, source.digest) != (trained.digest, shards.digest):
        raise CheckpointError(
            f"{checkpoint.folder}: was trained on {trained.path} of digest {trained.digest[:16]}…, which was not made "
            f"of {shards.path} of digest {shards.digest[:16]}…: it has not read these texts. Give the configuration "
            "that it was trained with."
        )
    return found


def rows_read(rows: Rows, train: TrainConfig, step: int) -> npt.NDArray[np.bool_]:
    """[rows], True for those that steps 1 to `step` read."""
    order, read = sampler_of(rows, train), np.zeros(rows.count, dtype=bool)
    stop = order.sizes.before(step + 1)
    read[order.between(0, stop if order.mixture is not None else min(stop, rows.count))] = True
    return read


def read_targets(rows: Rows, read: npt.NDArray[np.bool_]) -> Iterator[Marks]:
    """Targets of the rows that were read, by shard."""
    for number, shard in enumerate(rows.shards):
        size = len(shard.tokens)
        marks = _packed_targets(rows, read, number) if rows.packed else np.zeros(size, dtype=np.int8)
        if not rows.packed and size:
            # The target of a row's last position is the next row's first token.
            marks[1:] = np.repeat(read[rows.starts[number] : rows.starts[number + 1]], rows.sequence_length)[: size - 1]
            marks[shard.document_ends[:-1].astype(np.int64)] = 0
        for place in places_in(shard, rows.removed):
            marks[int(shard.document_ends[place - 1]) if place else 0 : int(shard.document_ends[place])] = 0
        yield marks if shard.answers is None else marks * (shard.answers != 0)


def _packed_targets(rows: Rows, read: npt.NDArray[np.bool_], number: int) -> Marks:
    path, size = rows.shards[number].path, len(rows.shards[number].tokens)
    changes = np.zeros(size + 1, dtype=np.int8)
    for place, (index, shards) in enumerate(rows.packed):
        named = [name for name, shard in enumerate(shards) if shard.path == path]
        pieces = np.diff(index.row_ends.astype(np.int64), prepend=0)
        kept = np.repeat(read[rows.starts[place] : rows.starts[place + 1]], pieces)
        kept &= np.isin(index.pieces["shard"], named)
        firsts = index.pieces["start"][kept].astype(np.int64) + 1
        np.add.at(changes, firsts, 1)
        np.add.at(changes, firsts + index.pieces["length"][kept].astype(np.int64), -1)
    return np.cumsum(changes, dtype=np.int8)[:size]
