"""Packed rows: a memory-mapped index over pieces of token shards.

It does not copy the tokens. All numbers are little-endian. A whole example, rows of 4 positions over one shard
that holds documents of 3 and 2 tokens (offsets 0..2 and 3..4), in hexadecimal:

    offset 0, the header, 64 bytes:
      0   8  41 53 53 41 59 52 4f 57  magic "ASSAYROW"
      8   4  01 00 00 00              format version, 1
      12  4  04 00 00 00              sequence length L, positions of a row
      16  8  01 00 ...                rows, 1
      24  8  02 00 ...                pieces, 2
      32  8  01 00 ...                token shards, 1
      40  8  03 00 ...                positions used, 3: the sum of the pieces' lengths
      48  8  60 00 ...                offset of the row ends, 96: 64 + 32 x shards
      56  8  88 00 ...                bytes of the whole file, 136
    offset 64, the shards:            32 bytes each: the SHA-256 of the token shard's file
    offset 96, row ends:              2 as uint64: one past the last piece of each row
    offset 104, the pieces:           16 bytes each: start (uint64), length (uint32), shard (uint32, from 0):
                                      00 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00
                                      03 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00

A piece is a run of *predictions*: its inputs are the tokens [start, start + length) of the shard, its targets the
tokens [start + 1, start + length + 1), all of one document. So a document of n tokens fills n - 1 positions; its last
token, the end of the document, is a target and never an input, for nothing follows it. Over all rows every token but
the first of its document is a target exactly once. Each piece is a segment of its row; its positions count from 0.

A reader finds the shards by their digests, wherever they are, and refuses another magic or version, a size that differs
from the header's, a row longer than L, a piece that leaves its shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.tokens.token_shards import FIX, HEADER, NO_TARGET, ShardRow, TokenShard, map_whole, read_header
from governance.errors import ManifestError
from governance.files import atomic_file

MAGIC = b"ASSAYROW"
FORMAT_VERSION = 1
SUFFIX = ".rows"
PIECE = np.dtype([("start", "<u8"), ("length", "<u4"), ("shard", "<u4")])

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class PackedRows:
    """An open index.

    Its arrays are views of the memory-mapped file and read-only.
    """

    path: Path
    sequence_length: int
    shards: tuple[str, ...]
    """SHA-256 of each token shard, hexadecimal."""
    row_ends: npt.NDArray[np.uint64]
    """[rows], one past the last piece of each row."""
    pieces: npt.NDArray[Any]
    """[pieces] of `PIECE`."""
    used: int
    """Positions that carry a prediction."""

    @classmethod
    def open(cls, path: Path) -> PackedRows:
        """Map an index and check that it is whole.

        Raises:
            MissingInput: the file is missing.
            ManifestError: it is not an index of packed rows, has another version, or is torn; names the file.
        """
        _, *sizes = read_header(path, "an index of packed rows", MAGIC, (FORMAT_VERSION,))
        length, rows, pieces, shards, used, ends_offset, total = sizes
        if not length or (ends_offset, total) != _layout(rows, pieces, shards):
            raise ManifestError(f"{path}: its header contradicts itself. {FIX}")
        mapped = map_whole(path, total)
        digests = mapped[HEADER.size : ends_offset].tobytes().hex()
        packed = cls(
            path=path,
            sequence_length=length,
            shards=tuple(digests[at : at + 64] for at in range(0, len(digests), 64)),
            row_ends=mapped[ends_offset : ends_offset + 8 * rows].view("<u8"),
            pieces=mapped[ends_offset + 8 * rows :].view(PIECE),
            used=used,
        )
        _check(packed)
        return packed

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.row_ends)


def _layout(rows: int, pieces: int, shards: int) -> tuple[int, int]:
    """Offset of the row ends, and bytes of the whole file."""
    ends_offset = HEADER.size + _DIGEST_BYTES * shards
    return ends_offset, ends_offset + 8 * rows + PIECE.itemsize * pieces


def _check(packed: PackedRows) -> None:
    ends = packed.row_ends.astype(np.int64)
    counts = np.diff(ends, prepend=0)
    lengths = packed.pieces["length"].astype(np.int64)
    whole = (int(ends[-1]) if len(ends) else 0) == len(lengths) and bool((counts > 0).all())
    if not whole or int(lengths.sum()) != packed.used or not (lengths > 0).all():
        raise ManifestError(f"{packed.path}: its rows do not hold its {len(lengths)} pieces. {FIX}")
    if len(ends) and int(np.add.reduceat(lengths, ends - counts).max()) > packed.sequence_length:
        raise ManifestError(f"{packed.path}: has a row of more than {packed.sequence_length} positions. {FIX}")
    if len(lengths) and int(packed.pieces["shard"].max()) >= len(packed.shards):
        raise ManifestError(f"{packed.path}: a piece names a shard that it does not list. {FIX}")


def write_packed_rows(
    path: Path, sequence_length: int, shards: Sequence[str], row_ends: npt.NDArray[np.int64], pieces: npt.NDArray[Any]
) -> None:
    """Write one index, whole or not at all.

    `shards` are digests in hexadecimal, `pieces` of dtype `PIECE`.

    Raises:
        StorageError: the disk is full or refuses.
    """
    rows, used = len(row_ends), int(pieces["length"].sum(dtype=np.uint64))
    ends_offset, total = _layout(rows, len(pieces), len(shards))
    counts = (sequence_length, rows, len(pieces), len(shards), used, ends_offset, total)
    with atomic_file(path) as file:
        file.write(HEADER.pack(MAGIC, FORMAT_VERSION, *counts))
        file.write(bytes.fromhex("".join(shards)))
        file.write(np.ascontiguousarray(row_ends, dtype="<u8").data)
        file.write(np.ascontiguousarray(pieces, dtype=PIECE).tobytes())


def shards_of(packed: PackedRows, known: Mapping[str, TokenShard]) -> tuple[TokenShard, ...]:
    """Token shards of an index, found by digest and checked.

    Raises:
        ManifestError: one is not among them, or is shorter than a piece requires.
    """
    missing = [digest for digest in packed.shards if digest not in known]
    if missing:
        raise ManifestError(f"{packed.path}: was packed from a token shard of sha256 {missing[0][:16]}…, not there now")
    shards = tuple(known[digest] for digest in packed.shards)
    last = packed.pieces["start"] + packed.pieces["length"]
    sizes = np.array([len(shard.tokens) for shard in shards], dtype=np.uint64)
    if len(last) and bool((last >= sizes[packed.pieces["shard"]]).any()):
        raise ManifestError(f"{packed.path}: has a piece beyond the end of its shard. {FIX}")
    return shards


def read_packed_row(packed: PackedRows, shards: Sequence[TokenShard], index: int) -> ShardRow:
    """Row `index`, see the module's law; costs O(L).

    The padding is a segment of its own, after the last piece.

    Raises:
        IndexError: `index` is not below the number of rows.
    """
    if not 0 <= index < packed.count:
        raise IndexError(f"{packed.path}: row {index} of {packed.count}")
    length = packed.sequence_length
    tokens = np.full(length, shards[0].end_of_document, dtype=np.int64)
    targets = np.full(length, NO_TARGET, dtype=np.int64)
    first = int(packed.row_ends[index - 1]) if index else 0
    pieces = packed.pieces[first : int(packed.row_ends[index])]
    ends = np.cumsum(pieces["length"], dtype=np.int64)
    begins = ends - pieces["length"]
    documents = np.full(len(pieces) + (int(ends[-1]) < length), -1, dtype=np.int64)
    for place, (piece, begin, end) in enumerate(zip(pieces, begins.tolist(), ends.tolist(), strict=True)):
        shard, start = shards[piece["shard"]], int(piece["start"])
        documents[place] = np.searchsorted(shard.document_ends, piece["start"], side="right")
        stream = shard.tokens[start : start + (end - begin) + 1]
        tokens[begin:end] = stream[:-1]
        targets[begin:end] = shard.targets(start + 1, start + (end - begin) + 1)
        if shard.labels is not None:
            targets[end - 1] = shard.labels[documents[place]]
    bounds = np.append(begins, ends[-1]) if ends[-1] < length else begins
    sizes = np.diff(np.append(bounds, length))
    segments = np.repeat(np.arange(len(bounds), dtype=np.int32), sizes)
    positions = (np.arange(length) - np.repeat(bounds, sizes)).astype(np.int32)
    owners = np.zeros(len(documents), dtype=np.int64)
    owners[: len(pieces)] = pieces["shard"]
    return ShardRow(tokens, targets, segments, positions, documents, owners)


def locate(packed: PackedRows, place: int) -> tuple[int, int] | None:
    """The (shard number, token offset) of position `place`, counted over all rows.

    The result is None for padding.

    Raises:
        IndexError: `place` is not below rows x L.
    """
    if not 0 <= place < packed.count * packed.sequence_length:
        raise IndexError(f"{packed.path}: position {place} of {packed.count * packed.sequence_length}")
    row, position = divmod(place, packed.sequence_length)
    first = int(packed.row_ends[row - 1]) if row else 0
    for piece in packed.pieces[first : int(packed.row_ends[row])]:
        if position < int(piece["length"]):
            return int(piece["shard"]), int(piece["start"]) + position
        position -= int(piece["length"])
    return None
