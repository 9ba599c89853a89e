"""Stage "encode": documents to token shards, split into train and validation.

Promises: every document is encoded, closed with the end-of-document token (and begun with `data.tokenizer.bos`, where
that is set), and is in exactly one of the two roles;
text is recovered from ids (checked on a hashed sample, counted). A token shard knows the source and the language of
each of its documents. Beside the token shards it writes `token_features`,
one row for each document of the token shards, which report and receipts read:

    id, source, language   string
    split                  string  "train" or "validation"
    tokens                 int64   the tokens that begin and end a document included
    bytes                  int64   UTF-8 bytes of the text
    max_id                 int64   the largest id
    first_token_ok         bool    the first id is of text (of an empty text: the end-of-document token); where a token
                                   begins documents, it is the first, and this holds of the second
    ends_with_eod          bool
    licence                string
    content, raw, address  16 bytes each, by which a receipt finds the document: first half of the SHA-256 of the text's
                           letters, of the raw text, of the canonical URL (zeros: it has none)

With `classification` documents are labelled, the test side is left out, and only labels are predicted (`labels.py`).

The split looks at the text's content, not at the document's id: two documents of the same words fall on the same side,
so that a copy which deduplication left (or mixing made) cannot carry a training text into the validation.

With a plan of the stage `mix` a document of k copies is written k times, in k passes over the shard, so that its copies
are apart; one of no copies is left out, and counted as removed for `mix_quota`. The funnel counts each document once;
the counts by split and of tokens are those of the token shards, copies included. If the plan has quality buckets,
`tokens_by_bucket` has the tokens of each.

Price: one pass; in memory one row group (8 MiB of text) and the shard's ids, of 2 or 4 bytes each, as on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    document_shards,
    funnel,
    read_groups,
    read_table,
    required,
    write_table,
)
from data_pipeline.tokens.answers import ANSWER, Answers, answers_of
from data_pipeline.tokens.encoder import Encoder
from data_pipeline.tokens.labels import ClassificationConfig, Labelled, content_digests, count_labels, split_documents
from data_pipeline.tokens.mix import PLAN_SCHEMA, read_buckets
from data_pipeline.tokens.pairs import TARGET, sources_of
from data_pipeline.tokens.token_shards import IDENTITY_BYTES, SUFFIX, EncodedDocument, group_name, write_token_shard
from data_pipeline.tokens.tokenizer import BEGIN, load_encoder
from data_pipeline.urls import normalise_url
from governance.config import Section
from governance.errors import ManifestError, PipelineError
from governance.log import get_logger
from governance.manifest import Manifest
from governance.parallel import Shard, ShardMade, map_shards, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import all_intact, guarded

VERSION = 6
SPLITS = ("train", "validation")
FEATURES_SCHEMA = required(
    id=pa.string(),
    source=pa.string(),
    language=pa.string(),
    split=pa.string(),
    tokens=pa.int64(),
    bytes=pa.int64(),
    max_id=pa.int64(),
    first_token_ok=pa.bool_(),
    ends_with_eod=pa.bool_(),
    licence=pa.string(),
    content=pa.binary(IDENTITY_BYTES),
    raw=pa.binary(IDENTITY_BYTES),
    address=pa.binary(IDENTITY_BYTES),
)
_SUFFIXES = {**dict.fromkeys(SPLITS, SUFFIX), "token_features": ".parquet"}
_ROUND_TRIP_ONE_IN = 64
_LEARNED = {"answers": ANSWER, "targets": TARGET}
_COLUMNS = pa.schema(
    [DOCUMENT_SCHEMA.field(name) for name in ("id", "text", "source", "language", "url", "licence", "sha256")]
)

Integers = npt.NDArray[np.int64]


class EncodeConfig(Section):
    """Hold-out of validation documents."""

    validation_share: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Expected share of distinct texts that is held out for validation; 0 holds none out."""
    loss_on: Literal["all", "answers", "targets"] = Field(default="all", exclude_if="all".__eq__)
    """Tokens that training predicts: all; those of the answers of chats read as `messages_form = "instructions"`; or
    those of the targets of pairs (sources of type `parallel`)."""
    classification: ClassificationConfig | None = Field(default=None, exclude_if=lambda config: config is None)
    """Predict the labels of documents, and nothing of their texts; absent: a language model."""


@dataclass(frozen=True)
class EncodeWork:
    """One shard's payload.

    It holds where its documents, its part of the plan and the tokenizer are.
    """

    documents: Path
    plan: Path | None
    tokenizer: Manifest
    root: Path
    labelled: Labelled | None = None


@dataclass(frozen=True)
class Encoded:
    """Encoded documents of a table, in order, zero copies excluded."""

    documents: list[EncodedDocument]
    features: pa.Table
    copies: Integers
    """[documents], each at least 1."""
    stats: dict[str, Any]


def split_of(digest: str, validation_share: float) -> str:
    """The side on which a content falls.

    The first 64 bits of its digest, as a fraction, are compared with the share.
    """
    return "validation" if int(digest[:16], 16) < int(validation_share * 2**64) else "train"


def encode_table(
    table: pa.Table, encoder: Encoder, config: EncodeConfig, copies: Integers, labelled: Labelled | None = None
) -> Encoded:
    """Encode the documents of a table, each `copies` times."""
    sizes = pc.binary_length(table["text"]).to_numpy()
    reasons = np.where(copies > 0, "", "mix_quota" if labelled is None else "test_set").tolist()
    counts = funnel(table["source"].to_pylist(), sizes.tolist(), sizes.tolist(), reasons)
    written = copies > 0
    if not written.all():
        table, sizes, copies = table.filter(pa.array(written)), sizes[written], copies[written]
        labelled = labelled.at(written) if labelled is not None else None
    table = table.combine_chunks()
    ids, ends = encoder.encode_column(table["text"])
    contents = content_digests(table["text"])
    # Pairs by their sources, so that no source stands on both sides with two targets.
    alike = content_digests(sources_of(table)) if config.loss_on == "targets" else contents
    splits = [split_of(digest, config.validation_share) for digest in alike]
    checked, failed = _round_trips(table["text"], alike, (ids, ends), encoder)
    if labelled is not None:
        _refuse_textless(table, ends)
        splits = labelled.sides.tolist()
    features = _features(table, splits, sizes, (ids, ends), contents, encoder)
    documents = [
        EncodedDocument(identity, ids[first:last], size, group_name(source, language))
        for identity, first, last, size, source, language in zip(
            table["id"].to_pylist(),
            ends[:-1].tolist(),
            ends[1:].tolist(),
            sizes.tolist(),
            table["source"].to_pylist(),
            table["language"].to_pylist(),
            strict=True,
        )
    ]
    counted = {}
    if labelled is not None and config.classification is not None:
        sizes_of = [len(name.encode("utf-8")) for name in config.classification.labels]
        documents = [
            replace(one, label=number, bytes=sizes_of[number])
            for one, number in zip(documents, labelled.numbers.tolist(), strict=True)
        ]
    elif config.loss_on != "all":
        answers = answers_of(table, ids, ends, encoder, _LEARNED[config.loss_on])
        bounds = pairwise(ends.tolist())
        documents = [
            _answered(one, answers[slice(*bound)], encoder) for one, bound in zip(documents, bounds, strict=True)
        ]
        counted["answer_tokens"] = int(np.add.reduceat(answers, ends[:-1], dtype=np.int64) @ copies)
    checks = {
        "round_trip_checked": checked,
        "round_trip_failed": failed,
        "ids_above_vocabulary": int(np.count_nonzero(ids >= encoder.vocabulary_size)),
        "documents_without_end": features.num_rows - int(pc.sum(features["ends_with_eod"]).as_py() or 0),
    }
    return Encoded(documents, features, copies, {**counts, **_token_counts(features, copies), **checks, **counted})


def _refuse_textless(table: pa.Table, ends: Integers) -> None:
    if (short := np.flatnonzero(np.diff(ends) < 2)).size:
        raise PipelineError(
            f"encode: document {table['id'][int(short[0])].as_py()} has no text to read its label from; leave it out"
        )


def _answered(document: EncodedDocument, answers: Answers, encoder: Encoder) -> EncodedDocument:
    """The document with the tokens of its answers, and their bytes."""
    size = sum(len(encoder.pieces[index]) for index in document.tokens[answers].tolist())
    return replace(document, answers=answers, bytes=size)


def _round_trips(
    texts: pa.ChunkedArray, digests: list[str], encoded: tuple[npt.NDArray[Any], Integers], encoder: Encoder
) -> tuple[int, int]:
    """Texts that were decoded again, and those that differ."""
    from governance.kernels.buffers import text_buffers

    ids, ends = encoded
    data, offsets = text_buffers(texts)
    chosen = [place for place, d in enumerate(digests) if place == 0 or int(d[-4:], 16) % _ROUND_TRIP_ONE_IN == 0]
    failed = 0
    for place in chosen:
        text = data[offsets[place] : offsets[place + 1]].tobytes()
        failed += not encoder.recovers(ids[ends[place] : ends[place + 1] - 1].tolist(), text)
    return len(chosen), failed


def _features(
    table: pa.Table,
    splits: list[str],
    sizes: Integers,
    encoded: tuple[npt.NDArray[Any], Integers],
    contents: list[str],
    encoder: Encoder,
) -> pa.Table:
    """The rows of FEATURES_SCHEMA for the documents of a table, in order."""
    ids, ends = encoded
    firsts, lengths, before = ends[:-1], np.diff(ends), encoder.begin_of_document
    own = int(before is not None)
    is_text = np.array([*map(bool, encoder.pieces), False])  # the last covers every id that is too large
    first_ids = np.minimum(ids[firsts + own].astype(np.int64), encoder.vocabulary_size)
    begins = (ids[firsts] == before) if own else np.True_
    columns = [
        table["id"],
        table["source"],
        table["language"],
        splits,
        lengths,
        sizes,
        np.maximum.reduceat(ids, firsts).astype(np.int64) if len(firsts) else firsts,
        begins & ((lengths == 1 + own) | is_text[first_ids]),
        ids[ends[1:] - 1] == encoder.end_of_document,
        table["licence"],
        halves(contents),
        halves(table["sha256"].to_pylist()),
        addresses(table["url"]),
    ]
    arrays = [column if isinstance(column, pa.ChunkedArray) else pa.array(column) for column in columns]
    return pa.Table.from_arrays(arrays, names=FEATURES_SCHEMA.names).cast(FEATURES_SCHEMA)


def halves(digests: list[str]) -> pa.Array:
    """First half of each hexadecimal digest."""
    return pa.array([bytes.fromhex(digest[: 2 * IDENTITY_BYTES]) for digest in digests], pa.binary(IDENTITY_BYTES))


def addresses(urls: pa.ChunkedArray) -> pa.Array:
    """First half of the SHA-256 of each canonical URL, zeros for none."""
    from governance.kernels.buffers import text_buffers
    from governance.kernels.sha256_lanes import sha256_lanes

    canonical = pa.array([normalise_url(url) if url else "" for url in urls.to_pylist()], pa.large_string())
    _, offsets = buffers = text_buffers(canonical)
    found = np.where(np.diff(offsets)[:, None] > 0, sha256_lanes(*buffers)[:, :IDENTITY_BYTES], np.uint8(0))
    return pa.Array.from_buffers(pa.binary(IDENTITY_BYTES), len(urls), [None, pa.py_buffer(found.tobytes())])


def _token_counts(features: pa.Table, copies: Integers) -> dict[str, Any]:
    """Tokens, documents and bytes by split, language and source."""
    values = {name: features[name].to_numpy() * copies for name in ("tokens", "bytes")} | {"documents": copies}
    split_names, source_names, codes = (
        np.array(features[name].to_pylist(), object) for name in ("split", "source", "language")
    )
    sides = {
        f"{split}_{unit}": int(values[unit][split_names == split].sum())
        for split in SPLITS
        for unit in ("tokens", "documents", "bytes")
    }
    by_source = {name: int(values["tokens"][source_names == name].sum()) for name in sorted(set(source_names.tolist()))}
    by_language = {
        code: {unit: int(values[unit][codes == code].sum()) for unit in values} for code in sorted(set(codes.tolist()))
    }
    return {"tokens_by_source": by_source, "by_language": by_language, **sides}


def _encode_shard(config: EncodeConfig, work: EncodeWork, path_of: Callable[[str], Path]) -> ShardMade:
    encoder = load_encoder(work.tokenizer, work.root)
    plan, buckets = None, None
    if work.plan is not None:
        buckets = read_buckets(work.plan)
        planned = read_table(work.plan, PLAN_SCHEMA)
        rows, plan = planned["row"].to_numpy(), planned["copies"].to_numpy()
        if not np.array_equal(rows, np.arange(len(rows))) or (plan < 0).any():
            raise ManifestError(
                f"{work.plan}: is not a plan: its rows are not 0, 1, 2 ..., or copies are negative. "
                "Make the plan again."
            )
    labelled = work.labelled
    if labelled is not None:
        plan = (labelled.sides != "test").astype(np.int64)
    parts = [encode_table(_COLUMNS.empty_table(), encoder, config, np.zeros(0, np.int64))]
    row = 0
    for table in read_groups(work.documents, _COLUMNS):
        after = row + table.num_rows
        copies = np.ones(table.num_rows, np.int64) if plan is None else plan[row:after]
        if len(copies) < table.num_rows:
            raise _foreign(work)
        mine = labelled.at(slice(row, after)) if labelled is not None else None
        parts.append(encode_table(table, encoder, config, copies, mine))
        row = after
    if plan is not None and len(plan) != row:
        raise _foreign(work)
    copies = np.concatenate([part.copies for part in parts])
    # All documents, then those of two copies and more, and so on.
    order = np.concatenate([np.flatnonzero(copies > turn) for turn in range(int(copies.max(initial=1)))])
    features = pa.concat_tables(part.features for part in parts).take(pa.array(order))
    documents = [document for part in parts for document in part.documents]
    for split in SPLITS:
        chosen = order[np.array(features["split"].to_pylist(), object) == split]
        held = [documents[place] for place in chosen.tolist()]
        write_token_shard(path_of(split), held, encoder.vocabulary_size, encoder.end_of_document)
    write_table(path_of("token_features"), features)
    stats = sum_stats([part.stats for part in parts])
    if plan is not None and buckets is not None:
        tokens = np.concatenate([part.features["tokens"].to_numpy() for part in parts]) * copies
        names = buckets[plan > 0]
        stats["tokens_by_bucket"] = {name: int(tokens[names == name].sum()) for name in sorted(set(names.tolist()))}
    return ShardMade({role: path_of(role) for role in _SUFFIXES}, stats)


def _foreign(work: EncodeWork) -> ManifestError:
    return ManifestError(f"{work.plan}: must have one row for each document of {work.documents}; make the plan again.")


def _labels_of(paths: Sequence[Path], config: EncodeConfig) -> Sequence[Labelled | None]:
    """Labels of the documents of each shard; None without `classification`."""
    if config.classification is None:
        return [None] * len(paths)
    return split_documents(paths, config.classification, config.validation_share)


def encode(
    documents: Manifest, tokenizer: Manifest, config: EncodeConfig, runtime: Runtime, plan: Manifest | None = None
) -> Manifest:
    """Encode every document into the token shards of its split.

    The roles are train, validation and token_features.

    Args:
        documents: what to encode.
        tokenizer: how.
        config: what is held out.
        runtime: where.
        plan: of the stage `mix`, over these documents: how often each is written.

    Raises:
        PipelineError: the corpus has no document, or the plan left none.
        ManifestError: the plan is of other documents.
    """
    recipe = Recipe("encode", VERSION, config)

    def make(folder: Path) -> Made:
        of_plan = [] if plan is None else document_shards(plan, runtime.root, "plan")
        plans = {path.stem: (output, path) for output, path in of_plan}
        shards = []
        listed = document_shards(documents, runtime.root)
        with all_intact([output for output, _ in listed] if config.classification is not None else [], runtime.root):
            labels = _labels_of([path for _, path in listed], config)
        for (output, path), labelled in zip(listed, labels, strict=True):
            inputs, part, reads = [path.stem, output.sha256, tokenizer.digest], None, [output]
            if plan is not None:
                if path.stem not in plans:
                    raise ManifestError(
                        f"{plan.path}: has no plan for {path}. It is of other documents; make it again."
                    )
                planned, part = plans[path.stem]
                inputs.append(planned.sha256)
                reads.append(planned)
            inputs += [labelled.digest] if labelled is not None else []
            work = EncodeWork(path, part, tokenizer, runtime.root, labelled)
            shards.append(Shard(path.stem, tuple(inputs), work, tuple(reads)))
        done = map_shards(recipe, _encode_shard, shards, folder, runtime, _SUFFIXES)
        stats = sum_stats([shard.stats for shard in done])
        if config.classification is not None:
            stats |= count_labels(labels, config.classification.labels)
        if not stats.get("documents_kept"):
            raise PipelineError(
                f"encode: no documents in {documents.path}{' are in the plan' if plan is not None else ''}. "
                f"Look at what the earlier stages removed: assay data show CONFIG."
            )
        log = get_logger(__name__)
        if stats["round_trip_failed"]:
            log.warning(
                "encode: %d of %d documents were not recovered from their ids",
                stats["round_trip_failed"], stats["round_trip_checked"],
            )  # fmt: skip
        if config.validation_share and not stats["validation_documents"]:
            log.warning(
                "encode: validation_share %g held out none of %d documents; raise it to have a validation loss",
                config.validation_share, stats["documents_in"],
            )  # fmt: skip
        if not stats["train_documents"]:
            log.warning("encode: no document was left to train on; lower validation_share %g", config.validation_share)
        copied = ("vocabulary_size", "end_of_document", BEGIN, "parity")
        stats |= {name: tokenizer.stats[name] for name in copied if name in tokenizer.stats}
        return Made([output for shard in done for output in shard.outputs.values()], stats)

    inputs = [artifact.as_input() for artifact in (documents, tokenizer, plan) if artifact is not None]
    return run_stage(recipe, inputs, runtime, guarded(make, tokenizer.outputs, runtime.root))
