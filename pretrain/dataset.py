"""Rows of token shards, in an order that is a pure function of (seed, index): resuming is an integer.

Row number `n` of the training run (n counts from 0 over all epochs) is row `permute(n mod N)` of the corpus, where the
permutation belongs to the seed and the epoch n div N. No table is kept and no generator advances, so nothing is
replayed or skipped after a restart, and the number of ranks never enters. Each epoch shows every row exactly once.

Rows come from the artifact of the stage "encode" (consecutive stretches of each shard's stream) or from that of "pack"
(pieces of documents, chosen so that few are cut). For both, over all rows, every token but the first of its document is
a target exactly once, and no target crosses a document's end.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_pipeline.packed_rows import PackedRows, read_packed_row, shards_of
from data_pipeline.token_shards import Row, TokenShard, read_row, row_count
from governance.errors import ConfigError, ManifestError, MissingInput, PipelineError
from governance.files import sha256_bytes, sha256_file
from governance.manifest import Manifest, Output, read_manifest

if TYPE_CHECKING:
    from pretrain.model.decoder import Batch

_PACKED = "pack"  # the stage whose artifact indexes the shards of its input
_ROUNDS = 6  # four rounds of a Feistel network are a pseudo-random permutation (Luby and Rackoff, 1988); two to spare


def permute(indices: npt.NDArray[np.uint64], count: int, seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """Map distinct indices below `count` to distinct indices below `count`, pseudo-randomly.

    A balanced Feistel network over the smallest even number of bits that holds `count`; values that fall outside
    are sent through again until they fall inside (cycle walking; Black and Rogaway, 2002), at most four times on
    average.
    """
    half, keys = _network(count, seed, epoch)
    values = _feistel(indices.astype(np.uint64), half, keys)
    while (outside := values >= count).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values


def places_of(rows: npt.NDArray[np.uint64], count: int, seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """The indices that `permute` maps to these rows: when in an epoch a row is read, without looking at the others."""
    half, keys = _network(count, seed, epoch)
    values = _unfeistel(rows.astype(np.uint64), half, keys)
    while (outside := values >= count).any():
        values[outside] = _unfeistel(values[outside], half, keys)
    return values


def _network(count: int, seed: int, epoch: int) -> tuple[int, list[np.uint64]]:
    """Half the bits of a value, and the keys of the rounds."""
    half = max(1, -(-max(1, (count - 1).bit_length()) // 2))
    text = sha256_bytes(f"rows/{seed}/{epoch}".encode())
    return half, [np.uint64(int(text[8 * i : 8 * i + 8], 16)) for i in range(_ROUNDS)]


def _feistel(values: npt.NDArray[np.uint64], half: int, keys: list[np.uint64]) -> npt.NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ (key << np.uint64(32))) & mask)
    return (left << bits) | right


def _unfeistel(values: npt.NDArray[np.uint64], half: int, keys: list[np.uint64]) -> npt.NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in reversed(keys):
        left, right = right ^ (_mix(left ^ (key << np.uint64(32))) & mask), left
    return (left << bits) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of the input reaches every bit out."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Rows:
    """All rows of one role of a token manifest, shards in the manifest's order."""

    shards: tuple[TokenShard, ...]
    starts: tuple[int, ...]
    """Number of the first row of each shard (or index of packed rows), and after them the number of all rows."""
    sequence_length: int
    packed: tuple[tuple[PackedRows, tuple[TokenShard, ...]], ...] = ()
    """Of packed rows: each index with the shards that it names; none: rows are stretches of the shards."""

    @property
    def count(self) -> int:
        """Rows of all shards."""
        return self.starts[-1]

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below this."""
        return self.shards[0].vocabulary_size

    @property
    def targets(self) -> int:
        """Tokens that are predicted over all rows: all but the first of each document."""
        return sum(len(shard.tokens) - len(shard.document_ends) for shard in self.shards)

    @property
    def document_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(int(shard.document_bytes.sum(dtype=np.uint64)) for shard in self.shards)

    def batch(self, numbers: list[int]) -> Batch:
        """The rows of these numbers, stacked, on the CPU."""
        import torch

        from pretrain.model.decoder import Batch

        rows = [self._row(number) for number in numbers]
        columns = ("tokens", "targets", "segments", "positions")
        stacked = [np.stack([getattr(row, column) for row in rows]) for column in columns]
        return Batch(*(torch.from_numpy(column) for column in stacked))

    def documents_of(self, numbers: Iterable[int]) -> list[str]:
        """The identities (`token_shards.document_identity`, hexadecimal) of the documents in these rows, each once."""
        found: dict[str, None] = {}
        for number in numbers:
            for shard, start, stop in self._pieces(number):
                first, last = np.searchsorted(shard.document_ends, np.array([start, stop - 1], np.uint64), side="right")
                found |= {identity.tobytes().hex(): None for identity in shard.identities[first : last + 1]}
        return list(found)

    def _pieces(self, number: int) -> Iterator[tuple[TokenShard, int, int]]:
        """The stretches of tokens that a row holds: shard, first token, one past the last."""
        place = bisect.bisect_right(self.starts, number) - 1
        index = number - self.starts[place]
        if not self.packed:
            shard, start = self.shards[place], index * self.sequence_length
            yield shard, start, min(start + self.sequence_length, len(shard.tokens))
            return
        rows, shards = self.packed[place]
        for piece in rows.pieces[int(rows.row_ends[index - 1]) if index else 0 : int(rows.row_ends[index])]:
            yield shards[piece["shard"]], int(piece["start"]), int(piece["start"]) + int(piece["length"])

    def _row(self, number: int) -> Row:
        place = bisect.bisect_right(self.starts, number) - 1
        if self.packed:
            return read_packed_row(*self.packed[place], number - self.starts[place])
        return read_row(self.shards[place], number - self.starts[place], self.sequence_length)


def altered_shards(tokens: Manifest, root: Path, rank: int, world_size: int) -> list[str]:
    """Problems, in words, of this rank's share of the token shards: their bytes against the manifest's digests.

    Of packed rows, the indices and the token shards that they were made from.

    Raises:
        MissingInput: the artifact of the token shards of packed rows is gone.
    """
    problems = []
    for output in _files_read(tokens, root)[rank::world_size]:
        path = root / output.path
        if not path.exists():
            problems.append(f"{path}: is missing")
        elif (found := sha256_file(path)) != output.sha256:
            problems.append(f"{path}: has sha256 {found[:16]}…, the manifest says {output.sha256[:16]}…")
    return problems


def _files_read(tokens: Manifest, root: Path) -> list[Output]:
    if tokens.stage != _PACKED:
        return list(tokens.outputs)
    return [*tokens.outputs, *_packed_from(tokens, root).outputs]


def _packed_from(packed: Manifest, root: Path) -> Manifest:
    """The manifest of the token shards that were packed.

    Raises:
        MissingInput: it is gone.
        ManifestError: it is another one now.
    """
    [source] = packed.inputs
    try:
        manifest = read_manifest(root / source.path)
    except MissingInput as error:
        raise MissingInput(
            f"{packed.folder}: indexes the token shards of {source.path}, which is not there. Bring that folder back, "
            f"or make it again with: assay data prepare CONFIG"
        ) from error
    if manifest.digest != source.digest:
        raise ManifestError(
            f"{packed.folder}: was packed from {source.path} with digest {source.digest[:16]}…, now "
            f"{manifest.digest[:16]}…. Remove both folders and make them again."
        )
    return manifest


def refuse_altered(problems: list[str]) -> None:
    """Raise if any rank found a problem.

    Raises:
        ManifestError: names every shard that is not what its manifest says.
    """
    if problems:
        raise ManifestError(
            "the token shards are not those of their manifest:\n  "
            + "\n  ".join(problems)
            + "\n  Remove these files and run the same command again: only they are made again."
        )


def open_rows(tokens: Manifest, role: str, root: Path, sequence_length: int) -> Rows:
    """Map the rows of `role` ("train" or "validation") of the stage "pack", or of any artifact of token shards.

    Raises:
        PipelineError: there are none, or they hold no row.
        ConfigError: the rows were packed for another sequence length.
        MissingInput: the token shards of packed rows are gone.
        ManifestError: a shard is torn, or shards disagree about the vocabulary.
    """
    packed = tokens.stage == _PACKED
    source = _packed_from(tokens, root) if packed else tokens
    shards = tuple(TokenShard.open(path) for path in source.files(role, root))
    indices = _open_packed(tokens, source, shards, (role, root, sequence_length)) if packed else ()
    counts = [index.count for index, _ in indices] if packed else [row_count(s, sequence_length) for s in shards]
    starts = tuple(itertools.accumulate(counts, initial=0))
    if not starts[-1]:
        raise PipelineError(
            f"{tokens.folder}: its {role} shards hold no token. Give the corpus more documents, or let the encode "
            f"stage keep more for {role}."
        )
    sizes = {shard.vocabulary_size for shard in shards}
    if len(sizes) > 1:
        raise ManifestError(f"{tokens.folder}: its {role} shards have vocabularies of {sorted(sizes)} tokens")
    return Rows(shards, starts, sequence_length, indices)


def _open_packed(
    packed: Manifest, source: Manifest, shards: tuple[TokenShard, ...], wanted: tuple[str, Path, int]
) -> tuple[tuple[PackedRows, tuple[TokenShard, ...]], ...]:
    """Each index of packed rows, with the shards that it names."""
    role, root, sequence_length = wanted
    digests = {root / output.path: output.sha256 for output in source.outputs}
    known = {digests[shard.path]: shard for shard in shards}
    indices = []
    for path in packed.files(role, root):
        index = PackedRows.open(path)
        if index.sequence_length != sequence_length:
            raise ConfigError(
                f"train.sequence_length = {sequence_length}: the rows of {packed.folder} were packed for "
                f"{index.sequence_length}. Set data.pack.sequence_length to the same value and prepare again, or "
                f"train with {index.sequence_length}."
            )
        indices.append((index, shards_of(index, known)))
    return tuple(indices)


def refuse_small(rows: Rows, global_batch_size: int) -> None:
    """Raise if one batch would show a row twice.

    Raises:
        PipelineError: with the numbers.
    """
    if rows.count < global_batch_size:
        raise PipelineError(
            f"the training shards hold {rows.count} rows of {rows.sequence_length} tokens, fewer than one batch of "
            f"{global_batch_size}. Lower train.global_batch_size or train.sequence_length, or add documents."
        )


def rows_of_step(step: int, global_batch_size: int, count: int, seed: int) -> list[int]:
    """The rows of optimizer step `step` (from 1), in their order over micro batches and ranks."""
    first = (step - 1) * global_batch_size
    numbers: list[int] = []
    while len(numbers) < global_batch_size:
        epoch, begin = divmod(first + len(numbers), count)
        stop = min(count, begin + global_batch_size - len(numbers))
        numbers += permute(np.arange(begin, stop, dtype=np.uint64), count, seed, epoch).tolist()
    return numbers


def micro_batches(numbers: list[int], micro_batch_size: int, rank: int, world_size: int) -> Iterator[list[int]]:
    """This rank's rows of a global batch: pass `a` of rank `r` takes the (a x world + r)-th group."""
    for start in range(rank * micro_batch_size, len(numbers), micro_batch_size * world_size):
        yield numbers[start : start + micro_batch_size]


def spread(count: int, most: int) -> list[int]:
    """At most `most` row numbers below `count`, evenly spread; all of them when they are few."""
    kept = min(count, most)
    return [index * count // kept for index in range(kept)]
