"""Conversion from and to Megatron-LM's IndexedDataset (`.bin`, `.idx`).

The `.bin` is the tokens of all sequences end to end. The `.idx`, little-endian, with s sequences:

      0   9  4d 4d 49 44 49 44 58 00 00   magic "MMIDIDX", two zeros
      9   8  01 00 00 00 00 00 00 00      version, 1
     17   1  08                           kind of a token, see `KINDS`: 8 is uint16, 4 is int32
     18   8  s                            sequences
     26   8  d                            entries of the document table: documents + 1
     34      s x int32                    tokens of each sequence
             s x int64                    byte of the `.bin` at which each sequence begins
             d x int64                    the sequence with which each document begins, and s at the end

Written: one sequence per document, end-of-document token included; uint16 while ids fit, else int32 (the format has no
uint32). The promise: export, then import, gives the same tokens and the same borders of documents. What the format has
no place for is lost: identities, groups and UTF-8 bytes of the documents; an imported document is `<name>#<number>` of
0 bytes, of the source `<name>` and an undetermined language. Lost, with a warning, are the marks of the tokens that are
predicted in chats and pairs, and labels.

Price: one pass, a block of tokens in memory to export, a shard to import. Nothing of Megatron is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from data_pipeline.tokens.token_shards import SUFFIX, EncodedDocument, TokenShard, group_name, write_token_shard
from governance.config import Section
from governance.errors import ManifestError, MissingInput, PipelineError
from governance.file_digests import Digests, is_unchanged
from governance.files import atomic_file
from governance.log import get_logger
from governance.manifest import Input, Manifest
from governance.parallel import Shard, ShardMade, map_shards, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 2
MAGIC = b"MMIDIDX\x00\x00"
FORMAT_VERSION = 1
KINDS = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Codes of the kinds of token; 6 and 7 are floating point and no tokens."""

_HEADER = struct.Struct("<9sQBQQ")
_BLOCK_TOKENS = 1 << 22
_LONGEST = (1 << 31) - 1
_ROLE = "train"

Integers = npt.NDArray[np.integer[Any]]


class MegatronConfig(Section):
    """Facts that `.bin` and `.idx` do not state."""

    vocabulary_size: int = Field(ge=1, le=1 << 24)
    """Every id is below it."""
    end_of_document: int = Field(ge=0)
    """Id of the token that ends a document; it is added where a document does not end with it."""
    shard_tokens: int = Field(default=1 << 25, ge=1)
    """Tokens after which a token shard is closed, at a document's end."""

    @model_validator(mode="after")
    def _check(self) -> MegatronConfig:
        if self.end_of_document >= self.vocabulary_size:
            raise ValueError(f"end_of_document {self.end_of_document} is not below {self.vocabulary_size}")
        return self


def files_of(prefix: Path) -> tuple[Path, Path]:
    """The `.bin` and the `.idx` of a prefix."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def export_megatron(tokens: Manifest, role: str, prefix: Path, root: Path) -> tuple[Path, Path]:
    """Write a role's documents as `<prefix>.bin` and `<prefix>.idx`.

    Raises:
        PipelineError: the role has no shards, or a document is longer than the format allows.
        ManifestError: a shard is torn.
        StorageError: the disk is full.
    """
    shards = [TokenShard.open(path) for path in tokens.files(role, root)]
    if not shards:
        raise PipelineError(f"{tokens.folder}: has no token shards of {role!r} to export; roles are train, validation")
    if any(shard.answers is not None or shard.labels is not None for shard in shards):
        get_logger(__name__).warning(
            "%s: the format has no place for answers, targets or labels; a training on the export predicts every token",
            tokens.folder,
        )
    code = 8 if all(shard.vocabulary_size <= 1 << 16 for shard in shards) else 4
    target, index = files_of(prefix)
    with atomic_file(target) as file:
        for shard in shards:
            for start in range(0, len(shard.tokens), _BLOCK_TOKENS):
                file.write(shard.tokens[start : start + _BLOCK_TOKENS].astype(KINDS[code]).data)
    documents = sum(len(shard.document_ends) for shard in shards)
    with atomic_file(index) as file:
        file.write(_HEADER.pack(MAGIC, FORMAT_VERSION, code, documents, documents + 1))
        for shard in shards:
            lengths = np.diff(shard.document_ends.astype(np.int64), prepend=0)
            if len(lengths) and int(lengths.max()) > _LONGEST:
                raise PipelineError(f"{shard.path}: has a document of {lengths.max()} tokens; .idx ends at {_LONGEST}")
            file.write(lengths.astype("<i4").data)
        before = 0
        for shard in shards:
            ends = shard.document_ends.astype("<i8")
            starts = np.concatenate((np.zeros(min(1, len(ends)), "<i8"), ends[:-1]))
            file.write(((starts + before) * np.dtype(KINDS[code]).itemsize).astype("<i8").data)
            before += len(shard.tokens)
        for start in range(0, documents + 1, _BLOCK_TOKENS):
            file.write(np.arange(start, min(start + _BLOCK_TOKENS, documents + 1), dtype="<i8").data)
    return target, index


@dataclass(frozen=True)
class MegatronIndex:
    """An open pair of files.

    Its arrays are views of the mapped files and read-only.
    """

    path: Path
    """The `.idx`."""
    tokens: Integers
    """The whole `.bin`."""
    lengths: npt.NDArray[np.int32]
    """[sequences], tokens."""
    pointers: npt.NDArray[np.int64]
    """[sequences], bytes into the `.bin`."""
    documents: npt.NDArray[np.int64]
    """[documents + 1], sequences."""

    def document(self, number: int) -> Integers:
        """The tokens of one document: its sequences, joined."""
        sequences = range(int(self.documents[number]), int(self.documents[number + 1]))
        item = self.tokens.dtype.itemsize
        parts = [self.tokens[(at := int(self.pointers[s]) // item) : at + int(self.lengths[s])] for s in sequences]
        return parts[0] if len(parts) == 1 else np.concatenate([self.tokens[:0], *parts])


def open_indexed(prefix: Path) -> MegatronIndex:
    """Map `<prefix>.bin` and `<prefix>.idx`, and check that they fit together.

    Raises:
        MissingInput: one is not there.
        ManifestError: it is not of this format, torn, or the two do not belong together.
    """
    path, index = files_of(prefix)
    try:
        size, room = path.stat().st_size, index.stat().st_size
        with open(index, "rb") as file:
            head = file.read(_HEADER.size)
    except OSError as error:
        raise MissingInput(
            f"cannot read {error.filename}: {error.strerror}. Give the prefix of a .bin and an .idx"
        ) from error
    if len(head) < _HEADER.size or head[:9] != MAGIC:
        raise ManifestError(f"{index}: is not a Megatron index (begins with {head[:9]!r}, not {MAGIC!r})")
    _, version, code, sequences, entries = _HEADER.unpack(head)
    if version != FORMAT_VERSION or code not in KINDS:
        raise ManifestError(
            f"{index}: has version {version} and token kind {code}; version {FORMAT_VERSION} and the kinds "
            f"{sorted(KINDS)} are read"
        )
    # An index of several modalities has a byte more per sequence at its end; we read text only.
    if room != (expected := _HEADER.size + 12 * sequences + 8 * entries):
        raise ManifestError(f"{index}: is truncated or overlong: it has {room} bytes, its header states {expected}")
    if size % np.dtype(KINDS[code]).itemsize:
        raise ManifestError(f"{path}: is truncated: {size} bytes are not whole tokens of kind {KINDS[code]}")
    mapped = np.memmap(index, dtype=np.uint8, mode="r")
    first, second = _HEADER.size + 4 * sequences, _HEADER.size + 12 * sequences
    indexed = MegatronIndex(
        path=index,
        tokens=np.memmap(path, dtype=KINDS[code], mode="r") if size else np.zeros(0, KINDS[code]),
        lengths=mapped[_HEADER.size : first].view("<i4"),
        pointers=mapped[first:second].view("<i8"),
        documents=mapped[second:].view("<i8"),
    )
    _check(indexed, size)
    return indexed


def _check(indexed: MegatronIndex, size: int) -> None:
    item, documents = indexed.tokens.dtype.itemsize, indexed.documents
    rising = len(documents) > 0 and int(documents[0]) == 0 and bool((np.diff(documents) >= 0).all())
    if not rising or int(documents[-1]) != len(indexed.lengths):
        raise ManifestError(f"{indexed.path}: its documents do not increase to {len(indexed.lengths)}, its sequences")
    lengths, pointers = indexed.lengths.astype(np.int64), indexed.pointers
    if not len(lengths):
        return
    if int(lengths.min()) < 0 or int(pointers.min()) < 0 or bool((pointers % item).any()):
        raise ManifestError(f"{indexed.path}: has a negative length, or a sequence that begins within a token")
    if int(pointers.max()) > size or int((pointers + lengths * item).max()) > size:  # a sum may overflow
        raise ManifestError(f"{indexed.path}: points beyond the {size} bytes of its .bin: the two are not of one pair")


def cut_documents(indexed: MegatronIndex, shard_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, stop) of documents, each of about `shard_tokens` tokens.

    A longer document is one by itself.
    """
    sums = np.concatenate(([0], np.cumsum(indexed.lengths, dtype=np.int64)))
    ends = sums[indexed.documents]
    first, documents = 0, len(ends) - 1
    while first < documents:
        stop = int(np.searchsorted(ends, ends[first] + shard_tokens, side="right")) - 1
        stop = min(documents, max(first + 1, stop))
        yield first, stop
        first = stop


Known = tuple[tuple[Path, tuple[int, ...], str], ...]
"""Each file with its facts and its digest, as they were when the digest was taken."""


def _import_shard(
    config: MegatronConfig, work: tuple[Path, int, int, Known], path_of: Callable[[str], Path]
) -> ShardMade:
    prefix, first, stop, known = work
    indexed = open_indexed(prefix)
    documents: list[EncodedDocument] = []
    added = 0
    for number in range(first, stop):
        ids = indexed.document(number)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < config.vocabulary_size:
            raise PipelineError(
                f"{indexed.path}: document {number} has ids from {ids.min()} to {ids.max()}; they must be below "
                f"vocabulary_size {config.vocabulary_size}. Give the size of the tokenizer that made them."
            )
        if not len(ids) or ids[-1] != config.end_of_document:
            ids = np.append(ids.astype(np.int64), config.end_of_document)
            added += 1
        documents.append(EncodedDocument(f"{prefix.name}#{number}", ids, 0, group_name(prefix.name, "")))
    for path, facts, digest in known:
        if not is_unchanged(path, facts, digest, again=False):  # not all of it again for each shard
            raise MissingInput(f"{path} was changed while it was read. Run again when nothing writes to the file.")
    target = path_of(_ROLE)
    write_token_shard(target, documents, config.vocabulary_size, config.end_of_document)
    counts = {"documents": len(documents), "tokens": sum(len(document.tokens) for document in documents)}
    return ShardMade({_ROLE: target}, {**{f"{_ROLE}_{k}": v for k, v in counts.items()}, "ends_added": added})


def import_megatron(prefix: Path, config: MegatronConfig, runtime: Runtime) -> Manifest:
    """Make token shards (role `train`) of `<prefix>.bin` and `<prefix>.idx`.

    They can be packed and trained on.

    `stats`: the common counts (bytes are not known: 0; the source is the prefix's name), `train_documents`,
    `train_tokens`, `ends_added` (documents to which the end-of-document token was added), `vocabulary_size`,
    `end_of_document`.

    Raises:
        MissingInput: a file is not there, or was changed while it was read.
        ManifestError: a file is torn or alien.
        PipelineError: an id is outside the vocabulary, or the index has no document.
    """
    paths = files_of(prefix)
    taken = Digests(runtime)
    inputs = [Input(stage="file", digest=taken.of(path), path=path.name) for path in paths]
    taken.save()
    known = tuple((path, taken.facts(path), item.digest) for path, item in zip(paths, inputs, strict=True))

    def make(folder: Path) -> Made:
        indexed = open_indexed(prefix)
        cuts = list(cut_documents(indexed, config.shard_tokens))
        if not cuts:
            raise PipelineError(f"{paths[1]}: holds no document")
        digests = tuple(item.digest for item in inputs)
        shards = [
            Shard(f"{number:05d}", (*digests, prefix.name, f"{first}-{stop}"), (prefix, first, stop, known))
            for number, (first, stop) in enumerate(cuts)
        ]
        done = map_shards(Recipe("megatron", VERSION, config), _import_shard, shards, folder, runtime, SUFFIX)
        stats = {**sum_stats([shard.stats for shard in done]), **_funnel(prefix.name, cuts)}
        stats |= {"vocabulary_size": config.vocabulary_size, "end_of_document": config.end_of_document}
        return Made([output for shard in done for output in shard.outputs.values()], stats)

    return run_stage(Recipe("megatron", VERSION, config), inputs, runtime, make)


def _funnel(source: str, cuts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    count = cuts[-1][1]
    counts = {"documents_in": count, "documents_kept": count, "bytes_in": 0, "bytes_kept": 0}
    return {**counts, "removed": {}, "by_source": {source: {**counts, "removed": {}}}}
