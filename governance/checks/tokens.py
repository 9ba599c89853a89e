"""Token shard suite: each shard recounted from its bytes.

Encode counts while it writes; this module counts the files on disk. The format belongs to the data pipeline, so
`assay` passes two functions that read it (`TokenReaders`); all counts are computed here on plain arrays:

    shard, split           its path, and "train" or "validation"
    tokens, documents      how many
    ids_above_vocabulary   ids that are not below the vocabulary's size
    unknown, unknown_share ids without text, except those that begin and end documents; their share of all
    ends_out_of_order      document ends that are not above the previous one
    ends_beyond            document ends outside 1 ... tokens, and 1 more if the last is not the number of tokens
    documents_without_end  documents whose last id is not the end-of-document token
    round_trip_checked     documents of a sample whose ids were turned into text again
    round_trip_failed      ... and that differ from the document
    tokens_off             tokens of the split in all shards - those of the manifest, in the row "(all)" of a split
    documents_off          the same of documents; 0 in the other rows

A shard that cannot be opened still has a row, with missing counts and its `problem`; each gate is then an error, which
is not a pass and cannot be waived. The sample is at most 16 documents of the shard, from one row group of its
documents, chosen by its digest.

Price: one pass over the token shards, at about 400 million tokens per core-second, and one row group of texts per
shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from governance.config import Section
from governance.errors import ManifestError, MissingInput
from governance.files import sha256_bytes, write_json
from governance.manifest import Manifest
from governance.parallel import ShardMade

ALL = "(all)"
SPLITS = ("train", "validation")
_SAMPLE = 16
_CHUNK = 1 << 22  # ids counted at once
_COUNTED = (
    "tokens", "documents", "ids_above_vocabulary", "unknown", "ends_out_of_order", "ends_beyond",
    "documents_without_end", "round_trip_checked", "round_trip_failed",
)  # fmt: skip
COLUMNS = ("shard", "split", *_COUNTED, "unknown_share", "tokens_off", "documents_off", "problem")

Integers = npt.NDArray[np.integer]


class TokenFile(Protocol):
    """An open token shard."""

    @property
    def vocabulary_size(self) -> int:
        """Every id should be below it."""

    @property
    def end_of_document(self) -> int:
        """The id that ends a document."""

    @property
    def tokens(self) -> Integers:
        """[tokens]."""

    @property
    def document_ends(self) -> npt.NDArray[np.uint64]:
        """[documents], one past each document's last token."""

    @property
    def identities(self) -> npt.NDArray[np.uint8]:
        """[documents, 16], the first half of the SHA-256 of each document's id."""


class TokenDecoder(Protocol):
    """A loaded tokenizer."""

    @property
    def pieces(self) -> Sequence[bytes]:
        """Bytes of each id; empty for an id without text."""

    def recovers(self, ids: Sequence[int], text: bytes) -> bool:
        """Return whether the ids give the text again."""


@dataclass(frozen=True)
class TokenReaders:
    """Readers of token shards and tokenizers, as picklable functions."""

    open_shard: Callable[[Path], TokenFile]
    """Raises a ManifestError for a file that is damaged or not a token shard, MissingInput for none."""
    load_decoder: Callable[[Manifest, Path], TokenDecoder]
    """Given the tokenizer's manifest and the root."""


@dataclass(frozen=True)
class CheckedShard:
    """One token shard, its documents, and the readers of both."""

    path: Path
    subject: str
    sha256: str
    split: str
    documents: Path | None
    """The shard of documents; None where missing: no round trip is then checked."""
    tokenizer: Manifest
    root: Path
    readers: TokenReaders


def count_tokens(section: Section, shard: CheckedShard, path_of: Callable[[str], Path]) -> ShardMade:
    """Write one shard's row: a function for `map_shards`."""
    path = path_of(f"tokens_{shard.split}")
    write_json(path, {"subject": shard.subject, "sha256": shard.sha256, **token_row(shard)})
    return ShardMade({f"tokens_{shard.split}": path}, {})


def token_row(shard: CheckedShard) -> dict[str, Any]:
    """The row of one shard, see the module.

    Raises:
        MissingInput: the shard or its documents do not exist, which is not a finding about the corpus.
    """
    row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "shard": shard.subject, "split": shard.split}
    row |= {"tokens_off": 0, "documents_off": 0}
    try:
        file = shard.readers.open_shard(shard.path)
        decoder = shard.readers.load_decoder(shard.tokenizer, shard.root)
        pieces = decoder.pieces
        begin = shard.tokenizer.stats.get("begin_of_document")
        counted = {**_count_ids(file, pieces, begin), **_count_ends(file), **_round_trip(file, decoder, shard)}
    except (ManifestError, ValueError, IndexError) as error:  # Arrow's errors included; a missing file raises
        return {**row, "problem": f"{type(error).__name__}: {error}"[:300].replace(f"{shard.root}/", "")}
    tokens = counted["tokens"]
    return {**row, **counted, "unknown_share": counted["unknown"] / tokens if tokens else None}


def _count_ids(file: TokenFile, pieces: Sequence[bytes], begin: int | None) -> dict[str, int]:
    is_text = np.array([*map(bool, pieces), False])  # the last entry serves every id that is too large
    above = textless = 0
    for start in range(0, len(file.tokens), _CHUNK):
        ids = file.tokens[start : start + _CHUNK]
        if int(ids.max()) >= file.vocabulary_size or file.vocabulary_size != len(pieces):
            above += int(np.count_nonzero(ids >= min(file.vocabulary_size, len(pieces))))
        textless += int(np.count_nonzero(~is_text[np.minimum(ids, len(pieces))]))
    ends = int(np.count_nonzero(_last_ids(file) == file.end_of_document))
    return {
        "tokens": len(file.tokens),
        "documents": len(file.document_ends),
        "ids_above_vocabulary": above,
        "unknown": textless - ends - (0 if begin is None else int(np.count_nonzero(_first_ids(file) == begin))),
        "documents_without_end": len(file.document_ends) - ends,
    }


def _last_ids(file: TokenFile) -> Integers:
    """The last id of each document whose end is within the tokens."""
    ends = file.document_ends
    within = (ends > 0) & (ends <= len(file.tokens))
    return file.tokens[ends[within].astype(np.int64) - 1]


def _first_ids(file: TokenFile) -> Integers:
    """First id of each document of two tokens or more."""
    ends = file.document_ends.astype(np.int64)
    begins = np.concatenate((np.zeros(1, np.int64), ends[:-1]))[: len(ends)]
    return file.tokens[begins[(begins < ends - 1) & (begins < len(file.tokens)) & (begins >= 0)]]


def _count_ends(file: TokenFile) -> dict[str, int]:
    ends, tokens = file.document_ends, len(file.tokens)
    beyond = int(np.count_nonzero((ends == 0) | (ends > tokens)))
    return {
        "ends_out_of_order": int(np.count_nonzero(ends[1:] <= ends[:-1])),
        "ends_beyond": beyond + int((int(ends[-1]) if len(ends) else 0) != tokens),
    }


def _round_trip(file: TokenFile, decoder: TokenDecoder, shard: CheckedShard) -> dict[str, int]:
    """Decode some documents' ids and compare the bytes."""
    checked = failed = 0
    places = {identity.tobytes(): place for place, identity in enumerate(file.identities)}
    for name, text in _sample(shard, set(places)):
        place = places[identity_of(name)]
        first = int(file.document_ends[place - 1]) if place else 0
        ids = file.tokens[first : int(file.document_ends[place]) - 1].tolist()
        checked += 1
        failed += max(ids, default=0) >= len(decoder.pieces) or not decoder.recovers(ids, text)
    return {"round_trip_checked": checked, "round_trip_failed": failed}


def identity_of(name: str) -> bytes:
    """The 16 bytes by which a token shard names a document."""
    return bytes.fromhex(sha256_bytes(name.encode("utf-8")))[:16]


def _sample(shard: CheckedShard, known: set[bytes]) -> list[tuple[str, bytes]]:
    """Ids and texts of evenly spaced documents of a row group."""
    if shard.documents is None:
        return []
    try:
        with pq.ParquetFile(shard.documents) as file:
            if not file.num_row_groups:
                return []
            group = int(shard.sha256[:8], 16) % file.num_row_groups
            table = file.read_row_group(group, columns=["id", "text"])
    except OSError as error:
        raise MissingInput(f"cannot read {shard.documents}: {error}") from error
    names = table["id"].to_pylist()
    own = [row for row, name in enumerate(names) if identity_of(name) in known]
    chosen = own[:: -(-len(own) // _SAMPLE) or 1]
    texts = table["text"].cast(pa.large_binary())
    return [(names[row], texts[row].as_py()) for row in chosen]


def shards_of(
    encode: Manifest, tokenizer: Manifest, documents: Manifest, root: Path, readers: TokenReaders
) -> list[CheckedShard]:
    """The token shards of a corpus, those of training first."""
    texts = {path.stem: path for path in documents.files("documents", root)}
    digests = {root / output.path: output.sha256 for output in encode.outputs}
    return [
        CheckedShard(
            path=path,
            subject=path.relative_to(root).as_posix(),
            sha256=digests[path],
            split=split,
            documents=texts.get(path.stem),
            tokenizer=tokenizer,
            root=root,
            readers=readers,
        )
        for split in SPLITS
        for path in encode.files(split, root)
    ]


def token_shard_rows(
    shards: Sequence[CheckedShard], found: Sequence[Mapping[str, Any]], encode: Manifest
) -> tuple[list[dict[str, Any]], str]:
    """Sorted table with totals by split, and its problem ("" for none).

    Args:
        shards: those that must have been counted, each once.
        found: the workers' rows, in any order.
        encode: the manifest that the sums are compared with.
    """
    expected = {shard.subject: shard.sha256 for shard in shards}
    received = [(str(row.get("subject")), str(row.get("sha256"))) for row in found]
    if sorted(received) != sorted(expected.items()):
        absent = sorted(set(expected.items()) - set(received))
        counts = f"{len(received)} rows were received for {len(expected)} token shards"
        return [], f"{counts}; without a row: {', '.join(name for name, _ in absent[:3]) or 'none'}"
    rows = [{name: row.get(name) for name in COLUMNS} for row in found]
    rows.sort(key=lambda row: (str(row["split"]), str(row["shard"])))
    for split in sorted({str(row["split"]) for row in rows}):
        rows.append(_sums(split, [row for row in rows if row["split"] == split], encode))
    if torn := [row for row in rows if row["problem"]]:
        count = f"{len(torn)} of {len(shards)} token shards could not be counted"
        return rows, f"{count}: {torn[0]['shard']}: {torn[0]['problem']}"
    return rows, ""


def _sums(split: str, rows: Sequence[Mapping[str, Any]], encode: Manifest) -> dict[str, Any]:
    total: dict[str, Any] = {**dict.fromkeys(COLUMNS), "shard": ALL, "split": split}
    for name in _COUNTED:
        values = [row[name] for row in rows]
        total[name] = None if None in values else sum(values)
    if total["tokens"]:
        total["unknown_share"] = total["unknown"] / total["tokens"]
    for name in ("tokens", "documents"):
        stated = encode.stats.get(f"{split}_{name}")
        total[f"{name}_off"] = None if None in (stated, total[name]) else total[name] - stated
    return total
