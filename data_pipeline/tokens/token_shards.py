r"""Token shards: memory-mapped token streams with document bounds.

All numbers are little-endian, whatever the machine. A whole example, two documents of 3 and 2 tokens in the groups
"a/en" and "b/en", in hexadecimal:

    offset 0, the header, 64 bytes:
      0   8  41 53 53 41 59 54 4f 4b  magic "ASSAYTOK"
      8   4  02 00 00 00              format version, 2
      12  4  02 00 00 00              bytes of a token: 2 (ids below 65,536) or 4
      16  8  00 7d 00 00 00 00 00 00  vocabulary size, 32,000
      24  8  00 ...                   id of the end-of-document token, 0
      32  8  05 00 ...                tokens, 5
      40  8  02 00 ...                documents, 2
      48  8  50 00 ...                offset of the document ends, 80: 64 + 5 x 2 rounded up to 8
      56  8  a2 00 ...                bytes of the whole file, 162
    offset 64, the tokens:            11 00 22 00 00 00 | 33 00 00 00, then zeros up to a multiple of 8
    offset 80, document ends:         3, 5 as uint64: one past the last token of each document
    offset 96, document byte counts:  9, 4 as uint64: UTF-8 bytes of each text (for bits per byte)
    offset 112, document identities:  16 bytes each: the first half of the SHA-256 of the document's id
    offset 144, document groups:      0, 1 as uint32, then zeros up to a multiple of 8
    offset 152, names of the groups:  "a/en\n" "b/en\n", UTF-8, up to the file's end

A document's *group* is its "<source>/<language>" (`group_name`). A shard of version 3 knows which tokens training
predicts: before the names it has a byte for each token, 1 for a token of an answer (`answers.py`), then zeros up to a
multiple of 8; its document byte counts are those of the answers. A shard of version 4 is of labelled documents
(`labels.py`): before the names it has the number of each document's label as uint32, then zeros up to a multiple of 8;
nothing but the label is predicted, at the last token of the text, and its document byte counts are those of the labels'
names.

A document's last token is the end-of-document token, so a document has at least one token. A reader refuses another
magic or version, a size that differs from the header's, ends that do not increase up to the number of tokens, a group
without a name.

The trainer reads *rows*: row i is tokens [i L, (i+1) L) of the stream. The law of `read_row`: whatever L is, every
token except the first of its document (of version 3, every token of an answer) is a target exactly once over all rows,
and no target crosses a document's end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from governance.errors import ManifestError, MissingInput
from governance.files import atomic_file, sha256_bytes

MAGIC = b"ASSAYTOK"
FORMAT_VERSION = 2
_WITH_ANSWERS = 3  # written only where there are answers
_WITH_LABELS = 4  # written only where documents are labelled
SUFFIX = ".tokens"
NO_TARGET = -100  # ignored by torch.nn.functional.cross_entropy by default
IDENTITY_BYTES = 16
UNDETERMINED = "und"  # ISO 639-2: the language is undetermined
UNKNOWN_GROUP = f"unknown/{UNDETERMINED}"

HEADER = struct.Struct("<8sIIQQQQQQ")
_TOKEN_KINDS = {2: "<u2", 4: "<u4"}

Integers = npt.NDArray[np.integer]


def read_header(path: Path, kind: str, magic: bytes, versions: Sequence[int]) -> Sequence[int]:
    """Numbers of a header (`HEADER`), from the version on.

    Raises:
        MissingInput: the file is missing.
        ManifestError: it is of another kind, or has a version that is not read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER.size)
    except OSError as error:
        raise MissingInput(f"cannot read {path}, {kind}: {error.strerror}") from error
    if len(head) < HEADER.size or head[:8] != magic:
        raise ManifestError(f"{path}: is not {kind} (begins with {head[:8]!r}). {FIX}")
    _, *numbers = HEADER.unpack(head)
    if numbers[0] not in versions:
        raise ManifestError(
            f"{path}: is {kind} of format {numbers[0]}; this version reads {' and '.join(map(str, versions))}. "
            "Read it with the version that wrote it, or make it again."
        )
    return numbers


def map_whole(path: Path, total: int) -> npt.NDArray[np.uint8]:
    """Map a file of `total` bytes.

    Raises:
        ManifestError: it has another size.
    """
    if (size := path.stat().st_size) != total:
        raise ManifestError(f"{path}: is truncated or overlong: it has {size} bytes, its header states {total}. {FIX}")
    return np.memmap(path, dtype=np.uint8, mode="r")


@dataclass(frozen=True)
class TokenShard:
    """An open token shard.

    Its arrays are views of the memory-mapped file and read-only.
    """

    path: Path
    vocabulary_size: int
    end_of_document: int
    tokens: Integers
    """uint16 or uint32 [tokens]."""
    document_ends: npt.NDArray[np.uint64]
    """[documents], one past each document's last token."""
    document_bytes: npt.NDArray[np.uint64]
    """[documents], UTF-8 bytes of each text."""
    identities: npt.NDArray[np.uint8]
    """[documents, 16], see `document_identity`."""
    groups: npt.NDArray[np.uint32]
    """[documents], numbers into `group_names`."""
    group_names: tuple[str, ...]
    """See `group_name`."""
    answers: npt.NDArray[np.uint8] | None = None
    """[tokens], 1 where the token is of an answer; None: every token is predicted."""
    labels: npt.NDArray[np.uint32] | None = None
    """[documents], number of each document's label, the only target, at its last token of text; None: no labels."""

    def document_targets(self) -> npt.NDArray[np.int64]:
        """Targets of each document: all tokens but one, or its label."""
        ends = self.document_ends.astype(np.int64)
        if self.labels is not None:
            return np.ones(len(ends), np.int64)
        if self.answers is None or not len(ends):
            return np.diff(ends, prepend=0) - 1
        return np.add.reduceat(self.answers, np.append(0, ends[:-1]), dtype=np.int64)

    def targets(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens [start, stop) as targets: `NO_TARGET` where none is predicted."""
        tokens = self.tokens[start:stop].astype(np.int64)
        if self.labels is not None:
            tokens[:] = NO_TARGET
        if self.answers is not None:
            tokens[self.answers[start:stop] == 0] = NO_TARGET
        return tokens

    @classmethod
    def open(cls, path: Path) -> TokenShard:
        """Map a shard and check that it is whole.

        Raises:
            MissingInput: the file is missing.
            ManifestError: it is not a token shard, has another version, or is torn; names the file.
        """
        versions = (FORMAT_VERSION, _WITH_ANSWERS, _WITH_LABELS)
        version, *sizes = read_header(path, "a token shard", MAGIC, versions)
        item, vocabulary, last, tokens, documents, ends_offset, total = sizes
        answered, labelled = version == _WITH_ANSWERS, version == _WITH_LABELS
        marks = tokens if answered else 4 * documents if labelled else 0
        layout = _layout(tokens, documents, item, marks) if item in _TOKEN_KINDS else (0, 0, 0)
        if ends_offset != layout[0] or total < layout[2]:
            raise ManifestError(f"{path}: its header contradicts itself. {FIX}")
        mapped = map_whole(path, total)
        second, third = ends_offset + 8 * documents, ends_offset + 16 * documents
        ends = mapped[ends_offset:second].view("<u8")
        groups = mapped[layout[1] : layout[1] + 4 * documents].view("<u4")
        names = tuple(mapped[layout[2] :].tobytes().decode("utf-8", "replace").split("\n")[:-1])
        if documents and int(groups.max()) >= len(names):
            raise ManifestError(f"{path}: has a document of group {groups.max()}, and {len(names)} groups. {FIX}")
        marked = mapped[layout[2] - _padded(marks) :][:marks]
        last_end = int(ends[-1]) if len(ends) else 0
        if last_end != tokens or not np.all(ends[1:] > ends[:-1]) or (len(ends) and not ends[0]):
            raise ManifestError(
                f"{path}: its document ends do not increase up to its {tokens} tokens (the last is {last_end}). {FIX}"
            )
        return cls(
            path=path,
            vocabulary_size=vocabulary,
            end_of_document=last,
            tokens=mapped[HEADER.size : HEADER.size + tokens * item].view(_TOKEN_KINDS[item]),
            document_ends=ends,
            document_bytes=mapped[second:third].view("<u8"),
            identities=mapped[third : third + IDENTITY_BYTES * documents].reshape(documents, IDENTITY_BYTES),
            groups=groups,
            group_names=names,
            answers=marked if answered else None,
            labels=marked.view("<u4") if labelled else None,
        )


FIX = "Remove it and run the same command again: only this shard is made again."


def _layout(tokens: int, documents: int, item: int, marks: int) -> tuple[int, int, int]:
    """Offsets of the document ends, of the groups, and of their names.

    Before the names are `marks` bytes.
    """
    ends_offset = HEADER.size + _padded(tokens * item)
    groups_offset = ends_offset + documents * (8 + 8 + IDENTITY_BYTES)
    return ends_offset, groups_offset, groups_offset + _padded(documents * 4) + _padded(marks)


def _padded(size: int) -> int:
    """Bytes up to the next multiple of 8."""
    return -(-size // 8) * 8


def token_bytes(vocabulary_size: int) -> int:
    """Bytes of one token on disk.

    There are 2 while every id fits in them, else 4.
    """
    return 2 if vocabulary_size <= 1 << 16 else 4


def document_identity(document_id: str) -> bytes:
    """The 16 bytes by which a shard names a document.

    They are the first half of the SHA-256 of its id.
    """
    return bytes.fromhex(sha256_bytes(document_id.encode("utf-8")))[:IDENTITY_BYTES]


def group_name(source: str, language: str) -> str:
    """The group of a document.

    A language that was never identified counts as undetermined.
    """
    return f"{source}/{language or UNDETERMINED}"


@dataclass(frozen=True)
class EncodedDocument:
    """One document as the writer takes it."""

    id: str
    tokens: Integers
    """Token ids, the last of them the end-of-document token."""
    bytes: int
    """UTF-8 bytes of the text, or of its answers."""
    group: str = UNKNOWN_GROUP
    """See `group_name`."""
    answers: npt.NDArray[np.bool_] | None = None
    """[tokens], True where a token is of an answer; None: every token is predicted."""
    label: int | None = None
    """Number of its label, which alone is predicted; None: it has none."""


def write_token_shard(
    path: Path, documents: Sequence[EncodedDocument], vocabulary_size: int, end_of_document: int
) -> None:
    """Write one shard, whole or not at all.

    No documents give a valid empty shard.

    Raises:
        ValueError: a document does not end with `end_of_document`, or an id is not below `vocabulary_size`.
        StorageError: the disk is full or refuses.
    """
    item = token_bytes(vocabulary_size)
    for document in documents:
        _refuse_unfit(document, vocabulary_size, end_of_document)
    ends = np.cumsum([len(document.tokens) for document in documents], dtype="<u8")
    tokens = int(ends[-1]) if len(ends) else 0
    names = sorted({document.group for document in documents})
    listed = "".join(f"{name}\n" for name in names).encode("utf-8")
    numbers = {name: number for number, name in enumerate(names)}
    answers = [document.answers for document in documents if document.answers is not None]
    if answers and (len(answers) < len(documents) or sum(map(len, answers)) != tokens):
        raise ValueError(f"{path}: has answers of {sum(map(len, answers))} tokens, and {tokens} tokens")
    labels = [document.label for document in documents if document.label is not None]
    if labels and (answers or len(labels) < len(documents)):
        raise ValueError(f"{path}: {len(labels)} of {len(documents)} documents are labelled, and none may have answers")
    marks = b"".join(mask.astype("<u1").tobytes() for mask in answers) + np.array(labels, "<u4").tobytes()
    ends_offset, _, names_offset = _layout(tokens, len(documents), item, len(marks))
    total = names_offset + len(listed)
    version = _WITH_LABELS if labels else _WITH_ANSWERS if answers else FORMAT_VERSION
    header = HEADER.pack(
        MAGIC, version, item, vocabulary_size, end_of_document, tokens, len(documents), ends_offset, total
    )
    with atomic_file(path) as file:
        file.write(header)
        for document in documents:
            file.write(np.ascontiguousarray(document.tokens, dtype=_TOKEN_KINDS[item]).data)
        file.write(bytes(ends_offset - HEADER.size - tokens * item))
        file.write(ends.tobytes())
        file.write(np.array([document.bytes for document in documents], dtype="<u8").tobytes())
        file.write(b"".join(document_identity(document.id) for document in documents))
        file.write(np.array([numbers[document.group] for document in documents], dtype="<u4").tobytes())
        file.write(bytes(_padded(4 * len(documents)) - 4 * len(documents)))
        file.write(marks.ljust(_padded(len(marks)), b"\0"))
        file.write(listed)


def _refuse_unfit(document: EncodedDocument, vocabulary_size: int, end_of_document: int) -> None:
    if not len(document.tokens) or document.tokens[-1] != end_of_document:
        raise ValueError(f"document {document.id!r} does not end with token {end_of_document}")
    if int(document.tokens.max()) >= vocabulary_size:
        raise ValueError(f"document {document.id!r} has token {document.tokens.max()} of {vocabulary_size}")


@dataclass(frozen=True)
class ShardRow:
    """One training row of L positions.

    A *piece* is the part of one document within the row.
    """

    tokens: npt.NDArray[np.int64]
    """[L], padded after the stream's end with the end-of-document token."""
    targets: npt.NDArray[np.int64]
    """[L], the next token of the same document, or -100 where there is none."""
    segments: npt.NDArray[np.int32]
    """[L], 0, 1, 2 ... by piece; the padding is a piece of its own."""
    positions: npt.NDArray[np.int32]
    """[L], from 0 in each piece."""
    documents: npt.NDArray[np.int64]
    """[pieces], place of each piece's document in its shard; -1: padding."""
    shards: npt.NDArray[np.int64]
    """[pieces], number of that shard among those that were given."""


def row_count(shard: TokenShard, sequence_length: int) -> int:
    """Rows that the shard's stream fills, a partial one included."""
    return -(-len(shard.tokens) // sequence_length)


def read_row(shard: TokenShard, index: int, sequence_length: int) -> ShardRow:
    """Row `index` of the shard's stream, see the module's law.

    It costs O(L + log documents).

    Raises:
        IndexError: `index` is not below `row_count`.
    """
    if not 0 <= index < row_count(shard, sequence_length):
        raise IndexError(f"{shard.path}: row {index} of {row_count(shard, sequence_length)}")
    start = index * sequence_length
    stop = min(start + sequence_length, len(shard.tokens))
    length = stop - start
    # The ends in (start, stop]: where a piece of this row stops.
    first, last = np.searchsorted(shard.document_ends, np.array([start, stop], dtype=np.uint64), side="right")
    ends = shard.document_ends[first:last].astype(np.int64) - start

    tokens = np.full(sequence_length, shard.end_of_document, dtype=np.int64)
    tokens[:length] = shard.tokens[start:stop]
    targets = np.full(sequence_length, NO_TARGET, dtype=np.int64)
    following = shard.targets(start + 1, stop + 1)
    targets[: len(following)] = following
    targets[ends - 1] = NO_TARGET
    begins = np.concatenate(([0], ends[ends < sequence_length]))  # the padding begins where the last document ends
    marks = np.zeros(sequence_length, dtype=np.int32)
    marks[begins[1:]] = 1
    segments = np.cumsum(marks, dtype=np.int32)
    positions = (np.arange(sequence_length) - begins[segments]).astype(np.int32)
    documents = np.arange(first, first + len(begins))
    documents[documents >= len(shard.document_ends)] = -1
    return ShardRow(tokens, targets, segments, positions, documents, np.zeros(len(begins), dtype=np.int64))
