"""Rows of token shards, by number.

Rows come from the artifact of the stage "encode" (consecutive stretches of each shard's stream) or from that of "pack"
(pieces of documents, chosen so that few are cut). For both, over all rows, every token but the first of its document is
a target exactly once, and no target crosses a document's end.

Each token of a row has a document, and so an *origin*: the group "<source>/<language>" of that document in its shard.
The source of a row is that of its first token.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_pipeline.tokens.packed_rows import PackedRows, read_packed_row, shards_of
from data_pipeline.tokens.token_shards import ShardRow, TokenShard, read_row, row_count
from governance.errors import AlteredFile, ConfigError, ManifestError, MissingInput, PipelineError
from governance.files import sha256_file
from governance.log import get_logger
from governance.manifest import Manifest, Output, read_manifest
from governance.verified_files import file_state, require_unchanged
from pretrain.config.training import TrainConfig
from pretrain.data.mixture import MixtureSource, sources_of
from pretrain.data.removed_documents import places_in, rows_of_pieces, rows_of_stretches, without

if TYPE_CHECKING:
    import torch

    from pretrain.model.decoder import Batch

NO_ORIGIN = -1  # origin of a position where nothing is predicted
_PACKED = "pack"  # the stage whose artifact indexes the shards of its input


@dataclass(frozen=True)
class Rows:
    """Rows of one role of a token manifest."""

    shards: tuple[TokenShard, ...]
    starts: tuple[int, ...]
    """Number of the first row of each shard (or index of packed rows), then the total number of rows."""
    sequence_length: int
    packed: tuple[tuple[PackedRows, tuple[TokenShard, ...]], ...] = ()
    """Each index of packed rows with the shards that it names; empty: rows are stretches of the shards."""
    changed: Callable[[], tuple[list[str], list[str]]] = field(default=lambda: ([], []), compare=False)
    """Error texts of shards that were changed since their bytes were verified; shards touched since the last look."""
    drawn: Callable[[list[int]], npt.NDArray[np.int64]] | None = field(default=None, compare=False)
    """Tokens [rows, L, samples] that were drawn from a teacher for rows of these numbers; None: there are none."""
    corruption: Callable[[Batch, torch.Tensor], Batch] | None = field(default=None, compare=False)
    """Rows with spans left out (`span_corruption.py`), from a random number of each; None: as they are."""
    removed: frozenset[bytes] = frozenset()
    """Identities of documents whose places are as padding (`removed_documents.py`)."""

    @property
    def count(self) -> int:
        """Rows of all shards."""
        return self.starts[-1]

    @property
    def vocabulary_size(self) -> int:
        """Exclusive upper bound of token ids."""
        return self.shards[0].vocabulary_size

    @property
    def targets(self) -> int:
        """Predicted tokens over all rows, as `TokenShard.document_targets` counts them."""
        return sum(self.origin_targets)

    @property
    def document_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(self.origin_bytes)

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """The groups of the documents, "<source>/<language>", sorted; `Batch.origins` numbers them."""
        return tuple(sorted({name for shard in self.shards for name in shard.group_names}))

    @cached_property
    def origin_targets(self) -> tuple[int, ...]:
        """Predicted tokens over all rows, by origin."""
        return self._by_origin(lambda shard: shard.document_targets())

    @cached_property
    def origin_bytes(self) -> tuple[int, ...]:
        """UTF-8 bytes of the documents, by origin."""
        return self._by_origin(lambda shard: shard.document_bytes.astype(np.int64))

    def _by_origin(self, values: Callable[[TokenShard], npt.NDArray[np.int64]]) -> tuple[int, ...]:
        sums = np.zeros(len(self.origins), dtype=np.int64)
        for shard in self.shards:
            counts = values(shard)
            if self.removed:
                counts[places_in(shard, self.removed)] = 0
            np.add.at(sums, self._numbers[shard.path][shard.groups], counts)
        return tuple(sums.tolist())

    @cached_property
    def _numbers(self) -> dict[Path, npt.NDArray[np.int64]]:
        """Origin of each group, by shard."""
        place = {name: number for number, name in enumerate(self.origins)}
        return {shard.path: np.array([place[name] for name in shard.group_names], np.int64) for shard in self.shards}

    def batch(self, numbers: list[int]) -> Batch:
        """Rows of these numbers, stacked, on the CPU."""
        import torch

        from pretrain.model.decoder import Batch

        rows = [self._row(number) for number in numbers]
        columns = ("tokens", "targets", "segments", "positions")
        stacked = [np.stack([getattr(row, column) for row, _ in rows]) for column in columns]
        origins = np.stack([self._origins(row, shards)[row.segments] for row, shards in rows])
        origins[stacked[1] < 0] = NO_ORIGIN
        drawn = [self.drawn(numbers)] if self.drawn is not None else []
        return Batch(*(torch.from_numpy(column) for column in (*stacked, origins, *drawn)))

    def corrupted(self, batch: Batch, seeds: torch.Tensor) -> Batch:
        """The batch as the model learns from it."""
        return batch if self.corruption is None else self.corruption(batch, seeds)

    def documents_of(self, numbers: Iterable[int]) -> list[str]:
        """Distinct identities (`token_shards.document_identity`, hexadecimal) of the documents in these rows."""
        found: dict[str, None] = {}
        for row, shards in map(self._row, numbers):
            for document, shard in zip(row.documents.tolist(), row.shards.tolist(), strict=True):
                if document >= 0:
                    found[shards[shard].identities[document].tobytes().hex()] = None
        return list(found)

    def holding(self, identities: frozenset[bytes]) -> npt.NDArray[np.int64]:
        """Numbers of the rows that hold a token of these documents, ascending."""
        return self._holding({shard.path: places_in(shard, identities) for shard in self.shards})

    def _holding(self, places: dict[Path, npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        parts = [
            rows_of_pieces(index, [(number, shard, places[shard.path]) for number, shard in enumerate(shards)])
            for index, shards in self.packed
        ] or [rows_of_stretches(shard, places[shard.path], self.sequence_length) for shard in self.shards]
        return np.concatenate([start + part for start, part in zip(self.starts, parts, strict=False)])

    def holding_sources(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        """Numbers of the rows that hold a document of these sources."""
        wanted = [number for number, name in enumerate(self.origins) if _source(name) in set(names)]
        origins = {shard.path: self._numbers[shard.path][shard.groups] for shard in self.shards}
        return self._holding({path: np.flatnonzero(np.isin(each, wanted)) for path, each in origins.items()})

    def sources(self) -> tuple[MixtureSource, ...]:
        """Sources by name, with the rows of each.

        It looks up every row once (0.03 s per million).
        """
        names = sorted({_source(name) for name in self.origins})
        owners = np.array([names.index(_source(name)) for name in self.origins], dtype=np.int32)
        return sources_of(names, np.concatenate([owners[part] for part in self._first_origins()]))

    def _first_origins(self) -> Iterator[npt.NDArray[np.int64]]:
        """Origin of each row's first token, in row order."""
        if not self.packed:
            for shard in self.shards:
                rows = np.arange(row_count(shard, self.sequence_length), dtype=np.uint64)
                yield self._origins_at(shard, rows * np.uint64(self.sequence_length))
        for index, shards in self.packed:
            firsts = index.pieces[np.append(np.uint64(0), index.row_ends[:-1]).astype(np.int64)]
            origins = np.empty(len(firsts), dtype=np.int64)
            for number in np.unique(firsts["shard"]).tolist():
                mine = firsts["shard"] == number
                origins[mine] = self._origins_at(shards[number], firsts["start"][mine])
            yield origins

    def _origins_at(self, shard: TokenShard, tokens: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        documents = np.searchsorted(shard.document_ends, tokens, side="right")
        return self._numbers[shard.path][shard.groups[documents]]

    def _origins(self, row: ShardRow, shards: Sequence[TokenShard]) -> npt.NDArray[np.int64]:
        """Origin of each piece of a row."""
        origins = np.full(len(row.documents), NO_ORIGIN, dtype=np.int64)
        for number in set(row.shards.tolist()):
            shard, mine = shards[number], (row.shards == number) & (row.documents >= 0)
            origins[mine] = self._numbers[shard.path][shard.groups[row.documents[mine]]]
        return origins

    def _row(self, number: int) -> tuple[ShardRow, Sequence[TokenShard]]:
        """Row, and the shards that its pieces number."""
        place = bisect.bisect_right(self.starts, number) - 1
        within = number - self.starts[place]
        index, shards = self.packed[place] if self.packed else (None, (self.shards[place],))
        row = read_packed_row(index, shards, within) if index else read_row(shards[0], within, self.sequence_length)
        return (without(row, shards, self.removed) if self.removed else row), shards


def without_removed(rows: Rows, train: TrainConfig) -> Rows:
    """The rows without the documents of `train.removed_documents`."""
    return replace(rows, removed=frozenset(map(bytes.fromhex, train.removed_documents)))


def refuse_unknown_documents(removed: frozenset[bytes], rows: Sequence[Rows]) -> None:
    """Raise where no row holds a document that is removed.

    Raises:
        ConfigError: names up to three.
    """
    shards = [shard for each in rows for shard in each.shards]
    found = {shard.identities[place].tobytes() for shard in shards for place in places_in(shard, removed)}
    if unknown := sorted(identity.hex() for identity in removed - found):
        raise ConfigError(
            f"train.removed_documents: {len(unknown)} document(s) are not in the token shards, such as "
            f"{', '.join(unknown[:3])}. `assay governance impact` gives the identities of documents."
        )


def _source(origin: str) -> str:
    return origin.rpartition("/")[0]


def altered_shards(tokens: Manifest, root: Path, rank: int, world_size: int) -> list[str]:
    """Error texts of altered token shards, this rank's share.

    The shards' bytes are compared with the manifest's digests.

    Packed rows are checked with the token shards that they were made from.

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


def watch_shards(tokens: Manifest, root: Path, rank: int, world_size: int) -> Callable[[], tuple[list[str], list[str]]]:
    """Watch this rank's share of the token shards.

    It is called before their bytes are verified. They are mapped, so bytes that are written over while a training
    reads them would be trained. The returned function gives the error texts of files that were changed since, and the
    names of those that were touched since its last call: their bytes are right, but may have been others in between.
    """
    files = [(output, root / output.path) for output in _files_read(tokens, root)[rank::world_size]]
    # The verification names those that are missing.
    watched = [(output, path, file_state(path)) for output, path in files if path.exists()]

    def changed() -> tuple[list[str], list[str]]:
        texts, touched = [], []
        for place, (output, path, state) in enumerate(watched):
            try:
                now = require_unchanged(output, path, state)
            except (AlteredFile, MissingInput) as error:
                texts.append(str(error))
                continue
            if now != state:
                touched.append(output.path)
                watched[place] = (output, path, now)
                get_logger(__name__).warning(
                    "%s: was touched while it was read (a new name or mode, or bytes that were put back): its bytes "
                    "are those of its manifest, and nobody can tell what they were in between",
                    path,
                )
        return texts, touched

    return changed


def _files_read(tokens: Manifest, root: Path) -> list[Output]:
    if tokens.stage != _PACKED:
        return list(tokens.outputs)
    return [*tokens.outputs, *packed_from(tokens, root).outputs]


def packed_from(packed: Manifest, root: Path) -> Manifest:
    """Manifest of the token shards that were packed.

    Raises:
        MissingInput: it is gone.
        ManifestError: its digest has changed.
    """
    [source] = packed.inputs
    try:
        manifest = read_manifest(root / source.path)
    except MissingInput as error:
        raise MissingInput(
            f"{packed.folder}: indexes the token shards of {source.path}, which is missing. Restore that folder, "
            f"or make it again with: assay data prepare CONFIG"
        ) from error
    if manifest.digest != source.digest:
        raise ManifestError(
            f"{packed.folder}: was packed from {source.path} with digest {source.digest[:16]}…, now "
            f"{manifest.digest[:16]}…. Remove both folders and make them again."
        )
    return manifest


def refuse_altered(
    problems: list[str], what: str = "the token shards", command: str = "assay data prepare CONFIG"
) -> None:
    """Raise if any rank found a problem; `command` makes the files again.

    Raises:
        AlteredFile: names every file that differs from its manifest.
    """
    if problems:
        raise AlteredFile(
            f"{what} differ from their manifest:\n  "
            + "\n  ".join(problems)
            + f"\n  Remove these files, then make them again, and only them, with: {command}"
        )


def holds_validation(tokens: Manifest, root: Path) -> bool:
    """Return whether any document was held out."""
    return bool(tokens.files("validation", root)) and bool(tokens.stats.get("validation_tokens", 1))


def open_rows(tokens: Manifest, role: str, root: Path, sequence_length: int) -> Rows:
    """Map the rows of `role`, packed or from token shards.

    Raises:
        PipelineError: there are none, or they hold no row.
        ConfigError: the rows were packed for another sequence length.
        MissingInput: the token shards of packed rows are gone.
        ManifestError: a shard is torn, or shards disagree about the vocabulary.
    """
    packed = tokens.stage == _PACKED
    source = packed_from(tokens, root) if packed else tokens
    shards = tuple(TokenShard.open(path) for path in source.files(role, root))
    indices = _open_packed(tokens, source, shards, (role, root, sequence_length)) if packed else ()
    counts = [index.count for index, _ in indices] if packed else [row_count(s, sequence_length) for s in shards]
    if not packed and any(shard.labels is not None for shard in shards):
        raise ConfigError(f"{tokens.folder}: labelled documents are trained from packed rows; add [data.pack]")
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


def refuse_other_than_pairs(tokens: Manifest, root: Path) -> None:
    """Raise unless the rows hold whole pairs of texts.

    Raises:
        ConfigError: the token shards are of other texts, or rows may cut them.
    """
    encoded = packed_from(tokens, root) if tokens.stage == _PACKED else tokens
    if tokens.stage != _PACKED or encoded.config.get("loss_on") != "targets" or tokens.stats.get("train_cuts"):
        raise ConfigError(
            f"model.encoder_layers is set, but {tokens.folder} has no whole pairs of texts. Read them with sources of "
            f"type 'parallel', and set data.encode.loss_on = 'targets' and [data.pack] with min_used_share = 0."
        )


def refuse_small(count: int, sequence_length: int, global_batch_size: int) -> None:
    """Raise if one batch would show one of `count` rows twice.

    Raises:
        PipelineError: states both numbers.
    """
    if count < global_batch_size:
        raise PipelineError(
            f"the training shards hold {count} rows of {sequence_length} tokens, fewer than one batch of "
            f"{global_batch_size}. Lower train.global_batch_size or train.sequence_length, or add documents."
        )


def micro_batches(numbers: list[int], micro_batch_size: int, rank: int, world_size: int) -> Iterator[list[int]]:
    """This rank's micro batches of a global batch.

    Pass a of rank r takes group number a x world + r.
    """
    for start in range(rank * micro_batch_size, len(numbers), micro_batch_size * world_size):
        yield numbers[start : start + micro_batch_size]


def spread(count: int, most: int) -> list[int]:
    """At most `most` row numbers below `count`, evenly spread."""
    kept = min(count, most)
    return [index * count // kept for index in range(kept)]
