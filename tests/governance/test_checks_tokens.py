"""Token shards counted again: each way in which one can be wrong is found, and no shard's row can go missing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.tokens.token_shards import EncodedDocument, write_token_shard
from data_pipeline.tokens.token_shards import TokenShard as File
from governance.checks.tokens import ALL, CheckedShard, TokenReaders, identity_of, token_row, token_shard_rows
from governance.errors import MissingInput
from governance.manifest import Manifest

PIECES = (b"", b"a", b"b", b"c", b"")  # 0 ends a document, 4 is another special token
TEXTS = ["abc", "cab", "", "bb"]
IDS = [[1, 2, 3, 0], [3, 1, 2, 0], [0], [2, 2, 0]]
STREAM = [token for ids in IDS for token in ids]


@dataclass
class Decoder:
    pieces: tuple[bytes, ...] = PIECES

    def recovers(self, ids, text):
        return b"".join(self.pieces[index] for index in ids) == text


@dataclass
class Fake:
    """A token file with arbitrary content, as a reader without checks would pass it on."""

    tokens: np.ndarray = field(default_factory=lambda: np.array(STREAM, np.uint16))
    document_ends: np.ndarray = field(default_factory=lambda: np.cumsum(list(map(len, IDS))).astype(np.uint64))
    vocabulary_size: int = 5
    end_of_document: int = 0

    @property
    def identities(self):
        names = b"".join(identity_of(f"s#{number}") for number in range(len(self.document_ends)))
        return np.frombuffer(names, np.uint8).reshape(-1, 16)


def manifest(stage="encode", **stats):
    return Manifest(stage=stage, version=1, key="0" * 64, config={}, inputs=(), outputs=(), stats=stats, run={})


@pytest.fixture
def shard(tmp_path):
    documents = tmp_path / "documents.parquet"
    names = [f"s#{number}" for number in range(4)]
    pq.write_table(pa.table({"id": names, "text": pa.array(TEXTS, pa.large_string())}), documents)
    written = [
        EncodedDocument(name, np.array(ids), len(text)) for name, ids, text in zip(names, IDS, TEXTS, strict=True)
    ]
    path = tmp_path / "0.tokens"
    write_token_shard(path, written, 5, 0)
    readers = TokenReaders(File.open, lambda tokenizer, root: Decoder())
    return CheckedShard(path, "encode/0/train/0.tokens", "0" * 64, "train", documents, manifest(), tmp_path, readers)


SOUND = {
    "tokens": 12, "documents": 4, "ids_above_vocabulary": 0, "unknown": 0, "ends_out_of_order": 0, "ends_beyond": 0,
    "documents_without_end": 0, "round_trip_checked": 4, "round_trip_failed": 0,
}  # fmt: skip


def test_a_sound_shard(shard):
    row = token_row(shard)
    assert {name: row[name] for name in SOUND} == SOUND
    assert (row["unknown_share"], row["problem"], row["shard"]) == (0.0, None, "encode/0/train/0.tokens")


def of(shard, fake):
    return token_row(replace(shard, readers=TokenReaders(lambda path: fake, lambda tokenizer, root: Decoder())))


def tokens(**at):
    ids = np.array(STREAM, np.uint16)
    for place, value in at.items():
        ids[int(place[1:])] = value
    return ids


@pytest.mark.parametrize(
    ("fake", "found"),
    [
        (Fake(tokens(t1=9)), {"ids_above_vocabulary": 1, "unknown": 1, "round_trip_failed": 1}),
        (Fake(vocabulary_size=3), {"ids_above_vocabulary": 2}),
        (Fake(tokens(t1=4)), {"unknown": 1, "round_trip_failed": 1}),
        (Fake(tokens(t1=0)), {"unknown": 1, "round_trip_failed": 1}),
        (Fake(tokens(t1=3)), {"round_trip_failed": 1}),
        (Fake(tokens(t3=1)), {"documents_without_end": 1}),
        (Fake(document_ends=np.array([4, 8, 9, 11], np.uint64)), {"ends_beyond": 1, "documents_without_end": 1}),
        (Fake(document_ends=np.array([8, 4, 9, 12], np.uint64)), {"ends_out_of_order": 1}),
        (Fake(document_ends=np.array([4, 8, 9, 13], np.uint64)), {"ends_beyond": 2}),
        (Fake(document_ends=np.array([0, 8, 9, 12], np.uint64)), {"ends_beyond": 1}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_counted(shard, fake, found):
    row = of(shard, fake)
    assert row["problem"] is None
    assert {name: row[name] for name in found} == found


def test_a_text_that_was_changed_does_not_come_back(shard):
    pq.write_table(
        pa.table({"id": ["s#0", "s#1"], "text": pa.array(["abc", "caB"], pa.large_string())}), shard.documents
    )
    row = token_row(shard)
    assert (row["round_trip_checked"], row["round_trip_failed"]) == (2, 1)


def test_a_shard_that_cannot_be_opened_has_a_row_with_its_problem(shard):
    whole = shard.path.read_bytes()
    shard.path.write_bytes(whole[:-1])
    row = token_row(shard)
    assert "is truncated" in row["problem"]
    assert str(shard.root) not in row["problem"]
    assert row["tokens"] is None
    rows, problem = token_shard_rows([shard], [came(shard, row)], manifest(train_tokens=12, train_documents=4))
    assert problem.startswith("1 of 1 token shards could not be counted: encode/0/train/0.tokens: ")
    assert (rows[-1]["shard"], rows[-1]["tokens"], rows[-1]["tokens_off"]) == (ALL, None, None)


@pytest.mark.parametrize("gone", ["path", "documents"])
def test_what_is_not_there_is_no_finding(shard, gone):
    getattr(shard, gone).unlink()
    with pytest.raises(MissingInput, match="cannot read"):
        token_row(shard)


def test_torn_documents_are_a_problem(shard):
    shard.documents.write_bytes(shard.documents.read_bytes()[:-9])
    assert "ArrowInvalid" in token_row(shard)["problem"]


def test_an_empty_shard_is_sound(shard):
    write_token_shard(shard.path, [], 5, 0)
    row = token_row(shard)
    assert (row["tokens"], row["documents"], row["ends_beyond"], row["unknown_share"]) == (0, 0, 0, None)


# --- the table


def came(shard, row):
    return {**row, "subject": shard.subject, "sha256": shard.sha256}


def two(shard):
    return [shard, replace(shard, subject="encode/0/train/1.tokens", sha256="1" * 64)]


def test_sums_are_compared_with_the_manifest(shard):
    shards = two(shard)
    found = [came(each, {**token_row(each), "shard": each.subject}) for each in shards]
    rows, problem = token_shard_rows(shards, found[::-1], manifest(train_tokens=25, train_documents=8))
    assert problem == ""
    assert [row["shard"] for row in rows] == [*(each.subject for each in shards), ALL]
    assert (rows[-1]["tokens"], rows[-1]["tokens_off"], rows[-1]["documents_off"]) == (24, -1, 0)
    assert [row["tokens_off"] for row in rows[:-1]] == [0, 0]
    assert token_shard_rows(shards, found, manifest())[0][-1]["tokens_off"] is None, "not counted is not zero"


@pytest.mark.parametrize("wrong", [
    lambda found: found[:1],
    lambda found: [],
    lambda found: [*found, found[0]],
    lambda found: [found[0], found[0]],
    lambda found: [found[0], {**found[1], "sha256": "f" * 64}],
    lambda found: [found[0], {**found[1], "subject": "elsewhere"}],
])  # fmt: skip
def test_a_lost_doubled_or_foreign_row_is_a_problem(shard, wrong):
    shards = two(shard)
    found = [came(each, token_row(each)) for each in shards]
    rows, problem = token_shard_rows(shards, wrong(found), manifest(train_tokens=24, train_documents=8))
    assert rows == []
    assert "for 2 token shards" in problem


def test_the_identity_is_the_formats_own():
    from data_pipeline.tokens.token_shards import document_identity

    assert identity_of("s#é") == document_identity("s#é")


def test_readers_travel_to_workers():
    import pickle

    from assay.corpus_audit import token_readers

    readers = pickle.loads(pickle.dumps(token_readers()))
    assert readers.open_shard == File.open
