"""Stage "encode": documents to token shards, split into train and validation.

Promises: every document is encoded, closed with the end-of-document token, and lies in exactly one of the two roles;
text is recovered from ids (checked on a hashed sample, counted). Beside the token shards it writes `token_features`,
one row a document, which the checks of the tokens read:

    id, source, language   string
    split                  string  "train" or "validation"
    tokens                 int64   the end-of-document token included
    bytes                  int64   UTF-8 bytes of the text
    max_id                 int64   the largest id
    first_token_ok         bool    the first id is of text (of an empty text: the end-of-document token)
    ends_with_eod          bool

The split looks at the text's content, not at the document's id: two documents of the same words fall on the same side,
so that a copy which deduplication left (or mixing made) cannot carry a training text into the validation.

Price: one pass, O(shard) memory, 2 or 4 bytes a token on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from data_pipeline.documents import funnel, read_table, write_table
from data_pipeline.parallel import Shard, ShardMade, map_shards, sum_stats
from data_pipeline.token_shards import SUFFIX, EncodedDocument, write_token_shard
from data_pipeline.tokenizer import Encoder, load_encoder
from governance.config import Section
from governance.errors import PipelineError
from governance.files import sha256_bytes
from governance.log import get_logger
from governance.manifest import Manifest
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 1
SPLITS = ("train", "validation")
FEATURES_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("id", pa.string()),
            ("source", pa.string()),
            ("language", pa.string()),
            ("split", pa.string()),
            ("tokens", pa.int64()),
            ("bytes", pa.int64()),
            ("max_id", pa.int64()),
            ("first_token_ok", pa.bool_()),
            ("ends_with_eod", pa.bool_()),
        )
    ]
)
_SUFFIXES = {**dict.fromkeys(SPLITS, SUFFIX), "token_features": ".parquet"}
_ROUND_TRIP_ONE_IN = 64
_WHITE_SPACE = b" \t\n\r\x0b\x0c"


class EncodeConfig(Section):
    """How documents are held out."""

    validation_share: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Expected share of distinct texts that is held out for validation; 0 holds none out."""


@dataclass(frozen=True)
class Work:
    """One shard's payload: where its documents and the tokeniser are."""

    documents: Path
    tokenizer: Manifest
    root: Path


def content_digest(text: str) -> str:
    """The SHA-256, in hexadecimal, of the text's letters: case folded, ASCII white space left out."""
    return sha256_bytes(text.casefold().encode("utf-8").translate(None, _WHITE_SPACE))


def split_of(digest: str, validation_share: float) -> str:
    """The side on which a content falls: its digest's first 64 bits, as a fraction, against the share."""
    return "validation" if int(digest[:16], 16) < int(validation_share * 2**64) else "train"


Splits = dict[str, list[EncodedDocument]]


def encode_table(table: pa.Table, encoder: Encoder, config: EncodeConfig) -> tuple[Splits, pa.Table, dict[str, Any]]:
    """Encode a shard's documents: split -> documents in their order, the table of features, the counts."""
    documents: Splits = {split: [] for split in SPLITS}
    rows: list[dict[str, Any]] = []
    counts = {"round_trip_checked": 0, "round_trip_failed": 0, "ids_above_vocabulary": 0, "documents_without_end": 0}
    columns = [table[name].to_pylist() for name in ("id", "source", "language")]
    for place, (identity, source, language) in enumerate(zip(*columns, strict=True)):
        text = table["text"][place].as_py()
        digest = content_digest(text)
        split = split_of(digest, config.validation_share)
        ids = encoder.encode_documents([text])[0]
        document = EncodedDocument(identity, ids, len(text.encode("utf-8")))
        documents[split].append(document)
        rows.append(_features(document, source, language, split, encoder))
        counts["ids_above_vocabulary"] += int(np.count_nonzero(ids >= encoder.vocabulary_size))
        counts["documents_without_end"] += not rows[-1]["ends_with_eod"]
        if place == 0 or int(digest[-4:], 16) % _ROUND_TRIP_ONE_IN == 0:
            counts["round_trip_checked"] += 1
            counts["round_trip_failed"] += encoder.decode(ids[:-1]) != text
    return documents, pa.Table.from_pylist(rows, schema=FEATURES_SCHEMA), {**_counts(rows), **counts}


def _features(document: EncodedDocument, source: str, language: str, split: str, encoder: Encoder) -> dict[str, Any]:
    ids = document.tokens
    first = int(ids[0])
    return {
        "id": document.id,
        "source": source,
        "language": language,
        "split": split,
        "tokens": len(ids),
        "bytes": document.bytes,
        "max_id": int(ids.max()),
        "first_token_ok": len(ids) == 1 or encoder.is_text(first),
        "ends_with_eod": int(ids[-1]) == encoder.end_of_document,
    }


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of the features' rows: the funnel (all are kept), tokens by split and by source."""
    tokens: dict[str, int] = {}
    sides = {f"{split}_{unit}": 0 for split in SPLITS for unit in ("tokens", "documents", "bytes")}
    for row in rows:
        tokens[row["source"]] = tokens.get(row["source"], 0) + row["tokens"]
        sides[f"{row['split']}_tokens"] += row["tokens"]
        sides[f"{row['split']}_documents"] += 1
        sides[f"{row['split']}_bytes"] += row["bytes"]
    sizes = [row["bytes"] for row in rows]
    kept = funnel([row["source"] for row in rows], sizes, sizes, [""] * len(rows))
    return {**kept, "tokens_by_source": tokens, **sides}


def _encode_shard(config: EncodeConfig, work: Work, path_of: Callable[[str], Path]) -> ShardMade:
    encoder = load_encoder(work.tokenizer, work.root)
    documents, features, stats = encode_table(read_table(work.documents), encoder, config)
    for split in SPLITS:
        write_token_shard(path_of(split), documents[split], encoder.vocabulary_size, encoder.end_of_document)
    write_table(path_of("token_features"), features)
    return ShardMade({role: path_of(role) for role in _SUFFIXES}, stats)


def encode(documents: Manifest, tokenizer: Manifest, config: EncodeConfig, runtime: Runtime) -> Manifest:
    """Encode every document into the token shards of its split: roles train, validation, token_features.

    Raises:
        PipelineError: there are no documents.
    """
    recipe = Recipe("encode", VERSION, config)

    def make(folder: Path) -> Made:
        digests = {output.path: output.sha256 for output in documents.outputs}
        shards = [
            Shard(
                path.stem,
                (path.stem, digests[path.relative_to(runtime.root).as_posix()], tokenizer.digest),
                Work(path, tokenizer, runtime.root),
            )
            for path in documents.files("documents", runtime.root)
        ]
        done = map_shards(recipe, _encode_shard, shards, folder, runtime, _SUFFIXES)
        stats = sum_stats([shard.stats for shard in done])
        if not stats.get("documents_in"):
            raise PipelineError(
                f"encode: no documents in {documents.path}. "
                f"Look at what the earlier stages removed: assay data show CONFIG."
            )
        _warn(stats, config)
        stats |= {name: tokenizer.stats[name] for name in ("vocabulary_size", "end_of_document", "parity")}
        return Made([output for shard in done for output in shard.outputs.values()], stats)

    return run_stage(recipe, [documents.as_input(), tokenizer.as_input()], runtime, make)


def _warn(stats: Mapping[str, Any], config: EncodeConfig) -> None:
    log = get_logger(__name__)
    if stats["round_trip_failed"]:
        log.warning(
            "encode: %d of %d documents did not come back from their ids",
            stats["round_trip_failed"], stats["round_trip_checked"],
        )  # fmt: skip
    if config.validation_share and not stats["validation_documents"]:
        log.warning(
            "encode: validation_share %g held out none of %d documents; raise it to have a validation loss",
            config.validation_share, stats["documents_in"],
        )  # fmt: skip
    if not stats["train_documents"]:
        log.warning("encode: no document was left to train on; lower validation_share %g", config.validation_share)
