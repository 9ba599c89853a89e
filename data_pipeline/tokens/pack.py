"""Packing stage: token shards to rows of one length.

Promises: every prediction of a token from those before it in its document is in exactly one row (0 % of the tokens are
lost); at least `min_used_share` of the positions of each packed group carry a prediction, save what its last row leaves
(n predictions never fit fewer than ceil(n / L) rows); no row shows a document to another, for each piece is a segment
of its own. A document of at most L predictions stays whole where best fit finds room for it; one of more is cut at
multiples of L. Method and source: `kernels/packing.py`; the file: `packed_rows.py`.

Shards are packed in groups of consecutive shards of one role, closed as soon as they hold `GROUP_TOKENS` tokens or
`GROUP_DOCUMENTS` documents: enough that rows fill, few enough that a worker's memory is bounded. A group is the unit of
work, so neither the number of workers nor their order can change a row.

Roles: `train`, `validation`: `00000.rows`, ... A role without a prediction has no file.

Price: O(n log L) for n documents; 100 bytes of memory per piece of the group; on disk 16 bytes per piece, 8 per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.tokens.packed_rows import PIECE, SUFFIX, write_packed_rows
from data_pipeline.tokens.token_shards import TokenShard
from governance.config import Section
from governance.errors import PipelineError
from governance.manifest import Manifest
from governance.parallel import Shard, ShardMade, map_shards, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 1
ROLES = ("train", "validation")
GROUP_TOKENS = 1 << 28
GROUP_DOCUMENTS = 1 << 21
_PASSED_ON = (
    "documents_in", "documents_kept", "bytes_in", "bytes_kept", "removed", "by_source", "vocabulary_size",
    "end_of_document",
)  # fmt: skip

Integers = npt.NDArray[np.int64]


class PackConfig(Section):
    """Row filling."""

    sequence_length: int = Field(ge=1, le=1 << 24)
    """Positions of a row: the training's sequence length."""
    min_used_share: float = Field(default=0.995, ge=0, le=1)
    """Positions that carry a prediction, of all; where best fit alone leaves more empty, documents are cut to fill the
    gaps. 0: best fit alone, a document that fits a row is never cut."""


@dataclass(frozen=True)
class PackGroup:
    """Consecutive token shards that are packed together: their paths and digests."""

    role: str
    paths: tuple[Path, ...]
    digests: tuple[str, ...]


def group_shards(sizes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges of shards packed together, by tokens and documents."""
    first, tokens, documents, stop = 0, 0, 0, 0
    for stop, size in enumerate(sizes, 1):
        tokens, documents = tokens + size[0], documents + size[1]
        if tokens >= GROUP_TOKENS or documents >= GROUP_DOCUMENTS:
            yield first, stop
            first, tokens, documents = stop, 0, 0
    if stop > first:
        yield first, stop


def pieces_of(shards: Sequence[TokenShard], sequence_length: int) -> npt.NDArray[Any]:
    """The predictions of every document, cut at multiples of `sequence_length`.

    The result is an array of `PIECE`.
    """
    parts = []
    for number, shard in enumerate(shards):
        ends = shard.document_ends.astype(np.int64)
        starts = np.concatenate((np.zeros(min(1, len(ends)), np.int64), ends[:-1]))
        predictions = ends - starts - 1
        if shard.labels is not None:  # only the beginning of a long text is read
            predictions = np.minimum(predictions, sequence_length)
        chunks = -(-predictions // sequence_length)
        if shard.answers is not None and (long := int((chunks > 1).sum())):
            raise PipelineError(
                f"pack: {long:,} chats or pairs of {shard.path} are longer than data.pack.sequence_length = "
                f"{sequence_length}: an answer would lose its prompt, a target its source. The longest has "
                f"{int(predictions.max()) + 1:,} tokens. Raise that length and train.sequence_length, or drop them."
            )
        total = int(chunks.sum())
        part = np.empty(total, PIECE)
        within = np.arange(total) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        part["start"] = np.repeat(starts, chunks) + within * sequence_length
        part["length"] = np.minimum(np.repeat(predictions, chunks) - within * sequence_length, sequence_length)
        part["shard"] = number
        parts.append(part)
    return np.concatenate(parts) if parts else np.empty(0, PIECE)


def pack_pieces(
    pieces: npt.NDArray[Any], sequence_length: int, min_used_share: float
) -> tuple[npt.NDArray[Any], Integers, int]:
    """Lay pieces into rows.

    The result is the pieces row by row, one past the last piece of each row, and the number of cuts.
    """
    from data_pipeline.kernels.packing import pack_items

    packing = pack_items(pieces["length"].astype(np.int64), sequence_length, min_used_share)
    laid = pieces[packing.items]
    laid["start"] += packing.offsets.astype(np.uint64)
    laid["length"] = packing.lengths
    return laid, packing.row_ends, packing.cuts


def _pack_group(config: PackConfig, group: PackGroup, path_of: Callable[[str], Path]) -> ShardMade:
    shards = [TokenShard.open(path) for path in group.paths]
    pieces = pieces_of(shards, config.sequence_length)
    laid, row_ends, cuts = pack_pieces(pieces, config.sequence_length, config.min_used_share)
    target = path_of(group.role)
    write_packed_rows(target, config.sequence_length, group.digests, row_ends, laid)
    counts = {
        "documents": sum(len(shard.document_ends) for shard in shards),
        "tokens": sum(len(shard.tokens) for shard in shards),
        "predictions": int(laid["length"].sum(dtype=np.uint64)),
        "positions": len(row_ends) * config.sequence_length,
        "rows": len(row_ends),
        "pieces": len(laid),
        "cuts": cuts,
    }
    if any(shard.labels is not None for shard in shards):
        counts["truncated"] = sum(_longer(shard, config.sequence_length) for shard in shards)
    return ShardMade({group.role: target}, {f"{group.role}_{name}": value for name, value in counts.items()})


def _longer(shard: TokenShard, sequence_length: int) -> int:
    """Documents whose text is longer than a row."""
    return int((np.diff(shard.document_ends.astype(np.int64), prepend=0) - 1 > sequence_length).sum())


def _groups(tokens: Manifest, root: Path) -> Iterator[PackGroup]:
    digests = {output.path: output.sha256 for output in tokens.outputs}
    for role in ROLES:
        paths = tokens.files(role, root)
        opened = [TokenShard.open(path) for path in paths]
        sizes = [(len(shard.tokens), len(shard.document_ends)) for shard in opened]
        for first, stop in group_shards(sizes):
            if any(held > documents for held, documents in sizes[first:stop]):  # one token alone predicts nothing
                part = tuple(paths[first:stop])
                yield PackGroup(role, part, tuple(digests[path.relative_to(root).as_posix()] for path in part))


def pack(tokens: Manifest, config: PackConfig, runtime: Runtime) -> Manifest:
    """Pack the token shards of each role into rows of `config.sequence_length` positions.

    `stats` has, for each role, its documents, tokens, predictions, positions (rows x L), rows, pieces and cuts (pieces
    that exist only to fill rows), and passes on the counts of the documents.

    Raises:
        PipelineError: there is nothing to predict.
        ManifestError: a token shard is torn.
    """
    recipe = Recipe("pack", VERSION, config)

    def make(folder: Path) -> Made:
        numbers = dict.fromkeys(ROLES, 0)
        outputs = {runtime.root / output.path: output for output in tokens.outputs}
        shards = []
        for group in _groups(tokens, runtime.root):
            name = f"{numbers[group.role]:05d}"
            numbers[group.role] += 1
            reads = tuple(outputs[path] for path in group.paths)
            shards.append(Shard(name, (group.role, name, *group.digests), group, reads))
        if not shards:
            raise PipelineError(
                f"pack: the token shards of {tokens.folder} predict nothing: they hold no document with text. "
                f"Look at what the earlier stages removed: assay data show CONFIG."
            )
        done = map_shards(recipe, _pack_group, shards, folder, runtime, SUFFIX)
        stats = {name: tokens.stats[name] for name in _PASSED_ON if name in tokens.stats}
        stats |= sum_stats([shard.stats for shard in done])
        return Made([output for shard in done for output in shard.outputs.values()], stats)

    return run_stage(recipe, [tokens.as_input()], runtime, make)
